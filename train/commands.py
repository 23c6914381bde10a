"""`viker train`: unlearn from cached rows, one adapter a method.

Names the adapter by the options its method reads and by its inputs, decides whether it is already there, and only then
loads anything heavy (`unlearn.py`). Several methods can be trained by one call: `--method ga --method viker`.
"""

import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ..data.artefact import (
    CONFIG,
    ArtefactMismatch,
    begin,
    decide,
    differences,
    finish,
    is_complete,
    is_stage_config,
    read_json,
)
from ..data.example import canonical_json
from ..data.inputs import complete_rows, input_stamps
from ..data.instructions import instruction_for
from ..data.kinds import TAKES_INSTRUCTION
from ..data.options import config_option, model_options, source_options
from ..data.run_roots import register_run
from ..data.stopping import interrupted_by_sigterm
from .choose_method import choose_method, unread_options
from .method import Method
from .methods import METHODS
from .named import Published, fetched, stamp
from .options import require_points, train_options
from .trackers import require_tracker

_NAMING = (
    "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps", "group_by_image", "learning_rate",
    "weight_decay", "warmup_ratio", "max_grad_norm", "seed", "lora_r", "lora_alpha", "lora_dropout", "bf16",
    "quantization", "gradient_checkpointing", "key_entropy", "stop", "evaluate_every", "evaluate_people", "min_retain",
    "max_repetition", "keep_best", "limit", "skip_text",
)  # fmt: skip
_PACKING = ("group_size", "row_length")
_METHOD = ("method", "ascent", "regularizer", "token_lambda")
_OF_OWN_OPTION = ("lambda", "retain")  # settings with an option of their own; others are --hp's
_ONLINE = ("pool", "num_references", "shared_references", "draw_seed")
_SOURCE = ("data", "ratio", "forget", "data_revision")
_MODEL = ("model", "processor", "revision", "dtype", "attention", "chat_template", "system_prompt", "score_end_token")
CHECKPOINTS = "checkpoint"  # `checkpoint.FOLDER`, named here to load no torch
DIAGNOSIS = "diagnose.jsonl"  # of `diagnose_summary.py`
EXIT_GUARD, EXIT_INTERRUPTED = 4, 75


@click.command()
@click.option(
    "--run", type=click.Path(path_type=Path), help="The run directory: where keys are stored and adapters go."
)
@click.option(
    "--output", type=click.Path(path_type=Path), help="Where the adapter goes (else RUN/adapters/METHOD-HASH8)."
)
@source_options
@model_options
@train_options
@config_option
@click.pass_context
def command(ctx: click.Context, /, **options: Any) -> None:
    """Unlearn from cached rows, without the teacher."""
    if options["list_methods"]:
        _list_methods(options["as_json"])
        return
    for name in ("data", "model"):
        if options[name] is None:
            raise click.UsageError(f"train: expected --{name}, found none.")
    if options["run"] is None and options["output"] is None:
        raise click.UsageError("train: expected --run DIR or --output DIR, found neither.")
    if options["output"] is not None and len(options["method"]) > 1:
        raise click.UsageError("train: expected one --method with --output, found several. Use --run.")
    require_points(options)
    require_tracker(options["report_to"])
    methods = [(name, _chosen(options, name)) for name in options["method"]]
    _say_unread(options)
    guarded = [_train_one(ctx, {**options, "method": name}, method) for name, method in methods]
    _leave_processes()
    if any(guarded):
        ctx.exit(EXIT_GUARD)


def _chosen(options: dict[str, Any], name: str) -> Method:
    names = ("lambda_", "retain", "settings", "ascent", "regularizer", "token_lambda", "teacher")
    return choose_method(name, **{name: options[name] for name in names})


def _say_unread(options: dict[str, Any]) -> None:
    """Say which options a method has no term for."""
    names = ("lambda_", "ascent", "regularizer", "token_lambda", "teacher")
    for name in options["method"]:
        for option in unread_options(name, **{each: options[each] for each in names}):
            _announce(f"train: {name}: {option} is not read: the method has no such term")
    if options["teacher_from"] == "cache" and not options["spot_check"]:
        for option in (f"--{name.replace('_', '-')}" for name in _ONLINE if options[name]):
            _announce(f"train: {option} is not read: rows come from caches, drawn by `viker precompute`")


