"""What the frozen teacher is shown in place of the example: the intervention that makes it say what to learn.

`reference` shows k irrelevant images and averages (ViKeR, arXiv 2601.22020); `self` shows the example's own images (the
ablation without vision, and the reference of methods that stay close to the vanilla model); `noise` shows uniform noise
(VGID, arXiv 2606.00105), `prompt` the own images and an instruction to keep private facts to oneself (as PUBG, arXiv
2506.02541, does), `text` no image at all. `answers` tells whether rows are about the examples' own answers or about
refusals. An intervention decides the images, the prompt, and which of them are part of a row's identity; running the
model is the engines' job.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from PIL.Image import Image

from ..data.example import IMAGE_MARKER, DataError, EncodedImage, Example, Message
from ..data.instructions import instruction_digest
from ..data.kinds import REPLACES_IMAGES, SHOWS_OWN_IMAGE, TAKES_INSTRUCTION
from ..data.kinds import Answers as Answers
from ..data.kinds import Kind as Kind
from ..data.references import Pool, draw_references
from ..data.refusals import refuse
from .encode import Encoded, Encoder
from .noise import Noise, layout_digest
from .pictures import decode

_LEADING_IMAGES = re.compile(rf"(?:\s*{re.escape(IMAGE_MARKER)})*\s*")


@dataclass(frozen=True, slots=True)
class View:
    """What one forward pass shows in the places of an example's images: these images, or noise in their shapes."""

    images: tuple[EncodedImage, ...]
    noises: tuple[Noise, ...] = ()

    def digests(self, layouts: Sequence[str]) -> tuple[str, ...]:
        """Return what tells the tensors shown from others, one an image; equal for equal tensors alone.

        Args:
            layouts: `layout_digest` of each image's picture; read for noise only.
        """
        if not self.noises:
            return tuple(image.sha256 for image in self.images)
        return tuple(noise.digest(layout) for noise, layout in zip(self.noises, layouts, strict=True))


@dataclass(frozen=True, kw_only=True, slots=True)
class Intervention:
    """A kind of teacher with its draw (of references from `pool`, or of noise), its instruction, and whose answers.

    `pool` is None for all kinds but `reference`; `instruction` is None for kinds that take none.
    """

    kind: Kind
    answers: Answers = "own"
    pool: Pool | None = None
    num_references: int = 1
    seed: int = 0
    shared: bool = False
    instruction: str | None = None

    def __post_init__(self) -> None:
        assert (self.pool is not None) == (self.kind == "reference"), (
            "references are drawn from a pool, all else is not"
        )
        assert self.instruction is None or self.kind in TAKES_INSTRUCTION, f"{self.kind} reads no instruction"
        assert self.instruction is not None or self.kind != "prompt", "`prompt` is its instruction"

    def identity(self) -> dict[str, Any]:
        """Return the intervention's part of a fingerprint."""
        draw = {"policy": "none", "seed": 0, "num_references": 0}
        if self.kind in REPLACES_IMAGES:
            policy = "shared" if self.shared else "per-example"
            draw = {"policy": policy, "seed": self.seed, "num_references": self.num_references}
        return {
            "intervention": intervention_identity(self.kind, self.answers, self.instruction),
            "draw": draw,
            "pool": None if self.pool is None else self.pool.digest,
        }

    def draw(self, row_key: bytes) -> tuple[int, ...]:
        """Return the pool indices of the references a row key is shown (empty for kinds without a pool)."""
        if self.pool is None:
            return ()
        return draw_references(
            row_key, self.pool, seed=self.seed, num_references=self.num_references, shared=self.shared
        )

    def answered(self, example: Example) -> Example:
        """Return the example that rows are about: itself, or with a refusal for an answer."""
        return refuse(example) if self.answers == "refusal" else example

    def asked(self, example: Example) -> Example:
        """Return the example whose prompt the teacher reads: itself, instructed, or without its images."""
        if self.kind == "text":
            return _without_images(example)
        return example if self.instruction is None else _instructed(example, self.instruction)

    def views(self, example: Example, row_key: bytes) -> list[View]:
        """Return what each forward pass that the teacher averages shows in the places of the example's images.

        Raises:
            DataError: the example has no image to replace.
        """
        if self.kind in REPLACES_IMAGES:
            require_images([example], self.kind)
        if self.pool is not None:
            return [View((self.pool.images[index],) * len(example.images)) for index in self.draw(row_key)]
        if self.kind == "noise":
            return [View(example.images, self._noises(row_key, index, example)) for index in range(self.num_references)]
        return [View(() if self.kind == "text" else example.images)]

    def _noises(self, row_key: bytes, index: int, example: Example) -> tuple[Noise, ...]:
        """Return the noise of each place of one pass; with `shared` every example gets the same, shape by shape."""
        drawn_for = b"shared" if self.shared else row_key
        return tuple(
            Noise(f"{self.seed}/{index}/{place}/".encode() + drawn_for) for place in range(len(example.images))
        )


