"""Attacks on one model from end to end: each kept on its own, resumed after a kill, and read without a model."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from viker.data.artefact import ArtefactMismatch, is_complete, read_json
from viker.data.example import DataError
from viker.data.halves import half_of
from viker.data.sidecar import read_sidecar
from viker.data.sources import open_source
from viker.evaluate.answers import answer_line, read_answers
from viker.evaluate.ask import Protocol, ask_everything, collect_questions
from viker.evaluate.attacks import run
from viker.evaluate.attacks.attacks import choose_attacks
from viker.evaluate.attacks.relearning import Budget
from viker.evaluate.attacks.run import (
    Conditions,
    Target,
    attack_questions,
    read_kept,
    reasons_against,
    run_attacks,
    write_rows,
)
from viker.models.load import load

if TYPE_CHECKING:
    from pathlib import Path

    from viker.data.source import Source
    from viker.models.load import Loaded

PROTOCOL = Protocol(style="plain", max_new_tokens=4, batch_size=16, tasks=("generation",))
BUDGET = Budget(learning_rate=1e-3)
NAMES = ("paraphrase", "prefix", "blur", "int8", "relearn-forget", "relearn-unrelated")


@pytest.fixture(scope="module")
def source(mini_world: Path) -> Source:
    return open_source(str(mini_world), forget=("001", "002", "003"))


@pytest.fixture(scope="module")
def conditions(source: Source) -> Conditions:
    questions = attack_questions(collect_questions(source, ("generation", "cloze")), people=2)
    few = {split: [one for one in examples if int(one.id[-1]) < 2] for split, examples in questions.items()}
    unrelated = [example for example in source.training("retain") if half_of(example.people[0]) == "seen"]
    return Conditions(
        questions=few, training_forget=list(source.training("forget")), training_unrelated=unrelated,
        protocol=PROTOCOL, facts=read_sidecar(source.location / "sidecar.json"), budget=BUDGET,
    )  # fmt: skip


@pytest.fixture
def target(tiny: Loaded, conditions: Conditions) -> Target:
    known = ask_everything(tiny.model, tiny.encoder, conditions.questions, PROTOCOL, "ga-1")
    return Target(name="ga-1", load=lambda: load(tiny.checkpoint), known=known, inputs={"model": "today"})


@pytest.fixture
def evaluation(target: Target, tmp_path: Path) -> Path:
    folder = tmp_path / "evaluations" / "ga-1"
    folder.mkdir(parents=True)
    (folder / "answers.jsonl").write_text("".join(answer_line(answer) + "\n" for answer in target.known))
    return folder


def test_questions_are_open_ones_about_pictures_of_whom_it_concerns(source: Source):
    collected = collect_questions(source, ("generation", "cloze", "classification"))
    asked = attack_questions(collected, people=3)
    assert list(asked) == ["forget", "retain-heldout"]
    everyone = [example for examples in asked.values() for example in examples]
    assert all(example.images and example.task == "generation" for example in everyone)
    assert {example.people[0] for example in asked["forget"]} == {"001", "002", "003"}
    retain = {example.people[0] for example in collected["retain-heldout"]}
    assert {example.people[0] for example in asked["retain-heldout"]} == set(sorted(retain)[:3])
    with_controls = attack_questions({**collected, "controls": collected["retain-seen"]}, people=1)
    assert len({example.people[0] for example in with_controls["controls"]}) == 1


def test_without_pictures_of_the_forget_people_there_is_no_attack(source: Source):
    texts = [one for one in collect_questions(source, ("generation",))["forget"] if not one.images]
    with pytest.raises(DataError, match="expected questions about pictures of the forget people"):
        attack_questions({"forget": texts})


def test_what_only_other_scores_need_is_not_asked(conditions: Conditions):
    example = dataclasses.replace(conditions.questions["forget"][0], wrong=("Ada",), paraphrase="So.")
    [asked] = attack_questions({"forget": [example]})["forget"]
    assert (asked.wrong, asked.paraphrase) == ((), "")


def test_every_attack_is_kept_and_then_skipped(target: Target, conditions: Conditions, evaluation: Path):
    loads = Counter[str]()
    counting = dataclasses.replace(target, load=lambda: loads.update(["load"]) or target.load())
    told: list[str] = []
    run_attacks(NAMES, counting, conditions, evaluation / "attacks", say=told.append)
    assert loads["load"] == 4, "once for questions and pictures, once for each change of weights"
    assert [line.split(":")[0] for line in told] == [f"attack {name}" for name in NAMES]
    files = {name: (evaluation / "attacks" / name / "answers.jsonl").read_bytes() for name in NAMES}
    told.clear()
    run_attacks(NAMES, counting, conditions, evaluation / "attacks", say=told.append)
    assert loads["load"] == 4
    assert all(": complete, skipped: " in line for line in told)
    assert len(told) == len(NAMES)
    assert not (evaluation / "attacks" / "unattacked").exists()

    kept = read_kept(evaluation)
    assert list(kept.attacked) == list(NAMES)
    asked = sorted((split, one.id) for split, examples in conditions.questions.items() for one in examples)
    for name in NAMES[:4]:
        assert sorted((answer.split, answer.id) for answer in kept.attacked[name]) == asked
    assert len(set(files.values())) == len(NAMES)
    _check_relearned(evaluation, kept.attacked["relearn-forget"])


def _check_relearned(evaluation: Path, answers: Any) -> None:
    forget, unrelated = (
        read_json(evaluation / "attacks" / name / "provenance.json") for name in ("relearn-forget", "relearn-unrelated")
    )
    config = read_json(evaluation / "attacks" / "relearn-forget" / "config.json")
    assert forget["people"] == config["options"]["relearned"]
    assert {answer.person for answer in answers if answer.split == "forget"} == {"001", "002", "003"} - set(
        forget["people"]
    )
    assert (forget["steps"], forget["examples"]) == (unrelated["steps"], unrelated["examples"])
    assert not {answer.person for answer in answers} & set(unrelated["people"])


def test_a_kill_loses_one_attack(
    target: Target, conditions: Conditions, evaluation: Path, monkeypatch: pytest.MonkeyPatch
):
    names = ("paraphrase", "flip", "blur")
    whole = evaluation.parent / "whole"
    run_attacks(names, target, conditions, whole, say=lambda _: None)

    real, asked = run.ask_everything, []

    def killed(*arguments: Any) -> Any:
        asked.append(arguments)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(run, "ask_everything", killed)
    output = evaluation / "attacks"
    with pytest.raises(KeyboardInterrupt):
        run_attacks(names, target, conditions, output, say=lambda _: None)
    assert [is_complete(output / name) for name in names] == [True, False, False]
    assert list(read_kept(evaluation).attacked) == ["paraphrase"]
    stamp = (output / "paraphrase" / "provenance.json").read_bytes()
    told: list[str] = []
    run_attacks(names, target, conditions, output, say=told.append)
    assert told[0].startswith("attack paraphrase: ga-1: complete, skipped")
    assert len(asked) == 4
    assert (output / "paraphrase" / "provenance.json").read_bytes() == stamp
    for name in names:
        assert (output / name / "answers.jsonl").read_bytes() == (whole / name / "answers.jsonl").read_bytes()


def test_a_users_mistake_leaves_nothing_half_done(target: Target, conditions: Conditions, evaluation: Path):
    broken = dataclasses.replace(conditions, training_forget=[])
    with pytest.raises(DataError, match="expected training questions to learn again, found none"):
        run_attacks(["relearn-forget"], target, broken, evaluation / "attacks", say=lambda _: None)
    assert not (evaluation / "attacks" / "relearn-forget").exists()


def test_other_options_are_an_error_that_names_them(target: Target, conditions: Conditions, evaluation: Path):
    output = evaluation / "attacks"
    run_attacks(["flip"], target, conditions, output, say=lambda _: None)
    longer = dataclasses.replace(conditions, protocol=dataclasses.replace(PROTOCOL, max_new_tokens=5, batch_size=3))
    with pytest.raises(ArtefactMismatch, match=r"max_new_tokens +there 4 +asked 5") as caught:
        run_attacks(["flip"], target, longer, output, say=lambda _: None)
    assert "batch_size" not in str(caught.value)
    fewer = {"forget": conditions.questions["forget"][1:]}
    with pytest.raises(ArtefactMismatch, match="questions"):
        run_attacks(["flip"], target, dataclasses.replace(conditions, questions=fewer), output, say=lambda _: None)
    run_attacks(["flip"], target, longer, output, overwrite=True, say=lambda _: None)
    assert read_json(output / "flip" / "config.json")["options"]["max_new_tokens"] == 5


def test_a_question_without_an_answer_before_is_asked_without_attack(
    target: Target, conditions: Conditions, evaluation: Path
):
    less = dataclasses.replace(target, known=target.known[2:])
    (evaluation / "answers.jsonl").write_text("".join(answer_line(answer) + "\n" for answer in less.known))
    run_attacks(["flip"], less, conditions, evaluation / "attacks", say=lambda _: None)
    again = read_answers(evaluation / "attacks" / "unattacked" / "answers.jsonl")
    assert [(one.id, one.reply) for one in again] == [(one.id, one.reply) for one in target.known[:2]]
    before = {(one.split, one.id): one.reply for one in read_kept(evaluation).before}
    assert before == {(one.split, one.id): one.reply for one in target.known}


def test_rows_are_a_view_of_what_is_kept(target: Target, conditions: Conditions, evaluation: Path):
    names = ("flip", "prefix")
    never = evaluation.parent / "retain-only"
    never.mkdir()
    (never / "answers.jsonl").write_bytes((evaluation / "answers.jsonl").read_bytes())
    for folder in (evaluation, never):
        run_attacks(names, target, conditions, folder / "attacks", say=lambda _: None)
    rows = write_rows(evaluation, never, conditions.facts)
    written = json.loads((evaluation / "attacks" / "attacks.json").read_text())
    assert written["schema"] == "viker/attacks/1"
    assert [(row["attack"], row["metric"]) for row in written["rows"]] == [(row.attack, row.metric) for row in rows]
    assert {row.attack for row in rows} == set(names)
    assert all((row.baseline, row.excess) == ("retain-only", 0.0) for row in rows), "the same model on both sides"
    assert {row.baseline for row in write_rows(never, never, conditions.facts)} == {None}, "not against itself"


def test_what_cannot_be_made_here_is_said(conditions: Conditions):
    lonely = dataclasses.replace(
        conditions, training_unrelated=[],
        training_forget=[one for one in conditions.training_forget if one.people[0] == "001"],
    )  # fmt: skip
    reasons = reasons_against(lonely, "cuda")
    assert {"int8", "relearn-forget", "relearn-unrelated"} <= set(reasons)
    names, lines = choose_attacks(["all"], reasons)
    assert not set(names) & set(reasons)
    assert len(lines) == len(reasons)
    with pytest.raises(DataError, match="--attacks relearn-forget: expected training questions about at least two"):
        choose_attacks(["relearn-forget"], reasons)
    assert set(reasons_against(conditions, "cpu")) == {"nf4"}
