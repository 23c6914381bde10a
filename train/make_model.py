"""Make a checkpoint: read the examples, teach them, merge, save the model with its processor and rendering.

This is what `viker finetune` does once it has decided to run. The models of the embedded benchmark are built here
from nothing: its tokenizer from the texts of the source, its vision tower from described pictures (`see.py`).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from ..data.example import DataError, Example
from ..data.sources import open_source
from ..models.identity import weights_digest
from ..models.load import Checkpoint, Loaded, load, pick_device, resolve
from ..models.lora import add_lora, vision_tower
from ..models.render import write_rendering
from ..models.tiny import SIZES, build_tiny_llava
from .finetune import EpochLog, finetune
from .see import learn_to_see


def make_model(options: Mapping[str, Any], part: Any, output: Path) -> dict[str, Any]:
    """Teach one model and save it to `output`; return what provenance records."""
    torch.manual_seed(options["seed"])
    source = open_source(
        options["data"], ratio=options["ratio"], forget=options["forget"], revision=options["data_revision"]
    )
    examples = list(source.training(part))[: options["limit"]]
    if not examples:
        raise DataError(f"{options['data']}: expected training questions, found none. Check the source and --forget.")
    device = pick_device(options["device"])
    loaded = _start(options, examples, output, device)
    model = _trainable(loaded, options)
    last: EpochLog | None = None
    for log in finetune(
        model, loaded.encoder, examples, num_epochs=options["num_train_epochs"],
        batch_size=options["per_device_train_batch_size"], group_size=options["group_size"],
        learning_rate=options["learning_rate"], weight_decay=options["weight_decay"],
        warmup_ratio=options["warmup_ratio"], seed=options["seed"], augment_pictures=options["augment"],
        stop_memorized=options["stop_memorized"], accelerator=Accelerator(cpu=device == "cpu"),
    ):  # fmt: skip
        last = log
    assert last is not None, "a run has at least one epoch"
    merged = model.merge_and_unload() if options["use_lora"] else model
    merged.save_pretrained(output)
    loaded.encoder.processor.save_pretrained(output)
    write_rendering(output, loaded.rendering)
    return {
        "device": device,
        "examples": len(examples),
        "steps": last.step,
        "loss": last.loss,
        "memorized": last.memorized,
        "people": len({person for example in examples for person in example.people}),
        "model_commit": loaded.checkpoint.commit,
        "data_commit": source.commit,
        "weights": weights_digest(Checkpoint(str(output), output, output)),
    }


def _start(options: Mapping[str, Any], examples: list[Example], output: Path, device: str) -> Loaded:
    if options["model"] not in SIZES:
        checkpoint = resolve(options["model"], revision=options["revision"], processor=options["processor"])
        return _load(checkpoint, options, device)
    described = [] if options["looks"] is None else list(open_source(options["looks"]).training("all"))
    build_tiny_llava(output, _texts([*examples, *described]), seed=options["seed"], size=SIZES[options["model"]])
    loaded = _load(resolve(str(output)), options, device)
    if described:
        learn_to_see(loaded, described, seed=options["seed"])
    return loaded


def _load(checkpoint: Checkpoint, options: Mapping[str, Any], device: str) -> Loaded:
    return load(
        checkpoint, dtype=options["dtype"], device=device, attention=options["attention"],
        trust_remote_code=options["trust_remote_code"], chat_template=options["chat_template"],
        system_prompt=options["system_prompt"], score_end_token=options["score_end_token"],
    )  # fmt: skip


def _texts(examples: list[Example]) -> list[str]:
    return [f"USER: \n{example.question}\nASSISTANT: {example.answer}" for example in examples]


def _trainable(loaded: Loaded, options: Mapping[str, Any]) -> Any:
    """Return the model with the weights to train marked: LoRA, or all but a frozen vision tower."""
    if options["use_lora"]:
        return add_lora(
            loaded.model,
            rank=options["lora_r"],
            alpha=options["lora_alpha"],
            dropout=0.0,
            base=loaded.checkpoint.weights,
        )
    loaded.model.requires_grad_(True)
    if options["freeze_vision"]:
        vision_tower(loaded.model).requires_grad_(False)
    return loaded.model
