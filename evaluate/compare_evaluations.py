"""`viker evaluate --compare A B`: two evaluations, or two methods over several worlds, question by question.

A side is an evaluation's directory, its name in `--run`, or several of them with commas between, one a world and in the
same order on both sides. Facts are those of each evaluation's own source. The tests themselves are
`measures/compare.py`'s.
"""

from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from ..data.artefact import is_complete, read_config
from ..data.example import DataError
from ..data.sidecar import Sidecar
from .answers import Answer, read_answers
from .measures.compare import as_json, as_text, compare
from .named_source import facts_of_evaluation
from .protocols.effects import effects, effects_table

SCHEMA = "viker/comparisons/1"


class Compared(NamedTuple):
    """Comparisons as text, one each, and as one JSON value."""

    texts: list[str]
    told: dict[str, Any]


def compare_named(
    pairs: Sequence[tuple[str, str]], run: Path | None, seed: int, metrics: Collection[str] | None = None
) -> Compared:
    """Compare the evaluations of every pair.

    Raises:
        DataError: a side names no complete evaluation, or the sides have different numbers of worlds.
    """
    compared = [(a, b, compare(*_worlds(a, b, run), seed, metrics)) for a, b in pairs]
    texts = [as_text(comparison, a, b) for a, b, comparison in compared]
    return Compared(texts, {"schema": SCHEMA, "comparisons": [as_json(each, a, b) for a, b, each in compared]})


def effects_named(named: Sequence[str]) -> tuple[list[dict[str, Any]], str]:
    """Return what corrections change, as rows and as a table, from evaluations named by variant (NAME=DIR).

    A variant may be given several times, once a model. Raises `DataError` where a name has no directory.
    """
    answers: dict[str, list[Answer]] = {}
    facts: Sidecar | None = None
    for item in named:
        name, _, place = item.partition("=")
        evaluation = _evaluation(place, None)
        answers.setdefault(name, []).extend(read_answers(evaluation / "answers.jsonl"))
        facts = facts or facts_of_evaluation(read_config(evaluation)["options"])
    rows = effects(answers, facts)
    return [asdict(row) for row in rows], effects_table(rows)


def _worlds(
    a: str, b: str, run: Path | None
) -> tuple[list[tuple[str, list[Answer], list[Answer]]], dict[str, Sidecar | None]]:
    """Return each world's answers of both sides, and its facts, by the name of its run."""
    sides = [[_evaluation(name, run) for name in side.split(",")] for side in (a, b)]
    if len(sides[0]) != len(sides[1]):
        raise DataError(
            f"--compare: expected as many worlds on both sides, found {len(sides[0])} ({a}) and {len(sides[1])} ({b})."
        )
    worlds, facts = [], {}
    for first, second in zip(*sides, strict=True):
        name = first.resolve().parent.parent.name
        if name in facts:
            raise DataError(
                f"--compare: expected one evaluation a run on each side, found two of {name}. Leave one out."
            )
        worlds.append((name, *(read_answers(path / "answers.jsonl") for path in (first, second))))
        facts[name] = facts_of_evaluation(read_config(first)["options"])
    return worlds, facts


def _evaluation(name: str, run: Path | None) -> Path:
    path = Path(name)
    if run is not None and not path.is_dir():
        path = run / "evaluations" / name
    if not is_complete(path) or not (path / "answers.jsonl").is_file():
        where = "" if run is None else f" and in {run / 'evaluations'}"
        raise DataError(
            f"--compare: expected a complete evaluation, found none at {name}{where}. Run `viker evaluate` first."
        )
    return path
