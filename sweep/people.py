"""What people say beyond means: intervals of a row, and differences between rows, at the crossings.

A cluster is a person of a world (design, section 11); one that several seeds measured has the mean over them.
Intervals and tests are evaluation's (`measures/statistics.py`): none is given below 18 clusters. Differences are
between the same people, in those worlds in which both crossed; p-values are adjusted within the differences that stand
in one table.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from ..evaluate.measures.statistics import clustered_mean, holm, paired_test
from .collect import HEADLINE, Trained

_SEED = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """How much more a row keeps of held-out retain facts than the one it is compared with; p adjusted (Holm)."""

    label: str
    than: str
    people: int
    mean: float
    ci: tuple[float, float] | None
    p: float


def intervals(group: Sequence[Trained]) -> dict[str, tuple[float, float]]:
    """Return the interval of every value that was measured by person, over the people of all worlds that crossed."""
    names = dict.fromkeys(name for one in group for name in one.people)
    found = {name: _interval(rates_by_person(group, name)) for name in names}
    return {name: interval for name, interval in found.items() if interval is not None}


def rates_by_person(group: Iterable[Trained], name: str) -> dict[str, float]:
    """Return the mean over seeds of every person's value, by world and place."""
    found: dict[str, list[float]] = {}
    for one in group:
        for place, rate in enumerate(one.people.get(name, ())):
            found.setdefault(f"{one.run}/{place:04d}", []).append(rate)
    return {person: fmean(rates) for person, rates in found.items()}


def differences(groups: Mapping[str, Sequence[Trained]], than: str) -> list[Difference]:
    """Return how every group of trajectories differs from one of them, over the people both measured."""
    base = rates_by_person(groups.get(than, ()), HEADLINE)
    tests = []
    for label, group in groups.items():
        mine = rates_by_person(group, HEADLINE)
        shared = sorted(base.keys() & mine.keys())
        if label != than and shared:
            tests.append((label, paired_test([mine[person] - base[person] for person in shared], _SEED)))
    adjusted = holm([test.p for _, test in tests])
    return [
        Difference(label=label, than=than, people=test.n, mean=round(test.mean, 6), ci=_rounded(test.ci), p=round(p, 6))
        for (label, test), p in zip(tests, adjusted, strict=True)
    ]


def _interval(rates: Mapping[str, float]) -> tuple[float, float] | None:
    if not rates:
        return None
    return _rounded(clustered_mean({person: (rate, 1) for person, rate in rates.items()}, _SEED).ci)


def _rounded(ci: tuple[float, float] | None) -> tuple[float, float] | None:
    return None if ci is None else (round(ci[0], 6), round(ci[1], 6))
