"""Hold the metadata of every array against what the fingerprint implies, before anything is decoded or allocated.

Zarr by itself believes what it reads: a missing shard reads as fill values, a 16-byte shape allocates petabytes, a v2
store may name pickle, codecs are looked up among everything installed. So each `zarr.json` must be the one that the
writer writes, field by field; free are only the chunking, the compression level and the block size, within bounds.
Spellings that the Zarr specification calls equal (an empty configuration, a default left out) are equal here.

The central check is one equality: the files that the array shapes imply are exactly the files the manifest lists, which
refuses missing shards, stray arrays and absurd shapes alike.
"""

import hashlib
import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...data.example import canonical_json
from .layout import CHUNK_CAP, SCHEMA, SHARD_CAP, ZARR, ArrayPlan, ListedFile, array_plans, expect
from .untrusted import JSON_CAP, json_value, read_listed

MOST_CHUNKS = 1 << 16  # of one shard: its index takes 16 bytes each
CHUNK_OVERHEAD = 20  # most bytes a stored chunk exceeds its decoded ones by: blosc's header and a crc32c
INDEX_ENTRY, CRC_BYTES = 16, 4
FREE_BYTES = 24 << 20  # decoded bytes of a cache that need no stored ones to show for
INFLATION_CAP = 100  # decoded bytes per stored one beyond them: real rows have 2, rows that 500 people share have 60
FILES = frozenset({"build.json", "fingerprint.json"})


class StoredArray(NamedTuple):
    """An array as it lies on disk: what it is, and the rows of its chunks and shards, which span all columns."""

    dtype: str
    shape: tuple[int, ...]
    chunk_rows: int
    shard_rows: int

    @property
    def row_bytes(self) -> int:
        """Decoded bytes of one step along the first axis."""
        return ArrayPlan(self.dtype, self.shape).row_bytes

    @property
    def chunk_bytes(self) -> int:
        """Decoded bytes of one chunk."""
        return self.chunk_rows * self.row_bytes

    @property
    def index_bytes(self) -> int:
        """Bytes of the index at the end of a shard, its checksum included."""
        return self.shard_rows // self.chunk_rows * INDEX_ENTRY + CRC_BYTES

    def shard_names(self, name: str) -> list[str]:
        """Return the paths of the shards within a cache, in the order of their rows."""
        columns = "/0" * (len(self.shape) - 1)
        shards = math.ceil(self.shape[0] / self.shard_rows)
        return [f"{ZARR}/{name}/c/{shard}{columns}" for shard in range(shards)]

    def chunks_of(self, shard: int) -> int:
        """Return how many chunks a shard holds; the last one may hold fewer than the others."""
        rows = min(self.shard_rows, self.shape[0] - shard * self.shard_rows)
        return math.ceil(rows / self.chunk_rows)


def check_arrays(root: Path, fingerprint: dict[str, Any], files: Mapping[str, ListedFile]) -> dict[str, StoredArray]:
    """Return the arrays of a cache after checking their metadata against the fingerprint and the listed files.

    Raises:
        CacheError: when an array is missing, stray, or not exactly what the writer writes for this fingerprint, or when
            far more would be decoded than is stored.
    """
    plans = array_plans(fingerprint, *_lengths(root, fingerprint, files))
    _check_groups(root, fingerprint, files, {name.split("/")[0] for name in plans})
    arrays = {name: _check_array(root, name, plan, files) for name, plan in plans.items()}
    implied = FILES | {f"{ZARR}/{name.split('/')[0]}/zarr.json" for name in plans} | {f"{ZARR}/zarr.json"}
    implied |= {f"{ZARR}/{name}/zarr.json" for name in plans}
    implied |= set(itertools.chain.from_iterable(array.shard_names(name) for name, array in arrays.items()))
    difference = sorted(files.keys() ^ implied)
    expect(not difference, root / "manifest.json", "the files that its arrays imply", f"a difference: {difference[:5]}")
    _check_inflation(root, arrays, files)
    return arrays


def _lengths(root: Path, fingerprint: dict[str, Any], files: Mapping[str, ListedFile]) -> tuple[int, int, int]:
    """Return n, N and M as the metadata of one array of each axis states them."""
    axes = ["sample/key", "token/entropy"] + (["reference/sha256"] if fingerprint["pool"] is not None else [])
    lengths = []
    for name in axes:
        path, value = _metadata(root, name, files)
        shape = value.get("shape") if isinstance(value, dict) else None
        expect(_is_shape(shape), path, "an array with a shape of positive numbers", shape)
        assert shape is not None
        lengths.append(shape[0])
    n, N, M = (*lengths, 0)[:3]
    return n, N, M


def _metadata(root: Path, name: str, files: Mapping[str, ListedFile]) -> tuple[Path, Any]:
    listed = f"{ZARR}/{name}/zarr.json" if name else f"{ZARR}/zarr.json"
    return root / listed, json_value(root / listed, read_listed(root, listed, files, JSON_CAP))


