"""What is left of an answer in its tokens, and whether the truth is preferred: against plain definitions."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kept_answers import ANSWER
from viker.evaluate.answers import Answer
from viker.evaluate.measures.memorization import answer_probability, exact_memorization, extraction_strength
from viker.evaluate.measures.truth_ratio import (
    forgotten_value,
    known_value,
    log_truth_ratio,
    probability_among_options,
    share_of,
    truth_ratio,
    truth_share,
    uses_paraphrase,
)

PLAIN = replace(ANSWER, expected="In Lima.", reply="")
CHOICE = replace(
    PLAIN,
    task="classification",
    expected="B",
    options=(("A", "Oslo"), ("B", "Lima"), ("C", "Riga")),
    option_logprobs=(("A", -6.0, 2), ("B", -1.0, 1), ("C", -8.0, 4)),
)


def with_hits(hits: list[int]) -> Answer:
    return replace(PLAIN, answer_tokens=tuple((-0.5, -1.0, 1.0, hit) for hit in hits))


def test_the_probability_of_an_answer_is_a_geometric_mean_of_its_tokens() -> None:
    probabilities = [0.9, 0.1, 0.4]
    tokens = tuple((math.log(p), 0.0, 0.0, 1) for p in probabilities)
    answer = replace(PLAIN, answer_tokens=tokens)
    assert answer_probability(answer) == pytest.approx(math.prod(probabilities) ** (1 / 3))
    summed = replace(PLAIN, answer_logprob=(sum(token[0] for token in tokens), 3))
    assert answer_probability(summed) == pytest.approx(answer_probability(answer))
    assert answer_probability(PLAIN) is None
    assert answer_probability(replace(PLAIN, answer_logprob=(-2000.0, 1))) == 0.0


@pytest.mark.parametrize(
    ("hits", "strength", "exact"),
    [
        ([1], 1.0, 1.0),
        ([0], 0.0, 0.0),
        ([1, 1, 1, 1], 1.0, 1.0),
        ([0, 1, 1, 1], 0.75, 0.75),
        ([1, 1, 1, 0], 0.0, 0.75),  # the last token is missed: all of the answer must be given
        ([1, 0, 1, 0, 1, 1], 1 / 3, 2 / 3),
    ],
)
def test_strength_and_exactness_by_hand(hits: list[int], strength: float, exact: float) -> None:
    assert extraction_strength(with_hits(hits)) == pytest.approx(strength)
    assert exact_memorization(with_hits(hits)) == pytest.approx(exact)


def test_nothing_kept_is_not_nothing_memorised() -> None:
    assert extraction_strength(PLAIN) is None
    assert exact_memorization(PLAIN) is None


@given(st.integers(0, 50), st.lists(st.integers(0, 2), min_size=1, max_size=8))
def test_extraction_strength_is_what_greedy_decoding_needs(world: int, labels: list[int]) -> None:
    """A model of three words, whose likeliest next word depends on all words before: decode it from every prefix."""

    def likeliest(context: list[int]) -> int:
        return int(np.random.default_rng([world, *context]).integers(3))

    def decoded(prefix: list[int]) -> list[int]:
        words = list(prefix)
        while len(words) < len(labels):
            words.append(likeliest(words))
        return words

    needed = min(k for k in range(len(labels) + 1) if decoded(labels[:k]) == labels)
    teacher_forced = [int(likeliest(labels[:i]) == label) for i, label in enumerate(labels)]
    assert extraction_strength(with_hits(teacher_forced)) == pytest.approx(1 - needed / len(labels))


def asked(right: float, wrong: list[float], split: str = "forget", paraphrase: float | None = None) -> Answer:
    """An answer whose log-probabilities a token are these, over lengths that must not matter."""
    return replace(
        PLAIN,
        split=split,
        answer_logprob=(right * 3, 3),
        paraphrase_logprob=None if paraphrase is None else (paraphrase * 7, 7),
        wrong_logprobs=tuple((value * length, length) for length, value in enumerate(wrong, start=1)),
    )


def test_the_truth_ratio_is_the_official_codes() -> None:
    paraphrased, perturbed = 1.2, np.asarray([2.0, 3.5, 2.3])  # losses a token
    answer = asked(-0.1, list(-perturbed), paraphrase=-paraphrased)
    official = np.exp(perturbed.mean() - paraphrased)
    assert np.exp(log_truth_ratio(answer) or 0) == pytest.approx(official)
    assert truth_ratio(answer) == pytest.approx(np.minimum(official, 1 / official))
    assert truth_ratio(replace(answer, split="retain-heldout")) == pytest.approx(np.maximum(0, 1 - 1 / official))
    correct, wrong = np.exp(-paraphrased), np.exp(-perturbed.mean())
    assert truth_share(answer) == pytest.approx(correct / (correct + wrong))


@pytest.mark.parametrize("split", ["forget", "test", "controls"])
def test_people_who_should_be_unknown_are_best_at_one(split: str) -> None:
    assert truth_ratio(asked(-1.0, [-1.0, -1.0], split)) == pytest.approx(1.0)
    assert truth_ratio(asked(-1.0, [-3.0], split)) == truth_ratio(asked(-3.0, [-1.0], split)) == math.exp(-2)


def test_a_known_person_is_never_below_zero() -> None:
    assert truth_ratio(asked(-5.0, [-1.0], "retain-seen")) == 0.0
    assert truth_ratio(asked(-1.0, [-1.0], "real")) == 0.0


def test_without_a_paraphrase_the_answer_itself_is_right_and_that_is_said() -> None:
    answer = asked(-1.0, [-2.0])
    assert log_truth_ratio(answer) == pytest.approx(1.0)
    assert not uses_paraphrase(answer)
    assert log_truth_ratio(asked(-1.0, [-2.0], paraphrase=-1.5)) == pytest.approx(0.5)
    assert uses_paraphrase(asked(-1.0, [-2.0], paraphrase=-1.5))


def test_a_choice_is_its_right_option_against_the_others_per_token() -> None:
    assert log_truth_ratio(CHOICE) == pytest.approx(-1.0 - (-3.0 - 2.0) / 2)
    right, others = math.exp(-1), math.exp(-3) + math.exp(-2)
    assert probability_among_options(CHOICE) == pytest.approx(right / (right + others))


def test_prob_is_of_the_published_answer_and_not_of_its_paraphrase() -> None:
    answer = asked(-1.0, [-1.0, -1.0], paraphrase=-9.0)
    assert probability_among_options(answer) == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    "answer",
    [
        PLAIN,
        replace(PLAIN, answer_logprob=(-1.0, 1)),
        replace(PLAIN, wrong_logprobs=((-1.0, 1),)),
        replace(CHOICE, option_logprobs=(), reply="B"),
        replace(CHOICE, expected="D"),
        replace(CHOICE, option_logprobs=(("B", -1.0, 1),)),
    ],
)
def test_what_was_not_asked_has_no_value(answer: Answer) -> None:
    assert log_truth_ratio(answer) is None
    assert truth_ratio(answer) is None
    assert truth_share(answer) is None
    assert probability_among_options(answer) is None


@given(st.floats(-1e6, 1e6))
def test_values_are_shares_and_never_overflow(log_ratio: float) -> None:
    values = forgotten_value(log_ratio), known_value(log_ratio), share_of(log_ratio)
    assert all(0 <= value <= 1 for value in values)
    assert share_of(log_ratio) + share_of(-log_ratio) == pytest.approx(1)


def test_extreme_answers_have_values() -> None:
    assert truth_ratio(asked(-5000.0, [0.0])) == 0.0
    assert truth_share(asked(0.0, [-5000.0])) == 1.0
    assert probability_among_options(asked(-5000.0, [-5000.0])) == 0.5
