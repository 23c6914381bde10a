"""Put several questions about one image behind one copy of it, forward and backward: [image | Q1 A1 | Q2 A2 | ...].

A four-dimensional mask lets every question see the image and itself but no other question, and positions restart after
the image, so logits and gradients are those of the questions run apart (a test holds this to float32 rounding). What is
saved is the image: its vision tower and its share of the text model run once a group. Models whose text cannot follow
a shared image, by `positions.py`, get their examples side by side.
Shapes: B sequences, T positions, M answer tokens, P tokens of a prefix, A axes of positions (1, or 3 under M-RoPE).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..data.example import DataError
from .encode import Encoded, answer_rows, collate, stack_pictures
from .positions import RopeIndex, backbone, require_full_attention, rope_index_of
from .prefix import split_at_image


@dataclass(frozen=True, slots=True)
class Packed:
    """A batch of packed sequences, and where it predicts each answer token, in the order of the given examples."""

    inputs: dict[str, Tensor]
    batch_M: Tensor
    position_M: Tensor
    answer_ids_M: Tensor


@dataclass(frozen=True, slots=True)
class _Group:
    prefix: tuple[int, ...]
    members: list[Encoded]

    @property
    def num_tokens(self) -> int:
        return len(self.prefix) + sum(len(row.input_ids) - len(self.prefix) for row in self.members)


def pack_for(model: Any, rows: Sequence[Encoded], *, pad_id: int, group_size: int) -> Packed:
    """Pack examples for a model, which may be wrapped for training.

    Raises:
        DataError: several are asked for behind one image, and the model's text cannot share one.
    """
    try:
        require_full_attention(backbone(model).config.get_text_config())
    except ValueError as error:
        if group_size > 1:
            raise DataError(f"one image for {group_size} questions: {error}. Ask for one (--group-size 1).") from error
        return Packed(collate(rows, pad_id=pad_id, side="right"), *answer_rows(rows))
    return pack(rows, pad_id=pad_id, group_size=group_size, rope_index=rope_index_of(model))


def pack(rows: Sequence[Encoded], *, pad_id: int, group_size: int, rope_index: RopeIndex | None = None) -> Packed:
    """Pack consecutive examples that share prefix and pictures, at most `group_size` a sequence.

    The order of examples is kept, so a batch drawn image by image packs well and any other batch still packs. Positions
    are those of `rope_index`, [3, B, T], or else counted, [B, T].
    """
    groups = list(_groups(rows, group_size))
    length = max(group.num_tokens for group in groups)
    input_ids_BT = torch.full((len(groups), length), pad_id, dtype=torch.long)
    position_ids_ABT = torch.zeros((1 if rope_index is None else 3, len(groups), length), dtype=torch.long)
    segment_BT = torch.full((len(groups), length), -1, dtype=torch.long)
    places: list[tuple[int, int, int]] = []
    for index, group in enumerate(groups):
        cursor = len(group.prefix)
        input_ids_BT[index, :cursor] = torch.tensor(group.prefix)
        positions_AP = _prefix_positions(group, rope_index)
        position_ids_ABT[:, index, :cursor] = positions_AP
        behind = int(positions_AP.max()) + 1
        segment_BT[index, :cursor] = 0
        for segment, row in enumerate(group.members, start=1):
            suffix = row.input_ids[len(group.prefix) :]
            place = slice(cursor, cursor + len(suffix))
            input_ids_BT[index, place] = torch.tensor(suffix)
            position_ids_ABT[:, index, place] = torch.arange(behind, behind + len(suffix))
            segment_BT[index, place] = segment
            cursor += len(suffix)
            first = cursor - len(row.answer_ids)
            places.extend((index, first - 1 + offset, token) for offset, token in enumerate(row.answer_ids))
    batch_M, position_M, answer_ids_M = (torch.tensor(column) for column in zip(*places, strict=True))
    inputs = {
        "input_ids": input_ids_BT,
        "attention_mask": _mask(segment_BT),
        "position_ids": position_ids_ABT[0] if rope_index is None else position_ids_ABT,
        **stack_pictures([group.members[0] for group in groups]),
    }
    return Packed(inputs, batch_M, position_M, answer_ids_M)


def _prefix_positions(group: _Group, rope_index: RopeIndex | None) -> Tensor:
    first, length = group.members[0], len(group.prefix)
    if rope_index is None or not first.pictures:
        return torch.arange(length)[None]
    of_tokens = {name: value[None, :length] for name, value in first.token_inputs.items()}
    sizes = {name: value for name, value in stack_pictures([first]).items() if not value.is_floating_point()}
    positions_A1P, _ = rope_index(torch.tensor([group.prefix]), **of_tokens, **sizes)
    return positions_A1P[:, 0]


def _groups(rows: Sequence[Encoded], group_size: int) -> Iterator[_Group]:
    current: _Group | None = None
    for row in rows:
        prefix = split_at_image(row)[0]
        fits = current is not None and len(current.members) < group_size and current.prefix == prefix
        if current is not None and fits and all(map(_same, current.members[0].pictures, row.pictures)):
            current.members.append(row)
            continue
        if current is not None:
            yield current
        current = _Group(prefix, [row])
    if current is not None:
        yield current


def _same(first: object, second: object) -> bool:
    """Whether two pictures are one: the encoder memoises them, so identity is enough (and never wrongly true)."""
    return first is second


def _mask(segment_BT: Tensor) -> Tensor:
    """Return who sees whom, bool [B, 1, T, T]: the prefix (segment 0) and one's own segment, never what comes later.

    Padding sees itself alone, so that no row of the softmax is empty.
    """
    length = segment_BT.shape[1]
    causal_TT = torch.ones((length, length), dtype=torch.bool).tril()
    own_BTT = segment_BT[:, :, None] == segment_BT[:, None, :]
    prefix_BTT = (segment_BT[:, None, :] == 0) & (segment_BT[:, :, None] >= 0)
    return (causal_TT & (own_BTT | prefix_BTT))[:, None]
