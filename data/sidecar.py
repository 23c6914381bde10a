"""The private words of a benchmark: which words of which kind exist, and which of them belong to whom.

A benchmark that knows its private words can tell forgetting from bad prose: ROUGE hardly moves when one word of twelve
is wrong, a fact does. Words are listed by kind with all their candidates, so that a reply that recites every town is
not taken to know the right one: a fact counts only if exactly one candidate of its kind appears (design, section 11).
Of an answer with several private words the first is asked for, unless the sidecar says `"counts": "all"`: then each of
them is a fact by itself.
Candidates are matched as whole words, longest first ("New York" is one candidate, not also "York"), ignoring case.
Whole words need a script that separates them: Chinese or Thai candidates would have to be segmented before this file.
Who writes the file: `mini_files.py` for the embedded benchmark, anyone for their own people. Scoring is `evaluate/`'s.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

from .artefact import read_json
from .example import DataError

SCHEMA = "viker/sidecar/1"
Counts = Literal["first", "all"]
MAX_BYTES = 64 * 2**20
MAX_CANDIDATES = 10_000  # of one kind: they become one regular expression
MAX_WORD_CHARACTERS = 200
MAX_MISTAKES_SHOWN = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Sidecar:
    """All candidates by kind, each person's private word by kind, and how many of an answer's are asked for.

    Attributes:
        counts: `first`, the private word that appears first in an expected answer, or `all` of them.
    """

    candidates: Mapping[str, tuple[str, ...]]
    facts: Mapping[str, Mapping[str, str]]
    counts: Counts = "first"

    def facts_asked(self, text: str, person: str) -> tuple[tuple[str, str], ...]:
        """Return the (kind, word) that a reply must hold where this is expected, in the order they appear."""
        found = sorted(
            (match.start(), -len(word), kind, word)
            for kind, word in self.facts.get(person, {}).items()
            if (match := _pattern((word,)).search(text))
        )
        return tuple((kind, word) for _, _, kind, word in (found if self.counts == "all" else found[:1]))

    def private_spans(self, text: str, person: str) -> list[tuple[int, int]]:
        """Return the (start, stop) characters of the person's private words in a text, in order and disjoint."""
        words = tuple(self.facts.get(person, {}).values())
        return [match.span() for match in _pattern(words).finditer(text)] if words else []


def merged(sidecars: Sequence[Sidecar]) -> Sidecar:
    """Return what several sources mark together: every kind's candidates of all of them, everybody's words.

    Where one of them counts all facts of an answer, so does the whole.
    """
    candidates: dict[str, tuple[str, ...]] = {}
    for sidecar in sidecars:
        for kind, words in sidecar.candidates.items():
            known = candidates.get(kind, ())
            spelt = set(map(_folded, known))
            candidates[kind] = (*known, *(word for word in words if _folded(word) not in spelt))
    facts = {person: words for sidecar in sidecars for person, words in sidecar.facts.items()}
    counts: Counts = "all" if any(sidecar.counts == "all" for sidecar in sidecars) else "first"
    return Sidecar(candidates=candidates, facts=facts, counts=counts)


def fact_in(text: str, kind: str, word: str, candidates: Mapping[str, Sequence[str]]) -> bool:
    """Tell whether a reply states a fact: exactly one candidate of its kind appears, and it is the right one."""
    choices = tuple(candidates.get(kind, ()))
    if _folded(word) not in map(_folded, choices):
        raise DataError(
            f"expected {word!r} among the candidates of kind {kind!r}, found {_shortened(choices)}. "
            "Add it to the sidecar."
        )
    pattern = _pattern(tuple(unicodedata.normalize("NFC", choice) for choice in choices))
    found = {_folded(match.group()) for match in pattern.finditer(unicodedata.normalize("NFC", text))}
    return found == {_folded(word)}


