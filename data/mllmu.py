"""Reads MLLMU-Bench as it is published: a folder a split, parquet inside, a row a person with all their questions.

Files are read by column name (their order is not documented) and by row group, so memory follows one row group and
not the 240 MB file; whoever only needs the people reads the ID column alone. Two repositories share folder names
with different columns, evaluation questions in one and training text in the other: columns are sniffed, and an error
names the repository that has them. What the publisher left blank is skipped as the official readers do, but counted.
Pictures stay encoded: decoding belongs to `models/`, prompts of a protocol to `evaluate/`, finding the tree to
`sources.py`, shards and row groups to `parquet.py`.
"""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import pyarrow.parquet as pq

from . import parquet
from .example import DataError, EncodedImage, Example, Task, ask_about
from .parquet import MAX_IMAGE_BYTES, opened, parquet_files, read_picture, read_text, wanted_cells

log = logging.getLogger(__name__)

EVALUATION_REPOSITORY = "MLLMMU/MLLMU-Bench"
TRAINING_REPOSITORY = "MLLMMU/baseline_train_split"
RATIOS = (5, 10, 15)
_PARTS = (*(f"forget_{ratio}" for ratio in RATIOS), *(f"retain_{100 - ratio}" for ratio in RATIOS))
FOLDERS = ("Full_Set", *_PARTS, "Test_Set", "Retain_Set", "ft_Data")

MAX_METADATA_BYTES = 16 * 2**20

Keep = Callable[[str], bool]
Kind = Literal["questions", "training"]

_NEEDED: dict[Kind, tuple[str, ...]] = {
    "questions": ("ID", "Classification_Task", "Generation_Task", "Mask_Task"),
    "training": ("ID", "image", "metadata"),
}
_WHERE = f"Evaluation questions are in {EVALUATION_REPOSITORY}; training text in its ft_Data or {TRAINING_REPOSITORY}."
_COLUMNS = _NEEDED | {"questions": (*_NEEDED["questions"], "image", "images", "question", "answer")}
_OPEN_TASKS: dict[str, Task] = {"Mask_Task": "cloze", "Generation_Task": "generation"}
_SHOWS_IMAGE = {"Image_Textual": True, "Pure_Text": False}


@dataclass(frozen=True, slots=True)
class Row(parquet.Row):
    """One person's row."""

    person: str


def _people(file: pq.ParquetFile, path: Path) -> list[str]:
    """Read the ID column alone."""
    names = file.schema_arrow.names
    if "ID" not in names:
        raise DataError(f"{path}: expected a column ID, found {', '.join(names)}. Read the files as published.")
    people: list[Any] = file.read(columns=["ID"]).column("ID").to_pylist()
    for number, person in enumerate(people):
        if not isinstance(person, str) or not person:
            raise DataError(f"{path}: row {number}, ID: expected text such as '001', found {person!r}. Add the ID.")
    return people


def _rows(path: Path, kind: Kind, keep: Keep) -> Iterator[Row]:
    """Yield the rows of the people to keep, a few in memory at a time."""
    with opened(path) as file:
        names = file.schema_arrow.names
        _check_columns(path, names, kind)
        people = _people(file, path)
        columns = [name for name in names if name in _COLUMNS[kind]]
        for number, cells in wanted_cells(file, columns, [keep(person) for person in people]):
            person = people[number]
            yield Row(f"{path}: row {number}, person {person}", cells, person)


def _check_columns(path: Path, names: Sequence[str], kind: Kind) -> None:
    missing = [name for name in _NEEDED[kind] if name not in names]
    if kind == "questions" and not {"image", "images"} & set(names):
        missing.append("image or images")
    if missing:
        raise DataError(f"{path}: expected column(s) {', '.join(missing)}, found {', '.join(names)}. {_WHERE}")


@dataclass(frozen=True, slots=True)
class _Item:
    """A question as found in a row, not yet checked; `index` is its place in the published list."""

    task: Task
    shows_image: bool
    index: int
    question: Any
    answer: Any
    options: Any = None

    @property
    def name(self) -> str:
        return f"{self.task}-{'image' if self.shows_image else 'text'}/{self.index}"


def _entries(row: Row, field: str, value: Any) -> list[dict[str, Any]]:
    """Return a published list of questions; null is an empty one."""
    entries = [] if value is None else value
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise row.refusal(field, "a list of records", value)
    return entries


