"""Distances to retain-only against scipy and hand-made histograms."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kept_answers import ANSWER
from scipy.spatial.distance import jensenshannon
from scipy.stats import ks_2samp
from viker.evaluate.answers import Answer
from viker.evaluate.measures.distance import distances, probability_distance, truth_ratio_distance

PLAIN = replace(ANSWER, expected="In Lima.", reply="")


def asked(logprobs: list[float], wrong: float | None = -1.0) -> list[Answer]:
    return [
        replace(
            PLAIN,
            id=str(index),
            answer_logprob=(value * 2, 2),
            wrong_logprobs=() if wrong is None else ((wrong * 3, 3),),
        )
        for index, value in enumerate(logprobs)
    ]


def test_the_truth_ratios_distance_is_scipys() -> None:
    rng = np.random.default_rng(0)
    ours, ideal = rng.normal(0, 1, 60), rng.normal(0.7, 1, 60)
    found = truth_ratio_distance(ours, ideal)
    raw = ks_2samp(np.exp(ours), np.exp(ideal))  # of R, as TOFU's code has it; the order is the same
    assert (found.ks, found.ks_p) == pytest.approx((raw.statistic, raw.pvalue))
    assert found.js_official == pytest.approx(jensenshannon(np.exp(ours), np.exp(ideal)))
    edges = np.linspace(0, 1, 21)
    counts = [np.histogram(np.exp(x) / (1 + np.exp(x)), bins=edges)[0] / 60 for x in (ours, ideal)]
    assert found.js == pytest.approx(jensenshannon(*counts, base=2))
    assert found.n == 60


def test_the_official_distance_depends_on_which_question_is_which_and_ours_does_not() -> None:
    values, turned = np.asarray([-2.0, 0.0, 2.0]), np.asarray([2.0, 0.0, -2.0])
    found = truth_ratio_distance(values, turned)
    assert (found.ks, found.js) == (0.0, 0.0)
    assert found.js_official is not None
    assert found.js_official > 0.5


def test_no_overlap_is_one() -> None:
    found = probability_distance(np.zeros(5), np.ones(5))
    assert (found.ks, found.js) == (1.0, pytest.approx(1.0))
    assert found.js_official is None


def test_equal_answers_are_at_no_distance() -> None:
    for found in distances(asked([-1.0, -0.3, -2.0]), asked([-1.0, -0.3, -2.0])):
        assert (found.ks, found.ks_p, found.js) == (0.0, 1.0, 0.0)


def test_only_questions_that_both_were_asked_count_and_quantities_nobody_kept_are_left_out() -> None:
    found = distances(asked([-1.0, -2.0, -3.0]), list(reversed(asked([-1.0, -2.0], wrong=None))))
    assert [(one.quantity, one.n) for one in found] == [("answer_probability", 2)]
    assert found[0].ks == 0.0
    assert distances([PLAIN], [PLAIN]) == []
    assert distances(asked([-1.0]), []) == []


def test_a_probability_of_one_by_rounding_is_counted() -> None:
    found = probability_distance(np.asarray([1.0 + 1e-7]), np.asarray([1.0]))
    assert found.js == 0.0


@given(st.lists(st.floats(-2000, 2000), min_size=1, max_size=20), st.integers(0, 5))
def test_distances_are_finite_and_in_range_whatever_the_answers(values: list[float], seed: int) -> None:
    ours = np.asarray(values)
    for ideal in (ours, np.random.default_rng(seed).permutation(ours), np.full(len(ours), 3.0)):
        found = truth_ratio_distance(ours, ideal)
        assert all(0 <= value <= 1 + 1e-9 for value in (found.ks, found.ks_p, found.js))
        assert 0 <= (found.js_official or 0) <= np.sqrt(np.log(2)) + 1e-9
