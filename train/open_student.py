"""The student as training wants it: loaded, with fresh LoRA weights, and written as an adapter that others can load."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..models.load import Checkpoint, Loaded, load
from ..models.lora import add_lora
from ..models.render import write_rendering
from .method import Method


def load_student(options: Mapping[str, Any], checkpoint: Checkpoint, device: str) -> Loaded:
    """Load the model that is to unlearn, by the options of training."""
    return load(
        checkpoint,
        dtype=compute_dtype(options),
        device=device,
        attention=options["attention"],
        quantization=options["quantization"],
        trust_remote_code=options["trust_remote_code"],
        chat_template=options["chat_template"],
        system_prompt=options["system_prompt"],
        score_end_token=options["score_end_token"],
    )


def compute_dtype(options: Mapping[str, Any]) -> str:
    """Return what the model computes in."""
    return "bfloat16" if options["bf16"] else str(options["dtype"])


def with_lora(options: Mapping[str, Any], loaded: Loaded) -> Any:
    """Return the model with fresh LoRA weights, ready to train."""
    model = add_lora(
        loaded.model, rank=options["lora_r"], alpha=options["lora_alpha"], dropout=options["lora_dropout"],
        base=loaded.checkpoint.weights.resolve(),
    )  # fmt: skip
    if options["gradient_checkpointing"]:
        checkpoint_layers(model)
    return model


def checkpoint_layers(model: Any) -> None:
    """Have a model run its layers again in the backward pass, rather than keep what they computed."""
    settings = {"use_reentrant": False}
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=settings)
    else:  # its name in earlier versions of transformers
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=settings)
    model.enable_input_require_grads()


def save_adapter(model: Any, loaded: Loaded, output: Path, method: Method, weights: Mapping[str, Tensor]) -> None:
    """Write an adapter with its processor, rendering and model card; `weights` are its own, by name, in one piece."""
    model.save_pretrained(output, state_dict=dict(weights))
    loaded.encoder.processor.save_pretrained(output)
    write_rendering(output, loaded.rendering)
    (output / "README.md").write_text(
        f"---\nlibrary_name: peft\nbase_model: {loaded.checkpoint.spec}\ntags: [unlearning, viker]\n---\n"
        f"# {method.name}\n\nA LoRA adapter that unlearns people from `{loaded.checkpoint.spec}` by "
        f"*{method.name}*: {method.summary} "
        f"({method.fidelity}, {method.paper}).\n\n**Reversible: the base still knows.** Export merged weights with "
        "`viker adapter export --merge`. Options are in `config.json`, inputs and caches in `provenance.json`.\n",
        encoding="utf-8",
    )
