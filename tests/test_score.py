"""Scores of kept answers against the libraries themselves and five-line implementations, on awkward strings."""

import json
import math
import re
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st
from nltk.stem.porter import PorterStemmer
from viker.data.example import DataError
from viker.data.sidecar import Sidecar
from viker.evaluate.answers import (
    Answer,
    answer_line,
    count_without_logprob,
    parse_answers,
    read_answers,
    token_logprob,
)
from viker.evaluate.measures.statistics import cluster_interval
from viker.evaluate.protocols.metrics import likeliest_letter, published_bleu, published_rouge
from viker.evaluate.recall import fact_recall_by_person
from viker.evaluate.score import corpus_bleu, person_scores, score_answers, scores_json

PAIRS = [
    ("The person was born in Lima.", "the persons were born in Lima"),
    ("She works as a baker and likes early hours.", "She works as a pilot and likes the early hours ."),
    ("yes", "yes"),
    ("yes", "no"),
    ("a b c", "c b a"),
    ("one two two", "two two two two"),
    ("Søren lives in Malmö", "Søren lives in Malmö"),
    ("李明", "李明"),
    ("", "anything"),
    ("anything", ""),
    ("", ""),
    (" \n", "\t"),
    ("well-known: 3.5 km!", "well known 3 5 km"),
]
SIDECAR = Sidecar(
    candidates={"town": ("Lima", "Oslo", "Riga"), "pet": ("cat", "dog")},
    facts={"001": {"town": "Lima", "pet": "cat"}, "002": {"town": "Oslo"}},
)
PLAIN = Answer(
    model="vanilla",
    split="forget",
    task="generation",
    modality="image",
    person="001",
    id="001/0",
    question="Where was this person born?",
    expected="Born in Lima long ago.",
    reply="Born in Lima long ago.",
)
CHOICE = replace(
    PLAIN,
    task="classification",
    expected="B",
    reply="b.",
    options=(("A", "Oslo"), ("B", "Lima")),
    option_logprobs=(("A", -3.0, 1), ("B", -4.0, 2)),
)


def words(text: str) -> list[str]:
    """ROUGE's own words: lower case, a-z and 0-9, stemmed above three letters."""
    stem = PorterStemmer().stem
    return [stem(word) if len(word) > 3 else word for word in re.findall(r"[a-z0-9]+", text.lower())]


def f_measure(overlap: float, expected: int, reply: int) -> float:
    return 2 * overlap / (expected + reply) if overlap else 0.0


def longest_common(a: list[str], b: list[str]) -> int:
    row = [0] * (len(b) + 1)
    for x in a:
        row = [0, *(row[j] + 1 if x == y else max(row[j + 1], 0) for j, y in enumerate(b))]
        for j in range(1, len(row)):
            row[j] = max(row[j], row[j - 1])
    return row[-1]


@pytest.mark.parametrize(("expected", "reply"), PAIRS)
def test_rouge_is_the_textbook_f_measure(expected: str, reply: str) -> None:
    e, r = words(expected), words(reply)
    scores = published_rouge(expected, reply)
    for n in (1, 2):
        grams = [Counter(zip(*(side[i:] for i in range(n)), strict=False)) for side in (e, r)]
        overlap = sum((grams[0] & grams[1]).values())
        assert scores[f"rouge{n}"] == pytest.approx(f_measure(overlap, grams[0].total(), grams[1].total()))
    assert scores["rougeL"] == pytest.approx(f_measure(longest_common(e, r), len(e), len(r)))


def naive_bleu(expected: list[str], reply: list[str]) -> float:
    """Sentence BLEU smoothed by method 1: 0.1 in place of zero matches; no match of single words is 0."""
    logs = []
    for n in range(1, 5):
        grams = [Counter(tuple(side[i : i + n]) for i in range(len(side) - n + 1)) for side in (expected, reply)]
        matches = sum((grams[0] & grams[1]).values())
        if n == 1 and not matches:
            return 0.0
        logs.append(math.log((matches or 0.1) / max(1, grams[1].total())))
    return min(1.0, math.exp(1 - len(expected) / len(reply))) * math.exp(sum(logs) / 4)


