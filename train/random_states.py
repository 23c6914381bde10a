"""Where every generator of random numbers stands that a step may draw from: dropout's, and those of a user's method.

Kept as plain values, so that a checkpoint holds them without pickle. Batches are drawn from (seed, epoch) and need none
of this.
"""

import random
from typing import Any

import numpy as np
import torch

RandomState = dict[str, Any]


def random_state(device: torch.device) -> RandomState:
    """Return where the generators of this process stand."""
    version, numbers, gauss = random.getstate()
    numpy_state: Any = np.random.get_state(legacy=True)  # the one that others draw from
    name, keys, *rest = numpy_state
    return {
        "python": [version, list(numbers), gauss],
        "numpy": [name, keys.tolist(), *rest],
        "torch": torch.get_rng_state().numpy().tobytes().hex(),
        "cuda": torch.cuda.get_rng_state(device).numpy().tobytes().hex() if device.type == "cuda" else None,
    }


def set_random_state(state: RandomState, device: torch.device) -> None:
    """Put the generators of this process where they stood."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, np.uint32), *rest))
    torch.set_rng_state(_as_bytes(state["torch"]))
    if device.type == "cuda":
        torch.cuda.set_rng_state(_as_bytes(state["cuda"]), device)


def _as_bytes(digits: str) -> torch.Tensor:
    return torch.frombuffer(bytearray.fromhex(digits), dtype=torch.uint8)
