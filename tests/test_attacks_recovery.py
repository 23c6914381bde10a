"""Recovery by hand: what came back about the forget people, what that is in excess of, and who is too few."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from viker.data.example import DataError
from viker.data.sidecar import Sidecar
from viker.evaluate.answers import Answer
from viker.evaluate.attacks.recovery import NO_BASELINE, Kept, Recovery, attack_rows, attacks_json, changes_of
from viker.evaluate.measures.statistics import cluster_interval

if TYPE_CHECKING:
    from collections.abc import Iterable

FACTS = Sidecar(
    candidates={"town": ("Oslo", "Lima", "Riga")},
    facts={person: {"town": "Oslo"} for person in (*(f"{n:03d}" for n in range(100)), "r1", "r2", "c1", "c2")},
)
RIGHT, WRONG = "She lives in Oslo today", "She lives in Lima today"


def answer(person: str, number: int, is_right: bool, logprob: float = -8.0, split: str = "forget") -> Answer:
    return Answer(
        model="adapter", split=split, task="generation", modality="image", person=person,
        id=f"{split}/{person}/{number}",
        question="Where?", expected=RIGHT, reply=RIGHT if is_right else WRONG, answer_logprob=(logprob, 4),
    )  # fmt: skip


def said(*people: tuple[str, str], split: str = "forget", logprob: float = -8.0) -> list[Answer]:
    """Answers by person: `110` is right, right, wrong."""
    return [
        answer(person, number, mark == "1", logprob, split)
        for person, marks in people
        for number, mark in enumerate(marks)
    ]


def row(rows: Iterable[Recovery], metric: str = "fact_recall") -> Recovery:
    [found] = [one for one in rows if one.metric == metric]
    return found


BEFORE = [*said(("001", "0000"), ("002", "10")), *said(("r1", "11"), ("r2", "11"), split="retain-heldout")]
AFTER = [
    *said(("001", "1100"), ("002", "11"), logprob=-4.0),
    *said(("r1", "10"), ("r2", "11"), split="retain-heldout"),
]


def test_recovery_is_after_minus_before_as_means_over_people():
    found = row(attack_rows(Kept(BEFORE, {"int8": AFTER}), None, FACTS))
    assert (found.model, found.attack, found.n) == ("adapter", "int8", 2)
    assert (found.before, found.after, found.recovery) == (0.25, 0.75, 0.5)
    assert found.retain_change == -0.25


def test_the_other_metrics_are_those_of_the_scores():
    rows = attack_rows(Kept(BEFORE, {"int8": AFTER}), None, FACTS)
    assert [one.metric for one in rows] == ["fact_recall", "rougeL", "answer_logprob"]
    assert (row(rows, "answer_logprob").before, row(rows, "answer_logprob").after) == (-2.0, -1.0)
    assert row(rows, "answer_logprob").retain_change == 0
    assert row(rows, "rougeL").recovery == pytest.approx(0.5 * 0.2), "one word of five"


def test_without_facts_there_is_no_fact_recall():
    rows = attack_rows(Kept(BEFORE, {"int8": AFTER}), None, None)
    assert [one.metric for one in rows] == ["rougeL", "answer_logprob"]


def test_with_nothing_to_compare_with_there_is_no_excess_and_the_row_says_so():
    found = row(attack_rows(Kept(BEFORE, {"int8": AFTER}), None, FACTS))
    assert (found.baseline, found.label, found.baseline_recovery, found.excess) == (None, NO_BASELINE, None, None)
    assert (found.n_baseline, found.excess_ci, found.p) == (0, None, None)


def test_excess_over_retain_only_is_paired_by_person():
    never = Kept(said(("001", "0000"), ("002", "00")), {"int8": said(("001", "1000"), ("002", "00"))})
    found = row(attack_rows(Kept(BEFORE, {"int8": AFTER}), never, FACTS))
    assert (found.baseline, found.label) == ("retain-only", None)
    assert (found.baseline_recovery, found.excess, found.n_baseline) == (0.125, 0.375, 2)
    assert found.p == 0.5, "two people: the smallest p-value there is"


def test_someone_retain_only_was_not_asked_about_is_no_pair():
    never = Kept(said(("001", "0000")), {"int8": said(("001", "1000"))})
    found = row(attack_rows(Kept(BEFORE, {"int8": AFTER}), never, FACTS))
    assert (found.n, found.n_baseline) == (2, 1)
    assert (found.recovery, found.baseline_recovery, found.excess) == (0.5, 0.25, 0.25)


def test_controls_stand_in_where_there_is_no_retain_only_under_this_attack():
    controls = said(("c1", "00"), ("c2", "00"), split="controls"), said(("c1", "10"), ("c2", "00"), split="controls")
    kept = Kept([*BEFORE, *controls[0]], {"int8": [*AFTER, *controls[1]]})
    other = Kept(said(("001", "0000")), {"crop": said(("001", "1111"))})
    for retain_only in (None, other):
        found = row(attack_rows(kept, retain_only, FACTS, control_facts=FACTS))
        assert (found.baseline, found.label, found.n_baseline) == ("controls", None, 2)
        assert (found.baseline_recovery, found.excess) == (0.25, 0.25)
    assert row(attack_rows(kept, None, FACTS)).baseline is None, "controls have facts of their own"
    assert row(attack_rows(kept, None, FACTS), "rougeL").baseline == "controls"


def test_only_what_was_asked_under_attack_is_compared():
    """Relearned people are not asked about: their answers before do not count."""
    found = row(attack_rows(Kept(BEFORE, {"relearn-forget": said(("002", "11"))}), None, FACTS))
    assert (found.n, found.before, found.after) == (1, 0.5, 1.0)
    assert found.retain_change is None


def test_an_answer_without_one_before_is_an_error():
    with pytest.raises(DataError, match=r"forget / forget/002/0: expected an answer before the attack, found none"):
        attack_rows(Kept(said(("001", "0")), {"int8": said(("002", "1"))}), None, FACTS)


def test_forced_words_count_on_neither_side():
    before = [
        answer("001", 0, False),
        dataclasses.replace(answer("001", 1, False), reply="she lives IN Riga today"),
        dataclasses.replace(answer("001", 2, False), reply="No idea"),
    ]
    after = [dataclasses.replace(one, expected="Oslo today", reply="Oslo today", answer_logprob=None) for one in before]
    rows = attack_rows(Kept(before, {"prefix": after}), None, FACTS)
    assert [one.metric for one in rows] == ["fact_recall", "rougeL"], "forcing does not change a likelihood"
    assert (row(rows).before, row(rows).after) == (0.0, 1.0)
    assert row(rows, "rougeL").after == 1.0
    assert row(rows, "rougeL").before == pytest.approx((0.5 + 0.5 + 0.0) / 3)


def test_a_fact_in_the_forced_words_cannot_count():
    """Forcing more than there should be: the reply is judged alone."""
    before = [answer("001", 0, False)]
    after = [dataclasses.replace(before[0], expected="today", reply="today", facts=(("town", "Oslo"),))]
    assert changes_of(before, after, "forget", "fact_recall", FACTS) == {}, "not comparable: nothing is asked before"
    after = [dataclasses.replace(before[0], expected="Oslo today", reply="today")]
    assert changes_of(before, after, "forget", "fact_recall", FACTS) == {"001": (0.0, 0.0)}


def test_choices_of_letters_are_not_open_questions():
    letter = dataclasses.replace(
        answer("001", 7, True), task="classification", options=(("A", "Oslo"), ("B", "Lima")), expected="A", reply="A",
        answer_logprob=None,
    )  # fmt: skip
    assert attack_rows(Kept([letter], {"int8": [letter]}), None, FACTS) == []


def people(number: int, marks: str, split: str = "forget") -> list[Answer]:
    return said(*((f"{person:03d}", marks) for person in range(number)), split=split)


@pytest.mark.parametrize(("number", "has_interval"), [(17, False), (18, True)])
def test_intervals_need_eighteen_people(number, has_interval):
    kept = Kept(people(number, "00"), {"int8": [*people(number // 2, "11"), *people(number, "00")[number // 2 * 2 :]]})
    never = Kept(people(number, "00"), {"int8": people(number, "10")})
    found = row(attack_rows(kept, never, FACTS, seed=3))
    assert (found.excess_ci is not None) == (found.recovery_ci is not None) == has_interval
    if has_interval:
        differences = np.array([[0.5, 1.0]] * 9 + [[-0.5, 1.0]] * 9)
        assert found.excess == 0
        assert found.excess_ci == cluster_interval(differences, lambda sums: float(sums[0] / sums[1]), 3)
        assert found.p == 1


def test_intervals_against_controls_need_eighteen_on_both_sides():
    forget = people(20, "00"), people(20, "10")
    for number in (17, 18):
        controls = people(number, "00", "controls"), people(number, "00", "controls")
        kept = Kept([*forget[0], *controls[0]], {"int8": [*forget[1], *controls[1]]})
        found = row(attack_rows(kept, None, FACTS, control_facts=FACTS))
        assert (found.excess, found.excess_ci) == (0.5, None if number < 18 else (0.5, 0.5))
        assert found.p is not None
        assert found.p < 0.01


def test_the_file_is_json_with_its_schema():
    written = attacks_json(attack_rows(Kept(BEFORE, {"int8": AFTER}), None, FACTS))
    assert json.loads(json.dumps(written, allow_nan=False))["schema"] == "viker/attacks/1"
    assert {one["metric"] for one in written["rows"]} == {"fact_recall", "rougeL", "answer_logprob"}
