"""Stopping before collapse: a floor under what others keep, a ceiling on repetition, and which point is kept.

The loss of gradient ascent is unbounded below, so a run that goes on long enough destroys the model, and no number of
the training log shows it: replies do. Guards read the points of the trajectory, measured on retain people that no term
trains on, and compare them with the model as it was. A run that a guard ends keeps the last point that passed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .rows import TeacherRows
from .trajectory import Point


class Ended(NamedTuple):
    """Why a guard ended a run, and the step whose weights are kept."""

    guard: str
    reason: str
    step: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Guards:
    """Bounds on a run's points; None where there is none.

    `min_retain`: least share of its ROUGE-L on held-out retain people that the model keeps. `max_repetition`: most
    repeated word trigrams in replies about them, beyond those of the model as it was.
    """

    min_retain: float | None = None
    max_repetition: float | None = None

    def check(self, points: Sequence[Point]) -> Ended | None:
        """Return why the latest of some points breaks a bound, if it does."""
        first, latest = points[0], points[-1]
        before = points[-2]["step"] if len(points) > 1 else first["step"]
        if self.min_retain is not None:
            kept = kept_share(first, latest)
            if kept < self.min_retain:
                reason = f"held-out retain people keep {kept:.2f} of their ROUGE-L, the floor is {self.min_retain:.2f}"
                return Ended("min-retain", reason, before)
        if self.max_repetition is not None:
            more = latest["retain_heldout_repetition"] - first["retain_heldout_repetition"]
            if more > self.max_repetition:
                reason = f"{more:.2f} more of the trigrams in replies repeat, the bound is {self.max_repetition:.2f}"
                return Ended("max-repetition", reason, before)
        return None


def kept_share(first: Point, point: Point) -> float:
    """Return which share of its ROUGE-L on held-out retain people a point has left."""
    return float(point["retain_heldout_rougeL"] / max(first["retain_heldout_rougeL"], 1e-9))


def forgotten_share(first: Point, point: Point) -> float:
    """Return which share of the forget people is gone: of their facts where those are known, else of ROUGE-L."""
    name = "forget_fact" if "forget_fact" in first else "forget_rougeL"
    return float(1 - point[name] / max(first[name], 1e-9))


def harmonic(first: Point, point: Point) -> float:
    """Return the harmonic mean of what is forgotten and what is kept."""
    forgotten, kept = max(0.0, forgotten_share(first, point)), max(0.0, kept_share(first, point))
    return 2 * forgotten * kept / (forgotten + kept) if forgotten + kept else 0.0


def nearness(first: Point, point: Point) -> float:
    """Return how near a point is to everything forgotten and everything kept: minus the distance."""
    return -float(((1 - forgotten_share(first, point)) ** 2 + (1 - kept_share(first, point)) ** 2) ** 0.5)


TRADE_OFFS: dict[str, Callable[[Point, Point], float]] = {"harmonic": harmonic, "nearness": nearness}


def best_step(points: Sequence[Point], trade_off: str) -> int:
    """Return the step of the point that a named trade-off likes best, the earliest of equals."""
    value = TRADE_OFFS[trade_off]
    return int(max(points, key=lambda point: (value(points[0], point), -point["step"]))["step"])


def sign_warning(rows: TeacherRows, lambda_: float, key_entropy: float) -> str | None:
    """Return a warning where lambda makes the loss teach normal tokens: log q(y) has the factor 1 - lambda R(y)."""
    is_normal_M = rows.entropy_M <= key_entropy
    flipped_M = lambda_ * rows.answer_logprob_M.exp() > 1
    share = float((flipped_M & is_normal_M).sum() / is_normal_M.sum().clamp_min(1))
    if share == 0:
        return None
    return (
        f"--lambda {lambda_:g} turns the loss around on {share:.0%} of the normal tokens (lambda R(y) > 1): there it "
        "teaches the answer. Below 1 it only slows unlearning down."
    )
