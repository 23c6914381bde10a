"""Which adapters vLLM runs as they are, beside their base: LoRA on linear layers of the language model, and no other.

vLLM leaves out LoRA weights on a vision tower or a projector, with a warning that nobody sees, and would then speak as
another model than the one that was asked for. So the names of an adapter's weights are held against the model's own
layers, built without any weights; what vLLM has no kernel for (DoRA, trained biases and the like) it refuses itself,
when it reads the adapter.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from ..data.artefact import read_json
from ..data.example import DataError
from .load import Checkpoint
from .lora import language_linears
from .tensor_files import open_tensors

_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # those vLLM reserves room for
_PREFIX = "base_model.model."
_SUFFIXES = (".lora_A.weight", ".lora_B.weight")
_SHOWN = 3


def lora_settings(adapter: Path) -> dict[str, Any]:
    """Return vLLM's arguments that make room for an adapter.

    Raises:
        DataError: its rank is larger than vLLM runs.
    """
    content = read_json(adapter / "adapter_config.json")
    rank = max([int(content.get("r") or 0), *map(int, (content.get("rank_pattern") or {}).values())])
    room = next((size for size in _RANKS if size >= rank), None)
    if room is None:
        raise DataError(f"{adapter}: expected LoRA of rank {_RANKS[-1]} or less, found {rank}. {_merge_first(adapter)}")
    return {"enable_lora": True, "max_loras": 1, "max_lora_rank": room}


def require_language_only(checkpoint: Checkpoint, *, trust_remote_code: bool) -> None:
    """Raise `DataError` where an adapter changes more than linear layers of its model's language part."""
    adapter = checkpoint.adapter
    assert adapter is not None, "a checkpoint without an adapter has nothing to refuse"
    linears = _language_linears(checkpoint.weights, trust_remote_code)
    with open_tensors(adapter / "adapter_model.safetensors") as tensors:
        names = list(tensors.keys())
    others = sorted(name for name in names if _module(name) not in linears)
    if others:
        shown = ", ".join(others[:_SHOWN]) + (" ..." if len(others) > _SHOWN else "")
        raise DataError(
            f"{adapter}: expected LoRA weights on linear layers of the language model alone, which is what vLLM runs "
            f"beside a base, found {len(others)} others ({shown}). {_merge_first(adapter)}"
        )


def _language_linears(weights: Path, trust_remote_code: bool) -> set[str]:
    config = AutoConfig.from_pretrained(weights, trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config, trust_remote_code=trust_remote_code)
    return set(language_linears(model))


def _module(name: str) -> str | None:
    """Return the path of the layer that a tensor of an adapter changes, None for one that is no LoRA matrix."""
    suffix = next((suffix for suffix in _SUFFIXES if name.endswith(suffix)), None)
    return None if suffix is None else name.removeprefix(_PREFIX).removesuffix(suffix)


def _merge_first(adapter: Path) -> str:
    return (
        f"Merge it first (`viker adapter export --merge {adapter}` writes a whole model), or use --engine transformers."
    )