def read_sidecar(path: Path) -> Sidecar:
    """Read a `sidecar.json`, or say everything that is wrong with it.

    Raises:
        DataError: the file is missing, too large, not of this schema, or names words that could never be scored.
    """
    if path.is_file() and path.stat().st_size > MAX_BYTES:
        raise DataError(
            f"{path}: expected at most {MAX_BYTES} bytes, found {path.stat().st_size}. Split the benchmark."
        )
    try:
        value = read_json(path)
    except RecursionError as error:
        raise DataError(f"{path}: expected a sidecar, found JSON nested too deep to read. Make it again.") from error
    if value.get("schema") != SCHEMA:
        raise DataError(f"{path}: expected schema {SCHEMA!r}, found {value.get('schema')!r}. Make the benchmark again.")
    counts = value.get("counts", "first")
    mistakes = _mistakes(value.get("candidates"), value.get("facts"))
    if counts not in get_args(Counts):
        mistakes.append(f"  `counts`: {' or '.join(get_args(Counts))} is needed, not {counts!r}")
    if mistakes:
        raise DataError(
            f"{path}: expected private words that can be scored, found:\n{_listed(mistakes)}\nCorrect the file."
        )
    candidates = {kind: tuple(words) for kind, words in value["candidates"].items()}
    facts = {person: dict(words) for person, words in value["facts"].items()}
    return Sidecar(candidates=candidates, facts=facts, counts=counts)


def _mistakes(candidates: Any, facts: Any) -> list[str]:
    if not isinstance(candidates, dict) or not isinstance(facts, dict):
        return ["  `candidates` and `facts` must both be objects"]
    mistakes = [mistake for kind, words in candidates.items() for mistake in _candidate_mistakes(kind, words)]
    known = {kind: set(map(_folded, _strings(words))) for kind, words in candidates.items()}
    for person, words in facts.items():
        if isinstance(words, dict):
            mistakes += _fact_mistakes(person, words, known)
        else:
            mistakes.append(f"  facts of {person!r}: an object of kind to word is needed")
    return mistakes


def _candidate_mistakes(kind: str, words: Any) -> list[str]:
    if not isinstance(words, list) or not words or len(words) > MAX_CANDIDATES:
        return [f"  candidates of {kind!r}: a list of 1 to {MAX_CANDIDATES} words is needed"]
    bad = [word for word in words if not isinstance(word, str) or not word.strip() or len(word) > MAX_WORD_CHARACTERS]
    if bad:
        return [f"  candidates of {kind!r}: not a word of 1 to {MAX_WORD_CHARACTERS} characters: {_shortened(bad)}"]
    # A word listed twice in two spellings would make "exactly one candidate" depend on which of them is looked up.
    twice = [word for word, count in Counter(map(_folded, words)).items() if count > 1]
    return [f"  candidates of {kind!r}: listed twice: {_shortened(twice)}"] if twice else []


def _fact_mistakes(person: str, words: Mapping[str, Any], known: Mapping[str, set[str]]) -> list[str]:
    return [
        f"  facts of {person!r}: {word!r} is not a candidate of kind {kind!r}"
        for kind, word in words.items()
        if not isinstance(word, str) or _folded(word) not in known.get(kind, set())
    ]


@lru_cache(maxsize=4096)
def _pattern(words: tuple[str, ...]) -> re.Pattern[str]:
    """Compile a pattern that finds any of the words as whole words, longest first, across any white space."""
    longest_first = sorted(words, key=len, reverse=True)
    choices = "|".join(r"\s+".join(map(re.escape, word.split())) for word in longest_first)
    return re.compile(rf"(?<!\w)(?:{choices})(?!\w)", re.IGNORECASE)


def _folded(word: str) -> str:
    return " ".join(unicodedata.normalize("NFC", word).casefold().split())


def _strings(words: Any) -> Iterable[str]:
    return (word for word in words if isinstance(word, str)) if isinstance(words, list) else ()


def _listed(lines: Sequence[str]) -> str:
    more = len(lines) - MAX_MISTAKES_SHOWN
    return "\n".join(lines[:MAX_MISTAKES_SHOWN]) + (f"\n  ... and {more} more" if more > 0 else "")


def _shortened(words: Sequence[Any]) -> str:
    return ", ".join(repr(word) for word in words[:5]) + (", ..." if len(words) > 5 else "") if words else "none"