def _is_shape(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(type(size) is int and 0 < size < 2**48 for size in value)


def _check_groups(root: Path, fingerprint: dict[str, Any], files: Mapping[str, ListedFile], folders: set[str]) -> None:
    """Check that the group repeats what the fingerprint says, and that its folders are plain groups."""
    repeated = {
        "schema": SCHEMA,
        "key": hashlib.sha256(canonical_json(fingerprint)).hexdigest(),
        "top_k": fingerprint["objective"]["top_k"],
        "vocab_size": fingerprint["vocab_size"],
        "storage": fingerprint["storage"],
    }
    for folder, attributes in [("", repeated), *((folder, {}) for folder in sorted(folders))]:
        path, value = _metadata(root, folder, files)
        wanted = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
        found = {"attributes": {}, **value} if isinstance(value, dict) else value
        expect(_equal(found, wanted), path, f"a Zarr v3 group with the attributes {attributes}", value)


def _check_array(root: Path, name: str, plan: ArrayPlan, files: Mapping[str, ListedFile]) -> StoredArray:
    """Return an array after checking its metadata, and that its shards can be as large as they are listed."""
    path, value = _metadata(root, name, files)
    found = _spelled_out(value) if isinstance(value, dict) else value
    free = _free_fields(found)
    expect(free is not None, path, "a sharded Zarr v3 array in bounded chunks of whole rows", value)
    assert free is not None
    wanted = _array_metadata(plan, *free)
    differing = sorted(key for key in wanted.keys() | found.keys() if not _equal(found.get(key), wanted.get(key)))
    both = {key: (wanted.get(key), found.get(key)) for key in differing}
    expect(not differing, path, "; ".join(f"{key} {both[key][0]}" for key in both), [both[key][1] for key in both])
    array = StoredArray(*plan, *free[:2])
    expect(array.chunk_bytes <= CHUNK_CAP, path, f"chunks of at most {CHUNK_CAP} bytes", array.chunk_bytes)
    shard_bytes = array.shard_rows * array.row_bytes
    expect(shard_bytes <= SHARD_CAP, path, f"shards of at most {SHARD_CAP} bytes", shard_bytes)
    _check_shard_sizes(root, name, array, files)
    return array


def _free_fields(found: Any) -> tuple[int, int, int, int] | None:
    """Return rows of a chunk, rows of a shard, level and block size, if they are there and within bounds."""
    try:
        sharding = found["codecs"][0]["configuration"]
        blosc = sharding["codecs"][1]["configuration"]
        chunk, shard = sharding["chunk_shape"][0], found["chunk_grid"]["configuration"]["chunk_shape"][0]
        level, block = blosc["clevel"], blosc["blocksize"]
    except (KeyError, TypeError, IndexError):
        return None
    if not (_is_shape([chunk]) and _is_shape([shard]) and type(level) is int and type(block) is int):
        return None
    sound = shard % chunk == 0 and shard // chunk <= MOST_CHUNKS and 0 <= level <= 9 and 0 <= block <= CHUNK_CAP
    return (chunk, shard, level, block) if sound else None


def _array_metadata(plan: ArrayPlan, chunk_rows: int, shard_rows: int, level: int, block: int) -> dict[str, Any]:
    """Return the zarr.json of an array as the writer writes it, with all defaults spelled out."""
    dtype, width = np.dtype(plan.dtype), list(plan.shape[1:])
    little: dict[str, Any] = {"name": "bytes", "configuration": {"endian": "little"}}
    single: dict[str, Any] = {"name": "bytes", "configuration": {}}  # one byte has no order
    blosc = {
        "typesize": dtype.itemsize,
        "cname": "zstd",
        "clevel": level,
        "shuffle": "bitshuffle",
        "blocksize": block,
    }
    checksum: dict[str, Any] = {"name": "crc32c", "configuration": {}}
    sharding = {
        "chunk_shape": [chunk_rows, *width],
        "codecs": [
            single if dtype.itemsize == 1 else little,
            {"name": "blosc", "configuration": blosc},
            checksum,
        ],
        "index_codecs": [little, checksum],
        "index_location": "end",
    }
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(plan.shape),
        "data_type": plan.dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [shard_rows, *width]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": "NaN" if dtype.kind == "f" else int(np.iinfo(dtype).max),
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        "attributes": {},
        "storage_transformers": [],
    }


def _spelled_out(value: dict[str, Any]) -> dict[str, Any]:
    """Return array metadata with the defaults of the Zarr specification spelled out, as far as it has the shape."""
    whole = {"attributes": {}, "storage_transformers": [], **value}
    if whole.get("dimension_names", 0) is None:
        del whole["dimension_names"]
    try:
        (sharding,) = whole["codecs"]
        inner = {"index_location": "end", **sharding["configuration"]}
        for chain in ("codecs", "index_codecs"):
            inner[chain] = [{"configuration": {}, **codec} for codec in inner[chain]]
    except (KeyError, TypeError, ValueError):
        return whole
    return {**whole, "codecs": [{**sharding, "configuration": inner}]}


def _equal(found: Any, wanted: Any) -> bool:
    """Whether two values are the same JSON: 1, 1.0 and true are not."""
    return canonical_json(found) == canonical_json(wanted)


def _check_shard_sizes(root: Path, name: str, array: StoredArray, files: Mapping[str, ListedFile]) -> None:
    """Check that every shard is listed, with no more bytes than its chunks can take; a hole is no chunk."""
    steps = math.ceil(array.shape[0] / array.shard_rows)
    listed = sum(file.startswith(f"{ZARR}/{name}/c/") for file in files)
    expect(listed == steps, root / ZARR / name, f"{steps} shards for shape {list(array.shape)}", listed)
    for shard, file in enumerate(array.shard_names(name)):
        expect(file in files, root / file, "this shard in the manifest", "none")
        most = array.chunks_of(shard) * (array.chunk_bytes + CHUNK_OVERHEAD) + array.index_bytes
        expect(files[file].size <= most, root / file, f"at most {most} bytes in this shard", files[file].size)


def _check_inflation(root: Path, arrays: Mapping[str, StoredArray], files: Mapping[str, ListedFile]) -> None:
    decoded = sum(array.shape[0] * array.row_bytes for array in arrays.values())
    stored = sum(file.size for name, file in files.items() if not name.endswith(".json"))
    most = FREE_BYTES + INFLATION_CAP * stored
    expect(decoded <= most, root, f"at most {most} decoded bytes from {stored} stored ones", decoded)
