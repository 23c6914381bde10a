"""Run many answers behind one image: the key-value cache of prompt start + image, and suffixes that continue it.

Causal attention makes what follows an image invisible to it, so its keys and values are computed once per reference and
every question and answer is a suffix behind them; attention over both is `two_part.py`'s. A prefix ends right after the
last image token, cut in token ids (never by tokenizing a piece of text apart). Families that break the assumption (an
image that looks at the question, text before it that differs) are found by the engine's self-check, not listed here.
What suffixes share is `forest.py`'s. Shapes: T tokens of all suffixes, D hidden size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from .encode import Encoded, stack_pictures
from .forest import Forest
from .forward import to_device
from .positions import backbone, forget_shift, position_shift, require_full_attention
from .two_part import Layers, Part, attending, lay_out


@dataclass(frozen=True, slots=True)
class Prefix:
    """What suffixes continue: its keys and values, a pair a layer, and its length in tokens.

    The position behind it is its length plus `shift` (`positions.py`).
    """

    layers: Layers
    length: int
    shift: int = 0

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


def split_at_image(encoded: Encoded) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Cut an encoded example after its last image token (after its first token where it has no image)."""
    cut = encoded.image_end or 1
    return encoded.input_ids[:cut], encoded.input_ids[cut:]


@torch.inference_mode()
def compute_prefix(model: Any, prefix_ids: Sequence[int], encoded: Encoded) -> Prefix:
    """Run prompt start and images once and keep their keys and values.

    Raises:
        ValueError: a text layer of the model sees less, or other things, than all tokens before it.
    """
    require_full_attention(model.config.get_text_config())
    weights = next(model.parameters())
    of_tokens = {name: value[: len(prefix_ids)][None] for name, value in encoded.token_inputs.items()}
    inputs = {"input_ids": torch.tensor([prefix_ids]), **of_tokens, **stack_pictures([encoded])}
    inputs = to_device(inputs, weights.device, weights.dtype)
    cache = DynamicCache(config=model.config.get_text_config())
    forget_shift(model)
    model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
    layers: Any = tuple((layer.keys, layer.values) for layer in cache.layers)  # type: ignore[union-attr]
    return Prefix(layers, len(prefix_ids), position_shift(model))


@torch.inference_mode()
def run_forest(model: Any, prefixes: Sequence[Prefix], forest: Forest) -> Tensor:
    """Return the last hidden states [T, D] of a forest's tokens, each trie behind its prefix, as one sequence."""
    device = prefixes[0].layers[0][0].device
    parts = [Part(start, stop, prefix.layers) for prefix, (start, stop) in zip(prefixes, forest.bounds, strict=True)]
    first = [
        prefix.length + prefix.shift
        for prefix, (start, stop) in zip(prefixes, forest.bounds, strict=True)
        for _ in range(stop - start)
    ]
    positions = [start + depth for start, depth in zip(first, forest.depths, strict=True)]
    with attending(model, lay_out(forest.paths, parts, device, model.dtype)):
        states_1TD: Tensor = backbone(model)(
            input_ids=torch.tensor([forest.tokens], device=device),
            position_ids=torch.tensor([positions], device=device), use_cache=False,
        ).last_hidden_state  # fmt: skip
    return states_1TD[0]
