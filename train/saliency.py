"""Which weights forgetting may move: MMUnlearner's mask by gradient saliency (arXiv 2502.11051).

m = 1[F_forget / (F_preserve + eps) >= threshold], with F the squared gradient of the answers' likelihood, summed over
examples one at a time. The mask multiplies the forget gradient and leaves the retain gradient alone. Official code
takes F of whole weights; here only LoRA weights train, so theirs counts. At their start B is zero and A therefore has
no gradient: forgetting moves B alone.
"""

from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from ..models.encode import Encoder
from ..models.forward import to_device
from .batches import Item
from .method import Method
from .steps import batch_of
from .student import Student

EPSILON = 1e-12
MOST_EXAMPLES = 256  # of each side, spread over all: more change few entries of the mask


def saliency_mask(
    model: Any, encoder: Encoder, forget: Sequence[Item], retain: Sequence[Item], method: Method
) -> dict[str, Tensor]:
    """Return 0 or 1 for every trainable weight, by name."""
    of_forget, of_retain = (_squared_gradients(model, encoder, items) for items in (forget, retain))
    threshold = method.settings["threshold"]
    return {
        name: (of_forget[name] / (of_retain[name] + EPSILON) >= threshold).to(of_forget[name]) for name in of_forget
    }


def _squared_gradients(model: Any, encoder: Encoder, items: Sequence[Item]) -> dict[str, Tensor]:
    """Return the mean squared gradient of the answers' likelihood for every trainable weight."""
    student, weights = Student(model), {name: w for name, w in model.named_parameters() if w.requires_grad}
    sums = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    chosen = list(islice(items, 0, None, -(-len(items) // MOST_EXAMPLES)))
    for item in chosen:
        batch = batch_of(model, encoder, [item], 1)
        like = next(model.parameters())
        answer_ids_M = batch.answer_ids_M.to(like.device)
        none_MK = answer_ids_M.new_zeros((len(answer_ids_M), 0))
        inputs = to_device(batch.inputs, like.device, like.dtype)
        seen = student(inputs, batch.batch_M, batch.position_M, answer_ids_M, none_MK)
        gradients = torch.autograd.grad(-seen.student_MC[:, 0].sum(), list(weights.values()))
        for name, gradient in zip(weights, gradients, strict=True):
            sums[name] += gradient.square() / len(chosen)
    return sums
