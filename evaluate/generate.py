"""Ask a model: greedy replies in left-padded batches, and the likelihood of given answers.

Questions are sorted by length so that a batch pads little; a batch that does not fit in memory is halved and tried
again, so a smaller card gives the same replies more slowly. What is asked is `questions.py`'s job, what replies are
worth `score.py`'s. B batch, M answer tokens.
"""

import sys
from collections.abc import Sequence
from typing import Any

import torch
from tqdm import tqdm

from ..data.example import Example
from ..models.encode import Encoded, Encoder, answer_rows, collate
from ..models.forward import answer_logits, to_device


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
    """Return for each example the summed log-probability of its answer, and its number of tokens."""
    rows = [encoder.encode(example) for example in examples]
    order = sorted(range(len(rows)), key=lambda index: (-len(rows[index].input_ids), index))
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
            found[index] = (float(part.sum()), len(part))
        order = order[len(chosen) :]
        bar.update(len(chosen))
    bar.close()
    return [found[index] for index in range(len(rows))]


def _answer_logprobs(model: Any, encoder: Encoder, batch: Sequence[Encoded]) -> torch.Tensor:
    """Return the log-probability of every answer token of a batch, end to end, float32 [M] on the CPU."""
    weights = next(model.parameters())
    batch_M, position_M, answer_ids_M = answer_rows(batch)
    inputs = to_device(collate(batch, pad_id=encoder.pad_id, side="right"), weights.device, weights.dtype)
    logprobs_MV = torch.log_softmax(answer_logits(model, inputs, batch_M, position_M).float(), dim=-1)
    return logprobs_MV.gather(1, answer_ids_M.to(logprobs_MV.device)[:, None])[:, 0].cpu()


def _halved(batch_size: int) -> int:
    """Return half of a batch that did not fit, and say so."""
    tqdm.write(f"out of memory: batches of {batch_size // 2} from here on", file=sys.stderr)
    torch.cuda.empty_cache()
    return batch_size // 2
