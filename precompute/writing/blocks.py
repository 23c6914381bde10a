"""Block files and the folder discipline around them: whole or absent, checked before use, as shared as their home.

A block file is one line "viker/block/2 <sha256 of the rest>", one line of canonical JSON {key, block, device, engine,
token_budget, arrays}, where arrays lists [name, dtype, shape], and the arrays' raw bytes in that order. No pickle and
no dates: the same rows give the same bytes. Device, engine and token budget (null where an engine has none) are those
of whoever computed the block; they go to build.json when the cache is sealed, by a process that need not have computed
any.

What is written here outlives its process, so it is fsynced before it gets its name, and a failing disk is one error
with a way on. It also outlives its user's umask: files and folders take their permissions from the folder they lie in,
and so in the end from the cache home, as git does for a shared repository.
Who computes a block is `claims.py`'s, which blocks there are `store.py`'s, how they become a cache `seal.py`'s.

    OSError, ValueError
      StorageError            the disk is full, failing or forbidden; what was staged stays, the same command resumes
"""

import contextlib
import errno
import hashlib
import itertools
import math
import os
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...data.example import canonical_json
from ..reading.layout import ArrayPlan, ListedFile, plain_files
from ..reading.untrusted import json_value

BLOCK_SCHEMA = "viker/block/2"
MOST_HEADER = 1 << 14  # bytes of both lines; real ones have 1 KB
MOST_MAKER = 1 << 12  # characters of a device or an engine
_MADE = ("device", "engine", "token_budget")

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_FAILING = frozenset({errno.EIO, errno.ESTALE, errno.ETIMEDOUT})
_FORBIDDEN = frozenset({errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.ELOOP})


class StorageError(OSError, ValueError):
    """The disk is full, failing or forbidden: says what is needed and found, and that the same command resumes."""


class BlockHeader(NamedTuple):
    """What computed a block, and where each of its arrays starts in the file."""

    device: str
    engine: str
    token_budget: int | None
    starts: dict[str, int]


def as_stored(name: str, array: NDArray[Any], plan: ArrayPlan) -> NDArray[Any]:
    """Return an array in its storage type, without changing a value that the order or the range depends on."""
    assert array.shape == plan.shape, f"{name}: {array.shape} is not {plan.shape}"
    if name == "token/kept_id":
        assert not array.size or 0 <= array.min() <= array.max() <= np.iinfo(plan.dtype).max, "ids of the vocabulary"
    assert name != "token/kept_logprob" or array.dtype == plan.dtype, "rows are ordered by stored value: cast first"
    return array.astype(plan.dtype, copy=False)


def pack_block(
    key: str, block: int, arrays: Mapping[str, NDArray[Any]], device: str, engine: str = "",
    token_budget: int | None = None,
) -> bytes:  # fmt: skip
    """Return the bytes of a block file; rows that were copied name no engine."""
    listed = [[name, str(array.dtype), list(array.shape)] for name, array in arrays.items()]
    made = {"device": device, "engine": engine, "token_budget": token_budget}
    header = canonical_json({"key": key, "block": block, **made, "arrays": listed})
    parts: list[bytes | memoryview] = [
        header,
        b"\n",
        *(np.ascontiguousarray(array).view(np.uint8).data for array in arrays.values()),
    ]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return b"".join([f"{BLOCK_SCHEMA} {digest.hexdigest()}\n".encode(), *parts])


def read_header(path: Path, key: str, block: int, plans: Mapping[str, ArrayPlan]) -> BlockHeader:
    """Return the header of a block file after checking its checksum and that it holds the planned arrays.

    Raises:
        ValueError: saying what is wrong with it.
    """
    sizes = {name: math.prod(plan.shape) * np.dtype(plan.dtype).itemsize for name, plan in plans.items()}
    content = _read_at_most(path, sum(sizes.values()) + MOST_HEADER)
    title, _, body = content.partition(b"\n")
    if title != f"{BLOCK_SCHEMA} {hashlib.sha256(body).hexdigest()}".encode():
        raise ValueError("its checksum does not match")
    line = body[: body.find(b"\n")]
    header = json_value(path, line)
    planned = [[name, plan.dtype, list(plan.shape)] for name, plan in plans.items()]
    made = {name: header.get(name) if isinstance(header, dict) else None for name in _MADE}
    device, engine, budget = made.values()
    if not all(isinstance(maker, str) and len(maker) <= MOST_MAKER for maker in (device, engine)):
        raise ValueError("it does not say what computed it")
    if budget is not None and type(budget) is not int:
        raise ValueError("its token budget is no number")
    if header != {"key": key, "block": block, **made, "arrays": planned}:
        raise ValueError("it holds another block")
    start = len(title) + 1 + len(line) + 1
    if len(content) != start + sum(sizes.values()):
        raise ValueError(f"it has {len(content) - start} bytes of rows, not {sum(sizes.values())}")
    ends = itertools.accumulate(sizes.values(), initial=start)
    return BlockHeader(str(device), str(engine), budget, dict(zip(sizes, ends, strict=False)))


