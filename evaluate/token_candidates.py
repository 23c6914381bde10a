"""Ask a model what it would say at every token of the forget people's training answers: the report's key-token view.

Own image shown, answers given (teacher-forced), the likeliest few tokens kept with how sure the model is. Training
questions, because the teacher's rows are about them. A few answers are enough to look at, chosen so that every model is
asked the same. Logits are those of the likelihood batches, so many at once that a large vocabulary takes no more memory
than a small one. Lines and who is chosen are `token_lines.py`'s, what a report makes of them `report/tokens.py`'s.
"""

# M answer tokens, m of them at once, V vocabulary

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from ..data.example import DataError, Example
from ..models.encode import Encoded, Encoder
from ..models.interventions import pixels_digest
from ..models.load import Loaded
from ..models.words import decode_answer, words_of
from ..precompute.cache import row_key
from .generate import in_halves, logits_in_parts, score_batches
from .named_source import open_named_source
from .runner import Once
from .token_lines import DIGITS, FILE, NUM_CANDIDATES, About, Token, TokenLine, spread_over_people, text_behind
from .token_lines import write_lines as write_lines

MOST_EXAMPLES = 64
_LEAST = -200.0  # what weighs nothing: else 0 times infinity

Seen = tuple[float, float, tuple[tuple[int, float], ...]]
"""Of one answer token: its log-probability, the entropy there, the likeliest (id, log-probability)."""


def training_answers(options: Mapping[str, Any]) -> list[Example]:
    """Return the training examples whose tokens are kept, of the source that options name; what is left out is said."""
    try:
        told = [one for one in open_named_source(options).training("forget") if one.images]
    except DataError as error:
        click.echo(f"evaluate: no next-token candidates: the training questions cannot be read ({error})", err=True)
        return []
    people = sorted({example.people[0] for example in told})[: options["limit"]]
    asked = [example for example in told if example.people[0] in people]
    abouts = [About(one.id, one.people[0], one.question, one.answer) for one in asked]
    chosen = [asked[place] for place in spread_over_people(abouts, MOST_EXAMPLES, options["seed"])]
    if left_out := len(told) - len(chosen):
        click.echo(
            f"evaluate: next-token candidates of {len(chosen)} training answers with a picture are kept, "
            f"{left_out} others are left out",
            err=True,
        )
    return chosen


def keep_candidates(options: Mapping[str, Any], model: Once, examples: Sequence[Example], output: Path) -> None:
    """Write the `tokens.jsonl` of an evaluation, where a model is at hand and there is anything to ask.

    Raises:
        DataError: the model gives no finite number.
    """
    if options["engine"] == "vllm" and options["processes"] > 1:
        click.echo(f"evaluate: {output}: no next-token candidates: with vLLM no model is loaded here", err=True)
        return
    if examples:
        write_lines(output / FILE, candidate_lines(model(), examples, batch_size=options["batch_size"]))


def candidate_lines(loaded: Loaded, examples: Sequence[Example], *, batch_size: int) -> list[TokenLine]:
    """Return the likeliest tokens at every token of some answers; what cannot be encoded is left out, and it is said.

    Raises:
        DataError: the model gives no finite number.
    """
    kept: list[tuple[Example, Encoded]] = []
    for example in examples:
        try:
            kept.append((example, loaded.encoder.encode(example)))
        except DataError as error:
            click.echo(f"evaluate: no next-token candidates of one answer: {error}", err=True)
    rows = [row for _, row in kept]
    seen: dict[int, list[Seen]] = {}
    for batch in score_batches(rows, batch_size):
        found = in_halves(lambda some: _seen(loaded.model, loaded.encoder, some), [rows[place] for place in batch])
        seen |= zip(batch, found, strict=True)
    return [_line(loaded.encoder, *one, seen[place]) for place, one in enumerate(kept)]


@torch.inference_mode()
def _seen(model: Any, encoder: Encoder, rows: Sequence[Encoded]) -> list[list[Seen]]:
    """Return what a model sees at every answer token of some rows."""
    answer_ids_M = torch.tensor([token for row in rows for token in row.answer_ids])
    tokens: list[Seen] = []
    for logits_mV in logits_in_parts(model, encoder, rows):
        ids_m = answer_ids_M[len(tokens) : len(tokens) + len(logits_mV)].to(logits_mV.device)
        tokens += _likeliest(logits_mV, ids_m)
    told = iter(tokens)
    return [[next(told) for _ in row.answer_ids] for row in rows]


def _likeliest(logits_mV: Tensor, ids_m: Tensor) -> list[Seen]:
    """Return for each row of logits the answer's log-probability, the entropy, and the likeliest tokens."""
    logprob_mV = logits_mV.float().log_softmax(-1).clamp_(min=_LEAST)
    own_m = logprob_mV.gather(1, ids_m[:, None])[:, 0]
    top = logprob_mV.topk(min(NUM_CANDIDATES, logprob_mV.shape[1]), dim=-1)
    entropy_m = -(logprob_mV.exp() * logprob_mV).sum(-1)
    values = zip(own_m.tolist(), entropy_m.tolist(), top.indices.tolist(), top.values.tolist(), strict=True)
    return [(own, entropy, tuple(zip(ids, logprobs, strict=True))) for own, entropy, ids, logprobs in values]


def _line(encoder: Encoder, example: Example, row: Encoded, seen: Sequence[Seen]) -> TokenLine:
    return TokenLine(
        id=example.id,
        split="forget",
        person=example.people[0],
        people=example.people,
        question=example.question,
        answer=decode_answer(encoder.tokenizer, row.answer_ids),
        row_key=row_key(row.prompt_ids, row.answer_ids, pixels_digest(example, "reference")).hex(),
        words=tuple(
            (word.first, word.last, word.start, word.stop) for word in words_of(encoder.tokenizer, row.answer_ids)
        ),
        tokens=tuple(_token(encoder, example.id, row.answer_ids, place, one) for place, one in enumerate(seen)),
    )


def _token(encoder: Encoder, name: str, answer_ids: Sequence[int], place: int, seen: Seen) -> Token:
    """Return one token of a line, numbers rounded."""
    own, entropy, candidates = seen
    if not all(map(math.isfinite, (own, entropy, *(logprob for _, logprob in candidates)))):
        raise DataError(
            f"{name}: expected finite log-probabilities of next tokens, found {own}. The model has diverged or "
            "overflows: train it again with a lower --learning-rate, or load it in another --dtype."
        )
    before = answer_ids[place - 1] if place else None

    def text(token: int) -> str:
        return text_behind(lambda ids: _decode(encoder, ids), before, token)

    return Token(
        id=answer_ids[place],
        text=text(answer_ids[place]),
        logprob=_rounded(own),
        entropy=max(0.0, round(entropy, DIGITS)),
        candidates=tuple((token, text(token), _rounded(logprob)) for token, logprob in candidates),
    )


def _rounded(logprob: float) -> float:
    return min(0.0, round(logprob, DIGITS))


def _decode(encoder: Encoder, ids: list[int]) -> str:
    text: str = encoder.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text
