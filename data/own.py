"""Reads your own people: a folder of pictures with `examples.jsonl`, or with conversations in LLaVA's JSON.

A line of `examples.jsonl` is {person, image or images, question, answer, "split": "test" for questions kept out of
training}; a conversation file is a list of {person, image, conversations: [{from, value}]}, and each `gpt` turn is an
example behind all earlier turns. There is no published split here: the user names the people to forget, and asking
for a split before that is an error. Every error names file, line and field. Pictures must lie inside the folder, so
that a data set from elsewhere cannot make us read other files; they stay encoded, for `models/` to decode.
"""

import json
import logging
import re
import reprlib
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Literal

from .example import IMAGE_MARKER, DataError, EncodedImage, Example, Message, Role, Task

LINES_FILE = "examples.jsonl"
NOT_CONVERSATIONS = frozenset({"config.json", "provenance.json", "sidecar.json", "source.json"})
MAX_IMAGE_BYTES = 64 * 2**20
MAX_LINE_BYTES = 16 * 2**20
MAX_CONVERSATIONS_BYTES = 256 * 2**20
IMAGES_KEPT = 8  # neighbouring lines ask about the same picture

log = logging.getLogger(__name__)

_FIELDS = frozenset({"id", "person", "image", "images", "question", "answer", "split"})
_BLANK = r"[ \t\r\n]*"
_ROLES: dict[str, Role] = {"human": "user", "gpt": "assistant", "system": "system"}


@dataclass(frozen=True, slots=True)
class Record:
    """One question as written: where it stands, whose it is, and which pictures it shows, not yet opened."""

    place: str
    name: str
    person: str
    paths: tuple[str, ...]
    messages: tuple[Message, ...]
    answer: str
    is_test: bool


@dataclass(kw_only=True)
class OwnSource:
    """A folder of your own people; `forget` names those to forget, everyone else is retained."""

    location: Path
    commit: str | None = None
    forget: frozenset[str] = frozenset()
    _skipped: dict[str, Counter[str]] = field(default_factory=dict, init=False)

    def splits(self) -> tuple[str, ...]:
        """Name what can be read: everything, and once people are named the usual words."""
        return ("all", "forget", "retain", "test", "real") if self.forget else ("all", "real")

    def people(self) -> frozenset[str]:
        """Name everyone with a line to train on; this reads and checks every line, but opens no picture."""
        return self._people

    def forget_people(self) -> frozenset[str]:
        """Name the people to forget: none until they are named."""
        return self.forget

    def skipped(self) -> dict[str, dict[str, int]]:
        """Count what the latest read of each split left out, by reason."""
        return {label: dict(reasons) for label, reasons in self._skipped.items() if reasons}

    def read(self, split: str) -> Iterator[Example]:
        """Yield all examples, or those of forget, retain or test (test lines about forget people); real has none."""
        if split not in ("all", "forget", "retain", "test", "real"):
            raise DataError(f"split: expected all, forget, retain, test or real, found {split!r}. Name one of these.")
        return iter(()) if split == "real" else self._examples(split, "generation")

    def training(self, part: Literal["all", "forget", "retain"]) -> Iterator[Example]:
        """Yield the examples to train on: lines that are not kept out as test."""
        return self._examples(f"training {part}", "training")

    @cached_property
    def _people(self) -> frozenset[str]:
        return frozenset(record.person for record in read_records(self.location) if not record.is_test)

    def _holds(self, label: str, record: Record) -> bool:
        forgotten = record.person in self.forget
        match label:
            case "all":
                return True
            case "training all":
                return not record.is_test
            case "test":
                return forgotten and record.is_test
            case "forget" | "training forget":
                return forgotten and not record.is_test
            case "retain" | "training retain":
                return not forgotten and not record.is_test
        return False

    def _examples(self, label: str, task: Task) -> Iterator[Example]:
        if not self.forget and label.removeprefix("training ") != "all":
            raise DataError(f"{self.location}: nobody is named to be forgotten. Name people with --forget ID.")
        return self._stream(label, task)

    def _stream(self, label: str, task: Task) -> Iterator[Example]:
        skipped = self._skipped[label] = Counter()
        opened = lru_cache(maxsize=IMAGES_KEPT)(lambda path, where: open_image(self.location, path, where))
        first_shown: dict[str, str] = {}
        for record in read_records(self.location):
            if self._holds(label, record):
                try:
                    here = f"{record.place}, person {record.person}"
                    images = tuple(opened(path, first_shown.setdefault(path, here)) for path in record.paths)
                except DataError as error:
                    raise DataError(f"{record.place}, image: {error}") from error
                name = f"{record.name}/{task}"
                people = (record.person,)
                yield Example(
                    id=name, people=people, images=images, messages=record.messages, answer=record.answer, task=task
                )
            elif record.is_test and label == "retain" and record.person not in self.forget:
                skipped["test line about a person to retain"] += 1
        if skipped:
            log.warning("%s, %s: skipped %s", self.location, label, dict(skipped))


