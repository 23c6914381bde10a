"""Move, turn and brighten pictures at random, so that a small vision model reads faces rather than pixels.

Only the tiny models of the embedded benchmark need this; every draw is a function of (seed, step), so a run can be
repeated. B pictures, C channels, H height, W width.
"""

import math

import torch
from torch import Tensor

from ..data.example import DataError

MAX_SHIFT = 0.04  # of the picture's size
MAX_TURN = math.radians(4)
MAX_ZOOM = 0.04
MAX_BRIGHTNESS = 0.15


def augment(pixels_BCHW: Tensor, seed: int, step: int) -> Tensor:
    """Return moved, turned, zoomed and brightened copies of a batch of normalized pictures; edges are repeated.

    Raises:
        DataError: the model reads pictures in tiles or patches.
    """
    if pixels_BCHW.dim() != 4:
        raise DataError(
            f"--augment: expected a model that reads whole pictures, found one that reads tensors of "
            f"{list(pixels_BCHW.shape)}. Leave it out."
        )
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    draws = torch.rand((6, len(pixels_BCHW)), generator=generator) * 2 - 1
    turn_B, zoom_B = draws[0] * MAX_TURN, 1 + draws[1] * MAX_ZOOM
    cosine_B, sine_B = turn_B.cos() * zoom_B, turn_B.sin() * zoom_B
    shift_B2 = 2 * MAX_SHIFT * draws[2:4].T
    rows_B23 = torch.stack(
        [torch.stack([cosine_B, -sine_B, shift_B2[:, 0]], 1), torch.stack([sine_B, cosine_B, shift_B2[:, 1]], 1)], 1
    )
    grid_BHW2 = torch.nn.functional.affine_grid(rows_B23, list(pixels_BCHW.shape), align_corners=False)
    moved_BCHW = torch.nn.functional.grid_sample(pixels_BCHW, grid_BHW2, padding_mode="border", align_corners=False)
    gain_B111, offset_B111 = (MAX_BRIGHTNESS * draws[4:]).view(2, -1, 1, 1, 1)
    brightened_BCHW: Tensor = moved_BCHW * (1 + gain_B111) + offset_B111
    return brightened_BCHW
