"""Train one adapter: load the student, find its rows, run the loop, write the adapter, its log and its trajectory.

What `viker train` does once it has decided to run. The model of a run is the teacher's own weights, so the student's
identity is what the caches must match; the teacher itself is never loaded. Measuring in the middle of training is
evaluation's business and arrives as a function.
"""

import json
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from ..data.artefact import is_complete
from ..data.example import Example
from ..data.halves import training_questions
from ..data.inputs import other_commits, stored_rows
from ..data.source import Source
from ..data.sources import open_source
from ..models.identity import teacher_identity
from ..models.interventions import Kind, require_images
from ..models.load import Checkpoint, Loaded, load, pick_device, resolve
from ..models.lora import add_lora
from ..models.render import write_rendering
from .batches import Item, count_steps, read_items
from .caches import check_named, find_cache, overridden_fields
from .loop import Optimization, StepLog, as_line, check_items, unlearn
from .methods import Method

Announce = Callable[[str], None]


def unlearn_method(
    options: Mapping[str, Any], method: Method, output: Path, *, make_measure: Callable[..., Any],
    fetch: Callable[[str, str, Announce], bool], announce: Announce,
) -> dict[str, Any]:  # fmt: skip
    """Train an adapter into `output` and return what provenance records."""
    set_seed(options["seed"])
    source = open_source(
        options["data"], ratio=options["ratio"], forget=options["forget"], revision=options["data_revision"]
    )
    device = pick_device(options["device"])
    loaded = _load_student(options, device)
    for line in other_commits(options["run"], "model_commit", loaded.checkpoint.commit):
        announce(f"train: WARNING: {line}")
    identity = teacher_identity(loaded.checkpoint, loaded.encoder)
    forget, retain, caches = _items(options, method, source, loaded, identity, fetch, announce)
    check_named(options["cache"], caches, announce)
    check_items(forget, retain, method)
    model = add_lora(
        loaded.model, rank=options["lora_r"], alpha=options["lora_alpha"], dropout=options["lora_dropout"],
        base=loaded.checkpoint.weights.resolve(),
    )  # fmt: skip
    if options["gradient_checkpointing"]:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    accelerator = Accelerator(cpu=device == "cpu")
    trajectory = _Trajectory(model, loaded, options, output, make_measure)
    last: StepLog | None = None
    with (output / "training_log.jsonl").open("w") as log_file:
        for log in unlearn(
            model, loaded.encoder, forget, retain, method, _optimization(options), key_entropy=options["key_entropy"],
            stop_at_teacher=options["stop"], accelerator=accelerator,
        ):  # fmt: skip
            log_file.write(json.dumps(as_line(log)) + "\n")
            log_file.flush()
            trajectory.after_step(log)
            last = log
    assert last is not None, "a run has at least one step"
    _save(model, loaded, output, method)
    batch_size = options["per_device_train_batch_size"] * options["gradient_accumulation_steps"]
    batch_size *= accelerator.num_processes
    planned = count_steps(len(forget), batch_size, options["num_train_epochs"])
    return {
        "device": device,
        "steps": last.step,
        "stopped": last.step < planned,
        "forget_examples": len(forget),
        "retain_examples": len(retain),
        "caches": {kind: {"key": cache.key, "root": cache.root_digest} for kind, cache in caches.items()},
        "student_weights": identity["weights"],
        "overridden": overridden_fields(caches, identity, options["override"]),
        "model_commit": loaded.checkpoint.commit,
        "data_commit": source.commit,
        "key_logprob": last.key_logprob,
        "key_teacher_logprob": last.key_teacher_logprob,
        "normal_logprob": last.normal_logprob,
    }


def _load_student(options: Mapping[str, Any], device: str) -> Loaded:
    checkpoint: Checkpoint = resolve(options["model"], revision=options["revision"], processor=options["processor"])
    return load(
        checkpoint,
        dtype="bfloat16" if options["bf16"] else options["dtype"],
        device=device,
        attention=options["attention"],
        trust_remote_code=options["trust_remote_code"],
        chat_template=options["chat_template"],
        system_prompt=options["system_prompt"],
        score_end_token=options["score_end_token"],
    )


