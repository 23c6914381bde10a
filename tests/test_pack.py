"""Packing questions behind one image changes no logit and no gradient, whatever is packed with whatever."""

from __future__ import annotations

import dataclasses
import itertools
import time
from typing import TYPE_CHECKING, Any

import pytest
import torch
from family_work import asked, each_naive, each_shared, picture, several_turns, variation
from viker.data.example import DataError, Message
from viker.models.encode import answer_rows, collate
from viker.models.forward import answer_logits
from viker.models.pack import pack, pack_for

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from viker.data.example import Example
    from viker.models.encode import Encoded

TOLERANCE = {"atol": 3e-5, "rtol": 1e-5}  # of logits up to 15
ONE_ROW = 1 << 20


def apart(model: Any, rows: Sequence[Encoded]) -> Tensor:
    """The answer logits of each example run alone, without padding."""
    parts = []
    for row in rows:
        batch_M, position_M, _ = answer_rows([row])
        parts.append(answer_logits(model, collate([row], pad_id=0, side="right"), batch_M, position_M))
    return torch.cat(parts)


def packed(model: Any, rows: Sequence[Encoded], group_size: int, row_length: int = 0) -> Tensor:
    batch = pack_for(model, rows, pad_id=0, group_size=group_size, row_length=row_length)
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


