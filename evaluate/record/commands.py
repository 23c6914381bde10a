"""`viker record RUN`: write down what was done about one person, as evidence that names nobody; and check it later.

    RUN/record/<adapter>-<pseudonym>/   record.json, record.html; config.json, provenance.json and the marker
    RUN/record/keys/                    whose pseudonyms these are (`keys.py`)

Several people are several records: what one of them is shown is no business of another's. A record that is there and
would be the same is left; one of other inputs is evidence of another day, so it stands until `--overwrite`, and the new
one names its digest. It is written beside its place and moved there whole, so that a kill never takes the old one away.
"""

import json
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ...data.artefact import (
    ArtefactMismatch,
    begin,
    differences,
    finish,
    is_complete,
    is_ours,
    read_config,
    read_json,
    write_json,
)
from ...data.example import DataError
from ..report.run import Run, Stage, read_run
from .keys import FOLDER, find_key, new_key, normalized, save_key

if TYPE_CHECKING:
    from .check import Item
    from .content import Material

_EXIT_GONE, _EXIT_DIFFERS = 1, 3
_SHORT = 16  # of a pseudonym, in a directory's name


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--adapter", metavar="NAME", help="The adapter that unlearned them, by its name in RUN/adapters.")
@click.option(
    "--person", "people", multiple=True, metavar="ID",
    help="Whom the record is about, by the id in the source (repeatable: a record each).",
)  # fmt: skip
@click.option(
    "--merged", type=click.Path(path_type=Path),
    help="The model that `viker adapter export --merge` made of the adapter (default: one in the run, if any).",
)  # fmt: skip
@click.option("--output", type=click.Path(path_type=Path), help="Folder for the records (default: RUN/record).")
@click.option("--overwrite", is_flag=True, help="Replace a record of other inputs; the new one names its digest.")
@click.option(
    "--check", type=click.Path(path_type=Path), metavar="FILE",
    help="Make nothing: compare this record.json (or its folder) with the run. Exit code 3 where something differs.",
)  # fmt: skip
@click.option(
    "--key",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="With --check: the person's key in hex, where the run does not keep it.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the records, or the comparisons, as JSON.")
