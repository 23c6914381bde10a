"""Put several questions about one image behind one copy of it, forward and backward: [image | Q1 A1 | Q2 A2 | ...].

A four-dimensional mask lets every question see its image and itself but nothing else, and positions restart after the
image, so logits and gradients are those of the questions run apart (a test holds this to float32 rounding). What is
saved is the image: its vision tower and its share of the text model run once a group. Groups short enough share a row
of the batch, so that little of it is padding. The mask is one of numbers to add: of a mask of booleans every layer
makes its own. Models whose text cannot follow a shared image, by `positions.py`, get their examples side by side.
Shapes: B rows of the batch, T positions, F tokens without padding, n pieces (a prefix, or what follows it of one
example), N examples, M answer tokens, P tokens of a prefix, A axes of positions (1, or 3 under M-RoPE).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..data.example import DataError
from .encode import Encoded, answer_rows, collate, stack_pictures
from .expand import Picture
from .positions import RopeIndex, backbone, require_full_attention, rope_index_of
from .prefix import split_at_image


@dataclass(frozen=True, slots=True)
class Packed:
    """A batch of packed rows, and where it predicts each answer token, in the order of the given examples.

    `pictures` are those of the inputs, in the order in which the rows' image tokens are read.
    """

    inputs: dict[str, Tensor]
    batch_M: Tensor
    position_M: Tensor
    answer_ids_M: Tensor
    pictures: tuple[Picture, ...]


@dataclass(frozen=True, slots=True)
class _Group:
    """Examples behind one prefix: what follows it of each, and which of the given examples each is."""

    prefix: tuple[int, ...]
    first: Encoded
    suffixes: list[tuple[int, ...]]
    examples: list[int]

    @property
    def num_tokens(self) -> int:
        return len(self.prefix) + sum(map(len, self.suffixes))


class _Piece(NamedTuple):
    """Tokens side by side: their row, where they start in it, their first position, the prefix's piece they see."""

    ids: tuple[int, ...]
    row: int
    start: int
    position: int
    prefix: int


def pack_for(model: Any, rows: Sequence[Encoded], *, pad_id: int, group_size: int, row_length: int = 0) -> Packed:
    """Pack examples for a model, which may be wrapped for training.

    Raises:
        DataError: several are asked for in one row, and the model's text cannot share it.
    """
    try:
        require_full_attention(backbone(model).config.get_text_config())
    except ValueError as error:
        if group_size > 1:
            raise DataError(f"one image for {group_size} questions: {error}. Ask for one (--group-size 1).") from error
        if row_length:
            raise DataError(f"rows of {row_length} tokens: {error}. Ask for none (--row-length 0).") from error
        pictures = tuple(picture for row in rows for picture in row.pictures)
        return Packed(collate(rows, pad_id=pad_id, side="right"), *answer_rows(rows), pictures)
    return pack(rows, pad_id=pad_id, group_size=group_size, row_length=row_length, rope_index=rope_index_of(model))


def pack(
    rows: Sequence[Encoded],
    *,
    pad_id: int,
    group_size: int,
    row_length: int = 0,
    rope_index: RopeIndex | None = None,
) -> Packed:
    """Pack consecutive examples that share prefix and pictures, at most `group_size` a group; then groups into rows.

    A batch drawn image by image packs well, and any other batch still packs. Rows hold as many tokens as the longest
    group, or `row_length` where that is more. Positions are those of `rope_index`, [3, B, T], or else counted, [B, T].
    """
    groups = list(_groups(rows, group_size))
    shelves = _shelve([group.num_tokens for group in groups], row_length)
    placed = [(row, groups[index]) for row, shelf in enumerate(shelves) for index in shelf]
    prefixes = [_prefix_positions(group, rope_index) for _, group in placed]
    pieces = _pieces(placed, [int(positions_AP.max()) + 1 for positions_AP in prefixes])
    length = max(piece.start + len(piece.ids) for piece in pieces)
    by_row = [tuple(chain.from_iterable(groups[index].first.pictures for index in shelf)) for shelf in shelves]
    inputs = {
        **_lay_out(pieces, len(shelves), length, pad_id),
        **stack_pictures([Encoded((), (), (), pictures) for pictures in by_row]),
    }
    if rope_index is not None:
        inputs["position_ids"] = _with_axes(inputs["position_ids"], pieces, prefixes)
    return Packed(inputs, *_answers(rows, placed, pieces), tuple(chain.from_iterable(by_row)))


def _groups(rows: Sequence[Encoded], group_size: int) -> Iterator[_Group]:
    current: _Group | None = None
    for index, row in enumerate(rows):
        prefix, suffix = split_at_image(row)
        fits = current is not None and len(current.examples) < group_size and current.prefix == prefix
        if current is None or not fits or not all(map(_same, current.first.pictures, row.pictures)):
            if current is not None:
                yield current
            current = _Group(prefix, row, [], [])
        current.suffixes.append(suffix)
        current.examples.append(index)
    if current is not None:
        yield current


def _same(first: object, second: object) -> bool:
    """Whether two pictures are one: the encoder memoises them, so identity is enough (and never wrongly true)."""
    return first is second


