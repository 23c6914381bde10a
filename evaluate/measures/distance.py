"""How far are a model's answers from those of retain-only, question by question the same, as distributions?

Two quantities of each question are compared: its truth ratio and its answer probability. Kolmogorov-Smirnov needs no
bins, and its p-value on truth ratios is TOFU's "forget quality" (of R, 1/R, log R alike: it sees order alone). It is
the convention of that paper, not a test to trust: it takes answers of one person as independent and never uses that
the questions are the same; the paired tests of `comparisons.py` do both. A p-value close to 1 also comes of few
questions, so the statistic stands beside it.
Jensen-Shannon distance is of histograms in 20 equal bins over [0, 1] (truth ratio as R / (1 + R)), logarithm to base 2:
0 the same, 1 no overlap. CLEAR's official code gives it the two raw vectors of R instead, as if each question were an
outcome: that depends on which question is which, its logarithm is natural (at most 0.83), and it is here under
`js_official`, to be compared with published numbers and nothing else (reference/benchmarks.md, 2.3, bug c); with the
published code's other habits (a mean over all questions) it is not. "Forget quality" of CLEAR is 1 minus it.

N questions that both models were asked.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import jensenshannon
from scipy.stats import ks_2samp

from ..answers import Answer
from .memorization import answer_probability
from .truth_ratio import log_truth_ratio, share_of

NUM_BINS = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Distance:
    """How far one quantity is from retain-only's over `n` questions; `js_official` is of truth ratios only."""

    quantity: str
    n: int
    ks: float
    ks_p: float
    js: float
    js_official: float | None = None


def distances(ours: Sequence[Answer], retain_only: Sequence[Answer]) -> list[Distance]:
    """Return the distances of answers of one cell, matched by id; quantities that nobody kept are left out."""
    ideal = {answer.id: answer for answer in retain_only}
    pairs = [(answer, ideal[answer.id]) for answer in ours if answer.id in ideal]
    found = []
    ratios = _both([(log_truth_ratio(a), log_truth_ratio(b)) for a, b in pairs])
    if len(ratios):
        found.append(truth_ratio_distance(ratios[:, 0], ratios[:, 1]))
    probabilities = _both([(answer_probability(a), answer_probability(b)) for a, b in pairs])
    if len(probabilities):
        found.append(probability_distance(probabilities[:, 0], probabilities[:, 1]))
    return found


def truth_ratio_distance(ours_N: NDArray[np.float64], ideal_N: NDArray[np.float64]) -> Distance:
    """Return the distance between log truth ratios of the same questions."""
    ks = ks_2samp(ours_N, ideal_N)
    shares = [np.asarray([share_of(value) for value in values_N]) for values_N in (ours_N, ideal_N)]
    return Distance(
        quantity="truth_ratio", n=len(ours_N), ks=float(ks.statistic), ks_p=float(ks.pvalue),
        js=_js_of_histograms(*shares), js_official=_js_of_vectors(ours_N, ideal_N),
    )  # fmt: skip


def probability_distance(ours_N: NDArray[np.float64], ideal_N: NDArray[np.float64]) -> Distance:
    """Return the distance between answer probabilities of the same questions."""
    ks = ks_2samp(ours_N, ideal_N)
    return Distance(
        quantity="answer_probability", n=len(ours_N), ks=float(ks.statistic), ks_p=float(ks.pvalue),
        js=_js_of_histograms(ours_N, ideal_N),
    )  # fmt: skip


def _js_of_histograms(ours_N: NDArray[np.float64], ideal_N: NDArray[np.float64]) -> float:
    # Clipped, for a probability of 1 + 1e-7 is in the last bin, where a histogram would leave it out.
    ours, ideal = (np.histogram(np.clip(n, 0, 1), bins=NUM_BINS, range=(0, 1))[0] for n in (ours_N, ideal_N))
    return _js(ours / ours.sum(), ideal / ideal.sum(), base=2)


def _js_of_vectors(ours_N: NDArray[np.float64], ideal_N: NDArray[np.float64]) -> float:
    """Return the distance of R as if it were a distribution over questions, from log R (its scale cancels)."""
    ours, ideal = (np.exp(values_N - values_N.max()) for values_N in (ours_N, ideal_N))
    return _js(ours / ours.sum(), ideal / ideal.sum(), base=np.e)


def _js(p: NDArray[np.float64], q: NDArray[np.float64], base: float) -> float:
    """Return scipy's distance, or 0 where rounding makes the divergence of equal distributions negative."""
    with np.errstate(invalid="ignore"):
        distance = float(jensenshannon(p, q, base=base))
    return 0.0 if np.isnan(distance) else distance


def _both(values: Sequence[tuple[float | None, float | None]]) -> NDArray[np.float64]:
    """Return the pairs of which both are there, [N, 2]."""
    return np.asarray([pair for pair in values if None not in pair], dtype=np.float64).reshape(-1, 2)
