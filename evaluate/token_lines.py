"""What is kept of a model's next-token candidates: the lines of `tokens.jsonl`, and whose answers they are about.

A line is one training question about a forget person with its answer, token by token: what the model would rather have
said there, and how sure it is. The teacher's row of the same tokens lies in the cache under `row_key`, so that a report
can lay both side by side without a model. Lines are read as a stranger's: the first field that is wrong is named.
Who asks the model is `token_candidates.py`, who joins lines with rows `report/tokens.py`.
"""

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from ..data.example import DataError

SCHEMA = "viker/tokens/1"
FILE = "tokens.jsonl"
NUM_CANDIDATES = 5
DIGITS = 4
MAX_BYTES = 64 * 2**20  # 64 answers of five hundred tokens have a twentieth of that
_MAX_SHOWN = 80


@dataclass(frozen=True, kw_only=True, slots=True)
class Token:
    """One answer token as a model sees it coming.

    Attributes:
        id: of the answer's own token.
        text: what it adds to the text before it.
        logprob: of the answer's own token, in nats.
        entropy: of the whole next-token distribution, in nats.
        candidates: (id, text, log-probability) of the likeliest tokens, the likeliest first.
    """

    id: int
    text: str
    logprob: float
    entropy: float
    candidates: tuple[tuple[int, str, float], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenLine:
    """One line of `tokens.jsonl`: an answer of the training set, token by token.

    Attributes:
        people: everyone the example is about; `person` is the first of them.
        answer: the text of the answer's tokens, without end tokens.
        row_key: hex of the teacher's row key for kinds that do not show the example's own image.
        words: (first token, last token, start, stop) of each word; characters count in `answer`.
    """

    id: str
    split: str
    person: str
    people: tuple[str, ...]
    question: str
    answer: str
    row_key: str
    words: tuple[tuple[int, int, int, int], ...]
    tokens: tuple[Token, ...]


class About(NamedTuple):
    """What decides whether an answer is among those shown."""

    id: str
    person: str
    question: str
    answer: str


def spread_over_people(answers: Sequence[About], most: int, seed: int) -> list[int]:
    """Return the places of at most so many answers, in order: the same for the same answers and seed.

    People take turns; each gives an answer not chosen of them yet, to the question chosen least so far, and where that
    leaves several, the one whose digest of seed and id comes first.
    """
    waiting: dict[str, list[int]] = {}
    for place, one in enumerate(answers):
        waiting.setdefault(one.person, []).append(place)
    digests = [hashlib.sha256(f"{seed}\n{one.id}".encode()).digest() for one in answers]
    said: Counter[tuple[str, str]] = Counter()
    asked: Counter[str] = Counter()

    def turn(place: int) -> tuple[int, int, bytes]:
        one = answers[place]
        return said[one.person, one.answer], asked[one.question], digests[place]

    chosen: list[int] = []
    while len(chosen) < min(most, len(answers)):
        for person in sorted(name for name, places in waiting.items() if places)[: most - len(chosen)]:
            place = min(waiting[person], key=turn)
            waiting[person].remove(place)
            said[person, answers[place].answer] += 1
            asked[answers[place].question] += 1
            chosen.append(place)
    return sorted(chosen)


def text_behind(decode: Callable[[list[int]], str], before: int | None, token: int) -> str:
    """Return what a token adds to the text behind another one; decoded alone it may lose the space in front.

    Args:
        decode: makes text of ids, special tokens included.
        before: the token before it, None at the beginning of the answer.
        token: the token; one without a text (a model may have more rows than its tokenizer has tokens) is its number.
    """
    if before is None:
        return decode([token]) or f"#{token}"
    first, both = decode([before]), decode([before, token])
    added = both[len(first) :] if both.startswith(first) else ""
    return added or decode([token]) or f"#{token}"


def write_lines(path: Path, lines: Iterable[TokenLine]) -> None:
    """Write a `tokens.jsonl` durably: a temporary name, fsync, then an atomic rename."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as stream:
        for line in lines:
            stream.write(json.dumps({"schema": SCHEMA, **asdict(line)}, ensure_ascii=False, allow_nan=False) + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)


def read_lines(path: Path) -> list[TokenLine]:
    """Read a `tokens.jsonl`; only a newline ends a line.

    Raises:
        DataError: it cannot be read, is too large, or a line is not what it must be; names the line.
    """
    try:
        if (size := path.stat().st_size) > MAX_BYTES:
            raise DataError(f"{path}: expected at most {MAX_BYTES} bytes, found {size}. Evaluate again.")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: expected UTF-8 text, found none ({error}). Evaluate again.") from error
    numbered = enumerate(text.split("\n"), start=1)
    return [_parse(f"{path}, line {number}", line) for number, line in numbered if line.strip()]


def _parse(where: str, line: str) -> TokenLine:
    problem, advice = f"{where}: expected the tokens of an answer ({SCHEMA})", "Evaluate again with --overwrite."
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{problem}, found something that is not JSON ({error}). {advice}") from error
    if not isinstance(record, dict) or record.pop("schema", None) != SCHEMA:
        raise DataError(f"{problem}, found {line[:_MAX_SHOWN]!r}. {advice}")
    names = {field.name for field in fields(TokenLine)}
    wrong = sorted((names ^ set(record)) | {name for name in names & set(record) if not _IS_VALID[name](record[name])})
    if wrong:
        shown = ", ".join(name[:_MAX_SHOWN] for name in wrong[:10])
        raise DataError(f"{problem}, found missing, unknown or malformed fields {shown}. {advice}")
    if record["person"] != record["people"][0] or any(last >= len(record["tokens"]) for _, last, *_ in record["words"]):
        raise DataError(f"{problem}, found words or a person that are not those of its tokens or people. {advice}")
    tokens = tuple(_token(token) for token in record["tokens"])
    words, people = tuple(map(tuple, record["words"])), tuple(record["people"])
    return TokenLine(**record | {"people": people, "words": words, "tokens": tokens})


def _token(record: dict[str, Any]) -> Token:
    return Token(**record | {"candidates": tuple(map(tuple, record["candidates"]))})


def _is_text(value: Any) -> bool:
    """Tell whether this is a text that can be written again: JSON can hold half a character, UTF-8 cannot."""
    return isinstance(value, str) and value.encode(errors="ignore").decode() == value


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_text, value))


def _is_row_key(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 32 and set(value) <= set("0123456789abcdef")


def _is_word(value: Any) -> bool:
    """Tell whether these are a first and a last token, and a start and a stop, in order."""
    if not isinstance(value, list) or list(map(type, value)) != [int] * 4:
        return False
    first, last, start, stop = map(int, value)
    return 0 <= first <= last and 0 <= start < stop


def _is_token(value: Any) -> bool:
    if not isinstance(value, dict) or set(value) != {field.name for field in fields(Token)}:
        return False
    candidates = value["candidates"]
    return (
        _is_id(value["id"])
        and _is_text(value["text"])
        and _is_logprob(value["logprob"])
        and _is_number(value["entropy"])
        and isinstance(candidates, list)
        and 0 < len(candidates) <= NUM_CANDIDATES
        and all(map(_is_candidate, candidates))
    )


def _is_candidate(value: Any) -> bool:
    if not isinstance(value, list) or len(value) != 3:
        return False
    return _is_id(value[0]) and _is_text(value[1]) and _is_logprob(value[2])


def _is_id(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**31


def _is_number(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value)


def _is_logprob(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value) and value <= 0


def _list_of(is_item: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(is_item, value))


_IS_VALID: dict[str, Callable[[Any], bool]] = {
    "id": _is_text, "split": _is_text, "person": _is_text, "people": _is_texts, "question": _is_text,
    "answer": _is_text, "row_key": _is_row_key, "words": _list_of(_is_word), "tokens": _list_of(_is_token),
}  # fmt: skip
