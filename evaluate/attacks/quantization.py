"""Fewer bits: does rounding the weights undo what training changed in them?

Unlearning moves weights a little, and rounding may move them back. An adapter is merged first: its weights beside a
rounded base would never be rounded themselves. int8 is torch's dynamic quantization, on the CPU (weights a channel,
activations a tensor, in the linear layers of the text model), the same on every machine; nf4 is bitsandbytes', loaded
as `models/quantize.py` does from a merged checkpoint.
"""

import gc
import importlib.util
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ...data.example import DataError
from ...models.encode import Encoder
from ...models.load import DTYPES, Checkpoint, Loaded, load_model
from ...models.lora import language_linears
from ...models.quantize import stored_quantization

_NO_BITSANDBYTES = "expected the package bitsandbytes, found none. Install it (pip install bitsandbytes)."


def reason_against_int8(device: str) -> str | None:
    """Return why int8 is no attack of `all` here; None where it is."""
    if torch.device(device).type != "cpu":
        return f"expected --device cpu, on which it computes, found {device}. Evaluate with --device cpu for it."
    return None


def reason_against_nf4(device: str) -> str | None:
    """Return why nf4 cannot be made here; None where it can.

    On a CPU bitsandbytes takes some widths only (0.50: multiples of 64), and fails on others.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        return _NO_BITSANDBYTES
    if torch.device(device).type != "cuda":
        return f"expected --device cuda, found {device}. Evaluate on a GPU for it."
    return None


def merge_adapter(loaded: Loaded) -> Any:
    """Return a model with its adapter inside its weights; the loaded one is used up.

    Raises:
        DataError: its weights are stored in few bits, where merging would round twice.
    """
    stored = stored_quantization(loaded.checkpoint.weights)
    if stored is not None:
        raise DataError(
            f"{loaded.checkpoint.weights}: expected whole weights to merge into, found them stored in {stored}. "
            "Attack the model that it was made from."
        )
    return loaded.model.merge_and_unload() if hasattr(loaded.model, "merge_and_unload") else loaded.model


def in_int8(load: Callable[[], Loaded]) -> tuple[Any, Encoder]:
    """Return a model whose text layers compute in 8 bits on the CPU, adapter included, and its encoder.

    Raises:
        DataError: this torch has no dynamic quantization any more.
    """
    loaded = load()
    model = merge_adapter(loaded).to("cpu", torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated in favor of a package that is not installed with torch
        try:
            from torch.ao.quantization import per_channel_dynamic_qconfig, quantize_dynamic
        except ImportError as error:
            raise DataError(
                f"attack int8: expected torch.ao.quantization, found torch {torch.__version__} without it. "
                "Install an earlier torch, or leave the attack out."
            ) from error
        layers = dict.fromkeys(language_linears(model), per_channel_dynamic_qconfig)
        quantize_dynamic(model, layers, dtype=torch.qint8, inplace=True)
    return model.eval(), loaded.encoder


def in_nf4(load: Callable[[], Loaded], folder: Path, *, trust_remote_code: bool = False) -> tuple[Any, Encoder]:
    """Return a model in 4 bits, adapter included, and its encoder; the merged checkpoint is written to `folder`.

    The whole weights are freed before the 4-bit ones are loaded.

    Raises:
        DataError: bitsandbytes is not installed.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise DataError(f"attack nf4: {_NO_BITSANDBYTES}")
    loaded = load()
    encoder, device, dtype = loaded.encoder, str(loaded.device), next(loaded.model.parameters()).dtype
    model = merge_adapter(loaded)
    attention = str(model.config._attn_implementation)
    model.save_pretrained(folder)
    del model, loaded
    gc.collect()
    torch.cuda.empty_cache()
    name = next(name for name, value in DTYPES.items() if value == dtype)
    few = load_model(
        Checkpoint(str(folder), folder, folder), dtype=name, device=device, attention=attention, quantization="nf4",
        trust_remote_code=trust_remote_code,
    )  # fmt: skip
    return few, encoder
