"""What people say beyond means: intervals of a row, and differences between rows, at the crossings.

A cluster is a person of a world (design, section 11); one that several seeds measured has the mean over them.
Intervals and tests are evaluation's (`measures/statistics.py`): none is given below 18 clusters. Differences are
between the same people, in those worlds in which both crossed; p-values are adjusted within the differences that stand
in one table. People of one world share its adapters, and with them whatever fell out by chance when those were trained:
tests over people are too sure of themselves. So every difference is tested over worlds as well, by their means.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from ..evaluate.measures.statistics import clustered_mean, holm, paired_test
from .collect import HEADLINE, Trained

_SEED = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """How much more a row keeps of held-out retain facts than the one it is compared with; p adjusted (Holm).

    Attributes:
        p: over people.
        worlds: in how many both crossed; `ahead`: in how many of them this row's mean is higher.
        p_worlds: over the means of worlds; never below 2 / 2^worlds.
    """

    label: str
    than: str
    people: int
    mean: float
    ci: tuple[float, float] | None
    p: float
    worlds: int
    ahead: int
    p_worlds: float


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
    rates = {label: rates_by_person(group, HEADLINE) for label, group in groups.items() if label != than}
    found = {label: more for label, mine in rates.items() if (more := _more(mine, base))}
    by_world = {label: _means_of_worlds(more) for label, more in found.items()}
    tests = {label: paired_test(list(more.values()), _SEED) for label, more in found.items()}
    over_people = holm([test.p for test in tests.values()])
    over_worlds = holm([paired_test(means, _SEED).p for means in by_world.values()])
    return [
        Difference(
            label=label, than=than, people=test.n, mean=round(test.mean, 6), ci=_rounded(test.ci), p=round(p, 6),
            worlds=len(by_world[label]), ahead=sum(mean > 0 for mean in by_world[label]), p_worlds=round(p_worlds, 6),
        )
        for (label, test), p, p_worlds in zip(tests.items(), over_people, over_worlds, strict=True)
    ]  # fmt: skip


def _more(mine: Mapping[str, float], base: Mapping[str, float]) -> dict[str, float]:
    return {person: mine[person] - base[person] for person in sorted(base.keys() & mine.keys())}


def _means_of_worlds(more: Mapping[str, float]) -> list[float]:
    found: dict[str, list[float]] = {}
    for person, difference in more.items():
        found.setdefault(person.rpartition("/")[0], []).append(difference)
    return [fmean(differences) for differences in found.values()]


def _interval(rates: Mapping[str, float]) -> tuple[float, float] | None:
    if not rates:
        return None
    return _rounded(clustered_mean({person: (rate, 1) for person, rate in rates.items()}, _SEED).ci)


def _rounded(ci: tuple[float, float] | None) -> tuple[float, float] | None:
    return None if ci is None else (round(ci[0], 6), round(ci[1], 6))
