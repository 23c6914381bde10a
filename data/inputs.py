"""What identifies a stage's inputs without reading them, so that deciding to skip costs nothing."""

from pathlib import Path

from .artefact import is_complete, is_ours, read_json
from .example import DataError


def input_stamps(*specs: str) -> dict[str, str]:
    """Return for each input artefact when it was finished, and for anything else that it was given.

    Raises:
        DataError: an input is an artefact whose making was interrupted.
    """
    return {spec: _stamp(Path(spec)) for spec in specs}


def _stamp(path: Path) -> str:
    if is_complete(path):
        return str(read_json(path / "provenance.json")["finished"])
    if is_ours(path):
        raise DataError(
            f"{path}: expected what a finished stage wrote, found one that was interrupted. Run that stage again."
        )
    return "given"


def stored_rows(run: Path | None, name: str) -> Path | None:
    """Return where a run stores the key of a cache, by kind of teacher and split (`reference-forget`)."""
    return None if run is None else run / "precompute" / name


def complete_rows(run: Path | None, name: str) -> Path | None:
    """Return where a run stores the key of rows that are made, if they are: scalars are in whole rows too."""
    places = [stored_rows(run, one) for one in (name, name.removesuffix("-scalars"))]
    return next((place for place in places if place is not None and is_complete(place)), None)


def other_commits(run: Path | None, field: str, commit: str | None) -> list[str]:
    """Return one line for each artefact of a run that was made from another commit of the same hub model or dataset.

    Hub ids without `--revision` move on; what a run resolved is in its artefacts' provenance, so a later stage can say
    that it resolved something else.
    """
    if run is None or commit is None:
        return []
    lines = []
    for provenance in sorted(run.glob("*/*/provenance.json")):
        earlier = read_json(provenance).get(field)
        if earlier not in (None, commit):
            lines.append(
                f"{provenance.parent}: made from commit {earlier}, this stage resolved {commit}. "
                "Pin one with --revision."
            )
    return lines
