"""Sealing a teacher cache: from the rows of complete blocks to a directory that is there whole or not at all.

    <key16>.<uuid>.sealing/      the cache while it is assembled, and anything on its way out

Metadata is Zarr's, shards are encoded one at a time (`shards.py`) and all is written here, so that memory does not grow
with the cache and every file is listed with the digest of the very bytes that were meant. The order is what makes a
crash harmless: files, fsync of each, fsync of their folders, the manifest (fsynced, renamed into place), the rename to
`<key16>/`, fsync of the home, and only then are the blocks removed.

A `.sealing` folder belongs to whoever holds the claim on the seal. Folders are made one level at a time and removed
by renaming them first: a process that lost its claim while it was stopped finds its folder gone at the next file it
opens, and can never rename a half-removed one into place. Who holds the claim is `store.py`'s, the format `cache.py`'s.
"""

import hashlib
import logging
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.storage import MemoryStore

from ...data.example import canonical_json
from ..cache import SCHEMA, Fingerprint
from ..reading.layout import ZARR, ArrayPlan, ListedFile, chunk_and_shard, manifest_bytes
from ..reading.metadata import StoredArray
from .blocks import make_folder, share, sync, write_durably
from .shards import COMPRESSION_LEVEL, encode_shard

logger = logging.getLogger(__name__)

RowsOfArray = Callable[[str, int, int], NDArray[Any]]


def staging_folder(root: Path) -> Path:
    """Return where the blocks of a cache are while it is made."""
    return root.with_name(f"{root.name}.building")


def sweep(root: Path) -> None:
    """Remove what makers of a sealed cache left beside it: the blocks, and seals that came second or were killed.

    Other processes see each folder vanish at once. What cannot be removed is only named in a warning.
    """
    if staging_folder(root).exists():
        remove(staging_folder(root), root)
    remove_sealing_folders(root)


def new_sealing_folder(root: Path) -> Path:
    """Make and return an empty folder beside a cache's place, after removing those of interrupted seals."""
    remove_sealing_folders(root)
    folder = _sealing_path(root)
    make_folder(folder)
    return folder


def remove_sealing_folders(root: Path) -> None:
    """Remove every `.sealing` folder of a cache."""
    for folder in root.parent.glob(f"{root.name}.*.sealing"):
        remove(folder, root)


def remove(folder: Path, root: Path) -> None:
    """Remove a folder of a cache in the making, so that other processes see it vanish at once; warn where that fails.

    It is for what nobody needs any more, where failing would only cost the disk space.
    """
    grave = _sealing_path(root)
    try:
        folder.rename(grave)
        shutil.rmtree(grave)
    except FileNotFoundError:  # another process was faster
        return
    except OSError as error:
        logger.warning("%s: expected to remove what a finished or stopped writer left, found: %s", folder, error)


def write_cache(
    folder: Path,
    key: str,
    fingerprint: Fingerprint,
    build: Mapping[str, Any],
    plans: Mapping[str, ArrayPlan],
    rows_of: RowsOfArray,
    renew: Callable[[], None],
) -> None:
    """Write and fsync a whole cache, its manifest last.

    Args:
        folder: an empty folder.
        key: the cache's key.
        fingerprint: what the rows mean.
        build: how they were made.
        plans: the arrays to write.
        rows_of: returns rows start:stop of an array, by name.
        renew: called after every file: the work goes on.

    Raises:
        FileNotFoundError: another process removed the folder, or the blocks that the rows come from.
    """
    writer = _Writer(folder, renew)
    _write_zarr(writer, key, fingerprint, plans, rows_of)
    writer.write("build.json", canonical_json(dict(build)))
    writer.write("fingerprint.json", canonical_json(fingerprint))
    writer.sync()
    write_durably(folder / "manifest.json", manifest_bytes(key, writer.listed))


def publish(folder: Path, root: Path) -> None:
    """Give a finished cache its name, and fsync that.

    Raises:
        OSError: there is a cache already, or the folder is gone.
    """
    folder.rename(root)
    sync(root.parent)


class _Writer:
    """Writes files below a folder, each once, and knows the size and digest of each."""

    def __init__(self, folder: Path, renew: Callable[[], None]) -> None:
        self.folder, self.listed = folder, dict[str, ListedFile]()
        self._folders, self._renew = {folder: None}, renew

    def write(self, name: str, content: bytes) -> None:
        """Write a new file and list it."""
        path = self.folder / name
        self._make(path.parent)
        with path.open("xb") as file:
            share(file.fileno(), path.parent)
            file.write(content)
        self.listed[name] = ListedFile(len(content), hashlib.sha256(content).hexdigest())
        self._renew()

    def sync(self) -> None:
        """Fsync all files, then all folders."""
        for path in (*(self.folder / name for name in self.listed), *self._folders):
            sync(path)
            self._renew()

    def _make(self, folder: Path) -> None:
        """Make a folder and those above it, but never the one all this lies in, which others may have removed."""
        if folder not in self._folders:
            self._make(folder.parent)
            make_folder(folder)
            self._folders[folder] = None


def _write_zarr(
    writer: _Writer, key: str, fingerprint: Fingerprint, plans: Mapping[str, ArrayPlan], rows_of: RowsOfArray
) -> None:
    attributes = {
        "schema": SCHEMA,
        "key": key,
        "top_k": fingerprint["objective"]["top_k"],
        "vocab_size": fingerprint["vocab_size"],
        "storage": dict(fingerprint["storage"]),
    }
    encoded: dict[str, Any] = {}
    store = MemoryStore(encoded)
    zarr.create_group(store=store, zarr_format=3, attributes=attributes)
    for folder in sorted({name.partition("/")[0] for name in plans}):
        zarr.create_group(store=store, path=folder, zarr_format=3)
    for name, plan in plans.items():
        _create_array(store, name, plan)
    for path, content in encoded.items():
        writer.write(f"{ZARR}/{path}", content.to_bytes())
    for name, plan in plans.items():
        (chunk_rows, *_), (shard_rows, *_) = chunk_and_shard(plan)
        stored = StoredArray(plan.dtype, plan.shape, chunk_rows, shard_rows)
        for shard, path in enumerate(stored.shard_names(name)):
            start = shard * shard_rows
            rows = rows_of(name, start, min(start + shard_rows, plan.shape[0]))
            writer.write(path, encode_shard(rows, chunk_rows, shard_rows // chunk_rows, _fill_value(plan)))


def _fill_value(plan: ArrayPlan) -> Any:
    dtype = np.dtype(plan.dtype)
    return np.nan if dtype.kind == "f" else np.iinfo(dtype).max


def _create_array(store: MemoryStore, name: str, plan: ArrayPlan) -> None:
    dtype = np.dtype(plan.dtype)
    chunks, shards = chunk_and_shard(plan)
    blosc = BloscCodec(typesize=dtype.itemsize, cname="zstd", clevel=COMPRESSION_LEVEL, shuffle="bitshuffle")
    zarr.create_array(
        store=store,
        name=name,
        shape=plan.shape,
        dtype=dtype,
        chunks=chunks,
        shards=shards,
        filters=None,
        compressors=[blosc, Crc32cCodec()],
        fill_value=_fill_value(plan),
        zarr_format=3,
    )


def _sealing_path(root: Path) -> Path:
    return root.with_name(f"{root.name}.{uuid.uuid4().hex}.sealing")
