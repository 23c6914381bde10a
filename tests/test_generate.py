"""Asking in batches changes nothing but the time: order, shared pictures, a card that is too small, likelihoods."""

from __future__ import annotations

import dataclasses
import itertools
from typing import TYPE_CHECKING, Any

import pytest
import torch
from viker.data.example import Message
from viker.data.sources import open_source
from viker.evaluate import generate
from viker.evaluate.generate import (
    answer_likelihoods,
    generate_replies,
    reply_batch,
    reply_batches,
    score_batches,
)
from viker.models.encode import collate

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from viker.data.example import Example
    from viker.models.encode import Encoded
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

    def small_card(*arguments: Any) -> Any:
        tried.append(len(arguments[-1]))
        if len(arguments[-1]) > largest:
            raise torch.OutOfMemoryError
        return real(*arguments)

    monkeypatch.setattr(generate, name, small_card)
    return tried


def test_out_of_memory_halves_the_batch_and_changes_no_reply(
    tiny: Loaded, questions: list[Example], alone: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    tried = limit_memory(monkeypatch, "_replies", largest=3)
    assert ask(tiny, questions, 12) == alone
    assert tried == [12, 6, 3, 3, 6, 3, 3]
    told = capsys.readouterr()
    assert "out of memory with a batch of 12: going on with 6 at once" in told.err
    assert told.out == "", "standard output belongs to --json"


def test_memory_for_not_even_one_question_is_an_error(
    tiny: Loaded, questions: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, run in (("_replies", ask), ("_scores", likelihoods)):
        tried = limit_memory(monkeypatch, name, largest=0)
        with pytest.raises(torch.OutOfMemoryError):
            run(tiny, questions, 4)
        assert tried == [4, 2, 1]


def rows_of(tiny: Loaded, examples: Sequence[Example]) -> list[Encoded]:
    return [tiny.encoder.encode_prompt(example) for example in examples]


def shown(row: Encoded) -> tuple[int, ...]:
    return tuple(map(id, row.pictures))


@pytest.mark.parametrize("batch_size", [1, 3, 5, 64])
def test_prompts_of_a_picture_are_continued_together_the_longest_first(
    tiny: Loaded, questions: list[Example], batch_size: int
) -> None:
    rows = rows_of(tiny, questions)
    batches = reply_batches(rows, batch_size)
    assert sorted(index for batch in batches for index in batch) == list(range(len(rows)))
    assert all(0 < len(batch) <= batch_size for batch in batches)
    for picture in {shown(row) for row in rows if row.pictures}:
        places = [index for index, row in enumerate(rows) if shown(row) == picture]
        spread = [number for number, batch in enumerate(batches) if set(batch) & set(places)]
        assert len(spread) == -(-len(places) // batch_size)
        lengths = [len(rows[index].input_ids) for batch in batches for index in batch if index in places]
        assert lengths == sorted(lengths, reverse=True)


def test_batches_are_a_function_of_the_rows_alone(tiny: Loaded, questions: list[Example]) -> None:
    bare = [dataclasses.replace(row, prompt_ids=(), token_inputs={}) for row in rows_of(tiny, questions)]
    assert reply_batches(bare, 4) == reply_batches(rows_of(tiny, questions), 4)
    assert score_batches(bare, 4) == score_batches(rows_of(tiny, questions), 4)
    assert reply_batches([], 4) == score_batches([], 4) == []


def test_texts_fill_batches_to_the_last_place(tiny: Loaded, questions: list[Example]) -> None:
    spoken = rows_of(tiny, [example for example in questions if not example.images]) * 3
    assert list(map(len, reply_batches(spoken, 5))) == [5, 5, 2]


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_answers_are_scored_in_batches_of_one_size_neighbors_of_a_picture(
    tiny: Loaded, questions: list[Example], batch_size: int
) -> None:
    rows = rows_of(tiny, questions)
    batches = score_batches(rows, batch_size)
    order = [index for batch in batches for index in batch]
    assert sorted(order) == list(range(len(rows)))
    assert all(len(batch) == batch_size for batch in batches[:-1])
    pictures = [shown(rows[index]) for index in order]
    assert sum(one != other for one, other in itertools.pairwise(pictures)) == len(set(pictures)) - 1


def count_calls(monkeypatch: pytest.MonkeyPatch, name: str) -> list[int]:
    sizes: list[int] = []
    real: Any = getattr(generate, name)

    def counting(*arguments: Any, **options: Any) -> Any:
        sizes.append(len(arguments[2] if name == "_generate" else arguments[1]))
        return real(*arguments, **options)

    monkeypatch.setattr(generate, name, counting)
    return sizes


def test_batches_go_the_fast_way_and_a_lone_question_the_models_own(
    tiny: Loaded, questions: list[Example], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    fast, slow = count_calls(monkeypatch, "greedy"), count_calls(monkeypatch, "_generate")
    ask(tiny, questions, 64)
    assert (fast, slow) == ([len(questions)], [])
    ask(tiny, questions[:1], 64)
    assert (fast, slow) == ([len(questions)], [1])
    assert "slower" not in capsys.readouterr().err


def test_a_setting_that_changes_replies_is_heard_and_said_once(
    tiny: Loaded, questions: list[Example], alone: list[str], trainable: Any, capsys: Any
) -> None:
    """A repetition penalty sees the prompt too, but no padding: transformers leaves that out."""
    trainable.generation_config.repetition_penalty = 1.5
    penalized = [reply_batch(trainable, tiny.encoder, rows_of(tiny, [one]), NEW_TOKENS)[0] for one in questions]
    assert penalized != alone
    for _ in range(2):
        assert reply_batch(trainable, tiny.encoder, rows_of(tiny, questions), NEW_TOKENS) == penalized
    assert capsys.readouterr().err.count("which is slower: its generation settings change what is likeliest") == 1


def test_padding_behind_a_reply_is_no_part_of_it_where_the_tokenizer_has_none(
    tiny: Loaded, questions: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a padding token, rows are filled up with some ordinary token, which decoding would show."""
    rows = rows_of(tiny, questions[:4])
    ids = [generate._generate(tiny.model, tiny.encoder, [row], NEW_TOKENS)[0] for row in rows]
    monkeypatch.setattr(tiny.encoder, "pad_id", 300)
    monkeypatch.setattr(type(tiny.encoder), "stop_ids", frozenset({ids[0][1]}))
    expected = [generate._generate(tiny.model, tiny.encoder, [row], NEW_TOKENS)[0] for row in rows]
    assert len(expected[0]) == 2 < max(map(len, expected))
    assert generate._generate(tiny.model, tiny.encoder, rows, NEW_TOKENS) == expected


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
    tried = limit_memory(monkeypatch, "_scores", largest=4)
    for (found, size), (expected, same_size) in zip(likelihoods(tiny, answered, 8), whole, strict=True):
        assert found == pytest.approx(expected, abs=2e-3)
        assert size == same_size
    assert tried[:2] == [8, 4]