@pytest.mark.parametrize(("expected", "reply"), PAIRS)
def test_sentence_bleu_is_the_official_smoothed_one(expected: str, reply: str) -> None:
    assert published_bleu(expected, reply) == pytest.approx(naive_bleu(expected.split(), reply.split()))


@given(st.text(max_size=40), st.text(max_size=40))
def test_text_scores_are_shares_whatever_the_text(expected: str, reply: str) -> None:
    scores = [
        *published_rouge(expected, reply).values(),
        published_bleu(expected, reply),
        corpus_bleu([expected], [reply]),
    ]
    assert all(0.0 <= score <= 1.0 + 1e-9 for score in scores)


def test_what_the_libraries_do_to_short_and_foreign_answers() -> None:
    assert published_bleu("Lima", "Lima") == pytest.approx(0.1**0.75)
    assert corpus_bleu(["Lima"], ["Lima"]) == 0.0
    assert published_rouge("Лима", "Лима")["rougeL"] == 0.0


def test_corpus_bleu_is_sacrebleu_s() -> None:
    expected, replies = zip(*PAIRS, strict=True)
    whole = sacrebleu.corpus_bleu(list(replies), [list(expected)]).score / 100
    assert corpus_bleu(expected, replies) == pytest.approx(whole)
    assert 0 < whole < 1


def test_the_likeliest_option_is_per_token() -> None:
    assert likeliest_letter([("A", -3.0, 1), ("B", -4.0, 2)]) == "B"
    assert likeliest_letter([("A", -2.0, 1), ("B", -4.0, 2)]) == "A"
    for broken in [("A", math.nan, 1), ("A", -1.0, 0), ("A", -math.inf, 2)]:
        with pytest.raises(ValueError, match="option A: expected a finite log-probability"):
            likeliest_letter([broken])


def values(answers: list[Answer], facts: Sidecar | None = SIDECAR) -> dict[str, tuple[float, int]]:
    return {record.metric: (record.value, record.n) for record in score_answers(answers, facts, seed=0)}


def test_each_task_has_its_metrics() -> None:
    perfect = ("rouge1", "rouge2", "rougeL", "rougeL_recall", "sentence_bleu", "corpus_bleu", "fact_recall")
    spoken = {"repetition": (0.0, 1), "blank_share": (0.0, 1)}
    assert values([PLAIN]) == dict.fromkeys(perfect, (pytest.approx(1.0), 1)) | spoken
    assert values([replace(PLAIN, task="cloze", expected="Lima")]) == {"accuracy": (1.0, 1), "fact_recall": (1.0, 1)}
    letters = dict.fromkeys(("accuracy", "accuracy_letter", "accuracy_likelihood"), (1.0, 1))
    assert letters.items() <= values([CHOICE]).items()


def test_a_choice_without_a_reply_or_without_likelihoods_is_left_out_of_that_metric_only() -> None:
    scored = [
        CHOICE,
        replace(CHOICE, id="1", reply=None),
        replace(CHOICE, id="2", option_logprobs=()),
        replace(CHOICE, id="3", reply="Lima", option_logprobs=()),
    ]
    found = values(scored)
    assert found["accuracy_letter"] == (pytest.approx(2 / 3), 3)
    assert found["accuracy_likelihood"] == (1.0, 2)
    assert found["accuracy"] == (pytest.approx(3 / 4), 4)
    with pytest.raises(DataError, match="expected a reply or option log-probabilities"):
        replace(CHOICE, reply=None, option_logprobs=())


def test_a_person_has_scores_of_their_own_and_a_mean_is_made_of_them() -> None:
    answers = crowd(3, 2)
    by_person = [record for record in person_scores(answers, SIDECAR) if record.metric == "rougeL"]
    assert [record.person for record in by_person] == sorted({answer.person for answer in answers})
    whole = next(record for record in score_answers(answers, SIDECAR, seed=0) if record.metric == "rougeL")
    assert sum(one.value * one.n for one in by_person) / sum(one.n for one in by_person) == pytest.approx(whole.value)


def likely(answer: Answer, number: int, total: float, num_tokens: int) -> Answer:
    return replace(answer, id=f"likely/{number}", answer_logprob=(total, num_tokens))