def intervention_identity(kind: Kind, answers: Answers = "own", instruction: str | None = None) -> dict[str, Any]:
    """Return the field `intervention` of a fingerprint: an instruction by its digest, for kinds that take one."""
    identity: dict[str, Any] = {"kind": kind, "answers": answers}
    if kind in TAKES_INSTRUCTION:
        identity["instruction"] = None if instruction is None else instruction_digest(instruction)
    return identity


def require_images(examples: Sequence[Example], kind: Kind = "reference") -> None:
    """Raise `DataError` listing the examples without an image: there is nothing a reference or noise could replace."""
    missing = [example.id for example in examples if not example.images]
    if missing:
        raise DataError(
            f"expected examples with an image under --teacher {kind}, found {len(missing)} without: "
            f"{', '.join(missing[:5])}{' ...' if len(missing) > 5 else ''}. Leave them out by name with --skip-text."
        )


def teacher_prompt(
    intervention: Intervention, encoder: Encoder, example: Example, prompt_ids: tuple[int, ...],
    answer_ids: tuple[int, ...],
) -> tuple[int, ...]:  # fmt: skip
    """Return the unexpanded ids of the prompt that the teacher reads; rows are named by the example's own.

    Args:
        intervention: what the teacher is shown.
        encoder: of the teacher.
        example: whose answer rows are about.
        prompt_ids: its own prompt.
        answer_ids: its answer behind that.

    Raises:
        DataError: behind the teacher's prompt the answer has other ids.
    """
    asked = intervention.asked(example)
    if asked is example:
        return prompt_ids
    shown_ids, found = encoder.ids(asked)
    if found != answer_ids:
        raise DataError(
            f"{example.id}: expected the same answer tokens under --teacher {intervention.kind}, found {len(found)} "
            f"others instead of {len(answer_ids)}. This template or tokenizer writes the answer differently behind "
            "another prompt: use another --teacher."
        )
    return shown_ids


def encode_view(
    encoder: Encoder, example: Example, prompt_ids: tuple[int, ...], answer_ids: tuple[int, ...], view: View
) -> tuple[Encoded, tuple[str, ...]]:
    """Return the ids of a teacher's prompt and an answer encoded with what a view shows, and the view's digests."""
    encoded = encoder.assemble(example, prompt_ids, answer_ids, view.images)
    if not view.noises:
        return encoded, view.digests(())
    digests = view.digests([layout_digest(picture) for picture in encoded.pictures])
    noisy = tuple(noise.picture(shown) for noise, shown in zip(view.noises, encoded.pictures, strict=True))
    return replace(encoded, pictures=noisy), digests


def pixels_digest(example: Example, kind: Kind) -> str | None:
    """Return the digest of what a kind's rows depend on of an example's own images; None where it is nothing.

    It is of the decoded RGB where they are shown, of their sizes alone where noise takes their shape.
    """
    read = _size if kind == "noise" else _size_and_pixels if kind in SHOWS_OWN_IMAGE else None
    if read is None or not example.images:
        return None
    seen = (read.__name__, *(image.sha256 for image in example.images))
    if seen not in _pixels_digests:
        parts = (read(decode(image)) for image in example.images)
        _pixels_digests[seen] = hashlib.sha256(b"".join(parts)).hexdigest()
    return _pixels_digests[seen]


# Every question about a picture, and every stage's second look, asks again; decoding is what costs.
_pixels_digests: dict[tuple[str, ...], str] = {}


def _size(picture: Image) -> bytes:
    return f"{picture.size}".encode()


def _size_and_pixels(picture: Image) -> bytes:
    return _size(picture) + picture.tobytes()


def _without_images(example: Example) -> Example:
    """Return an example without images and their markers; turns that hold none stay as they are."""
    if not example.images:
        return example
    messages = tuple(
        Message(turn.role, turn.content.replace(IMAGE_MARKER, "").strip()) if IMAGE_MARKER in turn.content else turn
        for turn in example.messages
    )
    return replace(example, images=(), messages=messages)


def _instructed(example: Example, instruction: str) -> Example:
    """Return an example with an instruction before the text of its last question, after the images that lead it."""
    *earlier, question = example.messages
    match = _LEADING_IMAGES.match(question.content)
    assert match is not None
    images, text = question.content[: match.end()], question.content[match.end() :]
    return replace(example, messages=(*earlier, Message("user", f"{images}{instruction}\n{text}")))
