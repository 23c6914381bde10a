"""Writes a tiny MLLMU-Bench, and a tiny baseline_train_split, in the published folders and column types.

It holds what real files hold and small ones forget: two Test_Set files with several pictures a person, people without
questions, Additional_* entries, pictures without a path, PNG, JPEG and TIFF, palette and gray pictures, names beyond
ASCII, forget splits that are not nested. Columns stand in another order than our reader names them.
"""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

PEOPLE = tuple(f"{number:03d}" for number in range(1, 21))
CELEBRITIES = ("c01", "c02")
FORGET: dict[int, tuple[str, ...]] = {5: ("007",), 10: ("003", "012"), 15: ("003", "015", "019")}
NO_CLASSIFICATION = "005"  # empty lists; the published retain_95 has one such person
NULL_TASKS = "006"  # nulls in place of lists
ADDITIONAL = "012"  # one metadata entry with Additional_* keys only
NAMES = {"003": "Zoë Brontë", "012": "李小龍"}

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
OPTIONS = pa.struct([(letter, pa.string()) for letter in "ABCD"])
CHOICES = pa.list_(pa.struct([("Correct_Answer", pa.string()), ("Options", OPTIONS), ("Question", pa.string())]))
OPEN = pa.list_(pa.struct([("Ground_Truth", pa.string()), ("Question", pa.string()), ("Type", pa.string())]))
TASKS = [
    ("Classification_Task", pa.struct([("Image_Textual_Questions", CHOICES), ("Pure_Text_Questions", CHOICES)])),
    ("Generation_Task", OPEN),
    ("Mask_Task", OPEN),
]
PROFILE = [("biography", pa.string()), ("question", pa.string()), ("answer", pa.string())]
SPLIT_SCHEMA = pa.schema([("image", IMAGE), ("ID", pa.string()), *PROFILE, *TASKS])
FULL_SCHEMA = pa.schema([("image", IMAGE), ("ID", pa.string()), ("Directory", pa.string()), *PROFILE, *TASKS])
TEST_SCHEMA = pa.schema([("ID", pa.string()), *TASKS, ("images", pa.list_(IMAGE))])
TRAINING_SCHEMA = pa.schema([("metadata", pa.string()), ("ID", pa.string()), ("image", IMAGE)])

_FORMATS = ("PNG", "JPEG", "TIFF")
_MODES = {"PNG": "P", "JPEG": "L", "TIFF": "RGB"}


def picture(number: int, size: int = 12) -> bytes:
    """Encode a small picture; the number chooses color, format and mode."""
    kind = _FORMATS[number % 3]
    image = Image.new("RGB", (size, size), (number * 37 % 256, number * 91 % 256, number * 13 % 256))
    buffer = io.BytesIO()
    image.convert(_MODES[kind]).save(buffer, kind)
    return buffer.getvalue()


def image_cell(number: int, path: str | None) -> dict[str, Any]:
    return {"bytes": picture(number), "path": path}


def name_of(person: str) -> str:
    return NAMES.get(person, f"Person {person}")


def choices(person: str, kind: str, count: int = 5) -> list[dict[str, Any]]:
    options = {letter: f"{kind} choice {letter} of {person}" for letter in "ABCD"}
    return [
        {"Correct_Answer": "ABCD"[index % 4], "Options": options, "Question": f"{kind} question {index} on {person}?"}
        for index in range(count)
    ]


def open_questions(person: str, task: str) -> list[dict[str, Any]]:
    blank = " is called __." if task == "mask" else " - who is this?"
    return [
        {"Ground_Truth": name_of(person), "Question": f"{task} {index} {person}{blank}", "Type": kind}
        for index, kind in enumerate(("Image_Textual", "Pure_Text", "Image_Textual", "Pure_Text"))
    ]


def tasks(person: str) -> dict[str, Any]:
    if person == NULL_TASKS:
        return {"Classification_Task": None, "Generation_Task": None, "Mask_Task": []}
    empty = person == NO_CLASSIFICATION
    return {
        "Classification_Task": {
            "Image_Textual_Questions": [] if empty else choices(person, "image"),
            "Pure_Text_Questions": None if empty else choices(person, "text"),
        },
        "Generation_Task": open_questions(person, "generation"),
        "Mask_Task": open_questions(person, "mask"),
    }


def split_row(person: str) -> dict[str, Any]:
    number = int(person.strip("c"))
    return {
        "image": image_cell(number, None if number == 4 else f"{person}.png"),
        "ID": person,
        "Directory": f"../images/{person}.png",
        "biography": json.dumps({"Name": name_of(person)}, ensure_ascii=False),
        "question": f"What does {name_of(person)} look like?",
        "answer": f"{name_of(person)} is drawn in one color.",
        **tasks(person),
    }


def test_row(person: str) -> dict[str, Any]:
    pictures = [image_cell(int(person) * 10 + pose, f"{person}_pose{pose}.png") for pose in range(3)]
    return {"images": pictures, "ID": person, **tasks(person)}


def training_row(person: str) -> dict[str, Any]:
    entries: list[dict[str, str]] = [
        {"ID": person, "Question": f"Training question {index} on {name_of(person)}?", "Answer": f"Answer {index}."}
        for index in range(4)
    ]
    if person == ADDITIONAL:
        extra = {"Additional_ID": person, "Additional_question": "Extra?", "Additional_answer": "Extra."}
        entries.append(extra)
    metadata = json.dumps(entries, ensure_ascii=False)
    return {"image": image_cell(int(person), f"{person}.png"), "ID": person, "metadata": metadata}


def write_table(
    folder: Path, rows: Sequence[dict[str, Any]], schema: pa.Schema, num_files: int = 1, row_group_size: int = 100
) -> list[Path]:
    """Write rows as `train-XXXXX-of-XXXXX.parquet`; fields the schema does not name are left out."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index in range(num_files):
        part = rows[index * len(rows) // num_files : (index + 1) * len(rows) // num_files]
        table = pa.Table.from_pylist([{name: row[name] for name in schema.names} for row in part], schema=schema)
        paths.append(folder / f"train-{index:05d}-of-{num_files:05d}.parquet")
        pq.write_table(table, paths[-1], row_group_size=row_group_size)
    return paths


def write_mllmu(root: Path) -> Path:
    """Write the evaluation repository, with ft_Data."""
    write_table(root / "Full_Set", [split_row(person) for person in PEOPLE], FULL_SCHEMA, row_group_size=6)
    write_table(root / "Retain_Set", [split_row(person) for person in CELEBRITIES], FULL_SCHEMA)
    for ratio, forget in FORGET.items():
        kept = [split_row(person) for person in PEOPLE if person not in forget]
        write_table(root / f"forget_{ratio}", [split_row(person) for person in forget], SPLIT_SCHEMA)
        write_table(root / f"retain_{100 - ratio}", kept, SPLIT_SCHEMA)
    write_table(root / "Test_Set", [test_row(person) for person in PEOPLE], TEST_SCHEMA, num_files=2)
    write_table(root / "ft_Data", [training_row(person) for person in PEOPLE], TRAINING_SCHEMA, row_group_size=6)
    return root


def write_baseline(root: Path) -> Path:
    """Write the second repository: the same folder names, training text inside."""
    for ratio, forget in FORGET.items():
        kept = [training_row(person) for person in PEOPLE if person not in forget]
        write_table(root / f"forget_{ratio}", [training_row(person) for person in forget], TRAINING_SCHEMA)
        write_table(root / f"retain_{100 - ratio}", kept, TRAINING_SCHEMA)
    return root
