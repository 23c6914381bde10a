"""What the frozen teacher is shown in place of the example: the intervention that makes it say what to learn.

`reference` shows k irrelevant images and averages (ViKeR, arXiv 2601.22020); `self` shows the example's own images (the
ablation without vision, and the reference of methods that stay close to the vanilla model). An intervention decides the
images and whether they are part of a row's identity; running the model is the engines' job.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..data.example import DataError, EncodedImage, Example
from ..data.references import Pool, draw_references
from .pictures import decode

Kind = Literal["reference", "self"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Intervention:
    """A kind of teacher with its draw of references (`pool` is None for kinds that show no reference)."""

    kind: Kind
    pool: Pool | None = None
    num_references: int = 1
    seed: int = 0
    shared: bool = False

    def identity(self) -> dict[str, Any]:
        """Return the intervention's part of a fingerprint."""
        if self.pool is None:
            draw = {"policy": "none", "seed": 0, "num_references": 0}
            return {"intervention": {"kind": self.kind, "answers": "own"}, "draw": draw, "pool": None}
        policy = "shared" if self.shared else "per-example"
        draw = {"policy": policy, "seed": self.seed, "num_references": self.num_references}
        return {"intervention": {"kind": self.kind, "answers": "own"}, "draw": draw, "pool": self.pool.digest}

    def draw(self, row_key: bytes) -> tuple[int, ...]:
        """Return the pool indices of the references a row key is shown (empty for kinds without a pool)."""
        if self.pool is None:
            return ()
        return draw_references(
            row_key, self.pool, seed=self.seed, num_references=self.num_references, shared=self.shared
        )

    def shown(self, example: Example, row_key: bytes) -> list[tuple[EncodedImage, ...]]:
        """Return, for each forward pass the teacher averages, the images in place of the example's.

        Raises:
            DataError: the example has no image to replace.
        """
        if self.pool is None:
            return [example.images]
        require_images([example])
        return [(self.pool.images[index],) * len(example.images) for index in self.draw(row_key)]


def require_images(examples: Sequence[Example]) -> None:
    """Raise `DataError` listing the examples without an image: there is nothing a reference could replace."""
    missing = [example.id for example in examples if not example.images]
    if missing:
        raise DataError(
            f"expected examples with an image under --teacher reference, found {len(missing)} without: "
            f"{', '.join(missing[:5])}{' ...' if len(missing) > 5 else ''}. Leave them out by name with --skip-text."
        )


def pixels_digest(example: Example, kind: Kind) -> str | None:
    """Return the digest of an example's decoded RGB, for kinds that show the example's own image; else None."""
    if kind == "reference" or not example.images:
        return None
    shown = tuple(image.sha256 for image in example.images)
    if shown not in _pixels_digests:
        _pixels_digests[shown] = _digest_pixels(example.images)
    return _pixels_digests[shown]


# Every question about a picture, and every stage's second look, asks again; decoding is what costs.
_pixels_digests: dict[tuple[str, ...], str] = {}


def _digest_pixels(images: Sequence[EncodedImage]) -> str:
    digest = hashlib.sha256()
    for image in images:
        picture = decode(image)
        digest.update(f"{picture.size}".encode() + picture.tobytes())
    return digest.hexdigest()
