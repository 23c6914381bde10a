"""The page and the figure of `reference_ranking.py`, from nothing but what it found."""

from collections.abc import Mapping
from itertools import cycle
from pathlib import Path
from statistics import fmean
from typing import Any

from ...evaluate.report.table import table
from .drawing import panels
from .shown import number, plural

_NAMES = {
    "score": "score (agreement - leak)", "agreement": "agreement: R(y) at normal tokens",
    "leak": "leak: R(y) at key tokens, less is better", "key_entropy": "entropy at key tokens",
    "normal_entropy": "entropy at normal tokens, less is better",
}  # fmt: skip
_MARKS = "osD^vPX*<"
_SURE = 0.05


def page(found: Mapping[str, Any]) -> str:
    """Return the page of what was found: a sentence a finding, then tables."""
    parts = [
        "### Reference ranking", _opening(found), _answer(found), _usable(found), _over_pools(found), _parts(found),
        _chosen(found), _never(found), _predictor_table(found), _pool_table(found),
    ]  # fmt: skip
    return "\n\n".join(part for part in parts if part) + "\n"


def _opening(found: Mapping[str, Any]) -> str:
    return (
        f"{plural(len(found['names']), 'pool')} in {plural(len(found['worlds']), 'world')}, {found['crossed']} of "
        f"{len(found['pools'])} with an outcome: held-out retain fact recall at matched forgetting. Few: an order of "
        "so many pools has to be nearly perfect to be told from chance, and worlds repeat pools rather than add any."
    )


def _answer(found: Mapping[str, Any]) -> str:
    pooled = found["predictors"]["score"]["pooled"]
    rho, tau = pooled["spearman"], pooled["kendall"]
    if rho is None:
        return "In no world are there three pools with an outcome and an order on both sides: nothing can be said."
    return (
        f"The ranking by score {_verdict(rho)}: mean Spearman's rho {rho['value']:+.2f} over "
        f"{plural(rho['blocks'], 'world')} (exact p = {_p(rho['p'])}, the least possible {_p(rho['least_p'])}), mean "
        f"Kendall's tau-b {tau['value']:+.2f} (p = {_p(tau['p'])})."
    )


def _usable(found: Mapping[str, Any]) -> str:
    left_out, rho = found["left_out_of_choices"], found["usable"]["pooled"]["spearman"]
    if not left_out:
        return ""
    told = f"Without {' and '.join(left_out)}, the very people, which no deletion may be made from,"
    if rho is None:
        return f"{told} too few pools are left for an order."
    return f"{told} mean rho is {rho['value']:+.2f} (p = {_p(rho['p'])}, the least possible {_p(rho['least_p'])})."


def _verdict(rho: Mapping[str, Any]) -> str:
    if rho["p"] > _SURE:
        return "does not predict what training keeps, as far as so few pools can tell"
    return "goes with what training keeps" if rho["value"] > 0 else "goes AGAINST what training keeps"


def _over_pools(found: Mapping[str, Any]) -> str:
    one = found["predictors"]["score"]
    rho, number_of = one["by_pool"]["spearman"], one["pools_in_every_world"]
    if len(found["worlds"]) < 2:
        return ""
    if rho is None:
        return (
            f"Over the means of pools: only {plural(number_of, 'pool')} crossed in every world, too few for an order."
        )
    return (
        f"Over the means of the {number_of} pools that crossed in every world, rho is {rho['value']:+.2f} (exact p = "
        f"{_p(rho['p'])}, the least possible {_p(rho['least_p'])}): of all numbers here "
        "the one that speaks of other pools than these."
    )