def _train_one(ctx: click.Context, options: dict[str, Any], method: Method) -> bool:
    """Train one adapter unless it is there; return whether a guard ended its run."""
    options = {**options, "instruction": _instruction(options, method)}
    config = adapter_config(options, method, ctx.obj["published_at"])
    hash8 = hashlib.sha256(canonical_json(_without_floats(config))).hexdigest()[:8]
    output: Path = options["output"] or options["run"] / "adapters" / f"{method.name}-{hash8}"
    if decide(output, config, overwrite=options["overwrite"], what="adapter") == "skip":
        if is_main_process():
            click.echo(f"train: {method.name}: complete, skipped: {output}")
            shutil.rmtree(output / CHECKPOINTS, ignore_errors=True)
            _note_caches(options, output)
            if options["diagnose"] and not (output / DIAGNOSIS).is_file():
                _announce(f"train: {method.name}: --diagnose: trained without it. Train again with --overwrite.")
        return _is_guarded(output)
    if options["dry_run"]:
        click.echo(f"train: would train {method.name} into {output}")
        return False
    started = time.time()
    if is_main_process():
        _begin_or_resume(output, config, resume=options["resume"], overwrite=options["overwrite"])
    facts = _unlearn(ctx, options, method, output)
    if not is_main_process():
        return facts["ended_by"]["guard"] is not None
    finish(output, facts, started=started, device=facts["device"])
    shutil.rmtree(output / CHECKPOINTS, ignore_errors=True)
    _note_caches(options, output)
    ended, kept = facts["ended_by"], facts["kept_step"]
    click.echo(
        f"train: {method.name}: {facts['steps']} steps in {time.time() - started:.0f} s ({ended['reason']}) -> {output}"
    )
    if kept != facts["steps"]:
        click.echo(f"train: {method.name}: the adapter has the weights of step {kept}")
    return ended["guard"] is not None


def _begin_or_resume(output: Path, config: dict[str, Any], *, resume: bool, overwrite: bool) -> None:
    """Leave an interrupted run of these options as it is, and begin any other afresh.

    Raises:
        ArtefactMismatch: an interrupted run of other options is there, which may hold hours of training.
    """
    if is_complete(output) or not resume or not _is_saved(output):
        begin(output, config)
        return
    found, asked = read_json(output / CONFIG), json.loads(json.dumps(config))
    lines = [line for part in ("options", "inputs") for line in differences(found.get(part, {}), asked[part])]
    if lines and not overwrite:
        raise ArtefactMismatch(
            f"{output}: an interrupted run with other options is there, saved in {CHECKPOINTS}/.\n" + "\n".join(lines) +
            "\nName another --output to keep both, or begin again with --no-resume."
        )  # fmt: skip
    if lines:
        begin(output, config)


def _is_saved(output: Path) -> bool:
    """Tell whether an interrupted run saved itself here; names of what a kill left half-written have a suffix."""
    saved = [path for path in (output / CHECKPOINTS).glob("step-*") if not path.suffix]
    return bool(saved) and is_stage_config(output / CONFIG)


def _unlearn(ctx: click.Context, options: dict[str, Any], method: Method, output: Path) -> dict[str, Any]:
    """Run what training is, and end the command where a signal or another process ended it."""
    from .interrupt import Interrupted
    from .processes import ProcessLost
    from .unlearn import unlearn_method

    try:
        with interrupted_by_sigterm():
            named = fetched(options["cache"], ctx.obj["published_at"], _announce)
            return unlearn_method(
                {**options, "cache": named}, method, output, make_measure=ctx.obj["measure"],
                fetch=ctx.obj["fetch_stored"], announce=_announce,
            )  # fmt: skip
    except ValueError:  # a user's mistake: nothing half-done stays, unless training began and left a log to look at
        if is_main_process() and not (output / "training_log.jsonl").is_file() and not _is_saved(output):
            shutil.rmtree(output)
        raise
    except Interrupted as interrupted:
        if is_main_process():
            _announce(f"train: {method.name}: {interrupted}. The same command goes on from there.")
        ctx.exit(EXIT_INTERRUPTED)
    except ProcessLost as lost:
        _announce(f"train: {method.name}: stopped: {lost}.")
        ctx.exit(1)


