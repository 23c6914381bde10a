"""Say everything that is wrong with a cache, where opening it stops at the first finding.

`quick` is what opening does: sizes, metadata and small digests, milliseconds. `full` reads every byte: all checksums,
files that the manifest does not list, every array decoded, and the rules of the values.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from .cache import CacheError, TeacherCache
from .layout import plain_files, read_manifest

Depth = Literal["quick", "full"]


class Problem(NamedTuple):
    """One finding: its kind (`directory`, `checksum`, `unlisted` or `values`) and what was expected and found."""

    kind: str
    detail: str


def verify(path: Path, depth: Depth) -> list[Problem]:
    """Return the problems of a cache directory; none means that it may be used.

    Raises:
        ValueError: when the depth is not one that exists.
    """
    if depth not in ("quick", "full"):
        raise ValueError(f"Expected the depth quick or full, found {depth!r}.")
    try:
        cache = TeacherCache.open(path)
    except CacheError as error:
        return [Problem("directory", str(error)), *(_checksum_problems(path) if depth == "full" else ())]
    if depth == "quick":
        return []
    return [*_checksum_problems(path), *_value_problems(cache)]


def _checksum_problems(path: Path) -> Iterator[Problem]:
    """Compare all files with the manifest, as far as it can be read."""
    try:
        _, files = read_manifest(path)
        found = plain_files(path)
    except CacheError as error:
        yield Problem("directory", str(error))
        return
    for name in sorted(files.keys() & found.keys()):
        with (path / name).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != files[name].sha256:
            yield Problem("checksum", f"{name}: expected sha256 {files[name].sha256}, found {digest}.")
    for name in sorted(found.keys() - files.keys() - {"manifest.json"}):
        yield Problem("unlisted", f"{name}: expected only files that the manifest lists, found this one too.")


def _value_problems(cache: TeacherCache) -> Iterator[Problem]:
    """Decode everything and check the rules of the values."""
    checks = (
        lambda: cache.offset,
        lambda: cache.sample_keys,
        lambda: cache.token_hash,
        lambda: cache.reference,
        cache.load,
    )
    for check in checks:
        try:
            check()
        except CacheError as error:
            yield Problem("values", str(error))
