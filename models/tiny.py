"""Build a tiny, real LLaVA from config: CLIP tower, Llama text model, byte-level BPE trained on the given texts.

The classes are transformers' own, so whatever works on it works on LLaVA-1.5-7B; only the sizes differ: `tiny` has
about 1.5 M parameters and trains on a CPU, `small` about 16 M, for the harder embedded world and its larger pictures
(minutes on a GPU, a night on a CPU). It is saved with `save_pretrained` and loaded like any other checkpoint. Weights
are a function of the seed; what it learns is `finetune`'s job.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from .render import Rendering, write_rendering

PATCH_SIZE = 14
CONTEXT_LENGTH = 512


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """How large a model is: pixels of its square pictures, and width, inner width, layers and heads of both halves."""

    image: int
    vision: tuple[int, int, int, int]
    text: tuple[int, int, int, int]


SIZES = {
    "tiny": Size(image=56, vision=(96, 256, 3, 4), text=(128, 352, 4, 4)),
    "small": Size(image=84, vision=(192, 512, 4, 6), text=(384, 1024, 8, 6)),
}
TINY = SIZES["tiny"]
IMAGE_SIZE = TINY.image
_SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}


def build_tiny_llava(
    directory: Path, texts: Iterable[str], *, seed: int, size: Size = TINY, vocab_size: int = 1024
) -> None:
    """Write a randomly initialized LLaVA of a small size with its processor; its tokenizer is trained on `texts`."""
    tokenizer = train_tokenizer(texts, vocab_size)
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(_config(tokenizer, size))
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.bos_token_id = tokenizer.bos_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(directory)
    _processor(tokenizer, size).save_pretrained(directory)
    write_rendering(directory, Rendering(template="llava", score_end_token=True))


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Any:
    """Train a byte-level BPE tokenizer with an image token; every byte string can be encoded."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[*_SPECIAL.values(), "<image>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    begin = core.token_to_id("<s>")
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", begin)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        model_max_length=CONTEXT_LENGTH,
        model_specific_special_tokens={"image_token": "<image>"},
        **_SPECIAL,
    )


def _config(tokenizer: Any, size: Size) -> LlavaConfig:
    width, inner, layers, heads = size.vision
    vision = CLIPVisionConfig(
        hidden_size=width, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads,
        image_size=size.image, patch_size=PATCH_SIZE, projection_dim=width,
    )  # fmt: skip
    width, inner, layers, heads = size.text
    text = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=heads, max_position_embeddings=CONTEXT_LENGTH,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, tie_word_embeddings=False,
    )  # fmt: skip
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=(size.image // PATCH_SIZE) ** 2,
        tie_word_embeddings=False,
    )


def _processor(tokenizer: Any, size: Size) -> Any:
    crop = {"height": size.image, "width": size.image}
    images = CLIPImageProcessorPil(size={"shortest_edge": size.image}, crop_size=crop)
    return LlavaProcessor(
        image_processor=images, tokenizer=tokenizer, patch_size=PATCH_SIZE, vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )  # fmt: skip
