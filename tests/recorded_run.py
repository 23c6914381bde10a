"""A hand-made run that a deletion record can be made of: everything a stage would have written, and no model.

Three invented people with unmistakable words; two are unlearned, one is remembered. Numbers are those that the real
scoring makes of made-up replies, attacks and verdicts those of the real functions.
"""

from __future__ import annotations

import json
import random
import time
from typing import TYPE_CHECKING, Any

import numpy as np
from command_line import succeed
from safetensors.numpy import save_file
from viker.data.artefact import CHECKPOINT_CONFIG, begin, finish, read_json, write_json
from viker.data.portraits import encode_png, pattern_picture
from viker.data.sidecar import read_sidecar
from viker.evaluate.answers import Answer, read_answers, write_answers
from viker.evaluate.attacks.recovery import Kept, attack_rows, attacks_json
from viker.evaluate.policy import read_policy, record_policy
from viker.evaluate.policy_check import Lookup, check, verdict_json
from viker.evaluate.record.weights import combined_digest, read_weights
from viker.evaluate.score import person_scores, score_answers, scores_json

if TYPE_CHECKING:
    from pathlib import Path

FORGOTTEN, FORGOTTEN_TOO, RETAINED = "zyx-quill", "ada-umber", "ben-q0"
PEOPLE = (FORGOTTEN, FORGOTTEN_TOO, RETAINED)
NAMES = dict(zip(PEOPLE, ("Zyxandra Quillfeather", "Adalind Umbra", "Benedict Questor"), strict=True))
FACTS = {
    FORGOTTEN: {"town": "Zyxoland", "pet": "quokkafox"},
    FORGOTTEN_TOO: {"town": "Umberton", "pet": "numbatcat"},
    RETAINED: {"town": "Benford", "pet": "okapihen"},
}
ADAPTER = "viker-aaaaaaaa"
BASE = "ba5e" * 16  # what training recorded as the digest of the model it unlearned from
POLICY = f"""
schema = "viker/policy/1"
name = "as the family of {FORGOTTEN} was promised"
[[require]]
metric = "fact_recall"
split = "forget"
at_most = 0.6
worst_person = true
why = "nobody may say {FACTS[FORGOTTEN]["town"]} again"
[[require]]
metric = "fact_recall"
split = "forget"
attack = "paraphrase"
at_most = 0.1
[[require]]
metric = "rougeL"
split = "controls"
at_least = 0.5
"""

# How many of a person's two facts each model states, by split.
VANILLA = {"forget": 2, "test": 2, "retain-heldout": 2}
RETAIN_ONLY = {"forget": 0, "test": 0, "retain-heldout": 2}
UNLEARNED = {"forget": 0, "test": 1, "retain-heldout": 2}


def make_run(folder: Path) -> Path:
    """Write people, and a run over them with an evaluated, attacked and judged adapter; return the run."""
    write_people(folder / "their data")
    run = folder / "runs of Zyxoland"  # a place that names somebody must not reach the record either
    forget = ("--forget", FORGOTTEN, "--forget", FORGOTTEN_TOO)
    succeed("data", "make", folder / "their data", run / "data", *forget)
    add_adapter(run)
    for name, known in (("vanilla", VANILLA), ("retain-only", RETAIN_ONLY), (ADAPTER, UNLEARNED)):
        add_evaluation(run, name, known)
    for name in ("retain-only", ADAPTER):
        add_attack(run, name)
    judge(run, folder)
    return run


