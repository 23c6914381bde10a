"""What training takes of a device's memory, by formula, and which options fit which card: said where it ran out.

    weights       parameters times 4, 2, 1 (int8) or 0.56 (nf4) bytes; only linear layers are quantized
    LoRA          16 bytes a weight: itself, its gradient and AdamW's two moments, all in float32
    activations   what a layer keeps for its backward pass, a token: inputs of seven LoRA pairs (float32 copies of
                  their own where the model computes in less), of two norms, of attention, and three of the
                  feed-forward layer. With gradient checkpointing one state a layer, and one layer at a time as above
    rest          logits of a chunk of answer tokens, the device's own libraries, and a share for what cannot be packed

An estimate for decoders of LLaMA's kind, from a model's configuration alone: nothing is measured, and it is said so.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText

from ..data.example import DataError
from ..models.load import Checkpoint

CARDS_GIB = (24, 40, 48)
TYPICAL_TOKENS = 1000  # of an example, where none was read yet
_GIB = 1024**3
_LIBRARIES = 0.8 * _GIB
_LOGITS = 5 * 64 * 1024**2  # of `student.CHUNK_BYTES`: kept, their gradient, and what softmax makes on its way
_PACKING = 1.1
_QUANTIZED = {"int8": 1.0, "nf4": 0.56}  # bytes a weight of a linear layer, its scales counted
_SIGNS = ("DefaultCPUAllocator", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "Cannot allocate memory")


class OutOfMemory(DataError):
    """A run did not fit: says what would."""


class Sizes(NamedTuple):
    """The sizes of a model that decide what training it takes; `linear`: weights of linear layers."""

    parameters: int
    linear: int
    layers: int
    hidden: int
    intermediate: int
    width: int  # heads times their size
    key_value_width: int


class Setting(NamedTuple):
    """The options that decide what a step takes."""

    element_size: int  # bytes of a number that the model computes in
    quantization: str | None
    gradient_checkpointing: bool
    batch_size: int
    accumulation: int
    lora_r: int


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that memory ran out, on a GPU or on the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


def sizes_of(checkpoint: Checkpoint, *, trust_remote_code: bool) -> Sizes:
    """Return the sizes of a checkpoint's model; only its configuration is read."""
    config = AutoConfig.from_pretrained(checkpoint.weights, trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config, trust_remote_code=trust_remote_code)
    return sizes_of_model(model)


def sizes_of_model(model: Any) -> Sizes:
    """Return the sizes of a model on whatever device."""
    text = model.config.get_text_config()
    head_size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    key_value_heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return Sizes(
        parameters=sum(weight.numel() for weight in model.parameters()),
        linear=sum(module.weight.numel() for module in linears if module is not model.get_output_embeddings()),
        layers=text.num_hidden_layers, hidden=text.hidden_size, intermediate=text.intermediate_size,
        width=text.num_attention_heads * head_size, key_value_width=key_value_heads * head_size,
    )  # fmt: skip


def kept_bytes(sizes: Sizes, element_size: int) -> int:
    """Return the bytes that one decoder layer keeps of one token for its backward pass."""
    hidden, width, inner = sizes.hidden, sizes.width, sizes.intermediate
    pairs = 4 * (5 * hidden + width + inner) if element_size < 4 else 4 * (2 * hidden + inner)
    norms = 2 * 4 * hidden
    attention = element_size * (2 * width + 2 * sizes.key_value_width)
    return pairs + norms + attention + element_size * 3 * inner


def lora_weights(sizes: Sizes, rank: int) -> int:
    """Return the weights of LoRA pairs on a decoder's seven linear layers."""
    query, key, feed = (sizes.hidden + other for other in (sizes.width, sizes.key_value_width, sizes.intermediate))
    return sizes.layers * rank * (2 * query + 2 * key + 3 * feed)


def training_bytes(sizes: Sizes, setting: Setting, num_tokens: int) -> int:
    """Estimate the device memory of training with examples of up to so many tokens, images among them."""
    tokens, kept = setting.batch_size * num_tokens, kept_bytes(sizes, setting.element_size)
    states = setting.element_size * sizes.hidden * sizes.layers * tokens
    activations = states + kept * tokens if setting.gradient_checkpointing else kept * sizes.layers * tokens
    few_bits = 0 if setting.quantization is None else sizes.linear
    weights = few_bits * _QUANTIZED.get(setting.quantization or "", 0.0)
    weights += (sizes.parameters - few_bits) * setting.element_size
    return round(_LIBRARIES + _PACKING * (weights + 16 * lora_weights(sizes, setting.lora_r) + activations + _LOGITS))


def settings_from(asked: Setting) -> Iterator[Setting]:
    """Yield settings that take ever less, in the order of what they change of a run, beginning with the one asked."""
    for quantization in dict.fromkeys((asked.quantization, asked.quantization or "nf4")):
        for halvings in range(asked.batch_size.bit_length()):
            batch_size = asked.batch_size >> halvings
            accumulation = math.ceil(asked.batch_size * asked.accumulation / batch_size)
            for checkpointing in dict.fromkeys((asked.gradient_checkpointing, True)):
                for element_size in dict.fromkeys((asked.element_size, min(asked.element_size, 2))):
                    yield Setting(element_size, quantization, checkpointing, batch_size, accumulation, asked.lora_r)


def flags(asked: Setting, fits: Setting) -> str:
    """Return the options that turn one setting into another."""
    words = []
    if fits.element_size != asked.element_size:
        words.append("--bf16")
    if fits.gradient_checkpointing != asked.gradient_checkpointing:
        words.append("--gradient-checkpointing")
    if fits.batch_size != asked.batch_size:
        words += [f"--per-device-train-batch-size {fits.batch_size}"]
        words += [f"--gradient-accumulation-steps {fits.accumulation}"]
    if fits.quantization != asked.quantization:
        words.append(f"--quantization {fits.quantization} (and rows made with it)")
    return " ".join(words) or "as asked"


def advice(sizes: Sizes, asked: Setting, num_tokens: int) -> str:
    """Say what fits cards of 24, 40 and 48 GiB, by the formulas above."""
    lines = [
        f"By formula, with examples of up to {num_tokens} tokens, this setting takes about "
        f"{_gib(training_bytes(sizes, asked, num_tokens))}. Estimated to fit:"
    ]
    for card in CARDS_GIB:
        found = next(
            (one for one in settings_from(asked) if training_bytes(sizes, one, num_tokens) <= card * _GIB), None
        )
        told = (
            "no setting of these options"
            if found is None
            else (f"{flags(asked, found)} (about {_gib(training_bytes(sizes, found, num_tokens))})")
        )
        lines.append(f"  a card of {card} GiB: {told}")
    return "\n".join([*lines, "Where the setting should have fit, others may be using the same memory."])


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / _GIB:.1f} GiB"
