"""Every measure of one model as records: what is there, what is said not to be, and against whom it stands."""

import json
from dataclasses import replace

import numpy as np
import pytest
from kept_answers import ANSWER
from viker.data.sidecar import Sidecar
from viker.evaluate.answers import Answer
from viker.evaluate.measures.comparisons import NO_VERDICT, Measure, label, measure, measures_json
from viker.evaluate.measures.per_answer import per_answer
from viker.evaluate.report.likelihood import LESS, NO_ERROR, OVER, SAME
from viker.evaluate.score import score_answers

FACTS = Sidecar(
    candidates={"town": ("Lima", "Oslo", "Riga"), "pet": ("cat", "dog")},
    facts={"001": {"town": "Lima", "pet": "cat"}, "002": {"town": "Oslo"}},
)
PLAIN = replace(ANSWER, id="001/0", question="Where was this person born?")
CHOICE = replace(
    PLAIN,
    task="classification",
    expected="B",
    reply="b.",
    options=(("A", "Oslo"), ("B", "Lima")),
    option_logprobs=(("A", -3.0, 1), ("B", -4.0, 2)),
)


def crowd(split: str, number: int, level: float, *, tokens: bool = True, each: int = 2) -> list[Answer]:
    """Answers of people to the same questions; what a person's answers score varies a little around a level."""
    found = []
    for person in range(number):
        for place in range(each):
            logprob = level - 0.01 * ((person * 7 + place) % 5)
            found.append(
                replace(
                    PLAIN,
                    split=split,
                    person=f"{split}{person:02}",
                    id=f"{split}/{person}/{place}",
                    question=f"Question {place}?",
                    answer_logprob=(logprob * 2, 2),
                    answer_tokens=((logprob, -1.0, 0.5, 1), (logprob, -1.5, 0.5, int(level > -1))) if tokens else (),
                    paraphrase_logprob=(logprob * 3, 3),
                    wrong_logprobs=((-2.0, 1), (-4.0, 2)),
                )
            )
    return found


def of(measures: list[Measure], metric: str, against: str = "nothing", split: str = "forget") -> Measure:
    [found] = [one for one in measures if (one.metric, one.against, one.split) == (metric, against, split)]
    return found


@pytest.mark.parametrize(
    "answers",
    [
        [PLAIN, replace(PLAIN, id="1", reply=""), replace(PLAIN, id="2", expected="", reply="x")],
        [replace(PLAIN, reply="Łódź 李明", answer_logprob=(-3.0, 1)), replace(PLAIN, id="3", person="002")],
        [replace(PLAIN, task="cloze", expected="Lima"), replace(PLAIN, task="cloze", id="4", expected="Oslo")],
        [CHOICE, replace(CHOICE, id="5", reply=None), replace(CHOICE, id="6", option_logprobs=(), reply="A")],
        [replace(PLAIN, task="captioning", modality="text")],
    ],
)
def test_one_answers_values_are_those_that_scores_are_means_of(answers: list[Answer]) -> None:
    tables = [per_answer(answer, FACTS) for answer in answers]
    for record in score_answers(answers, FACTS, seed=0):
        if record.metric != "corpus_bleu":
            values = [table[record.metric] for table in tables if record.metric in table]
            assert np.mean(values) == pytest.approx(record.value), record.metric
            assert len(values) == record.n


def test_a_fact_recall_is_a_share_of_an_answers_facts() -> None:
    both = replace(PLAIN, facts=(("town", "Lima"), ("pet", "cat")))
    assert per_answer(both, FACTS)["fact_recall"] == 0.5
    assert "fact_recall" not in per_answer(both, None)
    assert "fact_recall" not in per_answer(replace(PLAIN, person="nobody"), FACTS)
    assert "fact_recall" not in per_answer(CHOICE, FACTS)


