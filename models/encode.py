"""Turn examples into token ids with the answer's place known: the only place where labels are aligned.

Prompt and prompt + answer are rendered and the whole text is tokenized once; the answer is what follows the longest
common token prefix, up to the family's first stop id; where a template writes none behind an answer (LLaVA-NeXT's), it
ends with its text and the tokenizer's end token. Two forms of ids leave here: *unexpanded* (one placeholder an
image: identity, cache keys) and *expanded* (what the model reads: the placeholder replaced by the image's tokens).
The expansion of an image is asked of the processor once per image, then spliced, so it is any family's own.
One encoder feeds precompute, train, finetune and likelihood evaluation; the row for answer token i is predicted at
position i - 1. Truncation is an error, never silent.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.example import DataError, EncodedImage, Example, Message
from .expand import Picture, Pictures
from .padding import join_padded, stack_padded
from .render import Rendering, chat_messages, render_llava


@dataclass(frozen=True, slots=True)
class Encoded:
    """An example in tokens. `prompt_ids` and `answer_ids` are unexpanded; `input_ids` is expanded prompt + answer.

    `token_inputs` is what the model reads of each expanded token beside its id (first axis [T]), by argument name.
    """

    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    input_ids: tuple[int, ...]
    pictures: tuple[Picture, ...]
    token_inputs: dict[str, Tensor] = field(default_factory=dict)

    @property
    def num_prompt(self) -> int:
        """Number of expanded prompt tokens."""
        return len(self.input_ids) - len(self.answer_ids)

    @property
    def image_end(self) -> int:
        """Number of expanded tokens up to the end of the last image; 0 where there is none."""
        if not self.pictures:
            return 0
        ids = self.pictures[-1].ids
        ends = (end for end in range(self.num_prompt, 0, -1) if self.input_ids[end - 1] == ids[-1])
        return next(end for end in ends if self.input_ids[max(0, end - len(ids)) : end] == ids)


class Encoder:
    """Encode examples for one model: its processor, its rendering, its limits."""

    def __init__(
        self, processor: Any, rendering: Rendering, *, context_length: int, vocab_size: int, where: Path
    ) -> None:
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.rendering = rendering
        self.context_length = context_length
        self.vocab_size = vocab_size
        self._pictures = Pictures(processor, where)
        self.image_token, self.image_id = self._pictures.token, self._pictures.id
        self.pad_id: int = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0
        self._stops = _stop_tokens(self.tokenizer)

    @property
    def stop_ids(self) -> frozenset[int]:
        """Return the ids at which an answer ends: the end token and, in chat renderings, the end of a turn."""
        return frozenset(self._stops.values())

    def picture(self, image: EncodedImage) -> Picture:
        """Return an image's tensors and expanded ids, memoised by its digest."""
        return self._pictures.read(image)

    def encode(self, example: Example, images: Sequence[EncodedImage] | None = None) -> Encoded:
        """Encode prompt and answer, showing `images` in place of the example's own (the intervention on the image).

        Raises:
            DataError: the answer cannot be located or is empty, or the whole is longer than the model's context.
        """
        prompt_ids, answer_ids = self.ids(example)
        return self.assemble(example, prompt_ids, answer_ids, example.images if images is None else images)

    def encode_prompt(self, example: Example) -> Encoded:
        """Encode the prompt alone, for generation; `answer_ids` is empty."""
        prompt_ids = tuple(self._tokenize(self._render(example.messages, None)))
        return self.assemble(example, prompt_ids, (), example.images)

    def ids(self, example: Example) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return unexpanded prompt ids and answer ids: what row keys and token hashes are made of."""
        self._check_answer(example)
        prompt = self._tokenize(self._render(example.messages, None))
        text = self._render(example.messages, example.answer)
        whole = self._tokenize(text)
        common = _common_prefix(prompt, whole)
        if common < len(prompt) - 1:
            raise DataError(
                f"{example.id}: expected the rendered prompt to begin the rendered prompt and answer, found them to "
                f"differ at token {common} of {len(prompt)}. This chat template rewrites earlier turns; give another "
                "with --chat-template."
            )
        answer = self._end_answer(whole[common:], text, example.answer)
        if not answer:
            raise DataError(f"{example.id}: expected an answer of at least one token, found {example.answer!r}.")
        if self.image_id in answer:
            raise DataError(
                f"{example.id}: expected no image token in the answer, found {self.image_token!r}. Remove it."
            )
        return tuple(whole[:common]), tuple(answer)

    def _check_answer(self, example: Example) -> None:
        """Raise `DataError` for an answer that is blank, or that its own text would end too early."""
        if not example.answer.strip():
            raise DataError(f"{example.id}: expected an answer of at least one token, found {example.answer!r}.")
        stops = [text for text in self._stops if text in example.answer]
        if stops:
            raise DataError(
                f"{example.id}: expected no end token inside the answer, found {stops[0]!r}. Remove it: nothing is "
                "truncated."
            )

    def assemble(
        self,
        example: Example,
        prompt_ids: tuple[int, ...],
        answer_ids: tuple[int, ...],
        images: Sequence[EncodedImage],
    ) -> Encoded:
        """Return already tokenized ids with these images in place of the placeholders."""
        if prompt_ids.count(self.image_id) != len(images):
            raise DataError(
                f"{example.id}: expected {len(images)} image token(s) in the rendered prompt, found "
                f"{prompt_ids.count(self.image_id)}. The question may hold {self.image_token!r} as text: remove it."
            )
        pictures = tuple(map(self._pictures.read, images))
        input_ids = (*_expand(prompt_ids, self.image_id, pictures), *answer_ids)
        if len(input_ids) > self.context_length:
            raise DataError(
                f"{example.id}: expected at most {self.context_length} tokens (the model's context), found "
                f"{len(input_ids)}. Shorten the answer or the conversation; nothing is truncated."
            )
        token_inputs = self._pictures.token_inputs(prompt_ids, len(answer_ids), pictures)
        return Encoded(prompt_ids, answer_ids, input_ids, pictures, token_inputs)

    def _render(self, messages: Sequence[Message], answer: str | None) -> str:
        turns = self._with_system_prompt(messages)
        if self.rendering.template == "llava":
            end_token = self.tokenizer.eos_token if self.rendering.score_end_token else ""
            return render_llava(turns, answer, image_token=self.image_token, end_token=end_token)
        closing = [] if answer is None else [Message("assistant", answer)]
        text = self.processor.apply_chat_template(
            chat_messages([*turns, *closing]),
            chat_template=self.rendering.chat_template,
            add_generation_prompt=answer is None,
        )
        return self._pictures.with_surroundings(str(text))

    def _with_system_prompt(self, messages: Sequence[Message]) -> list[Message]:
        if self.rendering.system_prompt is None or messages[0].role == "system":
            return list(messages)
        return [Message("system", self.rendering.system_prompt), *messages]

    def _tokenize(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=self._adds_special(text))["input_ids"]
        return ids

    def _adds_special(self, text: str) -> bool:
        # Some chat templates write the begin token themselves; others leave it to the tokenizer, as the papers' does.
        begin = self.tokenizer.bos_token
        return not (begin and text.startswith(begin))

    def _end_answer(self, ids: list[int], text: str, answer: str) -> list[int]:
        """Return the ids of an answer: `ids`, that end the rendered text, up to the first stop id.

        Where the template writes none, up to the answer's end in the text, and the end token where it is scored.
        """
        stop_ids = self.stop_ids
        stop = next((index for index, token in enumerate(ids) if token in stop_ids), None)
        if stop is not None:
            return ids[: stop + 1] if self.rendering.score_end_token else ids[:stop]
        written = answer if answer in text else answer.strip()  # templates may trim
        end = text.rfind(written) + len(written) if written in text else len(text)
        kept = ids if end == len(text) else ids[: len(ids) - self._num_tokens_behind(text, end)]
        has_end = self.rendering.score_end_token and self.tokenizer.eos_token_id is not None
        return [*kept, self.tokenizer.eos_token_id] if has_end else kept

    def _num_tokens_behind(self, text: str, end: int) -> int:
        """Return how many tokens of a text begin at a character or after it."""
        tokens = self.tokenizer(text, add_special_tokens=self._adds_special(text), return_offsets_mapping=True)
        return sum(start >= end for start, _ in tokens["offset_mapping"])


def find_context_length(config: Any) -> int:
    """Return how many tokens a model's language part can read."""
    text_config = config.get_text_config()
    return int(getattr(text_config, "max_position_embeddings", 1 << 30))