def test_the_likelihood_of_an_answer_is_per_token_and_a_mean_over_answers_whatever_their_length() -> None:
    answers = [likely(PLAIN, 0, -8.0, 2), likely(PLAIN, 1, -1.0, 10), likely(PLAIN, 2, 0.0, 1)]
    assert [token_logprob(answer) for answer in answers] == [-4.0, -0.1, 0.0]
    assert values(answers)["answer_logprob"] == (pytest.approx((-4.0 - 0.1) / 3), 3)


def test_answers_without_their_likelihood_are_scored_without_that_metric_only() -> None:
    assert token_logprob(PLAIN) is None
    assert "answer_logprob" not in values([PLAIN])
    mixed = [PLAIN, likely(PLAIN, 0, -8.0, 2), replace(PLAIN, id="c", task="cloze"), replace(CHOICE, id="m")]
    assert count_without_logprob(mixed) == 1, "only of questions whose likelihood is asked"
    assert values(mixed[:2])["answer_logprob"] == (-4.0, 1)
    assert values(mixed[:2])["rougeL"][1] == 2


def test_a_likelihood_has_the_interval_of_its_people() -> None:
    answers = [replace(answer, answer_logprob=(-float(answer.person), 2)) for answer in crowd(20, 10)]
    [record] = [record for record in score_answers(answers, None, seed=0) if record.metric == "answer_logprob"]
    assert record.value == pytest.approx(-9.5 / 2)
    assert record.ci
    assert -9.5 <= record.ci[0] < record.value < record.ci[1] <= 0


def test_an_empty_reply_scores_zero_and_still_counts() -> None:
    scored = values([PLAIN, replace(PLAIN, id="001/1", reply="")])
    assert {metric: scored[metric] for metric in ("rougeL", "sentence_bleu", "fact_recall")} == {
        metric: (pytest.approx(0.5), 2) for metric in ("rougeL", "sentence_bleu", "fact_recall")
    }


def test_facts_need_a_sidecar_and_a_private_word() -> None:
    assert "fact_recall" not in values([PLAIN], None)
    assert "fact_recall" not in values([replace(PLAIN, expected="A tall person.")])
    assert "fact_recall" not in values([replace(PLAIN, person="002")])


def test_fact_recall_by_person_counts_facts() -> None:
    answers = [
        PLAIN,
        replace(PLAIN, id="1", reply="Lima or Oslo"),
        replace(PLAIN, id="2", reply="In Lima with a dog", facts=(("town", "Lima"), ("pet", "cat"))),
        replace(PLAIN, id="3", person="002", expected="In Oslo.", reply="oslo!"),
        replace(PLAIN, id="4", person="003", expected="In Riga."),
        replace(CHOICE, id="5"),
    ]
    assert fact_recall_by_person(answers, SIDECAR) == {"001": (2, 4), "002": (1, 1)}
    assert fact_recall_by_person(answers, None) == {}


def test_cells_are_apart_and_in_order() -> None:
    answers = [
        replace(PLAIN, model=model, split=split, modality=modality)
        for model in ("viker", "vanilla")
        for split in ("test", "forget")
        for modality in ("text", "image")
    ]
    # The same id in one cell twice is refused, so each modality gets ids of its own.
    answers = [replace(answer, id=f"{answer.id}/{answer.modality}") for answer in answers]
    records = score_answers(answers, None, seed=3)
    cells = [(record.model, record.split, record.modality) for record in records if record.metric == "rougeL"]
    assert cells == sorted(cells)
    assert len(cells) == 8
    assert {(record.n, record.ci, record.seed) for record in records} == {(1, None, 3)}


def crowd(num_people: int, num_right: int, answers_each: int = 2) -> list[Answer]:
    return [
        replace(
            PLAIN, person=f"{person:03}", id=f"{person}/{index}", reply=PLAIN.expected if person < num_right else "No."
        )
        for person in range(num_people)
        for index in range(answers_each)
    ]


def test_intervals_start_at_eighteen_people_and_repeat_by_their_seed() -> None:
    assert all(record.ci is None for record in score_answers(crowd(17, 9), None, seed=0))
    records = score_answers(crowd(18, 9), None, seed=0)
    moving = [record for record in records if record.metric not in ("repetition", "blank_share")]  # of a crowd: all 0
    assert all(record.ci and 0 <= record.ci[0] < record.value < record.ci[1] <= 1 for record in moving)
    assert records == score_answers(list(reversed(crowd(18, 9))), None, seed=0)
    assert records != score_answers(crowd(18, 9), None, seed=1)


