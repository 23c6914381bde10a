"""Attend to a shared prefix and to one's own suffix in two parts, merged by log-sum-exp; the prefix is never copied.

Suffixes lie end to end on one token axis, grouped by the prefix they continue, so that linear layers run no padding.
Every query sees all of its prefix (one call a segment of it, without a mask) and the tokens of its own suffix up to
itself (one causal call, suffixes as rows). Softmax over all is the mean of the parts, weighted by the exponentials of
their log-sum-exps: exact, as in flash attention's own tiles. The fused kernels of each device return the log-sum-exp
that `scaled_dot_product_attention` keeps to itself. Registered with transformers under one name; whoever runs a model
under `attending` gives the layout, and models outside it are untouched. Which tokens make a suffix is `prefix.py`'s.
"""

# T tokens of all suffixes, P of a prefix, n suffixes, S the longest, H heads, h key-value heads, D head size

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


@dataclass(frozen=True, slots=True)
class Layout:
    """Suffixes end to end: what parts of them see, and each token's place in rows of suffixes.

    `captured` collects the suffixes' own keys and values [1, h, T, D], a pair a layer, where it is a list.
    """

    parts: Sequence[Part]
    token_nS: Tensor
    row_T: Tensor
    column_T: Tensor
    captured: list[tuple[Tensor, Tensor]] | None = None


def lay_out(
    lengths: Sequence[int],
    parts: Sequence[Part],
    device: torch.device,
    captured: list[tuple[Tensor, Tensor]] | None = None,
) -> Layout:
    """Lay suffixes of the given lengths (each at least 1) end to end."""
    length_n = torch.tensor(lengths)
    first_n = length_n.cumsum(0) - length_n
    token_nS = first_n[:, None] + torch.arange(int(length_n.max())).clamp_max(length_n[:, None] - 1)
    row_T = torch.repeat_interleave(torch.arange(len(lengths)), length_n)
    column_T = torch.arange(len(row_T)) - first_n[row_T]
    return Layout(parts, token_nS.to(device), row_T.to(device), column_T.to(device), captured)


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
    if layout.captured is not None:
        layout.captured.append((key_1hTD, value_1hTD))
    out_1HTD, lse_1HT = _own_part(query_1HTD, key_1hTD, value_1hTD, layout, scaling)
    for start, stop, layers in layout.parts:
        part = slice(start, stop)
        keys_1hPD, values_1hPD = layers[module.layer_idx]
        seen_1HTD, seen_lse_1HT = _prefix_part(query_1HTD[:, :, part], keys_1hPD, values_1hPD, scaling)
        weight_1HT1 = torch.sigmoid(seen_lse_1HT - lse_1HT[:, :, part]).unsqueeze(-1).to(out_1HTD.dtype)
        out_1HTD[:, :, part].lerp_(seen_1HTD, weight_1HT1)
        lse_1HT[:, :, part] = torch.logaddexp(lse_1HT[:, :, part], seen_lse_1HT)
    return out_1HTD.transpose(1, 2), None


def _prefix_part(query_1HTD: Tensor, key_1hPD: Tensor, value_1hPD: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """Attend to all of a prefix; the query heads of one key-value head are folded into the token axis, not copied."""
    _, H, T, D = query_1HTD.shape
    folded = query_1HTD.reshape(1, key_1hPD.shape[1], -1, D)
    out, lse = _attend(folded, key_1hPD, value_1hPD, scaling, causal=False)
    return out.reshape(1, H, T, D), lse.reshape(1, H, T)


def _own_part(
    query_1HTD: Tensor, key_1hTD: Tensor, value_1hTD: Tensor, layout: Layout, scaling: float
) -> tuple[Tensor, Tensor]:
    """Attend causally inside each suffix; padded places repeat a suffix's last token, which nothing before it sees."""
    copies = query_1HTD.shape[1] // key_1hTD.shape[1]
    query_nHSD, key_nHSD, value_nHSD = (
        (part.repeat_interleave(copies, 1) if copies > 1 and part is not query_1HTD else part)[0][
            :, layout.token_nS
        ].transpose(0, 1)
        for part in (query_1HTD, key_1hTD, value_1hTD)
    )
    out_nHSD, lse_nHS = _attend(query_nHSD, key_nHSD, value_nHSD, scaling, causal=True)
    out_THD, lse_TH = out_nHSD[layout.row_T, :, layout.column_T], lse_nHS[layout.row_T, :, layout.column_T]
    return out_THD.transpose(0, 1)[None].contiguous(), lse_TH.transpose(0, 1)[None].contiguous()


def _attend(query: Tensor, key: Tensor, value: Tensor, scaling: float, *, causal: bool) -> tuple[Tensor, Tensor]:
    """Return the output and its log-sum-exp [.., T] in float32, by the fused kernel of the device and dtype."""
    if query.device.type == "cpu":
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        out, lse = kernel(query, key, value, 0.0, causal, scale=scaling)
    elif query.dtype == torch.float32:
        kernel = torch.ops.aten._scaled_dot_product_efficient_attention
        out, lse, *_ = kernel(query, key, value, None, True, 0.0, causal, scale=scaling)
    else:
        kernel = torch.ops.aten._scaled_dot_product_flash_attention
        out, lse, *_ = kernel(query, key, value, 0.0, causal, False, scale=scaling)
    return out, lse[..., : query.shape[-2]].float()


AttentionInterface.register(NAME, _attend_in_two_parts)
AttentionMaskInterface.register(NAME, lambda *_, **__: None)
