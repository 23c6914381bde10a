"""What a report says beyond accuracy: is it forgotten, can it be undone, does the model still speak, what was decided.

Everything is derived from what evaluations keep: measures from answers (`measures/`), recoveries from `attacks.json`,
verdicts from `verdict.json`. A number that was not measured is left out of a row, never put as zero, and a section
without any says what to run. How it looks is `evidence_page.py`'s.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...data.artefact import read_json
from ...data.sidecar import Sidecar
from ..answers import Answer
from ..measures.coherence import coherence, spoken_of
from ..measures.comparisons import NO_VERDICT, Measure, label, measure
from ..protocols.clear_table import clear_table
from .run import Run

IDEAL, VANILLA = "retain-only", "vanilla"
SPOKEN_SPLITS = ("forget", "retain-heldout")


def evidence_sections(run: Run, answers: Mapping[str, Sequence[Answer]], facts: Sidecar | None) -> dict[str, Any]:
    """Return the sections of `report.json` by name: forgetting, coherence, attacks, verdicts."""
    evaluations = {name: stage.path for name, stage in run.under("evaluations").items()}
    seeds = [int(stage.options.get("seed") or 0) for stage in run.under("evaluations").values()]
    return {
        "forgetting": _forgetting(answers, facts, seeds[0]),
        "coherence": _coherence(answers),
        "attacks": _attacks(evaluations),
        "verdicts": _verdicts(evaluations),
        "clear": _clear_tables(answers, seeds[0]),
    }


def _forgetting(answers: Mapping[str, Sequence[Answer]], facts: Sidecar | None, seed: int) -> dict[str, Any]:
    """Return every measure of every model, and what they are held against."""
    found = {
        name: measure(kept, None if name == IDEAL else answers.get(IDEAL), facts, seed)
        for name, kept in answers.items() if kept
    }  # fmt: skip
    told = {label(kept, answers.get(IDEAL)) for kept in answers.values()}
    return {
        "label": " / ".join(sorted(told)) or NO_VERDICT,
        "measures": [_plain(name, one) for name, ones in found.items() for one in ones],
    }


def _plain(model: str, one: Measure) -> dict[str, Any]:
    return {"model": model, **asdict(one), "ci": list(one.ci) if one.ci else None}


def _coherence(answers: Mapping[str, Sequence[Answer]]) -> list[dict[str, Any]]:
    """Return how every model speaks, cell by cell, beside vanilla's own replies."""
    rows = []
    for name, kept in answers.items():
        for split, task, modality in _spoken_cells(kept):
            own, theirs = (_cell(found, split, task, modality) for found in (kept, answers.get(VANILLA, ())))
            told = coherence(spoken_of(own), spoken_of(theirs))
            rows.append({"model": name, "split": split, "task": task, "modality": modality, **asdict(told)})
    return rows


def _spoken_cells(kept: Sequence[Answer]) -> list[tuple[str, str, str]]:
    cells = {
        (given.split, given.task, given.modality)
        for given in kept if given.split in SPOKEN_SPLITS and given.task not in ("classification", "cloze")
    }  # fmt: skip
    return sorted(cells)


def _cell(kept: Sequence[Answer], split: str, task: str, modality: str) -> list[Answer]:
    return [given for given in kept if (given.split, given.task, given.modality) == (split, task, modality)]


def _attacks(evaluations: Mapping[str, Path]) -> list[dict[str, Any]]:
    """Return the rows of every model that was attacked."""
    paths = {name: path / "attacks" / "attacks.json" for name, path in evaluations.items()}
    return [row | {"model": name} for name, path in paths.items() if path.is_file() for row in read_json(path)["rows"]]


def _clear_tables(answers: Mapping[str, Sequence[Answer]], seed: int) -> dict[str, dict[str, Any]]:
    """Return the table that CLEAR publishes, corrected, of every model that was asked for captions."""
    asked = {name: kept for name, kept in answers.items() if any(given.task == "captioning" for given in kept)}
    return {name: clear_table(kept, answers.get(IDEAL), seed=seed) for name, kept in asked.items()}


def _verdicts(evaluations: Mapping[str, Path]) -> list[dict[str, Any]]:
    paths = {name: path / "verdict.json" for name, path in evaluations.items()}
    return [read_json(path) | {"model": name} for name, path in paths.items() if path.is_file()]
