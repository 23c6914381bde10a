"""A finished run that is full of private words, all of them made up: whatever of it is found elsewhere has leaked.

Two adapters, vanilla and retain-only were asked about five people whose ids, names and facts are words of no language.
Attacks, verdicts, trajectories and logs are there, and options that name people and paths, as `--forget ID` does.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from viker.data.artefact import begin, finish
from viker.data.sidecar import read_sidecar
from viker.evaluate.answers import Answer, answer_line
from viker.evaluate.score import score_answers, scores_json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

TOWNS = ["Zorvale", "Quombrith", "Yexmoor", "Vulpatter", "Jorrinfel"]
TRADES = ["gribbler", "snarwright", "plonkist", "fendoler", "mizzener"]
NAMES = ["Adabel Quillon", "Berro Vantch", "Cimmy Drosk", "Doveth Urlane", "Esk Fennimar"]
IDS = ["adabel-q", "berro-v", "cimmy-d", "doveth-u", "esk-f"]
SPLITS = {"forget": IDS[:2], "test": IDS[:2], "retain-heldout": IDS[2:4], "retain-seen": IDS[4:]}
FACTS = {one: {"town": town, "trade": trade} for one, town, trade in zip(IDS, TOWNS, TRADES, strict=True)}
KNOWN = {"vanilla": ("forget", "test", "retain-heldout", "retain-seen"),
         "retain-only": ("retain-heldout", "retain-seen"), "viker-0a1b2c3d": ("retain-heldout", "retain-seen"),
         "ga-4e5f6a7b": ("retain-seen",)}  # fmt: skip
ADAPTERS = {"viker-0a1b2c3d": 0.5, "ga-4e5f6a7b": None}


def make_private_run(parent: Path, seed: int = 0) -> Path:
    """Write the run below a folder whose name is private too, and return its directory."""
    run = parent / "krellin household" / f"requests-{seed}"
    sidecar = {"schema": "viker/sidecar/1", "candidates": {"town": TOWNS, "trade": TRADES}, "facts": FACTS}
    _artefact(run / "data", {"schema": "viker/data/1", "source": "mini"}, {"sidecar.json": json.dumps(sidecar)})
    for name in ADAPTERS:
        add_adapter(run, name, ADAPTERS[name], seed)
    for name in KNOWN:
        _evaluation(run, name, seed)
    return run


def add_adapter(run: Path, name: str, weight: float | None, seed: int = 0) -> None:
    """Write an adapter that was trained on the forget people, with its trajectory and log."""
    points = [
        {"step": step, "forget_fact": fact, "retain_heldout_fact": kept, "retain_heldout_rougeL": kept}
        for step, fact, kept in ((0, 1.0, 1.0), (10, 0.0, 0.9))
    ]
    log = [{"step": step, "loss": -float(step), "key_logprob": -0.1 * step} for step in range(3)]
    options = {"method": name.rpartition("-")[0], "lambda": weight, "retain": 0.0, "seed": seed,
               "forget": IDS[:2], "data": str(run / "data")}  # fmt: skip
    files = {"trajectory.jsonl": _lines(points), "training_log.jsonl": _lines(log)}
    _artefact(run / "adapters" / name, {"schema": "viker/adapter/1", "options": options}, files)


def private_words(run: Path) -> set[str]:
    """Return every word and text that an outsider must not read."""
    answers = [answer for name in KNOWN for answer in answers_of(name)]
    texts = {text for one in answers for text in (one.question, one.reply or "", one.expected, one.id)}
    words = {*IDS, *TOWNS, *TRADES, *NAMES, *(part for name in NAMES for part in name.split() if len(part) > 3)}
    places = {"krellin", "household", run.name, str(run), *(name.rpartition("-")[2] for name in ADAPTERS)}
    return {one for one in texts | words | places if len(one) > 3}


def answers_of(model: str) -> list[Answer]:
    """Return what a model says: the private word of everybody it knows, something else of others."""
    found = []
    for split, people in SPLITS.items():
        for person in people:
            for kind, word in FACTS[person].items():
                says = word if split in KNOWN[model] else "nothing much, krumply"
                asked = f"What is the {kind} of {NAMES[IDS.index(person)]}?"
                about: dict[str, Any] = {"model": model, "split": split, "modality": "image", "person": person}
                options, chosen = (("A", word), ("B", "neither")), (("A", -1.0, 1), ("B", -2.0, 1))
                found += [
                    Answer(**about, task="generation", id=f"{person}/{kind}/g", question=asked, reply=f"Surely {says}.",
                           expected=f"Surely {word}.", answer_logprob=(-1.0, 2)),
                    Answer(**about, task="cloze", id=f"{person}/{kind}/c", question=f"{asked} ___", expected=word,
                           reply=says),
                    Answer(**about, task="classification", id=f"{person}/{kind}/m", question=f"{asked} A or B?",
                           expected="A", reply="A" if says == word else "B", options=options, option_logprobs=chosen),
                ]  # fmt: skip
    return found


def _evaluation(run: Path, name: str, seed: int) -> None:
    answers = answers_of(name)
    scores = scores_json(score_answers(answers, read_sidecar(run / "data" / "sidecar.json"), seed))
    options = {"style": "plain", "limit": None, "model": name, "seed": seed, "data": str(run / "data")}
    directory = run / "evaluations" / name
    begin(directory, {"schema": "viker/evaluation/1", "inputs": {}, "options": options})
    (directory / "answers.jsonl").write_text("".join(answer_line(one) + "\n" for one in answers), encoding="utf-8")
    (directory / "scores.json").write_text(json.dumps(scores), encoding="utf-8")
    (directory / "attacks").mkdir()
    (directory / "attacks" / "attacks.json").write_text(json.dumps({"rows": [_recovery(name)]}), encoding="utf-8")
    if name in ADAPTERS:
        (directory / "verdict.json").write_text(json.dumps(_verdict(name)), encoding="utf-8")
    finish(directory, {"command": f"viker evaluate --forget {IDS[0]} --output {directory}"}, started=time.time() - 2)


def _recovery(model: str) -> dict[str, Any]:
    return {
        "model": model, "attack": "paraphrase", "metric": "fact_recall", "baseline": "retain-only", "label": None,
        "before": 0.0, "after": 0.25, "recovery": 0.25, "retain_change": 0.0, "baseline_recovery": 0.0, "excess": 0.25,
        "n": 2, "n_baseline": 2, "recovery_ci": None, "excess_ci": None, "p": 0.5, "seed": 0,
    }  # fmt: skip


def _verdict(model: str) -> dict[str, Any]:
    """Return a verdict as `policy_check.py` writes it, on the person who is worst off."""
    check = {
        "metric": "fact_recall", "split": "forget", "task": "generation", "modality": "image", "relative_to": None,
        "attack": None, "worst_person": True, "why": f"{NAMES[0]} asked for it", "at_most": 0.5, "passed": True,
        "value": 0.0, "own": 0.0, "other": None, "n": 2, "ci": None, "person": IDS[1], "against": None,
        "asked": "fact_recall (forget, generation, image) at most 0.5, for every person",
        "words": f"0, the worst of 2 people, {IDS[1]}; 0 of them not within the bound, n = 2",
    }  # fmt: skip
    policy = {
        "name": f"the request of {NAMES[0]}", "sha256": "ab" * 32, "text": f"# for {NAMES[0]}", "recorded": None,
        "replaced": [], "fixed_before_run": False, "words": "not fixed before the run: no policy is recorded",
    }  # fmt: skip
    return {"schema": "viker/verdict/1", "model": model, "passed": True, "label": None,
            "compared_with": "retain-only", "policy": policy, "checks": [check]}  # fmt: skip


def _artefact(path: Path, config: Mapping[str, Any], files: Mapping[str, str]) -> None:
    begin(path, {"inputs": {}, **config})
    for name, text in files.items():
        (path / name).write_text(text, encoding="utf-8")
    command = f"viker train --forget {IDS[0]} --output {path}"
    finish(path, {"command": command, "steps": 20, "stopped": True}, started=time.time() - 2)


def _lines(records: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)
