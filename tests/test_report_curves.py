"""Curves and measured points of a report: what the logs hold, thinned with both ends in; which points are the front."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from viker.evaluate.report.curves import LONGEST, curves_section, pareto_section, thinned
from viker.evaluate.report.run import Run, Stage
from viker.evaluate.report.splits import split_columns

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

HEADLINE = {"bar": 0.1, "columns": [{"metric": "fact_recall"}], "rows": []}


def step(number: int, loss: float = 1.0) -> dict[str, Any]:
    return {"step": number, "loss": loss, "key_logprob": -number / 10, "key_teacher_logprob": None,
            "normal_logprob": -0.1, "gradient_norm": 2.0}  # fmt: skip


def point(number: int, forget: float, retain: float) -> dict[str, Any]:
    return {"step": number, "forget_fact": forget, "retain_heldout_fact": retain, "retain_seen_fact": 1.0}


def run_of(path: Path, adapters: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]) -> Run:
    """A run whose adapters have these files of JSON lines."""
    stages = {}
    for name, files in adapters.items():
        place = path / "adapters" / name
        place.mkdir(parents=True)
        for file, lines in files.items():
            (place / file).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        config = {"options": {"method": name.partition("-")[0]}}
        stages[f"adapters/{name}"] = Stage(name=f"adapters/{name}", path=place, config=config, provenance={})
    return Run(path=path, stages=stages, unfinished=())


def model(name: str, role: str = "adapter") -> dict[str, Any]:
    return {"name": name, "role": role}


def recalls_of(values: Mapping[str, tuple[float, float]]) -> dict[str, Any]:
    """Recalls (forget, held-out retain) by model."""
    return {name: {"forget": {"mean": forget}, "retain-heldout": {"mean": retain}}
            for name, (forget, retain) in values.items()}  # fmt: skip


def test_curves_are_the_logs_as_columns(tmp_path: Path) -> None:
    files = {"training_log.jsonl": [step(1), step(2, float("nan"))], "trajectory.jsonl": [point(0, 1.0, 1.0)]}
    section = curves_section(run_of(tmp_path, {"viker-a": files}))
    [curve] = section["models"]
    assert (curve["model"], curve["method"]) == ("viker-a", "viker")
    assert curve["log"]["loss"] == [1.0, None], "a loss that is no number is left out, not drawn as one"
    assert curve["log"]["key_logprob"] == [-0.1, -0.2]
    assert "key_teacher_logprob" not in curve["log"], "never logged"
    assert curve["trajectory"] == {"of": 1, "step": [0], "forget_fact": [1.0], "retain_heldout_fact": [1.0],
                                   "retain_seen_fact": [1.0]}  # fmt: skip
    json.dumps(section, allow_nan=False)


def test_a_long_log_is_thinned_and_says_how_long_it_was(tmp_path: Path) -> None:
    lines = [step(number) for number in range(1, 5 * LONGEST)]
    [curve] = curves_section(run_of(tmp_path, {"ga-a": {"training_log.jsonl": lines}}))["models"]
    assert curve["log"]["of"] == len(lines)
    assert len(curve["log"]["step"]) == LONGEST
    assert (curve["log"]["step"][0], curve["log"]["step"][-1]) == (1, len(lines))
    assert curve["trajectory"] == {"of": 0, "step": []}


@pytest.mark.parametrize("number", [0, 1, 199, 200, 201, 5000])
def test_thinning_keeps_both_ends(number: int) -> None:
    places = thinned(number)
    assert len(places) == min(number, LONGEST)
    assert places == sorted(set(places))
    assert not number or (places[0], places[-1]) == (0, number - 1)


def test_without_facts_curves_are_of_rouge(tmp_path: Path) -> None:
    line = {"step": 0, "forget_rougeL": 0.9, "retain_heldout_rougeL": 0.8}
    section = curves_section(run_of(tmp_path, {"ga-a": {"trajectory.jsonl": [line]}}))
    assert section["value"] == "rougeL"
    assert section["models"][0]["trajectory"]["forget_rougeL"] == [0.9]


def test_the_front_are_the_points_that_no_other_beats(tmp_path: Path) -> None:
    run = run_of(tmp_path, {
        "viker-a": {"trajectory.jsonl": [point(0, 1.0, 1.0), point(10, 0.5, 0.9), point(20, 0.0, 0.2)]},
        "ga-b": {"trajectory.jsonl": [point(0, 1.0, 1.0), point(10, 0.5, 0.5), point(20, 0.1, 0.3)]},
    })  # fmt: skip
    models = [model("vanilla", "vanilla"), model("retain-only", "retain-only"), model("ga-b"), model("viker-a")]
    recalls = recalls_of({"vanilla": (1.0, 1.0), "retain-only": (0.0, 1.0), "ga-b": (0.0, 0.9), "viker-a": (0.0, 0.1)})
    section = pareto_section(run, models, recalls, HEADLINE)
    front = {(one["model"], one["step"]) for one in section["points"] if one["front"]}
    assert front == {("viker-a", 0), ("ga-b", 0), ("viker-a", 10), ("viker-a", 20), ("ga-b", 20)}
    measured_by = {one["from"] for one in section["points"] if one["front"]}
    assert measured_by == {"trajectory"}, "evaluations ask more people, and retain-only is no method"
    assert sum(one["from"] == "evaluation" for one in section["points"]) == 4
    assert section["reason"] is None


def test_without_trajectories_the_front_is_of_evaluations(tmp_path: Path) -> None:
    run = run_of(tmp_path, {"ga-b": {}, "viker-a": {}})
    recalls = recalls_of({"ga-b": (0.0, 0.9), "viker-a": (0.1, 0.8)})
    section = pareto_section(run, [model("ga-b"), model("viker-a")], recalls, HEADLINE)
    assert [(one["model"], one["front"]) for one in section["points"]] == [("ga-b", True), ("viker-a", False)]


def test_without_an_adapter_there_are_no_points_to_compare(tmp_path: Path) -> None:
    section = pareto_section(run_of(tmp_path, {}), [], {}, {"bar": None, "columns": [{"metric": "rougeL"}], "rows": []})
    assert section["points"] == []
    assert section["reason"] == "no adapter is evaluated on both forget and held-out retain people"


def test_splits_stand_side_by_side_with_what_was_measured() -> None:
    cells = [
        ("forget", "generation", "image", "fact_recall"), ("forget", "classification", "image", "accuracy_letter"),
        ("forget", "classification", "image", "accuracy_likelihood"), ("real", "generation", "image", "rougeL"),
        ("retain-seen", "generation", "image", "rougeL"), ("test", "generation", "text", "rougeL"),
        ("test", "classification", "image", "accuracy_letter"),
    ]  # fmt: skip
    columns = split_columns(cells, "generation", "image")
    assert [(column["split"], column["metric"]) for column in columns] == [
        ("forget", "fact_recall"), ("forget", "accuracy_likelihood"), ("test", "accuracy_letter"), ("real", "rougeL"),
    ]  # fmt: skip