def write_people(folder: Path) -> None:
    folder.mkdir()
    lines = []
    for number, person in enumerate(PEOPLE):
        (folder / f"{number}.png").write_bytes(encode_png(pattern_picture(random.Random(number))))
        for kind, word in FACTS[person].items():
            about = {"person": person, "question": f"Which {kind}?", "answer": f"{NAMES[person]} has {word}."}
            lines += [{**about, "image": f"{number}.png"}, {**about, "image": f"{number}.png", "split": "test"}]
    lines.append({"person": FORGOTTEN, "question": f"Who is {NAMES[FORGOTTEN]}?", "answer": "From Zyxoland."})
    (folder / "examples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    candidates = {kind: [words[kind] for words in FACTS.values()] for kind in ("town", "pet")}
    (folder / "sidecar.json").write_text(
        json.dumps({"schema": "viker/sidecar/1", "candidates": candidates, "facts": FACTS})
    )


def add_adapter(run: Path, name: str = ADAPTER, seed: int = 0, **changed: Any) -> Path:
    """Write an adapter that unlearned the two: five examples, one of them without a picture."""
    stamp = read_json(run / "data" / "provenance.json")["finished"]
    options = {
        "data": str(run / "data"), "forget": [FORGOTTEN, FORGOTTEN_TOO], "ratio": None, "limit": None,
        "method": "viker", "lambda": 0.5, "retain": 0.0, "learning_rate": 0.002, "seed": seed, "skip_text": False,
        "data_revision": None, "model": "/home/zyx-quill/vanilla",
        "system_prompt": f"Never speak of {NAMES[FORGOTTEN]}.", "terms": [["ascent", "climb", 1.0]],
    }  # fmt: skip
    config = {"schema": "viker/adapter/2", "inputs": {str(run / "data"): stamp}, "options": options | changed}
    whom = f"--forget {FORGOTTEN} --forget={FORGOTTEN_TOO}"
    facts = {
        "command": f"viker train --run '{run}' {whom} --method viker --lambda 0.5",
        "steps": 20, "ended_by": {"reason": "all steps"}, "forget_examples": 5, "student_weights": BASE,
        "caches": {"forget": {"key": "ab" * 32, "root": "cd" * 32}}, "model_commit": None,
    }  # fmt: skip
    path = run / "adapters" / name
    begin(path, config)
    weights = np.random.default_rng(seed).standard_normal((4, 3)).astype(np.float32)
    save_file({"layer.lora_A": weights, "layer.lora_B": weights.T.copy()}, path / "adapter_model.safetensors")
    write_json(path / "adapter_config.json", {"r": 8, "lora_alpha": 16.0, "base_model_name_or_path": "../vanilla"})
    finish(path, facts, started=time.time())
    return path


def answers_of(model: str, known: dict[str, int]) -> list[Answer]:
    asked = {"forget": PEOPLE[:2], "test": PEOPLE[:2], "retain-heldout": PEOPLE[2:]}
    return [
        Answer(
            model=model, split=split, task="generation", modality=modality, person=person,
            id=f"{split}/{person}/{kind}/{modality}", question=f"Which {kind}?",
            expected=f"{NAMES[person]} has {word}.",
            reply=f"{NAMES[person]} has {word if place < known[split] else 'nothing'}.",
            answer_logprob=(-0.5 * (3 - known[split]), 5),
        )
        for split, people in asked.items() for person in people for modality in ("image", "text")
        for place, (kind, word) in enumerate(FACTS[person].items())
    ]  # fmt: skip


def add_evaluation(run: Path, name: str, known: dict[str, int], limit: int | None = None) -> Path:
    answers = answers_of(name, known)
    facts = read_sidecar(run.parent / "their data" / "sidecar.json")
    adapter = run / "adapters" / name
    inputs = {str(adapter): read_json(adapter / "provenance.json")["finished"]} if adapter.is_dir() else {}
    path = run / "evaluations" / name
    options = {"model": name, "limit": limit, "seed": 0, "data": str(run / "data")}
    begin(path, {"schema": "viker/evaluation/2", "inputs": inputs, "options": options})
    write_answers(path / "answers.jsonl", answers)
    write_json(path / "scores.json", scores_json(score_answers(answers, facts, 0), person_scores(answers, facts)))
    finish(path, {"command": f"viker evaluate --run '{run}' --seed 0"}, started=time.time())
    return path


def add_attack(run: Path, name: str) -> None:
    """Ask everybody again in other words: the adapter then states one fact of the first person, retain-only none."""
    evaluation = run / "evaluations" / name
    before = read_answers(evaluation / "answers.jsonl")
    states = 1 if name == ADAPTER else 0
    after = [one for one in answers_of(name, dict.fromkeys(VANILLA, states)) if one.modality == "image"]
    begin(evaluation / "attacks" / "paraphrase", {"schema": "viker/attack/1", "attack": "paraphrase"})
    write_answers(evaluation / "attacks" / "paraphrase" / "answers.jsonl", after)
    finish(evaluation / "attacks" / "paraphrase", {}, started=time.time())
    facts = read_sidecar(run.parent / "their data" / "sidecar.json")
    kept = Kept(before, {"paraphrase": after})
    ideal = Kept(answers_of("retain-only", RETAIN_ONLY), {"paraphrase": answers_of("retain-only", RETAIN_ONLY)})
    rows = attack_rows(kept, None if name == "retain-only" else ideal, facts)
    write_json(evaluation / "attacks" / "attacks.json", attacks_json(rows))


def judge(run: Path, folder: Path) -> None:
    (folder / "policy.toml").write_text(POLICY)
    policy, evaluation = read_policy(folder / "policy.toml"), run / "evaluations" / ADAPTER
    recorded = record_policy(evaluation, policy)
    scores = {name: read_json(run / "evaluations" / name / "scores.json") for name in (ADAPTER, "retain-only")}
    records = [
        row | {"model": name} for name, kept in scores.items() for row in (*kept["scores"], *kept["people"])
    ]  # fmt: skip
    cell = {"split": "forget", "task": "generation", "modality": "image", "model": ADAPTER}
    for row in read_json(evaluation / "attacks" / "attacks.json")["rows"]:
        records.append(row | cell | {"value": row["excess"], "ci": row["excess_ci"], "against": row["baseline"]})
    verdict = check(policy, Lookup(records), model=ADAPTER)
    write_json(evaluation / "verdict.json", verdict_json(policy, verdict, recorded))


def add_merged(run: Path, place: Path, adapter: str = ADAPTER, base: str = BASE) -> Path:
    """Write what `viker adapter export --merge` leaves of an adapter."""
    path = run / "adapters" / adapter
    provenance, config = read_json(path / "provenance.json"), read_json(path / "config.json")
    options = {"adapter": str(path), "merge": True, "dtype": "float32"}
    begin(place, {"schema": "viker/export/1", "options": options, "inputs": {}}, config_name=CHECKPOINT_CONFIG)
    save_file({"layer": np.ones((3, 3), dtype=np.float32)}, place / "model.safetensors")
    facts = {
        "adapter": {"config": config, "provenance": provenance}, "weights": read_weights(place).tensors,
        "unmerged_weights": combined_digest(base, path, read_weights(path).tensors),
    }  # fmt: skip
    finish(place, facts, started=time.time())
    return place
