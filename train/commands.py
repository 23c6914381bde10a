"""`viker train`: unlearn from cached rows, one adapter a method.

Names the adapter by the options its method reads and by its inputs, decides whether it is already there, and only then
loads anything heavy (`unlearn.py`). Several methods can be trained by one call: `--method ga --method viker`.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ..data.artefact import begin, decide, finish, is_complete, read_json
from ..data.example import canonical_json
from ..data.inputs import input_stamps, stored_rows
from ..data.options import config_option, model_options, source_options
from ..data.run_roots import register_run
from .methods import METHODS, Method, choose_method
from .named import Published, fetched, stamp

_OPTIMIZATION = (
    "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate", "weight_decay",
    "warmup_ratio", "max_grad_norm", "seed", "lora_r", "lora_alpha", "lora_dropout", "bf16", "gradient_checkpointing",
    "key_entropy", "stop", "evaluate_every", "evaluate_people", "limit", "skip_text",
)  # fmt: skip
OVERRIDABLE = ("weights",)  # fields of FIELD_RULES with this rule, named here to load no numpy
_SOURCE = ("data", "ratio", "forget", "data_revision")
_MODEL = ("model", "processor", "revision", "dtype", "attention", "chat_template", "system_prompt", "score_end_token")


@click.command()
@click.option(
    "--run", type=click.Path(path_type=Path), help="The run directory: where keys are stored and adapters go."
)
@click.option(
    "--output", type=click.Path(path_type=Path), help="Where the adapter goes (else RUN/adapters/METHOD-HASH8)."
)
@source_options
@model_options
@click.option(
    "--method",
    "method",
    multiple=True,
    default=["recommended"],
    show_default=True,
    help=f"{', '.join(METHODS)} (repeatable).",
)
@click.option("--lambda", "lambda_", type=float, help="Weight of the regularizer (default: the method's).")
@click.option("--retain", type=float, help="Weight of the retain term (default: the method's).")
@click.option("--regularizer/--no-regularizer", default=True, help="Ablation: leave out the KL term on forget rows.")
@click.option("--ascent/--no-ascent", default=True, help="Ablation: leave out the ascent term.")
@click.option(
    "--teacher",
    type=click.Choice(["reference", "self"]),
    default="reference",
    show_default=True,
    help="Ablation w/o Vis: rows under the own image.",
)
@click.option("--top-k", default=64, show_default=True, help="Kept tokens a row must have at least.")
@click.option("--cache", "cache", multiple=True, metavar="PATH|KEY|URL", help="Read this cache (repeatable).")
@click.option(
    "--override",
    multiple=True,
    type=click.Choice(OVERRIDABLE),
    help="Let this field of the cache differ from the student's, and record both: weights, where the teacher is an "
    "ancestor of the student (a second deletion request).",
)
@click.option("--num-train-epochs", default=1.0, show_default=True, help="Passes over the forget examples.")
@click.option("--per-device-train-batch-size", default=2, show_default=True, help="Examples a forward pass.")
@click.option("--gradient-accumulation-steps", default=1, show_default=True, help="Forward passes a step.")
@click.option("--learning-rate", default=5e-6, show_default=True, help="Peak of a linear schedule.")
@click.option("--weight-decay", default=0.0, show_default=True, help="AdamW weight decay.")
@click.option("--warmup-ratio", default=0.0, show_default=True, help="Share of the steps spent warming up.")
@click.option("--max-grad-norm", default=1.0, show_default=True, help="Gradients are clipped to this norm.")
@click.option("--lora-r", default=8, show_default=True, help="LoRA rank.")
@click.option("--lora-alpha", default=16, show_default=True, help="LoRA alpha.")
@click.option("--lora-dropout", default=0.0, show_default=True, help="LoRA dropout.")
@click.option("--bf16", is_flag=True, help="Load the model and compute in bfloat16.")
@click.option("--gradient-checkpointing", is_flag=True, help="Trade time for memory.")
@click.option("--key-entropy", default=1.0, show_default=True, help="Nats above which a row is a key token's.")
@click.option(
    "--stop/--no-stop",
    default=True,
    show_default=True,
    help="Stop when key tokens are as unlikely as the teacher has them.",
)
@click.option(
    "--evaluate-every",
    default=0,
    show_default=True,
    help="Measure and keep a snapshot every so many steps (0: never).",
)
@click.option("--evaluate-people", default=12, show_default=True, help="Retain people a half measured at each point.")
@click.option("--seed", default=0, show_default=True, help="Seed of order and LoRA weights.")
@click.option("--limit", type=int, help="Only so many forget examples (smoke runs).")
@click.option("--skip-text", is_flag=True, help="reference: leave out examples without an image, as precompute did.")
@click.option("--list-methods", is_flag=True, help="Print the methods and end.")
@click.option("--json", "as_json", is_flag=True, help="With --list-methods: print JSON.")
@click.option("--overwrite", is_flag=True, help="Train again where an adapter is complete.")
@click.option("--dry-run", is_flag=True, help="Say what would be trained.")
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
    for name in options["method"]:
        method = choose_method(
            name,
            lambda_=options["lambda_"],
            retain=options["retain"],
            ascent=options["ascent"],
            regularizer=options["regularizer"],
        )
        _train_one(ctx, options, method)


def _train_one(ctx: click.Context, options: dict[str, Any], method: Method) -> None:
    config = adapter_config(options, method, ctx.obj["published_at"])
    hash8 = hashlib.sha256(canonical_json(_without_floats(config))).hexdigest()[:8]
    output: Path = options["output"] or options["run"] / "adapters" / f"{method.name}-{hash8}"
    if decide(output, config, overwrite=options["overwrite"], what="adapter") == "skip":
        click.echo(f"train: {method.name}: complete, skipped: {output}")
        _note_caches(options, output)
        return
    if options["dry_run"]:
        click.echo(f"train: would train {method.name} into {output}")
        return
    started = time.time()
    begin(output, config)
    from .unlearn import unlearn_method

    try:
        named = fetched(options["cache"], ctx.obj["published_at"], _announce)
        facts = unlearn_method(
            {**options, "cache": named}, method, output, make_measure=ctx.obj["measure"],
            fetch=ctx.obj["fetch_stored"], announce=_announce,
        )  # fmt: skip
    except ValueError:  # a user's mistake: nothing half-done stays, unless training began and left a log to look at
        if not (output / "training_log.jsonl").is_file():
            shutil.rmtree(output)
        raise
    finish(output, facts, started=started, device=facts["device"])
    _note_caches(options, output)
    stopped = "stopped at the teacher's level" if facts["stopped"] else "all steps"
    click.echo(f"train: {method.name}: {facts['steps']} steps in {time.time() - started:.0f} s ({stopped}) -> {output}")


def _announce(text: str) -> None:
    click.echo(text, err=True)


def _note_caches(options: dict[str, Any], output: Path) -> None:
    """Note beside the caches which of them the adapter was made from."""
    for cache in read_json(output / "provenance.json").get("caches", {}).values():
        register_run(options["run"] if options["output"] is None else output, cache["key"])


def adapter_config(options: dict[str, Any], method: Method, published_at: Callable[[str], Published]) -> dict[str, Any]:
    """Return the options this method reads and its inputs: what names the adapter."""
    read = {name: options[name] for name in (*_OPTIMIZATION, *_SOURCE, *_MODEL)}
    read = {
        name: str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
        for name, value in read.items()
    }
    read |= {
        "method": method.name,
        "ascent": method.ascent != "none",
        "lambda": method.lambda_,
        "retain": method.retain,
    }
    if method.reads_forget_rows:
        read |= {"teacher": options["teacher"], "top_k": options["top_k"]}
    if options["override"]:
        read |= {"override": sorted(set(options["override"]))}
    inputs = input_stamps(options["data"], options["model"]) | _cache_stamps(options, method, published_at)
    return {"schema": "viker/adapter/1", "options": read, "inputs": inputs}


def _cache_stamps(options: dict[str, Any], method: Method, published_at: Callable[[str], Published]) -> dict[str, str]:
    """Return which caches the adapter is made from, as far as that is known without opening any."""
    if options["cache"]:
        return {f"cache {index}": stamp(name, published_at) for index, name in enumerate(options["cache"])}
    stamps = {}
    kinds = {f"{options['teacher']}-forget": method.reads_forget_rows, "self-retain-seen": method.reads_retain_rows}
    for name, is_read in kinds.items():
        artefact = stored_rows(options["run"], name)
        if is_read and artefact is not None and is_complete(artefact):
            cache = read_json(artefact / "provenance.json")["cache"]
            stamps[name] = f"{cache['key'][:16]}/{cache['root'][:16]}"
    return stamps


def _without_floats(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_floats(item) for name, item in value.items()}
    return repr(value) if isinstance(value, float) else value


def _list_methods(as_json: bool) -> None:
    if as_json:
        click.echo(
            json.dumps(
                {"schema": "viker/methods/1", "methods": [method.describe() for method in METHODS.values()]}, indent=2
            )
        )
        return
    for method in METHODS.values():
        click.echo(
            f"{method.name:14} {method.summary} ({method.fidelity}; {method.paper}); "
            f"lambda {method.lambda_}, retain {method.retain}"
        )
