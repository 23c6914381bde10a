"""A tiny real model of every family: transformers' own classes from config, tokenizer and processor saved beside.

Sizes alone differ from published checkpoints (widths are multiples of 64, which 4-bit kernels ask for); chat templates
are theirs (`chat_templates.py`). Weights are sharpened,
so that attention, positions and images move the distributions: a fresh model is near uniform and would hide mistakes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from chat_templates import TEMPLATES
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

TEXTS = ["Where was this person born?", "The person was born in Lisbon and works as a baker.", "user assistant\n\n"]
HIDDEN = 64
CONTEXT_LENGTH = 1024
SHARPNESS = {
    "lm_head": 16.0,
    "vis": 2.5,
    "merger": 3.0,
    "projector": 4.0,
    "connector": 4.0,
    "embed_tokens": 4.0,
    "language_model": 4.0,
    "text_model": 4.0,
}
NEED_TORCHVISION = ("qwen2_vl", "qwen2_5_vl", "smolvlm", "internvl")


def build(family: str, directory: Path) -> None:
    """Write a family's tiny model and processor to a directory."""
    torch.manual_seed(0)
    model, processor = _BUILDERS[family]()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if not weight.any() and ("gate" in name or "projection_weight" in name):
                weight.normal_()  # fresh, they let nothing of an image through
            if weight.dim() > 1:
                weight.mul_(next((factor for part, factor in SHARPNESS.items() if part in name), 1.0))
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    model.save_pretrained(directory)
    processor.chat_template = TEMPLATES[family]
    processor.save_pretrained(directory)


def tokenizer_of(
    begin: str | None, end: str, pad: str, others: Iterable[str], *, adds_begin: bool = False, **named: str
) -> Any:
    """Train a byte-level BPE tokenizer; `named` are special tokens with a name, `others` those without."""
    special = [*([begin] if begin else []), end, pad, *named.values(), *others]
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=256 + len(special) + 40, special_tokens=list(dict.fromkeys(special)), show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    core.train_from_iterator(TEXTS * 4, trainer)
    if adds_begin:
        core.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", special_tokens=[(begin, core.token_to_id(begin))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, model_max_length=CONTEXT_LENGTH, model_specific_special_tokens=named, eos_token=end,
        pad_token=pad, **({"bos_token": begin} if begin else {}), additional_special_tokens=list(others),
    )  # fmt: skip


def text_settings(tokenizer: Any, **others: Any) -> dict[str, Any]:
    """Return the settings of a text model that all families name alike."""
    return {
        "vocab_size": len(tokenizer), "hidden_size": HIDDEN, "intermediate_size": 128, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": CONTEXT_LENGTH,
        "pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id, "tie_word_embeddings": False, **others,
    }  # fmt: skip


def clip(image_size: int) -> Any:
    from transformers import CLIPVisionConfig

    return CLIPVisionConfig(
        hidden_size=64, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2, image_size=image_size,
        patch_size=14, projection_dim=32,
    )  # fmt: skip


def llava() -> tuple[Any, Any]:
    from transformers import (
        CLIPImageProcessorPil,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    tokenizer = tokenizer_of("<s>", "</s>", "<pad>", [], adds_begin=True, image_token="<image>")
    config = LlavaConfig(
        vision_config=clip(56), text_config=LlamaConfig(**text_settings(tokenizer)), image_seq_length=16,
        image_token_index=tokenizer.image_token_id, tie_word_embeddings=False,
    )  # fmt: skip
    images = CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
    processor = LlavaProcessor(
        images, tokenizer, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )
    return LlavaForConditionalGeneration(config), processor


def llava_next() -> tuple[Any, Any]:
    from transformers import (
        LlamaConfig,
        LlavaNextConfig,
        LlavaNextForConditionalGeneration,
        LlavaNextImageProcessorPil,
        LlavaNextProcessor,
    )

    grid = [[28, 56], [56, 28], [56, 56]]
    tokenizer = tokenizer_of("<s>", "</s>", "<pad>", [], adds_begin=True, image_token="<image>")
    config = LlavaNextConfig(
        vision_config=clip(28), text_config=LlamaConfig(**text_settings(tokenizer)), image_grid_pinpoints=grid,
        image_token_index=tokenizer.image_token_id, tie_word_embeddings=False,
    )  # fmt: skip
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, image_grid_pinpoints=grid
    )
    processor = LlavaNextProcessor(
        images, tokenizer, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )
    return LlavaNextForConditionalGeneration(config), processor


