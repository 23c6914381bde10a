"""What attackers, disks and careless copies do to a cache, for the tests of its reader."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import google_crc32c
import zarr
from viker.data.example import canonical_json
from viker.precompute.reading.layout import manifest_bytes
from viker.precompute.reading.shards import HEADER
from viker.precompute.writing.blocks import list_files

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

INDEX_OF_ONE = 20  # bytes: offset, length and crc32c of a shard of one chunk


def sign(root: Path) -> None:
    """Make the manifest agree with the files, as an attacker would."""
    key = json.loads((root / "manifest.json").read_bytes())["key"]
    (root / "manifest.json").unlink()
    (root / "manifest.json").write_bytes(manifest_bytes(key, list_files(root)))


def flip(path: Path, place: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


def exchange(first: Path, second: Path) -> None:
    """Let two files or folders change places."""
    aside = first.with_name("aside")
    first.rename(aside)
    second.rename(first)
    aside.rename(second)


def change_metadata(root: Path, name: str, change: Callable[[dict[str, Any]], object]) -> None:
    path = root / "cache.zarr" / name / "zarr.json"
    metadata = json.loads(path.read_bytes())
    change(metadata)
    path.write_text(json.dumps(metadata))
    sign(root)


def change_values(root: Path, name: str, index: Any, value: object) -> None:
    array = zarr.open_array(store=str(root / "cache.zarr" / name), mode="r+", zarr_format=3)
    array[index] = value
    sign(root)


def with_crc(content: bytes) -> bytes:
    return content + google_crc32c.value(content).to_bytes(4, "little")


def one_chunk_shard(chunk: bytes) -> bytes:
    """A shard of one stored chunk, whose checksums are right whatever the chunk holds."""
    stored = with_crc(chunk)
    return stored + with_crc((0).to_bytes(8, "little") + len(stored).to_bytes(8, "little"))


def blosc_header(content: bytes, **changes: int) -> bytes:
    """A blosc buffer with fields of its header changed."""
    names = ("version", "compressor", "flags", "typesize", "decoded", "block", "stored")
    fields = dict(zip(names, HEADER.unpack_from(content), strict=True)) | changes
    return HEADER.pack(*fields.values()) + content[HEADER.size :]


def first_chunk(shard: bytes) -> bytes:
    """The blosc buffer of a shard of one chunk, without its checksum."""
    return shard[:-INDEX_OF_ONE][:-4]


def sign_as(root: Path, fingerprint: object) -> None:
    """Give a cache another fingerprint, and with it another key, everywhere they are repeated."""
    content = canonical_json(fingerprint)
    key = hashlib.sha256(content).hexdigest()
    (root / "fingerprint.json").write_bytes(content)
    group = json.loads((root / "cache.zarr/zarr.json").read_bytes())
    group["attributes"]["key"] = key
    (root / "cache.zarr/zarr.json").write_text(json.dumps(group))
    (root / "manifest.json").unlink()
    (root / "manifest.json").write_bytes(manifest_bytes(key, list_files(root)))
