"""Intervals and tests over clusters against scipy, plain loops and hand-made numbers."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from viker.evaluate.measures.statistics import (
    MIN_CLUSTERS,
    cluster_interval,
    clustered_mean,
    holm,
    paired_test,
    unpaired_test,
)

AWKWARD = [
    [0.0],
    [1.5],
    [0.0, 0.0, 0.0],
    [1.0, -1.0],
    [0.25] * 6,
    [0.1, 0.2, 0.3, -0.1, 0.1, 0.2],  # many sums tie
    [1e9, -1.0, 1e-9],
]


def scipys(differences: list[float]) -> float:
    if len(differences) == 1:
        return 1.0  # scipy refuses one value; both of its signs are as far from zero
    test = stats.permutation_test(
        (np.asarray(differences),), lambda x, axis: x.mean(axis=axis), permutation_type="samples", vectorized=True
    )
    return float(test.pvalue)


@pytest.mark.parametrize("differences", AWKWARD)
def test_the_paired_p_value_is_scipys_exact_one(differences: list[float]) -> None:
    test = paired_test(differences, seed=0)
    assert test.p == pytest.approx(scipys(differences))
    assert test.mean == pytest.approx(np.mean(differences))
    assert (test.n, test.ci) == (len(differences), None)


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=8))
def test_the_paired_p_value_counts_sign_patterns(differences: list[int]) -> None:
    patterns = list(itertools.product((1, -1), repeat=len(differences)))
    far = sum(
        abs(sum(s * d for s, d in zip(signs, differences, strict=True))) >= abs(sum(differences)) for signs in patterns
    )
    assert paired_test(differences, seed=0).p == pytest.approx(far / len(patterns))


def test_few_people_cannot_have_a_small_p_value() -> None:
    assert [paired_test([1.0] * n, seed=0).p for n in (1, 2, 6, 13)] == [1.0, 0.5, 2 / 2**6, 2 / 2**13]


def test_beyond_thirteen_signs_are_drawn_repeat_by_seed_and_never_give_zero() -> None:
    assert paired_test([1.0] * 40, seed=0).p == 1 / 10_000
    differences = np.random.default_rng(4).normal(0.3, 1, size=14)
    drawn = paired_test(differences, seed=0)
    exact = stats.permutation_test(
        (differences,), lambda x, axis: x.mean(axis=axis), permutation_type="samples", n_resamples=2**14 + 1
    )
    assert drawn.p == pytest.approx(float(exact.pvalue), abs=0.015)
    assert drawn == paired_test(differences, seed=0)
    assert drawn.p != paired_test(differences, seed=1).p


def test_an_interval_of_differences_starts_at_eighteen_clusters_and_is_a_plain_bootstrap() -> None:
    differences = np.random.default_rng(3).normal(1, 2, size=40)
    assert paired_test(differences[: MIN_CLUSTERS - 1], seed=0).ci is None
    assert paired_test(differences[:MIN_CLUSTERS], seed=0).ci is not None
    rng = np.random.default_rng(9)
    draws = [rng.choice(differences, size=40).mean() for _ in range(4000)]
    assert paired_test(differences, seed=0).ci == pytest.approx(tuple(np.quantile(draws, (0.025, 0.975))), abs=0.12)
    assert paired_test([0.5] * 18, seed=0).ci == (0.5, 0.5)


@pytest.mark.parametrize("broken", [[], [math.nan], [1.0, math.inf], [[1.0]]])
def test_a_test_of_nothing_or_of_no_numbers_is_refused(broken: list[float]) -> None:
    with pytest.raises(ValueError, match="at least one finite value"):
        paired_test(broken, seed=0)
    with pytest.raises(ValueError, match="at least one finite value"):
        unpaired_test([1.0], broken, seed=0)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([1.0], [0.0]),
        ([1.0], [0.0, 0.2, 0.4, 0.9]),
        ([1.0, 1.0, 1.0], [1.0, 1.0]),
        ([0.1, 0.2, 0.3, 0.1], [0.3, 0.1, 0.2, 0.9, 0.2]),
        ([-3.0, 5.0, 1e6], [2.0, 2.0, -1e6, 0.0]),
    ],
)
def test_the_unpaired_p_value_counts_every_split(first: list[float], second: list[float]) -> None:
    test = unpaired_test(first, second, seed=0)
    reached = [
        abs(np.mean([pool[i] for i in rows]) - np.mean([pool[i] for i in range(len(pool)) if i not in rows]))
        >= abs(test.difference) - 1e-9
        for pool in [first + second]
        for rows in itertools.combinations(range(len(pool)), len(first))
    ]
    assert test.p == pytest.approx(np.mean(reached))
    assert test.difference == pytest.approx(np.mean(first) - np.mean(second))
    assert (test.n_first, test.n_second, test.ci) == (len(first), len(second), None)


def test_the_unpaired_test_of_many_is_close_to_scipys_and_symmetric() -> None:
    rng = np.random.default_rng(2)
    first, second = rng.normal(0, 1, 30), rng.normal(0.6, 1, 25)
    scipys = stats.permutation_test(
        (first, second), lambda x, y, axis: x.mean(axis=axis) - y.mean(axis=axis), vectorized=True, rng=rng
    )
    test = unpaired_test(first, second, seed=0)
    assert test.p == pytest.approx(float(scipys.pvalue), abs=0.015)
    assert unpaired_test(second, first, seed=0).p == pytest.approx(test.p, abs=0.015)
    assert test.ci is not None
    assert test.ci[0] < test.difference < test.ci[1]
    draws = [rng.choice(first, 30).mean() - rng.choice(second, 25).mean() for _ in range(4000)]
    assert test.ci == pytest.approx(tuple(np.quantile(draws, (0.025, 0.975))), abs=0.08)


def test_an_unpaired_interval_needs_eighteen_on_both_sides() -> None:
    assert unpaired_test(np.arange(17.0), np.arange(50.0), seed=0).ci is None
    assert unpaired_test(np.arange(50.0), np.arange(17.0), seed=0).ci is None
    assert unpaired_test(np.arange(18.0), np.arange(18.0), seed=0).ci is not None


def test_groups_of_one_size_are_not_resampled_in_step() -> None:
    low, high = unpaired_test(np.arange(20.0), np.arange(20.0), seed=0).ci or (0, 0)
    assert low < -1 < 1 < high


def naive_holm(p_values: list[float]) -> list[float]:
    adjusted = dict.fromkeys(range(len(p_values)), 0.0)
    running = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return list(adjusted.values())


@given(st.lists(st.sampled_from([0.0, 0.001, 0.01, 0.02, 0.02, 0.3, 0.5, 1.0]), max_size=12))
def test_holm_is_the_textbook_procedure(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    assert adjusted == pytest.approx(naive_holm(p_values))
    assert all(raw <= p <= 1 for raw, p in zip(p_values, adjusted, strict=True))


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []
    assert holm([0.2]) == [0.2]
    for broken in ([1.5], [-0.1], [math.nan]):
        with pytest.raises(ValueError, match="expected p-values"):
            holm(broken)


def test_a_clustered_mean_is_over_answers_and_its_interval_over_clusters() -> None:
    few = clustered_mean({"b": (3.0, 4), "a": (1.0, 1)}, seed=0)
    assert (few.value, few.n, few.clusters, few.ci) == (0.8, 5, 2, None)
    sums = {f"{index:02}": (float(index % 3), 2) for index in range(18)}
    counts = np.asarray([sums[name] for name in sorted(sums)])
    interval = cluster_interval(counts, lambda s: float(s[0] / s[1]), seed=5)
    assert clustered_mean(dict(reversed(sums.items())), seed=5).ci == interval
    with pytest.raises(ValueError, match="at least one finite value each"):
        clustered_mean({}, seed=0)
    with pytest.raises(ValueError, match="at least one finite value each"):
        clustered_mean({"a": (1.0, 0)}, seed=0)


def test_the_interval_is_the_one_scores_have_always_had() -> None:
    counts = np.stack([np.arange(20.0) / 20, np.ones(20)], axis=1)
    weights = np.random.default_rng(3).multinomial(20, [1 / 20] * 20, size=1000)
    means = (weights @ counts)[:, 0] / (weights @ counts)[:, 1]
    expected = tuple(np.quantile(means, (0.025, 0.975)))
    assert cluster_interval(counts, lambda s: float(s[0] / s[1]), seed=3) == pytest.approx(expected, abs=1e-12)
