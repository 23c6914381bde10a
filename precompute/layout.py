"""Where every file and array of a teacher cache lies, and the checks a directory passes before it is believed.

A cache may come from a stranger, and Zarr by itself believes what it reads: a missing shard reads as fill values, a
16-byte shape allocates petabytes, a v2 store may name pickle, codecs are looked up among everything installed. So the
manifest and each `zarr.json` are parsed here first, as plain capped JSON, and are compared with what the fingerprint
implies. The central check is one equality: the files that the array shapes imply are exactly the files the manifest
lists, which refuses missing shards, stray arrays and absurd shapes alike. Decoded values are `cache.py`'s to check,
checksums of the large files `verify.py`'s. The prose of the format is the docstring of `cache.py`.

    ValueError
      CacheError              a directory that is damaged, hostile or not a cache
        CacheMismatch         a sound cache of something else: every differing field, with both values
        RowsNotCovered        a cache of the right thing that lacks some of the rows asked for
"""

import hashlib
import itertools
import json
import math
import os
import stat
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..data.example import canonical_json

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
INNER_CODECS = frozenset({"bytes", "blosc", "zstd", "crc32c"})

MANIFEST_CAP = 64 << 20  # bytes: a million-file manifest is 150 MB, and no cache has a thousandth of that
JSON_CAP = 1 << 20  # bytes of one zarr.json
CHUNK_CAP = 64 << 20  # decoded bytes of one chunk
SHARD_CAP = 1 << 30  # decoded bytes of one shard
INFLATION_CAP = 1000  # decoded bytes per stored byte of an array; constant arrays reach 60
SHARD_ROWS = 32768


class CacheError(ValueError):
    """A directory that is damaged, hostile or not a cache."""


class CacheMismatch(CacheError):
    """A sound cache of something else: lists every differing field with both values."""


class RowsNotCovered(CacheError):
    """A cache of the right thing that lacks some of the rows asked for."""


class ListedFile(NamedTuple):
    """One line of the manifest."""

    size: int
    sha256: str


class ArrayPlan(NamedTuple):
    """What an array must be: its dtype and its shape."""

    dtype: str
    shape: tuple[int, ...]


