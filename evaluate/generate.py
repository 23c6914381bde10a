"""Ask a model: greedy replies, and what it thinks of given answers, token by token, in batches that may be spread.

Prompts of one picture go into one batch, so that it runs once (`models/decode.py`), and so do questions with answers,
those of one question side by side, so that it runs once too (`models/behind.py`). Where a model is not one for that
(`models/decodable.py`), prompts go through `model.generate`, left-padded, and answers through plain passes.
Which rows make a batch depends on the rows alone, so that any number of processes asks alike; a batch that does not
fit in memory is halved, so a smaller card says the same more slowly. What is asked is `questions.py`'s job, what
replies are worth `score.py`'s. M answer tokens, m of them at once, D hidden size, V vocabulary.
"""

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar
from weakref import WeakSet

import torch
from torch import Tensor
from tqdm import tqdm

from ..data.example import DataError, Example
from ..models.behind import answer_states_behind
from ..models.decodable import reason_against, reason_apart
from ..models.decode import greedy
from ..models.encode import Encoded, Encoder, answer_rows, collate
from ..models.forward import answer_logits, answer_states, head_of, to_device
from ..models.positions import backbone

LOGITS_AT_ONCE = 2**25  # numbers; a few times so many bytes are held for each answer token's statistics

TokenScores = tuple[tuple[float, float, float, int], ...]
"""Per answer token: log p, the mean and the standard deviation of log-probabilities under the model's own distribution
there, 1 if the token is the likeliest else 0. In nats, computed in float32."""

_Asked = TypeVar("_Asked")
_Said = TypeVar("_Said")

_told: WeakSet[Any] = WeakSet()  # models of which it was said that they are asked the slow way


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
    run = partial(reply_batch, model, encoder, max_new_tokens=max_new_tokens)
    return _in_order(rows, reply_batches(rows, batch_size), run, desc, "reply")


def answer_likelihoods(
    model: Any, encoder: Encoder, examples: Sequence[Example], *, batch_size: int
) -> list[tuple[float, int]]:
    """Return for each example the summed log-probability of its answer, and its number of tokens.

    Raises:
        DataError: an answer cannot be encoded, or its log-probability is not a finite number.
    """
    scores = answer_token_scores(model, encoder, examples, batch_size=batch_size)
    return [(math.fsum(token[0] for token in tokens), len(tokens)) for tokens in scores]


def answer_token_scores(
    model: Any, encoder: Encoder, examples: Sequence[Example], *, batch_size: int
) -> list[TokenScores]:
    """Return for each example what the model thinks of every token of its answer.

    Raises:
        DataError: an answer cannot be encoded, or a number is not finite.
    """
    rows = [encoder.encode(example) for example in examples]
    named = list(zip(rows, (example.id for example in examples), strict=True))

    def run(batch: Sequence[tuple[Encoded, str]]) -> list[TokenScores]:
        return score_batch(model, encoder, [row for row, _ in batch], [name for _, name in batch])

    return _in_order(named, score_batches(rows, batch_size), run, "likelihood", "answer")


def reply_batches(rows: Sequence[Encoded], batch_size: int) -> list[list[int]]:
    """Return which prompts are continued together: all those of a picture, which then runs once, the longest first."""
    batches: list[list[int]] = [[]]
    for group in _by_picture(rows):
        if rows[group[0]].pictures and len(batches[-1]) + len(group) > batch_size:
            batches.append([])
        for index in group:
            if len(batches[-1]) == batch_size:
                batches.append([])
            batches[-1].append(index)
    return [batch for batch in batches if batch]


def score_batches(rows: Sequence[Encoded], batch_size: int) -> list[list[int]]:
    """Return which answers are scored together: neighbors of one picture and question, in batches of one size."""
    order = [index for group in _by_picture(rows) for index in sorted(group, key=lambda place: rows[place].input_ids)]
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def reply_batch(model: Any, encoder: Encoder, rows: Sequence[Encoded], max_new_tokens: int) -> list[str]:
    """Return the greedy replies to a batch of prompts; where memory runs out, in halves."""
    return in_halves(partial(_replies, model, encoder, max_new_tokens), rows)


