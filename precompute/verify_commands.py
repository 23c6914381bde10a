"""`viker cache verify`: say everything that is wrong with a cache, as deep as asked.

`quick` and `full` look at the files alone and load no torch; `semantic` goes on to run the teacher on a few samples, so
it takes the options that find the model, the source and the pool, by default those build.json records.
"""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..data.options import model_options, named_options, source_options
from .local import PRIVACY, find_path
from .recorded import with_recorded
from .row_options import SPLITS, instruction_option

if TYPE_CHECKING:
    from .reading.verify import Problem
    from .semantic import Recomputed

_EXIT_PROBLEMS = 1
_OF_ALL_DEPTHS = {"cache", "depth", "as_json"}


@click.command()
@click.argument("cache", metavar="KEY|PATH")
@click.option(
    "--depth",
    type=click.Choice(["quick", "full", "semantic"]),
    default="quick",
    show_default=True,
    help="full reads every byte; semantic also runs the teacher on a few samples.",
)
@click.option(
    "--num-rows", default=8, show_default=True, type=click.IntRange(min=1),
    help="semantic: samples (the rows of one answer) computed again.",
)  # fmt: skip
@click.option("--seed", default=0, show_default=True, help="semantic: seed of the draw of samples.")
@source_options
@model_options
@click.option(
    "--split", type=click.Choice(SPLITS), help="semantic: where the samples' questions are (default: as made)."
)
@click.option("--pool", metavar="DIR|NAME", help="semantic: the reference pool (default: where build.json says).")
@instruction_option
@click.option("--skip-text", is_flag=True, help="semantic: leave out examples without an image, as precompute did.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def verify(ctx: click.Context, /, cache: str, **options: Any) -> None:
    """Say everything that is wrong with a cache; exit 1 if anything is."""
    from .reading.verify import verify as find_problems

    depth, named = options["depth"], named_options(ctx)
    if depth != "semantic" and (idle := sorted(named - _OF_ALL_DEPTHS)):
        names = ", ".join(f"--{name.replace('_', '-')}" for name in idle)
        raise click.UsageError(f"cache verify: expected --depth semantic with {names}, found {depth}.")
    path = find_path(cache)
    problems = find_problems(path, "quick" if depth == "quick" else "full")
    recomputed = None
    if depth == "semantic" and not problems:
        recomputed = _recompute(path, options, named)
        problems = recomputed.problems
    _show(path, depth, problems, recomputed, options["as_json"])
    if problems:
        sys.exit(_EXIT_PROBLEMS)


def _recompute(path: Path, options: dict[str, Any], named: frozenset[str]) -> "Recomputed":
    from .cache import TeacherCache

    cache = TeacherCache.open(path)
    settings, taken = with_recorded({**options, "run": None, "limit": None}, cache.build)
    if cache.fingerprint["pool"] is not None and settings["pool"] is None:
        raise click.UsageError(
            "cache verify: expected --pool, the folder or name of the reference pool the cache was made with, found "
            "none, and its build.json records none."
        )
    if "dtype" not in named:
        del settings["dtype"]
    if taken:
        click.echo(f"verify: as the cache was made: {' '.join(taken)}", err=True)
    from .semantic import recompute

    seed = settings.pop("seed")  # of the draw of samples; the draw of references is the cache's
    return recompute(cache, settings, settings["num_rows"], seed, lambda text: click.echo(text, err=True))


def _show(path: Path, depth: str, problems: "list[Problem]", recomputed: "Recomputed | None", as_json: bool) -> None:
    found = [{"kind": problem.kind, "detail": problem.detail} for problem in problems]
    told: dict[str, Any] = {"schema": "viker/cache-verify/1", "path": str(path), "depth": depth, "problems": found}
    if recomputed is not None:
        told["semantic"] = recomputed.told()
    if as_json:
        click.echo(json.dumps(told, indent=2))
    else:
        click.echo(f"cache verify: {path}: {f'{len(problems)} problems' if problems else 'nothing wrong'} ({depth})")
        if recomputed is not None:
            click.echo(f"  {_as_line(recomputed)}")
        for problem in problems:
            click.echo(f"  {problem.kind}: {problem.detail}")
    click.echo(PRIVACY, err=True)


def _as_line(recomputed: "Recomputed") -> str:
    drawn = f"{recomputed.samples} of the {recomputed.known_samples} samples that the source knows"
    if recomputed.mean is None:
        return f"{drawn}: not run"
    return (
        f"{drawn}, {recomputed.rows} rows run again: total variation mean {recomputed.mean:.2g}, "
        f"max {recomputed.max:.2g}, tolerance {recomputed.tolerance}"
    )
