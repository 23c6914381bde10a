"""Forget people against people nobody met: who is paired, what is matched, and what may be said of the result."""

from dataclasses import replace

import numpy as np
import pytest
from kept_answers import ANSWER
from scipy import stats
from viker.data.sidecar import Sidecar
from viker.evaluate.measures.controls import LEVEL, controls_differences, matched_questions, verdict
from viker.evaluate.measures.per_answer import Scored, scored
from viker.evaluate.measures.statistics import PairedTest

PLAIN = replace(ANSWER, question="Where was this person born?", expected="In Lima.", reply="In Lima.")


def group(split: str, levels: list[float], questions: tuple[str, ...] = ("Where?", "When?")) -> list[Scored]:
    """People of one answer a question; all of a person's answers have one log-probability a token."""
    return scored(
        [
            replace(
                PLAIN,
                split=split,
                person=f"{split}{index:02}",
                id=f"{split}/{index}/{place}",
                question=question.format(name=f"{split}{index}"),
                answer_logprob=(level * 4, 4),
            )
            for index, level in enumerate(levels)
            for place, question in enumerate(questions)
        ],
        None,
    )


def test_questions_are_matched_by_text_in_whatever_order() -> None:
    forget = group("forget", [0, 0], ("Where?", "When?", "Where?"))
    controls = group("controls", [0, 0, 0], ("When?", "Why?", "Where?", "Where?"))
    for pair in matched_questions(forget, controls, seed=0):
        assert [(a.answer.question, b.answer.question) for a, b in pair] == [
            (q, q) for q in ("Where?", "When?", "Where?")
        ]
        assert len({b.answer.id for _, b in pair}) == 3, "the second of a text is matched with the second"


def test_questions_that_name_the_person_are_matched_by_place() -> None:
    forget = group("forget", [0], ("Where was {name} born?", "What does {name} do?", "And {name}?"))
    controls = group("controls", [0], ("Where was {name} born?", "What does {name} do?"))
    [pair] = matched_questions(forget, controls, seed=0)
    assert [(a.answer.id, b.answer.id) for a, b in pair] == [
        ("forget/0/0", "controls/0/0"),
        ("forget/0/1", "controls/0/1"),
    ]


def test_everybody_is_in_at_most_one_pair_and_the_seed_decides() -> None:
    forget, controls = group("forget", [0] * 4), group("controls", [0] * 9)
    partners = {seed: [pair[0][1].cluster for pair in matched_questions(forget, controls, seed)] for seed in range(4)}
    assert all(len(set(names)) == 4 for names in partners.values())
    assert len({tuple(names) for names in partners.values()}) > 1
    assert partners[0] == [pair[0][1].cluster for pair in matched_questions(forget, list(reversed(controls)), 0)]
    assert len(matched_questions(group("forget", [0] * 9), group("controls", [0] * 4), 0)) == 4


def logprob_of(forget: list[Scored], controls: list[Scored]):
    return next(one for one in controls_differences(forget, controls, 0) if one.metric == "answer_logprob")


def test_the_value_of_a_pair_is_its_mean_difference_and_the_test_is_over_pairs() -> None:
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(-1, 1, 8), rng.normal(-2, 1, 8)
    forget, controls = group("forget", list(ours)), group("controls", list(theirs))
    found = logprob_of(forget, controls)
    differences = [
        ours[int(a.cluster[-2:])] - theirs[int(b.cluster[-2:])]
        for [(a, b), *_] in matched_questions(forget, controls, 0)
    ]
    assert found.paired.mean == pytest.approx(np.mean(differences))
    scipys = stats.permutation_test(
        (np.asarray(differences),), lambda x, axis: x.mean(axis=axis), permutation_type="samples"
    )
    assert found.paired.p == pytest.approx(scipys.pvalue)
    assert (found.paired.n, found.questions, found.left_over) == (8, 16, 0)


def test_people_left_over_are_counted_and_in_the_unpaired_test() -> None:
    found = logprob_of(group("forget", [-0.1]), group("controls", list(np.linspace(-3, -2, 40))))
    assert (found.paired.n, found.paired.p, found.left_over) == (1, 1.0, 39)
    assert found.verdict == "too few people (n=1 < 18) for an interval: no verdict"
    assert (found.everyone.n_first, found.everyone.n_second) == (1, 40)
    assert found.everyone.p == pytest.approx(1 / 41)
    assert found.everyone.difference == pytest.approx(-0.1 + 2.5)


def test_metrics_that_one_side_lacks_are_left_out() -> None:
    facts = Sidecar(candidates={"town": ("Lima", "Oslo")}, facts={"forget00": {"town": "Lima"}})
    forget = scored([replace(PLAIN, person="forget00")], facts)
    stranger = scored([replace(PLAIN, split="controls", person="stranger", id="1")], facts)
    assert "fact_recall" in forget[0].values
    assert [one.metric for one in controls_differences(forget, stranger, 0)] == ["rougeL"]
    assert controls_differences(forget, [], 0) == []
    known = Sidecar(candidates=facts.candidates, facts={**facts.facts, "stranger": {"town": "Lima"}})
    stranger = scored([replace(PLAIN, split="controls", person="stranger", id="1", reply="Oslo")], known)
    recall = next(one for one in controls_differences(forget, stranger, 0) if one.metric == "fact_recall")
    assert recall.paired.mean == 1.0


def test_p_values_are_adjusted_over_the_metrics_of_a_cell() -> None:
    found = controls_differences(group("forget", [-1.0] * 20), group("controls", [-2.0] * 20), 0)
    assert [one.metric for one in found] == ["answer_logprob", "rougeL"]
    assert found[0].paired.p == 1 / 10_000
    assert found[0].p_adjusted == pytest.approx(2 / 10_000)
    assert found[0].verdict == "distinguishable (p=0.0002, n=20): above never-seen people by 1"
    assert (found[1].paired.p, found[1].verdict) == (1.0, "not told apart at n=20, difference within [0, 0]")


def test_pushed_below_strangers_is_distinguishable_too() -> None:
    found = logprob_of(group("forget", [-9.0] * 18), group("controls", [-2.0] * 18))
    assert "below never-seen people by 7" in found.verdict


@pytest.mark.parametrize(
    ("n", "p", "mean", "ci", "words"),
    [
        (30, 0.01, 0.5, (0.1, 0.9), "distinguishable (p=0.01, n=30): above never-seen people by 0.5"),
        (5, 0.01, -0.5, None, "distinguishable (p=0.01, n=5): below never-seen people by 0.5"),
        (30, LEVEL, 0.5, (-0.1, 0.9), "not told apart at n=30, difference within [-0.1, 0.9]"),
        (17, 1.0, 0.0, None, "too few people (n=17 < 18) for an interval: no verdict"),
    ],
)
def test_the_rule_of_the_verdict(n: int, p: float, mean: float, ci: tuple[float, float] | None, words: str) -> None:
    assert verdict(PairedTest(n=n, mean=mean, ci=ci, p=0.5), p) == words


@pytest.mark.parametrize("number", [1, 5, 17, 18, 40])
def test_nobody_is_ever_called_indistinguishable(number: int) -> None:
    same = [-1.0] * number
    for one in controls_differences(group("forget", same), group("controls", same), 0):
        assert "indistinguishable" not in one.verdict
        assert one.verdict.startswith("too few people" if number < 18 else "not told apart at n=")