def test_a_model_alone_has_values_and_no_verdict() -> None:
    answers = crowd("forget", 3, -0.5)
    measures = measure(answers, None, None, 0)
    assert {one.against for one in measures} == {"nothing"}
    assert all(one.p is None and one.ci is None for one in measures)
    assert of(measures, "extraction_strength").value == 1.0
    assert (of(measures, "truth_ratio").n, of(measures, "truth_ratio").people) == (6, 3)
    assert label(answers, None) == "no retain-only, no controls: no verdict" == NO_VERDICT
    assert label(answers, []) == NO_VERDICT


def test_what_a_cell_is_measured_by_depends_on_what_was_kept() -> None:
    measures = measure([PLAIN, CHOICE], None, None, 0)
    assert {one.metric for one in measures if one.task == "generation"} == {
        "rouge1", "rouge2", "rougeL", "rougeL_recall", "sentence_bleu", "repetition", "blank_share",
    }  # fmt: skip
    assert {one.metric for one in measures if one.task == "classification"} == {
        "accuracy", "accuracy_letter", "accuracy_likelihood", "truth_ratio", "truth_share", "probability_among_options",
    }  # fmt: skip


def test_differences_from_retain_only_are_paired_over_people() -> None:
    ours, ideal = crowd("forget", 20, -0.5), crowd("forget", 20, -3.0)
    measures = measure(ours, [replace(answer, model="retain-only") for answer in ideal], None, 0)
    difference = of(measures, "answer_logprob_difference", "retain-only")
    assert (difference.value, difference.n, difference.people) == (pytest.approx(2.5), 40, 20)
    assert difference.p == 1 / 10_000
    assert difference.ci == pytest.approx((2.5, 2.5))
    assert of(measures, "extraction_strength_difference", "retain-only").value == 1.0
    assert (of(measures, "truth_ratio_ks", "retain-only").value, of(measures, "truth_ratio_ks", "retain-only").n) == (
        1.0,
        40,
    )
    quality = of(measures, "forget_quality_tofu", "retain-only")
    assert quality.value == quality.p
    assert quality.value is not None
    assert quality.value < 1e-6
    assert of(measures, "forget_quality_clear", "retain-only").value == pytest.approx(0.0)
    assert label(ours, ideal) == "against retain-only"


def test_retain_only_itself_has_no_difference_and_vanilla_is_measured_like_any_model() -> None:
    ideal = crowd("forget", 6, -3.0)
    measures = measure(ideal, ideal, None, 0)
    assert all(one.value == 0 for one in measures if one.metric.endswith("_difference"))
    assert of(measures, "forget_quality_tofu", "retain-only").value == 1.0
    assert of(measures, "forget_quality_clear", "retain-only").value == 1.0


def test_questions_that_one_model_lacks_are_counted() -> None:
    ours, ideal = crowd("forget", 4, -0.5), crowd("forget", 3, -0.5)
    difference = of(measure(ours, ideal, None, 0), "rougeL_difference", "retain-only")
    assert (difference.n, difference.people) == (6, 3)
    assert difference.note.endswith("2 questions were asked of one model only")


def verdict_of(ours: list[Answer], ideal: list[Answer], metric: str) -> str:
    return of(measure(ours, ideal, FACTS, 0), f"{metric}_difference", "retain-only").note


def test_forgetting_less_and_more_than_never_known_are_told_apart() -> None:
    ideal = crowd("forget", 6, -3.0)
    assert verdict_of(crowd("forget", 6, -0.5), ideal, "answer_logprob") == LESS
    assert verdict_of(ideal, ideal, "answer_logprob") == SAME
    assert verdict_of(crowd("forget", 6, -9.0), ideal, "answer_logprob") == OVER
    assert verdict_of(crowd("forget", 1, -9.0), crowd("forget", 1, -3.0), "answer_logprob") == NO_ERROR
    measures = measure(crowd("retain-seen", 6, -9.0), crowd("retain-seen", 6, -3.0), None, 0)
    assert of(measures, "answer_logprob_difference", "retain-only", "retain-seen").note == ""