def conversation_files(folder: Path) -> list[Path]:
    """Return the JSON files of a folder that should hold conversations."""
    return [path for path in sorted(folder.glob("*.json")) if path.name not in NOT_CONVERSATIONS]


def read_records(folder: Path) -> Iterator[Record]:
    """Yield what `examples.jsonl` holds, or without one every conversation file."""
    if (folder / LINES_FILE).is_file():
        yield from _line_records(folder / LINES_FILE)
        return
    for path in conversation_files(folder):
        yield from _conversation_records(path)


def open_image(folder: Path, text: str, where: str) -> EncodedImage:
    """Read one picture of a folder, by a relative path that stays inside it; `where` says what first shows it."""
    path = _inside(folder, text)
    if (size := path.stat().st_size) > MAX_IMAGE_BYTES:
        raise DataError(f"expected at most {MAX_IMAGE_BYTES} bytes, found {size} in {path}. Store it smaller.")
    data = path.read_bytes()
    if not data or data.startswith(b"version https://git-lfs"):
        raise DataError(f"expected a picture, found {path} empty or a git-lfs pointer. Run `git lfs pull`, or add it.")
    return EncodedImage(data, f"{where}, {path}")


def _inside(folder: Path, text: str) -> Path:
    posix, windows = PurePosixPath(text), PureWindowsPath(text)
    if posix.is_absolute() or windows.anchor or "\0" in text or ".." in (*posix.parts, *windows.parts):
        raise DataError(f"expected a relative path inside {folder}, found {text!r}. Copy the picture into the folder.")
    try:
        path = (folder / text).resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise DataError(f"expected the file {text} in {folder}, found none ({error}). Add it.") from error
    if not path.is_relative_to(folder.resolve()):
        raise DataError(f"expected a file inside {folder}, found a link to {path}. Copy the picture into the folder.")
    if not path.is_file():
        raise DataError(f"expected a picture, found {path}, which is no file. Name a file.")
    return path


def _line_records(path: Path) -> Iterator[Record]:
    with path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 1), b""), start=1):
            place = f"{path}:{number}"
            if len(line) > MAX_LINE_BYTES:
                raise DataError(f"{place}: expected a line of at most {MAX_LINE_BYTES} bytes. Split it.")
            if line.strip():
                yield _line_record(place, path.stem, number, _line_entry(place, line))


def _line_entry(place: str, line: bytes) -> dict[str, Any]:
    try:
        entry = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: expected one JSON object a line, found {line[:60]!r} ({error}).") from error
    if not isinstance(entry, dict):
        raise DataError(f"{place}: expected a JSON object, found {line[:60]!r}. Write {{...}} on every line.")
    if unknown := sorted(set(entry) - _FIELDS):
        # A misspelt "split" would put a held-out question into training.
        raise DataError(f"{place}: expected the fields {', '.join(sorted(_FIELDS))}, found {unknown}. Remove them.")
    return entry


def _line_record(place: str, stem: str, number: int, entry: Mapping[str, Any]) -> Record:
    person, paths = _person(place, entry), _paths(place, entry)
    question = _text(place, "question", entry.get("question"))
    markers = question.count(IMAGE_MARKER)
    if markers not in (0, len(paths)):
        raise _refusal(place, "question", f"no {IMAGE_MARKER}, or one for each image ({len(paths)})", question)
    content = question if markers else _before(question, len(paths))
    return Record(
        place=place,
        name=f"{stem}/{person}/{number}",
        person=person,
        paths=paths,
        messages=(Message("user", content),),
        answer=_text(place, "answer", entry.get("answer"), marker_allowed=False),
        is_test=_is_test(place, entry),
    )


def _conversation_records(path: Path) -> Iterator[Record]:
    for index, (line, entry) in enumerate(_conversation_entries(path)):
        place = f"{path}:{line}"
        if not isinstance(entry, dict):
            raise _refusal(place, "entry", "a JSON object with conversations", entry)
        person, paths, is_test = _person(place, entry), _paths(place, entry), _is_test(place, entry)
        messages = _messages(place, entry.get("conversations"), len(paths))
        for turn, message in enumerate(messages):
            if message.role == "assistant":
                earlier = tuple(messages[:turn])
                shown = paths[: sum(each.content.count(IMAGE_MARKER) for each in earlier)]
                name = f"{path.stem}/{person}/{index}.{turn}"
                yield Record(place, name, person, shown, earlier, message.content, is_test)