def _items(
    options: Mapping[str, Any],
    method: Method,
    source: Source,
    loaded: Loaded,
    identity: Mapping[str, Any],
    fetch: Callable[[str, str, Announce], bool],
    announce: Announce,
) -> tuple[list[Item], list[Item], dict[str, Any]]:
    """Return forget items, retain items and the caches they were read from.

    A method that reads no rows still gets them where they exist, so that its log and its stop can speak of key tokens.
    """
    caches: dict[str, Any] = {}
    kind: Kind = options["teacher"]
    examples = _forget_examples(source, options, kind, announce)
    stored = stored_rows(options["run"], f"{kind}-forget")
    if method.reads_forget_rows or options["cache"] or (stored is not None and is_complete(stored)):
        caches["forget"] = find_cache(
            examples,
            loaded.encoder,
            identity,
            kind,
            top_k=options["top_k"] if method.lambda_ else 0,
            named=options["cache"],
            run_artefact=stored,
            announce=announce,
            fetch=lambda key, root: fetch(key, root, announce),
            command=_precompute_command(options, kind, "forget"),
            extend=_extend_options(options, "forget"),
            overridden=options["override"],
        )
    forget = read_items(loaded.encoder, examples, caches.get("forget"), kind)
    if not method.reads_retain_rows:
        return forget, [], caches
    kept = training_questions(source, "retain-seen")
    caches["retain"] = find_cache(
        kept,
        loaded.encoder,
        identity,
        "self",
        top_k=options["top_k"],
        named=options["cache"],
        announce=announce,
        fetch=lambda key, root: fetch(key, root, announce),
        run_artefact=stored_rows(options["run"], "self-retain-seen"),
        command=_precompute_command(options, "self", "retain-seen"),
        extend=_extend_options(options, "retain-seen"),
        overridden=options["override"],
    )
    return forget, read_items(loaded.encoder, kept, caches["retain"], "self"), caches


def _forget_examples(source: Source, options: Mapping[str, Any], kind: Kind, announce: Announce) -> list[Example]:
    """Return the forget people's training questions; those without an image have no rows under references."""
    examples = list(source.training("forget"))[: options["limit"]]
    if kind != "reference":
        return examples
    if not options["skip_text"]:
        require_images(examples)
        return examples
    shown = [example for example in examples if example.images]
    announce(f"train: left out {len(examples) - len(shown)} examples without an image (--skip-text)")
    return shown


def _precompute_command(options: Mapping[str, Any], kind: str, split: str) -> str:
    """Return the command that makes rows of exactly these examples for exactly this model and rendering."""
    words = ["viker", "precompute", *_asked(options)]
    if options["bf16"] or options["dtype"] != "float32":
        words += ["--dtype", "bfloat16" if options["bf16"] else options["dtype"]]
    words += ["--teacher", kind, "--split", split, "--top-k", str(options["top_k"])]
    return shlex.join(words) + (" --pool DIR" if kind == "reference" else "")


def _extend_options(options: Mapping[str, Any], split: str) -> list[str]:
    """Return the options with which rows of exactly these examples are added to a cache."""
    return [*_asked(options), "--split", split]


def _asked(options: Mapping[str, Any]) -> list[str]:
    """Return the options that name source, model, rendering and run."""
    words: list[str] = []
    for name in (
        "data",
        "ratio",
        "data_revision",
        "model",
        "processor",
        "revision",
        "chat_template",
        "system_prompt",
        "run",
    ):
        if options[name] is not None:
            words += [f"--{name.replace('_', '-')}", str(options[name])]
    for person in options["forget"]:
        words += ["--forget", person]
    if options["score_end_token"] is not None:
        words.append("--score-end-token" if options["score_end_token"] else "--no-score-end-token")
    return [*words, "--skip-text"] if options["skip_text"] else words


def _optimization(options: Mapping[str, Any]) -> Optimization:
    names = (
        "num_train_epochs",
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "learning_rate",
        "weight_decay",
        "warmup_ratio",
        "max_grad_norm",
        "seed",
    )
    return Optimization(**{name: options[name] for name in names})


def _save(model: Any, loaded: Loaded, output: Path, method: Method) -> None:
    model.save_pretrained(output)
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


class _Trajectory:
    """Keeps a snapshot and a measured point every so many steps, beginning with the model as it was."""

    def __init__(
        self, model: Any, loaded: Loaded, options: Mapping[str, Any], output: Path, make_measure: Callable[..., Any]
    ) -> None:
        self._model, self._encoder, self._output = model, loaded.encoder, output
        self._every: int = options["evaluate_every"]
        if self._every:
            self._measure = make_measure(
                options["data"], options["ratio"], options["forget"], options["evaluate_people"]
            )
            self._keep(0)

    def after_step(self, log: StepLog) -> None:
        """Measure after a step whose turn it is."""
        if self._every and log.step % self._every == 0:
            self._keep(log.step)

    def _keep(self, step: int) -> None:
        self._model.eval()
        state = torch.random.get_rng_state()
        point = {"schema": "viker/trajectory/1", "step": step, **self._measure(self._model, self._encoder)}
        torch.random.set_rng_state(state)
        self._model.train()
        self._model.save_pretrained(self._output / "snapshots" / f"step-{step:05d}")
        with (self._output / "trajectory.jsonl").open("a") as stream:
            stream.write(json.dumps(point) + "\n")