def score_batch(model: Any, encoder: Encoder, rows: Sequence[Encoded], names: Sequence[str]) -> list[TokenScores]:
    """Return what the model thinks of every token of some answers; where memory runs out, in halves.

    Args:
        model: the model.
        encoder: that which encoded the rows.
        rows: prompts with answers.
        names: what an error calls each of them.

    Raises:
        DataError: a number is not finite.
    """
    return in_halves(partial(_scores, model, encoder), list(zip(rows, names, strict=True)))


def _in_order(
    asked: Sequence[_Asked],
    batches: Sequence[Sequence[int]],
    run: Callable[[Sequence[_Asked]], list[_Said]],
    desc: str,
    unit: str,
) -> list[_Said]:
    """Run batches under a bar, and return what came of everything asked, in its order."""
    found: dict[int, _Said] = {}
    with tqdm(total=len(asked), desc=desc, unit=unit, leave=False) as bar:
        for batch in batches:
            found |= zip(batch, run([asked[index] for index in batch]), strict=True)
            bar.update(len(batch))
    return [found[index] for index in range(len(asked))]


def in_halves(run: Callable[[Sequence[_Asked]], list[_Said]], asked: Sequence[_Asked]) -> list[_Said]:
    """Run a batch, in halves where the whole does not fit in memory, and say so."""
    try:
        return run(asked)
    except torch.OutOfMemoryError:
        if len(asked) == 1:
            raise
    half = -(-len(asked) // 2)  # outside the handler, whose traceback holds on to what did not fit
    tqdm.write(f"out of memory with a batch of {len(asked)}: going on with {half} at once", file=sys.stderr)
    torch.cuda.empty_cache()
    return [*in_halves(run, asked[:half]), *in_halves(run, asked[half:])]


def _by_picture(rows: Sequence[Encoded]) -> list[list[int]]:
    """Return rows grouped by picture, the longest of each first, and the pictures with the longest rows first."""
    places: dict[tuple[int, ...], list[int]] = {}
    for index, row in enumerate(rows):
        places.setdefault(tuple(map(id, row.pictures)), []).append(index)

    def length(index: int) -> int:
        return len(rows[index].input_ids)

    groups = [sorted(group, key=length, reverse=True) for group in places.values()]
    return sorted(groups, key=lambda group: -length(group[0]))


@torch.inference_mode()
def _replies(model: Any, encoder: Encoder, max_new_tokens: int, rows: Sequence[Encoded]) -> list[str]:
    """Return the replies to a batch; a lone prompt shares nothing, and is the model's own to continue."""
    reason = "" if len(rows) == 1 else reason_against(model, rows, pad_id=encoder.pad_id)
    if reason is None:
        tokens = greedy(
            model, rows, stop_ids=encoder.stop_ids, pad_id=encoder.pad_id, max_new_tokens=max_new_tokens
        )  # fmt: skip
    else:
        _tell(model, reason)
        tokens = _generate(model, encoder, rows, max_new_tokens)
    texts: list[str] = encoder.tokenizer.batch_decode(tokens, skip_special_tokens=True)
    return [text.strip() for text in texts]


def _tell(model: Any, reason: str) -> None:
    """Say once why a model is asked the slow way."""
    if reason and backbone(model) not in _told:
        _told.add(backbone(model))
        tqdm.write(
            f"replies are generated with an image for every question, which is slower: {reason}", file=sys.stderr
        )


def _generate(model: Any, encoder: Encoder, rows: Sequence[Encoded], max_new_tokens: int) -> list[list[int]]:
    """Return continuations by the model's own `generate`, up to and with their stop tokens."""
    weights = next(model.parameters())
    inputs = to_device(collate(rows, pad_id=encoder.pad_id, side="left"), weights.device, weights.dtype)
    ids = model.generate(
        **inputs, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1, pad_token_id=encoder.pad_id,
        eos_token_id=sorted(encoder.stop_ids),
    )  # fmt: skip
    return [_up_to_stop(tokens, encoder) for tokens in ids[:, inputs["input_ids"].shape[1] :].tolist()]


def _up_to_stop(tokens: list[int], encoder: Encoder) -> list[int]:
    """Return tokens without the padding behind a stop token, which need not be a special one."""
    end = next((index + 1 for index, token in enumerate(tokens) if token in encoder.stop_ids), len(tokens))
    return tokens[:end]


@torch.inference_mode()
def _scores(model: Any, encoder: Encoder, named: Sequence[tuple[Encoded, str]]) -> list[TokenScores]:
    rows = [row for row, _ in named]
    answer_ids_M = torch.tensor([token for row in rows for token in row.answer_ids])
    parts = logits_in_parts(model, encoder, rows)
    numbers = [_statistics(logits_mV, ids_m) for logits_mV, ids_m in _beside(parts, answer_ids_M)]
    tokens = [token for part in numbers for token in part]
    scores, first = [], 0
    for row, name in named:
        scores.append(_finite(tuple(tokens[first : first + len(row.answer_ids)]), name))
        first += len(row.answer_ids)
    return scores


def logits_in_parts(model: Any, encoder: Encoder, rows: Sequence[Encoded]) -> Iterator[Tensor]:
    """Yield the logits of answer tokens, so many at once that a large vocabulary takes no more memory than a small."""
    at_once = max(1, LOGITS_AT_ONCE // int(backbone(model).config.get_text_config().vocab_size))
    try:
        head = head_of(model)
    except DataError:  # something is done to logits behind the head, which only the model itself knows
        yield from answer_logits(model, *_apart(model, encoder, rows)).split(at_once)
        return
    if reason_apart(model, rows, pad_id=encoder.pad_id) is None:
        states_MD = answer_states_behind(model, rows, pad_id=encoder.pad_id)
    else:
        states_MD = answer_states(model, *_apart(model, encoder, rows))
    yield from map(head, states_MD.split(at_once))


def _apart(model: Any, encoder: Encoder, rows: Sequence[Encoded]) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Return a padded batch on the model's device, and where it predicts each answer token."""
    weights = next(model.parameters())
    batch_M, position_M, _ = answer_rows(rows)
    inputs = collate(rows, pad_id=encoder.pad_id, side="right")
    return to_device(inputs, weights.device, weights.dtype), batch_M, position_M


def _beside(parts: Iterator[Tensor], answer_ids_M: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield logits with the answer tokens they predict."""
    first = 0
    for logits_mV in parts:
        yield logits_mV, answer_ids_M[first : first + len(logits_mV)].to(logits_mV.device)
        first += len(logits_mV)


def _statistics(logits_mV: Tensor, ids_m: Tensor) -> list[tuple[float, float, float, int]]:
    """Return the log-probability of tokens, mean and spread of all log-probabilities there, whether it is likeliest.

    Min-K%++ standardizes the first by the next two (Zhang et al. 2024, arXiv 2404.02936, section 4).
    """
    logprob_mV = logits_mV.float().log_softmax(-1)
    likeliest_m = logprob_mV.argmax(-1) == ids_m
    logprob_m = logprob_mV.gather(1, ids_m[:, None])[:, 0]
    weight_mV = logprob_mV.exp()
    logprob_mV = logprob_mV.clamp_(min=-200.0)  # what weighs nothing: else 0 times infinity
    mean_m = (weight_mV * logprob_mV).sum(-1)
    spread_m = (weight_mV * (logprob_mV - mean_m[:, None]).square_()).sum(-1).sqrt()
    values = zip(logprob_m.tolist(), mean_m.tolist(), spread_m.tolist(), likeliest_m.tolist(), strict=True)
    return [(logprob, mean, spread, int(likeliest)) for logprob, mean, spread, likeliest in values]


def _finite(tokens: TokenScores, name: str) -> TokenScores:
    for token in tokens:
        wrong = next((value for value in token if not math.isfinite(value)), None)
        if wrong is not None:
            raise DataError(
                f"{name}: expected a finite log-probability of the answer, found {wrong}. The model has diverged or "
                "overflows: train it again with a lower --learning-rate, or load it in another --dtype."
            )
    return tokens
