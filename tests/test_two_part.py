"""Two-part attention is attention: suffixes behind shared prefixes give what each whole sequence gives alone."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM
from viker.models.forest import plant
from viker.models.two_part import NAME, Layout, Part, attending, lay_out

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
    starts = itertools.accumulate((len(suffix) for group in suffixes for suffix in group), initial=0)
    paths = [range(start, stop) for start, stop in itertools.pairwise(starts)]
    with attending(model, lay_out(paths, parts, torch.device("cpu"), torch.float32)):
        found_TV = model(torch.tensor([tokens]), position_ids=torch.tensor([positions]), use_cache=False).logits[0]
    whole = [
        model(torch.tensor([[*prefix, *suffix]])).logits[0, len(prefix) :]
        for prefix, group in zip(prefixes, suffixes, strict=True)
        for suffix in group
    ]
    torch.testing.assert_close(found_TV, torch.cat(whole), atol=2e-5, rtol=1e-4)


def fail_while_attending(model: Any) -> None:
    with attending(model, lay_out([[0]], [], torch.device("cpu"), torch.float32)):
        assert model.config._attn_implementation == NAME
        raise RuntimeError


def test_a_model_attends_as_before_afterwards_whatever_happened():
    model = build(4)
    before = model.config._attn_implementation
    with pytest.raises(RuntimeError):
        fail_while_attending(model)
    assert model.config._attn_implementation == before


def what_asks_and_sees(layout: Layout) -> list[tuple[int, set[int]]]:
    """Each place of all rows: the token that asks there, and the tokens it sees."""
    places = []
    for key_nS, query_nQ, hidden_n1QS in layout.rows:
        n, S = key_nS.shape
        Q = query_nQ.shape[1]
        hidden_nQS = torch.full((n, Q, S), -torch.inf).triu(1) if hidden_n1QS is None else hidden_n1QS[:, 0]
        for row, query in itertools.product(range(n), range(Q)):
            places.append((int(query_nQ[row, query]), set(key_nS[row][hidden_nQS[row, query] == 0].tolist())))
    return places


@pytest.mark.parametrize(
    "paths",
    [
        [[0, 1, 2], [3], [4, 5]],
        [[0, 1, 2, 3, 4], [0, 1], [0, 1, 5], [6, 7]],
        [[0], [0, 1], [0, 1, 2, 3, 4, 5, 6, 7, 8], [0, 9]],
    ],
)
def test_each_token_asks_at_one_place_and_sees_itself_and_what_came_before(paths):
    layout = lay_out(paths, [], torch.device("cpu"), torch.float32)
    past = {token: set(path[: index + 1]) for path in paths for index, token in enumerate(path)}
    places = what_asks_and_sees(layout)
    assert [places[place] for place in layout.place_T.tolist()] == sorted(past.items())


@pytest.mark.parametrize("num_key_value_heads", [4, 2, 1])
@torch.inference_mode()
def test_suffixes_that_begin_alike_share_tokens_and_are_whole_sequences(num_key_value_heads):
    model = build(num_key_value_heads)
    prefix, head = ids(20, 1), ids(6, 2)
    suffixes = [head + ids(9, 3), head, head + ids(9, 3)[:4] + ids(2, 4), ids(3, 5), head + ids(1, 6)]
    cache = DynamicCache(config=model.config)
    model(torch.tensor([prefix]), past_key_values=cache)
    suffixes = sorted(map(tuple, suffixes))
    forest = plant([suffixes])
    parts = [Part(0, len(forest.tokens), [(layer.keys, layer.values) for layer in cache.layers])]
    positions = [len(prefix) + depth for depth in forest.depths]
    with attending(model, lay_out(forest.paths, parts, torch.device("cpu"), torch.float32)):
        found_TV = model(torch.tensor([forest.tokens]), position_ids=torch.tensor([positions]), use_cache=False).logits[
            0
        ]
    assert len(forest.tokens) < sum(map(len, suffixes)) - 2 * len(head)
    for suffix, path in zip(suffixes, forest.paths, strict=True):
        alone_MV = model(torch.tensor([[*prefix, *suffix]])).logits[0, len(prefix) :]
        torch.testing.assert_close(found_TV[path], alone_MV, atol=2e-5, rtol=1e-4)


def test_only_what_begins_alike_behind_one_prefix_is_shared():
    forest = plant([[(5, 6), (5, 7), (6,)], [(5, 6)]])
    assert forest.tokens == [5, 6, 7, 6, 5, 6]
    assert forest.depths == [0, 1, 1, 0, 0, 1]
    assert forest.bounds == [(0, 4), (4, 6)]
    assert forest.paths == [[0, 1], [0, 2], [3], [4, 5]]
