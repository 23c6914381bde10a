"""Block files and the folder discipline around them: whole or absent, checked before use, claimed by advice only.

A block file is one line "viker/block/1 <sha256 of the rest>", one line of canonical JSON {key, block, device, arrays},
where arrays lists [name, dtype, shape], and the arrays' raw bytes in that order. No pickle and no dates: the same rows
give the same bytes.
Which blocks exist and how they become a cache is `store.py`'s.

    OSError, ValueError
      StorageError            the disk is full or failing; what was staged stays, and the same command resumes
"""

import contextlib
import errno
import hashlib
import json
import math
import os
import shutil
import socket
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..data.example import canonical_json
from .layout import ArrayPlan, ListedFile, plain_files

BLOCK_SCHEMA = "viker/block/1"
DISK_TROUBLE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})


class StorageError(OSError, ValueError):
    """The disk is full or failing: says how much is needed and free, and that the same command resumes."""


class BlockHeader(NamedTuple):
    """What computed a block, and where each of its arrays starts in the file."""

    device: str
    starts: dict[str, int]


def pack_block(key: str, block: int, arrays: Mapping[str, NDArray[Any]], device: str) -> bytes:
    """Return the bytes of a block file."""
    listed = [[name, str(array.dtype), list(array.shape)] for name, array in arrays.items()]
    header = canonical_json({"key": key, "block": block, "device": device, "arrays": listed})
    body = header + b"\n" + b"".join(np.ascontiguousarray(array).tobytes() for array in arrays.values())
    return f"{BLOCK_SCHEMA} {hashlib.sha256(body).hexdigest()}\n".encode() + body


def read_header(path: Path, key: str, block: int, plans: Mapping[str, ArrayPlan]) -> BlockHeader:
    """Return the header of a block file after checking its checksum and that it holds the planned arrays.

    Raises:
        ValueError: saying what is wrong with it.
    """
    content = path.read_bytes()
    title, _, body = content.partition(b"\n")
    if title != f"{BLOCK_SCHEMA} {hashlib.sha256(body).hexdigest()}".encode():
        raise ValueError("its checksum does not match")
    header = json.loads(body.partition(b"\n")[0])
    planned = [[name, plan.dtype, list(plan.shape)] for name, plan in plans.items()]
    if (header["key"], header["block"], header["arrays"]) != (key, block, planned):
        raise ValueError("it holds another block")
    starts, start = {}, len(title) + 1 + body.index(b"\n") + 1
    for name, plan in plans.items():
        starts[name] = start
        start += math.prod(plan.shape) * np.dtype(plan.dtype).itemsize
    return BlockHeader(header["device"], starts)


def write_durably(path: Path, content: bytes) -> None:
    """Write a file so that after any crash it is whole or absent: temporary name, fsync, rename, fsync the folder."""
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with partial.open("xb") as file:
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


def sync_tree(folder: Path) -> None:
    """Fsync every file and folder below, after removing what Zarr may leave of an interrupted write."""
    for litter in folder.rglob("*.partial"):
        litter.unlink()
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)


def list_files(folder: Path) -> dict[str, ListedFile]:
    """Return the size and sha256 of every file below a folder, by relative path."""
    listed = {}
    for name, size in plain_files(folder).items():
        with (folder / name).open("rb") as file:
            listed[name] = ListedFile(size, hashlib.file_digest(file, "sha256").hexdigest())
    return listed


@contextlib.contextmanager
def disk_trouble(place: Path, needed: int) -> Iterator[None]:
    """Turn a full or failing disk into one StorageError that says what is needed, free and next."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_TROUBLE:
            raise
        free = shutil.disk_usage(next(path for path in (place, *place.parents) if path.exists())).free
        raise StorageError(
            f"{place}: expected room for {needed} bytes, found {free} free ({error.strerror or error}). What was "
            "computed is kept: make room, or point VIKER_CACHE_DIR elsewhere, and run the same command to resume."
        ) from error


def take_claim(path: Path, timeout_s: float) -> bool:
    """Create a claim, or take over a stale one; return whether it is ours now.

    Two processes may both take over the same stale claim: they then compute the same block twice, which is harmless.
    """
    mine = canonical_json({"host": socket.gethostname(), "pid": os.getpid()})
    try:
        with path.open("xb") as file:
            file.write(mine)
        return True
    except FileExistsError:
        if not _is_stale(path, mine, timeout_s):
            return False
    write_durably(path, mine)
    return True


def _is_stale(path: Path, mine: bytes, timeout_s: float) -> bool:
    """Whether a claim is ours, old, gone, or of a process of this host that no longer runs."""
    try:
        content, age_s = path.read_bytes(), time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return True
    if content == mine or age_s > timeout_s:
        return True
    try:
        owner = json.loads(content)
        return bool(owner["host"] == socket.gethostname()) and not _runs(owner["pid"])
    except (ValueError, KeyError, TypeError):  # being written, or torn by a power cut: its age decides
        return False


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
