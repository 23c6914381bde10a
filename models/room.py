"""Room for the keys and values of sequences that go on side by side, and how a token of each attends to its own.

Columns are [prefix, filled up behind | middle, filled up before | what comes]; a mask of numbers to add hides what no
token may see, columns not yet filled too, so that attention reads whole tensors. They are made with some columns to
spare and grow by as many: growing by each token, as caches of transformers do, copies everything at every token.
A sequence leaves by letting another take its place. On a CPU the fused kernel takes its time for each sequence and head
where only one token asks; two batched products are several times as fast, and are what stands here under a name of its
own, for float32 alone: in half precision they would round more than the kernel does. What is put into the room is
`decode.py`'s.
"""

# U prefixes, P tokens of the longest, N sequences, S tokens of the longest middle, T tokens of some middles end to end,
# R columns, H heads, h key-value heads, D head size, m sequences that move

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, Cache, DynamicLayer

from .behind import KeysAndValues

NAME = "viker_one_token"
COLUMNS_TO_SPARE = 32  # a multiple of what fused kernels ask of the rows of a mask


class Rooms(Cache):
    """The room of all layers, and which of its columns the next token of each sequence may see."""

    def __init__(self, layers: list[KeysAndValues], which_N: Tensor, seen_NR: Tensor) -> None:
        """Copy each sequence's prefix into room of its own; `layers` [U, h, P, D] are used up.

        Args:
            layers: keys and values of prefixes, a pair a layer.
            which_N: the prefix of each sequence.
            seen_NR: which columns of prefix and middle the tokens behind them may see.
        """
        self._rooms: list[_Room] = []
        dtype, device = layers[0][0].dtype, layers[0][0].device
        filled, before = seen_NR.shape[1], layers[0][0].shape[2]
        width = -(-(filled + 1) // COLUMNS_TO_SPARE) * COLUMNS_TO_SPARE
        while layers:
            pair = layers.pop(0)  # freed as soon as it is copied
            keys, values = (_roomy(part_UhPD, which_N.to(device), filled, width) for part_UhPD in pair)
            self._rooms.append(_Room(keys, values, before))
        super().__init__(layers=[*self._rooms])
        self._hidden_N11R = torch.full((len(which_N), 1, 1, width), float("-inf"), dtype=dtype, device=device)
        self._hidden_N11R[:, 0, 0, :filled].masked_fill_(seen_NR.to(device), 0.0)

    def first_columns(self, place: int, length: int) -> list[KeysAndValues]:
        """Return the first keys and values [1, h, length, D] at one place, a pair a layer."""
        part = slice(place, place + 1)
        return [(room.keys[part, :, :length], room.values[part, :, :length]) for room in self._rooms]

    def fill(self, part: slice, layers: Sequence[KeysAndValues], place_nS: Tensor) -> None:
        """Write, behind the prefixes of some sequences, keys and values from their places among T tokens end to end."""
        for room, pair in zip(self._rooms, layers, strict=True):
            columns = slice(room.filled, room.filled + place_nS.shape[1])
            for whole_NhRD, new_1hTD in zip((room.keys, room.values), pair, strict=True):
                taken_hnSD = new_1hTD[0].index_select(1, place_nS.flatten()).unflatten(1, place_nS.shape)
                whole_NhRD[part, :, columns] = taken_hnSD.transpose(0, 1)

    def close_middles(self, length: int) -> None:
        """Let what comes stand behind middles of so many columns."""
        for room in self._rooms:
            room.filled += length

    def hidden_from_next(self) -> Tensor:
        """Return what is added to the scores of the next token of each sequence, [N, 1, 1, R], making room for it."""
        column = self._rooms[0].filled
        if column == self._hidden_N11R.shape[-1]:
            for room in self._rooms:
                room.keys, room.values = (_wider(part, 2, 0.0) for part in (room.keys, room.values))
            self._hidden_N11R = _wider(self._hidden_N11R, 3, float("-inf"))
        self._hidden_N11R[..., column] = 0.0
        return self._hidden_N11R

    def keep(self, new_m: Tensor, old_m: Tensor, count: int) -> None:
        """Keep so many sequences, the first, into whose places some others have moved."""
        for room in self._rooms:
            room.keys, room.values = (moved(part, new_m, old_m, count) for part in (room.keys, room.values))
        self._hidden_N11R = moved(self._hidden_N11R, new_m, old_m, count)


class _Room(DynamicLayer):
    """Keys and values [N, h, R, D] of a layer, of which the first columns are filled."""

    keys: Any
    values: Any

    def __init__(self, keys_NhRD: Tensor, values_NhRD: Tensor, filled: int) -> None:
        super().__init__()
        self.keys, self.values, self.filled = keys_NhRD, values_NhRD, filled
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Fill the next column, and return all there are: a mask hides those that are not filled."""
        self.keys[:, :, self.filled], self.values[:, :, self.filled] = key_states[:, :, 0], value_states[:, :, 0]
        self.filled += 1
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """Return how many columns are filled."""
        return self.filled


def moved(whole: Tensor, new_m: Tensor, old_m: Tensor, count: int) -> Tensor:
    """Return the first entries of a tensor, into some of which others have moved."""
    if len(new_m):
        whole[new_m] = whole[old_m]
    return whole[:count]


@contextlib.contextmanager
def attending_alone(model: Any) -> Iterator[None]:
    """Let a model's text layers attend by two products while the block runs them on one token of each sequence."""
    weights = next(model.parameters())
    if weights.device.type != "cpu" or weights.dtype != torch.float32:
        yield
        return
    config = model.config.get_text_config()
    before = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before


def _roomy(part_UhPD: Tensor, which_N: Tensor, filled: int, width: int) -> Tensor:
    """Return prefixes in room that will be filled so far, zeros behind: a mask hides numbers, and no others."""
    _, h, P, D = part_UhPD.shape
    part_NhRD = part_UhPD.new_empty(len(which_N), h, width, D)
    part_NhRD[:, :, :P] = part_UhPD.index_select(0, which_N)
    part_NhRD[:, :, filled:] = 0.0
    return part_NhRD


def _wider(whole: Tensor, axis: int, value: float) -> Tensor:
    sizes = [COLUMNS_TO_SPARE if index == axis else size for index, size in enumerate(whole.shape)]
    return torch.cat([whole, whole.new_full(sizes, value)], axis)


def _attend(
    _module: Any, query_NH1D: Tensor, key_NhRD: Tensor, value_NhRD: Tensor, hidden_N11R: Tensor, *, scaling: float,
    **_: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Return the attention output [N, 1, H, D] in the form transformers asks of an attention function."""
    N, h, R, D = key_NhRD.shape
    query = query_NH1D.reshape(N * h, -1, D)
    scores = torch.bmm(query, key_NhRD.view(N * h, R, D).transpose(1, 2)).mul_(scaling)
    weights = scores.view(N, h, -1, R).add_(hidden_N11R).softmax(-1)
    out = torch.bmm(weights.view(N * h, -1, R), value_NhRD.view(N * h, R, D))
    return out.view(N, 1, -1, D), None


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, lambda *_, **__: None)
