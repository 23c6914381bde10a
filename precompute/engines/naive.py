"""The oracle engine: an example's k images as one batch, the whole sequence each time, as peers' code does.

Nothing is shared between images or examples, so it is slow and hard to get wrong; every other engine is compared with
it. Shapes: k images of an example, M its answer tokens, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from ...models.encode import answer_rows, collate
from ...models.forward import answer_logits, to_device
from .rows import Pending, Probabilities, average


@torch.inference_mode()
def naive_rows(model: Any, pending: Sequence[Pending], pad_id: int) -> Iterator[Probabilities]:
    """Yield the averaged distributions of each pending example, in order."""
    weights = next(model.parameters())
    for item in pending:
        inputs = to_device(collate(item.shown, pad_id=pad_id, side="right"), weights.device, weights.dtype)
        batch_M, position_M, _ = answer_rows(item.shown)
        logits_kMV = answer_logits(model, inputs, batch_M, position_M).view(len(item.shown), item.num_rows, -1)
        yield average(torch.log_softmax(logits_kMV.float(), dim=-1))