def test_answers_of_one_person_are_one_draw() -> None:
    few, many = (
        next(r.ci for r in score_answers(crowd(40, 20, each), None, seed=0) if r.metric == "rougeL") for each in (1, 8)
    )
    assert few == pytest.approx(many)  # eight answers that stand or fall together add no certainty


def test_the_interval_is_that_of_a_plain_bootstrap() -> None:
    rng = np.random.default_rng(5)
    counts_PS = np.stack([rng.random(30), np.ones(30)], axis=1)
    interval = cluster_interval(counts_PS, lambda sums_S: float(sums_S[0] / sums_S[1]), seed=0)
    draws = [counts_PS[rng.integers(30, size=30), 0].mean() for _ in range(4000)]
    assert interval == pytest.approx(tuple(np.quantile(draws, (0.025, 0.975))), abs=0.02)


def test_corpus_bleu_of_a_crowd_is_that_of_all_its_answers() -> None:
    answers = crowd(20, 10)
    value = next(record.value for record in score_answers(answers, None, seed=0) if record.metric == "corpus_bleu")
    assert value == pytest.approx(corpus_bleu([a.expected for a in answers], [a.reply or "" for a in answers]))


def test_nothing_to_score_and_twice_the_same_are_errors() -> None:
    with pytest.raises(DataError, match="expected answers to score, found none"):
        score_answers([], None, seed=0)
    with pytest.raises(DataError, match="found vanilla / forget / 001/0 twice"):
        score_answers([PLAIN, PLAIN], None, seed=0)


def test_scores_json_is_plain_json() -> None:
    value = scores_json(score_answers(crowd(18, 9), None, seed=0))
    assert json.loads(json.dumps(value, allow_nan=False)) == value
    assert value["schema"] == "viker/scores/2"
    assert set(value["scores"][0]) == {"model", "split", "task", "modality", "metric", "value", "n", "ci", "seed"}


@pytest.mark.parametrize(
    "answer",
    [
        PLAIN,
        CHOICE,
        replace(CHOICE, reply=None, facts=(("town", "Güneş"),)),
        likely(PLAIN, 0, -12.25, 7),
        likely(PLAIN, 0, -0.0, 1),
    ],
)
def test_an_answer_survives_its_line(answer: Answer) -> None:
    assert parse_answers([answer_line(answer), "\n"]) == [answer]


def test_a_line_from_before_likelihoods_were_kept_is_read() -> None:
    assert "answer_logprob" not in answer_line(PLAIN)
    assert parse_answers([answer_line(PLAIN)])[0].answer_logprob is None


def test_a_reply_with_line_breaks_of_unicode_is_one_line(tmp_path) -> None:
    answers = [replace(PLAIN, reply="one\u2028two\x85three\x0bfour\r\nfive"), CHOICE]
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(answer_line(answer) + "\n" for answer in answers), encoding="utf-8")
    assert read_answers(path) == answers


def broken_line(**changes: Any) -> str:
    return json.dumps(
        {name: value for name, value in (json.loads(answer_line(CHOICE)) | changes).items() if value != "-"}
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ("[]", r"found '\[\]'"),
        (broken_line(schema="viker/answer/9"), "viker/answer/9"),
        (broken_line(person="-"), "fields person"),
        (broken_line(person=1), "fields person"),
        (broken_line(persom="x"), "fields persom"),
        (broken_line(options="AB"), "fields options"),
        (broken_line(facts=["Lima"]), "fields facts"),
        (broken_line(answer_logprob=-1.5), "fields answer_logprob"),
        (broken_line(answer_logprob=[-1.5]), "fields answer_logprob"),
        (broken_line(answer_logprob=["-1.5", 2]), "fields answer_logprob"),
        (broken_line(answer_logprob=[-1.5, 0]), "fields answer_logprob"),
        (broken_line(answer_logprob=[-1.5, True]), "fields answer_logprob"),
        (broken_line(answer_logprob=[-math.inf, 2]), "fields answer_logprob"),
    ],
)
def test_a_broken_line_is_named(line: str, message: str) -> None:
    with pytest.raises(DataError, match=rf"(?s)line 2: expected an answer.*{message}"):
        parse_answers([answer_line(PLAIN), line])
