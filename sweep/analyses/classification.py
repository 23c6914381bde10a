"""How well a score tells two classes apart: AUROC, what a threshold makes of it, and how much the threshold matters.

Answers about one person stand or fall together, so intervals resample people (clusters) and are None below 18 of them
(`evaluate/measures/statistics.py`). AUROC is a mean over pairs of a positive and a negative; counted by the clusters of
either, a bootstrap draw is a weighted sum of a small matrix, and nothing is sorted again.
"""

# N items, C clusters, D bootstrap draws, T thresholds

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...evaluate.measures.statistics import (
    MIN_CLUSTERS,
    bootstrap_weights,
    cluster_interval,
    percentile_interval,
)

SEED = 0
NEAR_BEST = 0.99  # of the best F1

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


class Concordance(NamedTuple):
    """How many pairs (positive of cluster i, negative of cluster j) there are, and are in the right order; ties half.

    `clusters` is how many have any item.
    """

    right_CC: Floats
    pairs_CC: Floats
    clusters: int

    @property
    def auroc(self) -> float | None:
        """AUROC over all pairs, also between clusters; None without a positive or a negative."""
        return _ratio(self.right_CC.sum(), self.pairs_CC.sum())

    @property
    def auroc_C(self) -> list[float | None]:
        """AUROC inside each cluster, None where it lacks a class."""
        return [_ratio(*both) for both in zip(self.right_CC.diagonal(), self.pairs_CC.diagonal(), strict=True)]

    def draws_D(self) -> Floats:
        """Return AUROC in every bootstrap draw of clusters; NaN where a draw lacks a class."""
        weights_DC = bootstrap_weights(len(self.pairs_CC), SEED).astype(np.float64)
        right_D, pairs_D = (((weights_DC @ one_CC) * weights_DC).sum(1) for one_CC in (self.right_CC, self.pairs_CC))
        with np.errstate(invalid="ignore"):
            return np.asarray(right_D / pairs_D)

    def told(self) -> dict[str, Any]:
        """Return AUROC and its interval for JSON."""
        draws_D = self.draws_D() if self.clusters >= MIN_CLUSTERS and self.auroc is not None else None
        return {"auroc": self.auroc, "ci": _interval(draws_D), "clusters": self.clusters}

    def less_than(self, other: "Concordance") -> dict[str, Any]:
        """Return by how much AUROC is less than another score's on the same items, resampling the same clusters."""
        if self.auroc is None or other.auroc is None:
            return {"difference": None, "ci": None}
        draws_D = other.draws_D() - self.draws_D() if self.clusters >= MIN_CLUSTERS else None
        return {"difference": other.auroc - self.auroc, "ci": _interval(draws_D)}


class Plateau(NamedTuple):
    """The best F1 of any threshold, and the thresholds around it (low <= t < high) whose F1 is within 1 % of that.

    `pieces` is how many such stretches there are in all: more than one means that F1 falls in between.
    """

    best_f1: float
    low: float
    high: float
    pieces: int

    def holds(self, threshold: float) -> bool:
        """Tell whether a threshold is within."""
        return self.low <= threshold < self.high

    def told(self, threshold: float) -> dict[str, Any]:
        """Return it for JSON, with whether a threshold is within."""
        return {**self._asdict(), "holds_default": self.holds(threshold)}


def concordance(scores_N: Floats, is_positive_N: Flags, cluster_N: NDArray[np.int64], number: int) -> Concordance:
    """Count pairs of a positive and a negative by their clusters, of which there are `number`."""
    right_CC, pairs_CC = np.zeros((number, number)), np.zeros((number, number))
    positives_N, of_positive_N = scores_N[is_positive_N], cluster_N[is_positive_N]
    positives_C = np.bincount(of_positive_N, minlength=number)
    for cluster in range(number):
        negatives = np.sort(scores_N[~is_positive_N & (cluster_N == cluster)])
        below = np.searchsorted(negatives, positives_N, "left") + np.searchsorted(negatives, positives_N, "right")
        right_CC[:, cluster] = np.bincount(of_positive_N, below / 2, number)
        pairs_CC[:, cluster] = positives_C * len(negatives)
    return Concordance(right_CC, pairs_CC, len(np.unique(cluster_N)))