def collate(rows: Sequence[Encoded], *, pad_id: int, side: str) -> dict[str, Tensor]:
    """Pad encoded examples into one batch: input_ids and attention_mask int64 [B, T], pictures stacked in order."""
    length = max(len(row.input_ids) for row in rows)
    input_ids_BT = torch.full((len(rows), length), pad_id, dtype=torch.long)
    mask_BT = torch.zeros((len(rows), length), dtype=torch.long)
    for index, row in enumerate(rows):
        place = slice(0, len(row.input_ids)) if side == "right" else slice(length - len(row.input_ids), length)
        input_ids_BT[index, place] = torch.tensor(row.input_ids)
        mask_BT[index, place] = 1
    names = dict.fromkeys(name for row in rows for name in row.token_inputs)
    others = {name: stack_padded(_of_tokens(rows, name), side=side) for name in names}
    return {"input_ids": input_ids_BT, "attention_mask": mask_BT, **others, **stack_pictures(rows)}


def _of_tokens(rows: Sequence[Encoded], name: str) -> list[Tensor]:
    """Return a token input of every row; zeros of the others' sizes for a row without it (one without pictures)."""
    like = next(row.token_inputs[name] for row in rows if name in row.token_inputs)
    zero = like.new_zeros(like.shape[1:])
    return [row.token_inputs.get(name, zero.expand(len(row.input_ids), *zero.shape)) for row in rows]


