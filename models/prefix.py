"""Run many answers behind one image: the key-value cache of prompt start + image, and suffixes that continue it.

Causal attention makes what follows an image invisible to it, so its keys and values are computed once per reference and
every question and answer is a suffix behind them; attention over both is `two_part.py`'s. A prefix ends right after the
last image token, cut in token ids (never by tokenizing a piece of text apart). Families that break the assumption (an
image that looks at the question, text before it that differs) are found by the engine's self-check, not listed here.
Shapes: T tokens of all suffixes, P prefix length, M answer tokens, D hidden size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache

from .encode import Encoded, stack_pictures
from .forward import to_device
from .two_part import attending, lay_out


@dataclass(frozen=True, slots=True)
class Prefix:
    """Keys and values of one prefix, a pair per layer, each [1, heads, P, head size]."""

    layers: tuple[tuple[Tensor, Tensor], ...]
    length: int

    @property
    def num_bytes(self) -> int:
        """Bytes held on the device."""
        return sum(keys.nbytes + values.nbytes for keys, values in self.layers)


def prefix_bytes(model: Any, length: int) -> int:
    """Return the bytes that the keys and values of a prefix of some length will take."""
    config = model.config.get_text_config()
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    element = next(model.parameters()).element_size()
    return int(2 * config.num_hidden_layers * heads * head_size * element * length)


class Suffix(NamedTuple):
    """What follows a prefix: the rest of the prompt and the answer, of which the last `num_answers` ids are scored."""

    ids: Sequence[int]
    num_answers: int


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
def answer_states(model: Any, work: Sequence[tuple[Prefix, Sequence[Suffix]]]) -> Tensor:
    """Return the last hidden states [M, D] that predict the answer tokens of suffixes, prefix after prefix, in order.

    All suffixes run as one sequence without padding. The last answer token predicts nothing scored and is never run.
    """
    device = work[0][0].layers[0][0].device
    layout = lay_out(
        [prefix.layers for prefix, _ in work], [[len(suffix.ids) - 1 for suffix in group] for _, group in work], device
    )
    tokens: list[int] = []
    positions: list[int] = []
    kept: list[int] = []
    start = 0
    for prefix, group in work:
        for suffix in group:
            length = len(suffix.ids) - 1
            tokens.extend(suffix.ids[:-1])
            positions.extend(range(prefix.length, prefix.length + length))
            kept.extend(range(start + length - suffix.num_answers, start + length))
            start += length
    with attending(model, layout):
        states_1TD: Tensor = model.model(
            input_ids=torch.tensor([tokens], device=device), position_ids=torch.tensor([positions], device=device),
            use_cache=False,
        ).last_hidden_state  # fmt: skip
    return states_1TD[0, torch.tensor(kept, device=device)]
