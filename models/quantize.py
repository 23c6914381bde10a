"""A teacher's linear layers in 8 or 4 bits, by bitsandbytes, for a device that its 16-bit weights do not fit.

Rows differ from those of the full weights by far more than rounding, so what a teacher was loaded in is part of a
cache's fingerprint; a checkpoint stored in few bits is named there too. Everything but linear layers, and the output
layer, stays in the compute dtype, as transformers has it. In 8 bits, activations that stand out are found over a whole
batch, so rows depend a little on what shares it. Loading is `load.py`'s.
"""

import importlib.util
import json
from pathlib import Path
from typing import Any

import torch
from transformers import BitsAndBytesConfig

from ..data.example import DataError

QUANTIZATIONS = ("int8", "nf4")


def stored_quantization(directory: Path) -> str | None:
    """Return what a checkpoint's weights are stored in, if in few bits: int8, nf4, or the name of a method."""
    try:
        settings = json.loads((directory / "config.json").read_text(encoding="utf-8")).get("quantization_config")
    except (OSError, ValueError, AttributeError):
        return None  # loading says what is wrong with the file
    if not isinstance(settings, dict):
        return None
    method = str(settings.get("quant_method", "unknown"))
    if method != "bitsandbytes":
        return method
    return "int8" if settings.get("load_in_8bit") else str(settings.get("bnb_4bit_quant_type", "fp4"))


def quantization_of(directory: Path, asked: str | None) -> str | None:
    """Return what a teacher computes in, as its fingerprint names it; None for whole weights.

    Raises:
        DataError: weights that are stored in few bits are asked for in others, or the name is not known.
    """
    stored = stored_quantization(directory)
    if asked is None or asked == stored:
        return stored
    if stored is not None:
        raise DataError(
            f"{directory / 'config.json'}: expected whole weights to load in {asked}, found them stored in {stored}. "
            "Leave out --quantization."
        )
    if asked not in QUANTIZATIONS:
        raise DataError(f"{directory}: expected weights stored in {asked!r}, found whole ones. Name the model's own.")
    return asked


def loading_settings(directory: Path, asked: str | None, *, dtype: torch.dtype, device: str) -> dict[str, Any]:
    """Return what `from_pretrained` is told to load linear layers in few bits; empty for whole weights.

    Raises:
        DataError: as above, or bitsandbytes is needed and not installed.
    """
    bits = quantization_of(directory, asked)
    if bits is None:
        return {}
    placed = {"device_map": {"": device}}  # weights in few bits are made where they stay
    if bits == stored_quantization(directory):
        return placed
    if importlib.util.find_spec("bitsandbytes") is None:
        raise DataError(
            f"--quantization {bits}: expected the package bitsandbytes, found none. Install it "
            "(pip install bitsandbytes), or leave the option out."
        )
    if bits == "int8":
        return {**placed, "quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=bits, bnb_4bit_compute_dtype=dtype)
    return {**placed, "quantization_config": config}
