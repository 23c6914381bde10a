"""Shards are encoded as Zarr encodes them, to the byte."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import zarr
from viker.precompute.cache import TeacherCache
from viker.precompute.reading.layout import ArrayPlan, chunk_and_shard
from viker.precompute.writing.shards import encode_shard
from viker.tests.cache_samples import make_cache

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("lengths", [[3, 2, 1], [700] * 30])
def test_zarr_writes_the_same_bytes(tmp_path, lengths):
    cache = TeacherCache.open(make_cache(tmp_path, lengths))
    for name in cache.plans:
        ours = cache.root / "cache.zarr" / name
        array = zarr.open_array(store=str(ours), mode="r", zarr_format=3)
        again = tmp_path / "again"
        copy = zarr.create_array(
            store=str(again), shape=array.shape, dtype=array.dtype, chunks=array.chunks, shards=array.shards,
            filters=None, compressors=array.compressors, fill_value=array.fill_value, zarr_format=3, overwrite=True,
            config={"write_empty_chunks": True},
        )  # fmt: skip
        copy[...] = array[...]
        assert {path: (again / path).read_bytes() for path in shards_below(again)} == {
            path: (ours / path).read_bytes() for path in shards_below(ours)
        }, name


def shards_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.glob("c/**/*") if path.is_file())


def test_chunks_beyond_the_rows_are_absent_and_the_last_is_filled_up():
    plan = ArrayPlan("float32", (9000,))
    (chunk_rows,), (shard_rows,) = chunk_and_shard(plan)
    rows = np.arange(9000, dtype=np.float32)
    shard = encode_shard(rows, chunk_rows, 4, np.nan)
    index = np.frombuffer(shard[-4 * 16 - 4 : -4], "<u8").reshape(4, 2)
    assert (chunk_rows, shard_rows) == (8192, 16384)
    assert index[0, 0] == 0
    assert index[1, 0] == index[0, 1]
    assert (index[2:] == 2**64 - 1).all()
