"""Attend to a shared prefix and to one's own suffix in two parts, merged by log-sum-exp; the prefix is never copied.

Tokens of all suffixes lie end to end on one axis, grouped by the prefix they continue, so that linear layers run no
padding and nothing twice (`forest.py`). Every query sees all of its prefix (one call, without a mask) and the tokens of
its own suffix up to itself (one causal call, suffixes as rows; a token shared by several is taken from one of them).
Softmax over all is the mean of the parts, weighted by the exponentials of their log-sum-exps: exact, as in flash
attention's own tiles. The fused kernels of each device return the log-sum-exp that `scaled_dot_product_attention` keeps
to itself. Registered with transformers under one name; whoever runs a model under `attending` gives the layout, and
models outside it are untouched. Which tokens make a suffix is `prefix.py`'s.
"""

# T tokens of all suffixes, t of a part, P of a prefix, n rows of S tokens of which Q ask, H heads, h key-value heads,
# D head size

import bisect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

NAME = "viker_two_part"

Layers = Sequence[tuple[Tensor, Tensor]]  # keys and values [1, h, P, D] of every layer


class Part(NamedTuple):
    """The tokens [start, stop) and keys and values that all of them see."""

    start: int
    stop: int
    layers: Layers


class Rows(NamedTuple):
    """Paths side by side: their tokens, those at their ends that ask, and what each may not see.

    `hidden_n1QS` is 0 or -inf, and None where every row asks with all its tokens: then it is causal.
    """

    key_nS: Tensor
    query_nQ: Tensor
    hidden_n1QS: Tensor | None


@dataclass(frozen=True, slots=True)
class Layout:
    """Tokens end to end: what parts of them see, rows of tokens that see each other, each token's place in all rows."""

    parts: Sequence[Part]
    rows: Sequence[Rows]
    place_T: Tensor


def lay_out(paths: Sequence[Sequence[int]], parts: Sequence[Part], device: torch.device, dtype: torch.dtype) -> Layout:
    """Lay out T tokens, of which each path is a sequence and any two paths are alike up to where they part.

    Tokens are numbered as paths bring them (`forest.py`), and ask in the path that does, so that each row asks with its
    end. Rows share a call where their ends have lengths between the same powers of two.
    """
    num_asked = 0
    by_size: dict[int, list[tuple[Sequence[int], int]]] = {}
    for path in paths:
        new = len(path) - bisect.bisect_left(path, num_asked)
        num_asked += new
        if new:
            by_size.setdefault(new.bit_length(), []).append((path, new))
    rows, places = [], torch.zeros(num_asked, dtype=torch.long)
    first = 0
    for _, members in sorted(by_size.items()):
        made = _side_by_side(members, dtype)
        column_Q = torch.arange(made.query_nQ.shape[1])
        real_nQ = column_Q < torch.tensor([new for _, new in members])[:, None]
        places[made.query_nQ[real_nQ]] = first + real_nQ.flatten().nonzero()[:, 0]
        first += made.query_nQ.numel()
        hidden_n1QS = None if made.hidden_n1QS is None else made.hidden_n1QS.to(device)
        rows.append(Rows(made.key_nS.to(device), made.query_nQ.to(device), hidden_n1QS))
    return Layout(parts, rows, places.to(device))


def _side_by_side(members: Sequence[tuple[Sequence[int], int]], dtype: torch.dtype) -> Rows:
    """Return rows of paths and how many tokens of each ask; padded places repeat the last, for nobody to see or ask."""
    most_keys, most_queries = max(len(path) for path, _ in members), max(new for _, new in members)
    keys = [[*path, *[path[-1]] * (most_keys - len(path))] for path, _ in members]
    queries = [[*path[-new:], *[path[-1]] * (most_queries - new)] for path, new in members]
    hidden_n1QS = None
    if any(new < len(path) for path, new in members):
        before_n = torch.tensor([len(path) - new for path, new in members])
        last_nQ = before_n[:, None] + torch.arange(most_queries)
        later_nQS = torch.arange(most_keys) > last_nQ[:, :, None]
        hidden_n1QS = torch.zeros(later_nQS.shape, dtype=dtype).masked_fill(later_nQS, -torch.inf)[:, None]
    return Rows(torch.tensor(keys), torch.tensor(queries), hidden_n1QS)


