"""Shift and brighten pictures at random, so that a small vision tower reads faces rather than pixels.

Only the tiny models of the embedded benchmark need this; every draw is a function of (seed, step), so a run can be
repeated.
"""

import torch
from torch import Tensor

MAX_SHIFT = 2
MAX_BRIGHTNESS = 0.15


def augment(pixels_BCHW: Tensor, seed: int, step: int) -> Tensor:
    """Return shifted and brightened copies of a batch of normalised pictures; edges are repeated, not wrapped."""
    batch, _, height, width = pixels_BCHW.shape
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    padded = torch.nn.functional.pad(pixels_BCHW, (MAX_SHIFT,) * 4, mode="replicate")
    corners = torch.randint(0, 2 * MAX_SHIFT + 1, (batch, 2), generator=generator).tolist()
    shifted = [padded[index, :, top : top + height, left : left + width] for index, (top, left) in enumerate(corners)]
    light = (torch.rand((2, batch, 1, 1, 1), generator=generator) * 2 - 1) * MAX_BRIGHTNESS
    return torch.stack(shifted) * (1 + light[0]) + light[1]
