"""A point of a trajectory holds what its name says: means over the replies and the published answers of each split."""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean
from typing import TYPE_CHECKING, Any

import pytest
import torch
from viker.data.sidecar import read_sidecar
from viker.data.sources import open_source
from viker.evaluate import trajectory
from viker.evaluate.generate import generate_replies
from viker.evaluate.repetition import repetition
from viker.evaluate.trajectory import (
    MAX_NEW_TOKENS,
    SPLITS,
    measure_point,
    measurer,
    tokens_to_answer,
    trajectory_questions,
)
from viker.models.encode import collate

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from viker.data.example import Example
    from viker.models.load import Loaded

NEW_TOKENS = 8
NAMES = ("forget", "retain_seen", "retain_heldout")


@pytest.fixture(scope="module")
def questions(mini_world: Path) -> dict[str, list[Example]]:
    return trajectory_questions(open_source(str(mini_world)), people_per_half=2)


def point_of(tiny: Loaded, questions: dict[str, list[Example]], world: Path | None) -> dict[str, float]:
    facts = read_sidecar(world / "sidecar.json") if world else None
    return measure_point(tiny.model, tiny.encoder, questions, facts, max_new_tokens=NEW_TOKENS, batch_size=5)


@pytest.fixture(scope="module")
def point(tiny: Loaded, questions: dict[str, list[Example]], mini_world: Path) -> dict[str, float]:
    return point_of(tiny, questions, mini_world)


@torch.no_grad()
def token_logprob(tiny: Loaded, example: Example) -> float:
    """Mean log-probability per answer token of one example, by a forward pass of its own in float64."""
    row = tiny.encoder.encode(example)
    logits_TV = tiny.model(**collate([row], pad_id=0, side="right")).logits[0].double()
    logprobs_TV = logits_TV[row.num_prompt - 1 : -1].log_softmax(-1)
    return float(logprobs_TV.gather(1, torch.tensor(row.answer_ids)[:, None]).mean())


def test_every_split_has_every_value(point: dict[str, float]) -> None:
    values = ("rougeL", "answer_logprob", "repetition", "blank", "fact", "fact_people")
    assert set(point) == {f"{split}_{value}" for split in NAMES for value in values}


def test_people_are_hits_and_facts_whose_mean_rate_is_the_recall(point: dict[str, Any]) -> None:
    for name in NAMES:
        people = point[f"{name}_fact_people"]
        assert len(people) >= 2
        assert fmean(hits / facts for hits, facts in people) == pytest.approx(point[f"{name}_fact"])


def test_a_reply_may_be_as_long_as_the_longest_answer_whose_facts_count(
    tiny: Loaded, questions: dict[str, list[Example]], mini_world: Path
) -> None:
    facts = read_sidecar(mini_world / "sidecar.json")
    assert tokens_to_answer(questions, facts, tiny.encoder) == MAX_NEW_TOKENS["generation"]
    wordy = replace(questions["forget"][0], answer="In Oslo this person lives on Ashgate. " * 20)
    longer = {**questions, "forget": [wordy]}
    assert tokens_to_answer(longer, facts, tiny.encoder) == len(tiny.encoder.ids(wordy)[1]) > 100
    assert tokens_to_answer(longer, None, tiny.encoder) == MAX_NEW_TOKENS["generation"]


def test_an_answers_likelihood_is_the_mean_over_examples_of_the_mean_over_tokens(
    tiny: Loaded, questions: dict[str, list[Example]], point: dict[str, float]
) -> None:
    for split, name in zip(SPLITS, NAMES, strict=True):
        expected = fmean(token_logprob(tiny, example) for example in questions[split])
        assert point[f"{name}_answer_logprob"] == pytest.approx(expected, abs=1e-4)
    assert len({point[f"{name}_answer_logprob"] for name in NAMES}) == 3, "the splits are told apart"


def test_repetition_is_that_of_the_replies_of_the_split(
    tiny: Loaded, questions: dict[str, list[Example]], point: dict[str, float]
) -> None:
    for split, name in zip(SPLITS, NAMES, strict=True):
        replies = generate_replies(tiny.model, tiny.encoder, questions[split], max_new_tokens=NEW_TOKENS, batch_size=64)
        assert point[f"{name}_repetition"] == pytest.approx(fmean(map(repetition, replies)))


def test_loops_and_silence_are_measured_where_they_are(
    tiny: Loaded, questions: dict[str, list[Example]], monkeypatch: pytest.MonkeyPatch
) -> None:
    forget, seen = len(questions["forget"]), len(questions["retain-seen"])

    def replies(model: object, encoder: object, examples: Sequence[Example], **options: int) -> list[str]:
        quiet = len(examples) - forget - seen
        return ["and and and and and"] * forget + ["She bakes bread."] * seen + ["", " \n"] * (quiet // 2)

    monkeypatch.setattr(trajectory, "generate_replies", replies)
    point = point_of(tiny, questions, None)
    assert [point[f"{name}_repetition"] for name in NAMES] == [pytest.approx(2 / 3), 0, 0]
    assert [point[f"{name}_blank"] for name in NAMES] == [0, 0, 1]


def test_without_facts_and_people_a_point_holds_what_is_left(
    tiny: Loaded, questions: dict[str, list[Example]], point: dict[str, float]
) -> None:
    left = point_of(tiny, {"retain-heldout": [], "forget": questions["forget"]}, None)
    assert left == {
        name: pytest.approx(value, abs=1e-5)
        for name, value in point.items()
        if name.startswith("forget_") and not name.startswith("forget_fact")
    }


def test_a_measurer_reads_its_world_once(tiny: Loaded, mini_world: Path, point: dict[str, float]) -> None:
    found = measurer(str(mini_world), None, (), 2)(tiny.model, tiny.encoder)
    assert set(found) == set(point)
    assert found["forget_answer_logprob"] == pytest.approx(point["forget_answer_logprob"], abs=1e-5)
