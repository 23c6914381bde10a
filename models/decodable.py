"""Which models `behind.py` and `decode.py` hold for: those of whom plain passes and `generate` would say the same.

Text that sees a window, or images through cross-attention, cannot stand behind a shared image, and of attention
functions only one is trusted with a mask of pairs. Settings that a checkpoint brings for generation (a repetition
penalty, suppressed tokens) are another decoding: they are never ignored, and only those known to change no greedy reply
are let through. Families nobody thought of are found by comparing, once a model, distributions behind a shared image
with those of one plain pass. Whoever asks gets a reason, and falls back on `generate` where there is one.
"""

# T tokens of a prompt and behind it, V vocabulary

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin

from .decode import Sequences
from .encode import Encoded, collate
from .forward import to_device
from .positions import backbone, require_full_attention
from .prefix import split_at_image

# Settings that change no greedy reply: given with every call, of sampling or beams, or about form alone.
_HARMLESS = frozenset({
    "bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "max_length", "max_new_tokens",
    "do_sample", "num_beams", "temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff",
    "eta_cutoff", "length_penalty", "early_stopping", "renormalize_logits", "use_cache", "cache_implementation",
    "cache_config", "max_cache_len", "output_attentions", "output_hidden_states", "output_scores", "output_logits",
    "return_dict_in_generate", "compile_config", "disable_compile", "prefill_chunk_size", "transformers_version",
    "_from_model_config",
})  # fmt: skip
_NEUTRAL = {
    "repetition_penalty": 1, "encoder_repetition_penalty": 1, "guidance_scale": 1, "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0, "min_length": 0, "min_new_tokens": 0, "num_return_sequences": 1,
    "num_beam_groups": 1, "diversity_penalty": 0, "penalty_alpha": 0,
}  # fmt: skip

_CHECKED_TOKENS = 3
_TOLERANCE = 1e-4  # total variation in float32; mistakes in positions or masks are of order one
_ROUNDED_TOLERANCE = 0.1  # in half precision and fewer bits

_checked: WeakKeyDictionary[Any, dict[bool, str | None]] = WeakKeyDictionary()  # by model: with pictures, and without


def cannot_share(model: Any) -> str | None:
    """Return why texts cannot stand behind one image of a model, or None: each must see all before it, by a mask.

    Scaled dot-product attention alone is trusted with such a mask: others read it differently, or not at all.
    """
    config = backbone(model).config.get_text_config()
    try:
        require_full_attention(config)
    except ValueError as error:
        return str(error)
    attention = config._attn_implementation
    return None if attention == "sdpa" else f"expected attention sdpa, found {attention}"


def reason_against(model: Any, rows: Sequence[Encoded], *, pad_id: int) -> str | None:
    """Return why `greedy` might not say what the model's own `generate` does, or None."""
    return _reason_in_settings(model) or reason_apart(model, rows, pad_id=pad_id)


def reason_apart(model: Any, rows: Sequence[Encoded], *, pad_id: int) -> str | None:
    """Return why texts have to run apart, each with its own image, or None where `behind.py` gives the same.

    Distributions are compared once a model, for the first text with a picture and the first without.
    """
    reason = cannot_share(model)
    if reason is not None:
        return reason
    if any(len(split_at_image(row)[1]) <= max(1, len(row.answer_ids)) for row in rows):
        return "expected some tokens behind the last image of every prompt, found a prompt that ends with it"
    checked = _checked.setdefault(backbone(model), {})
    for row in {bool(row.pictures): row for row in reversed(rows)}.values():
        shown = bool(row.pictures)
        if shown not in checked:
            checked[shown] = _reason_in_logits(model, row, pad_id)
        if checked[shown] is not None:
            return checked[shown]
    return None


def _reason_in_settings(model: Any) -> str | None:
    """Return which generation settings, or whose own `generate`, would make other replies."""
    whole = getattr(model, "module", model)
    whole = whole.get_base_model() if hasattr(whole, "get_base_model") else whole
    if type(whole).generate is not GenerationMixin.generate:
        return f"{type(whole).__name__} has its own way to generate"
    changing = changing_settings(whole.generation_config or GenerationConfig())
    found = ", ".join(f"{name} {value}" for name, value in sorted(changing.items()))
    return f"its generation settings change what is likeliest ({found})" if found else None


def changing_settings(config: GenerationConfig) -> dict[str, Any]:
    """Return the generation settings that make, or may make, other replies than plain greedy decoding, by name."""
    return {
        name: value
        for name, value in config.to_diff_dict().items()
        if name not in _HARMLESS and value is not None and value is not False and value != _NEUTRAL.get(name)
    }


@torch.inference_mode()
def _reason_in_logits(model: Any, row: Encoded, pad_id: int) -> str | None:
    """Return how far some distributions are from those of one plain pass, where that is more than rounding."""
    try:
        ours_TV, tokens = _stepwise_logits(model, row, pad_id)
        theirs_TV = _plain_logits(model, row, tokens, pad_id)
    except torch.OutOfMemoryError:
        raise
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        return f"the model cannot be run so: {' '.join(str(error).split())[:200]}"
    ours_TV, theirs_TV = (logits_TV.float().softmax(-1).nan_to_num() for logits_TV in (ours_TV, theirs_TV))
    variation = float((ours_TV - theirs_TV).abs().sum(-1).max()) / 2  # none, where a model has diverged
    exact = next(model.parameters()).dtype == torch.float32
    if variation <= (_TOLERANCE if exact else _ROUNDED_TOLERANCE):
        return None
    return f"distributions behind a shared image differ from a plain pass by total variation {variation:.2g}"


def _stepwise_logits(model: Any, row: Encoded, pad_id: int) -> tuple[Tensor, list[int]]:
    """Return the logits [T, V] of the first tokens behind a prompt, decoded, and those tokens, the last aside."""
    batch = Sequences(model, [row], pad_id=pad_id)
    found, tokens = [batch.logits_NV], []
    while len(found) < _CHECKED_TOKENS:
        token_N = found[-1].float().argmax(-1)
        tokens.append(int(token_N))
        batch.advance(token_N)
        found.append(batch.logits_NV)
    return torch.cat(found), tokens


def _plain_logits(model: Any, row: Encoded, tokens: Sequence[int], pad_id: int) -> Tensor:
    """Return the logits [T, V] of the token behind a prompt, and of those behind given ones, of one pass."""
    others = {
        name: torch.cat([value, value.new_zeros(len(tokens), *value.shape[1:])])
        for name, value in row.token_inputs.items()
    }
    whole = Encoded((), (), (*row.input_ids, *tokens), row.pictures, others)
    weights = next(model.parameters())
    inputs = to_device(collate([whole], pad_id=pad_id, side="right"), weights.device, weights.dtype)
    logits_1TV: Tensor = model(**inputs, use_cache=False, logits_to_keep=len(tokens) + 1).logits
    return logits_1TV[0]
