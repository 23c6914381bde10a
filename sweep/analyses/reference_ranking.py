"""Study (h): does the ranking of pools by cached rows predict how much training from each of them keeps?

Scores are those of `viker references score` (`precompute/reference_scores.py`), which nothing was trained for; outcomes
are what training made of each pool, held-out retain fact recall at matched forgetting. Orders are compared inside a
world, and over worlds with worlds as blocks (`ranks.py`). The same pools come back in every world, drawn anew: more
worlds say more about these pools, and nothing about pools that were not tried, so one number more is over the pools'
means, with a pool for an item. People to forget or retain are no pool that anybody may use: orders are also told
without them, and nothing is chosen among them. `score` is what was asked; its parts are looked at too, with p adjusted
for there being several (Holm).
"""

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from ...data.example import DataError
from ...data.references import OWN_PEOPLE
from ...evaluate.measures.statistics import holm
from ...precompute.reference_scores import PoolScore
from .ranks import MOST_ITEMS, Association, association, kendall, spearman
from .reference_ranking_page import draw, page

__all__ = ["SCHEMA", "draw", "measure", "page"]

SCHEMA = "viker/analysis/reference-ranking/1"
# what predicts -> +1 if more of it should keep more, -1 if less
PREDICTORS = {"score": 1, "agreement": 1, "leak": -1, "key_entropy": 1, "normal_entropy": -1}

Outcomes = Mapping[str, Mapping[str, float | None]]


def measure(scores: Mapping[str, Sequence[PoolScore]], outcomes: Outcomes) -> dict[str, Any]:
    """Return how the scores of pools go with what training from them kept.

    Args:
        scores: of every pool, by world.
        outcomes: held-out retain fact recall at matched forgetting by world and pool; None where training from a pool
            never forgot as much.

    Raises:
        DataError: a pool has an outcome and no score, no pool has an outcome, or there are too many to count all
            arrangements.
    """
    pools = [
        _entry(world, one, outcomes[world][one.name])
        for world, of_world in scores.items() for one in of_world if one.name in outcomes.get(world, {})
    ]  # fmt: skip
    _require(scores, outcomes, pools)
    crossed = [one for one in pools if one["outcome"] is not None]
    usable = [one for one in pools if one["pool"] not in OWN_PEOPLE]
    found = {name: _predicts(name, crossed) for name in PREDICTORS}
    _adjust(found)
    return {
        "schema": SCHEMA, "worlds": list(scores), "pools": pools, "names": _names(pools), "crossed": len(crossed),
        "predictors": found, "left_out_of_choices": [name for name in _names(pools) if name in OWN_PEOPLE],
        "usable": _predicts("score", [one for one in usable if one["outcome"] is not None]),
        "choices": [_choice(world, [one for one in usable if one["world"] == world]) for world in scores],
        "never_crossed": [[one["world"], one["pool"]] for one in pools if one["outcome"] is None],
    }  # fmt: skip


def _entry(world: str, one: PoolScore, outcome: float | None) -> dict[str, Any]:
    values = {name: getattr(one, name) for name in (*PREDICTORS, "score_error", "behind", "behind_error", "rank")}
    return {"world": world, "pool": one.name, "outcome": outcome, **values}


def _require(scores: Mapping[str, Sequence[PoolScore]], outcomes: Outcomes, pools: Sequence[Mapping[str, Any]]) -> None:
    missing = [
        f"{pool} in {world}" for world, of_world in outcomes.items() for pool in of_world
        if pool not in {one.name for one in scores.get(world, ())}
    ]  # fmt: skip
    if missing:
        raise DataError(f"expected scores of every pool that was trained from, found none of {', '.join(missing)}.")
    if all(one["outcome"] is None for one in pools):
        raise DataError(
            f"expected pools that training crossed the bar with, found none of {len(pools)}: nothing to predict."
        )
    most = max(sum(one["world"] == world for one in pools) for world in scores)
    if most > MOST_ITEMS:
        raise DataError(f"expected at most {MOST_ITEMS} pools a world, found {most}. Compare fewer.")


def _names(pools: Iterable[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(one["pool"] for one in pools))


def _predicts(name: str, crossed: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return how a predictor goes with outcomes: in each world, over worlds as blocks, and over pools' means."""
    sign = PREDICTORS[name]
    blocks = {
        world: ([sign * one[name] for one in of_world], [one["outcome"] for one in of_world])
        for world in dict.fromkeys(one["world"] for one in crossed)
        for of_world in [[one for one in crossed if one["world"] == world]]
    }
    means = _pool_means(name, sign, crossed)
    return {
        "sign": sign,
        "by_world": {world: _both([block]) for world, block in blocks.items()},
        "pooled": _both(list(blocks.values())), "by_pool": _both([means]), "pools_in_every_world": len(means[0]),
    }  # fmt: skip


def _pool_means(name: str, sign: int, crossed: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[float]]:
    """Return means over worlds of the pools that crossed in every world."""
    worlds = {one["world"] for one in crossed}
    whole = [[one for one in crossed if one["pool"] == pool] for pool in _names(crossed)]
    whole = [of_pool for of_pool in whole if len(of_pool) == len(worlds)]
    return (
        [fmean(sign * one[name] for one in of_pool) for of_pool in whole],
        [fmean(one["outcome"] for one in of_pool) for of_pool in whole],
    )


def _both(blocks: Sequence[tuple[Sequence[float], Sequence[float]]]) -> dict[str, Any]:
    return {"spearman": _told(association(blocks, spearman)), "kendall": _told(association(blocks, kendall))}


def _told(found: Association | None) -> dict[str, Any] | None:
    return None if found is None else found.told()


def _adjust(found: Mapping[str, dict[str, Any]]) -> None:
    """Add the p of every predictor's pooled rho, adjusted for there being several."""
    known = [name for name, one in found.items() if one["pooled"]["spearman"] is not None]
    adjusted = holm([found[name]["pooled"]["spearman"]["p"] for name in known])
    for name, p in zip(known, adjusted, strict=True):
        found[name]["pooled"]["spearman"]["p_holm"] = p


def _choice(world: str, pools: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what choosing the pool with the best score would have kept, beside the best and the mean of all."""
    crossed = [one for one in pools if one["outcome"] is not None]
    first = min(pools, key=lambda one: one["rank"], default=None)
    best = max(crossed, key=lambda one: one["outcome"], default=None)
    return {
        "world": world, "first": None if first is None else first["pool"],
        "first_outcome": None if first is None else first["outcome"], "best": None if best is None else best["pool"],
        "best_outcome": None if best is None else best["outcome"],
        "mean_outcome": fmean(one["outcome"] for one in crossed) if crossed else None,
    }  # fmt: skip
