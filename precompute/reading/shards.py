"""Decode arrays from their shards, each byte read once and checked before anything relies on it.

The codec chain of the format is fixed (`metadata.py`), so decoding needs no codec registry: a shard is chunks end to
end and an index, a chunk is a blosc buffer and its crc32c. Blosc believes its header, which states how much to write
and, beyond the end of what it was given, how much to read. So all indices and headers of an array are checked before
memory is taken for it, and again on the bytes that are decoded; and since these are all bytes of the file, its digest
in the manifest is checked on the way. Memory beyond the array itself is one chunk, stored and decoded.
"""

import hashlib
import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import google_crc32c
import numcodecs.blosc
import numpy as np
from numpy.typing import NDArray

from .layout import ListedFile, expect, readable
from .metadata import CHUNK_OVERHEAD, CRC_BYTES, StoredArray

HEADER = struct.Struct("<BBBBIII")  # version, version of the compressor, flags, type size, bytes, block size, stored
BLOSC_VERSION, ZSTD_VERSION = 2, 1
NOT_SPLIT, COPIED = 0x10, 0x02  # flags that a writer may set or not
BITSHUFFLED_ZSTD = 0x84
ABSENT = 2**64 - 1


class Place(NamedTuple):
    """Where a chunk lies in its shard, and which of the shard's chunks it is."""

    offset: int
    length: int
    chunk: int


def read_array(root: Path, name: str, array: StoredArray, files: Mapping[str, ListedFile], dtype: str) -> NDArray[Any]:
    """Return an array of a cache, cast chunk by chunk to a dtype that holds its values.

    Raises:
        CacheError: naming the shard that is not what its index, the headers and checksums of its chunks and the
            manifest say together; or when memory does not suffice.
    """
    shards = array.shard_names(name)
    for shard, file in enumerate(shards):
        _check_headers(root / file, files[file].size, array, shard)
    try:
        values = np.empty(array.shape, dtype)
    except MemoryError:
        expect(False, root, f"memory for {array.shape} values of {name}", "too little")
    for shard, file in enumerate(shards):
        rows = values[shard * array.shard_rows : (shard + 1) * array.shard_rows]
        _decode_shard(root / file, files[file], array, shard, rows)
    return values


def _check_headers(path: Path, size: int, array: StoredArray, shard: int) -> None:
    with _opened(path, size) as descriptor:
        for place in _places(path, descriptor, size, array, shard):
            _check_header(path, _read(path, descriptor, place.offset, HEADER.size), place, array)


def _decode_shard(path: Path, listed: ListedFile, array: StoredArray, shard: int, rows: NDArray[Any]) -> None:
    """Decode the chunks of a shard in the order they lie in, which makes their digests add up to the file's."""
    digest = hashlib.sha256()
    with _opened(path, listed.size) as descriptor:
        places = _places(path, descriptor, listed.size, array, shard)
        for place in places:
            stored = _read(path, descriptor, place.offset, place.length)
            digest.update(stored)
            part = rows[place.chunk * array.chunk_rows : (place.chunk + 1) * array.chunk_rows]
            part[...] = _decode_chunk(path, stored, place, array)[: len(part)]
        digest.update(_read(path, descriptor, listed.size - array.index_bytes, array.index_bytes))
    expect(digest.hexdigest() == listed.sha256, path, f"sha256 {listed.sha256}", digest.hexdigest())


@contextmanager
def _opened(path: Path, size: int) -> Iterator[int]:
    with readable(path):
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(descriptor).st_size
        expect(found == size, path, f"{size} bytes", f"{found} bytes")
        yield descriptor
    finally:
        os.close(descriptor)


def _read(path: Path, descriptor: int, offset: int, length: int) -> bytes:
    with readable(path):
        content = os.pread(descriptor, length, offset)
    expect(len(content) == length, path, f"{length} bytes at {offset}", f"{len(content)}")
    return content


