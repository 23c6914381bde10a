"""`viker finetune base|vanilla|retain-only`: teach a model answers and save it as an ordinary checkpoint.

The three differ in whom they learn: `base` everybody of its source, `vanilla` everybody of the run's, `retain-only`
everybody but the forget people, from the same start with the same recipe. LoRA weights are merged before saving, so
that what comes next sees a model like any other.
"""

import shutil
import time
from pathlib import Path
from typing import Any

import click

from ..data.artefact import CHECKPOINT_CONFIG, begin, decide, finish
from ..data.inputs import input_stamps
from ..data.options import chosen_options, config_option, model_options, source_options


@click.group()
def command() -> None:
    """Teach a model answers: base, vanilla, retain-only."""


def _training_options(function: Any) -> Any:
    options = [
        click.option("--output", required=True, type=click.Path(path_type=Path), help="Where the model goes."),
        click.option("--looks", metavar="DIR", help="tiny, small: pictures with descriptions, for the vision tower."),
        click.option(
            "--lora/--full",
            "use_lora",
            default=False,
            show_default=True,
            help="LoRA, merged at the end, or all weights.",
        ),
        click.option(
            "--freeze-vision/--train-vision", default=True, show_default=True, help="Keep the vision tower as it is."
        ),
        click.option("--lora-r", default=16, show_default=True, help="LoRA rank."),
        click.option("--lora-alpha", default=16, show_default=True, help="LoRA alpha."),
        click.option("--num-train-epochs", default=5.0, show_default=True, help="Passes over the examples, at most."),
        click.option("--per-device-train-batch-size", default=4, show_default=True, help="Examples a step."),
        click.option(
            "--group-size", default=1, show_default=True, help="Questions of one image behind one copy of it."
        ),
        click.option(
            "--learning-rate", default=2e-5, show_default=True, help="Peak learning rate of a one-cycle schedule."
        ),
        click.option("--weight-decay", default=0.01, show_default=True, help="AdamW weight decay."),
        click.option("--warmup-ratio", default=0.1, show_default=True, help="Share of the steps spent warming up."),
        click.option(
            "--augment/--no-augment", default=False, show_default=True, help="Shift and brighten pictures at random."
        ),
        click.option(
            "--stop-memorized",
            default=1.01,
            show_default=True,
            help="Stop after an epoch that predicts this share of answer tokens.",
        ),
        click.option("--seed", default=0, show_default=True, help="Seed of weights, order and augmentation."),
        click.option("--limit", type=int, help="Use only so many examples (smoke runs)."),
        click.option("--overwrite", is_flag=True, help="Replace a model made with other options."),
        click.option("--dry-run", is_flag=True, help="Say what would be done."),
    ]
    for option in reversed(options):
        function = option(function)
    return config_option(model_options(source_options(function)))


@command.command()
@_training_options
@click.pass_context
def base(ctx: click.Context, /, **_: Any) -> None:
    """Teach a base model: everybody of --data. `--model tiny` and `small` are built from nothing."""
    _run(ctx, "base", "all")


@command.command()
@_training_options
@click.pass_context
def vanilla(ctx: click.Context, /, **_: Any) -> None:
    """Teach the model that unlearning starts from: everybody of --data."""
    _run(ctx, "vanilla", "all")


@command.command(name="retain-only")
@_training_options
@click.pass_context
def retain_only(ctx: click.Context, /, **_: Any) -> None:
    """Teach the ideal: everybody of --data but the forget people, from the same start as vanilla."""
    _run(ctx, "retain-only", "retain")


def _run(ctx: click.Context, role: str, part: Any) -> None:
    options = ctx.params
    output: Path = options["output"]
    for name in ("data", "model"):
        if options[name] is None:
            raise click.UsageError(f"finetune {role}: expected --{name}, found none.")
    config = {
        "schema": "viker/finetune/1", "role": role, "inputs": input_stamps(options["data"], options["model"]),
        "options": chosen_options(ctx, without=("output", "overwrite", "dry_run", "device")),
    }  # fmt: skip
    if decide(output, config, overwrite=options["overwrite"], what=f"{role} model") == "skip":
        click.echo(f"{role}: complete, skipped: {output}")
        return
    if options["dry_run"]:
        click.echo(f"{role}: would train {options['model']} on {options['data']} into {output}")
        return
    started = time.time()
    begin(output, config, config_name=CHECKPOINT_CONFIG)
    from .make_model import make_model

    try:
        facts = make_model(options, part, output)
    except ValueError:  # a user's mistake: nothing half-done stays
        shutil.rmtree(output)
        raise
    finish(output, facts, started=started, device=facts["device"])
    click.echo(f"{role}: {facts['examples']} examples, {facts['steps']} steps, {time.time() - started:.0f} s, "
               f"{facts['memorized']:.1%} of answer tokens memorized -> {output}")  # fmt: skip