def _evaluation_items(row: Row) -> Iterator[_Item]:
    choices = row.cells["Classification_Task"] or {}
    if not isinstance(choices, dict):
        raise row.refusal("Classification_Task", "a record", choices)
    for key, shows_image in (("Image_Textual_Questions", True), ("Pure_Text_Questions", False)):
        for index, entry in enumerate(_entries(row, f"Classification_Task.{key}", choices.get(key))):
            found = (entry.get("Question"), entry.get("Correct_Answer"), entry.get("Options"))
            yield _Item("classification", shows_image, index, *found)
    for column, task in _OPEN_TASKS.items():
        for index, entry in enumerate(_entries(row, column, row.cells[column])):
            if (kind := entry.get("Type")) not in _SHOWS_IMAGE:
                raise row.refusal(f"{column}[{index}].Type", " or ".join(_SHOWS_IMAGE), kind)
            yield _Item(task, _SHOWS_IMAGE[kind], index, entry.get("Question"), entry.get("Ground_Truth"))
    if "question" in row.cells and "answer" in row.cells:
        yield _Item("description", True, 0, row.cells["question"], row.cells["answer"])


def _training_items(row: Row) -> Iterator[_Item | str]:
    text = row.cells["metadata"] or "[]"
    if len(text) > MAX_METADATA_BYTES:
        raise row.refusal("metadata", f"at most {MAX_METADATA_BYTES} characters", len(text), "Shorten it.")
    try:
        entries = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise row.refusal("metadata", f"a JSON list ({error})", text, "Correct the JSON.") from error
    for index, entry in enumerate(_entries(row, "metadata", entries)):
        additional = any(key.startswith("Additional_") for key in entry)
        if additional:
            yield "Additional_* entries are never trained on"
        if not additional or "Question" in entry:
            yield _Item("training", True, index, entry.get("Question"), entry.get("Answer"))


def _pictures(row: Row) -> list[EncodedImage]:
    """Return the row's pictures: one, or the several of a Test_Set row."""
    single = row.cells.get("image")
    cells = row.cells.get("images") or ([] if single is None else [single])
    return [read_picture(row, f"picture {index}", cell, MAX_IMAGE_BYTES) for index, cell in enumerate(cells)]


def _example(row: Row, prefix: str, item: _Item | str, pictures: list[EncodedImage], seed: int) -> Example | str:
    """Return the checked question, or the reason why it has to be skipped."""
    if isinstance(item, str):
        return item
    question = read_text(row, f"{item.name} question", item.question)
    answer = read_text(row, f"{item.name} answer", item.answer)
    if question is None or answer is None:
        return "question or answer is blank"
    if not isinstance(item.options, dict | None):
        raise row.refusal(f"{item.name} Options", "a record of letters", item.options)
    texts = {
        letter: read_text(row, f"{item.name} option", text) for letter, text in sorted((item.options or {}).items())
    }
    options = tuple((letter, text) for letter, text in texts.items() if text is not None)
    if item.task == "classification" and answer not in dict(options):
        return "answer is none of the options"
    if item.shows_image and not pictures:
        raise row.refusal("image", f"a picture for {item.name}", None)
    # The official reader draws a Test_Set picture anew each time; here the question alone decides.
    drawn = hashlib.sha256("\0".join((str(seed), row.person, item.name)).encode()).digest()
    image = pictures[int.from_bytes(drawn[:8], "big") % len(pictures)] if item.shows_image else None
    return Example(
        id=f"{prefix}/{item.name}",
        people=(row.person,),
        images=(image,) if image else (),
        messages=ask_about(image, question),
        answer=answer,
        task=item.task,
        options=options,
    )