def _leave_processes() -> None:
    """Part from the other processes of a run that all of them brought to its end."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_initialized():
        distributed.destroy_process_group()


def _is_guarded(output: Path) -> bool:
    ended = read_json(output / "provenance.json").get("ended_by") or {}
    return ended.get("guard") is not None


def is_main_process() -> bool:
    """Tell whether this process writes: the only one, or the first of those that a launcher started."""
    return os.environ.get("RANK", "0") == "0"


def _instruction(options: dict[str, Any], method: Method) -> str | None:
    """Return what the teacher of the forget rows was told."""
    kind = None if method.reads is None else method.reads.kind
    if kind is None or kind not in TAKES_INSTRUCTION:
        return None
    return instruction_for(kind, options["instruction"])


def _announce(text: str) -> None:
    click.echo(text, err=True)


def _note_caches(options: dict[str, Any], output: Path) -> None:
    """Note beside the caches which of them the adapter was made from."""
    for cache in read_json(output / "provenance.json").get("caches", {}).values():
        register_run(options["run"] if options["output"] is None else output, cache["key"])


def adapter_config(options: dict[str, Any], method: Method, published_at: Callable[[str], Published]) -> dict[str, Any]:
    """Return the options this method reads and its inputs: what names the adapter."""
    read = {name: options[name] for name in (*_NAMING, *_SOURCE, *_MODEL)}
    read |= {name: options[name] for name in _PACKING if options[name]}
    read |= {name: options[name] for name in _METHOD} | {"terms": [list(term) for term in _terms(method)]}
    own = [f"{name}={value!r}" for name, value in method.settings.items() if name not in _OF_OWN_OPTION]
    read |= {"settings": own} | {name: method.settings[name] for name in _OF_OWN_OPTION if name in method.settings}
    if method.source_digest is not None:
        read |= {"source": method.source_digest}
    if method.reads is not None:
        read |= {"teacher": method.reads.kind, "top_k": options["top_k"], "instruction": options["instruction"]}
        read |= {"teacher_from": options["teacher_from"]}
    if method.reads is not None and options["teacher_from"] == "online":
        read |= {name: options[name] for name in _ONLINE}
    if options["override"]:
        read |= {"override": sorted(set(options["override"]))}
    inputs = input_stamps(options["data"], options["model"]) | _cache_stamps(options, method, published_at)
    return {
        "schema": "viker/adapter/2",
        "options": {name: _plain(value) for name, value in read.items()},
        "inputs": inputs,
    }


def _terms(method: Method) -> list[tuple[str, str, float]]:
    """Return the terms that are left, with their functions' names and weights."""
    terms = (*method.forget, *((method.retain,) if method.retain is not None and method.needs_retain else ()))
    return [
        (term.name, term.of if isinstance(term.of, str) else term.of.__name__, method.weight(term)) for term in terms
    ]


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value


def _cache_stamps(options: dict[str, Any], method: Method, published_at: Callable[[str], Published]) -> dict[str, str]:
    """Return which caches the adapter is made from, as far as that is known without opening any."""
    if options["cache"]:
        return {f"cache {index}": stamp(name, published_at) for index, name in enumerate(options["cache"])}
    stamps = {}
    for name in method.stored_rows:
        artefact = complete_rows(options["run"], name)
        if artefact is not None:
            cache = read_json(artefact / "provenance.json")["cache"]
            stamps[artefact.name] = f"{cache['key'][:16]}/{cache['root'][:16]}"
    return stamps


def _without_floats(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_floats(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_floats(item) for item in value]
    return repr(value) if isinstance(value, float) else value


def _list_methods(as_json: bool) -> None:
    if as_json:
        methods = [method.describe() for method in METHODS.values()]
        click.echo(json.dumps({"schema": "viker/methods/2", "methods": methods}, indent=2))
        return
    for method in METHODS.values():
        click.echo(_as_text(method))


def _as_text(method: Method) -> str:
    settings = ", ".join(f"{name} {value:g}" for name, value in method.settings.items())
    rows = ", ".join(" ".join(words) for words in method.precomputes) or "none"
    lines = [
        f"{method.name}: {method.summary} ({method.fidelity}; {method.paper})", f"    settings: {settings}",
        f"    rows: {rows}",
    ]  # fmt: skip
    return "\n".join(lines + ([f"    differs: {method.differences}"] if method.differences else []))
