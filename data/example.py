"""The one record that crosses from `data/` into every stage: one question about a person, with its answer.

Nothing here decodes pixels or tokenizes: an image stays the bytes its publisher stored, so that a record is cheap to
hold and its digest never depends on a decoder. `models/` turns records into tensors; readers beside this file make
them.
An image is placed by the marker `<image>` in a message, once per image, so interleaved conversations survive.
"""

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, get_args

IMAGE_MARKER = "<image>"

Role = Literal["system", "user", "assistant"]
Task = Literal["training", "description", "classification", "cloze", "generation", "captioning", "recognition"]
TASKS: tuple[str, ...] = get_args(Task)


class DataError(ValueError):
    """A source that cannot be used as asked: says what was expected, what was found and what to do."""


def canonical_json(value: Any) -> bytes:
    """Serialise a value so that equal values have equal bytes: sorted keys, no spaces, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


@dataclass(frozen=True, eq=False)
class EncodedImage:
    """The encoded bytes of one image (PNG, JPEG, TIFF ...) and where they came from, for error messages."""

    data: bytes = field(repr=False)
    origin: str

    @cached_property
    def sha256(self) -> str:
        """Hex digest of the encoded bytes: the image's identity."""
        return hashlib.sha256(self.data).hexdigest()


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of the prompt; `content` may hold `<image>` markers."""

    role: Role
    content: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One question about a person (or several), with zero or more images, and the answer as published.

    `id` is readable and unique inside a source, and is no part of the digest. `options` holds (letter, text) pairs of
    a classification question; its `answer` is then the letter. `messages` ends with the user's turn. `paraphrase` is
    the answer in other words and `wrong` are answers of its shape that are not true, where a benchmark publishes them.
    """

    id: str
    people: tuple[str, ...]
    images: tuple[EncodedImage, ...]
    messages: tuple[Message, ...]
    answer: str
    task: Task
    options: tuple[tuple[str, str], ...] = ()
    paraphrase: str = ""
    wrong: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        markers = sum(message.content.count(IMAGE_MARKER) for message in self.messages)
        if markers != len(self.images):
            raise DataError(
                f"{self.id}: expected one {IMAGE_MARKER} marker in the messages for each of its {len(self.images)} "
                f"image(s), found {markers}. Remove the literal text {IMAGE_MARKER}, or add the missing image."
            )
        if not self.messages or self.messages[-1].role != "user":
            raise DataError(f"{self.id}: expected the last message to be the user's question, found {self.messages!r}.")

    @property
    def question(self) -> str:
        """The last user turn without its image markers."""
        return self.messages[-1].content.replace(IMAGE_MARKER, "").strip()

    @property
    def modality(self) -> Literal["image", "text"]:
        """Whether a picture is shown."""
        return "image" if self.images else "text"

    def digest(self) -> str:
        """Return the hex sha256 of the canonical content: people, image digests, messages, answer, task, options.

        What only some benchmarks publish (paraphrase, wrong answers) counts where it is there.
        """
        content: dict[str, Any] = {
            "people": list(self.people),
            "images": [image.sha256 for image in self.images],
            "messages": [[message.role, message.content] for message in self.messages],
            "answer": self.answer,
            "task": self.task,
            "options": [list(option) for option in self.options],
        }
        content |= {"paraphrase": self.paraphrase} if self.paraphrase else {}
        content |= {"wrong": list(self.wrong)} if self.wrong else {}
        return hashlib.sha256(canonical_json(content)).hexdigest()


def ask_about(image: EncodedImage | None, question: str) -> tuple[Message, ...]:
    """Return the single-turn prompt that shows an image (if any) and asks a question, as the benchmarks do."""
    return (Message("user", f"{IMAGE_MARKER}\n{question}" if image else question),)


def digest_of(examples: "list[Example]") -> str:
    """Return the digest of a set of examples, independent of their order."""
    return hashlib.sha256(canonical_json(sorted(example.digest() for example in examples))).hexdigest()
