"""Two-part attention is attention: suffixes behind shared prefixes give what each whole sequence gives alone."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM
from viker.models.two_part import NAME, Part, attending, lay_out

PREFIXES = (50, 37, 1)
SUFFIXES = ((9, 4, 1), (7, 12), (3,))


def build(num_key_value_heads: int) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=num_key_value_heads,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for weights in model.parameters():  # a fresh model attends almost evenly, which would hide mistakes
            weights.mul_(3)
    return model


def ids(length: int, seed: int) -> list[int]:
    return torch.randint(0, 97, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.mark.parametrize("num_key_value_heads", [4, 2, 1])
@torch.inference_mode()
def test_suffixes_behind_prefixes_are_whole_sequences(num_key_value_heads):
    model = build(num_key_value_heads)
    prefixes = [ids(length, seed) for seed, length in enumerate(PREFIXES)]
    suffixes = [[ids(length, 10 * seed + length) for length in group] for seed, group in enumerate(SUFFIXES)]
    layers = []
    for prefix in prefixes:
        cache = DynamicCache(config=model.config)
        model(torch.tensor([prefix]), past_key_values=cache)
        layers.append([(layer.keys, layer.values) for layer in cache.layers])
    tokens = [token for group in suffixes for suffix in group for token in suffix]
    positions = [
        len(prefix) + index
        for prefix, group in zip(prefixes, suffixes, strict=True)
        for suffix in group
        for index in range(len(suffix))
    ]
    ends = list(itertools.accumulate(map(sum, SUFFIXES), initial=0))
    parts = [Part(start, stop, seen) for start, stop, seen in zip(ends, ends[1:], layers, strict=False)]
    lengths = [length for group in SUFFIXES for length in group]
    with attending(model, lay_out(lengths, parts, torch.device("cpu"))):
        found_TV = model(torch.tensor([tokens]), position_ids=torch.tensor([positions]), use_cache=False).logits[0]
    whole = [
        model(torch.tensor([prefix + suffix])).logits[0, len(prefix) :]
        for prefix, group in zip(prefixes, suffixes, strict=True)
        for suffix in group
    ]
    torch.testing.assert_close(found_TV, torch.cat(whole), atol=2e-5, rtol=1e-4)


def fail_while_attending(model: Any) -> None:
    with attending(model, lay_out([1], [], torch.device("cpu"))):
        assert model.config._attn_implementation == NAME
        raise RuntimeError


def test_a_model_attends_as_before_afterwards_whatever_happened():
    model = build(4)
    before = model.config._attn_implementation
    with pytest.raises(RuntimeError):
        fail_while_attending(model)
    assert model.config._attn_implementation == before


def test_the_layout_places_every_token_once():
    layout = lay_out([3, 1, 2], [], torch.device("cpu"))
    assert layout.token_nS.tolist() == [[0, 1, 2], [3, 3, 3], [4, 5, 5]]
    assert layout.token_nS[layout.row_T, layout.column_T].tolist() == list(range(6))