def expect(holds: bool, where: Path | str, expected: str, found: object) -> None:
    """Raise CacheError unless a property of a cache directory holds.

    Raises:
        CacheError: with what was expected, what was found and what to do.
    """
    if not holds:
        raise CacheError(
            f"{where}: expected {expected}, found {str(found)[:200]}. The cache is damaged or was not made by viker: "
            "remove it, then fetch it again or rebuild it with `viker precompute`."
        )


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
    row_bytes = math.prod(width) * np.dtype(plan.dtype).itemsize
    chunk_rows = min(1024 if width else 8192, rows, max(1, CHUNK_CAP // 4 // row_bytes))
    shard_rows = chunk_rows * min(SHARD_ROWS // (1024 if width else 8192), math.ceil(rows / chunk_rows))
    return (chunk_rows, *width), (shard_rows, *width)


def manifest_bytes(key: str, files: dict[str, ListedFile]) -> bytes:
    """Return the canonical bytes of manifest.json."""
    lines = "".join(sorted(f"{file.sha256}  {path}\n" for path, file in files.items()))
    listed = [{"path": path, "size": file.size, "sha256": file.sha256} for path, file in sorted(files.items())]
    root = hashlib.sha256(lines.encode()).hexdigest()
    return canonical_json({"schema": SCHEMA, "key": key, "files": listed, "root_sha256": root}) + b"\n"


def parse_json(path: Path, cap: int) -> tuple[bytes, Any]:
    """Return the bytes of a JSON file and their value.

    Raises:
        CacheError: when the file is missing, not plain, larger than the cap or not JSON.
    """
    try:
        status = path.lstat()
        expect(stat.S_ISREG(status.st_mode), path, "a plain file", "a link or a special file")
        expect(status.st_size <= cap, path, f"at most {cap} bytes", status.st_size)
        raw = path.read_bytes()
        return raw, json.loads(raw)
    except FileNotFoundError:
        raise CacheError(f"{path}: expected this file of a complete teacher cache, found none.") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CacheError(f"{path}: expected JSON, found {error}.") from error


def read_manifest(root: Path) -> tuple[str, dict[str, ListedFile]]:
    """Return the key of a cache and the files its manifest lists.

    Raises:
        CacheError: when the manifest is missing, or is not byte for byte what its own content implies.
    """
    path = root / "manifest.json"
    raw, value = parse_json(path, MANIFEST_CAP)
    try:
        files = {file["path"]: ListedFile(int(file["size"]), str(file["sha256"])) for file in value["files"]}
        key, schema = str(value["key"]), value["schema"]
    except (KeyError, TypeError, ValueError) as error:
        raise CacheError(f"{path}: expected a manifest of {SCHEMA}, found another structure ({error!r}).") from error
    expect(schema == SCHEMA, path, f"schema {SCHEMA}", schema)
    expect(all(isinstance(name, str) for name in files), path, "paths as text", "another type")
    expect(raw == manifest_bytes(key, files), path, "canonical bytes and the root digest of its files", "others")
    return key, files


def check_files(root: Path, files: dict[str, ListedFile]) -> None:
    """Check that the listed files are there as listed, and that no array holds another.

    Sizes are compared for all of them, digests for the small ones.

    Raises:
        CacheError: naming the first file that is missing, a link, unlisted or different.
    """
    for name in files:
        parts = name.split("/")
        plain = not {"", ".", ".."} & set(parts) and "\\" not in name and "\0" not in name
        expect(plain, root, "relative paths without `..` in the manifest", name)
    found = plain_files(root)
    for name, file in files.items():
        size = found.get(name)
        expect(size == file.size, root / name, f"{file.size} bytes", "no file" if size is None else f"{size} bytes")
        if name.endswith(".json"):
            digest = hashlib.sha256((root / name).read_bytes()).hexdigest()
            expect(digest == file.sha256, root / name, f"sha256 {file.sha256}", digest)
    stray = sorted(name for name in found.keys() - files.keys() if name.startswith(f"{ZARR}/"))
    expect(not stray, root, "no file in the arrays that the manifest does not list", stray)


def plain_files(root: Path) -> dict[str, int]:
    """Return the sizes of all files below a directory by relative path.

    Raises:
        CacheError: when anything below it is a symbolic link or a special file.
    """
    sizes = {}
    for folder, subfolders, names in os.walk(root):
        for name in itertools.chain(subfolders, names):
            path = Path(folder, name)
            status = path.lstat()
            plain = stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)
            expect(plain, path, "plain files and folders only", "a link or a special file")
            if stat.S_ISREG(status.st_mode):
                sizes[path.relative_to(root).as_posix()] = status.st_size
    return sizes


def check_arrays(root: Path, fingerprint: dict[str, Any], files: dict[str, ListedFile]) -> dict[str, ArrayPlan]:
    """Return the arrays of a cache after checking their metadata against the fingerprint and the listed files.

    Raises:
        CacheError: when an array is missing, stray, of another shape or dtype, uses a codec outside the allow-list,
            or could decode to far more than is stored.
    """
    plans = array_plans(fingerprint, *_counts(root, fingerprint))
    implied = {f"{ZARR}/zarr.json"} | {f"{ZARR}/{name.split('/')[0]}/zarr.json" for name in plans}
    for group in sorted(implied):
        _, value = parse_json(root / group, JSON_CAP)
        is_group = isinstance(value, dict) and value.get("zarr_format") == 3 and value.get("node_type") == "group"
        expect(is_group and "consolidated_metadata" not in value, root / group, "a plain Zarr v3 group", value)
    for name, plan in plans.items():
        implied |= _check_array(root, name, plan, files)
    listed = {name for name in files if name.startswith(f"{ZARR}/")}
    expect(listed == implied, root, "the files that its arrays imply", f"a difference: {sorted(listed ^ implied)[:5]}")
    return plans


def _counts(root: Path, fingerprint: dict[str, Any]) -> tuple[int, int, int]:
    """Return n, N and M as the metadata of one array of each axis states them."""
    axes = ["sample/key", "token/entropy"] + (["reference/sha256"] if fingerprint["pool"] is not None else [])
    lengths = []
    for name in axes:
        path = root / ZARR / name / "zarr.json"
        _, value = parse_json(path, JSON_CAP)
        shape = value.get("shape") if isinstance(value, dict) else None
        expect(_is_shape(shape), path, "a shape of positive numbers", shape)
        assert shape is not None
        lengths.append(shape[0])
    n, N, M = (*lengths, 0)[:3]
    return n, N, M


def _is_shape(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(type(size) is int and 0 < size < 2**48 for size in value)


def _check_array(root: Path, name: str, plan: ArrayPlan, files: dict[str, ListedFile]) -> set[str]:
    """Check one array's metadata and return the files it implies."""
    folder = f"{ZARR}/{name}"
    path = root / folder / "zarr.json"
    _, value = parse_json(path, JSON_CAP)
    try:
        shard, chunk = _chunking(value)
        codecs = value["codecs"][0]["configuration"]
        used = {codec["name"] for codec in codecs["codecs"] + codecs["index_codecs"]}
        dtype, shape = value["data_type"], value["shape"]
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise CacheError(f"{path}: expected a sharded Zarr v3 array, found another structure ({error!r}).") from error
    expect((dtype, shape) == (plan.dtype, list(plan.shape)), path, f"{plan.dtype} {list(plan.shape)}", (dtype, shape))
    expect(used <= INNER_CODECS and len(value["codecs"]) == 1, path, f"codecs among {sorted(INNER_CODECS)}", used)
    itemsize = np.dtype(plan.dtype).itemsize
    fits = len(shard) == len(chunk) == len(shape) and all(s % c == 0 for s, c in zip(shard, chunk, strict=True))
    fits = fits and math.prod(shard) // math.prod(chunk) <= 2**16
    small = math.prod(chunk) * itemsize <= CHUNK_CAP and math.prod(shard) * itemsize <= SHARD_CAP
    expect(fits and small, path, "chunks of at most 64 MiB in shards of at most 1 GiB", (chunk, shard))
    stored = {file: listed.size for file, listed in files.items() if file.startswith(f"{folder}/c/")}
    grid = [math.ceil(size / step) for size, step in zip(shape, shard, strict=True)]
    expect(math.prod(grid) == len(stored), path, f"{math.prod(grid)} shards for shape {shape}", len(stored))
    decoded = math.prod(shape) * itemsize
    expect(decoded <= INFLATION_CAP * sum(stored.values()), path, "stored data for its shape", f"{decoded} bytes of it")
    shards = itertools.product(*(range(steps) for steps in grid))
    return {f"{folder}/zarr.json"} | {f"{folder}/c/" + "/".join(map(str, place)) for place in shards}


def _chunking(value: Any) -> tuple[list[int], list[int]]:
    """Return the shard and chunk shapes of an array's metadata; any deviation is a ValueError."""
    shard = value["chunk_grid"]["configuration"]["chunk_shape"]
    chunk = value["codecs"][0]["configuration"]["chunk_shape"]
    regular = (value["zarr_format"], value["node_type"], value["chunk_grid"]["name"], value["codecs"][0]["name"])
    if regular != (3, "array", "regular", "sharding_indexed") or value.get("storage_transformers"):
        raise ValueError(f"{regular}")
    if value["chunk_key_encoding"] != {"name": "default", "configuration": {"separator": "/"}}:
        raise ValueError("chunk keys")
    if not (_is_shape(shard) and _is_shape(chunk)):
        raise ValueError("chunk shape")
    return shard, chunk
