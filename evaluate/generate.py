"""Ask a model: greedy replies in left-padded batches, and the likelihood of given answers.

Questions are sorted by length so that a batch pads little; a batch that does not fit in memory is halved and tried
again, so a smaller card gives the same replies more slowly. Answers whose likelihood is asked stand behind one copy of
their image where the model's text can share one (`models/pack.py`), and by themselves elsewhere. What is asked is
`questions.py`'s job, what replies are worth `score.py`'s. M answer tokens, V vocabulary.
"""

import math
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from ..data.example import DataError, Example
from ..models.encode import Encoded, Encoder, answer_rows, collate
from ..models.forward import answer_logits, to_device
from ..models.pack import pack_for
from ..models.positions import backbone, require_full_attention

GROUP_SIZE = 8  # answers behind one image: more share it, but attend to ever longer masked sequences


@torch.inference_mode()
def generate_replies(
    model: Any,
    encoder: Encoder,
    examples: Sequence[Example],
    *,
    max_new_tokens: int,
    batch_size: int,
    desc: str = "generate",
) -> list[str]:
    """Return the greedy reply to each example, in order."""
    rows = [encoder.encode_prompt(example) for example in examples]
    order = sorted(range(len(rows)), key=lambda index: (-len(rows[index].input_ids), index))
    replies: dict[int, str] = {}
    bar = tqdm(total=len(order), desc=desc, unit="reply", leave=False)
    while order:
        chosen = order[:batch_size]
        try:
            texts = _generate(model, encoder, [rows[index] for index in chosen], max_new_tokens)
        except torch.OutOfMemoryError:
            if batch_size == 1:
                raise
            batch_size = _halved(batch_size)
            continue
        replies.update(zip(chosen, texts, strict=True))
        order = order[len(chosen) :]
        bar.update(len(chosen))
    bar.close()
    return [replies[index] for index in range(len(rows))]


def _generate(model: Any, encoder: Encoder, rows: Sequence[Encoded], max_new_tokens: int) -> list[str]:
    weights = next(model.parameters())
    inputs = to_device(collate(rows, pad_id=encoder.pad_id, side="left"), weights.device, weights.dtype)
    ids = model.generate(
        **inputs, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1, pad_token_id=encoder.pad_id,
        eos_token_id=sorted(encoder.stop_ids),
    )  # fmt: skip
    new_ids = ids[:, inputs["input_ids"].shape[1] :]
    return [text.strip() for text in encoder.tokenizer.batch_decode(new_ids, skip_special_tokens=True)]


@torch.inference_mode()
def answer_likelihoods(
    model: Any, encoder: Encoder, examples: Sequence[Example], *, batch_size: int
) -> list[tuple[float, int]]:
    """Return for each example the summed log-probability of its answer, and its number of tokens.

    Raises:
        DataError: an answer cannot be encoded, or its log-probability is not a finite number.
    """
    rows = [encoder.encode(example) for example in examples]
    order = _by_picture(rows)
    found: dict[int, tuple[float, int]] = {}
    bar = tqdm(total=len(order), desc="likelihood", unit="answer", leave=False)
    while order:
        chosen = order[:batch_size]
        try:
            logprob_M = _answer_logprobs(model, encoder, [rows[index] for index in chosen])
        except torch.OutOfMemoryError:
            if batch_size == 1:
                raise
            batch_size = _halved(batch_size)
            continue
        for index, part in zip(chosen, logprob_M.split([len(rows[index].answer_ids) for index in chosen]), strict=True):
            found[index] = (_finite(float(part.sum()), examples[index]), len(part))
        order = order[len(chosen) :]
        bar.update(len(chosen))
    bar.close()
    return [found[index] for index in range(len(rows))]


def _by_picture(rows: Sequence[Encoded]) -> list[int]:
    """Return the order in which rows of one picture are neighbors; the pictures with the longest rows come first."""
    places: dict[tuple[int, ...], list[int]] = {}
    for index, row in enumerate(rows):
        places.setdefault(tuple(map(id, row.pictures)), []).append(index)

    def length(index: int) -> int:
        return len(rows[index].input_ids)

    groups = [sorted(group, key=length, reverse=True) for group in places.values()]
    return [index for group in sorted(groups, key=lambda group: -length(group[0])) for index in group]


def _finite(logprob: float, example: Example) -> float:
    if not math.isfinite(logprob):
        raise DataError(
            f"{example.id}: expected a finite log-probability of the answer, found {logprob}. The model has "
            "diverged or overflows: train it again with a lower --learning-rate, or load it in another --dtype."
        )
    return logprob


def _answer_logprobs(model: Any, encoder: Encoder, batch: Sequence[Encoded]) -> Tensor:
    """Return the log-probability of every answer token of a batch, end to end, float32 [M] on the CPU."""
    weights = next(model.parameters())
    inputs, batch_M, position_M, answer_ids_M = _side_by_side(model, encoder, batch)
    logits_MV = answer_logits(model, to_device(inputs, weights.device, weights.dtype), batch_M, position_M).float()
    return -cross_entropy(logits_MV, answer_ids_M.to(logits_MV.device), reduction="none").cpu()


def _side_by_side(
    model: Any, encoder: Encoder, batch: Sequence[Encoded]
) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor]:
    """Return the inputs of a batch, and where it predicts each answer token, in the order of the batch."""
    if not _can_share_images(model):
        return collate(batch, pad_id=encoder.pad_id, side="right"), *answer_rows(batch)
    packed = pack_for(model, batch, pad_id=encoder.pad_id, group_size=GROUP_SIZE)
    return packed.inputs, packed.batch_M, packed.position_M, packed.answer_ids_M


def _can_share_images(model: Any) -> bool:
    """Tell whether questions may stand behind one image: the text sees all before it, and reads a mask of pairs.

    Scaled dot-product attention alone is trusted with such a mask: others read it differently, or not at all.
    """
    config = backbone(model).config.get_text_config()
    try:
        require_full_attention(config)
    except ValueError:
        return False
    return bool(config._attn_implementation == "sdpa")


def _halved(batch_size: int) -> int:
    """Return half of a batch that did not fit, and say so."""
    tqdm.write(f"out of memory: batches of {batch_size // 2} from here on", file=sys.stderr)
    torch.cuda.empty_cache()
    return batch_size // 2
