"""`viker report`: put a run's numbers and answers on one page, again whenever any of them changed.

The report is a derived view over all adapters of a run, so one made of other inputs is never a conflict, only old.
What it depends on is in its `config.json`: the stamps of every stage and the presets' lists. Comparing those imports
no library; only a report that has to be made waits for `content.py`.
RUN/report always holds the whole report. `--format` hands out one rendering of it, on the screen or as a file of the
user's, and with `--redact` one for outsiders (`redaction.py`); neither ever writes into RUN/report.
"""

import os
import time
import tomllib
from pathlib import Path
from typing import Any

import click

from ...data.artefact import begin, finish, is_complete, read_config, read_json, write_json
from ...data.example import DataError
from ...data.options import config_option, run_directory
from .formats import FORMATS, in_format
from .run import Run, read_run, report_config

_PUBLISHED_FIELDS = frozenset({"row", "split", "metric", "value", "source"})
_FILES = {"json": "report.json", "md": "report.md", "html": "report.html"}


@click.command()
@click.option(
    "--run",
    "runs",
    multiple=True,
    type=click.Path(path_type=Path),
    help="The run directory; the report goes to RUN/report. Repeated: runs that differ only by a seed, as one.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="Of one run: the file that --format writes instead of the screen. Of several: the directory of their report.",
)
@click.option("--format", "form", type=click.Choice(FORMATS), help="Print the report in this format.")
@click.option(
    "--redact", is_flag=True, help="Print (or write) a report for outsiders: no people, questions or replies."
)
@click.option(
    "--published",
    multiple=True,
    type=click.UNPROCESSED,
    hidden=True,
    help="Published numbers: a TOML file, or a preset's list.",
)
@click.option("--ours", multiple=True, hidden=True, help="Options that are ours, not the paper's (from a preset).")
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
@click.option("--overwrite", is_flag=True, help="Make the report again though nothing changed.")
@config_option
def command(
    runs: tuple[Path, ...], output: Path | None, form: str | None, redact: bool, published: tuple[Any, ...],
    ours: tuple[str, ...], as_json: bool, overwrite: bool,
) -> None:  # fmt: skip
    """Put a run's numbers and answers on one page, or those of several runs that differ only by a seed."""
    form = _chosen_format(form, as_json, redact, output if len(runs) < 2 else None)
    if len(runs) > 1:
        _pool(runs, output, form, redact)
        return
    found = read_run(run_directory(runs[0] if runs else None, "report"))
    place = found.path / "report"
    if output is not None:
        _refuse_place(output, place)
    numbers = [item for given in published for item in _published(given)]
    config = report_config(found, numbers, ours)
    if not overwrite and _is_current(place, config):
        screen = f"report: complete, skipped: {place / 'report.md'}"
    else:
        screen = _write_report(found, config, place)
    if form is None:
        click.echo(screen)
    else:
        _hand_out(_text(place, form, redact), output)


def _chosen_format(form: str | None, as_json: bool, redact: bool, output: Path | None) -> str | None:
    """Return the format that was asked for, None for the last screen; `output` is the file it goes to."""
    if as_json and form not in (None, "json"):
        raise click.UsageError(f"report: expected --json or --format {form}, found both.")
    if output is not None and form is None and not as_json:
        raise click.UsageError(
            "report: expected --format with --output FILE, found none: the report itself goes to RUN/report. Add "
            f"one of {', '.join(FORMATS)}."
        )
    return "json" if as_json else form or ("md" if redact else None)


def _refuse_place(output: Path, report: Path) -> None:
    """Raise where a file for the user cannot be, or would be lost or take the report's place."""
    if report.resolve() in (output.resolve(), *output.resolve().parents):
        raise DataError(
            f"--output {output}: expected a file outside {report}, which holds the whole report and is replaced with "
            "it. Name another."
        )
    if output.is_dir() or not output.parent.is_dir():
        found = "a directory" if output.is_dir() else f"no directory {output.parent}"
        raise DataError(f"--output {output}: expected a file in a directory that exists, found {found}. Name another.")


def _is_current(place: Path, config: dict[str, Any]) -> bool:
    """Tell whether a report is made of these inputs; one from before it had all its files is made again."""
    if not is_complete(place) or read_config(place) != config:
        return False
    return all((place / name).is_file() for name in _FILES.values())


def _text(place: Path, form: str, redact: bool) -> str:
    """Return the report in a format: as it is kept where it is, else made of `report.json`."""
    if form in _FILES and not redact:
        return (place / _FILES[form]).read_text(encoding="utf-8")
    return in_format(_for_readers(read_json(place / "report.json"), redact), form)


def _for_readers(report: dict[str, Any], redact: bool) -> dict[str, Any]:
    if not redact:
        return report
    from .redaction import redacted

    return redacted(report)


def _hand_out(text: str, output: Path | None) -> None:
    """Print a text, or write it to a file that is whole or not there."""
    if output is None:
        click.echo(text, nl=not text.endswith("\n"))
        return
    temporary = output.with_name(output.name + ".tmp")
    with temporary.open("w", encoding="utf-8", newline="") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(output)
    click.echo(f"report: {output}")


def _pool(paths: tuple[Path, ...], output: Path | None, form: str | None, redact: bool) -> None:
    """Make the report of several runs; write it to a directory, print it in a format, or both."""
    from .seeds import pooled_report

    if output is None and form is None:
        raise click.UsageError("report: expected --output DIR or --format for the report of several runs, found none.")
    if output is not None and redact:
        raise click.UsageError(
            "report: expected --redact of several runs without --output, found both: DIR holds the whole report. Leave "
            "--output out, and take what is printed."
        )
    started = time.time()
    report = pooled_report([read_run(path) for path in paths])
    text = None if form is None else in_format(_for_readers(report, redact), form)
    if output is not None:
        _write_pooled(report, paths, output, started)
    if text is not None:
        _hand_out(text, None)
    else:
        click.echo(f"report: {output}/report.md")


def _write_pooled(report: dict[str, Any], paths: tuple[Path, ...], output: Path, started: float) -> None:
    from .seeds import pooled_markdown

    begin(output, {"schema": "viker/report-config/1", "inputs": {str(path): "run" for path in paths}, "options": {}})
    write_json(output / "report.json", report)
    (output / "report.md").write_text(pooled_markdown(report), encoding="utf-8")
    finish(output, {"inputs": {"runs": [str(path) for path in paths]}}, started=started)


def _write_report(run: Run, config: dict[str, Any], output: Path) -> str:
    """Make a report, replacing an older one only when the new one is ready, and return its last screen."""
    from .content import build_report
    from .html import render_html
    from .page import print_last_screen, render_markdown

    started = time.time()
    report = build_report(run, **config["options"])
    pages, screen = {"md": render_markdown(report), "html": render_html(report)}, print_last_screen(report)
    begin(output, config)
    write_json(output / _FILES["json"], report)
    for form, page in pages.items():
        (output / _FILES[form]).write_text(page, encoding="utf-8")
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
