"""The source that an evaluation's options name, and the private words of its people and of the controls beside them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..data.controls import with_controls
from ..data.sidecar import Sidecar, read_sidecar
from ..data.source import Source
from ..data.sources import open_source


def open_named_source(options: Mapping[str, Any]) -> Source:
    """Return the source that `--data` names, with its forget split."""
    return open_source(
        options["data"], ratio=options["ratio"], forget=options["forget"], revision=options["data_revision"]
    )


def facts_of(options: Mapping[str, Any]) -> Sidecar | None:
    """Return the private words of the source and of the controls, where they are marked."""
    controls = open_source(options["controls"]).location if options["controls"] else None
    theirs = None if controls is None else _facts_at(controls)
    return with_controls(_facts_at(open_named_source(options).location), theirs)


def _facts_at(place: Path) -> Sidecar | None:
    path = place / "sidecar.json"
    return read_sidecar(path) if path.is_file() else None


def facts_of_evaluation(options: Mapping[str, Any]) -> Sidecar | None:
    """Return the private words of what an evaluation was asked about, from the options that are kept beside it."""
    names = ("data", "ratio", "data_revision", "controls")
    return facts_of({name: options.get(name) for name in names} | {"forget": options.get("forget") or ()})
