"""Rank methods at equal forgetting: who has forgotten as much as retain-only never knew, and what is left then.

Two readings of the same bar (`matched.py`): the finished adapters, as they would be handed over, and the first point
on each trajectory at or below it, which takes the choice of a step count out of the comparison. Methods that train on
retain people are ranked apart from those that do not (design, section 11); a method above the bar has no rank.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...data.sidecar import Sidecar
from ..answers import Answer
from ..matched import first_crossing, forgetting_threshold, mean_and_standard_error
from ..recall import fact_recall_by_person
from .run import Run, read_lines

SPLITS = ("forget", "retain-seen", "retain-heldout")
POINT_VALUES = ("forget_fact", "retain_heldout_fact", "retain_heldout_rougeL", "retain_seen_fact")

Recalls = Mapping[str, Mapping[str, Mapping[str, Any]]]  # model -> split -> {mean, error, people, by_person}
_ROUNDING = 1e-9
_NO_BAR = "retain-only is not evaluated with known facts, so there is no bar"
_NO_TRAJECTORY = "no adapter has a trajectory with known facts (train with --evaluate-every)"


def answer_recalls(
    answers: Mapping[str, Sequence[Answer]], facts: Sidecar | None, task: str, modality: str
) -> dict[str, dict[str, dict[str, Any]]]:
    """Return each model's fact recall over people in the cell that trajectories measure, split by split."""
    recalls: dict[str, dict[str, dict[str, Any]]] = {}
    for name, kept in answers.items():
        for split in SPLITS:
            cell = [given for given in kept if (given.split, given.task, given.modality) == (split, task, modality)]
            by_person = fact_recall_by_person(cell, facts)
            if by_person:
                mean, error = mean_and_standard_error(by_person)
                found = {"mean": mean, "error": error, "people": len(by_person), "by_person": by_person}
                recalls.setdefault(name, {})[split] = found
    return {name: found for name, found in recalls.items() if "forget" in found}


def forgetting_bar(recalls: Recalls) -> float | None:
    """Return the forget recall at or below which the people count as forgotten; None without retain-only or facts."""
    if "retain-only" not in recalls:
        return None
    return forgetting_threshold(recalls["retain-only"]["forget"]["by_person"])


def why_no_ranks(recalls: Recalls, bar: float | None) -> str | None:
    """Return why forgetting cannot be told from ignorance here, if it cannot."""
    if bar is None:
        return "without retain-only and known facts nothing says when a person counts as forgotten"
    if "vanilla" in recalls and recalls["vanilla"]["forget"]["mean"] <= bar + _ROUNDING:
        return "vanilla itself is at or below the bar, so there was nothing to forget"
    return None


def ranked(
    rows: Sequence[dict[str, Any]], models: Sequence[Mapping[str, Any]], recalls: Recalls, bar: float | None
) -> list[dict[str, Any]]:
    """Return the headline rows with who has forgotten, and the rank by held-out retain among those of one group."""
    known = {model["name"]: model for model in models}
    marked = []
    for row in rows:
        model, recall = known[row["model"]], recalls.get(row["model"])
        forgotten = None if bar is None or recall is None else recall["forget"]["mean"] <= bar + _ROUNDING
        marked.append(
            {
                **row,
                "role": model["role"],
                "reads_retain_data": model["reads_retain_data"],
                "forgotten": forgotten,
                "recall": None if recall is None else recall["forget"]["mean"],
            }
        )
    comparable = why_no_ranks(recalls, bar) is None
    return _with_ranks(marked, lambda row: comparable and bool(row["forgotten"]), lambda row: _order(row["values"][2:]))


def matched_section(
    run: Run, models: Sequence[Mapping[str, Any]], recalls: Recalls, bar: float | None
) -> dict[str, Any]:
    """Return the comparison at matched forgetting, or why there is none."""
    trajectories = _trajectories(run)
    without = [model["name"] for model in models if model["role"] == "adapter" and model["name"] not in trajectories]
    if bar is None or not trajectories:
        reason = _NO_BAR if trajectories else _NO_TRAJECTORY
        return {"bar": bar, "reason": reason, "rows": [], "without_trajectory": without, "caveats": []}
    no_ranks = why_no_ranks(recalls, bar)
    caveats = [*_caveats(run), *([f"No ranks: {no_ranks}."] if no_ranks else [])]
    rows = [_reference_row(name, recalls[name]) for name in ("vanilla", "retain-only") if name in recalls]
    rows += [
        _crossing_row(model, trajectories[model["name"]], bar) for model in models if model["name"] in trajectories
    ]
    rows = _with_ranks(
        rows, lambda row: no_ranks is None and row["crosses"] is True,
        lambda row: _order([row["retain_heldout_fact"], row["retain_heldout_rougeL"]]),
    )  # fmt: skip
    return {"bar": bar, "reason": None, "rows": rows, "without_trajectory": without, "caveats": caveats}


def _trajectories(run: Run) -> dict[str, list[dict[str, Any]]]:
    """Return the points of every adapter that was measured on its way, where facts were known."""
    paths = {name: stage.path / "trajectory.jsonl" for name, stage in run.under("adapters").items()}
    found = {name: read_lines(path) for name, path in paths.items() if path.is_file()}
    return {
        name: points for name, points in found.items() if points and all("forget_fact" in point for point in points)
    }


def _reference_row(name: str, recall: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    means = {split: recall[split]["mean"] if split in recall else None for split in SPLITS}
    return {
        "model": name, "role": name, "reads_retain_data": False, "crosses": None, "step": None,
        "forget_fact": means["forget"], "retain_heldout_fact": means["retain-heldout"], "retain_heldout_rougeL": None,
        "retain_seen_fact": means["retain-seen"],
    }  # fmt: skip


def _crossing_row(model: Mapping[str, Any], points: Sequence[dict[str, Any]], bar: float) -> dict[str, Any]:
    crossing = first_crossing(points, bar)
    shown: Mapping[str, Any] = crossing if crossing is not None else {}
    return {
        "model": model["name"], "role": "adapter", "reads_retain_data": model["reads_retain_data"],
        "crosses": crossing is not None, "step": shown.get("step"), **{name: shown.get(name) for name in POINT_VALUES},
    }  # fmt: skip


def _caveats(run: Run) -> list[str]:
    stage = run.under("evaluations")["retain-only"]
    caveats = [
        "Trajectories measure a fixed number of retain people; vanilla and retain-only are shown on all of them."
    ]
    style = stage.options.get("style")
    if style not in (None, "plain"):
        caveats.append(f"Trajectories ask the bare question, the bar comes from the `{style}` style of evaluation.")
    return caveats


def _with_ranks(
    rows: Sequence[dict[str, Any]],
    qualifies: Callable[[dict[str, Any]], bool],
    order: Callable[[dict[str, Any]], tuple[float, ...]],
) -> list[dict[str, Any]]:
    """Return the rows with a rank among the adapters that qualify, with and without retain data apart."""
    ranked_rows = []
    for row in rows:
        rank = None
        if row["role"] == "adapter" and qualifies(row):
            rivals = [other for other in rows if other["role"] == "adapter" and qualifies(other)
                      and other["reads_retain_data"] == row["reads_retain_data"]]  # fmt: skip
            rank = 1 + sum(order(other) > order(row) for other in rivals)
        ranked_rows.append({**row, "rank": rank})
    return ranked_rows


def _order(values: Sequence[float | None]) -> tuple[float, ...]:
    return tuple(-1.0 if value is None else value for value in values)
