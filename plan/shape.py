"""The sizes of a model by building it from its configuration on torch's meta device: no weights are read or allocated.

The class itself says which linear layers it has, so that grouped queries, gated feed-forward layers and projectors
need no list of families. What stands beside the language model and the output layer is counted as vision, and as run
once a patch; a projector that merges patches first is counted too high by that little.
"""

from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText

from ..models.load import Checkpoint
from .cost import Shape, Tower


def shape_of(checkpoint: Checkpoint, *, trust_remote_code: bool) -> Shape:
    """Return the sizes of a checkpoint's model; only its configuration is read."""
    config = AutoConfig.from_pretrained(checkpoint.weights, trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config, trust_remote_code=trust_remote_code)
    return shape_of_model(model)


def shape_of_model(model: Any) -> Shape:
    """Return the sizes of a model on whatever device."""
    config, text = model.config.get_text_config(), model.get_decoder()
    head = model.get_output_embeddings()
    inside = set(text.modules()) | {head}
    beside = [module for module in model.modules() if module not in inside]
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    key_value_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return Shape(
        vision=_vision(model.config, beside),
        text=Tower(_linear(text.modules()), config.num_hidden_layers, config.num_attention_heads * head_size),
        patch=_patch(beside),
        tile_patches=_tile_patches(model.config),
        key_value_width=key_value_heads * head_size,
        hidden=config.hidden_size,
        intermediate=config.intermediate_size,
        vocab_size=config.vocab_size,
        parameters=sum(weight.numel() for weight in model.parameters()),
    )


def _vision(config: Any, modules: list[nn.Module]) -> Tower:
    vision = getattr(config, "vision_config", None)
    width = _first(vision, "embed_dim", "hidden_size")  # Qwen2-VL names the width of what follows hidden_size
    return Tower(_linear(modules), _first(vision, "num_hidden_layers", "depth"), width)


def _linear(modules: Any) -> int:
    """Return the weights that every token meets: those of linear layers, and of convolutions without overlap."""
    kinds = (nn.Linear, nn.Conv2d, nn.Conv3d)
    return sum(module.weight.numel() for module in modules if isinstance(module, kinds))


def _patch(modules: list[nn.Module]) -> int:
    sizes = [
        module.weight[0].numel()
        for module in modules
        if isinstance(module, nn.Conv2d | nn.Conv3d) and module.kernel_size[0] > 1
    ]
    assert sizes, "expected a vision tower that cuts images into patches by a convolution"
    return sizes[0]


def _tile_patches(config: Any) -> int:
    vision = getattr(config, "vision_config", None)
    size, patch = _side(getattr(vision, "image_size", None)), _side(getattr(vision, "patch_size", None))
    return (size // patch) ** 2 if size and patch else 2**62


def _side(value: Any) -> Any:
    """Return a side length; some families give height and width."""
    return value[0] if isinstance(value, list | tuple) else value


def _first(config: Any, *names: str) -> int:
    return next(int(getattr(config, name)) for name in names if getattr(config, name, None))
