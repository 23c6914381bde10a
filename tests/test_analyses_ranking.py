"""Does one order predict another? Exact p-values in blocks, and a page that says how little a few pools can tell."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from scipy.stats import kendalltau, permutation_test, spearmanr
from viker.data.example import DataError
from viker.precompute.reference_scores import PoolScore
from viker.sweep.analyses import reference_ranking
from viker.sweep.analyses.ranks import association, kendall, spearman

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

X = [0.1, 0.5, 0.2, 0.9, 0.2]
Y = [1.0, 2.0, 2.0, 5.0, 0.5]


@pytest.mark.parametrize(("statistic", "of_scipy"), [(spearman, spearmanr), (kendall, kendalltau)])
def test_values_and_exact_p_are_scipys_with_ties(statistic, of_scipy) -> None:
    found = association([(X, Y)], statistic)
    assert found.value == pytest.approx(of_scipy(X, Y).statistic)
    exact = permutation_test(
        (Y,),
        lambda y: of_scipy(X, y).statistic,
        permutation_type="pairings",
        n_resamples=np.inf,
        alternative="two-sided",
    )
    # scipy doubles the smaller side, which is the same where the distribution is symmetric
    null = np.abs(exact.null_distribution)
    assert found.p == pytest.approx((null >= abs(found.value) - 1e-9).mean())
    assert (found.items, found.blocks) == (5, 1)


def test_a_perfect_order_is_as_surprising_as_its_items_allow() -> None:
    found = association([([1, 2, 3], [10, 20, 30])], spearman)
    assert (found.value, found.p, found.least_p) == (1.0, pytest.approx(2 / 6), pytest.approx(2 / 6))
    both = association([([1, 2, 3], [10, 20, 30]), ([3, 1, 2], [9, 7, 8])], kendall)
    assert (both.value, both.p, both.blocks, both.items) == (1.0, pytest.approx(2 / 36), 2, 6)


def test_orders_of_two_worlds_that_contradict_each_other_cancel() -> None:
    found = association([([1, 2, 3], [1, 2, 3]), ([1, 2, 3], [3, 2, 1])], spearman)
    assert (found.value, found.p) == (pytest.approx(0.0), 1.0)


def test_the_distribution_over_blocks_is_that_of_all_their_arrangements() -> None:
    first, second = ([1, 2, 3, 4], [2, 1, 3, 4]), ([1, 2, 3], [1, 3, 2])
    found = association([first, second], spearman)
    from itertools import permutations

    values = [
        spearmanr(first[0], one).statistic + spearmanr(second[0], other).statistic
        for one in permutations(first[1]) for other in permutations(second[1])
    ]  # fmt: skip
    truth = spearmanr(*first).statistic + spearmanr(*second).statistic
    assert found.value == pytest.approx(truth / 2)
    assert found.p == pytest.approx(np.mean(np.abs(values) >= abs(truth) - 1e-9))


@pytest.mark.parametrize("block", [([1, 2], [1, 2]), ([1, 1, 1], [1, 2, 3]), ([1, 2, 3], [5, 5, 5])])
def test_blocks_without_an_order_are_left_out(block: tuple[list[float], list[float]]) -> None:
    assert association([block], spearman) is None
    assert association([block, ([1, 2, 3], [1, 2, 3])], spearman).blocks == 1


def test_more_items_than_can_be_counted_are_refused() -> None:
    with pytest.raises(ValueError, match="up to 9"):
        association([(list(range(10)), list(range(10)))], spearman)


def scores(values: Mapping[str, float]) -> list[PoolScore]:
    """Scores of pools that differ in their leak alone, best first."""
    one = PoolScore(
        name="", rank=0, cache="c" * 64, images=3, num_references=2, tokens=9, key_tokens=3, people=6, agreement=1.0,
        damage=0.0, leak=0.0, key_entropy=2.0, normal_entropy=0.1, score=0.0, score_error=None, behind=0.0,
        behind_error=None,
    )  # fmt: skip
    order = sorted(values, key=lambda name: -values[name])
    return [
        replace(one, name=name, rank=rank, score=values[name], leak=1 - values[name])
        for rank, name in enumerate(order, start=1)
    ]


POOLS = {"people": 0.9, "pets": 0.8, "scenes": 0.7, "noise": 0.6}


def test_a_ranking_that_predicts_is_told_from_one_that_does_not() -> None:
    worlds = {world: scores(POOLS) for world in ("1", "2", "3")}
    kept = {world: {name: value / 2 for name, value in POOLS.items()} for world in worlds}
    found = reference_ranking.measure(worlds, kept)
    assert found["schema"] == "viker/analysis/reference-ranking/1"
    pooled = found["predictors"]["score"]["pooled"]["spearman"]
    assert (pooled["value"], pooled["p"]) == (pytest.approx(1.0), pytest.approx(2 / 24**3))
    assert found["predictors"]["score"]["by_world"]["2"]["kendall"]["p"] == pytest.approx(2 / 24)
    assert found["predictors"]["leak"]["pooled"]["spearman"]["value"] == pytest.approx(1.0)  # less leak keeps more
    assert found["predictors"]["agreement"]["pooled"]["spearman"] is None  # the same everywhere
    assert pooled["p_holm"] == pytest.approx(4 / 24**3)  # two numbers have an order
    over_pools = found["predictors"]["score"]["by_pool"]["spearman"]
    assert (over_pools["value"], over_pools["p"]) == (pytest.approx(1.0), pytest.approx(2 / 24))
    assert "The ranking by score goes with what training keeps" in reference_ranking.page(found)
    against = {world: {name: -value for name, value in of_world.items()} for world, of_world in kept.items()}
    assert "goes AGAINST what" in reference_ranking.page(reference_ranking.measure(worlds, against))


def test_pools_that_never_cross_are_counted_and_left_out_of_the_order() -> None:
    kept = {"1": {"people": 0.4, "pets": 0.3, "scenes": 0.2, "noise": None}, "2": dict.fromkeys(POOLS, 0.5)}
    found = reference_ranking.measure({world: scores(POOLS) for world in kept}, kept)
    assert found["crossed"] == 7
    assert found["never_crossed"] == [["1", "noise"]]
    by_world = found["predictors"]["score"]["by_world"]
    assert by_world["1"]["spearman"]["items"] == 3
    assert by_world["2"]["spearman"] is None  # outcomes are all the same
    assert found["predictors"]["score"]["pooled"]["spearman"]["blocks"] == 1
    assert found["predictors"]["score"]["pools_in_every_world"] == 3
    page = reference_ranking.page(found)
    assert "7 of 8 with an outcome" in page
    assert "Never forgot as much, and has no outcome: noise (1)." in page
    assert "does not predict what training keeps, as far as so few pools can tell" in page
    assert "exact p = 0.333, the least possible 0.333" in page


def test_nothing_is_chosen_among_the_people_themselves() -> None:
    values = {**POOLS, "retain": 0.95, "forget": 0.1}
    kept = {"1": {"people": 0.3, "pets": 0.4, "scenes": 0.2, "noise": 0.1, "retain": 0.9, "forget": 0.05}}
    found = reference_ranking.measure({"1": scores(values)}, kept)
    (choice,) = found["choices"]
    assert (choice["first"], choice["first_outcome"], choice["best"]) == ("people", 0.3, "pets")
    assert choice["mean_outcome"] == pytest.approx(0.25)
    assert found["usable"]["pooled"]["spearman"]["items"] == 4
    assert found["left_out_of_choices"] == ["retain", "forget"]
    assert "Without retain and forget, the very people" in reference_ranking.page(found)
    assert "the first is the best in 0 of 1" in reference_ranking.page(found)


def test_the_figure_has_the_same_bytes_every_time(tmp_path: Path) -> None:
    kept = {"1": {"people": 0.4, "pets": 0.3, "scenes": 0.2, "noise": None}}
    found = json.loads(json.dumps(reference_ranking.measure({"1": scores(POOLS)}, kept), allow_nan=False))
    for name in ("a.svg", "b.svg"):
        reference_ranking.draw(tmp_path / name, found)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_too_few_pools_for_an_order_are_said() -> None:
    found = reference_ranking.measure({"1": scores({"a": 1.0, "b": 0.5})}, {"1": {"a": 0.5, "b": 0.4}})
    assert "nothing can be said" in reference_ranking.page(found)


def test_what_does_not_fit_together_is_refused() -> None:
    with pytest.raises(
        DataError, match="expected scores of every pool that was trained from, found none of other in 1"
    ):
        reference_ranking.measure({"1": scores(POOLS)}, {"1": {"other": 0.5, "people": 0.4}})
    with pytest.raises(DataError, match="found none of 4"):
        reference_ranking.measure({"1": scores(POOLS)}, {"1": dict.fromkeys(POOLS)})
    many = {f"p{index}": index / 10 for index in range(10)}
    with pytest.raises(DataError, match="expected at most 9 pools a world, found 10"):
        reference_ranking.measure({"1": scores(many)}, {"1": many})
