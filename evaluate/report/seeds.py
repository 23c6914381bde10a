"""Several runs that differ only by their seed, as one report: every model over all of them, or why there is none.

Models are matched by their options, since an adapter's name holds a digest of its seed and inputs; what is not in every
run is listed. A world is what a run's data was made from: two training seeds on one world give no new people
(`measures/aggregate.py`, which also makes the numbers). Of one run, `content.py` tells much more.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ...data.artefact import ArtefactMismatch, differences
from ...data.example import canonical_json
from ...data.sidecar import read_sidecar
from ..answers import Answer, read_answers
from ..measures.aggregate import Evaluation, pool, pooled_json
from ..named_source import facts_of_evaluation
from .evidence_page import interval, number
from .run import Run, Stage, sidecar_file
from .table import table

SCHEMA = "viker/pooled-report/1"
POOLED_HEADER = ("model", "metric", "value", "mean of runs", "sd of runs", "runs", "people", "answers")
_PLACES = frozenset({"seed", "data", "model", "looks", "controls", "vanilla", "data_revision", "processor", "cache"})
_SHOWN = ("fact_recall", "rougeL", "accuracy", "answer_logprob", "repetition", "fluency_median")


def pooled_report(runs: Sequence[Run]) -> dict[str, Any]:
    """Return the content of a pooled `report.json`.

    Raises:
        ArtefactMismatch: runs differ in more than a seed.
    """
    _require_alike(runs)
    models = [_models(run) for run in runs]
    everywhere = [key for key in models[0] if all(key in found for found in models)]
    seed = min(int(stage.options.get("seed") or 0) for run in runs for stage in run.under("evaluations").values())
    paired = list(zip(runs, models, strict=True))
    names = _shown_names(runs[0], models[0], everywhere)
    pooled = {
        names[key]: pool([_evaluation(run, found[key]) for run, found in paired], seed) for key in everywhere
    }  # fmt: skip
    missing = [
        f"{stage.path} ({run.path.name})"
        for run, found in paired for key, stage in found.items() if key not in everywhere
    ]  # fmt: skip
    return {
        "schema": SCHEMA, "runs": [str(run.path) for run in runs], "worlds": sorted({_world(run) for run in runs}),
        "not_in_every_run": missing, "models": {name: pooled_json(records) for name, records in pooled.items()},
    }  # fmt: skip


def pooled_markdown(report: Mapping[str, Any]) -> str:
    """Return the page of a pooled report: a table a split and task."""
    runs, worlds = len(report["runs"]), len(report["worlds"])
    blocks = [
        f"# Viker report over {runs} runs in {worlds} worlds",
        f"Runs: {', '.join(report['runs'])}. The same options but for seeds. A value is over all answers, its interval "
        "over people of all worlds (none below 18 of them); then the mean over runs and its standard deviation.",
    ]
    if report["not_in_every_run"]:
        blocks.append("Not in every run, and left out: " + ", ".join(report["not_in_every_run"]) + ".")
    for cell, rows in pooled_tables(report):
        blocks += [f"## {', '.join(cell)}", table(POOLED_HEADER, rows)]
    return "\n\n".join(blocks) + "\n"


def pooled_tables(report: Mapping[str, Any]) -> list[tuple[tuple[str, str, str], list[list[str]]]]:
    """Return the rows of every cell (split, task, modality) that holds a metric that is shown: see `POOLED_HEADER`."""
    records = [
        {"model": model, **record} for model, found in report["models"].items() for record in found["pooled"]
    ]  # fmt: skip
    cells: dict[tuple[str, str, str], list[list[str]]] = {}
    for one in records:
        if one["metric"] in _SHOWN:
            cells.setdefault((one["split"], one["task"], one["modality"]), []).append([
                one["model"], one["metric"], number(one["value"]) + interval(one["ci"]), number(one["run_mean"]),
                number(one["run_sd"]), str(one["runs"]), str(one["clusters"]), str(one["n"]),
            ])  # fmt: skip
    return sorted(cells.items())


def _require_alike(runs: Sequence[Run]) -> None:
    """Raise where what every run has was made with other options than seeds and places."""
    first, lines = runs[0], []
    for other in runs[1:]:
        for name in ("data", "base", "vanilla", "retain-only", "evaluations/vanilla", "evaluations/retain-only"):
            if name in first.stages and name in other.stages:
                found, asked = _choices(first.stages[name]), _choices(other.stages[name])
                lines += [f"  {name}, {line.strip()}" for line in differences(found, asked)]
    if lines:
        raise ArtefactMismatch(
            "report: expected runs that differ only by a seed, found other differences.\n" + "\n".join(lines) +
            "\nReport them apart, or compare them by `viker evaluate --compare`."
        )  # fmt: skip


def _models(run: Run) -> dict[str, Stage]:
    """Return the evaluations of a run by what their model is: a role, or the options it was trained with."""
    adapters = run.under("adapters")
    return {_identity(name, adapters): stage for name, stage in run.under("evaluations").items()}


def _identity(name: str, adapters: Mapping[str, Stage]) -> str:
    if name not in adapters:
        return name
    digest = hashlib.sha256(canonical_json(_choices(adapters[name]))).hexdigest()
    return f"{adapters[name].options.get('method')} {digest[:8]}"


def _choices(stage: Stage) -> dict[str, Any]:
    """Return the options of a stage but for seeds and places."""
    return {name: value for name, value in stage.options.items() if name not in _PLACES | {"schema"}}


def _shown_names(run: Run, models: Mapping[str, Stage], keys: Sequence[str]) -> dict[str, str]:
    """Return each model's name in the report: an adapter's method, its options' digest behind it where two share it."""
    adapters = run.under("adapters")
    short = {key: key.rpartition(" ")[0] if models[key].path.name in adapters else key for key in keys}
    shared = Counter(short.values())
    return {key: name if shared[name] == 1 else key for key, name in short.items()}


def _evaluation(run: Run, stage: Stage) -> Evaluation:
    answers: list[Answer] = read_answers(stage.path / "answers.jsonl")
    path = sidecar_file(run)
    facts = None if path is None else read_sidecar(path)
    if stage.options.get("controls") and stage.options.get("data"):
        facts = facts_of_evaluation(stage.options)
    return _world(run), answers, facts


def _world(run: Run) -> str:
    """Return a name that two runs share exactly when their data was made from the same."""
    stage = run.stages.get("data")
    made_of = {"path": str(run.path)} if stage is None else dict(stage.config)
    return hashlib.sha256(canonical_json(made_of)).hexdigest()[:8]
