"""Reference pools: named sets of irrelevant images, read from a folder, and the draw of references from them.

A pool's identity is the sorted list of its images' digests, so two folders with the same pictures are one pool. A draw
is a pure function of (seed, row key, pool): the same answer gets the same references on any machine, in any order.
"""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .example import DataError, EncodedImage, canonical_json

_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
_MAX_IMAGE_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Pool:
    """A reference pool: its images in the order of their digests."""

    name: str
    images: tuple[EncodedImage, ...]

    @property
    def digest(self) -> str:
        """Identity of the pool: digest of its sorted image digests."""
        return hashlib.sha256(canonical_json([image.sha256 for image in self.images])).hexdigest()


def make_pool(name: str, images: Sequence[EncodedImage]) -> Pool:
    """Return a pool of distinct images in the order of their digests."""
    distinct = {image.sha256: image for image in images}
    return Pool(name, tuple(distinct[digest] for digest in sorted(distinct)))


def read_pool(folder: Path) -> Pool:
    """Read every picture of a folder (not its subfolders) as a reference pool.

    Raises:
        DataError: there is no such folder, it holds no picture, or a picture is larger than 64 MiB.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: expected a folder of reference images, found none. Name one with --pool.")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES and path.is_file())
    if not paths:
        raise DataError(f"{folder}: expected pictures ({', '.join(sorted(_SUFFIXES))}), found none. Name another folder.")
    for path in paths:
        if path.stat().st_size > _MAX_IMAGE_BYTES:
            raise DataError(f"{path}: expected a picture of at most 64 MiB, found {path.stat().st_size} bytes. Reduce it.")
    return make_pool(folder.name, [EncodedImage(path.read_bytes(), str(path)) for path in paths])


def draw_references(row_key: bytes, pool: Pool, *, seed: int, num_references: int, shared: bool) -> tuple[int, ...]:
    """Return the pool indices of one example's references, in increasing order.

    With `shared` every example gets the same draw, so the row key plays no part.
    """
    if num_references > len(pool.images):
        raise DataError(
            f"pool {pool.name}: expected at least {num_references} images for --num-references {num_references}, "
            f"found {len(pool.images)}. Ask for fewer, or name a larger pool."
        )
    purpose = b"shared" if shared else row_key
    digest = hashlib.sha256(f"{seed}/{pool.digest}/".encode() + purpose).digest()
    drawn = random.Random(int.from_bytes(digest, "big")).sample(range(len(pool.images)), num_references)
    return tuple(sorted(drawn))
