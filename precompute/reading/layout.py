"""Where every file and array of a teacher cache lies: what a fingerprint and the lengths of the axes imply.

The writer makes exactly this and the reader expects exactly this, so both take it from here, together with the bytes of
the manifest and the errors. Distrust lives in three files beside it: `untrusted.py` reads what a stranger wrote,
`metadata.py` holds every `zarr.json` against what is implied here, `shards.py` decodes. The prose of the format is the
docstring of `cache.py`.

    ValueError
      CacheError              a directory that is damaged, hostile, unreadable or not a cache
        CacheMismatch         a sound cache of something else: every differing field, with both values
        RowsNotCovered        a cache of the right thing that lacks some of the rows asked for
"""

import contextlib
import hashlib
import itertools
import math
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...data.example import canonical_json

SCHEMA = "viker/teacher-cache/1"
ZARR = "cache.zarr"

# n samples, N answer tokens, K kept, k references a sample, M images of the pool.
# The dtypes "ids" and "logprobs" are named by the fingerprint's storage. An array with an empty dimension is left out.
ARRAYS = {
    "sample/offset": ("int64", "n+1"),
    "sample/key": ("uint8", "n,16"),
    "sample/person": ("uint8", "n,16"),
    "sample/token_hash": ("uint64", "n"),
    "sample/reference": ("uint16", "n,k"),
    "reference/sha256": ("uint8", "M,32"),
    "token/kept_id": ("ids", "N,K"),
    "token/kept_logprob": ("logprobs", "N,K"),
    "token/tail_logprob": ("float32", "N"),
    "token/entropy": ("float32", "N"),
    "token/answer_logprob": ("float32", "N"),
    "token/sum_squares": ("float32", "N"),
    "token/disagreement": ("float16", "N"),
}
STORAGE = {"ids": ("uint16", "uint32"), "logprobs": ("float16", "float32")}

CHUNK_CAP = 16 << 20  # decoded bytes of one chunk
SHARD_CAP = 1 << 30  # decoded bytes of one shard; the writer's have at most half of that
FILE_CAP = SHARD_CAP + (4 << 20)  # bytes of one file: a shard's chunks grow by 20 bytes, and its index by 16
SHARD_ROWS = 32768
MOST_FILES = 100_000  # below a cache's directory: 10^8 rows have 22 000
DEEPEST = 16  # folders; a cache has 5

_ADVICE = (
    "The cache is damaged or was not made by viker: remove it, then fetch it again or rebuild it with "
    "`viker precompute`."
)


class CacheError(ValueError):
    """A directory that is damaged, hostile, unreadable or not a cache."""


class CacheMismatch(CacheError):
    """A sound cache of something else: lists every differing field with both values."""


class RowsNotCovered(CacheError):
    """A cache of the right thing that lacks some of the rows asked for; `root` is where it is, to be extended."""

    def __init__(self, message: str, root: Path) -> None:
        super().__init__(message)
        self.root = root


class ListedFile(NamedTuple):
    """One line of the manifest."""

    size: int
    sha256: str


