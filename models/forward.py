"""Run a model's forward pass for its answer tokens alone.

Only rows that predict answer tokens go through `lm_head`: as logits, the union of their positions is passed as
`logits_to_keep` (every supported transformers version takes a list of positions), then each row is picked; as states,
the rows are picked before it, for who wants a loss without all their logits at once. States are caught where they leave
their module while the whole model runs, so wrappers for adapters, precision and parallel training see a forward pass
like any other. Shapes: B batch, T position, M answer tokens of the batch (flattened), P kept positions, D hidden size,
V vocabulary.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..data.example import DataError
from .positions import backbone

# What some families do to logits behind the head, by the setting, and its value where it does nothing.
_AFTER_HEAD = {"final_logit_softcapping": None, "logit_scale": 1.0, "logits_scaling": 1.0}


class LayerStates(NamedTuple):
    """Hidden states at answer tokens: those the head reads, and those that leave one decoder layer."""

    last_MD: Tensor
    layer_MD: Tensor


def answer_logits(model: Any, inputs: dict[str, Tensor], batch_M: Tensor, position_M: Tensor) -> Tensor:
    """Return the logits [M, V] that predict a right-padded batch's answer tokens, in the model's dtype."""
    kept_P, column_M = torch.unique(position_M, return_inverse=True)
    logits_BPV: Tensor = model(**inputs, logits_to_keep=kept_P.to(inputs["input_ids"].device), use_cache=False).logits
    device = logits_BPV.device
    return logits_BPV[batch_M.to(device), column_M.to(device)]


def answer_states(model: Any, inputs: dict[str, Tensor], batch_M: Tensor, position_M: Tensor) -> Tensor:
    """Return the last hidden states [M, D] that predict a batch's answer tokens: what `head_of` makes logits of."""
    (states_BTD,) = _leaving(model, inputs, [backbone(model)])
    return _picked(states_BTD, batch_M, position_M)


def answer_states_at(
    model: Any, inputs: dict[str, Tensor], batch_M: Tensor, position_M: Tensor, *, layer: int
) -> LayerStates:
    """Return the last hidden states [M, D], and those that leave a decoder layer (the first is 0), from one pass.

    Raises:
        DataError: there is no such layer.
    """
    core = backbone(model)
    layers = core.get_decoder().layers
    if not 0 <= layer < len(layers):
        raise DataError(f"layer: expected one of 0 to {len(layers) - 1}, found {layer}. Name a decoder layer.")
    found = _leaving(model, inputs, [core, layers[layer]])
    return LayerStates(*(_picked(states_BTD, batch_M, position_M) for states_BTD in found))


def head_of(model: Any) -> Any:
    """Return the module that makes logits [.., V] of last hidden states, under wrappers for training too.

    Raises:
        DataError: the model scales or caps what its head gives, so that its logits are others.
    """
    whole = getattr(model, "module", model)
    config = whole.config.get_text_config()
    for name, neutral in _AFTER_HEAD.items():
        if getattr(config, name, neutral) not in (None, neutral):
            raise DataError(
                f"{type(whole).__name__}: expected logits that are the output layer's, found {name} "
                f"{getattr(config, name)} in its configuration. Training from hidden states does not know it."
            )
    return whole.get_output_embeddings()


def to_device(inputs: dict[str, Tensor], device: torch.device | str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Move a batch to a device, picture tensors also to the model's dtype."""
    return {name: value.to(device, dtype if value.is_floating_point() else None) for name, value in inputs.items()}


def _leaving(model: Any, inputs: dict[str, Tensor], modules: Sequence[Any]) -> list[Tensor]:
    """Run a model, its head for the last position alone, and return what hidden states [B, T, D] leave some modules."""
    found: dict[int, Tensor] = {}
    hooks = [module.register_forward_hook(partial(_catch, found, index)) for index, module in enumerate(modules)]
    try:
        model(**inputs, logits_to_keep=1, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return [found[index] for index in range(len(modules))]


def _catch(found: dict[int, Tensor], index: int, _module: Any, _inputs: Any, output: Any) -> None:
    states = getattr(output, "last_hidden_state", output)
    found[index] = states[0] if isinstance(states, tuple) else states


def _picked(states_BTD: Tensor, batch_M: Tensor, position_M: Tensor) -> Tensor:
    return states_BTD[batch_M.to(states_BTD.device), position_M.to(states_BTD.device)]
