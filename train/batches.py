"""Join examples with their cached rows, and draw the batches of a run.

A batch is a function of (seed, step) alone: every process draws the same one and takes its share, so one and many
workers see the same pairings. Rows come from a cache by row key and person, and the token hash proves that teacher and
student tokenized alike. Which cache to read is `caches.py`'s business. M answer tokens, K kept.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from ..data.example import Example
from ..models.encode import Encoder
from ..models.interventions import Kind, pixels_digest
from ..precompute.cache import CacheMismatch, Rows, TeacherCache, person_digest, row_key, token_hash
from .losses import TeacherRows


@dataclass(frozen=True, slots=True)
class Item:
    """One example to train on, tokenized, with the cached rows of its answer (None where the method reads none)."""

    example: Example
    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    rows: Rows | None


def read_items(encoder: Encoder, examples: Sequence[Example], cache: TeacherCache | None, kind: Kind) -> list[Item]:
    """Tokenize examples and find their rows.

    Raises:
        CacheMismatch: an example's tokens are not those its rows were made for.
    """
    items = []
    for example in examples:
        prompt_ids, answer_ids = encoder.ids(example)
        rows = None if cache is None else _rows_of(cache, example, prompt_ids, answer_ids, kind)
        items.append(Item(example, prompt_ids, answer_ids, rows))
    return items


def item_keys(encoder: Encoder, examples: Sequence[Example], kind: Kind) -> set[bytes]:
    """Return the row keys a set of examples needs."""
    return {row_key(*encoder.ids(example), pixels_digest(example, kind)) for example in examples}


def _rows_of(
    cache: TeacherCache, example: Example, prompt_ids: tuple[int, ...], answer_ids: tuple[int, ...], kind: Kind
) -> Rows:
    key = row_key(prompt_ids, answer_ids, pixels_digest(example, kind))
    index = cache.find_sample(key, person_digest(cache.lineage, example.people[0]))
    if index is None:  # another split's cache may hold the row under another person
        index = cache.find_row(key)
    if index is None or cache.token_hash[index] != token_hash(cache.lineage, prompt_ids, answer_ids):
        raise CacheMismatch(
            f"{cache.root}: expected rows for the tokens of {example.id}, found "
            f"{'none' if index is None else 'rows of other tokens'}. "
            "Teacher and student tokenize differently, or the cache is of another split: run `viker precompute` again."
        )
    return cache.rows_of(index)


def stack_rows(items: Sequence[Item]) -> TeacherRows:
    """Return the rows of a batch's answer tokens, end to end.

    Caches of scalars only (K = 0) give rows with no kept tokens and everything in the tail.
    """
    rows = [item.rows for item in items]
    answer_ids = [token for item in items for token in item.answer_ids]
    return TeacherRows(
        kept_ids_MK=torch.cat(
            [torch.from_numpy(part.kept_ids_NK.astype("int64")) for part in rows if part is not None]
        ),
        kept_logprobs_MK=torch.cat([torch.from_numpy(part.kept_logprobs_NK) for part in rows if part is not None]),
        tail_logprob_M=torch.cat([torch.from_numpy(part.tail_logprob_N) for part in rows if part is not None]),
        answer_ids_M=torch.tensor(answer_ids),
        answer_logprob_M=torch.cat([torch.from_numpy(part.answer_logprob_N) for part in rows if part is not None]),
        entropy_M=torch.cat([torch.from_numpy(part.entropy_N) for part in rows if part is not None]),
    )


def draw_batches(num_items: int, batch_size: int, *, seed: int, purpose: str) -> Iterator[tuple[int, list[int]]]:
    """Yield (epoch, indices) without end: each epoch is a new order of all items, cut into batches.

    The last batch of an epoch may be smaller; order is a function of (seed, purpose, epoch).
    """
    epoch = 0
    while True:
        order = list(range(num_items))
        random.Random(f"{seed}/{purpose}/{epoch}").shuffle(order)
        for start in range(0, num_items, batch_size):
            yield epoch, order[start : start + batch_size]
        epoch += 1


def count_steps(num_items: int, batch_size: int, num_epochs: float) -> int:
    """Return the optimizer steps of a run."""
    return max(1, round(num_epochs * -(-num_items // batch_size)))


def share_of(indices: Sequence[int], rank: int, world_size: int) -> list[int]:
    """Return one process's share of a batch; shares of all processes are the batch."""
    return list(indices[rank::world_size])
