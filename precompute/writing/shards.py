"""Encode the shards of a cache's arrays: the mirror of `reading/shards.py`, byte for byte what Zarr would write.

Zarr hands every chunk and every codec to a thread of its own; for chunks of 128 KB that costs as much as compressing
them. The chain of codecs is fixed by the format, so a shard is encoded here in one go, and a test holds it to Zarr's
own bytes. Metadata stays Zarr's to write.
"""

# N rows of a shard, V values of a row

import struct
from typing import Any

import google_crc32c
import numcodecs.blosc
import numpy as np
from numpy.typing import NDArray

COMPRESSION_LEVEL = 2  # 3 takes 1.5 times as long and saves 0.7 % of a row
_BITSHUFFLE = 2
_ABSENT = struct.pack("<QQ", 2**64 - 1, 2**64 - 1)


def encode_shard(rows_NV: NDArray[Any], chunk_rows: int, num_chunks: int, fill_value: Any) -> bytes:
    """Return the bytes of a shard: its chunks end to end, and their index.

    Args:
        rows_NV: rows of the array in its storage type, at most as many as the chunks hold.
        chunk_rows: rows of a chunk; the last is filled up with the fill value.
        num_chunks: chunks a whole shard has, which is what its index has room for.
        fill_value: what stands for no row.
    """
    numcodecs.blosc.use_threads = False  # threaded blosc output is not deterministic
    stored, index, offset = [], [], 0
    for start in range(0, len(rows_NV), chunk_rows):
        chunk = _filled(rows_NV[start : start + chunk_rows], chunk_rows, fill_value)
        compressed = numcodecs.blosc.compress(
            chunk, b"zstd", COMPRESSION_LEVEL, _BITSHUFFLE, 0, typesize=chunk.dtype.itemsize
        )
        stored += [compressed, _crc(compressed)]
        index.append(struct.pack("<QQ", offset, len(compressed) + 4))
        offset += len(compressed) + 4
    entries = b"".join(index) + _ABSENT * (num_chunks - len(index))
    return b"".join([*stored, entries, _crc(entries)])


def _filled(chunk_NV: NDArray[Any], chunk_rows: int, fill_value: Any) -> NDArray[Any]:
    """Return a chunk of full length, little-endian and contiguous."""
    dtype = chunk_NV.dtype.newbyteorder("<")
    if len(chunk_NV) == chunk_rows:
        return np.ascontiguousarray(chunk_NV, dtype)
    whole_NV = np.full((chunk_rows, *chunk_NV.shape[1:]), fill_value, dtype)
    whole_NV[: len(chunk_NV)] = chunk_NV
    return whole_NV


def _crc(content: bytes) -> bytes:
    return struct.pack("<I", google_crc32c.value(content))
