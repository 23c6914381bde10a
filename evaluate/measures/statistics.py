"""Intervals and tests over clusters: the one place where a number of people becomes an interval or a p-value.

Answers about one person stand or fall together, so whatever is resampled, flipped or permuted here is a cluster and
never an answer: a person, or "world/person" where a caller pools worlds. Intervals are 95 % percentile bootstraps and
None below 18 clusters, where they come out too narrow (design, section 11); tests are permutation tests, which need no
such number: with few clusters their p-value cannot become small, with n pairs not below 2/2^n.
Permutations are drawn here and not by `scipy.stats.permutation_test`, whose numbers they share (a test compares them):
an evaluation makes hundreds of tests, and scipy's draws sort every one of ten thousand rows.
What is compared with what is the other files' business; which tests belong together under Holm is their caller's.

P clusters, Q clusters of a second group, S counts that add up over clusters (the last is always how many were scored),
D draws.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb

import numpy as np
from numpy.typing import ArrayLike, NDArray

MIN_CLUSTERS = 18
BOOTSTRAP_DRAWS = 1000
PERMUTATIONS = 9999  # where there are no more arrangements than this, all of them are counted instead

Interval = tuple[float, float]
Statistic = Callable[[NDArray[np.float64]], float]

_QUANTILES = (0.025, 0.975)
_CHUNK = 1000  # rows of permutations held at once
_ROUNDING = 1e-12  # sums of the same numbers in another order count as equal


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusteredMean:
    """A mean over `n` answers about `clusters` people, and its interval."""

    value: float
    n: int
    clusters: int
    ci: Interval | None


@dataclass(frozen=True, kw_only=True, slots=True)
class PairedTest:
    """The mean difference over `n` clusters, its interval, and the two-sided p-value of its sign."""

    n: int
    mean: float
    ci: Interval | None
    p: float


@dataclass(frozen=True, kw_only=True, slots=True)
class UnpairedTest:
    """The difference of two groups' means over their clusters (first minus second), its interval and p-value."""

    n_first: int
    n_second: int
    difference: float
    ci: Interval | None
    p: float


def cluster_interval(counts_PS: NDArray[np.float64], statistic: Statistic, seed: int) -> Interval | None:
    """Return the 95 % percentile bootstrap interval of a statistic of summed counts, resampling rows (people).

    None below 18 rows: so few clusters give intervals that are too narrow (design, section 11).
    """
    P = len(counts_PS)
    if P < MIN_CLUSTERS:
        return None
    weights_DP = np.random.default_rng(seed).multinomial(P, [1 / P] * P, size=BOOTSTRAP_DRAWS)
    low, high = np.quantile([statistic(sums_S) for sums_S in weights_DP @ counts_PS], _QUANTILES)
    return float(low), float(high)


def clustered_mean(sums: Mapping[str, tuple[float, int]], seed: int) -> ClusteredMean:
    """Return the mean over answers, given each cluster's (sum of values, number of answers)."""
    counts_PS = np.asarray([sums[cluster] for cluster in sorted(sums)], dtype=np.float64)
    if not len(counts_PS) or not np.isfinite(counts_PS).all() or (counts_PS[:, 1] < 1).any():
        raise ValueError(f"expected clusters with at least one finite value each, found {dict(sums)!r}.")
    total, number = counts_PS.sum(axis=0)
    ci = cluster_interval(counts_PS, _ratio, seed)
    return ClusteredMean(value=float(total / number), n=int(number), clusters=len(counts_PS), ci=ci)


def paired_test(differences_P: ArrayLike, seed: int) -> PairedTest:
    """Test whether differences of clusters are as likely to have the other sign, by flipping signs.

    The p-value is two-sided: the share of sign patterns whose mean is at least as far from zero. All 2^n patterns are
    counted up to n = 13; beyond, it is (1 + as far) / (1 + drawn), which is never zero (Phipson and Smyth 2010). It
    assumes that, were there no difference, exchanging a pair's two sides would change nothing. One cluster has p = 1.
    """
    values_P = _finite(differences_P)
    P, mean = len(values_P), float(values_P.mean())
    bar = abs(mean) - _ROUNDING * float(np.abs(values_P).mean())
    is_exact = 2**P <= PERMUTATIONS
    signs = _all_signs(P) if is_exact else _drawn_signs(P, seed)
    reached = sum(int((np.abs(signs_DP @ values_P) / P >= bar).sum()) for signs_DP in signs)
    p = reached / 2**P if is_exact else (reached + 1) / (PERMUTATIONS + 1)
    counts_PS = np.stack([values_P, np.ones(P)], axis=1)
    return PairedTest(n=P, mean=mean, ci=cluster_interval(counts_PS, _ratio, seed), p=p)


