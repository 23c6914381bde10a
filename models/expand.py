"""What a processor makes of an image, asked of it once an image: its tensors, and the tokens its placeholder becomes.

Families differ in how, and no list of them is kept: a blank picture shown to the processor tells. How many tokens an
image takes may depend on its size, with marks for rows and tiles between them. Text around them (Gemma 3 puts blank
lines there) would be tokenized together with its neighbors, so it goes into the rendered text and only what special
tokens enclose is spliced. Tensors count images or patches along their first axis, or (Idefics3, SmolVLM, Mllama) rows
of the batch, with a row's images along the second. Some models also read what a token is, text or image, or which
tokens see which image (Mllama's cross-attention). Laying rows side by side is `encode.py`'s.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from transformers.models.mllama.processing_mllama import (
    convert_sparse_cross_attention_mask_to_dense,
    get_cross_attention_token_mask,
)

from ..data.example import DataError, EncodedImage
from .pictures import decode

_PICTURE_BYTES = 2 * 1024**3  # of pictures read, kept: 1500 of LLaVA-1.5's
_BLANK_SIZE = (64, 64)
_TYPES = ("mm_token_type_ids", "token_type_ids")
_OF_TOKENS = ("input_ids", "attention_mask", *_TYPES, "cross_attention_mask")


@dataclass(frozen=True, slots=True)
class Picture:
    """One image as the model reads it: the processor's tensors, its expanded token ids and, where read, their types.

    Tensors' first axis counts images or patches; where `by_row` it has length 1 and the second counts them.
    """

    tensors: Mapping[str, Tensor]
    ids: tuple[int, ...]
    types: tuple[int, ...] = ()
    by_row: bool = False

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


class _Asked(NamedTuple):
    """What a processor makes of one placeholder and its image."""

    tensors: dict[str, Tensor]
    ids: tuple[int, ...]
    types: tuple[int, ...]
    types_name: str | None
    crosses: bool


class _Manner(NamedTuple):
    """How a processor writes an image: ids before and after its special tokens, and what tensors and tokens carry."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    by_row: bool
    types_name: str | None
    crosses: bool


class Pictures:
    """Reads images for one processor, memoised by their digests."""

    def __init__(self, processor: Any, where: Path) -> None:
        self._processor = processor
        self._tokenizer = processor.tokenizer
        self._where = where
        self.token, self.id = _image_token(processor, where)
        self._read: OrderedDict[str, Picture] = OrderedDict()
        self._held = 0

    def read(self, image: EncodedImage) -> Picture:
        """Return an image's tensors and expanded ids.

        Raises:
            DataError: it cannot be decoded, or the processor writes text between its parts (pan and scan).
        """
        if image.sha256 not in self._read:
            self._read[image.sha256] = self._picture(image)
            self._held += self._read[image.sha256].num_bytes
            while self._held > _PICTURE_BYTES and len(self._read) > 1:
                self._held -= self._read.popitem(last=False)[1].num_bytes
        self._read.move_to_end(image.sha256)
        return self._read[image.sha256]

    def with_surroundings(self, text: str) -> str:
        """Return a rendered text with what the processor writes around every image, if anything."""
        before, after = (self._tokenizer.decode(ids) for ids in self._manner[:2])
        return text.replace(self.token, f"{before}{self.token}{after}") if before or after else text

    def token_inputs(self, ids: Sequence[int], num_answer: int, pictures: Sequence[Picture]) -> dict[str, Tensor]:
        """Return what the model reads of each expanded token beside its id, first axis [T], by argument name.

        Args:
            ids: the unexpanded ids of the prompt.
            num_answer: answer tokens behind them.
            pictures: what its placeholders stand for, in order.
        """
        if (types_name := self._manner.types_name) is not None:
            remaining = iter(pictures)
            types = [kind for token in ids for kind in (next(remaining).types if token == self.id else (0,))]
            return {types_name: torch.tensor([*types, *[0] * num_answer])}
        if pictures and self._manner.crosses:
            return {"cross_attention_mask": _cross_attention_mask([*ids, *[-1] * num_answer], self.id, pictures)}
        return {}

    def _picture(self, image: EncodedImage) -> Picture:
        manner, asked = self._manner, self._ask(decode(image))
        start, stop = len(manner.before), len(asked.ids) - len(manner.after)
        if (asked.ids[:start], asked.ids[stop:]) != (manner.before, manner.after):
            raise DataError(
                f"{self._where}: expected a processor that writes an image as special tokens, found text between them "
                f"for {image.origin}. Turn its crops off (do_pan_and_scan)."
            )
        return Picture(asked.tensors, asked.ids[start:stop], asked.types[start:stop], manner.by_row)

    @cached_property
    def _manner(self) -> _Manner:
        blank = Image.new("RGB", _BLANK_SIZE)
        asked = self._ask(blank)
        special = {*self._tokenizer.all_special_ids, *self._tokenizer.get_added_vocab().values()}
        core = [index for index, token in enumerate(asked.ids) if token in special]
        two = self._processor.image_processor([[blank, blank]], return_tensors="pt")["pixel_values"]
        return _Manner(asked.ids[: core[0]], asked.ids[core[-1] + 1 :], len(two) == 1, asked.types_name, asked.crosses)

    def _ask(self, image: Image.Image) -> _Asked:
        # Mllama writes the begin token behind an image that nothing precedes: it is given first, and left out again.
        begin = self._tokenizer.bos_token or ""
        inputs = self._processor(
            text=f"{begin}{self.token}", images=[image], return_tensors="pt", add_special_tokens=False
        )
        first = 1 if begin else 0
        ids = tuple(inputs["input_ids"][0, first:].tolist())
        # Which tokens are an image's, where the model is told: tokenizers' own types are zeros.
        known = [name for name in _TYPES if name in inputs and name in self._processor.model_input_names]
        types_name = next((name for name in known if inputs[name].any()), None)
        types = () if types_name is None else tuple(inputs[types_name][0, first:].tolist())
        tensors = {name: value for name, value in inputs.items() if name not in _OF_TOKENS}
        return _Asked(tensors, ids, types, types_name, "cross_attention_mask" in inputs)


def _cross_attention_mask(ids: Sequence[int], image_id: int, pictures: Sequence[Picture]) -> Tensor:
    """Return which tokens see which tiles of which image, int64 [T, images, tiles], as Mllama's processor does."""
    seen = get_cross_attention_token_mask(list(ids), image_id)
    tiles = [picture.tensors["aspect_ratio_mask"] for picture in pictures]
    mask_1TNt = convert_sparse_cross_attention_mask_to_dense(
        [seen], [[int(tile.sum()) for tile in tiles]], tiles[0].shape[-1], len(ids)
    )
    return torch.from_numpy(mask_1TNt)[0]


def _image_token(processor: Any, where: Path) -> tuple[str, int]:
    token = getattr(processor, "image_token", None)
    token = getattr(token, "content", token)
    if not isinstance(token, str) or token not in processor.tokenizer.get_vocab():
        raise DataError(
            f"{where}: expected a processor with an image token (a multimodal model), found none. "
            "Name a vision-language model, or the one whose processor this checkpoint was trained with."
        )
    return token, processor.tokenizer.get_vocab()[token]
