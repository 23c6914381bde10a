"""Which positions follow an image, and whose text can follow a shared one at all.

Most families count tokens. Qwen2-VL and its kin place an image's tokens on a grid and go on at the longer side of it
(M-RoPE), so what follows is earlier than its token count says, on all three axes alike; positions by count are silently
wrong. Their own rope index says by how much, when the image runs. Text that sees a window of what came before, or sees
images through cross-attention, cannot follow a cached image the way `prefix.py` has it: that is refused here, since a
short example (the engine's self-check) may lie within the window. Running the model is `prefix.py`'s.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

RopeIndex = Callable[..., tuple[Tensor, Tensor]]  # ids [B, T] and what is known of them: positions [3, B, T] and shifts


def backbone(model: Any) -> Any:
    """Return the part of a model that gives hidden states, under LoRA and a wrapper for parallel training too."""
    whole = getattr(model, "module", model)
    whole = whole.get_base_model() if hasattr(whole, "get_base_model") else whole
    return whole.model


def rope_index_of(model: Any) -> RopeIndex | None:
    """Return the model's own way to positions, where it does not count tokens."""
    index: RopeIndex | None = getattr(backbone(model), "get_rope_index", None)
    return index


def forget_shift(model: Any) -> None:
    """Forget what earlier images did to positions; a prefix without image would be told of them."""
    core = backbone(model)
    if hasattr(core, "rope_deltas"):
        core.rope_deltas = None


def position_shift(model: Any) -> int:
    """Return how far the next token's position is ahead of its count, for the one sequence that just ran."""
    shift = getattr(backbone(model), "rope_deltas", None)
    return 0 if shift is None else int(shift.max())


def require_full_attention(config: Any) -> None:
    """Raise `ValueError` where some text layer sees less, or other things, than all tokens before it.

    Args:
        config: the text part's.
    """
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = None if hasattr(config, "layer_types") else getattr(config, "sliding_window", None)
    if kinds != {"full_attention"} or window is not None:
        found = ", ".join(sorted(kinds - {"full_attention"})) or f"a window of {window}"
        raise ValueError(f"expected text layers that see all tokens before them, found {found}")
    if getattr(config, "cross_attention_layers", None):
        raise ValueError("expected images among the tokens, found cross-attention layers")
