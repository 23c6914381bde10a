"""Matched forgetting: where on its way down a method has forgotten as much as a model that never knew.

Methods are compared at equal forgetting, never at equal learning rate or step count: every one of them can be driven
until it forgets, and until it forgets everybody (reference/measurements.md, section 3). The bar is the fact recall of
the retain-only model on the forget people, which is luck, plus one standard error over those people, and never below
one fact, for at an exact zero a method would be judged by whether a single guess went wrong (design, section 11).
The crossing is the first evaluated point at or below the bar, not an interpolation: what is reported was measured.
A method that never crosses is said to do so by None; leaving it out of a table is the report's to refuse.
Where points come from: `generate.py` along a run; per-person recalls: `score.fact_recall_by_person`.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TypeVar

# One evaluated moment: `step`, `forget_fact`, and whatever else is to be compared there (`retain_heldout_fact`, ...).
Point = TypeVar("Point", bound=Mapping[str, float])

_ROUNDING = 1e-9  # a mean of fractions and the same count over their number may differ in the last bits


def mean_and_standard_error(sums: Mapping[str, tuple[float, int]]) -> tuple[float, float]:
    """Return the mean over people of their means, and its standard error (0 for one person: unknown).

    A person has a sum and what it is over: facts recalled of facts asked, or log-probabilities of so many answers.
    """
    if not sums or any(number < 1 for _, number in sums.values()):
        raise ValueError(
            f"expected people with at least one fact asked of each, found {dict(sums)!r}. "
            "Evaluate the forget split first."
        )
    rates = [total / number for total, number in sums.values()]
    error = statistics.stdev(rates) / math.sqrt(len(rates)) if len(rates) > 1 else 0.0
    return statistics.fmean(rates), error


def forgetting_threshold(recall: Mapping[str, tuple[int, int]]) -> float:
    """Return the recall at which the forget people count as forgotten, from retain-only's (hits, facts) a person.

    It is the mean plus one standard error over people, and at least one of all facts asked (design, section 11).
    """
    mean, error = mean_and_standard_error(recall)
    return max(mean + error, 1 / sum(number for _, number in recall.values()))


def first_crossing(points: Sequence[Point], threshold: float) -> Point | None:
    """Return the earliest point whose `forget_fact` is at or below the threshold, or None: the method never crosses.

    `forget_fact` must be the statistic the threshold is made of: the mean over people of `mean_and_standard_error`.
    """
    for point in points:
        if not math.isfinite(point.get("forget_fact", math.nan)) or "step" not in point:
            raise ValueError(
                f"expected points with `step` and a finite `forget_fact`, found {dict(point)!r}. Score it again."
            )
    if len({point["step"] for point in points}) < len(points):
        raise ValueError(
            f"expected one point a step, found steps {[point['step'] for point in points]}. "
            "Give one trajectory at a time."
        )
    ordered = sorted(points, key=lambda point: point["step"])
    return next((point for point in ordered if point["forget_fact"] <= threshold + _ROUNDING), None)