def stack_pictures(rows: Sequence[Encoded]) -> dict[str, Tensor]:
    """Concatenate the rows' picture tensors, in reading order; an empty dict where there is none."""
    shown = [row.pictures for row in rows if row.pictures]
    if not shown:
        return {}
    if not shown[0][0].by_row:
        pictures = [picture.tensors for row in shown for picture in row]
        return {name: join_padded([tensors[name] for tensors in pictures]) for name in pictures[0]}
    return {name: join_padded(_by_row(rows, name, shown[0][0].tensors[name])) for name in shown[0][0].tensors}


def _by_row(rows: Sequence[Encoded], name: str, like: Tensor) -> list[Tensor]:
    """Return a picture tensor of every row, its pictures along the second axis; zeros for a row without pictures."""
    return [
        join_padded([picture.tensors[name] for picture in row.pictures], axis=1)
        if row.pictures
        else torch.zeros_like(like)
        for row in rows
    ]


def answer_rows(rows: Sequence[Encoded]) -> tuple[Tensor, Tensor, Tensor]:
    """Return where a right-padded batch predicts its answer tokens, and those tokens.

    Returns:
        batch index, position and answer id of every answer token, each int64 [M]; the row for answer token i is
        predicted one position before it.
    """
    batch = [index for index, row in enumerate(rows) for _ in row.answer_ids]
    position = [row.num_prompt - 1 + offset for row in rows for offset in range(len(row.answer_ids))]
    ids = [token for row in rows for token in row.answer_ids]
    return torch.tensor(batch), torch.tensor(position), torch.tensor(ids)


def _stop_tokens(tokenizer: Any) -> dict[str, int]:
    """Return the ids that end an answer by their text, as far as the tokenizer has them."""
    names = [tokenizer.eos_token, "<|im_end|>", "<end_of_turn>", "<end_of_utterance>", "<|eot_id|>"]
    vocabulary = tokenizer.get_vocab()  # slow with large vocabularies: once an encoder, not once a token
    return {name: vocabulary[name] for name in names if name in vocabulary}


def _common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    for index, (left, right) in enumerate(zip(first, second, strict=False)):
        if left != right:
            return index
    return min(len(first), len(second))


def _expand(ids: Sequence[int], image_id: int, pictures: Sequence[Picture]) -> list[int]:
    expanded: list[int] = []
    remaining = iter(pictures)
    for token in ids:
        expanded.extend(next(remaining).ids if token == image_id else (token,))
    return expanded