def qwen_processor() -> Any:
    from transformers import Qwen2VLImageProcessorPil, Qwen2VLProcessor, Qwen2VLVideoProcessor

    tokenizer = tokenizer_of(
        None, "<|im_end|>", "<|endoftext|>", ["<|im_start|>", "<|vision_start|>", "<|vision_end|>"],
        image_token="<|image_pad|>", video_token="<|video_pad|>",
    )  # fmt: skip
    sizes = {"shortest_edge": 28 * 28 * 2, "longest_edge": 28 * 28 * 12}
    return Qwen2VLProcessor(Qwen2VLImageProcessorPil(size=sizes), tokenizer, Qwen2VLVideoProcessor())


def qwen_settings(tokenizer: Any) -> dict[str, Any]:
    ids = {
        name: tokenizer.convert_tokens_to_ids(f"<|{name}|>")
        for name in ("image_pad", "video_pad", "vision_start", "vision_end")
    }
    rope = {"rope_type": "default", "rope_theta": 100.0, "mrope_section": [2, 3, 3]}
    return {
        "text_config": text_settings(tokenizer, rope_parameters=rope),
        "image_token_id": ids["image_pad"], "video_token_id": ids["video_pad"],
        "vision_start_token_id": ids["vision_start"], "vision_end_token_id": ids["vision_end"],
        "tie_word_embeddings": False,
    }  # fmt: skip


def qwen2_vl() -> tuple[Any, Any]:
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    processor = qwen_processor()
    vision = {"depth": 2, "embed_dim": 64, "hidden_size": HIDDEN, "num_heads": 2, "mlp_ratio": 2}
    return Qwen2VLForConditionalGeneration(
        Qwen2VLConfig(vision_config=vision, **qwen_settings(processor.tokenizer))
    ), processor


def qwen2_5_vl() -> tuple[Any, Any]:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

    other = qwen_processor()
    processor = Qwen2_5_VLProcessor(other.image_processor, other.tokenizer, other.video_processor)
    vision = {
        "depth": 2, "hidden_size": 64, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": HIDDEN,
        "window_size": 56, "fullatt_block_indexes": [1],
    }  # fmt: skip
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(vision_config=vision, **qwen_settings(processor.tokenizer))
    ), processor


def idefics_settings(tokenizer: Any) -> dict[str, Any]:
    vision = {
        "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": 56, "patch_size": 14,
    }  # fmt: skip
    return {
        "vision_config": vision, "text_config": {"model_type": "llama", **text_settings(tokenizer)}, "scale_factor": 2,
        "image_token_id": tokenizer.convert_tokens_to_ids("<image>"), "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": False,
    }  # fmt: skip


IDEFICS_TOKENS = [
    "<|im_start|>", "<fake_token_around_image>", "<image>", "<global-img>",
    *(f"<row_{row}_col_{column}>" for row in (1, 2, 3) for column in (1, 2, 3)),
]  # fmt: skip
IDEFICS_SIZES = {"size": {"longest_edge": 168}, "max_image_size": {"longest_edge": 56}}


def idefics3() -> tuple[Any, Any]:
    from transformers import (
        Idefics3Config,
        Idefics3ForConditionalGeneration,
        Idefics3ImageProcessorPil,
        Idefics3Processor,
    )

    tokenizer = tokenizer_of("<|begin_of_text|>", "<end_of_utterance>", "<pad>", IDEFICS_TOKENS, adds_begin=True)
    processor = Idefics3Processor(Idefics3ImageProcessorPil(**IDEFICS_SIZES), tokenizer, image_seq_len=4)
    return Idefics3ForConditionalGeneration(Idefics3Config(**idefics_settings(tokenizer))), processor


def smolvlm() -> tuple[Any, Any]:
    from transformers import (
        SmolVLMConfig,
        SmolVLMForConditionalGeneration,
        SmolVLMImageProcessorPil,
        SmolVLMProcessor,
        SmolVLMVideoProcessor,
    )

    tokenizer = tokenizer_of("<|im_start|>", "<end_of_utterance>", "<pad>", IDEFICS_TOKENS[1:])
    images = SmolVLMImageProcessorPil(**IDEFICS_SIZES)
    processor = SmolVLMProcessor(images, tokenizer, SmolVLMVideoProcessor(), image_seq_len=4)
    return SmolVLMForConditionalGeneration(SmolVLMConfig(**idefics_settings(tokenizer))), processor


