"""`viker report`: put a run's numbers and answers on one page, again whenever any of them changed.

The report is a derived view over all adapters of a run, so one made of other inputs is never a conflict, only old.
What it depends on is in its `config.json`: the stamps of every stage and the presets' lists. Comparing those imports
no library; only a report that has to be made waits for `content.py`.
"""

import time
import tomllib
from pathlib import Path
from typing import Any

import click

from ...data.artefact import begin, finish, is_complete, read_config, write_json
from ...data.example import DataError
from ...data.options import config_option, run_directory
from .run import Run, read_run, report_config

_PUBLISHED_FIELDS = frozenset({"row", "split", "metric", "value", "source"})


@click.command()
@click.option(
    "--run",
    "runs",
    multiple=True,
    type=click.Path(path_type=Path),
    help="The run directory; the report goes to RUN/report. Repeated: runs that differ only by a seed, as one.",
)
@click.option("--output", type=click.Path(path_type=Path), help="Where the report of several runs goes.")
@click.option(
    "--published",
    multiple=True,
    type=click.UNPROCESSED,
    hidden=True,
    help="Published numbers: a TOML file, or a preset's list.",
)
@click.option("--ours", multiple=True, hidden=True, help="Options that are ours, not the paper's (from a preset).")
@click.option("--json", "as_json", is_flag=True, help="Print report.json instead of the last screen.")
@click.option("--overwrite", is_flag=True, help="Make the report again though nothing changed.")
@config_option
def command(
    runs: tuple[Path, ...], output: Path | None, published: tuple[Any, ...], ours: tuple[str, ...], as_json: bool,
    overwrite: bool,
) -> None:  # fmt: skip
    """Put a run's numbers and answers on one page, or those of several runs that differ only by a seed."""
    if len(runs) > 1:
        _pool(runs, output, as_json)
        return
    if output is not None:
        raise click.UsageError(
            "report: expected --output with several --run, found one; its report goes to RUN/report."
        )
    found = read_run(run_directory(runs[0] if runs else None, "report"))
    numbers = [item for given in published for item in _published(given)]
    config = report_config(found, numbers, ours)
    place = found.path / "report"
    if not overwrite and is_complete(place) and read_config(place) == config:
        if as_json:
            click.echo((place / "report.json").read_text(encoding="utf-8"), nl=False)
        else:
            click.echo(f"report: complete, skipped: {place / 'report.md'}")
        return
    screen = _write_report(found, config, place)
    click.echo((place / "report.json").read_text(encoding="utf-8") if as_json else screen, nl=not as_json)


def _pool(paths: tuple[Path, ...], output: Path | None, as_json: bool) -> None:
    """Write the report of several runs."""
    from .seeds import pooled_markdown, pooled_report

    if output is None:
        raise click.UsageError("report: expected --output DIR for the report of several runs, found none.")
    started = time.time()
    found = [read_run(path) for path in paths]
    report = pooled_report(found)
    begin(output, {"schema": "viker/report-config/1", "inputs": {str(path): "run" for path in paths}, "options": {}})
    write_json(output / "report.json", report)
    (output / "report.md").write_text(pooled_markdown(report), encoding="utf-8")
    finish(output, {"inputs": {"runs": [str(path) for path in paths]}}, started=started)
    click.echo(
        (output / "report.json").read_text(encoding="utf-8") if as_json else f"report: {output / 'report.md'}",
        nl=not as_json,
    )


def _write_report(run: Run, config: dict[str, Any], output: Path) -> str:
    """Make a report, replacing an older one only when the new one is ready, and return its last screen."""
    from .content import build_report
    from .page import print_last_screen, render_markdown

    started = time.time()
    report = build_report(run, **config["options"])
    page, screen = render_markdown(report), print_last_screen(report)
    begin(output, config)
    write_json(output / "report.json", report)
    (output / "report.md").write_text(page, encoding="utf-8")
    finish(output, {"inputs": config["inputs"]}, started=started)
    return screen


def _published(given: Any) -> list[dict[str, Any]]:
    """Return the published numbers of one preset entry or one TOML file.

    Raises:
        DataError: the file is not TOML, or an entry lacks a field.
    """
    items = [given] if isinstance(given, dict) else _published_file(Path(str(given)))
    for item in items:
        missing = sorted(_PUBLISHED_FIELDS - set(item))
        if missing:
            raise DataError(
                f"--published: expected {', '.join(sorted(_PUBLISHED_FIELDS))} in each entry, found {item!r} without "
                f"{', '.join(missing)}. Complete it."
            )
    return items


def _published_file(path: Path) -> list[dict[str, Any]]:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"--published {path}: expected a TOML file, found none that can be read ({error}).") from error
    items: list[dict[str, Any]] = values.get("report", values).get("published", [])
    return items
