"""Study (f): above which entropy is a token key, and how much does it matter?

Row entropy under irrelevant images is held against the private words of the sidecar: as an order (AUROC) and as a
class at many thresholds epsilon, over all words, by kind of fact, by person, and for first and later tokens of a
private word. Two other numbers that a cache knows are measured beside it: the disagreement of the references
(Jensen-Shannon) and the teacher's doubt of the answer, 1 - R(y). The loss has no threshold; epsilon decides what the
log calls key, when training stops by default, and what a report colours.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...evaluate.measures.statistics import MIN_CLUSTERS
from .classification import Concordance, Plateau, concordance, f1_interval, plateau, rates, shared_interval
from .private_words import SCORES, Piece, Pieces, read_pieces
from .thresholds_page import draw, page

__all__ = ["SCHEMA", "draw", "measure", "measure_pieces", "page"]

SCHEMA = "viker/analysis/thresholds/1"
DEFAULT = 1.0  # nats: --key-entropy of every command
EPSILONS = (
    0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.4, 1.6, 1.8, 2.0,
    2.25, 2.5, 2.75, 3.0, 3.25, 3.5, 3.75, 4.0,
)  # fmt: skip


def measure(runs: Sequence[Path], epsilons: Sequence[float] = EPSILONS) -> dict[str, Any]:
    """Return what is found of the forget people's answers of every run, from the rows each stores.

    Args:
        runs: finished runs of the embedded benchmark, named by their directories.
        epsilons: thresholds to list, in nats; the default is added.

    Raises:
        DataError: a run has no reference rows, no list of private words, or lacks rows of an answer.
    """
    return measure_pieces({run.name: read_pieces(run) for run in runs}, epsilons)


def measure_pieces(worlds: Mapping[str, Pieces], epsilons: Sequence[float] = EPSILONS) -> dict[str, Any]:
    """Return what is found of words and tokens, by world."""
    words = [word for pieces in worlds.values() for word in pieces.words]
    by_world = {name: _of_group(pieces.words) for name, pieces in worlds.items()}
    scores = _Scores(words)
    shared = shared_interval([scores_of.plateau("entropy") for scores_of in map(_Scores, _words_of(worlds))])
    return {
        "schema": SCHEMA, "default": DEFAULT, "min_clusters": MIN_CLUSTERS, "worlds": list(worlds),
        "overall": _of_group(words), "shared_interval": shared,
        "by_epsilon": [scores.rates(epsilon) for epsilon in sorted({*epsilons, DEFAULT})],
        "f1_ci": scores.f1_interval(), "scores": _rivals(scores), "by_world": by_world, "by_kind": _by_kind(words),
        "by_person": _by_person(words), "tokens": _by_place(worlds),
    }  # fmt: skip


class _Scores:
    """Words (or tokens) as arrays."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self.is_private_N = np.array([piece.is_private for piece in pieces], np.bool_)
        self.people, self.person_N = np.unique(np.array([piece.person for piece in pieces], str), return_inverse=True)
        self.by_name = {name: np.array([getattr(piece, name) for piece in pieces], np.float64) for name in SCORES}

    def concordance(self, name: str) -> Concordance:
        return concordance(self.by_name[name], self.is_private_N, self.person_N, len(self.people))

    def plateau(self, name: str) -> Plateau | None:
        return plateau(self.by_name[name], self.is_private_N)

    def rates(self, epsilon: float) -> dict[str, Any]:
        return rates(self.by_name["entropy"], self.is_private_N, epsilon)

    def f1_interval(self) -> tuple[float, float] | None:
        return f1_interval(self.by_name["entropy"], self.is_private_N, self.person_N, DEFAULT)


def _words_of(worlds: Mapping[str, Pieces]) -> list[list[Piece]]:
    return [pieces.words for pieces in worlds.values()]


def _of_group(words: Sequence[Piece]) -> dict[str, Any]:
    """Return AUROC, plateau and what the default comes to, of entropy over some words."""
    scores = _Scores(words)
    best = scores.plateau("entropy")
    return {
        "people": len(scores.people), **scores.concordance("entropy").told(),
        "plateau": None if best is None else best.told(DEFAULT), "at_default": scores.rates(DEFAULT),
    }  # fmt: skip


