"""Open files of weights that others wrote: safetensors, whose header and sizes are checked before anything is read.

A file cut short by a full disk or a broken download is a user's mistake, so it gets the error that names it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ..data.example import DataError


@contextmanager
def open_tensors(file: Path) -> Iterator[Any]:
    """Open one safetensors file; `keys()` names its tensors and `get_tensor(name)` reads one.

    Raises:
        DataError: it is damaged.
    """
    try:
        with safe_open(file, framework="pt") as tensors:
            yield tensors
    except SafetensorError as error:
        raise damaged(file, error) from error


def damaged(where: Path, error: Exception) -> DataError:
    """Return the error for weights that cannot be read."""
    reason = str(error).strip().split("\n", 1)[0][:200]
    return DataError(
        f"{where}: expected whole safetensors files, found damaged ones ({reason}). Copy the files again, or make them "
        "again."
    )