def unpaired_test(first_P: ArrayLike, second_Q: ArrayLike, seed: int) -> UnpairedTest:
    """Test whether two groups of clusters have the same mean, by permuting who belongs to which group.

    Two-sided, as `paired_test`; all splits are counted where there are few. Groups of very different spread and size
    can be told apart by that spread. The interval resamples both groups, and is None where either is below 18.
    """
    a_P, b_Q = _finite(first_P), _finite(second_Q)
    P, Q = len(a_P), len(b_Q)
    pooled = np.concatenate([a_P, b_Q])
    difference = float(a_P.mean() - b_Q.mean())
    # The mean difference of a split is this much a unit of its first group's sum, plus a constant.
    scale, offset = 1 / P + 1 / Q, float(pooled.sum()) / Q
    bar = abs(difference) - _ROUNDING * float(np.abs(pooled).mean())
    is_exact = comb(P + Q, P) <= PERMUTATIONS
    sums = _all_sums(pooled, P) if is_exact else _drawn_sums(pooled, P, seed)
    reached = sum(int((np.abs(sums_D * scale - offset) >= bar).sum()) for sums_D in sums)
    p = reached / comb(P + Q, P) if is_exact else (reached + 1) / (PERMUTATIONS + 1)
    ci = _difference_interval(a_P, b_Q, seed)
    return UnpairedTest(n_first=P, n_second=Q, difference=difference, ci=ci, p=p)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for there being several, in the same order (Holm 1979, step-down).

    The smallest of m is multiplied by m, the next by m - 1 and so on; none may fall below one before it, or exceed 1.
    """
    p_M = np.asarray(p_values, dtype=np.float64)
    if not ((p_M >= 0) & (p_M <= 1)).all():
        raise ValueError(f"expected p-values in [0, 1], found {list(p_values)!r}.")
    order = np.argsort(p_M, kind="stable")
    adjusted = np.empty_like(p_M)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p_M[order] * np.arange(len(p_M), 0, -1)))
    return [float(p) for p in adjusted]


def bootstrap_weights(number: int, seed: int) -> NDArray[np.int64]:
    """Return how often each of so many clusters is in each bootstrap draw, [BOOTSTRAP_DRAWS, number]."""
    return np.random.default_rng(seed).multinomial(number, [1 / number] * number, size=BOOTSTRAP_DRAWS)


def percentile_interval(values_D: NDArray[np.float64]) -> Interval:
    """Return the 95 % percentile interval of a statistic's bootstrap draws."""
    low, high = np.quantile(values_D, _QUANTILES)
    return float(low), float(high)


def _difference_interval(a_P: NDArray[np.float64], b_Q: NDArray[np.float64], seed: int) -> Interval | None:
    if min(len(a_P), len(b_Q)) < MIN_CLUSTERS:
        return None
    # One generator each: groups of one size must not be drawn in step.
    first_D = bootstrap_weights(len(a_P), seed) @ a_P / len(a_P)
    second_D = bootstrap_weights(len(b_Q), seed + 1) @ b_Q / len(b_Q)
    return percentile_interval(first_D - second_D)


def _finite(values: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not len(array) or not np.isfinite(array).all():
        raise ValueError(f"expected at least one finite value a cluster, found {array!r}.")
    return array


def _all_signs(P: int) -> Iterator[NDArray[np.int64]]:
    yield 1 - 2 * ((np.arange(2**P)[:, None] >> np.arange(P)) & 1)


def _drawn_signs(P: int, seed: int) -> Iterator[NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    for number in _chunks():
        yield 2 * rng.integers(0, 2, size=(number, P)) - 1


def _all_sums(pooled: NDArray[np.float64], P: int) -> Iterator[NDArray[np.float64]]:
    """Yield the sum of the first group in every split of all clusters."""
    rows_DP = np.asarray(list(combinations(range(len(pooled)), P)))
    yield pooled[rows_DP].sum(axis=1)


def _drawn_sums(pooled: NDArray[np.float64], P: int, seed: int) -> Iterator[NDArray[np.float64]]:
    rng = np.random.default_rng(seed)
    for number in _chunks():
        yield rng.permuted(np.tile(pooled, (number, 1)), axis=1)[:, :P].sum(axis=1)


def _chunks() -> Iterator[int]:
    for start in range(0, PERMUTATIONS, _CHUNK):
        yield min(_CHUNK, PERMUTATIONS - start)


def _ratio(sums_S: NDArray[np.float64]) -> float:
    return float(sums_S[0] / sums_S[1])
