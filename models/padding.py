"""Lay tensors of unequal sizes into one, zeros where they do not reach: pictures of different tiles, rows of tokens.

Zero is what every family's own processor pads with: an all-zero tile is left out by the model (Idefics3), never counted
(LLaVA-NeXT reads sizes) or masked (Mllama). Which tensors go together is `encode.py`'s.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def join_padded(parts: Sequence[Tensor], axis: int = 0) -> Tensor:
    """Concatenate tensors of one rank along an axis, the others padded with zeros to the largest size of each."""
    largest = [max(sizes) for sizes in zip(*(part.shape for part in parts), strict=True)]
    return torch.cat([_padded(part, [*largest[:axis], part.shape[axis], *largest[axis + 1 :]]) for part in parts], axis)


def stack_padded(parts: Sequence[Tensor], *, side: str) -> Tensor:
    """Stack tensors of one rank, padded with zeros: the first axis on the side named, the others behind."""
    largest = [max(sizes) for sizes in zip(*(part.shape for part in parts), strict=True)]
    if side == "left":
        return torch.stack([_padded(part.flip(0), largest).flip(0) for part in parts])
    return torch.stack([_padded(part, largest) for part in parts])


def _padded(part: Tensor, sizes: Sequence[int]) -> Tensor:
    if list(part.shape) == list(sizes):
        return part
    whole = part.new_zeros(sizes)
    whole[tuple(slice(0, size) for size in part.shape)] = part
    return whole
