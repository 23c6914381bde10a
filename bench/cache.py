"""The four ways to store rows that `viker bench cache` compares: write them, open, load ready to train, one example.

Each is written as somebody would without viker: `numpy.savez_compressed`; one `.npy` an array, read through a memory
map; Parquet with a fixed-size list a row, zstd, read back through Arrow. All are flushed to disk, as a cache is.
Loading ends with the same `Rows`, log-probabilities widened to float32; only the cache checks what it read.
"""

# N answer tokens, K kept

import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..precompute.cache import TeacherCache, make_fingerprint
from ..precompute.reading.rows import Rows, as_rows
from ..precompute.writing.store import CacheBuilder, Sample

Arrays = Mapping[str, NDArray[Any]]

ROWS_PER_GROUP = 32768


class Format(NamedTuple):
    """One way to store rows; what `prepare` returns is built before the clock starts."""

    prepare: Callable[[Arrays, int, int], Any]
    write: Callable[[Path, Any], None]
    open: Callable[[Path], Any]
    load: Callable[[Any], Rows]
    example: Callable[[Any, int, int], Rows]


class Prepared(NamedTuple):
    """Rows and the identity a cache gives them."""

    arrays: Arrays
    fingerprint: dict[str, Any]
    samples: list[Sample]


def bare_fingerprint(row_keys: Collection[bytes], *, top_k: int, vocab_size: int, logprob_dtype: str) -> dict[str, Any]:
    """Return the fingerprint of rows that are nobody's: no weights, no references."""
    return make_fingerprint(
        {"weights": "", "tokenizer": "", "processor": "", "rendering": {}},
        {
            "intervention": {"kind": "self", "answers": "own"},
            "draw": {"policy": "none", "seed": 0, "num_references": 0},
            "pool": None,
        },
        top_k=top_k, vocab_size=vocab_size, teacher_dtype="float32", logprob_dtype=logprob_dtype, row_keys=row_keys,
    )  # fmt: skip


def _prepare_cache(arrays: Arrays, vocab_size: int, rows_per_example: int) -> Prepared:
    num_rows = len(arrays["token/entropy"])
    keys = [index.to_bytes(16, "big") for index in range(num_rows // rows_per_example)]
    fingerprint = bare_fingerprint(
        keys, top_k=arrays["token/kept_id"].shape[1], vocab_size=vocab_size,
        logprob_dtype=str(arrays["token/kept_logprob"].dtype),
    )  # fmt: skip
    return Prepared(arrays, fingerprint, [Sample(key, bytes(16), 0, rows_per_example) for key in keys])


def _write_cache(place: Path, prepared: Prepared) -> None:
    """Stage every block and seal, as `viker precompute` does after the teacher."""
    builder = CacheBuilder(place, prepared.fingerprint, {}, prepared.samples)
    done = 0
    for block in range(len(builder.blocks)):
        builder.claim(block)
        rows = slice(done, done + builder.num_rows(block))
        builder.write_block(
            block, {name.removeprefix("token/"): array[rows] for name, array in prepared.arrays.items()}
        )
        done = rows.stop
    builder.assemble()


def _open_cache(place: Path) -> TeacherCache:
    (manifest,) = place.glob("*/manifest.json")
    return TeacherCache.open(manifest.parent)


def _example_of_cache(cache: TeacherCache, start: int, num_rows: int) -> Rows:
    return cache.rows_of(start // num_rows)


def _plain(arrays: Arrays, _vocab_size: int, _rows_per_example: int) -> Arrays:
    return {name.removeprefix("token/"): array for name, array in arrays.items()}


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def _rows(arrays: Mapping[str, NDArray[Any]]) -> Rows:
    return as_rows({f"token/{name}": array for name, array in arrays.items()})


def _write_npz(place: Path, arrays: Arrays) -> None:
    named: dict[str, Any] = dict(arrays)
    np.savez_compressed(place / "rows.npz", **named)
    _flush(place / "rows.npz")


def _open_npz(place: Path) -> Any:
    return np.load(place / "rows.npz", allow_pickle=False)


def _load_npz(archive: Any) -> Rows:
    return _rows({name: archive[name] for name in archive.files})


def _example_of_npz(archive: Any, start: int, num_rows: int) -> Rows:
    return _rows({name: archive[name][start : start + num_rows] for name in archive.files})


def _write_npy(place: Path, arrays: Arrays) -> None:
    for name, array in arrays.items():
        np.save(place / f"{name}.npy", array, allow_pickle=False)
        _flush(place / f"{name}.npy")


def _open_npy(place: Path) -> dict[str, NDArray[Any]]:
    return {path.stem: np.load(path, mmap_mode="r", allow_pickle=False) for path in place.glob("*.npy")}


def _load_npy(maps: Arrays) -> Rows:
    return _rows({name: np.array(array) for name, array in maps.items()})


def _example_of_npy(maps: Arrays, start: int, num_rows: int) -> Rows:
    return _rows({name: np.array(array[start : start + num_rows]) for name, array in maps.items()})


def _write_parquet(place: Path, arrays: Arrays) -> None:
    columns = {
        name: pa.array(array)
        if array.ndim == 1
        else pa.FixedSizeListArray.from_arrays(pa.array(array.ravel()), array.shape[1])
        for name, array in arrays.items()
    }
    pq.write_table(pa.table(columns), place / "rows.parquet", compression="zstd", row_group_size=ROWS_PER_GROUP)
    _flush(place / "rows.parquet")


def _open_parquet(place: Path) -> Any:
    return pq.ParquetFile(place / "rows.parquet")


def _load_parquet(file: Any) -> Rows:
    return _rows_of_table(file.read())


def _example_of_parquet(file: Any, start: int, num_rows: int) -> Rows:
    group, first = divmod(start, ROWS_PER_GROUP)
    groups = range(group, min(file.num_row_groups, -(-(start + num_rows) // ROWS_PER_GROUP)))
    return _rows_of_table(file.read_row_groups(list(groups)).slice(first, num_rows))


def _rows_of_table(table: Any) -> Rows:
    arrays = {}
    for name in table.column_names:
        column = table[name].combine_chunks()
        if pa.types.is_fixed_size_list(column.type):
            arrays[name] = column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)
        else:
            arrays[name] = column.to_numpy(zero_copy_only=False)
    return _rows(arrays)


FORMATS = {
    "viker": Format(_prepare_cache, _write_cache, _open_cache, TeacherCache.load, _example_of_cache),
    "npz": Format(_plain, _write_npz, _open_npz, _load_npz, _example_of_npz),
    "npy": Format(_plain, _write_npy, _open_npy, _load_npy, _example_of_npy),
    "parquet": Format(_plain, _write_parquet, _open_parquet, _load_parquet, _example_of_parquet),
}