def internvl() -> tuple[Any, Any]:
    from transformers import (
        GotOcr2ImageProcessorPil,
        InternVLConfig,
        InternVLForConditionalGeneration,
        InternVLProcessor,
        InternVLVideoProcessor,
        Qwen2Config,
    )

    tokenizer = tokenizer_of(
        None, "<|im_end|>", "<|endoftext|>", ["<|im_start|>"], start_image_token="<img>", end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>", video_token="<video>",
    )  # fmt: skip
    vision = {
        "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": [56, 56], "patch_size": [14, 14],
    }  # fmt: skip
    config = InternVLConfig(
        vision_config=vision, text_config=Qwen2Config(**text_settings(tokenizer)), image_seq_length=4,
        image_token_id=tokenizer.context_image_token_id, tie_word_embeddings=False,
    )  # fmt: skip
    images = GotOcr2ImageProcessorPil(
        size={"height": 56, "width": 56}, crop_to_patches=True, min_patches=1, max_patches=4
    )
    processor = InternVLProcessor(images, tokenizer, InternVLVideoProcessor(), image_seq_length=4)
    return InternVLForConditionalGeneration(config), processor


def gemma3() -> tuple[Any, Any]:
    from transformers import (
        Gemma3Config,
        Gemma3ForConditionalGeneration,
        Gemma3ImageProcessorPil,
        Gemma3Processor,
        Gemma3TextConfig,
        SiglipVisionConfig,
    )

    tokenizer = tokenizer_of(
        "<bos>", "<eos>", "<pad>", ["<start_of_turn>", "<end_of_turn>"], adds_begin=True,
        image_token="<image_soft_token>", boi_token="<start_of_image>", eoi_token="<end_of_image>",
    )  # fmt: skip
    vision = SiglipVisionConfig(
        hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14
    )
    text = Gemma3TextConfig(
        **text_settings(tokenizer), head_dim=16, sliding_window=16,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"], query_pre_attn_scalar=16,
    )  # fmt: skip
    config = Gemma3Config(
        vision_config=vision, text_config=text, mm_tokens_per_image=4, tie_word_embeddings=False,
        image_token_index=tokenizer.image_token_id, boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
    )  # fmt: skip
    images = Gemma3ImageProcessorPil(size={"height": 56, "width": 56})
    return Gemma3ForConditionalGeneration(config), Gemma3Processor(images, tokenizer, image_seq_length=4)


def mllama() -> tuple[Any, Any]:
    from transformers import MllamaConfig, MllamaForConditionalGeneration, MllamaImageProcessorPil, MllamaProcessor
    from transformers.models.mllama.image_processing_pil_mllama import get_all_supported_aspect_ratios

    tokenizer = tokenizer_of(
        "<|begin_of_text|>", "<|eot_id|>", "<|finetune_right_pad_id|>",
        ["<|start_header_id|>", "<|end_header_id|>", "<|python_tag|>", "<|image|>"], adds_begin=True,
    )  # fmt: skip
    vision = {
        "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_global_layers": 1,
        "attention_heads": 2, "image_size": 28, "patch_size": 14, "max_num_tiles": 4, "vision_output_dim": 128,
        "intermediate_layers_indices": [0],
        "supported_aspect_ratios": [list(ratio) for ratio in get_all_supported_aspect_ratios(4)],
    }  # fmt: skip
    text = text_settings(tokenizer, num_hidden_layers=4, cross_attention_layers=[1, 3])
    config = MllamaConfig(
        vision_config=vision, text_config=text, image_token_index=tokenizer.convert_tokens_to_ids("<|image|>"),
        tie_word_embeddings=False,
    )  # fmt: skip
    images = MllamaImageProcessorPil(size={"height": 28, "width": 28}, max_image_tiles=4)
    return MllamaForConditionalGeneration(config), MllamaProcessor(images, tokenizer)


_BUILDERS = {
    "llava": llava, "llava_next": llava_next, "qwen2_vl": qwen2_vl, "qwen2_5_vl": qwen2_5_vl, "idefics3": idefics3,
    "smolvlm": smolvlm, "internvl": internvl, "gemma3": gemma3, "mllama": mllama,
}  # fmt: skip
FAMILIES = tuple(_BUILDERS)
