"""A report as `build_report` makes them, small and by hand: what the tests of its pages vary."""

from __future__ import annotations

import math
from typing import Any

HOSTILE = "</script><script>alert('x')</script> <img src=x onerror=alert(1)> & \"quoted\" {{ 7*7 }}"
MODELS = ("vanilla", "retain-only", "viker-aaaaaaaa", "recommended-bbbbbbbb")
NAMES = {"forget": ("001", "002"), "test": ("001", "002"), "retain-heldout": ("003", "004"), "real": ("celebrity",)}
KEY_ENTROPY = 1.0
_VALUES = {  # forget, test, held-out retain, held-out ROUGE-L
    "vanilla": (1.0, 0.9, 1.0, 1.0), "retain-only": (0.0, 0.0, 1.0, 1.0), "viker-aaaaaaaa": (0.0, 0.1, 0.25, 0.5),
    "recommended-bbbbbbbb": (0.05, 0.0, 0.95, 0.9),
}  # fmt: skip


def report_record(text: str = HOSTILE) -> dict[str, Any]:
    """Return the content of a report.json; every text of a model or a person holds `text`."""
    from viker.evaluate.report.words import verdict_in_words

    report = {
        "schema": "viker/report/2", "title": "Viker report, a run: mini, not comparable",
        "directory": "runs/a/report", "embedded": "mini, not comparable", "notices": ["Keep `this` page."],
        "models": [_model(name) for name in MODELS], "headline": _headline(), "splits": _splits(),
        "seen_retain": _table(["seen retain fact recall"], "retain-seen", 2), "matched": _matched(),
        "likelihood": _likelihood(),
        "forgetting": {"label": "against retain-only", "measures": []},
        "coherence": [_speech(name) for name in MODELS], "attacks": _attacks(), "verdicts": [_verdict(text)],
        "clear": {},
        "head_room": [{"check": "vanilla on forget", "ok": True, "text": "vanilla knows 100.0% of the forget facts"}],
        "answers": [], "replies": _replies(text), "pareto": _pareto(), "curves": _curves(), "key_tokens": _tokens(text),
        "published": [], "scores": _scores(), "stages": _stages(text),
    }  # fmt: skip
    return {**report, "verdict_in_words": verdict_in_words(report)}


def _model(name: str) -> dict[str, Any]:
    role = name if name in MODELS[:2] else "adapter"
    return {
        "name": name, "role": role, "evaluated": True, "method": name.partition("-")[0], "lambda": 1.0, "retain": 0.0,
        "reads_retain_data": name.startswith("recommended"), "steps": 40, "stopped": False,
        "kind": "reversible: adapter only" if role == "adapter" else None,
    }  # fmt: skip


def _column(label: str, split: str, metric: str) -> dict[str, str]:
    return {"label": label, "split": split, "task": "generation", "modality": "image", "metric": metric}


def _headline() -> dict[str, Any]:
    columns = [
        _column("forget fact recall", "forget", "fact_recall"), _column("test fact recall", "test", "fact_recall"),
        _column("held-out retain fact recall", "retain-heldout", "fact_recall"),
        _column("held-out retain ROUGE-L", "retain-heldout", "rougeL"),
    ]  # fmt: skip
    rows = [
        {"model": name, "values": list(values), "ci": [None, None, [0.1, 0.9], None], "rank": None,
         "role": _model(name)["role"], "reads_retain_data": _model(name)["reads_retain_data"],
         "forgotten": values[0] <= 0.1, "recall": values[0]}
        for name, values in _VALUES.items()
    ]  # fmt: skip
    return {"columns": columns, "bar": 0.1, "no_ranks": None, "rows": rows}


def _table(labels: list[str], split: str, place: int) -> dict[str, Any]:
    return {
        "columns": [_column(label, split, "fact_recall") for label in labels],
        "rows": [{"model": name, "values": [values[place]], "ci": [None]} for name, values in _VALUES.items()],
    }  # fmt: skip


def _splits() -> dict[str, Any]:
    columns = [_column("facts", split, "fact_recall") for split in ("forget", "test", "retain-heldout", "real")]
    rows = [{"model": name, "values": list(values), "ci": [None] * 4} for name, values in _VALUES.items()]
    return {"columns": columns, "rows": rows}


def _matched() -> dict[str, Any]:
    rows = [
        {"model": name, "role": _model(name)["role"], "reads_retain_data": False, "crosses": True, "step": 20,
         "forget_fact": 0.1, "retain_heldout_fact": 0.5, "retain_heldout_rougeL": None, "retain_seen_fact": 0.5,
         "rank": None}
        for name in MODELS[2:]
    ]  # fmt: skip
    return {"bar": 0.1, "reason": None, "rows": rows, "without_trajectory": [], "caveats": ["A caveat."]}


def _likelihood() -> dict[str, Any]:
    rows = [
        {"model": name, "role": "adapter", "reads_retain_data": False, "questions": 4, "people": 2,
         "answer_logprob": -3.0, "difference": -1.5, "error": 0.5, "verdict": "over-forgotten: pushed below"}
        for name in MODELS[2:]
    ]  # fmt: skip
    return {"reason": None, "task": "generation", "modality": "image", "rows": rows}