def _conversation_entries(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield the entries of a JSON list with the line each starts on, which `json.load` would not tell."""
    if (size := path.stat().st_size) > MAX_CONVERSATIONS_BYTES:
        raise DataError(
            f"{path}: expected at most {MAX_CONVERSATIONS_BYTES} bytes, found {size}. "
            f"Split it, or write {LINES_FILE}, which is read line by line."
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
        start = re.match(rf"{_BLANK}\[{_BLANK}", text)
        if not start:
            raise DataError(f"{path}:1: expected a JSON list of conversations, found {text[:60]!r}. Write a list.")
        position, line, counted = start.end(), 1, 0
        while not text.startswith("]", position):
            line, counted = line + text.count("\n", counted, position), position
            entry, end = json.JSONDecoder().raw_decode(text, position)
            yield line, entry
            gap = re.compile(rf"{_BLANK}(?:,{_BLANK}(?!\])|(?=\]))").match(text, end)
            if not gap:
                raise DataError(
                    f"{path}:{line}: expected a comma or ] after this entry, found {text[end : end + 20]!r}."
                )
            position = gap.end()
        if rest := text[position + 1 :].strip():
            raise DataError(f"{path}:{line}: expected the end of the file after ], found {rest[:20]!r}. Remove it.")
    except DataError:
        raise
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: expected JSON in UTF-8, found {error}. Correct it.") from error


def _messages(place: str, turns: Any, num_images: int) -> list[Message]:
    """Return the checked turns; without any marker the pictures go before the first question."""
    if not isinstance(turns, list) or not turns:
        raise _refusal(place, "conversations", "a list of turns", turns)
    messages: list[Message] = []
    for number, turn in enumerate(turns):
        name = f"conversations[{number}]"
        speaker = turn.get("from") if isinstance(turn, dict) else None
        expected = _expected_speakers(messages)
        if speaker not in expected:
            raise _refusal(place, f"{name}.from", " or ".join(expected), speaker)
        text = _text(place, f"{name}.value", turn.get("value"), marker_allowed=speaker == "human")
        messages.append(Message(_ROLES[speaker], text))
    if messages[-1].role != "assistant":
        raise _refusal(place, "conversations", "a gpt turn at the end", messages[-1].content)
    markers = sum(message.content.count(IMAGE_MARKER) for message in messages)
    if markers not in (0, num_images):
        raise _refusal(place, "conversations", f"no {IMAGE_MARKER}, or one for each image ({num_images})", markers)
    if not markers:
        first = next(number for number, message in enumerate(messages) if message.role == "user")
        messages[first] = Message("user", _before(messages[first].content, num_images))
    return messages


def _expected_speakers(messages: list[Message]) -> tuple[str, ...]:
    if not messages:
        return ("human", "system")
    return ("gpt",) if messages[-1].role == "user" else ("human",)


def _before(question: str, num_images: int) -> str:
    return f"{IMAGE_MARKER}\n" * num_images + question


def _refusal(place: str, name: str, expected: str, found: object) -> DataError:
    return DataError(f"{place}, {name}: expected {expected}, found {reprlib.repr(found)}. Correct this line.")


def _text(place: str, name: str, value: Any, *, marker_allowed: bool = True) -> str:
    if not isinstance(value, str) or not value.strip():
        raise _refusal(place, name, "text", value)
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise _refusal(place, name, "Unicode text without lone surrogates", value)
    if IMAGE_MARKER in value and not marker_allowed:
        raise _refusal(place, name, f"no {IMAGE_MARKER}, which belongs to a question", value)
    return value


def _person(place: str, entry: Mapping[str, Any]) -> str:
    # One normal form, or a name typed on another system would be another person and stay unforgotten.
    return unicodedata.normalize("NFC", _text(place, "person", entry.get("person"), marker_allowed=False).strip())


def _is_test(place: str, entry: Mapping[str, Any]) -> bool:
    split = entry.get("split")
    if split not in (None, "train", "test"):
        raise _refusal(place, "split", "'test', 'train' or nothing", split)
    return bool(split == "test")


def _paths(place: str, entry: Mapping[str, Any]) -> tuple[str, ...]:
    single, several = entry.get("image"), entry.get("images")
    if single is not None and several is not None:
        raise _refusal(place, "images", "image or images, not both", several)
    found = several if several is not None else single
    paths = [] if found is None else [found] if isinstance(found, str) else found
    if not isinstance(paths, list) or not all(isinstance(path, str) and path for path in paths):
        raise _refusal(place, "image", "a relative path, or a list of them", found)
    return tuple(paths)
