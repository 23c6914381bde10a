"""Golden answers: what a tiny model of fixed weights says, and how likely it finds what was expected, kept beside here.

The other tests hold fast paths to slow ones on the same machine; this one would see both change together. Replies are
compared as text, likelihoods to 1e-3: kernels differ between machines in the last digits. `make golden` writes it
again.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from viker.data.sources import open_source
from viker.evaluate.ask import Protocol, ask_everything, collect_questions

if TYPE_CHECKING:
    from viker.evaluate.answers import Answer
    from viker.models.load import Loaded

GOLDEN = Path(__file__).parent / "golden" / "answers.json"
TASKS = ("classification", "cloze", "generation")


@pytest.fixture(scope="module")
def answers(tiny: Loaded, mini_world: Path) -> list[Answer]:
    """Every question about one person a split, in the published words."""
    source, controls = open_source(str(mini_world)), open_source(str(mini_world / "controls"))
    questions = collect_questions(source, TASKS, limit=1, controls=controls)
    protocol = Protocol(style="official", max_new_tokens=8, batch_size=16, tasks=TASKS)
    return ask_everything(tiny.model, tiny.encoder, questions, protocol, "tiny")


def told(answer: Answer) -> dict[str, Any]:
    options = [[letter, round(total, 3), tokens] for letter, total, tokens in answer.option_logprobs]
    return {
        "id": answer.id, "reply": answer.reply, "options": options,
        "tokens": [[round(value, 3) for value in token] for token in answer.answer_tokens],
    }  # fmt: skip


def test_a_fixed_model_answers_as_it_did(answers: list[Answer]) -> None:
    found = [told(answer) for answer in answers]
    if os.environ.get("VIKER_GOLDEN"):
        lines = ",\n".join(json.dumps(one, ensure_ascii=False) for one in found)
        GOLDEN.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    kept = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert [(one["id"], one["reply"]) for one in found] == [(one["id"], one["reply"]) for one in kept]
    for one, other in zip(found, kept, strict=True):
        for name in ("options", "tokens"):
            numbers = [value for row in one[name] for value in row if not isinstance(value, str)]
            assert numbers == pytest.approx(
                [v for row in other[name] for v in row if not isinstance(v, str)], rel=1e-4, abs=2e-3
            )


def test_golden_answers_are_of_every_task_and_split(answers: list[Answer]) -> None:
    kept = {one["id"] for one in json.loads(GOLDEN.read_text(encoding="utf-8"))}
    assert {answer.task for answer in answers if answer.id in kept} == set(TASKS)
    assert {answer.split for answer in answers if answer.id in kept} >= {"forget", "test", "real", "controls"}
    assert len({one["reply"] for one in json.loads(GOLDEN.read_text(encoding="utf-8"))}) > 10, "not one reply to all"
