"""What the next step of a run depends on, and how it is read off a run and put back: weights, AdamW, random numbers.

Tensors are whole and on the CPU, whichever way processes share them, so that a state can be kept in files and taken up
where weights lie otherwise. The schedule and the batches are functions of the step, and need nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .processes import shared_like, whole
from .random_states import RandomState

_WEIGHT, _MASK, _OPTIMIZER = "weight/", "mask/", "optimizer/"


@dataclass(frozen=True, kw_only=True, slots=True)
class RunState:
    """A run between two steps.

    `tensors` by their part and the name of the weight; `recent`: the stop rule's window; `random`: one a process.
    """

    step: int
    tensors: Mapping[str, Tensor]
    recent: Sequence[tuple[float, float]]
    random: Sequence[RandomState]

    @property
    def mask(self) -> dict[str, Tensor] | None:
        """The mask of the forget gradient by the names of the weights, where there is one."""
        found = {name.removeprefix(_MASK): value for name, value in self.tensors.items() if name.startswith(_MASK)}
        return found or None


def weight_tensors(weights: Mapping[str, Tensor], mask: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """Return copies of trainable weights, and of the mask of their gradient."""
    kept = {f"{_WEIGHT}{name}": _kept(weight) for name, weight in weights.items()}
    return kept | {f"{_MASK}{name}": _kept(value) for name, value in (mask or {}).items()}


def optimizer_tensors(optimizer: Any, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies of an optimizer's state; empty before its first step."""
    return {
        f"{_OPTIMIZER}{part}/{name}": _kept(value)
        for name, weight in weights.items()
        for part, value in optimizer.state.get(weight, {}).items()
    }


def set_weights(weights: Mapping[str, Tensor], state: RunState) -> None:
    """Put a state's weights onto a model's trainable ones, which are the same by name."""
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(shared_like(state.tensors[f"{_WEIGHT}{name}"], weight))


def set_optimizer(optimizer: Any, weights: Mapping[str, Tensor], state: RunState) -> None:
    """Put a state's AdamW onto an optimizer of the same weights."""
    for name, value in state.tensors.items():
        if name.startswith(_OPTIMIZER):
            part, weight_name = name.removeprefix(_OPTIMIZER).split("/", 1)
            weight = weights[weight_name]
            # A count of steps is a number that every process keeps for itself, on the CPU.
            optimizer.state[weight][part] = value.clone() if value.dim() == 0 else shared_like(value, weight).clone()


def _kept(tensor: Tensor) -> Tensor:
    return whole(tensor.detach()).to("cpu", copy=True).contiguous()