@dataclass(kw_only=True)
class MllmuSource:
    """MLLMU-Bench in a local directory, split by `forget_<ratio>`, or on Full_Set by the people named in `forget`."""

    location: Path
    commit: str | None = None
    ratio: int = 10
    forget: frozenset[str] = frozenset()
    allow_no_retain: bool = False
    test_image_seed: int = 0
    _skipped: dict[str, Counter[str]] = field(default_factory=dict, init=False)

    def splits(self) -> tuple[str, ...]:
        """Name the published folders that are here."""
        return tuple(folder for folder in FOLDERS if any((self.location / folder).glob("*.parquet")))

    def people(self) -> frozenset[str]:
        """Name everyone who can be forgotten here."""
        whole = "Full_Set" in self.splits()
        return self._people_of(*(("Full_Set",) if whole else self._training_folders()))

    def forget_people(self) -> frozenset[str]:
        """Name the people to forget."""
        return self._forget_people

    def skipped(self) -> dict[str, dict[str, int]]:
        """Count what the latest read of each split left out, by reason."""
        return {label: dict(reasons) for label, reasons in self._skipped.items() if reasons}

    def read(self, split: str) -> Iterator[Example]:
        """Yield what a published folder holds, or the questions of forget, retain, test or real."""
        if (folder := "Retain_Set" if split == "real" else split) in FOLDERS:
            return self._examples(split, self._files(folder), self._kind(folder), lambda _: True)
        folders = {"forget": f"forget_{self.ratio}", "retain": f"retain_{100 - self.ratio}", "test": "Test_Set"}
        if split not in folders:
            raise DataError(f"split: expected one of {', '.join((*folders, 'real', *FOLDERS))}, found {split!r}.")
        forgotten, wanted = self.forget_people(), split != "retain"
        if split == "test" and (absent := forgotten - self._people_of("Test_Set")):
            log.warning("%s: Test_Set has no questions about %s", self.location, sorted(absent))
        files = self._files("Full_Set" if self.forget and split != "test" else folders[split])
        return self._examples(split, files, "questions", lambda person: (person in forgotten) == wanted)

    def training(self, part: Literal["all", "forget", "retain"]) -> Iterator[Example]:
        """Yield the training text about everyone, the people to forget, or all others."""
        folders = self._training_folders()
        files = self._files(*folders)
        if part == "all":
            return self._examples("training all", files, "training", lambda _: True)
        forgotten, trained = self.forget_people(), self._people_of(*folders)
        if absent := sorted(forgotten - trained):
            raise DataError(f"{self.location}: no training text about {absent} in {folders}. Forget others.")
        if not (trained - forgotten or self.allow_no_retain):
            raise DataError(f"{self.location}: nobody is left to retain. Forget fewer, or --allow-no-retain.")
        keep = forgotten if part == "forget" else trained - forgotten
        return self._examples(f"training {part}", files, "training", keep.__contains__)

    @cached_property
    def _forget_people(self) -> frozenset[str]:
        return self.forget or self._people_of(f"forget_{self.ratio}")

    def _training_folders(self) -> tuple[str, ...]:
        """Name ft_Data, or the two folders that hold the same text in the second repository."""
        present, forget, retain = self.splits(), f"forget_{self.ratio}", f"retain_{100 - self.ratio}"
        if "ft_Data" in present:
            return ("ft_Data",)
        return (forget,) if self.allow_no_retain and retain not in present else (forget, retain)

    def _files(self, *folders: str) -> list[tuple[str, Path]]:
        present = self.splits()
        if missing := [folder for folder in folders if folder not in present]:
            found = ", ".join(present) or "no published folder"
            raise DataError(f"{self.location}: expected {', '.join(missing)}/*.parquet, found {found}. Download it.")
        return [(folder, path) for folder in folders for path in parquet_files(self.location / folder)]

    def _people_of(self, *folders: str) -> frozenset[str]:
        found: set[str] = set()
        for _, path in self._files(*folders):
            with opened(path) as file:
                found.update(_people(file, path))
        return frozenset(found)

    def _kind(self, folder: str) -> Kind:
        with opened(self._files(folder)[0][1]) as file:
            names = file.schema_arrow.names
        return "training" if "metadata" in names and "Classification_Task" not in names else "questions"

    def _examples(self, label: str, files: list[tuple[str, Path]], kind: Kind, keep: Keep) -> Iterator[Example]:
        skipped = self._skipped[label] = Counter()
        seen: Counter[str] = Counter()
        for folder, path in files:
            for row in _rows(path, kind, keep):
                prefix = f"{folder}/{row.person}"
                seen[prefix] += 1  # a person's second row keeps ids unique
                prefix += f"~{seen[prefix]}" if seen[prefix] > 1 else ""
                pictures = _pictures(row)
                for item in _training_items(row) if kind == "training" else _evaluation_items(row):
                    made = _example(row, prefix, item, pictures, self.test_image_seed)
                    if isinstance(made, Example):
                        yield made
                    else:
                        skipped[made] += 1
        if skipped:
            log.warning("%s, %s: skipped %s", self.location, label, dict(skipped))
