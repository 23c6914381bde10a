"""Run many answers behind one image: the key-value cache of prompt start + image, and suffixes that continue it.

Causal attention makes what follows an image invisible to it, so its keys and values are computed once per reference and
every question and answer is a suffix behind them; attention over both is `two_part.py`'s. A prefix ends right after the
last image token, cut in token ids (never by tokenizing a piece of text apart). Families that break the assumption (an
image that looks at the question, text before it that differs) are found by the engine's self-check, not listed here.
A question that many answers follow is a segment of its own behind the image. Shapes: T tokens of all suffixes, D hidden
size.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from .encode import Encoded, stack_pictures
from .forward import to_device
from .two_part import Layers, Part, attending, lay_out


@dataclass(frozen=True, slots=True)
class Prefix:
    """What suffixes continue: its length in tokens, and its keys and values in one or more segments, a pair a layer."""

    segments: tuple[Layers, ...]
    length: int

    @property
    def num_bytes(self) -> int:
        """Bytes held on the device."""
        return sum(keys.nbytes + values.nbytes for layers in self.segments for keys, values in layers)


def prefix_bytes(model: Any, length: int) -> int:
    """Return the bytes that the keys and values of a prefix of some length will take."""
    config = model.config.get_text_config()
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    element = next(model.parameters()).element_size()
    return int(2 * config.num_hidden_layers * heads * head_size * element * length)


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
    return Prefix((layers,), len(prefix_ids))


@torch.inference_mode()
def run_suffixes(model: Any, work: Sequence[tuple[Prefix, Sequence[int]]]) -> Tensor:
    """Return the last hidden states [T, D] of suffixes (none empty), each behind its prefix, as one sequence."""
    return _run(model, work, None) if work else torch.empty(0)


@torch.inference_mode()
def continue_prefixes(model: Any, work: Sequence[tuple[Prefix, Sequence[int]]]) -> list[tuple[Prefix, Tensor]]:
    """Return each prefix with a suffix as its next segment, and the suffix's last hidden state [1, D]."""
    if not work:
        return []
    captured: list[tuple[Tensor, Tensor]] = []
    states_TD, continued, start = _run(model, work, captured), [], 0
    for prefix, suffix in work:
        place = slice(start, start + len(suffix))
        layers = [(keys[:, :, place], values[:, :, place]) for keys, values in captured]
        longer = Prefix((*prefix.segments, layers), prefix.length + len(suffix))
        continued.append((longer, states_TD[place.stop - 1 : place.stop]))
        start = place.stop
    return continued


def _run(
    model: Any, work: Sequence[tuple[Prefix, Sequence[int]]], captured: list[tuple[Tensor, Tensor]] | None
) -> Tensor:
    device = work[0][0].segments[0][0][0].device
    tokens = [token for _, suffix in work for token in suffix]
    positions = [prefix.length + index for prefix, suffix in work for index in range(len(suffix))]
    layout = lay_out([len(suffix) for _, suffix in work], _parts(work), device, captured)
    with attending(model, layout):
        states_1TD: Tensor = model.model(
            input_ids=torch.tensor([tokens], device=device), position_ids=torch.tensor([positions], device=device),
            use_cache=False,
        ).last_hidden_state  # fmt: skip
    return states_1TD[0]


def _parts(work: Sequence[tuple[Prefix, Sequence[int]]]) -> list[Part]:
    """Return a part for each run of neighbors that see the same segment, segment by segment."""
    parts = []
    for level in range(max(len(prefix.segments) for prefix, _ in work)):
        start = 0
        for _, group in itertools.groupby(work, key=partial(_segment_id, level)):
            members = list(group)
            stop = start + sum(len(suffix) for _, suffix in members)
            if level < len(members[0][0].segments):
                parts.append(Part(start, stop, members[0][0].segments[level]))
            start = stop
    return parts


def _segment_id(level: int, item: tuple[Prefix, Sequence[int]]) -> int:
    segments = item[0].segments
    return id(segments[level]) if level < len(segments) else 0