def _shelve(lengths: Sequence[int], row_length: int) -> list[list[int]]:
    """Put lengths into rows, the longest first, each into the first row with room for it; return indices by row."""
    shelves: list[list[int]] = []
    rooms: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        row = next((row for row, room in enumerate(rooms) if room >= lengths[index]), len(rooms))
        if row == len(rooms):
            shelves.append([])
            rooms.append(max(*lengths, row_length))
        shelves[row].append(index)
        rooms[row] -= lengths[index]
    return shelves


def _pieces(placed: Iterable[tuple[int, _Group]], behind: Iterable[int]) -> list[_Piece]:
    """Return the pieces of groups in their rows, each prefix before its suffixes; `behind` are positions after it."""
    pieces: list[_Piece] = []
    for (row, group), position in zip(placed, behind, strict=True):
        last = pieces[-1] if pieces and pieces[-1].row == row else None
        cursor, prefix = last.start + len(last.ids) if last else 0, len(pieces)
        pieces.append(_Piece(group.prefix, row, cursor, 0, prefix))
        cursor += len(group.prefix)
        for suffix in group.suffixes:
            pieces.append(_Piece(suffix, row, cursor, position, prefix))
            cursor += len(suffix)
    return pieces


def _prefix_positions(group: _Group, rope_index: RopeIndex | None) -> Tensor:
    first, length = group.first, len(group.prefix)
    if rope_index is None or not first.pictures:
        return torch.arange(length)[None]
    of_tokens = {name: value[None, :length] for name, value in first.token_inputs.items()}
    sizes = {name: value for name, value in stack_pictures([first]).items() if not value.is_floating_point()}
    positions_A1P, _ = rope_index(torch.tensor([group.prefix]), **of_tokens, **sizes)
    return positions_A1P[:, 0]


def _lay_out(pieces: Sequence[_Piece], num_rows: int, length: int, pad_id: int) -> dict[str, Tensor]:
    """Return ids, mask and counted positions of pieces in their rows."""
    lengths_n = torch.tensor([len(piece.ids) for piece in pieces])
    row_n, start_n, position_n, prefix_n = torch.tensor([piece[1:] for piece in pieces]).T
    place_F = _runs(row_n * length + start_n, lengths_n)
    ids_F = torch.tensor(list(chain.from_iterable(piece.ids for piece in pieces)))
    own_n = torch.arange(len(pieces), dtype=torch.int16)

    def in_rows(values_F: Tensor, padding: int) -> Tensor:
        return values_F.new_full((num_rows * length,), padding).index_copy_(0, place_F, values_F).view(num_rows, length)

    own_BT = in_rows(own_n.repeat_interleave(lengths_n), -1)
    prefix_BT = in_rows(prefix_n.to(own_n.dtype).repeat_interleave(lengths_n), -1)
    return {
        "input_ids": in_rows(ids_F, pad_id),
        "attention_mask": _mask(own_BT, prefix_BT),
        "position_ids": in_rows(_runs(position_n, lengths_n), 0),
    }


def _runs(first_n: Tensor, lengths_n: Tensor) -> Tensor:
    """Return runs of numbers one behind another: each counts on from its first."""
    before_n = lengths_n.cumsum(0) - lengths_n
    return torch.arange(int(lengths_n.sum())) + (first_n - before_n).repeat_interleave(lengths_n)


def _mask(own_BT: Tensor, prefix_BT: Tensor) -> Tensor:
    """Return what is added to scores, 0 or -inf, [B, 1, T, T]: all see their piece and prefix, never what comes later.

    Padding sees padding, so that no row of the softmax is empty.
    """
    seen_BTT = own_BT[:, None, :] == own_BT[:, :, None]
    seen_BTT |= own_BT[:, None, :] == prefix_BT[:, :, None]
    hidden_BTT = seen_BTT.tril_().logical_not_()
    return torch.zeros(hidden_BTT.shape).masked_fill_(hidden_BTT, float("-inf"))[:, None]


def _with_axes(position_ids_BT: Tensor, pieces: Sequence[_Piece], prefixes: Iterable[Tensor]) -> Tensor:
    """Return positions [3, B, T]: the prefixes' own, and the counted ones along every axis."""
    position_ids_ABT = position_ids_BT.repeat(3, 1, 1)
    heads = (piece for index, piece in enumerate(pieces) if piece.prefix == index)
    for piece, positions_AP in zip(heads, prefixes, strict=True):
        position_ids_ABT[:, piece.row, piece.start : piece.start + len(piece.ids)] = positions_AP
    return position_ids_ABT


def _answers(
    rows: Sequence[Encoded], placed: Iterable[tuple[int, _Group]], pieces: Sequence[_Piece]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return row and position at which each answer token is predicted, and those tokens, example by example."""
    order = chain.from_iterable(group.examples for _, group in placed)
    suffixes = (piece for index, piece in enumerate(pieces) if piece.prefix != index)
    ends = {example: (piece.row, piece.start + len(piece.ids)) for example, piece in zip(order, suffixes, strict=True)}
    row_N, end_N = torch.tensor([ends[index] for index in range(len(rows))]).T
    lengths_N = torch.tensor([len(row.answer_ids) for row in rows])
    answer_ids_M = torch.tensor([token for row in rows for token in row.answer_ids])
    return row_N.repeat_interleave(lengths_N), _runs(end_N - lengths_N - 1, lengths_N), answer_ids_M
