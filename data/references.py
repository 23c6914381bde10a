"""Reference pools: named sets of irrelevant images, read from a folder, and the draw of references from them.

A pool's identity is the sorted list of its images' digests, so two folders with the same pictures are one pool. A draw
is a pure function of (seed, row key, pool): the same answer gets the same references on any machine, in any order.
"""

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .example import DataError, EncodedImage, Example, canonical_json
from .halves import half_of, training_questions
from .notices import NOTICES
from .portraits import encode_png, noise_picture, pattern_picture
from .source import Source

_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
_MAX_IMAGE_BYTES = 64 * 1024 * 1024
BUILT_IN = {"patterns": pattern_picture, "noise": noise_picture}
BUILT_IN_SIZE = 48
CELEBRITIES = "celebrities"
OWN_PEOPLE = ("forget", "retain")  # ablations alone: a pool otherwise never holds anybody to forget or retain


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
        raise DataError(
            f"{folder}: expected pictures ({', '.join(sorted(_SUFFIXES))}), found none. Name another folder."
        )
    for path in paths:
        if path.stat().st_size > _MAX_IMAGE_BYTES:
            raise DataError(
                f"{path}: expected a picture of at most 64 MiB, found {path.stat().st_size} bytes. Reduce it."
            )
    return make_pool(folder.name, [EncodedImage(path.read_bytes(), str(path)) for path in paths])


def built_in_pool(name: str) -> Pool:
    """Return `patterns` or `noise`, the pools that need neither a folder nor a source."""
    draw = BUILT_IN[name]
    pictures = [encode_png(draw(random.Random(f"viker/{name}/{index}"))) for index in range(BUILT_IN_SIZE)]
    return make_pool(name, [EncodedImage(data, f"{name} {index}") for index, data in enumerate(pictures)])


def open_pool(spec: str, source: Source) -> Pool:
    """Return a pool by name or folder: `patterns`, `noise`, `celebrities` (half of the source's real people), or path.

    `forget` and `retain` are the source's own people: all pictures there are of those to forget, and the training
    pictures of retain people that a retain term may use. They show what a pool must not be (arXiv 2601.22020, C.6).

    Raises:
        DataError: nothing usable is there, or the folder holds the embedded benchmark's pictures and the source is
            another.
    """
    if spec in BUILT_IN and not Path(spec).is_dir():
        return built_in_pool(spec)
    if spec == CELEBRITIES:
        faces = "real_faces" if "real_faces" in source.splits() else "real"  # CLEAR's others are things, not people
        shown = [example for example in source.read(faces) if half_of(example.people[0]) == "seen"]
        return make_pool(spec, [image for example in shown for image in example.images])
    if spec in OWN_PEOPLE and not Path(spec).is_dir():
        return make_pool(spec, [image for example in _own_people(spec, source) for image in example.images])
    _refuse_mini(Path(spec), source)
    return read_pool(Path(spec))


def _own_people(spec: str, source: Source) -> list[Example]:
    """Return the examples that show the people to forget, or those retain people that training may look at."""
    if spec == "retain":
        return training_questions(source, "retain-seen")
    return [*source.training("forget"), *questions_of_test(source)]


def questions_of_test(source: Source) -> list[Example]:
    """Return the questions of the test split, which shows other pictures of the forget people; none without one."""
    try:
        return list(source.read("test"))
    except DataError:
        return []


def _refuse_mini(folder: Path, source: Source) -> None:
    """Refuse the embedded benchmark's procedural pictures as references of anybody else."""
    config = folder.resolve().parent.parent / "config.json"
    if not config.is_file() or source.location.resolve() == config.parent:
        return
    if json.loads(config.read_text(encoding="utf-8")).get("source") in NOTICES:
        raise DataError(
            f"--pool {folder}: expected pictures for real people, found the embedded benchmark's drawings. "
            "Name a folder of photographs of nobody concerned, or `patterns`."
        )


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
