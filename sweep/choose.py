"""Choose settings on development worlds by one rule, and say what they are worth on worlds that nobody looked at.

The rule: of the settings under which a method crosses in every development world (and under every seed), the one with
the best mean held-out retain fact recall at its crossings; if there is none, the one that crosses most often, which is
said. A method that never crosses is chosen no setting and is listed as such. Contenders with and without retain data
are ranked apart. Means are over those worlds and seeds in which a method crossed, and how many those are stands beside
them: a mean over fewer worlds may be one over easier worlds, so contenders that crossed less often are ranked below.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from .collect import HEADLINE, Point, Trained
from .grid import LEARNING_RATE, Setting
from .people import intervals

RULE = (
    "best mean held-out retain fact recall at the first crossing, among settings that cross in every development world "
    "and under every seed; if there is none, the setting that crosses in most of them"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """The setting a contender goes on with, None where it never crossed; and how it fared where it was chosen."""

    contender: str
    label: str | None
    crossed: int
    replicates: int
    heldout: float | None
    lowest_forget_fact: float
    heldout_there: float

    @property
    def in_every(self) -> bool:
        """Whether the setting crossed wherever it was tried."""
        return self.crossed == self.replicates


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A setting over the worlds it is reported on: mean, lowest and highest of every value at the crossing.

    `ci` holds intervals over people, of values that were measured by person of at least 18.
    """

    contender: str
    needs_retain: bool
    label: str
    crossed: int
    replicates: int
    mean: Mapping[str, float]
    low: Mapping[str, float]
    high: Mapping[str, float]
    ci: Mapping[str, tuple[float, float]]


def choose(trained: Iterable[Trained], replicates: int) -> dict[str, Choice]:
    """Return the choice of every contender, from what was trained on development worlds.

    Args:
        trained: trajectories; one that is missing, because its job failed, counts as a world not crossed.
        replicates: how many worlds and seeds every setting was meant to be trained under.
    """
    chosen = {}
    for contender, of_contender in grouped(trained, lambda one: one.contender).items():
        by_label = grouped(of_contender, lambda one: one.label)
        crossings = {label: [one.crossing for one in group if one.crossing] for label, group in by_label.items()}
        most = max(map(len, crossings.values()))
        scores = {
            label: fmean(point[HEADLINE] for point in points)
            for label, points in crossings.items()
            if points and len(points) == most
        }
        label = max(scores, key=lambda name: scores[name]) if scores else None
        lowest = min((point for one in of_contender for point in one.points), key=lambda point: point["forget_fact"])
        chosen[contender] = Choice(
            contender=contender, label=label, crossed=most, replicates=replicates,
            heldout=scores[label] if label is not None else None, lowest_forget_fact=lowest["forget_fact"],
            heldout_there=lowest[HEADLINE],
        )  # fmt: skip
    return chosen


def settings_to_report(
    settings: Sequence[Setting], follows: Mapping[str, str], chosen: Mapping[str, Choice]
) -> list[Setting]:
    """Return the settings that were chosen, and those that follow a contender and have the rate it was chosen.

    Args:
        settings: all of them.
        follows: by label, whose rate a setting takes.
        chosen: the choices on development worlds, by contender.
    """
    labels = {choice.label for choice in chosen.values()}
    rates = {setting.label: setting.values.get(LEARNING_RATE) for setting in settings}
    rate_of = {name: rates[choice.label] for name, choice in chosen.items() if choice.label is not None}
    return [
        setting
        for setting in settings
        if (
            setting.label in labels
            if setting.label not in follows
            else follows[setting.label] in rate_of
            and setting.values.get(LEARNING_RATE) == rate_of[follows[setting.label]]
        )
    ]


def summarize(trained: Iterable[Trained], replicates: int) -> list[Row]:
    """Return a row a setting at its crossings, ranked within those without and those with retain data."""
    groups = grouped(trained, lambda one: one.label).values()
    rows = [
        _row(group, [one.crossing for one in group if one.crossing], replicates, intervals(group)) for group in groups
    ]
    return sorted(rows, key=_rank)


def summarize_ends(trained: Iterable[Trained], replicates: int) -> list[Row]:
    """Return a row a setting where its trajectories end, unranked: for runs that have no bar of forgetting."""
    groups = grouped(trained, lambda one: one.label).values()
    rows = [_row(group, [one.last for one in group], replicates, {}) for group in groups]
    return sorted(rows, key=lambda row: row.needs_retain)


def _rank(row: Row) -> tuple[bool, float, float]:
    return row.needs_retain, -row.crossed / row.replicates, -row.mean.get(HEADLINE, 0.0)


def _row(
    group: Sequence[Trained], points: Sequence[Point], replicates: int, ci: Mapping[str, tuple[float, float]]
) -> Row:
    names = [name for name in (points[0] if points else {}) if all(name in point for point in points)]
    columns = {name: [point[name] for point in points] for name in names}
    return Row(
        contender=group[0].contender, needs_retain=group[0].needs_retain, label=group[0].label, crossed=len(points),
        replicates=replicates,
        mean={name: round(fmean(values), 6) for name, values in columns.items()},
        low={name: round(min(values), 6) for name, values in columns.items()},
        high={name: round(max(values), 6) for name, values in columns.items()}, ci=ci,
    )  # fmt: skip


def grouped(trained: Iterable[Trained], key: Callable[[Trained], str]) -> dict[str, list[Trained]]:
    """Return trajectories by a key, in the order in which keys first come up."""
    groups: dict[str, list[Trained]] = {}
    for one in trained:
        groups.setdefault(key(one), []).append(one)
    return groups
