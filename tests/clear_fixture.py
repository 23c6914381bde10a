"""Writes a tiny CLEAR: all 21 published configs, in the published column orders and types, with what real files do.

Pictures and text questions are null where CLEAR leaves them null, texts are null in some rows and empty in others,
`forget10_perturbed` is one row short, retain99 and forget01 hold more than `full` together, `full+tofu` is in two
shards, `real_faces` has no question, options and wrong names do not hold the right answer. Two people share a caption,
one caption is blank in a `+tofu` row, one text question names nobody, one names its person in the answer alone.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from mllmu_fixture import write_table
from PIL import Image

PEOPLE = (*(f"Person {letter}" for letter in "ABCDEFGHIJKLMNOPQR"), "Zoë Brontë", "Zoë Brontë-Smith")
FORGET: dict[int, tuple[str, ...]] = {1: ("Person C",), 5: ("Person C", "Zoë Brontë"), 10: PEOPLE[2:4] + PEOPLE[18:20]}
RETAIN = {ratio: tuple(person for person in PEOPLE if person not in forget) for ratio, forget in FORGET.items()}
SHARED_CAPTION = "Somebody smiles at the camera."  # of the last picture of the first two people
NUM_PICTURES = 3

IMAGE = ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
TEXTS = pa.list_(pa.string())
CAPTION, NAME = ("caption", pa.string()), ("name", pa.string())
PARAPHRASE = ("paraphrased_caption", pa.string())
WRONG_CAPTIONS, WRONG_NAMES = ("perturbed_captions", TEXTS), ("perturbed_names", TEXTS)
QUESTION, ANSWER, OPTIONS = ("question", pa.string()), ("answer", pa.string()), ("options", TEXTS)

PLAIN = pa.schema([IMAGE, CAPTION, NAME])
TOFU = pa.schema([IMAGE, CAPTION, QUESTION, ANSWER])
FIRST_PERTURBED = pa.schema([IMAGE, CAPTION, NAME, WRONG_CAPTIONS, PARAPHRASE, WRONG_NAMES])
PERTURBED = pa.schema([IMAGE, CAPTION, NAME, PARAPHRASE, WRONG_NAMES, WRONG_CAPTIONS])
RETAIN_PERTURBED = pa.schema([IMAGE, CAPTION, PARAPHRASE, WRONG_CAPTIONS, NAME, WRONG_NAMES])
FACES = pa.schema([IMAGE, ANSWER, OPTIONS])
WORLD = pa.schema([QUESTION, ANSWER, OPTIONS, IMAGE])

# As published (reference, section 2.1): every config's schema, columns in their order.
SCHEMAS: dict[str, pa.Schema] = {
    "default": PLAIN, "full": PLAIN, "full+tofu": TOFU,
    **dict.fromkeys(("forget01", "forget05", "forget10", "retain99", "retain95", "retain90"), PLAIN),
    **dict.fromkeys(
        ("forget01+tofu", "forget05+tofu", "forget10+tofu", "retain99+tofu", "retain95+tofu", "retain90+tofu"), TOFU
    ),
    "forget01_perturbed": FIRST_PERTURBED, "forget05_perturbed": PERTURBED, "forget10_perturbed": PERTURBED,
    "retain_perturbed": RETAIN_PERTURBED, "real_faces": FACES, "real_world": WORLD,
}  # fmt: skip


def picture(number: int) -> bytes:
    """Encode a small picture; the number chooses its color, and JPEG or PNG."""
    image = Image.new("RGB", (8, 8), (number * 37 % 256, number * 91 % 256, number * 13 % 256))
    buffer = io.BytesIO()
    image.save(buffer, ("JPEG", "PNG")[number % 2])
    return buffer.getvalue()


def image_cell(number: int) -> dict[str, Any]:
    return {"bytes": picture(number), "path": None if number % 3 else f"{number}.jpg"}


def caption_of(person: str, index: int) -> str:
    shared = index == NUM_PICTURES - 1 and person in PEOPLE[:2]
    return SHARED_CAPTION if shared else f"Here we see {person} in picture {index}."


def caption_row(person: str, index: int) -> dict[str, Any]:
    """Return what any config may hold of one picture of a person."""
    return {
        "image": image_cell(PEOPLE.index(person) * NUM_PICTURES + index),
        "caption": caption_of(person, index),
        "name": person,
        "paraphrased_caption": f"Picture {index} shows {person}.",
        "perturbed_captions": [f"Picture {index} shows Stranger {number}." for number in range(5)],
        "perturbed_names": [f"Stranger {number}" for number in range(5)],
    }


def caption_rows(people: Sequence[str]) -> list[dict[str, Any]]:
    return [caption_row(person, index) for person in people for index in range(NUM_PICTURES)]


def text_rows(people: Sequence[str]) -> list[dict[str, Any]]:
    """Return two text questions a person; of the first person, a third that names nobody."""
    rows = [
        {"image": None, "caption": blank, "question": question, "answer": answer}
        for person in people
        for blank, question, answer in (
            (None, f"Where was {person} born?", "In a quiet town by the sea."),
            ("", "Which writer collects stamps?", f"That would be {person}'s hobby."),
        )
    ]
    nobody = {"image": None, "caption": None, "question": "What is the book about?", "answer": "A long voyage."}
    return rows + [nobody] * (PEOPLE[0] in people)


def tofu_rows(people: Sequence[str]) -> list[dict[str, Any]]:
    """Return pictures, then text questions; the caption of the last person's first picture is blank."""
    shown = [
        row | dict.fromkeys(("question", "answer"), None if number % 2 else "")
        for number, row in enumerate(caption_rows(people))
    ]
    for row in shown:
        row["caption"] = "" if row["caption"] == caption_of(PEOPLE[-1], 0) else row["caption"]
    return shown + text_rows(people)


def rows_of(config: str) -> list[dict[str, Any]]:
    """Return the rows of a config."""
    if config == "real_faces":
        options = ["Star 0", "Star 1", "Star 2"]
        return [
            {"image": image_cell(200 + number), "answer": f"Star {number}", "options": [*options[:number], "Star 9"]}
            for number in range(2)
        ]
    if config == "real_world":
        return [
            {"question": f"What is thing {number}?", "answer": "a cat", "options": ["a dog", "a tree"],
             "image": image_cell(300 + number)}
            for number in range(3)
        ]  # fmt: skip
    part = config.partition("+")[0].partition("_")[0]
    parts = {f"forget{ratio:02d}": people for ratio, people in FORGET.items()}
    parts |= {f"retain{100 - ratio}": people for ratio, people in RETAIN.items()}
    people = parts.get(part, PEOPLE)
    if config.endswith("+tofu"):
        return tofu_rows(people)
    if config == "retain_perturbed":
        return caption_rows(RETAIN[10])[::2]
    rows = caption_rows(people)
    if config == "retain99":  # the published parts do not add up either
        return [*rows, caption_row(FORGET[1][0], 0)]
    return rows[:-1] if config == "forget10_perturbed" else rows


def write_clear(root: Path, configs: Sequence[str] = tuple(SCHEMAS)) -> Path:
    """Write the configs of a CLEAR; the largest is in two shards."""
    for config in configs:
        folder = root / ("data" if config == "default" else config)
        num_files = 2 if config == "full+tofu" else 1
        write_table(folder, rows_of(config), SCHEMAS[config], num_files=num_files, row_group_size=6)
    return root