class ArrayPlan(NamedTuple):
    """What an array must be: its dtype and its shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        """Decoded bytes of one step along the first axis."""
        return math.prod(self.shape[1:]) * np.dtype(self.dtype).itemsize


def expect(holds: bool, where: Path | str, expected: str, found: object) -> None:
    """Raise CacheError unless a property of a cache directory holds.

    Raises:
        CacheError: as `refusal` words it.
    """
    if not holds:
        raise refusal(where, expected, found)


def refusal(where: Path | str, expected: str, found: object) -> CacheError:
    """Return the error that says on one line what was expected, what was found and what to do."""
    told = f"{printable(where)}: expected {printable(expected)[:400]}, found {printable(found)[:200]}. {_ADVICE}"
    return CacheError(told)


def printable(value: object) -> str:
    """Return text on one line that no terminal acts on; names and values of a stranger hold anything."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in str(value)[:4096])


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn what the system says against reading a path into a CacheError that says so."""
    try:
        yield
    except FileNotFoundError:
        raise CacheError(
            f"{printable(path)}: expected this file of a complete teacher cache, found none. If a run makes it now, "
            "wait for its end; otherwise fetch the cache again or rebuild it with `viker precompute`."
        ) from None
    except (OSError, ValueError) as error:  # ValueError: a name that holds a NUL
        if isinstance(error, CacheError):
            raise
        raise CacheError(
            f"{printable(path)}: expected to read it, found: {printable(getattr(error, 'strerror', None) or error)}. "
            "Check who may read it, and the disk."
        ) from error


def array_plans(fingerprint: dict[str, Any], n: int, N: int, M: int) -> dict[str, ArrayPlan]:
    """Return the arrays of a cache with n samples, N answer tokens and M pool images, by name."""
    k = fingerprint["draw"]["num_references"] if M else 0
    K = fingerprint["objective"]["top_k"]
    sizes = {"n": n, "n+1": n + 1, "N": N, "K": K, "k": k, "M": M, "16": 16, "32": 32}
    plans = {
        name: ArrayPlan(fingerprint["storage"].get(dtype, dtype), tuple(sizes[dim] for dim in dims.split(",")))
        for name, (dtype, dims) in ARRAYS.items()
    }
    return {name: plan for name, plan in plans.items() if 0 not in plan.shape}


def chunk_and_shard(plan: ArrayPlan) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the chunk and shard shapes of an array.

    Chunks of 1024 rows, or of 8192 where a row is one number (a million rows are then read six times faster), shards
    of 32768 rows; fewer where rows are wide or few.
    """
    rows, *width = plan.shape
    chunk_rows = min(1024 if width else 8192, rows, max(1, CHUNK_CAP // plan.row_bytes))
    shard_rows = chunk_rows * min(SHARD_ROWS // (1024 if width else 8192), math.ceil(rows / chunk_rows))
    return (chunk_rows, *width), (shard_rows, *width)


def root_digest(files: dict[str, ListedFile]) -> str:
    """Return the digest over the digests of all files: what pins these very bytes."""
    lines = hashlib.sha256()
    for line in sorted(f"{file.sha256}  {path}\n" for path, file in files.items()):
        lines.update(line.encode())
    return lines.hexdigest()


def manifest_bytes(key: str, files: dict[str, ListedFile]) -> bytes:
    """Return the canonical bytes of manifest.json."""
    listed = [{"path": path, "size": file.size, "sha256": file.sha256} for path, file in sorted(files.items())]
    content = {"schema": SCHEMA, "key": key, "files": listed, "root_sha256": root_digest(files)}
    return canonical_json(content) + b"\n"


def plain_files(root: Path) -> dict[str, int]:
    """Return the sizes of all files below a directory by relative path.

    Raises:
        CacheError: when anything below it is a symbolic link or a special file, lies deeper than in any cache, or
            cannot be listed; and when there are more files than any cache has.
    """
    sizes: dict[str, int] = {}
    folders = [""]
    while folders:
        folder = folders.pop()
        expect(folder.count("/") <= DEEPEST, root / folder, f"at most {DEEPEST} nested folders", "more")
        for name, status in _entries(root, folder):
            plain = stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)
            expect(plain, root / name, "plain files and folders only", "a link or a special file")
            if stat.S_ISDIR(status.st_mode):
                folders.append(f"{name}/")
            else:
                sizes[name] = status.st_size
        expect(len(sizes) + len(folders) <= MOST_FILES, root, f"at most {MOST_FILES} files", "more")
    return sizes


def _entries(root: Path, folder: str) -> Iterator[tuple[str, os.stat_result]]:
    """Yield what is in a folder with its status, links not followed; far more than a cache has is not read on."""
    with readable(root / folder), os.scandir(root / folder) as entries:
        for entry in itertools.islice(entries, MOST_FILES + 1):
            yield f"{folder}{entry.name}", entry.stat(follow_symlinks=False)
