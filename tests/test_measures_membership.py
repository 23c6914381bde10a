"""Membership inference against scikit-learn, pairwise counting and the formulas by hand, on awkward scores."""

import math
import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kept_answers import ANSWER
from sklearn.metrics import roc_auc_score
from viker.evaluate.answers import Answer
from viker.evaluate.measures.membership import (
    ATTACKS,
    Membership,
    aucs,
    gradient_norm,
    loss,
    membership,
    min_k,
    min_k_plus_plus,
    zlib_ratio,
)

PLAIN = replace(ANSWER, expected="Geboren in Łódź, 李明 sagt es.", reply="")


def people(scores: dict[str, list[float]]) -> list[Answer]:
    """Answers whose loss score is as given, by person."""
    return [
        replace(PLAIN, person=person, id=f"{person}/{index}", answer_logprob=(score * 2, 2))
        for person, values in scores.items()
        for index, score in enumerate(values)
    ]


def by_loss(members: list[Answer], others: list[Answer], ideal: dict[str, float] | None = None) -> Membership:
    [found] = [one for one in membership(members, others, 0, ideal or {}) if one.attack == "loss"]
    return found


def test_scores_by_hand() -> None:
    tokens = (
        (-4.0, -2.0, 1.0, 0),
        (-0.5, -1.0, 0.25, 1),
        (-3.0, -1.0, 2.0, 0),
        (-0.1, -0.1, 0.0, 1),
        (-1.0, -2.0, 4.0, 0),
    )
    answer = replace(PLAIN, answer_logprob=(-8.6, 5), answer_tokens=tokens, gradient_norm=2.5)
    assert loss(answer) == pytest.approx(-1.72)
    assert zlib_ratio(answer) == pytest.approx(-1.72 / len(zlib.compress(PLAIN.expected.encode())))
    assert min_k(answer) == -4.0
    assert min_k_plus_plus(answer) == -2.0
    assert gradient_norm(answer) == -2.5


@given(st.lists(st.tuples(st.floats(-20, 0), st.floats(-9, 0), st.floats(0, 5)), min_size=1, max_size=30))
def test_min_k_is_that_of_sorted_numpy_values(tokens: list[tuple[float, float, float]]) -> None:
    answer = replace(PLAIN, answer_tokens=tuple((*token, 0) for token in tokens))
    logprobs, mean, deviation = np.asarray(tokens).T
    number = max(1, int(len(tokens) * 0.2))
    assert min_k(answer) == pytest.approx(np.sort(logprobs)[:number].mean())
    z = (logprobs - mean) / np.sqrt(np.clip(deviation**2, 1e-6, None))
    assert min_k_plus_plus(answer) == pytest.approx(np.sort(z)[:number].mean())


def test_one_token_and_a_certain_distribution_have_scores() -> None:
    certain = replace(PLAIN, answer_tokens=((0.0, 0.0, 0.0, 1),))
    assert min_k(certain) == 0.0
    assert min_k_plus_plus(certain) == 0.0
    assert zlib_ratio(replace(PLAIN, expected="", answer_logprob=(-8.0, 1))) == -1.0  # nothing compresses to 8 bytes


def test_what_was_not_kept_is_listed_as_not_measured_and_never_zero() -> None:
    found = membership(people({"a": [-1.0]}), people({"b": [-2.0]}), 0, {})
    assert [one.attack for one in found] == list(ATTACKS)
    assert [one.attack for one in found if not one.not_measured] == ["loss", "zlib"]
    for one in found[2:]:
        assert (one.auc, one.ci, one.privacy, one.tpr, one.priv_leak) == (None,) * 5
        assert one.not_measured.startswith("not measured: no answer of the members")
    assert by_loss(people({"a": [-1.0]}), []).not_measured.startswith("not measured: no answer of the non-members")
    assert by_loss([], []).members == 0


def test_answers_without_a_score_are_left_out_of_its_counts() -> None:
    one = by_loss([*people({"a": [-1.0, -2.0]}), PLAIN], people({"b": [-3.0]}))
    assert (one.members, one.non_members, one.people, one.auc) == (2, 1, 2, 1.0)


