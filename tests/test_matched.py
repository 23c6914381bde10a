"""Matched forgetting: the bar set by retain-only, and the first point at or below it."""

import math

import pytest
from viker.evaluate.matched import first_crossing, forgetting_threshold, mean_and_standard_error

RECALL = {"001": (1, 8), "002": (0, 8), "003": (2, 8), "004": (1, 8)}


def test_the_mean_and_its_error_are_over_people() -> None:
    rates = [1 / 8, 0, 2 / 8, 1 / 8]
    mean = sum(rates) / 4
    error = math.sqrt(sum((rate - mean) ** 2 for rate in rates) / 3) / math.sqrt(4)
    assert mean_and_standard_error(RECALL) == (pytest.approx(mean), pytest.approx(error))
    assert forgetting_threshold(RECALL) == pytest.approx(mean + error)


def test_people_weigh_the_same_however_often_they_are_asked() -> None:
    assert mean_and_standard_error({"001": (1, 1), "002": (0, 99)})[0] == pytest.approx(0.5)


def test_the_bar_is_never_below_one_fact() -> None:
    assert forgetting_threshold({"001": (0, 8), "002": (0, 8)}) == pytest.approx(1 / 16)


def test_one_person_has_no_error() -> None:
    assert mean_and_standard_error({"001": (1, 4)}) == (0.25, 0.0)
    assert forgetting_threshold({"001": (1, 4)}) == 0.25


@pytest.mark.parametrize("recall", [{}, {"001": (0, 0)}])
def test_no_facts_no_bar(recall: dict[str, tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match="at least one fact asked of each"):
        forgetting_threshold(recall)


def point(step: float, forget_fact: float) -> dict[str, float]:
    return {"step": step, "forget_fact": forget_fact, "retain_heldout_fact": 1 - step / 100}


def test_the_first_point_at_or_below_the_bar_is_taken_in_order_of_steps() -> None:
    points = [point(30, 0.0), point(0, 1.0), point(20, 0.3), point(10, 0.1)]
    assert first_crossing(points, 0.1) == point(10, 0.1)  # it came back up at 20: the first crossing stands
    assert first_crossing(points, 0.05) == point(30, 0.0)
    assert first_crossing(points, 1.0) == point(0, 1.0)


def test_equality_survives_rounding() -> None:
    assert first_crossing([point(1, 0.1 + 0.2)], 0.3) is not None


def test_a_method_that_never_crosses_is_none() -> None:
    assert first_crossing([point(0, 1.0), point(10, 0.5)], 0.1) is None
    assert first_crossing([], 0.1) is None


@pytest.mark.parametrize("broken", [{"step": 1.0}, {"forget_fact": 0.1}, point(1, math.nan)])
def test_a_point_that_can_not_be_compared_is_an_error(broken: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected points with `step` and a finite `forget_fact`"):
        first_crossing([broken], 0.1)


def test_two_trajectories_in_one_are_refused() -> None:
    with pytest.raises(ValueError, match="expected one point a step"):
        first_crossing([point(1, 0.5), point(1, 0.4)], 0.1)
