"""Asking in batches changes nothing but the time: padding, order, a card that is too small, and likelihoods."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest
import torch
from viker.data.example import Message
from viker.data.sources import open_source
from viker.evaluate import generate
from viker.evaluate.generate import answer_likelihoods, generate_replies
from viker.models.encode import collate

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from viker.data.example import Example
    from viker.models.load import Loaded

NEW_TOKENS = 8


@pytest.fixture(scope="module")
def questions(mini_world: Path) -> list[Example]:
    """Questions of very different lengths, with and without a picture."""
    import dataclasses

    asked = [example for example in open_source(str(mini_world)).read("forget") if example.task == "generation"]
    shown = [example for example in asked if example.images][:6]
    spoken = [example for example in asked if not example.images][:3]
    long = [
        dataclasses.replace(
            example,
            id=f"{example.id}/long",
            messages=(Message("user", example.messages[-1].content + " Be brief." * 9),),
        )
        for example in (*shown[:2], spoken[0])
    ]
    return [*shown[:3], *long, *spoken, *shown[3:]]


def ask(tiny: Loaded, examples: Sequence[Example], batch_size: int) -> list[str]:
    return generate_replies(tiny.model, tiny.encoder, examples, max_new_tokens=NEW_TOKENS, batch_size=batch_size)


@pytest.fixture(scope="module")
def alone(tiny: Loaded, questions: list[Example]) -> list[str]:
    """The reply to each question when it is asked on its own, without any padding."""
    return [ask(tiny, [example], 1)[0] for example in questions]


def test_the_questions_differ_so_that_order_and_padding_matter(
    tiny: Loaded, questions: list[Example], alone: list[str]
) -> None:
    lengths = [len(tiny.encoder.encode_prompt(example).input_ids) for example in questions]
    assert len(set(lengths)) > 4
    assert lengths not in (sorted(lengths), sorted(lengths, reverse=True))
    assert len(set(alone)) > 4


@pytest.mark.parametrize("batch_size", [2, 5, 64])
def test_a_batch_says_what_each_question_alone_is_told(
    tiny: Loaded, questions: list[Example], alone: list[str], batch_size: int
) -> None:
    assert ask(tiny, questions, batch_size) == alone


def test_replies_come_in_the_order_of_the_questions(tiny: Loaded, questions: list[Example], alone: list[str]) -> None:
    assert ask(tiny, questions[::-1], 4) == alone[::-1]


def test_no_questions_no_replies(tiny: Loaded) -> None:
    assert ask(tiny, [], 4) == []
    assert answer_likelihoods(tiny.model, tiny.encoder, [], batch_size=4) == []


def test_a_reply_is_greedy_and_ends_at_a_stop_token(tiny: Loaded, questions: list[Example], alone: list[str]) -> None:
    for example, reply in list(zip(questions, alone, strict=True))[:3]:
        row = tiny.encoder.encode_prompt(example)
        ids = list(row.input_ids)
        with torch.no_grad():
            for _ in range(NEW_TOKENS):
                inputs = collate([row], pad_id=tiny.encoder.pad_id, side="right")
                inputs |= {
                    "input_ids": torch.tensor([ids]),
                    "attention_mask": torch.ones(1, len(ids), dtype=torch.long),
                }
                ids.append(int(tiny.model(**inputs).logits[0, -1].argmax()))
                if ids[-1] in tiny.encoder.stop_ids:
                    break
        new = ids[len(row.input_ids) :]
        assert reply == tiny.encoder.tokenizer.decode(new, skip_special_tokens=True).strip()


def limit_memory(monkeypatch: pytest.MonkeyPatch, name: str, largest: int) -> list[int]:
    """Let a function of `generate` run out of memory above a batch size; return the sizes that were tried."""
    tried: list[int] = []
    real: Any = getattr(generate, name)

    def small_card(model: Any, encoder: Any, rows: Sequence[Any], *rest: Any) -> Any:
        tried.append(len(rows))
        if len(rows) > largest:
            raise torch.OutOfMemoryError
        return real(model, encoder, rows, *rest)

    monkeypatch.setattr(generate, name, small_card)
    return tried


def test_out_of_memory_halves_the_batch_and_changes_no_reply(
    tiny: Loaded, questions: list[Example], alone: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    tried = limit_memory(monkeypatch, "_generate", largest=3)
    assert ask(tiny, questions, 8) == alone
    assert tried == [8, 4, 2, 2, 2, 2, 2, 2]
    told = capsys.readouterr()
    assert "out of memory: batches of 2 from here on" in told.err
    assert told.out == "", "standard output belongs to --json"


def test_memory_for_not_even_one_question_is_an_error(
    tiny: Loaded, questions: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, run in (("_generate", ask), ("_answer_logprobs", likelihoods)):
        tried = limit_memory(monkeypatch, name, largest=0)
        with pytest.raises(torch.OutOfMemoryError):
            run(tiny, questions, 4)
        assert tried == [4, 2, 1]


def likelihoods(tiny: Loaded, examples: Sequence[Example], batch_size: int) -> list[tuple[float, int]]:
    return answer_likelihoods(tiny.model, tiny.encoder, examples, batch_size=batch_size)


@pytest.fixture(scope="module")
def answered(questions: list[Example]) -> list[Example]:
    """The questions with short and long answers, so that their answers are padded too."""
    answers = ["yes", "The person in the picture was born in Oslo and still visits the old town.", "a red door"]
    return [dataclasses.replace(example, answer=answers[index % 3]) for index, example in enumerate(questions)]


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_a_likelihood_is_the_sum_of_the_answers_log_softmax(
    tiny: Loaded, answered: list[Example], batch_size: int
) -> None:
    found = likelihoods(tiny, answered, batch_size)
    for example, (logprob, num_tokens) in zip(answered, found, strict=True):
        row = tiny.encoder.encode(example)
        with torch.no_grad():
            logits_TV = tiny.model(**collate([row], pad_id=tiny.encoder.pad_id, side="right")).logits[0].double()
        expected = 0.0
        for offset, token in enumerate(row.answer_ids):
            logits_V = logits_TV[row.num_prompt + offset - 1]
            expected += float(logits_V[token] - logits_V.logsumexp(0))
        assert num_tokens == len(row.answer_ids)
        assert logprob == pytest.approx(expected, abs=2e-3)


def test_likelihoods_survive_a_small_card(
    tiny: Loaded, answered: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = likelihoods(tiny, answered, 64)
    tried = limit_memory(monkeypatch, "_answer_logprobs", largest=4)
    for (found, size), (expected, same_size) in zip(likelihoods(tiny, answered, 8), whole, strict=True):
        assert found == pytest.approx(expected, abs=2e-3)
        assert size == same_size
    assert tried[:2] == [8, 4]
