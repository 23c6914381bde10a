"""What CLEAR publishes, config by config: its folders and columns, and what one row becomes.

Columns are read by name, since their order differs from config to config. A row of pictures and captions becomes a
question for the caption, asked in one of the nine published wordings; where rewritten captions and names are
published, they stand beside it (`paraphrase`, `wrong`), and the person's name is asked for as well. Which wording is a
function of a seed, the picture and its caption, not of the folder: the same row is asked the same everywhere, where the
official reader draws anew each time. What is blank is left out with a reason that the caller counts.
Who a row is about, and which rows a split means, is `clear.py`'s business.
Source: `reference/benchmarks.md` 2.1 and 2.2 (cards of therem/CLEAR; somvy/multimodal_unlearning mm/dataset.py).
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow.parquet as pq

from . import parquet
from .example import DataError, EncodedImage, Example, Task, ask_about
from .parquet import MAX_IMAGE_BYTES, read_picture, read_text

REPOSITORY = "therem/CLEAR"
RATIOS = (1, 5, 10)

Layout = Literal["plain", "tofu", "perturbed", "faces", "world"]

COLUMNS: dict[Layout, tuple[str, ...]] = {
    "plain": ("image", "caption", "name"),
    "tofu": ("image", "caption", "question", "answer"),
    "perturbed": ("image", "caption", "name", "paraphrased_caption", "perturbed_captions", "perturbed_names"),
    "faces": ("image", "answer", "options"),
    "world": ("image", "question", "answer", "options"),
}
_PARTS = (*(f"forget{ratio:02d}" for ratio in RATIOS), *(f"retain{100 - ratio}" for ratio in RATIOS))
# Of the published layout, all configs by name; those of `retainNN_perturbed` are private to some who use CLEAR.
PUBLISHED: dict[str, Layout] = {
    "default": "plain",
    "full": "plain",
    **dict.fromkeys(_PARTS, "plain"),
    "full+tofu": "tofu",
    **{f"{part}+tofu": "tofu" for part in _PARTS},
    **{f"forget{ratio:02d}_perturbed": "perturbed" for ratio in RATIOS},
    "retain_perturbed": "perturbed",
    "real_faces": "faces",
    "real_world": "world",
}
CONFIGS: dict[str, Layout] = PUBLISHED | {f"retain{100 - ratio}_perturbed": "perturbed" for ratio in RATIOS}
DEFAULT_FOLDER = "data"  # of the config `default`; every other folder is named as its config

CAPTION_QUESTIONS = (
    "What can you see in this picture?",
    "Tell me about the content of this image",
    "Can you give a description of the image?",
    "What is depicted in the image?",
    "Explain what you observe in the picture.",
    "Describe the image in detail.",
    "What is the main subject of this image?",
    "Can you describe the scene or objects in the image?",
    "What is happening in this image?",
)
NAME_QUESTION = "The name of the person on the image is"  # published with a space behind it, which a template adds


def folder_of(config: str) -> str:
    """Return the folder that holds a config."""
    return DEFAULT_FOLDER if config == "default" else config


@dataclass(frozen=True, slots=True)
class Row(parquet.Row):
    """A row of a config: its id inside the source, and who it is about."""

    id: str
    people: tuple[str, ...]

    def example(
        self, task: Task, question: str, answer: str, image: EncodedImage | None, paraphrase: str = "",
        wrong: tuple[str, ...] = (),
    ) -> Example:  # fmt: skip
        """Return one question of this row."""
        return Example(
            id=f"{self.id}/{task}", people=self.people, images=() if image is None else (image,),
            messages=ask_about(image, question), answer=answer, task=task, paraphrase=paraphrase, wrong=wrong,
        )  # fmt: skip


def check_columns(path: Path, file: pq.ParquetFile, layout: Layout) -> None:
    """Raise `DataError` where a file lacks columns of its layout."""
    names = file.schema_arrow.names
    if missing := [name for name in COLUMNS[layout] if name not in names]:
        raise DataError(
            f"{path}: expected column(s) {', '.join(missing)}, found {', '.join(names)}. "
            f"Read the files as published in {REPOSITORY}."
        )


def row_examples(row: Row, layout: Layout, seed: int) -> Iterator[Example | str]:
    """Yield the questions of a row, and for what it lacks the reason why a question is left out."""
    match layout:
        case "faces":
            yield from _asked(row, "recognition", NAME_QUESTION)
        case "world":
            yield from _asked(row, "generation", read_text(row, "question", row.cells["question"]))
        case "tofu" if row_picture(row) is None:
            yield from _text_question(row)
        case _:
            yield from _captioned(row, layout, seed)


def row_picture(row: Row) -> EncodedImage | None:
    """Return the row's picture, or None where the publisher left it out."""
    cell = row.cells["image"]
    empty = isinstance(cell, dict) and cell.get("bytes") is None and cell.get("path") is None
    return None if cell is None or empty else read_picture(row, "image", cell, MAX_IMAGE_BYTES)