def test_a_single_lucky_guess_is_not_knowledge() -> None:
    ideal = [
        replace(PLAIN, person=person, id=f"{person}/{place}", expected=f"In {town}.", reply="No.")
        for person, town in (("001", "Lima"), ("002", "Oslo"))
        for place in range(2)
    ]
    lucky = [replace(answer, reply=answer.expected if answer.id == "001/0" else "No.") for answer in ideal]
    knows = [replace(answer, reply=answer.expected) for answer in ideal]
    assert [verdict_of(ours, ideal, "fact_recall") for ours in (lucky, knows)] == [SAME, LESS]


def test_without_retain_only_controls_give_a_verdict_with_its_people() -> None:
    answers = [*crowd("forget", 18, -0.5), *crowd("controls", 20, -3.0)]
    measures = measure(answers, None, None, 0)
    difference = of(measures, "answer_logprob_difference", "controls")
    assert difference.note.startswith("distinguishable (p=0.0004, n=18): above never-seen people by")
    assert difference.note.endswith("; 2 people in no pair")
    assert (difference.people, difference.n) == (18, 36)
    assert of(measures, "auc_loss", "controls").value == 1.0
    assert of(measures, "auc_loss", "controls").ci == (1.0, 1.0)
    assert of(measures, "privacy_min_k", "controls").value == 0.0
    assert label(answers, None) == "against controls"
    assert label(answers, answers) == "against retain-only and controls"
    everyone = of(measures, "answer_logprob_difference_unpaired", "controls")
    assert everyone.note == "18 forget people, 20 others, questions unmatched"


def test_attacks_without_their_numbers_are_records_without_a_value() -> None:
    measures = measure(
        [*crowd("forget", 2, -1.0, tokens=False), *crowd("controls", 2, -1.0, tokens=False)], None, None, 0
    )
    for attack in ("min_k", "min_k_plus_plus", "gradient_norm"):
        found = of(measures, f"auc_{attack}", "controls")
        assert found.value is None
        assert found.note.startswith("not measured: ")
    tpr = of(measures, "tpr_at_1_percent_loss", "controls")
    assert (tpr.value, tpr.note) == (None, "not measured: 4 non-members, 1 % false alarms need 100")


def test_priv_leak_stands_against_retain_only_on_the_same_people() -> None:
    ours = [*crowd("forget", 5, -9.0), *crowd("controls", 5, -3.0)]
    ideal = [*crowd("forget", 5, -3.0), *crowd("controls", 5, -3.0)]
    leak = of(measure(ours, ideal, None, 0), "priv_leak_loss", "retain-only")
    assert leak.value == pytest.approx(100.0), "far above 0: pushed below strangers"
    assert of(measure(ideal, ideal, None, 0), "priv_leak_loss", "retain-only").value == 0.0
    without = measure(ours, crowd("forget", 5, -3.0), None, 0)
    assert not [one for one in without if one.metric.startswith("priv_leak")]


def test_strangers_may_be_another_split() -> None:
    answers = [*crowd("forget", 3, -0.5), *crowd("real", 3, -3.0)]
    assert of(measure(answers, None, None, 0, strangers="real"), "auc_loss", "real").value == 1.0
    assert label(answers, None, "real") == "against real"
    assert label(answers, None) == NO_VERDICT


def test_measures_are_plain_json() -> None:
    answers = [*crowd("forget", 18, -0.5), *crowd("controls", 18, -3.0)]
    value = measures_json(measure(answers, answers, None, 0), label(answers, answers))
    assert json.loads(json.dumps(value, allow_nan=False)) == value
    assert value["schema"] == "viker/measures/1"
    assert set(value["measures"][0]) == {
        "split", "task", "modality", "metric", "value", "n", "people", "ci", "p", "against", "note",
    }  # fmt: skip


def test_the_order_of_answers_changes_nothing_but_the_order_of_questions() -> None:
    answers = [*crowd("forget", 6, -0.5), *crowd("controls", 6, -3.0)]
    by_person = sorted(answers, key=lambda answer: (answer.person, answer.id), reverse=True)
    for one, other in zip(measure(answers, None, None, 0), measure(by_person, None, None, 0), strict=True):
        assert replace(one, value=0) == replace(other, value=0)
        assert one.value == pytest.approx(other.value)