def assert_same_gradients(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Alike to float32 rounding, which grows with the largest of a weight's."""
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        atol = max(1e-5, 1e-6 * float(gradient.abs().max()))
        torch.testing.assert_close(found[name], gradient, atol=atol, rtol=1e-4, msg=name)


@pytest.fixture(scope="module")
def people(training_examples):
    """Three people, four questions each."""
    by_person: dict[str, list] = {}
    for example in training_examples:
        by_person.setdefault(example.people[0], []).append(example)
    return [questions[:4] for questions in list(by_person.values())[:3]]


@pytest.fixture(scope="module")
def mixed(people):
    """Groups of four, two and one question and two texts, in an order in which none is the longest first."""
    first, second, third = people
    return [*second[:2], text_only(first[0]), *first, text_only(third[1]), third[0]]


@pytest.mark.parametrize("row_length", [0, 250, ONE_ROW])
@pytest.mark.parametrize("group_size", [2, 3, 4, 8])
@torch.no_grad()
def test_packed_logits_are_those_of_the_questions_apart(tiny, people, group_size, row_length):
    rows = [tiny.encoder.encode(example) for questions in people for example in questions]
    torch.testing.assert_close(packed(tiny.model, rows, group_size, row_length), apart(tiny.model, rows), **TOLERANCE)


@pytest.mark.parametrize("row_length", [0, ONE_ROW])
@torch.no_grad()
def test_images_in_any_order_still_pack(tiny, people, row_length):
    rows = [tiny.encoder.encode(example) for column in zip(*people, strict=True) for example in column]
    shuffled = [rows[index] for index in (0, 3, 1, 4, 7, 2, 6)]
    torch.testing.assert_close(packed(tiny.model, shuffled, 4, row_length), apart(tiny.model, shuffled), **TOLERANCE)


@torch.no_grad()
def test_groups_of_one_are_the_questions_apart(tiny, people):
    rows = [tiny.encoder.encode(example) for example in people[0]]
    assert pack(rows, pad_id=0, group_size=1).inputs["input_ids"].shape[0] == len(rows)
    torch.testing.assert_close(packed(tiny.model, rows, 1), apart(tiny.model, rows), **TOLERANCE)


@pytest.mark.parametrize("row_length", [0, 250, ONE_ROW])
@torch.no_grad()
def test_groups_of_any_length_and_texts_share_rows(tiny, mixed, row_length):
    rows = [tiny.encoder.encode(example) for example in mixed]
    torch.testing.assert_close(packed(tiny.model, rows, 4, row_length), apart(tiny.model, rows), **TOLERANCE)
    texts = [rows[index] for index in (2, 7)]
    torch.testing.assert_close(packed(tiny.model, texts, 1, row_length), apart(tiny.model, texts), **TOLERANCE)


def test_rows_take_the_longest_group_first_and_no_more_than_they_may(tiny, mixed):
    rows = [tiny.encoder.encode(example) for example in mixed]
    alone = [pack(rows[part], pad_id=0, group_size=4) for part in (slice(3, 7), slice(2), slice(8, 9))]
    longest, second, third = (batch.inputs["input_ids"].shape[1] for batch in alone)
    shapes = [
        tuple(pack(rows, pad_id=0, group_size=4, row_length=length).inputs["input_ids"].shape)
        for length in (0, longest + second, ONE_ROW)
    ]
    texts = sum(len(rows[index].input_ids) for index in (2, 7))
    assert second + third + texts > longest  # all but the longest take two rows of its length
    assert shapes == [(3, longest), (2, longest + second), (1, longest + second + third + texts)]
    assert pack(rows, pad_id=0, group_size=4).inputs["input_ids"][0].tolist() == [
        *alone[0].inputs["input_ids"][0].tolist()
    ]


@pytest.mark.parametrize("row_length", [0, ONE_ROW])
def test_packed_gradients_are_those_of_the_questions_apart(trainable, tiny, mixed, row_length):
    rows = [tiny.encoder.encode(example) for example in mixed]
    ids_M = answer_rows(rows)[2]
    expected = gradients(trainable, apart(trainable, rows), ids_M)
    found = gradients(trainable, packed(trainable, rows, 3, row_length), ids_M)
    assert any("vision_tower" in name for name in expected)
    assert_same_gradients(found, expected)


def test_an_image_runs_once_a_group(tiny, people):
    rows = [tiny.encoder.encode(example) for questions in people for example in questions]
    batch = pack(rows, pad_id=0, group_size=4)
    assert batch.inputs["pixel_values"].shape[0] == len(people)
    assert batch.inputs["input_ids"].shape[0] == len(people)


@pytest.mark.parametrize("row_length", [0, 250, ONE_ROW])
def test_answer_ids_come_back_in_the_order_given(tiny, mixed, row_length):
    rows = [tiny.encoder.encode(example) for example in mixed]
    batch = pack(rows, pad_id=0, group_size=3, row_length=row_length)
    assert batch.answer_ids_M.tolist() == [token for row in rows for token in row.answer_ids]
    ids_M = batch.inputs["input_ids"][batch.batch_M, batch.position_M + 1]
    assert ids_M.tolist() == batch.answer_ids_M.tolist()


@pytest.mark.parametrize(("row_length", "order"), [(0, (3, 0, 8)), (250, (3, 8, 0)), (ONE_ROW, (3, 0, 8))])
def test_pictures_are_named_in_the_order_they_are_read(tiny, mixed, row_length, order):
    rows = [tiny.encoder.encode(example) for example in mixed]
    batch = pack(rows, pad_id=0, group_size=4, row_length=row_length)
    assert list(map(id, batch.pictures)) == [id(rows[index].pictures[0]) for index in order]
    shown = torch.cat([picture.tensors["pixel_values"] for picture in batch.pictures])
    assert torch.equal(batch.inputs["pixel_values"], shown)


def test_a_question_sees_its_image_and_itself(tiny, people):
    """The mask against its definition, token by token, of two groups in one row and padding behind."""
    rows = [tiny.encoder.encode(example) for example in (*people[0][:2], people[1][0])]
    batch = pack(rows, pad_id=0, group_size=2, row_length=ONE_ROW)
    seen_TT = batch.inputs["attention_mask"][0, 0] == 0
    cut = rows[0].image_end
    lengths = [cut, *(len(row.input_ids) - cut for row in rows[:2]), cut, len(rows[2].input_ids) - cut]
    pieces = [piece for piece, length in enumerate(lengths) for _ in range(length)]
    sees = {0: {0}, 1: {0, 1}, 2: {0, 2}, 3: {3}, 4: {3, 4}}
    expected = [
        [key <= query and pieces[key] in sees[pieces[query]] for key in range(len(pieces))]
        for query in range(len(pieces))
    ]
    assert seen_TT.tolist() == expected
    assert (batch.inputs["attention_mask"][0, 0] == -torch.inf).sum() == (~seen_TT).sum()


def several_pictures() -> list[Example]:
    """Groups of two, one, one and one question over pictures of several sizes, one with two pictures, and a text."""
    text = dataclasses.replace(asked(1), images=(), messages=(Message("user", "Where is Lisbon?"),))
    return [asked(0, "No."), asked(1), asked(1, "A baker."), text, several_turns(), asked(3, "Yes, as a baker.")]


@each_shared
@pytest.mark.parametrize("row_length", [0, ONE_ROW])
@torch.no_grad()
def test_every_family_packs_several_images_in_a_row(family, row_length):
    rows = [family.encoder.encode(example) for example in several_pictures()]
    found, expected = packed(family.model, rows, 2, row_length), apart(family.model, rows)
    assert variation(found.softmax(-1), expected.softmax(-1)) < 1e-5


@each_shared
def test_every_familys_gradients_are_those_of_the_questions_apart(family):
    rows = [family.encoder.encode(example) for example in several_pictures()]
    ids_M = answer_rows(rows)[2]
    expected = gradients(family.model, apart(family.model, rows), ids_M)
    assert_same_gradients(gradients(family.model, packed(family.model, rows, 2, ONE_ROW), ids_M), expected)
    family.model.zero_grad()


@each_naive
def test_a_family_that_cannot_share_a_row_says_so(family):
    rows = [family.encoder.encode(asked(index)) for index in range(2)]
    batch = pack_for(family.model, rows, pad_id=family.encoder.pad_id, group_size=1)
    assert batch.pictures == tuple(family.encoder.picture(picture(index)) for index in range(2))
    with pytest.raises(DataError, match=r"rows of 512 tokens: expected .*--row-length 0"):
        pack_for(family.model, rows, pad_id=family.encoder.pad_id, group_size=1, row_length=512)


def test_packing_is_cheap_beside_a_step(tiny, training_examples):
    first = training_examples[0].images[0].sha256
    rows = [tiny.encoder.encode(example) for example in training_examples if example.images[0].sha256 == first]
    assert len(rows) == 12
    times = []
    for _ in range(30):
        start = time.perf_counter()
        pack(rows, pad_id=0, group_size=12)
        times.append(time.perf_counter() - start)
    assert min(itertools.islice(times, 5, None)) < 2e-3