def command(
    run: Path, adapter: str | None, people: tuple[str, ...], merged: Path | None, output: Path | None, overwrite: bool,
    check: Path | None, key: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Write a deletion record of each person named, from what RUN holds, or check one; it names nobody."""
    if check is not None:
        _check(run, check, people, key, merged, as_json)
        return
    if adapter is None or not all(map(normalized, people)) or not people:
        raise click.UsageError("record: expected --adapter NAME and --person ID, found one of them missing.")
    if key is not None:
        raise click.UsageError("record: expected --key with --check, found it alone: keys are kept in the run.")
    found = read_run(run)
    told = [
        _record(found, _adapter(found, adapter), person, merged, output, overwrite)
        for person in dict.fromkeys(map(normalized, people))
    ]
    if as_json:
        records = [{"path": str(path), "made": made, "record": read_json(path)} for path, made in told]
        click.echo(json.dumps({"schema": "viker/records/1", "records": records}, indent=2, ensure_ascii=False))
        return
    for path, made in told:
        click.echo(_told(path, made))


def _adapter(run: Run, name: str) -> Stage:
    adapters = run.under("adapters")
    if name not in adapters:
        known = ", ".join(sorted(adapters)) or "none that is finished"
        raise click.BadParameter(f"expected an adapter of {run.path} ({known}), found {name}.", param_hint="--adapter")
    return adapters[name]


def _record(
    run: Run, adapter: Stage, person: str, merged: Path | None, output: Path | None, overwrite: bool
) -> tuple[Path, bool]:
    """Write the record of one person unless it is there; return its `record.json` and whether it was made."""
    from .content import build_record, gather
    from .weights import find_merged

    started = time.time()
    key = find_key(run.path, person) or new_key(person)
    material = gather(run, adapter, merged or find_merged(run.path, adapter), key)
    place = (output or run.path / FOLDER) / f"{adapter.path.name}-{key.pseudonym[:_SHORT]}"
    if is_complete(place) and not overwrite:
        _require_same(place, material)
        return place / "record.json", False
    replaces = _replaced(place)
    record = build_record(material, replaces)
    save_key(run.path, key)
    _write(place, record, material.config, started)
    return place / "record.json", True


def _require_same(place: Path, material: "Material") -> None:
    """Raise where the record that is there was made of something else."""
    found, asked = (_flat(config) for config in (read_config(place), material.config))
    if lines := differences(found, asked):
        raise ArtefactMismatch(
            f"{place}: a complete record made of other inputs is there; it is evidence of its day.\n" + "\n".join(lines)
            + "\nUse --output DIR to keep both, or --overwrite: the new one names the old one's digest."
        )  # fmt: skip


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    inputs = {f"inputs: {name}": str(value)[:16] for name, value in config.get("inputs", {}).items()}
    return {**config.get("options", {}), **inputs, "schema": config.get("schema")}


def _replaced(place: Path) -> list[str]:
    """Return the digests of the record that is there, and of those it replaced; one put aside by a kill is put back."""
    aside = _beside(place, "old")
    if aside.exists() and not place.exists():
        aside.rename(place)
    if place.exists() and any(place.iterdir()) and not is_ours(place):
        raise DataError(f"{place}: expected an empty or new directory, found files of others. Name another --output.")
    if not is_complete(place):
        return []
    old = read_json(place / "record.json")
    return [*old.get("replaces", ()), str(old.get("record_sha256"))]


def _write(place: Path, record: Mapping[str, Any], config: dict[str, Any], started: float) -> None:
    """Write a record beside its place, and move it there when it is whole."""
    from .page import render_page

    page, making, old = render_page(record), _beside(place, "making"), _beside(place, "old")
    begin(making, config)
    write_json(making / "record.json", dict(record))
    (making / "record.html").write_text(page, encoding="utf-8")
    # The whole command names the person, and so it is not what provenance keeps.
    finish(making, {"command": "viker record", "record_sha256": record["record_sha256"]}, started=started)
    shutil.rmtree(old, ignore_errors=True)
    if place.exists():
        place.rename(old)
    making.rename(place)
    shutil.rmtree(old, ignore_errors=True)
    descriptor = os.open(place.parent, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def _beside(place: Path, word: str) -> Path:
    return place.with_name(f"{place.name}.{word}")


def _told(path: Path, made: bool) -> str:
    """Return the last lines of a terminal: where it is, what it comes to, how to show whom it is about."""
    from .page import outcome

    record = read_json(path)
    first = f"record: {path}" if made else f"record: complete, skipped: {path}"
    return (
        f"{first}\n  {outcome(record)}\n  Weights: {record['weights']['kind']}.\n  sha256 {record['record_sha256']}: "
        f"deposit it elsewhere.\n  pseudonym {record['subject']['pseudonym']}: its key, in RUN/{FOLDER}/keys, shows "
        "whom it stands for. Hand out the record, never the key."
    )


def _check(
    run: Path, path: Path, people: Sequence[str], key: Path | None, merged: Path | None, as_json: bool
) -> None:  # fmt: skip
    """Print how a record compares with its run, and exit with 3 where something differs, 1 where something is gone."""
    from .check import check_record, find_secret, read_record

    if len(people) > 1:
        raise click.UsageError("record --check: expected one --person, found several; a record is about one.")
    file, record = read_record(path)
    items = check_record(
        file, record, run, secret=find_secret(run, record, key), person=people[0] if people else None, merged=merged
    )
    counts: Counter[str] = Counter(item.status for item in items)
    if as_json:
        told = {
            "schema": "viker/record-check/1", "record": str(file), "record_sha256": record.get("record_sha256"),
            "counts": dict(counts), "items": [asdict(item) for item in items],
        }  # fmt: skip
        click.echo(json.dumps(told, indent=2, ensure_ascii=False))
    else:
        click.echo("\n".join(_lines(items, counts)))
    if code := _EXIT_DIFFERS if counts["differs"] else _EXIT_GONE if counts["gone"] else 0:
        sys.exit(code)


def _lines(items: Sequence["Item"], counts: Mapping[str, int]) -> list[str]:
    """Return a line for each comparison, and one for all."""
    marks = {"same": "same", "differs": "DIFFERS", "gone": "GONE", "not checked": "not checked"}
    lines = [f"  {marks[item.status]:12}{item.what}{item.told and f': {item.told}'}" for item in items]
    return [*lines, "record: " + ", ".join(f"{count} {name}" for name, count in counts.items())]
