"""`viker plan`: say what a stage is going to cost before it is run.

`precompute` takes the options of `viker precompute`, and counts what they ask for: nothing is run and no weights are
read under `--count-only`; otherwise the model is loaded and a few seconds of the work are measured. A preset's and a
config's options for `viker precompute` count here too.
"""

import json
import time
from typing import Any

import click

from ..data.options import named_options
from ..precompute.commands import command as precompute_command
from ..precompute.commands import named_fields, settle

# What is about where rows go and who computes them, not about what there is to compute.
_NOT_ASKED = {"part", "workers", "stage_in_remote", "overwrite", "push", "dry_run"}


def _options() -> list[click.Parameter]:
    return [option for option in precompute_command.params if option.name not in _NOT_ASKED]


@click.group()
def command() -> None:
    """Say what a stage is going to cost, before it is run."""


@command.command(params=_options())
@click.option("--count-only", is_flag=True, help="Count, and measure nothing: no weights are loaded, no time is told.")
@click.option(
    "--probe-seconds", type=click.FloatRange(min=0), default=5.0, show_default=True,
    help="How long to measure (at least one image with what is asked behind it).",
)  # fmt: skip
@click.pass_context
def precompute(ctx: click.Context, /, **options: Any) -> None:
    """Say what `viker precompute` with these options will run, take and store."""
    started = time.perf_counter()
    settle(options, "plan precompute")
    from .precompute import plan_precompute
    from .told import as_text

    told = plan_precompute(options, named_fields(named_options(ctx)), lambda text: click.echo(text, err=True), started)
    click.echo(json.dumps(told, indent=2, sort_keys=True) if options["as_json"] else as_text(told))
