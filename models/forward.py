"""Run a model's forward pass for its answer tokens alone.

Only rows that predict answer tokens go through `lm_head`: the union of their positions is passed as `logits_to_keep`
(every supported transformers version takes a list of positions), then each row is picked. Shapes:
B batch, T position, M answer tokens of the batch (flattened), P kept positions, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor


def answer_logits(model: Any, inputs: dict[str, Tensor], batch_M: Tensor, position_M: Tensor) -> Tensor:
    """Return the logits [M, V] that predict a right-padded batch's answer tokens, in the model's dtype."""
    kept_P, column_M = torch.unique(position_M, return_inverse=True)
    logits_BPV: Tensor = model(**inputs, logits_to_keep=kept_P.to(inputs["input_ids"].device), use_cache=False).logits
    device = logits_BPV.device
    return logits_BPV[batch_M.to(device), column_M.to(device)]


def to_device(inputs: dict[str, Tensor], device: torch.device | str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Move a batch to a device, picture tensors also to the model's dtype."""
    return {name: value.to(device, dtype if value.is_floating_point() else None) for name, value in inputs.items()}
