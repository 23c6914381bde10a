"""Who the rows of CLEAR are about: their names where they carry one, and who is meant in a `+tofu` row, which does not.

A caption belongs to the person under whose name the same caption is published; where several people share it, or it is
in no named config, the picture decides. A text question is about whoever is named in full in it, else in its answer:
that is all the published columns say. A row that names nobody known is about `unnamed`; whoever reads says how many.
Names and texts are read without the pictures. Which rows a split means is `clear.py`'s business.
"""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from .clear_rows import REPOSITORY, Layout, Row, row_picture
from .example import DataError
from .parquet import opened, wanted_cells

UNNAMED = "unnamed"
People = tuple[str, ...]


def plain_name(name: str) -> str:
    """Return a name as people are known by it: without outer white space, composed Unicode."""
    return unicodedata.normalize("NFC", name.strip())


def names_in(files: Iterable[Path]) -> frozenset[str]:
    """Name everyone in files with a column `name`, which is read alone."""
    found: set[str] = set()
    for path in files:
        with opened(path) as file:
            found.update(_names(path, file))
    return frozenset(found)


class Mentions:
    """Finds people by their full names in texts, as whole words."""

    def __init__(self, names: Iterable[str]) -> None:
        choices = "|".join(map(re.escape, sorted(names, key=lambda name: (-len(name), name))))  # longest first
        self._pattern = re.compile(rf"(?<!\w)(?:{choices})(?!\w)") if choices else None

    def people(self, question: Any, answer: Any) -> People:
        """Return who is named in a question, or else in its answer, in order of appearance; `unnamed` if nobody is."""
        return self._named_in(question) or self._named_in(answer) or (UNNAMED,)

    def _named_in(self, text: Any) -> People:
        if self._pattern is None or not isinstance(text, str):
            return ()
        return tuple(dict.fromkeys(self._pattern.findall(unicodedata.normalize("NFC", text))))


class Roster:
    """Everyone in files with a column `name`, by name, caption and picture."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = files

    @cached_property
    def names(self) -> frozenset[str]:
        """Everyone's name."""
        return names_in(self._files)

    def whose(self, path: Path, file: pq.ParquetFile, layout: Layout, ids: Sequence[str]) -> list[People]:
        """Return who each row of a file is about; `ids` are the rows' own, for pictures of nobody."""
        match layout:
            case "plain" | "perturbed":
                return [(name,) for name in _names(path, file)]
            case "faces":
                answers = _column(file, "answer")
                return [(plain_name(answer),) if _is_text(answer) else (UNNAMED,) for answer in answers]
            case "world":
                return [(row_id,) for row_id in ids]
            case "tofu":
                return self._whose_tofu(path, file)

    def _whose_tofu(self, path: Path, file: pq.ParquetFile) -> list[People]:
        texts = zip(*(_column(file, name) for name in ("caption", "question", "answer")), strict=True)
        whose: list[People] = []
        for caption, question, answer in texts:
            if _is_text(question):
                whose.append(self._mentions.people(question, answer))
            else:
                owner = _sole(self._caption_owners, caption) if _is_text(caption) else None
                whose.append((owner,) if owner else ())
        for number, cells in wanted_cells(file, ["image"], [not people for people in whose]):
            picture = row_picture(Row(f"{path}: row {number}", cells, "", ()))
            owner = _sole(self._picture_owners, picture.sha256) if picture else None
            whose[number] = (owner or UNNAMED,)
        return whose

    @cached_property
    def _mentions(self) -> Mentions:
        return Mentions(self.names)

    @cached_property
    def _caption_owners(self) -> dict[str, set[str]]:
        owners: dict[str, set[str]] = {}
        for path in self._files:
            with opened(path) as file:
                for name, caption in zip(_names(path, file), _column(file, "caption"), strict=True):
                    owners.setdefault(caption, set()).add(name)
        return owners

    @cached_property
    def _picture_owners(self) -> dict[str, set[str]]:
        """Read all named pictures once: only where a caption does not decide."""
        owners: dict[str, set[str]] = {}
        for path in self._files:
            with opened(path) as file:
                names = _names(path, file)
                for number, cells in wanted_cells(file, ["image"], [True] * len(names)):
                    if picture := row_picture(Row(f"{path}: row {number}", cells, "", ())):
                        owners.setdefault(picture.sha256, set()).add(names[number])
        return owners


def is_question(file: pq.ParquetFile) -> list[bool]:
    """Tell of each row of a `+tofu` file whether it is a text question; its pictures are not read."""
    return [_is_text(question) for question in _column(file, "question")]


def _names(path: Path, file: pq.ParquetFile) -> list[str]:
    if "name" not in file.schema_arrow.names:
        found = ", ".join(file.schema_arrow.names)
        raise DataError(f"{path}: expected a column name, found {found}. Read the files as published in {REPOSITORY}.")
    names = _column(file, "name")
    for number, name in enumerate(names):
        if not _is_text(name):
            raise DataError(f"{path}: row {number}, name: expected a person's name, found {name!r}. Add it.")
    return [plain_name(name) for name in names]


def _column(file: pq.ParquetFile, name: str) -> list[Any]:
    values: list[Any] = file.read(columns=[name]).column(name).to_pylist()
    return values


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _sole(owners: Mapping[str, set[str]], key: str) -> str | None:
    """Return the person a caption or a picture belongs to; None where it is nobody, or several."""
    people = owners.get(key, set())
    return next(iter(people)) if len(people) == 1 else None