def _places(path: Path, descriptor: int, size: int, array: StoredArray, shard: int) -> list[Place]:
    """Return where the chunks of a shard lie, which is end to end from its beginning to its index."""
    start = size - array.index_bytes
    expect(start > 0, path, f"more than the {array.index_bytes} bytes of its index", f"{size} bytes")
    index = _read(path, descriptor, start, array.index_bytes)
    _check_crc(path, "the index of its chunks", index)
    entries = np.frombuffer(index, "<u8", (len(index) - CRC_BYTES) // 8).reshape(-1, 2)
    chunks = array.chunks_of(shard)
    expect(bool((entries[chunks:] == ABSENT).all()), path, f"no chunk beyond its {chunks}", "one")
    expect(bool((entries[:chunks] <= start).all()), path, f"{chunks} chunks in the {start} bytes before its index",
           "one missing or outside")  # fmt: skip
    places = sorted(Place(entry[0], entry[1], chunk) for chunk, entry in enumerate(entries[:chunks].tolist()))
    ends = [0, *(place.offset + place.length for place in places)]
    tiled = [place.offset for place in places] == ends[:-1] and ends[-1] == start
    expect(tiled, path, "chunks end to end from its beginning to its index", "gaps or overlaps")
    return places


def _check_header(path: Path, header: bytes, place: Place, array: StoredArray) -> None:
    """Check that a chunk states exactly the sizes it has, before blosc believes them."""
    most = array.chunk_bytes + CHUNK_OVERHEAD
    expect(CHUNK_OVERHEAD < place.length <= most, path, f"chunk {place.chunk} in {CHUNK_OVERHEAD} to {most} bytes",
           place.length)  # fmt: skip
    version, compressor, flags, typesize, decoded, block, stored = HEADER.unpack_from(header)
    kind = (version, compressor, flags & ~(NOT_SPLIT | COPIED), typesize)
    itemsize = np.dtype(array.dtype).itemsize
    expect(kind == (BLOSC_VERSION, ZSTD_VERSION, BITSHUFFLED_ZSTD, itemsize), path,
           f"chunk {place.chunk} as blosc-zstd-bitshuffle of {itemsize}-byte items", kind)  # fmt: skip
    sizes, wanted = (decoded, stored), (array.chunk_bytes, place.length - CRC_BYTES)
    expect(sizes == wanted, path, f"chunk {place.chunk} to decode to {wanted[0]} bytes from {wanted[1]}", sizes)
    expect(0 < block <= decoded, path, f"chunk {place.chunk} in blocks of at most {decoded} bytes", block)


def _decode_chunk(path: Path, stored: bytes, place: Place, array: StoredArray) -> NDArray[Any]:
    """Return the rows of one chunk, which may be more than the array has."""
    _check_header(path, stored, place, array)
    _check_crc(path, f"chunk {place.chunk}", stored)
    content = _decompressed(stored[:-CRC_BYTES])
    expect(len(content) == array.chunk_bytes, path, f"chunk {place.chunk} to decode to {array.chunk_bytes} bytes",
           f"{len(content)} bytes that blosc makes of it")  # fmt: skip
    dtype = np.dtype(array.dtype).newbyteorder("<")
    return np.frombuffer(content, dtype).reshape(array.chunk_rows, *array.shape[1:])


def _decompressed(stored: bytes) -> bytes:
    """Return what a blosc buffer holds, or nothing where blosc finds it broken."""
    numcodecs.blosc.use_threads = False  # its threads take longer to start than a chunk to decode
    try:
        return bytes(numcodecs.blosc.decompress(stored))
    except (RuntimeError, ValueError, MemoryError):
        return b""


def _check_crc(path: Path, what: str, stored: bytes) -> None:
    found, listed = google_crc32c.value(stored[:-CRC_BYTES]), int.from_bytes(stored[-CRC_BYTES:], "little")
    expect(found == listed, path, f"{what} with crc32c {listed:08x}", f"{found:08x}")
