"""Study (g): gradient weights, measured by autograd, against those that theory predicts; and the two propositions.

What is read is `diagnose.jsonl`, which `viker train --diagnose` wrote before the first step and after the last. With
w(y) = d loss / d z(y) over that of gradient ascent (reference/methods.md, 1.3; arXiv 2601.22020, Propositions 2, 3):

    Proposition 2   normal tokens: weights tend to 1 - lambda where the teacher is certain of the answer
    Proposition 3   key tokens: tokens that the teacher says more than the student are pushed harder than by ascent

The first is a limit of R at a fixed student, w(y) = 1 - lambda + lambda (1 - R(y)) / (1 - q(y)): it is reached where
what the teacher leaves to other tokens is small beside what the student leaves to them. A student that has memorized an
answer leaves next to nothing, so this ratio is what is looked at where the limit is not reached.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...data.example import DataError
from ...evaluate.measures.statistics import MIN_CLUSTERS, clustered_mean
from ...train.diagnose_summary import FILE, NEAR
from ...train.diagnose_summary import SCHEMA as DIAGNOSE_SCHEMA
from ...train.line_files import read_lines
from .gradient_weights_page import draw, page

__all__ = ["SCHEMA", "draw", "measure", "page"]

SCHEMA = "viker/analysis/gradient-weights/1"
MOMENTS = ("before", "after")
ENTROPIES = (0.0, 0.001, 0.01, 0.1, 0.5, 1.0, 2.0, math.inf)  # nats: bounds of classes
MOST_POINTS = 1500  # of a moment, for the figure
_SEED = 0


class Token(NamedTuple):
    """One answer token as a moment saw it; `limit` is what its weight tends to where the teacher is certain."""

    person: str
    limit: float
    is_key: bool
    entropy: float
    weight: float
    predicted: float
    error: float
    logprob: float
    teacher_logprob: float
    kept_above_one: float | None

    @property
    def is_near(self) -> bool:
        """Whether its weight has reached the limit."""
        return abs(self.weight - self.limit) <= NEAR

    @property
    def ratio(self) -> float:
        """What the teacher leaves to other tokens, over what the student does; infinite where it leaves nothing."""
        left, of_student = -math.expm1(self.teacher_logprob), -math.expm1(self.logprob)
        return left / of_student if of_student else math.inf if left else 1.0


def measure(adapters: Mapping[str, Path]) -> dict[str, Any]:
    """Return what the diagnoses of one method's adapters come to, an adapter a world.

    Args:
        adapters: directories of adapters that were trained with `--diagnose`, by the names of their worlds.

    Raises:
        DataError: there is none, one was trained without `--diagnose` or by a loss whose weights are not predicted,
            has no rows, or was trained with other settings than the first.
    """
    if not adapters:
        raise DataError("expected adapters that were trained with `viker train --diagnose`, found none.")
    records = {world: _records(path) for world, path in adapters.items()}
    first = _summaries(next(iter(records.values())))["before"]
    for world, lines in records.items():
        _require_like(first, _summaries(lines), adapters[world])
    moments = [when for when in MOMENTS if all(when in _summaries(lines) for lines in records.values())]
    return {
        "schema": SCHEMA, "worlds": list(records), "method": first["method"], "settings": first["settings"],
        "key_entropy": first["key_entropy"], "normal_limit": first["prediction"]["normal_limit"], "near": NEAR,
        "bound": first["prediction"]["bound"], "min_clusters": MIN_CLUSTERS,
        "moments": {when: _moment(records, when) for when in moments},
    }  # fmt: skip


def _records(path: Path) -> list[dict[str, Any]]:
    lines = read_lines(path / FILE)
    if not lines:
        raise DataError(f"{path / FILE}: expected what `viker train --diagnose` writes, found none. Train with it.")
    if any(line.get("schema") != DIAGNOSE_SCHEMA for line in lines):
        raise DataError(f"{path / FILE}: expected schema {DIAGNOSE_SCHEMA}, found another. Train again.")
    return lines


def _summaries(lines: Iterable[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    return {line["when"]: line for line in lines if line["kind"] == "summary"}


def _require_like(first: Mapping[str, Any], summaries: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    for summary in summaries.values():
        if summary["prediction"] is None:
            raise DataError(
                f"{path / FILE}: expected predicted weights, found none: {summary['no_prediction']}. Name adapters of "
                "`viker`, `recommended`, `pubg` or `vgid`."
            )
        if summary["entropy_classes"] is None:
            raise DataError(f"{path / FILE}: expected entropies of rows, found none: the run had no rows.")
        for name in ("method", "settings", "key_entropy"):
            if summary[name] != first[name]:
                raise DataError(
                    f"{path / FILE}: expected {name} {first[name]} as in the first world, found {summary[name]}. "
                    "Compare adapters of one method and one setting."
                )


def _moment(records: Mapping[str, Sequence[Mapping[str, Any]]], when: str) -> dict[str, Any]:
    tokens, without = list[Token](), 0
    for world, lines in records.items():
        summary = _summaries(lines)[when]
        for line in lines:
            if line["kind"] == "example" and line["when"] == when:
                known, unknown = _tokens(line, world, summary)
                tokens, without = tokens + known, without + unknown
    normal, key = [token for token in tokens if not token.is_key], [token for token in tokens if token.is_key]
    error = max((token.error for token in tokens), default=None)
    return {
        "steps": {world: _summaries(lines)[when]["step"] for world, lines in records.items()},
        "tokens": len(tokens), "without_weight": without, "people": len({token.person for token in tokens}),
        "max_error": error, "max_difference": max((abs(one.weight - one.predicted) for one in tokens), default=None),
        "holds": all(_summaries(lines)[when]["prediction"]["holds"] for lines in records.values()),
        "normal": _normal(normal), "key": _key(key), "by_entropy": _by_entropy(tokens), "points": _points(tokens),
        "by_world": {world: _of_world([one for one in tokens if one.person.startswith(f"{world}/")])
                     for world in records},
    }  # fmt: skip


def _tokens(line: Mapping[str, Any], world: str, summary: Mapping[str, Any]) -> tuple[list[Token], int]:
    """Return the tokens of an example that have a weight, and how many have none (the student is certain of them)."""
    person = f"{world}/{line['people'][0]}"
    names = ("entropy", "weight", "predicted_weight", "error", "logprob", "teacher_logprob", "kept_above_one")
    limit, bar = summary["prediction"]["normal_limit"], summary["key_entropy"]
    found = [
        Token(person, limit, values[0] > bar, *values)
        for values in zip(*(line["tokens"][name] for name in names), strict=True) if None not in values[:-1]
    ]  # fmt: skip
    return found, len(line["tokens"]["entropy"]) - len(found)


def _normal(tokens: Sequence[Token]) -> dict[str, Any]:
    """Return how many normal tokens are at the limit, and how those that are not differ from them."""
    near, far = [token for token in tokens if token.is_near], [token for token in tokens if not token.is_near]
    return {
        **_class(tokens), **_share([(token.person, float(token.is_near)) for token in tokens], "near"),
        "near_ratio": _median([token.ratio for token in near]), "far_ratio": _median([token.ratio for token in far]),
        "alike": _mean([abs(token.ratio - 1) <= NEAR for token in tokens]),
        "far": len(far), "far_above": _mean([token.weight > token.limit for token in far]),
        "far_student_surer": _mean([token.logprob > token.teacher_logprob for token in far]),
        "student_doubt": _median([-math.expm1(token.logprob) for token in tokens]),
        "teacher_doubt": _median([-math.expm1(token.teacher_logprob) for token in tokens]),
    }  # fmt: skip


def _key(tokens: Sequence[Token]) -> dict[str, Any]:
    """Return at how many key tokens some other token is pushed harder than by ascent (kept tokens are looked at)."""
    known = [token for token in tokens if token.kept_above_one is not None]
    above = [(token.person, float((token.kept_above_one or 0) > 0)) for token in known]
    return {
        **_class(tokens), **_share(above, "above_one"), "with_kept": len(known),
        "kept_above_one": _mean([token.kept_above_one or 0.0 for token in known]),
    }  # fmt: skip


def _class(tokens: Sequence[Token]) -> dict[str, Any]:
    weights = [token.weight for token in tokens]
    return {"tokens": len(tokens), "mean_weight": _mean(weights), "median_weight": _median(weights)}


def _of_world(tokens: Sequence[Token]) -> dict[str, Any]:
    normal = [token for token in tokens if not token.is_key]
    return {
        "tokens": len(tokens), "key": len(tokens) - len(normal), "near": _mean([token.is_near for token in normal]),
        "normal_weight": _mean([token.weight for token in normal]),
        "key_weight": _mean([token.weight for token in tokens if token.is_key]),
        "max_error": max((token.error for token in tokens), default=None),
    }  # fmt: skip


def _by_entropy(tokens: Sequence[Token]) -> list[dict[str, Any]]:
    found = []
    for low, high in pairwise(ENTROPIES):
        chosen = [token for token in tokens if low <= max(0.0, token.entropy) < high]
        near = _mean([token.is_near for token in chosen])
        found.append({"low": low, "high": None if math.isinf(high) else high, **_class(chosen), "near": near})
    return found


def _points(tokens: Sequence[Token]) -> dict[str, list[Any]]:
    """Return what the figure shows of some tokens, evenly taken from all of them, as columns."""
    step = max(1, math.ceil(len(tokens) / MOST_POINTS))
    chosen = tokens[::step]
    return {
        "predicted": [_short(token.predicted) for token in chosen],
        "measured": [_short(token.weight) for token in chosen],
        "entropy": [_short(token.entropy) for token in chosen], "is_key": [token.is_key for token in chosen],
    }  # fmt: skip


def _share(values: Sequence[tuple[str, float]], name: str) -> dict[str, Any]:
    """Return the share of tokens of which something holds, with its interval over people."""
    sums: dict[str, tuple[float, int]] = {}
    for person, value in values:
        total, count = sums.get(person, (0.0, 0))
        sums[person] = (total + value, count + 1)
    if not sums:
        return {name: None, f"{name}_ci": None, f"{name}_people": 0}
    found = clustered_mean(sums, _SEED)
    return {name: found.value, f"{name}_ci": found.ci, f"{name}_people": found.clusters}


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if len(values) else None


def _median(values: Sequence[float]) -> float | None:
    middle = float(np.median(values)) if len(values) else math.nan
    return middle if math.isfinite(middle) else None


def _short(value: float) -> float:
    return float(f"{value:.4g}")
