"""Packing questions behind one image changes no logit and no gradient, whatever is packed with whatever."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest
import torch
from viker.data.example import Message
from viker.models.encode import answer_rows, collate
from viker.models.forward import answer_logits
from viker.models.pack import pack

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from viker.data.example import Example
    from viker.models.encode import Encoded

TOLERANCE = {"atol": 3e-5, "rtol": 1e-5}  # of logits up to 15


def apart(model: Any, rows: Sequence[Encoded]) -> Tensor:
    """The answer logits of each example run alone, without padding."""
    parts = []
    for row in rows:
        batch_M, position_M, _ = answer_rows([row])
        parts.append(answer_logits(model, collate([row], pad_id=0, side="right"), batch_M, position_M))
    return torch.cat(parts)


def packed(model: Any, rows: Sequence[Encoded], group_size: int) -> Tensor:
    batch = pack(rows, pad_id=0, group_size=group_size)
    return answer_logits(model, batch.inputs, batch.batch_M, batch.position_M)


def text_only(example: Example) -> Example:
    return dataclasses.replace(example, images=(), messages=(Message("user", example.question),))


def gradients(model: Any, logits_MV: Tensor, ids_M: Tensor) -> dict[str, Tensor]:
    """Gradients of a loss that weighs every answer token differently, so that a swap of rows would show."""
    weight_M = torch.linspace(0.5, 2.0, len(ids_M))
    loss = (weight_M * torch.nn.functional.cross_entropy(logits_MV, ids_M, reduction="none")).sum() / len(ids_M)
    model.zero_grad()
    loss.backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.fixture(scope="module")
def people(training_examples):
    """Three people, four questions each."""
    by_person: dict[str, list] = {}
    for example in training_examples:
        by_person.setdefault(example.people[0], []).append(example)
    return [questions[:4] for questions in list(by_person.values())[:3]]


@pytest.mark.parametrize("group_size", [2, 3, 4, 8])
@torch.no_grad()
def test_packed_logits_are_those_of_the_questions_apart(tiny, people, group_size):
    rows = [tiny.encoder.encode(example) for questions in people for example in questions]
    torch.testing.assert_close(packed(tiny.model, rows, group_size), apart(tiny.model, rows), **TOLERANCE)


@torch.no_grad()
def test_images_in_any_order_still_pack(tiny, people):
    rows = [tiny.encoder.encode(example) for column in zip(*people, strict=True) for example in column]
    mixed = [rows[index] for index in (0, 3, 1, 4, 7, 2, 6)]
    torch.testing.assert_close(packed(tiny.model, mixed, 4), apart(tiny.model, mixed), **TOLERANCE)


@torch.no_grad()
def test_groups_of_one_are_the_questions_apart(tiny, people):
    rows = [tiny.encoder.encode(example) for example in people[0]]
    assert pack(rows, pad_id=0, group_size=1).inputs["input_ids"].shape[0] == len(rows)
    torch.testing.assert_close(packed(tiny.model, rows, 1), apart(tiny.model, rows), **TOLERANCE)


@torch.no_grad()
def test_examples_without_image_pack_too(tiny, people):
    examples = [people[0][0], text_only(people[0][1]), text_only(people[1][1]), people[1][0]]
    rows = [tiny.encoder.encode(example) for example in examples]
    torch.testing.assert_close(packed(tiny.model, rows, 4), apart(tiny.model, rows), **TOLERANCE)
    alone = rows[1:3]
    torch.testing.assert_close(packed(tiny.model, alone, 4), apart(tiny.model, alone), **TOLERANCE)


def test_packed_gradients_are_those_of_the_questions_apart(trainable, tiny, people):
    rows = [tiny.encoder.encode(example) for example in (*people[0][:3], *people[1][:2])]
    ids_M = answer_rows(rows)[2]
    expected = gradients(trainable, apart(trainable, rows), ids_M)
    found = gradients(trainable, packed(trainable, rows, 3), ids_M)
    assert any("vision_tower" in name for name in expected)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-4, msg=name)


def test_an_image_runs_once_a_group(tiny, people):
    rows = [tiny.encoder.encode(example) for questions in people for example in questions]
    batch = pack(rows, pad_id=0, group_size=4)
    assert batch.inputs["pixel_values"].shape[0] == len(people)
    assert batch.inputs["input_ids"].shape[0] == len(people)


def test_answer_ids_come_back_in_the_order_given(tiny, people):
    rows = [tiny.encoder.encode(example) for questions in people for example in questions]
    batch = pack(rows, pad_id=0, group_size=3)
    assert batch.answer_ids_M.tolist() == [token for row in rows for token in row.answer_ids]
    ids_M = batch.inputs["input_ids"][batch.batch_M, batch.position_M + 1]
    assert ids_M.tolist() == batch.answer_ids_M.tolist()
