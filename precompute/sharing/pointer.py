"""What a key of a remote leads to: a published cache, or a tombstone; and what a cache cost to make.

    <remote>/<key16>/pointer.json    {schema, key, root, made, seconds, bytes}            a published cache
                                     {schema, key, root, replaced_by, made}               a tombstone: it was purged
    <cache home>/<key16>.made.json   {schema, key, root, made, seconds}                   beside a cache of this machine

When a cache was made and what it cost stand outside the cache: two makings of the same rows give the same bytes, and a
date would break that. Pointers may come from a stranger: they are capped, and every field is checked.
"""

import contextlib
import datetime
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

from ...data.example import canonical_json
from ..cache import TeacherCache
from ..reading.layout import CacheError, expect
from ..reading.untrusted import json_value, read_plain
from ..writing.blocks import write_durably
from .stores import Store

POINTER_SCHEMA = "viker/cache-pointer/1"
TOMBSTONE_SCHEMA = "viker/cache-tombstone/1"
MADE_SCHEMA = "viker/cache-made/1"
POINTER_CAP = 1 << 16  # bytes
KEY16 = re.compile("[0-9a-f]{16}")
_DIGEST = re.compile("[0-9a-f]{64}")


class Pointer(NamedTuple):
    """What a key leads to: the digest of the cache's bytes, when it was made, its cost in seconds and its size."""

    key: str
    root: str
    made: str | None
    seconds: float | None
    num_bytes: int

    @property
    def folder(self) -> str:
        """Where the files of the cache are, relative to the remote."""
        return f"{self.key[:16]}/{self.root[:16]}"

    def as_json(self) -> dict[str, Any]:
        """Return the content of pointer.json."""
        return {
            "schema": POINTER_SCHEMA, "key": self.key, "root": self.root, "made": self.made, "seconds": self.seconds,
            "bytes": self.num_bytes,
        }  # fmt: skip


class Tombstone(NamedTuple):
    """What is left of a key whose cache was purged: which one holds the remaining rows, if any does."""

    key: str
    root: str | None
    replaced_by: str | None
    made: str

    def as_json(self) -> dict[str, Any]:
        """Return the content of pointer.json."""
        return {
            "schema": TOMBSTONE_SCHEMA, "key": self.key, "root": self.root, "replaced_by": self.replaced_by,
            "made": self.made,
        }  # fmt: skip


class Making(NamedTuple):
    """When a cache was made, and what it cost, where that is known."""

    made: str | None = None
    seconds: float | None = None


def now() -> str:
    """Return the time in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def pointer_bytes(pointer: Pointer | Tombstone) -> bytes:
    """Return the content of pointer.json."""
    return canonical_json(pointer.as_json()) + b"\n"


def pointer_path(key: str) -> str:
    """Return where the pointer of a key is, relative to the remote."""
    return f"{key[:16]}/pointer.json"


def read_pointer(store: Store, key: str) -> Pointer | Tombstone | None:
    """Return what a key, or its first 16 digits, leads to in a remote; None where it was never published.

    Raises:
        CacheError: when it is not a pointer, or is that of another key.
    """
    path = pointer_path(key)
    try:
        content = store.read(path, POINTER_CAP)
    except FileNotFoundError:
        return None
    where = f"{store.url}/{path}"
    try:
        pointer = _parse(json_value(Path(path), content))
    except (ValueError, KeyError, TypeError) as error:
        raise CacheError(
            f"{where}: expected a pointer of {POINTER_SCHEMA}, found something else ({error!r:.200}). It was not "
            "written by viker: ask whoever keeps the remote."
        ) from error
    expect(pointer.key.startswith(key) or key.startswith(pointer.key), where, f"key {key}", pointer.key)
    return pointer


def find_key(store: Store, prefix: str) -> str:
    """Return the 16 digits of the one key in a remote that begins like this.

    Raises:
        CacheError: when none does, or several do.
    """
    if len(prefix) >= 16:
        return prefix[:16]
    matches = [name for name in store.folders() if KEY16.fullmatch(name) and name.startswith(prefix)]
    if len(matches) != 1:
        found = ", ".join(matches[:5]) or "none"
        raise CacheError(
            f"{prefix}: expected the beginning of one key in {store.url}, found {found}. "
            "`viker cache list --remote` names them."
        )
    return matches[0]


def record_making(cache: TeacherCache, seconds: float | None, made: str | None = None) -> None:
    """Note beside a cache when it was made and what that cost."""
    making = {
        "schema": MADE_SCHEMA, "key": cache.key, "root": cache.root_digest, "made": made or now(), "seconds": seconds,
    }  # fmt: skip
    write_durably(making_path(cache.root), canonical_json(making))


def read_making(cache: TeacherCache) -> Making:
    """Return when a cache was made and what that cost, as far as it was noted."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        path = making_path(cache.root)
        value = json_value(path, read_plain(path, POINTER_CAP))
        if (value["key"], value["root"]) == (cache.key, cache.root_digest):
            return Making(_date(value["made"]), _seconds(value["seconds"]))
    return Making()


def making_path(root: Path) -> Path:
    """Return where it is noted what a cache cost."""
    return root.with_name(f"{root.name}.made.json")


def told_age(made: str | None) -> str:
    """Return how long ago something was made, in words."""
    if made is None:
        return "at an unknown time"
    then = datetime.datetime.strptime(made, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=datetime.UTC)
    return f"{told_duration((datetime.datetime.now(datetime.UTC) - then).total_seconds())} ago"


def told_duration(seconds: float) -> str:
    """Return a duration in words, rounded to one unit."""
    for unit, length in (("day", 86400), ("hour", 3600), ("min", 60)):
        if seconds >= 2 * length or (unit == "min" and seconds >= length):
            number = round(seconds / length)
            return f"{number} {unit}{'' if unit == 'min' else 's'}"
    return f"{max(0, round(seconds))} s"


def _parse(value: Any) -> Pointer | Tombstone:
    """Return a pointer or tombstone; any deviation is a ValueError, KeyError or TypeError."""
    schema, key = value["schema"], _digest(value["key"])
    if schema == TOMBSTONE_SCHEMA:
        root, replaced_by = (None if value[name] is None else _digest(value[name]) for name in ("root", "replaced_by"))
        made = _date(value["made"])
        return Tombstone(key, root, replaced_by, made or "an unknown date")
    if schema != POINTER_SCHEMA:
        raise ValueError(f"schema {schema!r}")
    num_bytes = value["bytes"]
    if type(num_bytes) is not int or num_bytes < 0:
        raise ValueError(f"bytes {num_bytes!r}")
    return Pointer(key, _digest(value["root"]), _date(value["made"]), _seconds(value["seconds"]), num_bytes)


def _digest(value: Any) -> str:
    if not isinstance(value, str) or not _DIGEST.fullmatch(value):
        raise ValueError(f"digest {value!r:.80}")
    return value


def _date(value: Any) -> str | None:
    """Return a date as text, None where there is none; anything else is a ValueError."""
    if value is not None:
        datetime.datetime.strptime(value, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=datetime.UTC)
    return None if value is None else str(value)


def _seconds(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and value >= 0):
        raise ValueError(f"seconds {value!r:.80}")
    return float(value)