def rates(scores_N: Floats, is_private_N: Flags, threshold: float) -> dict[str, Any]:
    """Return what calling everything above a threshold key comes to: counts, and rates where they exist."""
    is_key_N = scores_N > threshold
    key, private = int(is_key_N.sum()), int(is_private_N.sum())
    both, right = int((is_key_N & is_private_N).sum()), int((is_key_N == is_private_N).sum())
    return {
        "epsilon": threshold, "words": len(scores_N), "key": key, "private": private, "both": both,
        "key_share": _ratio(key, len(scores_N)), "precision": _ratio(both, key), "recall": _ratio(both, private),
        "f1": _ratio(2 * both, key + private), "accuracy": _ratio(right, len(scores_N)),
    }  # fmt: skip


def f1_interval(
    scores_N: Floats, is_private_N: Flags, cluster_N: NDArray[np.int64], threshold: float
) -> tuple[float, float] | None:
    """Return the interval of F1 at a threshold, resampling clusters."""
    clusters, index_N = np.unique(cluster_N, return_inverse=True)
    is_key_N = scores_N > threshold
    counts_CS: Floats = np.stack(
        [
            np.bincount(index_N, values_N, len(clusters))
            for values_N in (is_key_N & is_private_N, is_key_N, is_private_N)
        ],
        axis=1,
    )
    return cluster_interval(counts_CS, lambda sums_S: 2 * sums_S[0] / max(1.0, sums_S[1] + sums_S[2]), SEED)


def plateau(scores_N: Floats, is_private_N: Flags) -> Plateau | None:
    """Return the best F1 over every threshold from 0 on, and how far a threshold may be off; None without a positive.

    Exact, not on a grid: F1 changes at the scores alone. Scores are not negative.
    """
    if not is_private_N.any():
        return None
    order_N = np.argsort(scores_N, kind="stable")[::-1]
    key_N = np.arange(1, len(scores_N) + 1)
    both_N = np.cumsum(is_private_N[order_N])
    f1_N = 2 * both_N / (key_N + is_private_N.sum())
    falling_N = scores_N[order_N]
    is_last_N = np.append(falling_N[:-1] != falling_N[1:], True)  # of equal scores, all are key or none is
    # A threshold t with lows[i] <= t < highs[i] calls key what scores at least highs[i].
    highs_T, f1_T = falling_N[is_last_N][::-1], f1_N[is_last_N][::-1]
    lows_T = np.concatenate([[0.0], highs_T[:-1]])
    possible_T = highs_T > 0
    if not possible_T.any():  # nothing can be called key by a threshold of 0 or more
        return None
    highs_T, lows_T, f1_T = highs_T[possible_T], lows_T[possible_T], f1_T[possible_T]
    best = int(f1_T.argmax())
    is_near_T = f1_T >= NEAR_BEST * f1_T[best]
    first = last = best
    while first > 0 and is_near_T[first - 1]:
        first -= 1
    while last + 1 < len(is_near_T) and is_near_T[last + 1]:
        last += 1
    pieces = int(is_near_T[0]) + int((is_near_T[1:] & ~is_near_T[:-1]).sum())
    return Plateau(float(f1_T[best]), float(lows_T[first]), float(highs_T[last]), pieces)


def shared_interval(found: Sequence[Plateau | None]) -> tuple[float, float] | None:
    """Return the thresholds that are within every plateau, None where there are none."""
    known = [one for one in found if one is not None]
    if not known or len(known) < len(found):
        return None
    low, high = max(one.low for one in known), min(one.high for one in known)
    return (low, high) if low < high else None


def _ratio(part: float, whole: float) -> float | None:
    return float(part / whole) if whole else None


def _interval(draws_D: Floats | None) -> tuple[float, float] | None:
    if draws_D is None:
        return None
    known_D = draws_D[np.isfinite(draws_D)]
    return percentile_interval(known_D) if len(known_D) else None
