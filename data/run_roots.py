"""Which runs refer to caches: every run that stores or reads one is noted beside the caches, so that none is orphaned.

    <cache home>/.runs/<digest of the path>.json    {schema, directory, host, caches}

Runs lie anywhere, and a cache home may be shared by people and machines; `viker cache gc` removes only what no run
refers to, so it has to know them. A note says where a run is, not what it refers to: that is read from the run itself,
and a run that is gone counts no longer. Only for a run of another machine, which cannot be seen from here, do the keys
in the note count. What refers to a cache is the provenance of a finished stage, and the inputs of
one that is under way.
"""

import hashlib
import json
import logging
import os
import re
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from .artefact import CHECKPOINT_CONFIG, CONFIG, cache_home, is_stage_config, read_json
from .example import DataError

SCHEMA = "viker/run-root/1"
_STAMP = re.compile("[0-9a-f]{16}/[0-9a-f]{16}")
_KEY = re.compile("[0-9a-f]{64}")

logger = logging.getLogger(__name__)


class RunRoot(NamedTuple):
    """A directory whose artefacts refer to caches, and the first 16 digits of the keys it was noted with."""

    directory: Path
    host: str
    caches: tuple[str, ...]
    note: Path


def register_run(directory: Path, key: str) -> None:
    """Note that the artefacts below a directory refer to a cache.

    A cache home that cannot be written is left as it is: whoever cannot note a run cannot remove a cache either.
    """
    place = directory.resolve()
    note = cache_home() / ".runs" / f"{hashlib.sha256(str(place).encode()).hexdigest()[:32]}.json"
    caches, known = {key[:16]}, _read_or_none(note)
    if known is not None and known.host == socket.gethostname() and key[:16] in known.caches:
        return
    caches |= set(known.caches if known else ())
    content = {"schema": SCHEMA, "directory": str(place), "host": socket.gethostname(), "caches": sorted(caches)}
    partial = note.with_name(f"{note.name}.{uuid.uuid4().hex}.partial")
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        note.parent.chmod(cache_home().stat().st_mode & 0o2777)  # a shared home: everybody notes their runs
        partial.write_text(json.dumps(content), encoding="utf-8")
        partial.chmod(cache_home().stat().st_mode & 0o666)
        partial.replace(note)
    except OSError as error:
        logger.debug("%s: not noted that %s refers to %s: %s", note, place, key, error)


def registered_runs() -> list[RunRoot]:
    """Return every run that was noted beside the caches.

    Raises:
        DataError: a note is damaged, so that nobody knows what it protects.
    """
    return [_read(note) for note in sorted((cache_home() / ".runs").glob("*.json"))]


def keys_below(directory: Path) -> set[str]:
    """Return the first 16 digits of the key of each cache that artefacts below a directory refer to.

    Raises:
        DataError: an artefact's record is damaged, so that nobody knows what it refers to.
        OSError: a folder cannot be read.
    """
    return {key for record in _records(directory) for key in _keys_in(read_json(record))}


def _read_or_none(note: Path) -> RunRoot | None:
    """Return a note, None where there is none or it is damaged and may be written anew."""
    try:
        return _read(note)
    except DataError:
        return None


def _read(note: Path) -> RunRoot:
    value = read_json(note)
    try:
        if value["schema"] != SCHEMA:
            raise ValueError(value["schema"])
        return RunRoot(Path(value["directory"]), str(value["host"]), tuple(map(str, value["caches"])), note)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{note}: expected a note of {SCHEMA}, found another structure ({error!r}). Remove it, and name that run "
            "by --runs."
        ) from error


def _records(directory: Path) -> Iterator[Path]:
    """Yield the records of artefacts below a directory; links are followed, each folder once."""
    seen: set[tuple[int, int]] = set()
    for place, folders, names in os.walk(directory, onerror=_fail, followlinks=True):
        status = Path(place).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        is_stage = "provenance.json" in names or (CONFIG in names and is_stage_config(Path(place, CONFIG)))
        yield from (Path(place, name) for name in names
                    if name in ("provenance.json", CHECKPOINT_CONFIG) or (name == CONFIG and is_stage))  # fmt: skip


def _fail(error: OSError) -> None:
    raise error


def _keys_in(value: Any) -> Iterator[str]:
    """Yield the keys in a record: objects with a key and a root, and stamps of inputs, `key16/root16`."""
    if isinstance(value, dict):
        key = value.get("key")
        if isinstance(key, str) and _KEY.fullmatch(key) and "root" in value:
            yield key[:16]
        for item in value.values():
            yield from _keys_in(item)
    elif isinstance(value, list):
        for item in value:
            yield from _keys_in(item)
    elif isinstance(value, str) and _STAMP.fullmatch(value):
        yield value[:16]
