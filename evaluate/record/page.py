"""Lay a deletion record out as a document: `record.html`, one file that a browser shows and a printer prints.

It is made for somebody who files it: what was asked, what was done, what was measured, what it does not show. Numbers
are a selection (the open questions, the choices); all are in `record.json`, and the page says how many it leaves out.
Everything is from the record, so the page cannot disagree with it, and it can be made again from it. No script, no
font, no picture, nothing is fetched: the page's own policy forbids it. Text is escaped by jinja2, and a name that the
record lacks is an error, never a blank.
"""

import base64
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .measured import RETAIN_ONLY, UNLEARNED, VANILLA

_TEMPLATES = Path(__file__).parent / "templates"
_NATS = "answer_logprob"
_METRICS = {
    "fact_recall": "facts stated",
    "rougeL": "wording (ROUGE-L)",
    _NATS: "likelihood",
    "accuracy": "right choice",
}
_TASKS = {
    "generation": "open question", "classification": "multiple choice", "cloze": "gap to fill",
    "captioning": "caption", "recognition": "recognition",
}  # fmt: skip
_MODALITIES = {"image": "picture", "text": "name only"}
_SPLITS = {
    "forget": "the forgotten, as trained", "test": "the forgotten, asked otherwise",
    "retain-heldout": "others, to be remembered", "controls": "strangers, never trained on",
}  # fmt: skip
_MODELS = (VANILLA, UNLEARNED, RETAIN_ONLY)
_ABSENT = "–"

_OUTCOMES = {
    "fact_recall": "Facts about this person that are stated when their picture is shown",
    "rougeL": "Expected wording about this person that is given when their picture is shown (ROUGE-L)",
    "accuracy": "Right answers picked out of those on offer",
}

Record = Mapping[str, Any]


def render_page(record: Record) -> str:
    """Return the page of a record."""
    import jinja2

    loader = jinja2.FileSystemLoader(_TEMPLATES)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"short": lambda digest: str(digest)[:16], "day": _day}
    style = (_TEMPLATES / "record.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return environment.get_template("record.html").render(
        record=record, style=style, style_digest=digest, outcome=outcome(record), person=_person_rows(record),
        others=_split_rows(record), left_out=_left_out(record), attacks=_attack_rows(record),
        checks=_check_rows(record), settings=_settings(record), digests=_digests(record),
    )  # fmt: skip


def outcome(record: Record) -> str:
    """Return what the record comes to in one or two plain sentences."""
    verdict = record["policy"]["verdict"]
    judged = "No policy was applied." if verdict is None else (
        f"The policy “{record['policy']['policy']['name']}” is {'met' if verdict['passed'] else 'NOT met'}."
    )  # fmt: skip
    return " ".join([*map(_in_words, record["summary"]), judged])


def _in_words(row: Mapping[str, Any]) -> str:
    """Return one number of a summary as a sentence, by model."""
    told = {VANILLA: "{} before unlearning", UNLEARNED: "{} after it", RETAIN_ONLY: "{} by a model that never knew"}
    values = [told[part].format(_percent(row[part]["value"])) for part in _MODELS if row[part]]
    asked = f"{row[UNLEARNED]['n']} {'question' if row[UNLEARNED]['n'] == 1 else 'questions'}"
    return f"{_OUTCOMES[row['metric']]}: {', '.join(values)} ({asked})."


def _person_rows(record: Record) -> list[dict[str, Any]]:
    """Return the page's rows about the person, with what the unlearned model gives about controls beside."""
    strangers = {
        (row["task"], row["modality"], row["metric"]): row[UNLEARNED]
        for row in record["numbers"]["splits"] if row["split"] == "controls"
    }  # fmt: skip
    rows = []
    for row in _selected(record["numbers"]["subject"]):
        if row["split"] == "test" and row["modality"] == "text":  # a name has no other picture
            continue
        beside = strangers.get((row["task"], row["modality"], row["metric"]))
        rows.append({**_told(row), "strangers": _value(row["metric"], beside), "n": row[UNLEARNED]["n"]})
    return rows


def _split_rows(record: Record) -> list[dict[str, Any]]:
    """Return the page's rows about whole splits: open questions alone; controls have their column beside the person."""
    chosen = [
        row for row in _selected(record["numbers"]["splits"])
        if row["task"] in ("generation", "captioning") and row["split"] != "controls"
        and (row["split"], row["modality"]) != ("test", "text")
    ]  # fmt: skip
    wordings = ("rougeL", _NATS) if _no_facts(record) else ("fact_recall", _NATS)
    return [
        _told(row) | {"n": row[UNLEARNED]["n"]}
        for row in chosen
        if row["metric"] == wordings[0] or (row["metric"] == wordings[1] and row["modality"] == "image")
    ]


def _no_facts(record: Record) -> bool:
    return not any(row["metric"] == "fact_recall" for row in record["numbers"]["splits"])