def caption_question(image: EncodedImage, caption: str, seed: int) -> str:
    """Return the wording in which a picture's caption is asked for."""
    drawn = hashlib.sha256("\0".join((str(seed), image.sha256, caption)).encode()).digest()
    return CAPTION_QUESTIONS[int.from_bytes(drawn[:8], "big") % len(CAPTION_QUESTIONS)]


def _captioned(row: Row, layout: Layout, seed: int) -> Iterator[Example | str]:
    image, caption = _shown(row), read_text(row, "caption", row.cells["caption"])
    if layout == "tofu" and any(read_text(row, field, row.cells[field]) for field in ("question", "answer")):
        yield "question beside a picture"
    if caption is None:
        yield "caption is blank"
        return
    question = caption_question(image, caption, seed)
    if layout != "perturbed":
        yield row.example("captioning", question, caption, image)
        return
    paraphrase = read_text(row, "paraphrased_caption", row.cells["paraphrased_caption"])
    if paraphrase is None:
        yield "paraphrase is blank"
    captions, names = _others(row, "perturbed_captions"), _others(row, "perturbed_names")
    yield from ("wrong caption or name is blank",) * (captions + names).count(None)
    yield row.example("captioning", question, caption, image, paraphrase or "", _without(captions, caption))
    name = row.people[0]
    yield row.example("recognition", NAME_QUESTION, name, image, wrong=_without(names, name))


def _text_question(row: Row) -> Iterator[Example | str]:
    question, answer = (read_text(row, field, row.cells[field]) for field in ("question", "answer"))
    if question is None or answer is None:
        yield "question or answer is blank"
        return
    if read_text(row, "caption", row.cells["caption"]) is not None:
        yield "caption without a picture"
    yield row.example("generation", question, answer, None)


def _asked(row: Row, task: Task, question: str | None) -> Iterator[Example | str]:
    """Yield the question of a row with options; they need not hold the right answer, and are the wrong ones."""
    answer = read_text(row, "answer", row.cells["answer"])
    if question is None or answer is None:
        yield "question or answer is blank"
        return
    options = _others(row, "options")
    yield from ("option is blank",) * options.count(None)
    yield row.example(task, question, answer, _shown(row), wrong=_without(options, answer))


def _shown(row: Row) -> EncodedImage:
    image = row_picture(row)
    if image is None:
        raise row.refusal("image", "a picture", None)
    return image


def _others(row: Row, field: str) -> list[str | None]:
    """Return a published list of texts; null is an empty one."""
    values: Any = row.cells[field]
    if not isinstance(values, list | None):
        raise row.refusal(field, "a list of texts", values)
    return [read_text(row, f"{field}[{index}]", value) for index, value in enumerate(values or [])]


def _without(texts: list[str | None], right: str) -> tuple[str, ...]:
    return tuple(text for text in texts if text is not None and text != right)
