"""From a run to one record: headline numbers, matched forgetting, head-room, before and after, cost, provenance.

A report is a derived view over all adapters of a run: nothing is measured here, and every number can be found again
in an evaluation's `scores.json` or a trajectory. Comparing honestly decides the shape (design, section 11): vanilla
and retain-only stand beside every adapter or the titles say that they are missing; held-out retain people are the
headline and seen ones stand apart; methods with and without retain data are ranked apart; and a method is only ranked
once it has forgotten as much as retain-only never knew, for one that forgets nothing would win every retain score.
Reading the run is `run.py`'s work, ranks and matched forgetting `rank.py`'s, how far answers were pushed
down `likelihood.py`'s, pages `page.py`'s.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from ...data.notices import NOTICES
from ...data.sidecar import Sidecar, read_sidecar
from ..answers import Answer, read_answers
from ..named_source import facts_of_evaluation
from .curves import curves_section, pareto_section
from .evidence import evidence_sections
from .likelihood import likelihood_section
from .rank import Recalls, answer_recalls, forgetting_bar, matched_section, ranked, why_no_ranks
from .replies import replies_section
from .run import Run, Stage, read_scores, sidecar_file, stale_inputs
from .splits import split_columns
from .tokens import tokens_section
from .words import verdict_in_words

SCHEMA = "viker/report/2"
PRIVACY = "This page quotes private answers: keep it as you keep the forget set."
HEADROOM = 0.9
FAR_ABOVE_CHANCE = 0.15
LITTLE_GAP = 0.1
NUM_FORGET_ANSWERS, NUM_RETAIN_ANSWERS = 3, 2
_ALIASES = {"acc": "accuracy_letter", "accuracy": "accuracy_letter", "rouge": "rougeL", "bleu": "sentence_bleu"}

Scores = Mapping[tuple[str, str, str, str, str], Mapping[str, Any]]  # (model, split, task, modality, metric) -> record


def build_report(run: Run, published: Sequence[Mapping[str, Any]], ours: Sequence[str]) -> dict[str, Any]:
    """Return the content of `report.json`."""
    evaluations = run.under("evaluations")
    models = list_models(run)
    names = [model["name"] for model in models if model["evaluated"]]
    records = [record for name in names for record in read_scores(evaluations[name])]
    scores: Scores = {
        (record["model"], record["split"], record["task"], record["modality"], record["metric"]): record
        for record in records
    }
    answers = {name: _read_answers(evaluations[name]) for name in names}
    path = sidecar_file(run)
    facts = None if path is None else read_sidecar(path)
    columns = headline_columns(scores)
    task, modality = columns[0]["task"], columns[0]["modality"]
    recalls = answer_recalls(answers, facts, task, modality)
    bar = forgetting_bar(recalls)
    headline = {
        "columns": columns, "bar": bar, "no_ranks": why_no_ranks(recalls, bar),
        "rows": ranked(_table(columns, names, scores), models, recalls, bar),
    }  # fmt: skip
    report = {
        "schema": SCHEMA,
        "title": _title(run, names),
        "directory": str(run.path / "report"),
        "embedded": NOTICES.get(run.source or ""),
        "notices": _notices(run, models, ours),
        "models": models,
        "headline": headline,
        "splits": {
            "columns": (each := split_columns((key[1:] for key in scores), task, modality)),
            "rows": _table(each, names, scores),
        },
        "seen_retain": {"columns": (seen := _seen_columns(columns)), "rows": _table(seen, names, scores)},
        "matched": matched_section(run, models, recalls, bar),
        "likelihood": likelihood_section(answers, models, task, modality),
        **evidence_sections(run, answers, _facts_with_controls(run, facts)),
        "head_room": _head_room(scores, columns, recalls, _chance(answers, facts, task, modality)),
        "answers": before_and_after(answers, task, modality),
        "replies": replies_section(answers, facts, task),
        "pareto": pareto_section(run, models, recalls, headline),
        "curves": curves_section(run),
        "key_tokens": tokens_section(run),
        "published": [_beside(item, models, scores) for item in published],
        "scores": records,
        "stages": [stage.describe() for stage in run.stages.values()],
    }
    return {**report, "verdict_in_words": verdict_in_words(report)}


def list_models(run: Run) -> list[dict[str, Any]]:
    """Return the models of a run: vanilla, retain-only, adapters without and then with retain data, anything else."""
    evaluations, adapters = run.under("evaluations"), run.under("adapters")
    references = [name for name in ("vanilla", "retain-only") if name in evaluations]
    others = sorted(set(evaluations) - set(adapters) - set(references))
    models = [_model(name, name, True, None) for name in references]
    trained = [_model(name, "adapter", name in evaluations, stage) for name, stage in sorted(adapters.items())]
    models += sorted(trained, key=lambda model: (model["reads_retain_data"], model["name"]))
    return models + [_model(name, "other", True, None) for name in others]


def headline_columns(scores: Scores) -> list[dict[str, str]]:
    """Return the four numbers a method is known by; without facts, their nearest substitutes.

    The cell is the image generation task where the forget people were asked it, captions where a benchmark has those
    instead. Without a list of private words there is no fact recall:
    ROUGE-L stands in on the forget side, and cloze accuracy (the expected word is said) on the retain side.
    """
    cells = {(task, modality) for _, split, task, modality, metric in scores if (split, metric) == ("forget", "rougeL")}
    preferred = sorted(cells, key=lambda cell: (cell[1] != "image", cell[0] != "generation", cell))
    task, modality = preferred[0] if preferred else ("generation", "image")
    has_facts = any(key[2:] == (task, modality, "fact_recall") for key in scores)
    forgotten = ("fact recall", task, "fact_recall") if has_facts else ("ROUGE-L", task, "rougeL")
    retained = forgotten if has_facts else ("cloze accuracy", "cloze", "accuracy")
    chosen = [
        ("forget", "forget", forgotten),
        ("test", "test", forgotten),
        ("held-out retain", "retain-heldout", retained),
        ("held-out retain", "retain-heldout", ("ROUGE-L", task, "rougeL")),
    ]
    return [
        {"label": f"{where} {label}", "split": split, "task": of, "modality": modality, "metric": metric}
        for where, split, (label, of, metric) in chosen
    ]


def before_and_after(answers: Mapping[str, Sequence[Answer]], task: str, modality: str) -> list[dict[str, Any]]:
    """Return a few questions with every model's reply: of different people and, where possible, of different kinds."""
    first = next(iter(answers.values()), ())
    replies = {name: {(given.split, given.id): given.reply for given in kept} for name, kept in answers.items()}
    chosen: list[Answer] = []
    for split, number in (("forget", NUM_FORGET_ANSWERS), ("retain-heldout", NUM_RETAIN_ANSWERS)):
        asked = [given for given in first if given.split == split and given.task == task and given.modality == modality]
        chosen += _varied(asked, number)
    return [
        {
            "split": given.split, "person": given.person, "id": given.id, "question": given.question,
            "expected": given.expected,
            "replies": {name: replies[name].get((given.split, given.id)) for name in answers},
        }
        for given in chosen
    ]  # fmt: skip