def makers(headers: Sequence[BlockHeader]) -> dict[str, Any]:
    """Return what build.json says of whoever computed the blocks: device and token budget of each, engines of all."""
    engines = " + ".join(sorted({header.engine for header in headers} - {""}))
    budgets = [header.token_budget for header in headers]
    return {
        **({"engine": engines} if engines else {}),
        **({"block_token_budgets": budgets} if any(budgets) else {}),
        "block_devices": [header.device for header in headers],
    }


def _read_at_most(path: Path, most: int) -> bytes:
    """Return the bytes of a plain file that is no larger than it may be; a pipe is not waited for."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode) or status.st_size > most:
        raise ValueError(f"it is no plain file of at most {most} bytes")
    return path.read_bytes()


def make_folder(path: Path) -> None:
    """Make a folder, unless it is there, in one that exists and with its permissions."""
    path.mkdir(exist_ok=True)
    share(path, path.parent)


def share(target: Path | int, folder: Path) -> None:
    """Give a file, by path or descriptor, or a folder the group and permissions of the folder it lies in.

    Whoever may use a shared home may then use what others made there, whatever their umask; in a private home nothing
    is for anyone else. Where the group cannot be given, its rights are not given to another group.
    """
    wanted, found = folder.stat(), os.stat(target)  # noqa: PTH116 - takes a descriptor too
    mode = wanted.st_mode & (0o2777 if stat.S_ISDIR(found.st_mode) else 0o666)
    if found.st_gid != wanted.st_gid and not _permitted(os.chown, target, -1, wanted.st_gid):
        mode &= ~0o2070
    if stat.S_IMODE(found.st_mode) != mode:
        _permitted(os.chmod, target, mode)


def _permitted(change: Callable[..., None], *arguments: Any) -> bool:
    """Make a change of ownership or mode; return False where this user or this file system has no such thing."""
    try:
        change(*arguments)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP):
            raise
        return False
    return True


def write_durably(path: Path, content: bytes) -> None:
    """Write a file so that after any crash it is whole or absent: temporary name, fsync, rename, fsync the folder."""
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with partial.open("xb") as file:
            share(file.fileno(), path.parent)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """Fsync a file or a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def list_files(folder: Path) -> dict[str, ListedFile]:
    """Return the size and sha256 of every file below a folder, by relative path."""
    listed = {}
    for name, size in plain_files(folder).items():
        with (folder / name).open("rb") as file:
            listed[name] = ListedFile(size, hashlib.file_digest(file, "sha256").hexdigest())
    return listed


@contextlib.contextmanager
def disk_trouble(place: Path, needed: int) -> Iterator[None]:
    """Turn a full, failing or forbidden disk into one StorageError that says what is needed, what there is, what next.

    Raises:
        StorageError: in place of the OSErrors that a user can do something about.
    """
    try:
        yield
    except OSError as error:
        reason, at = error.strerror or str(error), f" at {error.filename}" if error.filename else ""
        if error.errno in _FULL:
            problem = f"expected room for {needed} bytes, found {_free(place)} free ({reason})"
            remedy = "make room"
        elif error.errno in _FAILING:
            problem, remedy = f"expected a disk that reads and writes, found {reason}{at}", "mend it"
        elif error.errno in _FORBIDDEN:
            problem, remedy = f"expected a folder to write in, found {reason}{at}", "make it writable"
        else:
            raise
        raise StorageError(
            f"{place}: {problem}. What was staged is kept: {remedy} and run the same command to resume, or point "
            "VIKER_CACHE_DIR elsewhere and start there."
        ) from error


def _free(place: Path) -> str:
    try:
        return str(shutil.disk_usage(next(path for path in (place, *place.parents) if path.exists())).free)
    except OSError:
        return "an unknown number"
