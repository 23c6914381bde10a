"""Which parts of a model learn: LoRA on its language-model linears, named by exact module path; where its tower is.

PEFT matches targets by suffix, so the usual `q_proj, v_proj` also adapts the vision tower (the official MLLMU code
does); a full path can match nothing else.
"""

from pathlib import Path
from typing import Any

from torch import nn

from ..data.example import DataError


def language_linears(model: Any) -> list[str]:
    """Return the full paths of the linear layers inside a model's text decoder (not its head, tower or projector)."""
    decoder = model.get_decoder()
    inside = {id(module) for module in decoder.modules() if isinstance(module, nn.Linear)}
    paths = [name for name, module in model.named_modules() if id(module) in inside]
    if not paths:
        raise DataError(
            f"{type(model).__name__}: expected linear layers in its text decoder, found none. LoRA cannot be added."
        )
    return paths


def vision_tower(model: Any) -> Any:
    """Return the part of a model that sees, whatever its family calls it."""
    tower = model.get_encoder(modality="image")
    if tower is model or tower is model.base_model:
        raise DataError(
            f"{type(model).__name__}: expected a vision tower, found none. Train all of it: --train-vision."
        )
    return tower


def add_lora(model: Any, *, rank: int, alpha: int, dropout: float, base: Path) -> Any:
    """Return the model with fresh LoRA weights, the only trainable ones; `base` is recorded as the adapter's base."""
    from peft import LoraConfig, get_peft_model

    model.name_or_path = str(base)
    model.config._name_or_path = str(base)
    config = LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=language_linears(model), bias="none",
        base_model_name_or_path=str(base), task_type="CAUSAL_LM",
    )  # fmt: skip
    return get_peft_model(model, config)
