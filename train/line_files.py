"""Files that grow by a JSON object a line: appended while a run goes, cut back to what a resumed run keeps.

A line is written whole and never changed, so such a file is as good as its first lines: a kill leaves at most a part of
the last one, and a run that goes on from a checkpoint writes what came after it again, byte for byte.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO


def append_line(stream: TextIO, value: Mapping[str, Any]) -> None:
    """Write one value as a line, and hand it to the system: a kill of this process does not lose it."""
    stream.write(json.dumps(value) + "\n")
    stream.flush()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the values of a file's whole lines, none where there is no file."""
    if not path.is_file():
        return []
    whole, _, _ = path.read_bytes().rpartition(b"\n")
    return [json.loads(line) for line in whole.splitlines() if line]


def keep_lines(path: Path, count: int) -> bool:
    """Cut a file behind its first lines; return whether there were as many as are to be kept."""
    if not path.is_file():
        return count == 0
    lines = path.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines[:count] if line.endswith(b"\n")]
    os.truncate(path, sum(map(len, kept)))
    return len(kept) == count


def sync(path: Path) -> None:
    """Have the system put a file, or the entries of a folder, onto the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Have the system put a folder and all that is in it onto the disk."""
    for path in sorted(folder.rglob("*")):
        sync(path)
    sync(folder)