def _parts(found: Mapping[str, Any]) -> str:
    adjusted = {
        name: one["pooled"]["spearman"] for name, one in found["predictors"].items()
        if one["pooled"]["spearman"] is not None
    }  # fmt: skip
    if len(adjusted) < 2:
        return ""
    best = max(adjusted, key=lambda name: adjusted[name]["value"])
    below = [name for name, rho in adjusted.items() if rho["p_holm"] <= _SURE]
    told = f"below {_SURE:g} for {', '.join(below)}" if below else f"above {_SURE:g} for all"
    return (
        f"Of the {len(adjusted)} numbers looked at, {best} has the highest mean rho, {adjusted[best]['value']:+.2f}; "
        f"adjusted for their number (Holm), p is {told}."
    )


def _chosen(found: Mapping[str, Any]) -> str:
    known = [one for one in found["choices"] if one["first_outcome"] is not None]
    if not known:
        return ""
    first, best, mean = (
        fmean(one[name] for one in known) for name in ("first_outcome", "best_outcome", "mean_outcome")
    )
    hits = sum(one["first_outcome"] == one["best_outcome"] for one in known)
    return (
        f"Choosing the first of the usable pools keeps {first:.3f} of held-out facts in the mean of "
        f"{plural(len(known), 'world')}, a pool at random {mean:.3f}, the best pool of each "
        f"world, known only after training, {best:.3f}; the first is the best in {hits} of {len(known)}."
    )


def _never(found: Mapping[str, Any]) -> str:
    never = [f"{pool} ({world})" for world, pool in found["never_crossed"]]
    return f"Never forgot as much, and has no outcome: {', '.join(never)}." if never else ""


def _predictor_table(found: Mapping[str, Any]) -> str:
    rows = []
    for name, one in found["predictors"].items():
        rho, tau, means = one["pooled"]["spearman"], one["pooled"]["kendall"], one["by_pool"]["spearman"]
        worlds = [_value(one["by_world"].get(world, {}).get("spearman"), "value") for world in found["worlds"]]
        rows.append([
            _NAMES[name], *worlds, _value(rho, "value"), _value(rho, "p"), _value(rho, "p_holm"), _value(tau, "value"),
            _value(tau, "p"), _value(means, "value"), _value(means, "p"),
        ])  # fmt: skip
    header = [
        "what predicts", *(f"rho, {world}" for world in found["worlds"]), "mean rho", "p", "p (Holm)", "mean tau-b",
        "p", "rho of pools' means", "p",
    ]  # fmt: skip
    return table(header, rows)


def _pool_table(found: Mapping[str, Any]) -> str:
    rows = [
        [one["world"], str(one["rank"]), one["pool"], number(one["score"], 4), number(one["score_error"], 4),
         number(one["agreement"], 4), number(one["leak"], 4), number(one["key_entropy"], 3),
         "never crosses" if one["outcome"] is None else number(one["outcome"], 3)]
        for one in found["pools"]
    ]  # fmt: skip
    header = ["world", "rank", "pool", "score", "error", "agreement", "leak", "key entropy", "retain fact"]
    return table(header, rows)


def draw(path: Path, found: Mapping[str, Any]) -> None:
    """Draw what training kept against the score: a color a world, a mark a pool."""
    marks = dict(zip(found["names"], cycle(_MARKS), strict=False))
    with panels(path, 1) as (axes,):
        for color, world in zip(cycle(f"C{index}" for index in range(10)), found["worlds"], strict=False):
            mine = [one for one in found["pools"] if one["world"] == world and one["outcome"] is not None]
            for one in mine:
                axes.plot(one["score"], one["outcome"], marks[one["pool"]], color=color, alpha=0.8)
            axes.plot([], [], "-", color=color, label=world)
        for pool, mark in marks.items():
            axes.plot([], [], mark, color="gray", linestyle="none", label=pool)
        axes.set(xlabel="score: agreement - leak, from cached rows", ylabel="held-out retain fact, matched forgetting")
        axes.legend(fontsize="x-small")


def _value(one: Mapping[str, Any] | None, name: str) -> str:
    if one is None or name not in one:
        return "-"
    return f"{one[name]:+.2f}" if name == "value" else _p(one[name])


def _p(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else f"{p:.1g}"
