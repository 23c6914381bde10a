"""Say everything that is wrong with a cache, where opening it stops at the first finding.

`quick` is what opening does: the manifest, sizes, metadata and the digests of small files, milliseconds. `full` reads
every byte: all checksums, files that the manifest does not list, every array decoded, and the rules of the values.
Every finding is one line that names its file.
"""

import hashlib
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from ..cache import CacheError, TeacherCache
from .layout import ZARR, ListedFile, expect, plain_files, printable, readable, refusal
from .reader import file_problems, most_bytes
from .untrusted import read_manifest

Depth = Literal["quick", "full"]

MOST_PROBLEMS = 1000


class Problem(NamedTuple):
    """One finding on one line: its kind, and what was expected and found where.

    Kinds: `directory` (not a cache, or metadata that no writer writes), `file` (missing, of another size, or a stray
    among the arrays), `checksum`, `unlisted` (outside the arrays, which a quick check lets pass) and `values`.
    """

    kind: str
    detail: str


def verify(path: Path, depth: Depth) -> list[Problem]:
    """Return the problems of a cache directory; none means that it may be used.

    Raises:
        ValueError: when the depth is not one that exists.
    """
    if depth not in ("quick", "full"):
        raise ValueError(f"Expected the depth quick or full, found {depth!r}.")
    found = list(itertools.islice(_problems(path, depth), MOST_PROBLEMS + 1))
    if len(found) > MOST_PROBLEMS:
        found[-1] = ("directory", refusal(path, f"at most {MOST_PROBLEMS} problems", "more; these are the first"))
    return [Problem(kind, str(error).removeprefix(f"{printable(path)}/")) for kind, error in found]


def _problems(path: Path, depth: Depth) -> Iterator[tuple[str, CacheError]]:
    """Yield what is wrong with the files; only where nothing is, what is wrong inside them."""
    found = False
    try:
        _, files = read_manifest(path)
        for problem in itertools.chain(_file_problems(path, files), _byte_problems(path, files, depth)):
            found = True
            yield problem
    except CacheError as error:  # no manifest, or a directory that must not be walked
        yield "directory", error
        return
    if not found:
        yield from _deeper_problems(path, depth)


def _file_problems(path: Path, files: Mapping[str, ListedFile]) -> Iterator[tuple[str, CacheError]]:
    return (("file", error) for error in file_problems(path, files))


def _byte_problems(path: Path, files: Mapping[str, ListedFile], depth: Depth) -> Iterator[tuple[str, CacheError]]:
    """Compare, for the full depth, the bytes of all files with the manifest, and name those it does not list."""
    if depth == "quick":
        return
    found = plain_files(path)
    for name, file in sorted(files.items()):
        if found.get(name) == file.size <= most_bytes(name):
            try:
                digest = _digest(path / name)
                expect(digest == file.sha256, path / name, f"sha256 {file.sha256}", digest)
            except CacheError as error:
                yield "checksum", error
    for name in sorted(found.keys() - files.keys() - {"manifest.json"}):
        if not name.startswith(f"{ZARR}/"):
            yield "unlisted", refusal(path / name, "only files that the manifest lists", "this one too")


def _digest(path: Path) -> str:
    with readable(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _deeper_problems(path: Path, depth: Depth) -> Iterator[tuple[str, CacheError]]:
    """Open a cache whose files are as listed and, for the full depth, decode everything by the rules of the values."""
    try:
        cache = TeacherCache.open(path)
    except CacheError as error:
        yield "directory", error
        return
    checks = (
        lambda: cache.offset,
        lambda: cache.row_keys,
        lambda: cache.token_hash,
        lambda: cache.reference,
        cache.load,
    )
    for check in checks if depth == "full" else ():
        try:
            check()
        except CacheError as error:
            yield "values", error