def _rivals(scores: _Scores) -> dict[str, Any]:
    """Return every score's AUROC and best F1, and how far its AUROC is below entropy's."""
    entropy = scores.concordance("entropy")
    found = {}
    for name in SCORES:
        order, best = scores.concordance(name), scores.plateau(name)
        found[name] = {
            **order.told(), "below_entropy": None if name == "entropy" else order.less_than(entropy),
            "plateau": None if best is None else best._asdict(),
        }  # fmt: skip
    return found


def _by_kind(words: Sequence[Piece]) -> list[dict[str, Any]]:
    """Return for each kind of fact how its words stand out among the ordinary words of the answers that state it.

    Private words of other kinds are left out; answers that state no fact have ordinary words alone.
    """
    found = []
    for kind in sorted({kind for word in words for kind in word.stated}):
        chosen = [word for word in words if kind in word.stated and (kind in word.kinds or not word.is_private)]
        rivals = {name: _Scores(chosen).concordance(name).auroc for name in SCORES}
        found.append({"kind": kind, **_of_group(chosen), "scores": rivals})
    without = [word for word in words if not word.stated]
    return found + [{"kind": None, **_of_group(without), "scores": dict.fromkeys(SCORES)}] * bool(without)


def _by_person(words: Sequence[Piece]) -> dict[str, Any]:
    """Return AUROC and F1 at the default of every person, the worst first, and how they are distributed."""
    aurocs = {}
    for name in SCORES:
        scores = _Scores(words)
        aurocs[name] = dict(zip(scores.people.tolist(), scores.concordance(name).auroc_C, strict=True))
    people = []
    for person, auroc in aurocs["entropy"].items():
        of_person = _Scores([word for word in words if word.person == person]).rates(DEFAULT)
        people.append({
            "person": person, "words": of_person["words"], "private": of_person["private"], "auroc": auroc,
            "f1": of_person["f1"], "scores": {name: aurocs[name][person] for name in SCORES},
        })  # fmt: skip
    people.sort(key=lambda one: (_or(one["auroc"], 2), _or(one["f1"], 2), one["person"]))
    return {
        "people": people, "without_private_words": sum(one["private"] == 0 for one in people),
        "auroc": _distribution([one["auroc"] for one in people]), "f1": _distribution([one["f1"] for one in people]),
    }  # fmt: skip


def _distribution(values: Sequence[float | None]) -> dict[str, Any] | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    names = ("lowest", "first_quartile", "median", "third_quartile", "highest")
    quantiles = np.quantile(known, (0, 0.25, 0.5, 0.75, 1))
    return {"people": len(known), **dict(zip(names, map(float, quantiles), strict=True))}


def _by_place(worlds: Mapping[str, Pieces]) -> dict[str, Any]:
    """Return what entropy says of tokens: all private ones, the first of a private word, and those that follow."""
    tokens = [token for pieces in worlds.values() for token in pieces.tokens]
    ordinary = [token for token in tokens if not token.is_private]
    chosen = {
        "private": [token for token in tokens if token.is_private],
        "first": [token for token in tokens if token.place == "first"],
        "later": [token for token in tokens if token.place == "later"],
    }
    found: dict[str, Any] = {}
    for name, private in chosen.items():
        scores = _Scores([*private, *ordinary])
        found[name] = {
            "tokens": len(private), **scores.concordance("entropy").told(),
            "scores": {score: scores.concordance(score).auroc for score in SCORES}, **_key_share(private),
        }  # fmt: skip
    return {**found, "ordinary": {"tokens": len(ordinary), **_key_share(ordinary)}}


def _key_share(tokens: Sequence[Piece]) -> dict[str, Any]:
    """Return how many tokens the default calls key, and the median entropy."""
    entropies = [token.entropy for token in tokens]
    key = sum(entropy > DEFAULT for entropy in entropies)
    median = float(np.median(entropies)) if entropies else None
    return {"key": key, "key_share": key / len(tokens) if tokens else None, "median_entropy": median}


def _or(value: float | None, other: float) -> float:
    return other if value is None else value
