"""What was measured: about this person, about everybody forgotten, and what attacks brought back of either.

Nothing is computed that an evaluation does not hold: scores are those of `scores.json`, recoveries of the forget set
those of `attacks.json`. The person's own recoveries are taken from the kept answers by the very function that makes the
rows of `attacks.json`. Vanilla and retain-only stand beside every number, controls beside those that have them; where
neither retain-only nor controls exist, the label says that there is no verdict. One person's number is over a handful
of questions and has no interval; it is there because the request was theirs.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...data.artefact import ArtefactMismatch, is_complete, read_json
from ...data.example import DataError
from ...data.sidecar import Sidecar
from ..answers import Answer, read_answers
from ..attacks.attacks import ATTACKS
from ..attacks.recovery import METRICS, Change, changes_of, recovered
from ..measures.comparisons import label
from ..report.run import Run, Stage, read_scores, stale_inputs

UNLEARNED, VANILLA, RETAIN_ONLY = "unlearned", "vanilla", "retain-only"
FORGET = "forget"
WHOLE_SPLITS = ("forget", "test", "retain-heldout", "controls")
_ATTACKS, _UNATTACKED = "attacks", "unattacked"

Cell = tuple[str, str, str, str]  # split, task, modality, metric


def evaluations_beside(run: Run, adapter: Stage) -> dict[str, Stage]:
    """Return an adapter's evaluation and those of vanilla and retain-only, by the part they play.

    Raises:
        DataError: the adapter is not evaluated.
        ArtefactMismatch: its evaluation is of another adapter that had this name.
    """
    evaluations, name = run.under("evaluations"), adapter.path.name
    if name not in evaluations:
        raise DataError(
            f"{run.path}: expected an evaluation of {name}, found none. A record states what was measured: run `viker "
            f"evaluate --run {run.path} --target {name}`."
        )
    stamps = {Path(spec).name: stamp for spec, stamp in evaluations[name].config.get("inputs", {}).items()}
    if name in stamps and stamps[name] != adapter.provenance.get("finished"):
        raise ArtefactMismatch(
            f"{evaluations[name].path}: expected the evaluation of the adapter of {adapter.provenance.get('finished')},"
            f" found one of {stamps[name]}. Evaluate it again."
        )
    chosen = {UNLEARNED: name, VANILLA: VANILLA, RETAIN_ONLY: RETAIN_ONLY}
    return {part: evaluations[one] for part, one in chosen.items() if one in evaluations}


def numbers_section(evaluations: Mapping[str, Stage], answers: Sequence[Answer], person: str) -> dict[str, Any]:
    """Return every score about the person and about the splits beside, by model.

    Raises:
        DataError: the adapter was not asked about them, or its scores are not kept by person.
    """
    subject = {part: _of_person(stage, person) for part, stage in evaluations.items()}
    if not subject[UNLEARNED]:
        asked = any(answer.person == person for answer in answers)
        found = "scores that are not kept by person. Score again: `--rescore`" if asked else (
            "that it was asked nothing about them. Evaluate without --limit"
        )  # fmt: skip
        raise DataError(f"{evaluations[UNLEARNED].path}: expected scores of --person {person}, found {found}.")
    whole = {part: _of_splits(stage) for part, stage in evaluations.items()}
    ideal = read_answers(evaluations[RETAIN_ONLY].path / "answers.jsonl") if RETAIN_ONLY in evaluations else None
    return {
        "label": label(answers, ideal),
        "models": list(evaluations),
        "subject": _rows(subject),
        "splits": _rows(whole),
        "caveats": _caveats(evaluations),
    }


def attacks_section(evaluations: Mapping[str, Stage], facts: Sidecar | None, person: str) -> dict[str, Any]:
    """Return for each attack what it brought back, of the forget set and of the person, or that it was not run."""
    folder = evaluations[UNLEARNED].path / _ATTACKS
    kept = read_json(folder / "attacks.json")["rows"] if (folder / "attacks.json").is_file() else []
    before = {part: _before_attacks(stage.path) for part, stage in evaluations.items() if part != VANILLA}
    run, not_run = [], []
    for name, attack in ATTACKS.items():
        rows = [{field: _finite(value) for field, value in row.items() if field != "model"} for row in kept
                if row["attack"] == name]  # fmt: skip
        if not rows:
            not_run.append({"attack": name, "summary": attack.summary})
            continue
        changes = {
            part: _changes(stage.path, name, before[part], facts)
            for part, stage in evaluations.items() if part in before
        }  # fmt: skip
        run.append({"attack": name, "summary": attack.summary, "forget_set": rows, "subject": _own(changes, person)})
    return {"run": run, "not_run": not_run}


def _of_person(stage: Stage, person: str) -> dict[Cell, dict[str, Any]]:
    people = read_json(stage.path / "scores.json").get("people", ())
    return {_cell(row): {"value": _finite(row["value"]), "n": row["n"]} for row in people if row["person"] == person}


def _of_splits(stage: Stage) -> dict[Cell, dict[str, Any]]:
    return {
        _cell(row): {"value": _finite(row["value"]), "n": row["n"], "ci": row["ci"]}
        for row in read_scores(stage) if row["split"] in WHOLE_SPLITS
    }  # fmt: skip


def _cell(row: Mapping[str, Any]) -> Cell:
    return row["split"], row["task"], row["modality"], row["metric"]


def _rows(found: Mapping[str, Mapping[Cell, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Return one row a cell of the unlearned model, with what each model has there (None where nothing)."""
    names = ("split", "task", "modality", "metric")
    return [
        {**dict(zip(names, cell, strict=True)), **{part: cells.get(cell) for part, cells in found.items()}}
        for cell in sorted(found[UNLEARNED], key=lambda cell: (WHOLE_SPLITS.index(cell[0]), cell[1:]))
    ]


