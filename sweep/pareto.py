"""The points that no other point beats: as much forgotten and more kept, or as much kept and more forgotten.

A point is a setting at a step, averaged over the worlds and seeds it was trained in; one that was not measured in all
of them is left out, for worlds are not equally hard. No learning rate and no step is chosen here: a front shows what
there was to choose from, and on the worlds where settings were chosen it flatters.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from .collect import HEADLINE, Point, Trained

FACTS = ("forget_fact", HEADLINE)
ROUGE = ("forget_rougeL", "retain_heldout_rougeL")  # of sources that mark no facts


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """A setting at a step: what is still known of the forget people, and what of held-out retain people."""

    contender: str
    label: str
    step: int
    forgotten: float  # the smaller, the better
    kept: float


def axes_of(trained: Iterable[Trained]) -> tuple[str, str]:
    """Return the two values that points are compared by: facts where every point has them, else ROUGE-L."""
    points = [point for one in trained for point in one.points]
    return FACTS if all(name in point for point in points for name in FACTS) else ROUGE


def places(trained: Sequence[Trained], axes: tuple[str, str], replicates: int) -> list[Place]:
    """Return every setting at every step at which it was measured in all its worlds and seeds."""
    measured: dict[tuple[str, str, int], list[Point]] = {}
    for one in trained:
        for point in one.points:
            measured.setdefault((one.contender, one.label, int(point["step"])), []).append(point)
    return [
        Place(
            contender=contender, label=label, step=step, forgotten=round(fmean(point[axes[0]] for point in points), 6),
            kept=round(fmean(point[axes[1]] for point in points), 6),
        )
        for (contender, label, step), points in measured.items()
        if len(points) == replicates
    ]  # fmt: skip


def front(candidates: Iterable[Place]) -> list[Place]:
    """Return the places that no other beats, least known of the forget people first; of equal ones the first."""
    best: list[Place] = []
    for place in sorted(candidates, key=lambda place: (place.forgotten, -place.kept)):
        if not best or place.kept > best[-1].kept:
            best.append(place)
    return best