def _model(name: str, role: str, evaluated: bool, stage: Stage | None) -> dict[str, Any]:
    options, facts = (stage.options, stage.provenance) if stage else ({}, {})
    return {
        "name": name, "role": role, "evaluated": evaluated, "method": options.get("method"),
        "lambda": options.get("lambda"), "retain": options.get("retain"),
        "reads_retain_data": (options.get("retain") or 0) > 0, "steps": facts.get("steps"),
        "stopped": facts.get("stopped"), "kind": "reversible: adapter only" if role == "adapter" else None,
    }  # fmt: skip


def _title(run: Run, names: Sequence[str]) -> str:
    title = f"Viker report, {run.path.resolve().name}"
    if notice := NOTICES.get(run.source or ""):
        title += f": {notice}"
    missing = [name for name in ("vanilla", "retain-only") if name not in names]
    if len(missing) == 2:
        return f"{title} (neither vanilla nor retain-only is evaluated: nothing to compare with)"
    return title + {"vanilla": " (no vanilla)", "retain-only": " (no retain-only yet: a first verdict)"}.get(
        "".join(missing), ""
    )


def _notices(run: Run, models: Iterable[Mapping[str, Any]], ours: Sequence[str]) -> list[str]:
    notices = [PRIVACY]
    notices += [f"`{name}` was begun and not finished: it is not in this report." for name in run.unfinished]
    notices += [f"Adapter `{model['name']}` is not evaluated: run `viker evaluate --run {run.path}`."
                for model in models if not model["evaluated"]]  # fmt: skip
    for name, stage in run.under("evaluations").items():
        stale = stale_inputs(stage)
        notices += [f"The evaluation of `{name}` is older than {', '.join(stale)}: evaluate it again."] if stale else []
    notices += _unequal(run)
    if any(stage.options.get("real") == "heldout" for stage in run.under("evaluations").values()):
        notices.append("`real` leaves out the half of the celebrities that serves as the reference pool.")
    if "data" not in run.stages:
        notices.append("The run has no complete `data` folder, so where its data comes from is not known here.")
    return notices + [f"Ours, not in the paper: {option}" for option in ours]


def _unequal(run: Run) -> list[str]:
    """Say where the evaluations were not asked the same, or not about everyone: both decide what may be compared."""
    asked: dict[str, dict[str, Any]] = {}
    for name, stage in run.under("evaluations").items():
        for option, value in stage.options.items():
            asked.setdefault(option, {})[name] = value
    notices = [
        f"The evaluations differ in `{option}`, so their numbers may not be compared: "
        + ", ".join(f"{name} {value}" for name, value in values.items())
        for option, values in asked.items()
        if option != "model" and len({str(value) for value in values.values()}) > 1
    ]
    limits = {value for value in asked.get("limit", {}).values() if value is not None}
    return notices + [f"Evaluations are limited to {limit} people a split." for limit in sorted(limits)]