def _speech(name: str) -> dict[str, Any]:
    return {
        "model": name, "split": "forget", "task": "generation", "modality": "image", "repetition": 0.0,
        "blank_share": 0.0, "fluency": -0.1, "typical": -0.01, "words": "as fluent as vanilla",
    }  # fmt: skip


def _attacks() -> list[dict[str, Any]]:
    return [
        {"model": name, "attack": attack, "metric": "fact_recall", "baseline": "retain-only", "label": None,
         "before": 0.0, "after": after, "recovery": after, "recovery_ci": None, "excess": after, "excess_ci": None,
         "p": 0.01, "retain_change": 0.0, "n": 2}
        for name in MODELS[2:] for attack, after in (("crop", 0.0), ("relearn-forget", 0.5))
    ]  # fmt: skip


def _verdict(text: str) -> dict[str, Any]:
    policy = {"name": f"ours {text}", "sha256": "ab" * 32, "words": "fixed before the run"}
    check = {"asked": "fact_recall at most 0.1", "words": "0.05", "passed": False, "why": text}
    return {"model": MODELS[2], "passed": False, "label": None, "policy": policy, "checks": [check]}


def _replies(text: str) -> dict[str, Any]:
    rows = [
        {"split": split, "person": person, "task": "generation", "modality": "image",
         "id": f"{split}/{person}/{place}", "question": f"Where was {person} born? {text}",
         "expected": f"In Lima. {text}", "replies": {name: f"{name} says {text}" for name in MODELS},
         "says": {name: name == "vanilla" for name in MODELS}}
        for split, people in NAMES.items() for person in people for place in range(2)
    ]  # fmt: skip
    return {"task": "generation", "models": list(MODELS), "shown": len(rows), "of": 40, "rows": rows}


def _pareto() -> dict[str, Any]:
    points = [
        {"model": name, "role": "adapter", "step": step, "from": "trajectory", "forget": 1 - step / 40,
         "retain": 1 - step / 80, "front": True}
        for name in MODELS[2:] for step in (0, 20, 40)
    ]  # fmt: skip
    points += [
        {"model": name, "role": _model(name)["role"], "step": None, "from": "evaluation", "forget": values[0],
         "retain": values[2], "front": False}
        for name, values in _VALUES.items()
    ]  # fmt: skip
    return {"value": "fact", "bar": 0.1, "reason": None, "points": points}


def _curves() -> dict[str, Any]:
    steps = list(range(1, 41))
    log = {
        "of": 80, "step": steps, "loss": [math.cos(step) for step in steps],
        "key_logprob": [-step / 10 for step in steps],
        "key_teacher_logprob": [-3.0] * 40, "normal_logprob": [None, *[-0.1] * 39], "gradient_norm": [1.0] * 40,
    }  # fmt: skip
    trajectory = {"of": 3, "step": [0, 20, 40], "forget_fact": [1.0, 0.5, 0.0], "retain_heldout_fact": [1.0, 0.9, 0.8]}
    models = [{"model": name, "method": "viker", "log": log, "trajectory": trajectory} for name in MODELS[2:]]
    return {"longest": 200, "value": "fact", "models": models}


def _tokens(text: str) -> dict[str, Any]:
    word = f"Lima{text}"
    candidates = [[" Lima", 0.4], [text, 0.3]]
    tokens = [
        {"text": shown, "entropy": entropy, "teacher": candidates,
         "models": dict.fromkeys(MODELS, candidates), "answer_prob": {"teacher": 0.4, **dict.fromkeys(MODELS, 0.4)}}
        for shown, entropy in (("In", 0.01), (" Lima", 2.5))
    ]  # fmt: skip
    words = [
        {"text": "In", "first": 0, "last": 0, "entropy": 0.01, "is_key": False},
        {"text": word, "first": 1, "last": 1, "entropy": 2.5, "is_key": True, "is_private": True},
    ]
    examples = [
        {"id": f"{person}/{place}", "person": person, "people": [person], "question": f"Where? {text}",
         "answer": f"In {word}", "tokens": tokens, "words": words}
        for person in ("001", "002") for place in range(2)
    ]  # fmt: skip
    return {
        "reason": None, "key_entropy": KEY_ENTROPY, "teacher": None, "shown": 4, "of": 8, "models": list(MODELS),
        "examples": examples, "notes": ["A note."],
    }  # fmt: skip


def _scores() -> list[dict[str, Any]]:
    return [
        {"model": name, "split": "forget", "task": "generation", "modality": "image", "metric": "fact_recall",
         "value": values[0], "ci": None, "n": 4, "seed": 0}
        for name, values in _VALUES.items()
    ]  # fmt: skip


def _stages(text: str) -> list[dict[str, Any]]:
    names = ["data", *(f"adapters/{name}" for name in MODELS[2:]), *(f"evaluations/{name}" for name in MODELS)]
    return [
        {"stage": name, "config_digest": "cd" * 32, "caches": {"forget": {"key": "12" * 32, "root": "34" * 32}},
         "finished": f"2026-01-01T00:00:0{place}Z", "code_version": "0.1.0", "command": f"viker {text}",
         "libraries": {"torch": "2"}, "device": "cpu", "wall_seconds": 1.5, "peak_resident_bytes": 10**9,
         "inputs": {"runs/a/data": "2026-01-01T00:00:00Z"} if place else {}, "options": {"forget": [text], "seed": 0}}
        for place, name in enumerate(names)
    ]  # fmt: skip
