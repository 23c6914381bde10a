"""`viker cache extend`: add the rows of more examples to a cache, computing only what it lacks.

Its options are those of `viker precompute` that say whom the rows are about; what the rows mean is the cache's. Data,
model and pool default to those build.json records, and are said. A run can be told the new key with --run.
"""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..data.artefact import begin, finish, is_complete, read_config
from ..data.inputs import input_stamps, stored_rows
from ..data.kinds import SHOWS_OWN_IMAGE, rows_name
from ..data.options import chosen_options, config_option, model_options, named_options, source_options
from ..data.run_roots import register_run
from .local import PRIVACY, find_path
from .recorded import with_recorded
from .row_options import computing_options, instruction_option, split_option

if TYPE_CHECKING:
    from .extend import Extension

# What changes neither the rows nor what the run stores about them.
_UNRECORDED = (
    "run", "dry_run", "as_json", "device", "engine", "token_budget", "deterministic", "torch_compile",
    "vllm_listed", "vllm_option",
)  # fmt: skip


@click.command()
@click.argument("cache", metavar="KEY|PATH")
@click.option("--run", type=click.Path(path_type=Path), help="The run directory that shall store the new cache's key.")
@source_options
@model_options
@split_option
@click.option("--pool", metavar="DIR|NAME", help="The cache's own reference pool (default: where build.json says).")
@instruction_option
@computing_options
@click.option("--dry-run", is_flag=True, help="Say how many rows are missing; load no weights.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
@config_option
@click.pass_context
def extend(ctx: click.Context, /, cache: str, **options: Any) -> None:
    """Make a cache with the rows of another and those it lacks of what is asked; only these are computed."""
    from .cache import TeacherCache

    started = time.time()
    parent = TeacherCache.open(find_path(cache))
    options, taken = with_recorded(options, parent.build)
    if parent.fingerprint["pool"] is not None and options["pool"] is None:
        raise click.UsageError(
            "cache extend: expected --pool, the folder or name of the reference pool the cache was made with, found "
            "none, and its build.json records none."
        )
    kind = parent.fingerprint["intervention"]["kind"]
    kept = parent.top_k if kind in SHOWS_OWN_IMAGE else 0
    if kept and options["split"] in ("forget", "all"):
        click.echo(
            f"extend: WARNING: rows of forget people under their own image keep {kept} tokens here, the memorized "
            f"answer among them; `viker precompute --teacher {kind} --top-k 0` keeps none.",
            err=True,
        )
    if "dtype" not in named_options(ctx):
        del options["dtype"]
    if taken:
        click.echo(f"extend: as the cache was made: {' '.join(taken)}", err=True)
    from .extend import extend as add_rows

    extension = add_rows(parent, options, lambda text: click.echo(text, err=True))
    if extension.cache is not None and options["run"] is not None:
        answers = parent.fingerprint["intervention"]["answers"]
        name = rows_name(kind, options["split"], answers, parent.top_k)
        _store(ctx, options, name, extension, started)
    _show(parent, extension, options, time.time() - started)


def _store(ctx: click.Context, options: dict[str, Any], name: str, extension: "Extension", started: float) -> None:
    """Tell a run the new key; what the run asked of `precompute` stays what it was."""
    artefact = stored_rows(options["run"], name)
    assert artefact is not None
    assert extension.cache is not None
    config = {
        "schema": "viker/cache-extend/1",
        "inputs": input_stamps(options["data"], options["model"]),
        "options": chosen_options(ctx, without=_UNRECORDED),
    }
    begin(artefact, read_config(artefact) if is_complete(artefact) else config)
    told = {"cache": {"key": extension.key, "root": extension.cache.root_digest}, **extension.facts}
    finish(artefact, told, started=started, device=extension.facts["device"])
    register_run(options["run"], extension.key)


def _show(parent: Any, extension: "Extension", options: dict[str, Any], seconds: float) -> None:
    from .reading.summary import summarize

    summary: dict[str, Any] = {
        "schema": "viker/cache-extend/1",
        "key": extension.key,
        "path": None if extension.cache is None else str(extension.cache.root),
        "parent": {"key": parent.key, "root": parent.root_digest},
        "missing": extension.missing,
        **extension.facts,
    }
    if extension.cache is not None:
        summary |= summarize(extension.cache, options["key_entropy"])
    if options["as_json"]:
        click.echo(json.dumps(summary, indent=2, sort_keys=True))
    elif extension.cache is None:
        click.echo(
            f"extend: would compute {extension.missing['rows']} rows into a new cache, key {extension.key[:16]}; "
            f"{parent.num_rows} rows would be copied"
        )
    else:
        click.echo(f"extend: {summary['how']} in {seconds:.1f} s -> {extension.cache.root}")
        click.echo(f"  {summary['rows']} rows of {summary['samples']} samples, {parent.num_rows} in {parent.key[:16]}")
    click.echo(PRIVACY, err=True)