def _selected(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the rows of a page: by split, picture before name, open questions before choices."""
    tasks, metrics = list(_TASKS), list(_METRICS)
    chosen = [row for row in rows if row["metric"] in _METRICS and row["task"] in _TASKS
              and not (row["task"] == "cloze" and row["metric"] == "accuracy")]  # fmt: skip
    order = {split: place for place, split in enumerate(_SPLITS)}
    return sorted(
        chosen,
        key=lambda row: (
            order[row["split"]],
            tasks.index(row["task"]),
            row["modality"],
            metrics.index(row["metric"]),
        ),
    )


def _told(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row in a reader's words."""
    asked = f"{_TASKS[row['task']]}, {_MODALITIES[row['modality']]}"
    values = [_value(row["metric"], row.get(model)) for model in _MODELS]
    return {"split": _SPLITS[row["split"]], "asked": asked, "measure": _METRICS[row["metric"]], "values": values}


def _value(metric: str, found: Mapping[str, Any] | None) -> str:
    """Return a value for a cell, with its interval where there is one; a dash where nothing was measured."""
    if found is None or found["value"] is None:
        return _ABSENT
    show = _nats if metric == _NATS else _percent
    ci = found.get("ci")
    return show(found["value"]) + (f" [{show(ci[0])},\u00a0{show(ci[1])}]" if ci else "")


def _left_out(record: Record) -> dict[str, int]:
    numbers = record["numbers"]
    return {
        "person": len(numbers["subject"]) - len(_person_rows(record)),
        "others": len(numbers["splits"]) - len(_split_rows(record)),
    }


def _attack_rows(record: Record) -> dict[str, Any]:
    """Return the attacks by one metric: facts where they are known, else wording."""
    made = record["attacks"]["run"]
    metrics = {row["metric"] for one in made for row in one["forget_set"]}
    metric = next((name for name in _METRICS if name in metrics), None)
    rows = []
    for one in made:
        everybody = next((row for row in one["forget_set"] if row["metric"] == metric), None)
        own = next((row for row in one["subject"] or () if row["metric"] == metric), None)
        rows.append({
            "attack": one["attack"], "summary": one["summary"],
            "everybody": [_points(metric, everybody, "recovery"), _points(metric, everybody, "excess")],
            "own": ["not asked", _ABSENT] if one["subject"] is None
            else [_points(metric, own, "recovery"), _points(metric, own, "excess")],
        })  # fmt: skip
    return {"metric": _METRICS.get(metric or "", ""), "rows": rows, "baselines": _baselines(made)}


def _baselines(made: Iterable[Mapping[str, Any]]) -> str:
    found = {row["baseline"] or row["label"] for one in made for row in one["forget_set"]}
    return ", ".join(sorted(found))


def _points(metric: str | None, row: Mapping[str, Any] | None, name: str) -> str:
    value = None if row is None else row[name]
    if value is None:
        return _ABSENT
    return f"{value:+.2f}" if metric == _NATS else f"{100 * value:+.1f}"


def _check_rows(record: Record) -> list[dict[str, Any]]:
    verdict = record["policy"]["verdict"]
    return [] if verdict is None else [
        {"asked": one["asked"], "words": one["words"], "passed": one["passed"], "why": one["why"]}
        for one in verdict["checks"]
    ]  # fmt: skip


def _settings(record: Record) -> str:
    """Return the settings that a reader asks for; all are in the record."""
    names = ("lambda", "retain", "learning_rate", "num_train_epochs", "lora_r", "seed")
    settings = record["request"]["settings"]
    told = [f"{name.replace('_', ' ')} {settings[name]}" for name in names if settings.get(name) is not None]
    return ", ".join(told)


def _digests(record: Record) -> list[tuple[str, str]]:
    """Return the digests that a reader compares, by what they are of."""
    adapter, merged = record["weights"]["adapter"], record["weights"]["merged"]
    rows = [(f"Adapter, {one['name']}", one["sha256"]) for one in adapter["files"]]
    if merged is not None:
        rows.append(("Merged model, all tensors", merged["weights"]))
        rows += [(f"Merged model, {one['name']}", one["sha256"]) for one in merged["files"]]
    base = record["request"]["unlearned_from"]["weights"]
    rows += [("Model it was unlearned from, all tensors", base)] if base else []
    return rows + [
        (one["path"].partition("/")[2], one["sha256"]) for one in record["provenance"]["files"]
        if one["path"].endswith(("/scores.json", f"{record['request']['adapter']}/answers.jsonl"))
    ]  # fmt: skip


def _day(stamp: str | None) -> str:
    return _ABSENT if not stamp else f"{stamp[:10]} {stamp[11:16]} UTC"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}\u00a0%"


def _nats(value: float) -> str:
    return f"{value:.2f}"
