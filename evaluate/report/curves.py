"""How training went and what it traded: every adapter's curves, and every measured point as forgetting against keeping.

Training says its loss and how likely key and normal tokens still are step by step (`train/step_log.py`), a trajectory
what the model answers at some of them (`trajectory.py`). Long logs are thinned to points spread evenly with the first
and last in, and how many there were is said. A number that is not finite is left out (None): a diverged run has no
loss. A trajectory measures a fixed number of retain people, an evaluation all: the front joins points of one kind only,
those of trajectories where there are any.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .rank import Recalls
from .run import Run, Stage, read_lines

LONGEST = 200
STEP_VALUES = ("loss", "key_logprob", "key_teacher_logprob", "normal_logprob", "gradient_norm")
_ROUNDED = 6  # significant digits of a point: a figure shows no more, and the logs keep all
_NO_POINTS = "no adapter is evaluated on both forget and held-out retain people"

Line = Mapping[str, Any]


def curves_section(run: Run) -> dict[str, Any]:
    """Return each adapter's training log and trajectory as columns of at most `LONGEST` values."""
    adapters = run.under("adapters")
    value = _measured_value(adapters)
    logs = {name: _lines(stage, "training_log.jsonl") for name, stage in adapters.items()}
    models = [
        {
            "model": name, "method": adapters[name].options.get("method"),
            "log": _columns(log, STEP_VALUES), "trajectory": _trajectory(adapters[name], value),
        }
        for name, log in logs.items()
    ]  # fmt: skip
    return {"longest": LONGEST, "value": value, "models": models}


def pareto_section(
    run: Run, models: Sequence[Mapping[str, Any]], recalls: Recalls, headline: Mapping[str, Any]
) -> dict[str, Any]:
    """Return every measured point as (forget, retain): recall of facts, ROUGE-L where none are known.

    Points are of trajectories and of evaluations; those of adapters that no other point beats in both are the front.
    """
    adapters = run.under("adapters")
    value = "fact" if recalls else "rougeL"
    ends = _evaluated(recalls, headline)
    points = [
        {"model": name, "role": "adapter", "step": line["step"], "from": "trajectory",
         "forget": line[f"forget_{value}"], "retain": line[f"retain_heldout_{value}"]}
        for name, stage in adapters.items() for line in _lines(stage, "trajectory.jsonl")
        if all(_finite(line.get(f"{split}_{value}")) is not None for split in ("forget", "retain_heldout"))
    ]  # fmt: skip
    points += [
        {"model": model["name"], "role": model["role"], "step": None, "from": "evaluation",
         "forget": ends[model["name"]][0], "retain": ends[model["name"]][1]}
        for model in models if model["name"] in ends
    ]  # fmt: skip
    trained = [point for point in points if point["role"] == "adapter"]
    measured = [point for point in trained if point["from"] == "trajectory"] or trained
    front = [point for point in measured if not any(_beats(other, point) for other in measured)]
    return {
        "value": value, "bar": headline["bar"], "reason": None if trained else _NO_POINTS,
        "points": [{**point, "front": any(point is one for one in front)} for point in points],
    }  # fmt: skip


def thinned(number: int, most: int = LONGEST) -> list[int]:
    """Return at most so many places of a sequence, spread evenly, the first and the last among them."""
    if number <= most:
        return list(range(number))
    return [round(place * (number - 1) / (most - 1)) for place in range(most)]


def _trajectory(stage: Stage, value: str) -> dict[str, Any]:
    names = [f"{split}_{value}" for split in ("forget", "retain_heldout", "retain_seen")]
    return _columns(_lines(stage, "trajectory.jsonl"), names)


def _columns(lines: Sequence[Line], names: Sequence[str]) -> dict[str, Any]:
    kept = [lines[place] for place in thinned(len(lines))]
    columns = {name: [_rounded(_finite(line.get(name))) for line in kept] for name in names}
    return {
        "of": len(lines), "step": [line["step"] for line in kept],
        **{name: column for name, column in columns.items() if any(value is not None for value in column)},
    }  # fmt: skip


def _measured_value(adapters: Mapping[str, Stage]) -> str:
    """Return what trajectories measure: recall of facts, or ROUGE-L where no facts are known."""
    points = [line for stage in adapters.values() for line in _lines(stage, "trajectory.jsonl")]
    return "fact" if any("forget_fact" in line for line in points) or not points else "rougeL"


def _lines(stage: Stage, name: str) -> list[dict[str, Any]]:
    path = stage.path / name
    return [line for line in read_lines(path) if "step" in line] if path.is_file() else []


def _evaluated(recalls: Recalls, headline: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """Return (forget, held-out retain) of every evaluated model that has both."""
    if recalls:
        return {
            name: (found["forget"]["mean"], found["retain-heldout"]["mean"])
            for name, found in recalls.items()
            if "retain-heldout" in found
        }
    places = [place for place, column in enumerate(headline["columns"]) if column["metric"] == "rougeL"]
    ends = {row["model"]: (row["values"][places[0]], row["values"][places[-1]]) for row in headline["rows"]}
    return {name: values for name, values in ends.items() if None not in values}


def _beats(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Tell whether a point forgets and keeps at least as much as another, and more of either."""
    at_least = one["forget"] <= other["forget"] and one["retain"] >= other["retain"]
    return bool(at_least and (one["forget"], one["retain"]) != (other["forget"], other["retain"]))


def _finite(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{_ROUNDED}g}")
