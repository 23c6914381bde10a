"""Run many answers behind one image: the key-value cache of prompt start + image, and suffixes that continue it.

Causal attention makes what follows an image invisible to it, so its keys and values are computed once per reference and
every question and answer is a suffix behind them. A prefix ends right after the last image token, cut in token ids
(never by tokenizing a piece of text apart). Families that break the assumption (an image that looks at the question,
text before it that differs) are found out by the engine's self-check, not listed here.
Shapes: B batch, P prefix length, S suffix length, M answer tokens, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from .encode import Encoded, stack_pictures
from .forward import to_device


@dataclass(frozen=True, slots=True)
class Prefix:
    """Keys and values of one prefix, a pair per layer, each [1, heads, P, head size]."""

    layers: tuple[tuple[Tensor, Tensor], ...]
    length: int

    @property
    def num_bytes(self) -> int:
        """Bytes held on the device."""
        return sum(keys.nbytes + values.nbytes for keys, values in self.layers)


def split_at_image(encoded: Encoded) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Cut an encoded example after its last image token (after its first token where it has no image)."""
    picture_ids = {token for picture in encoded.pictures for token in picture.ids}
    ends = [index + 1 for index in range(encoded.num_prompt) if encoded.input_ids[index] in picture_ids]
    cut = ends[-1] if ends else 1
    return encoded.input_ids[:cut], encoded.input_ids[cut:]


@torch.inference_mode()
def compute_prefix(model: Any, prefix_ids: Sequence[int], encoded: Encoded) -> Prefix:
    """Run prompt start and images once and keep their keys and values."""
    weights = next(model.parameters())
    inputs = {"input_ids": torch.tensor([prefix_ids]), **stack_pictures([encoded])}
    inputs = to_device(inputs, weights.device, weights.dtype)
    cache = DynamicCache(config=model.config.get_text_config())
    model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
    layers: Any = tuple((layer.keys, layer.values) for layer in cache.layers)  # type: ignore[union-attr]
    return Prefix(layers, len(prefix_ids))


@torch.inference_mode()
def suffix_answer_logits(
    model: Any, prefix: Prefix, suffixes: Sequence[Sequence[int]], num_answers: Sequence[int], pad_id: int
) -> Tensor:
    """Return the logits [M, V] of the answer tokens at the end of each suffix, suffix after suffix.

    The last answer token predicts nothing that is scored, so it is never run.
    """
    device = prefix.layers[0][0].device
    run = [suffix[:-1] for suffix in suffixes]
    length = max(len(suffix) for suffix in run)
    input_ids_BS = torch.full((len(run), length), pad_id, dtype=torch.long)
    mask_BT = torch.zeros((len(run), prefix.length + length), dtype=torch.long)
    for index, suffix in enumerate(run):
        input_ids_BS[index, : len(suffix)] = torch.tensor(suffix)
        mask_BT[index, : prefix.length + len(suffix)] = 1
    position_ids_BS = torch.arange(prefix.length, prefix.length + length).expand(len(run), -1)
    rows = [
        (index, len(run[index]) - count + offset) for index, count in enumerate(num_answers) for offset in range(count)
    ]
    batch_M, position_M = (torch.tensor(column) for column in zip(*rows, strict=True))
    kept_P, column_M = torch.unique(position_M, return_inverse=True)
    logits_BPV = model(
        input_ids=input_ids_BS.to(device), attention_mask=mask_BT.to(device), position_ids=position_ids_BS.to(device),
        past_key_values=_expanded(prefix, len(run), model), use_cache=True, logits_to_keep=kept_P.to(device),
    ).logits  # fmt: skip
    logits_MV: Tensor = logits_BPV[batch_M.to(device), column_M.to(device)]
    return logits_MV


def _expanded(prefix: Prefix, batch: int, model: Any) -> DynamicCache:
    """Return a fresh cache whose rows all see the prefix; the forward pass appends to it, never to ours."""
    cache = DynamicCache(config=model.config.get_text_config())
    for index, (keys, values) in enumerate(prefix.layers):
        cache.update(keys.expand(batch, -1, -1, -1), values.expand(batch, -1, -1, -1), index)
    return cache