@contextmanager
def attending(model: Any, layout: Layout) -> Iterator[None]:
    """Let a model's text layers attend in two parts while the block runs."""
    config = model.config.get_text_config()
    before, token = config._attn_implementation, _layout.set(layout)
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before
        _layout.reset(token)


_layout: ContextVar[Layout] = ContextVar("layout")


def _attend_in_two_parts(
    module: Any, query_1HTD: Tensor, key_1hTD: Tensor, value_1hTD: Tensor, *_: Any, scaling: float, **__: Any
) -> tuple[Tensor, None]:
    """Return the attention output [1, T, H, D] in the form transformers asks of an attention function."""
    layout = _layout.get()
    query_THD, key_ThD, value_ThD = (part[0].transpose(0, 1) for part in (query_1HTD, key_1hTD, value_1hTD))
    out_THD, lse_TH = _own_part(query_THD, key_ThD, value_ThD, layout, scaling)
    for start, stop, layers in layout.parts:
        keys_1hPD, values_1hPD = layers[module.layer_idx]
        seen_tHD, seen_lse_tH = _prefix_part(query_1HTD[:, :, start:stop], keys_1hPD, values_1hPD, scaling)
        weight_tH = torch.sigmoid(seen_lse_tH - lse_TH[start:stop])
        out_THD[start:stop].lerp_(seen_tHD, weight_tH.unsqueeze(-1).to(out_THD.dtype))
    return out_THD[None], None


def _prefix_part(query_1HTD: Tensor, key_1hPD: Tensor, value_1hPD: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """Attend to all of a prefix; the query heads of one key-value head are folded into the token axis, not copied."""
    _, H, T, D = query_1HTD.shape
    folded = query_1HTD.reshape(1, key_1hPD.shape[1], -1, D)
    out, lse = _attend(folded, key_1hPD, value_1hPD, scaling)
    return out.reshape(H, T, D).transpose(0, 1), lse.reshape(H, T).transpose(0, 1)


def _own_part(
    query_THD: Tensor, key_ThD: Tensor, value_ThD: Tensor, layout: Layout, scaling: float
) -> tuple[Tensor, Tensor]:
    """Attend inside each row, and return every token's output [T, H, D] and log-sum-exp [T, H]."""
    H, D = query_THD.shape[1:]
    copies = H // key_ThD.shape[1]
    outs, lses = [], []
    for key_nS, query_nQ, hidden_n1QS in layout.rows:
        query_nHQD = query_THD[query_nQ].transpose(1, 2)
        key_nhSD, value_nhSD = (part_ThD[key_nS].transpose(1, 2) for part_ThD in (key_ThD, value_ThD))
        if copies > 1:
            key_nhSD, value_nhSD = (part.repeat_interleave(copies, 1) for part in (key_nhSD, value_nhSD))
        if hidden_n1QS is None:
            out_nHQD, lse_nHQ = _attend(query_nHQD, key_nhSD, value_nhSD, scaling, causal=True)
        else:
            out_nHQD, lse_nHQ = _attend(query_nHQD, key_nhSD, value_nhSD, scaling, hidden_n1QS)
        outs.append(out_nHQD.transpose(1, 2).reshape(-1, H, D))
        lses.append(lse_nHQ.transpose(1, 2).reshape(-1, H))
    return torch.cat(outs)[layout.place_T], torch.cat(lses)[layout.place_T]


def _attend(
    query: Tensor, key: Tensor, value: Tensor, scaling: float, hidden: Tensor | None = None, *, causal: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the output and its log-sum-exp [.., T] in float32, by the fused kernel of the device and dtype."""
    if query.device.type == "cpu":
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        out, lse = kernel(query, key, value, 0.0, causal, attn_mask=hidden, scale=scaling)
    elif query.dtype == torch.float32 or hidden is not None:
        kernel = torch.ops.aten._scaled_dot_product_efficient_attention
        bias = None if hidden is None else hidden.expand(-1, query.shape[1], -1, -1)
        out, lse, *_ = kernel(query, key, value, bias, True, 0.0, causal, scale=scaling)
    else:
        kernel = torch.ops.aten._scaled_dot_product_flash_attention
        out, lse, *_ = kernel(query, key, value, 0.0, causal, False, scale=scaling)
    return out, lse[..., : query.shape[-2]].float()


AttentionInterface.register(NAME, torch.compiler.disable(_attend_in_two_parts))
AttentionMaskInterface.register(NAME, lambda *_, **__: None)
