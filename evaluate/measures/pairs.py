"""The same question put to two models: matching answers, and what a person's answers differ by.

A question is its split and its id, in one world: whoever pools worlds matches each by itself. Differences are first
minus second, and a person's is a mean over the questions of which both answers hold the metric.
"""

from collections.abc import Iterable, Mapping, Sequence

from .per_answer import Scored

Pair = tuple[Scored, Scored]
Sums = Mapping[str, tuple[float, int]]  # cluster -> (sum, number of answers)


def matched_by_id(first: Iterable[Scored], second: Iterable[Scored]) -> list[Pair]:
    """Return the answers to questions of one world that both were asked, in the order of the first."""
    known = {_question(item): item for item in second}
    return [(item, known[_question(item)]) for item in first if _question(item) in known]


def difference_sums(pairs: Iterable[Pair], metric: str) -> dict[str, tuple[float, int]]:
    """Return each cluster's (sum of first minus second, number of questions with the metric on both sides)."""
    sums: dict[str, tuple[float, int]] = {}
    for first, second in pairs:
        if metric in first.values and metric in second.values:
            total, number = sums.get(first.cluster, (0.0, 0))
            sums[first.cluster] = (total + first.values[metric] - second.values[metric], number + 1)
    return sums


def cluster_means(sums: Sums) -> list[float]:
    """Return each cluster's mean, clusters in order."""
    return [sums[cluster][0] / sums[cluster][1] for cluster in sorted(sums)]


def with_metric(pairs: Sequence[Pair], metric: str) -> list[Pair]:
    """Return the pairs that hold the metric on both sides."""
    return [pair for pair in pairs if all(metric in side.values for side in pair)]


def _question(item: Scored) -> tuple[str, str]:
    return item.answer.split, item.answer.id