@settings(max_examples=25)  # each puts all attacks to the test
@given(
    st.lists(st.integers(-5, 0), min_size=1, max_size=12),
    st.lists(st.integers(-5, 0), min_size=1, max_size=12),
)
def test_the_auc_is_how_often_a_member_wins_a_tie_counting_half(members: list[int], others: list[int]) -> None:
    wins = np.mean([(m > o) + 0.5 * (m == o) for m in members for o in others])
    one = by_loss(people({"a": list(map(float, members))}), people({"b": list(map(float, others))}))
    assert one.auc == pytest.approx(wins)
    labels = [1] * len(members) + [0] * len(others)
    assert one.auc == pytest.approx(roc_auc_score(labels, [*members, *others]))
    assert one.privacy == pytest.approx(1 - 2 * abs(wins - 0.5))


def test_pushed_below_strangers_leaks_as_well() -> None:
    below = by_loss(people({"a": [-9.0]}), people({"b": [-1.0]}), {"loss": 0.5})
    assert (below.auc, below.privacy, below.priv_leak) == (0.0, 0.0, 100.0)
    remembered = by_loss(people({"a": [-1.0]}), people({"b": [-9.0]}), {"loss": 0.5})
    assert (remembered.auc, remembered.privacy, remembered.priv_leak) == (1.0, 0.0, -100.0)
    equal = by_loss(people({"a": [-1.0]}), people({"b": [-1.0]}), {"loss": 0.5})
    assert (equal.auc, equal.privacy, equal.priv_leak) == (0.5, 1.0, 0.0)


def test_priv_leak_is_of_one_minus_auc_and_needs_retain_only() -> None:
    members, others = people({"a": [-1.0, -4.0]}), people({"b": [-2.0, -3.0]})
    assert by_loss(members, others).priv_leak is None
    assert by_loss(members, others, {"loss": 1.0}).priv_leak is None
    assert by_loss(members, others, {"loss": 0.6}).priv_leak == pytest.approx(((1 - 0.5) - (1 - 0.6)) / (1 - 0.6) * 100)
    assert aucs(membership(members, others, 0, {})) == {"loss": 0.5, "zlib": 0.5}


def test_a_rate_of_one_percent_needs_a_hundred_strangers() -> None:
    members = people({"a": [0.0, -1.0, -2.0, -200.0]})
    others = {f"p{index}": [-1.5 - index] for index in range(99)}
    assert by_loss(members, people(others)).tpr is None
    one = by_loss(members, people(others | {"last": [-0.5]}))
    # One false alarm of 100 is allowed: the threshold may fall to just above -1.5.
    assert one.tpr == 0.5
    assert by_loss(people({"a": [-1.0]}), people({"b": [-1.0] * 100})).tpr == 0.0


def crowd(rng: np.random.Generator, number: int, level: float) -> dict[str, list[float]]:
    """People of unequal numbers of answers that stand or fall together."""
    return {
        f"{index:02}": list(np.round(rng.normal(level + rng.normal(), 0.5, size=rng.integers(1, 5)), 1))
        for index in range(number)
    }


def test_the_interval_resamples_people_of_both_sides() -> None:
    rng = np.random.default_rng(1)
    ours, theirs = crowd(rng, 25, -1.0), crowd(rng, 30, -1.8)
    one = by_loss(people(ours), people(theirs))
    draws = []
    for _ in range(1500):
        mine = np.concatenate([ours[f"{i:02}"] for i in rng.integers(25, size=25)])
        other = np.concatenate([theirs[f"{i:02}"] for i in rng.integers(30, size=30)])
        draws.append(np.mean((mine[:, None] > other) + 0.5 * (mine[:, None] == other)))
    assert one.ci == pytest.approx(tuple(np.quantile(draws, (0.025, 0.975))), abs=0.03)
    assert one.ci is not None
    assert one.auc is not None
    assert one.ci[0] < one.auc < one.ci[1]
    assert one == by_loss(people(ours), people(theirs))


@pytest.mark.parametrize(("members", "others"), [(17, 18), (18, 17), (1, 40)])
def test_below_eighteen_people_on_either_side_there_is_no_interval(members: int, others: int) -> None:
    rng = np.random.default_rng(0)
    one = by_loss(people(crowd(rng, members, 0)), people(crowd(rng, others, 0)))
    assert one.ci is None
    assert one.auc is not None
    assert by_loss(people(crowd(rng, 18, 0)), people(crowd(rng, 18, 0))).ci is not None


def test_equal_scores_of_everybody_tell_nobody_apart() -> None:
    one = by_loss(people({f"{i}": [-1.0] for i in range(18)}), people({f"{i}": [-1.0] for i in range(18)}))
    assert (one.auc, one.ci, one.privacy) == (0.5, (0.5, 0.5), 1.0)
    assert not math.isnan(one.privacy or 0)
