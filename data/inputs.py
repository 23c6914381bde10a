"""What identifies a stage's inputs without reading them, so that deciding to skip costs nothing."""

from pathlib import Path

from .artefact import CHECKPOINT_CONFIG, is_complete, read_json
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
    if (path / CHECKPOINT_CONFIG).is_file():
        raise DataError(
            f"{path}: expected a finished model, found one that was interrupted. Run the stage that makes it again."
        )
    return "given"