def _caveats(evaluations: Mapping[str, Stage]) -> list[str]:
    """Say where the models were not asked the same, or where an evaluation is older than what it is of."""
    own = evaluations[UNLEARNED]
    found = []
    for part, stage in evaluations.items():
        different = [
            name
            for name in sorted({*own.options, *stage.options} - {"model", "target"})
            if _moved(name, own.options.get(name)) != _moved(name, stage.options.get(name))
        ]
        if different:
            found.append(f"{part} was evaluated with other options ({', '.join(different)}).")
        if stale_inputs(stage):
            found.append(f"The evaluation of {part} is older than what it was made from.")
        limit = stage.options.get("limit")
        found += [f"The evaluation of {part} is limited to {limit} people a split."] if limit is not None else []
    return found


def _moved(name: str, value: Any) -> Any:
    """Return an option's value; of a place only its last name, for a run may have been moved in between."""
    return Path(value).name if name in ("data", "controls") and isinstance(value, str) else value


def _before_attacks(evaluation: Path) -> list[Answer]:
    unattacked = evaluation / _ATTACKS / _UNATTACKED
    more = read_answers(unattacked / "answers.jsonl") if is_complete(unattacked) else []
    return read_answers(evaluation / "answers.jsonl") + more


def _changes(
    evaluation: Path, attack: str, before: Sequence[Answer], facts: Sidecar | None
) -> dict[str, Mapping[str, Change]]:
    """Return each forget person's values before and after an attack, by metric; nothing where no answers are kept."""
    folder = evaluation / _ATTACKS / attack
    if not is_complete(folder):
        return {}
    after = read_answers(folder / "answers.jsonl")
    return {metric: changes_of(before, after, FORGET, metric, facts) for metric in METRICS}


def _own(changes: Mapping[str, Mapping[str, Mapping[str, Change]]], person: str) -> list[dict[str, Any]] | None:
    """Return what an attack brought back of one person by metric, beside retain-only's; None where it did not ask."""
    rows = []
    for metric, people in changes[UNLEARNED].items():
        if person not in people:
            continue
        own = people[person]
        ideal = changes.get(RETAIN_ONLY, {}).get(metric, {}).get(person)
        never_knew = None if ideal is None else recovered(ideal)
        rows.append({
            "metric": metric, "before": own[0], "after": own[1], "recovery": recovered(own),
            "retain_only_recovery": never_knew,
            "excess": None if never_knew is None else recovered(own) - never_knew,
        })  # fmt: skip
    return rows or None


def _finite(value: Any) -> Any:
    """Return a value as JSON may hold it: a number that is none is not there."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