def _table(columns: Sequence[Mapping[str, str]], names: Iterable[str], scores: Scores) -> list[dict[str, Any]]:
    """Return one row a model with a record (or None) a column."""
    rows = []
    for name in names:
        found = [
            scores.get((name, column["split"], column["task"], column["modality"], column["metric"]))
            for column in columns
        ]
        rows.append({"model": name, "values": [record and record["value"] for record in found],
                     "ci": [record and record["ci"] for record in found]})  # fmt: skip
    return rows


def _seen_columns(columns: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    return [
        {**column, "split": "retain-seen", "label": column["label"].replace("held-out", "seen")}
        for column in columns[2:]
    ]


def _head_room(
    scores: Scores, columns: Sequence[Mapping[str, str]], recalls: Recalls, chance: float | None
) -> list[dict[str, Any]]:
    """Return what the split lets a method show at all, with a plain sentence where it does not."""
    if columns[0]["metric"] != "fact_recall":
        return [_gap(scores, columns[0])]
    checks = []
    for column in columns[:2]:
        record = scores.get(("vanilla", column["split"], column["task"], column["modality"], "fact_recall"))
        if record is not None:
            known, split = record["value"], column["split"]
            text = f"vanilla knows {known:.1%} of the {split} facts (head-room asks for {HEADROOM:.0%})"
            checks.append({"check": f"vanilla on {split}", "ok": known >= HEADROOM, "text": text})
    if "retain-only" in recalls and chance is not None:
        mean = recalls["retain-only"]["forget"]["mean"]
        text = f"retain-only, which never saw them, says {mean:.1%} of the forget facts; guessing gives {chance:.1%}"
        checks.append({"check": "retain-only on forget", "ok": mean <= chance + FAR_ABOVE_CHANCE, "text": text})
    return checks


def _gap(scores: Scores, column: Mapping[str, str]) -> dict[str, Any]:
    """Compare vanilla with retain-only where no private words are listed: what lies between them can be forgotten."""
    place = (column["split"], column["task"], column["modality"], column["metric"])
    vanilla, ideal = scores.get(("vanilla", *place)), scores.get(("retain-only", *place))
    if vanilla is None or ideal is None:
        return {
            "check": "vanilla and retain-only",
            "ok": None,
            "text": "not known without both vanilla and retain-only",
        }
    text = f"{column['label']}: vanilla {vanilla['value']:.1%}, retain-only {ideal['value']:.1%}"
    return {"check": "vanilla and retain-only", "ok": vanilla["value"] - ideal["value"] >= LITTLE_GAP, "text": text}


def _chance(answers: Mapping[str, Sequence[Answer]], facts: Sidecar | None, task: str, modality: str) -> float | None:
    """Return the mean over forget questions of one over the number of candidates: what guessing gives."""
    if facts is None:
        return None
    asked = [given for given in next(iter(answers.values()), ())
             if (given.split, given.task, given.modality) == ("forget", task, modality)]  # fmt: skip
    kinds = [kind for given in asked for kind, _ in facts.facts_asked(given.expected, given.person)]
    return sum(1 / len(facts.candidates[kind]) for kind in kinds) / len(kinds) if kinds else None


def _beside(item: Mapping[str, Any], models: Iterable[Mapping[str, Any]], scores: Scores) -> dict[str, Any]:
    """Return a published number with ours of the same name: its row names a method or a model."""
    metric = _ALIASES.get(str(item["metric"]).lower(), str(item["metric"]))
    task = item.get("task") or ("classification" if metric.startswith("accuracy_") else "generation")
    split = "retain-heldout" if item["split"] == "retain" else item["split"]
    named = [model["name"] for model in models if str(item["row"]).lower() in (model["method"], model["name"])]
    found = {name: scores.get((name, split, task, item.get("modality", "image"), metric)) for name in named}
    ours = {name: record["value"] for name, record in found.items() if record is not None}
    return {**item, "ours": ours, "our_split": split, "our_metric": metric, "our_task": task}


def _facts_with_controls(run: Run, facts: Sidecar | None) -> Sidecar | None:
    """Return the private words of the source and of the controls that evaluations name; the source's where none do."""
    for stage in run.under("evaluations").values():
        controls = stage.options.get("controls")
        if controls and Path(str(controls)).exists() and stage.options.get("data"):
            return facts_of_evaluation(stage.options)
    return facts


def _read_answers(stage: Stage) -> list[Answer]:
    return read_answers(stage.path / "answers.jsonl")


def _varied(asked: Sequence[Answer], number: int) -> list[Answer]:
    """Choose questions that differ in person and in place: the i-th person's i-th question, in order of ids."""
    by_person: dict[str, list[Answer]] = {}
    for given in sorted(asked, key=lambda given: given.id):
        by_person.setdefault(given.person, []).append(given)
    people = sorted(by_person)
    chosen: dict[str, Answer] = {}
    for place, person in enumerate(islice(cycle(people), number * len(people))):
        given = by_person[person][place % len(by_person[person])]
        if len(chosen) < number:
            chosen.setdefault(given.id, given)
    return list(chosen.values())
