"""Join examples with their cached rows, and draw the batches of a run.

A batch is a function of (seed, epoch) alone: every process draws the same one and takes its micro-batches, so one and
many workers see the same pairings. Rows come from a cache by row key and person, and the token hash proves that teacher
and student tokenized alike. Which cache to read is `caches.py`'s business. M answer tokens, K kept.
"""

import random
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from ..data.example import Example
from ..models.encode import Encoded, Encoder
from ..models.interventions import Kind, pixels_digest
from ..precompute.cache import CacheMismatch, Rows, TeacherCache, person_digest, row_key, token_hash
from .rows import TeacherRows, cut_rows


@dataclass(frozen=True, slots=True)
class Item:
    """One example to train on, tokenized, with the cached rows of its answer (None where none are read).

    `log_rows` are those of irrelevant images where they exist and the method reads others: the log and the stop speak
    of key tokens whatever a method reads. `refusal` is the same example with a refusal for an answer.
    """

    example: Example
    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    rows: Rows | None
    log_rows: Rows | None = None
    refusal: "Item | None" = None
    encoded: list[Encoded] = field(default_factory=list, compare=False, repr=False)

    def encode(self, encoder: Encoder) -> Encoded:
        """Return the example in tokens; made once, since every epoch asks again."""
        if not self.encoded:
            self.encoded.append(encoder.assemble(self.example, self.prompt_ids, self.answer_ids, self.example.images))
        return self.encoded[0]


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


def stack_rows(rows: Sequence[Rows], answer_ids: Sequence[int], top_k: int | None = None) -> TeacherRows:
    """Return the rows of a batch's answer tokens, end to end, with at most `top_k` kept tokens.

    Caches of scalars only (K = 0) give rows with no kept tokens and everything in the tail.
    """
    stacked = TeacherRows(
        kept_ids_MK=torch.from_numpy(np.concatenate([part.kept_ids_NK for part in rows]).astype(np.int64)),
        kept_logprobs_MK=torch.from_numpy(np.concatenate([part.kept_logprobs_NK for part in rows])),
        tail_logprob_M=torch.from_numpy(np.concatenate([part.tail_logprob_N for part in rows])),
        answer_ids_M=torch.tensor(answer_ids),
        answer_logprob_M=torch.from_numpy(np.concatenate([part.answer_logprob_N for part in rows])),
        entropy_M=torch.from_numpy(np.concatenate([part.entropy_N for part in rows])),
        sum_squares_M=torch.from_numpy(np.concatenate([part.sum_squares_N for part in rows])),
    )
    return stacked if top_k is None else cut_rows(stacked, top_k)


def no_rows(answer_ids: Sequence[int]) -> TeacherRows:
    """Return rows of which nothing is known: no kept tokens, and NaN for what a term must not read."""
    unknown_M = torch.full((len(answer_ids),), torch.nan)
    return TeacherRows(
        kept_ids_MK=torch.empty((len(answer_ids), 0), dtype=torch.long),
        kept_logprobs_MK=torch.empty((len(answer_ids), 0)),
        tail_logprob_M=torch.zeros(len(answer_ids)), answer_ids_M=torch.tensor(answer_ids),
        answer_logprob_M=unknown_M, entropy_M=unknown_M, sum_squares_M=unknown_M,
    )  # fmt: skip


def group_order(keys: Sequence[Hashable], group_size: int, rng: random.Random) -> list[int]:
    """Return an order of all items in groups of up to `group_size` items of one key (one image), groups shuffled."""
    by_key: dict[Hashable, list[int]] = {}
    for index, key in enumerate(keys):
        by_key.setdefault(key, []).append(index)
    groups: list[list[int]] = []
    for members in by_key.values():
        rng.shuffle(members)
        groups.extend(members[start : start + group_size] for start in range(0, len(members), group_size))
    rng.shuffle(groups)
    return [index for group in groups for index in group]


def draw_batches(
    num_items: int, batch_size: int, *, seed: int, purpose: str, keys: Sequence[Hashable] = (), group_size: int = 1
) -> Iterator[tuple[int, list[int]]]:
    """Yield (epoch, indices) without end: each epoch is a new order of all items, cut into batches.

    With a group size above 1, questions of one image (`keys`) stay together: images are drawn, then questions. The last
    batch of an epoch may be smaller; order is a function of (seed, purpose, epoch).
    """
    epoch = 0
    while True:
        rng = random.Random(f"{seed}/{purpose}/{epoch}")
        order = list(range(num_items))
        if group_size > 1:
            order = group_order(keys, group_size, rng)
        else:
            rng.shuffle(order)
        for start in range(0, num_items, batch_size):
            yield epoch, order[start : start + batch_size]
        epoch += 1


def image_keys(items: Sequence[Item]) -> list[Hashable]:
    """Return what questions about one image have in common."""
    return [tuple(image.sha256 for image in item.example.images) for item in items]


def count_steps(num_items: int, batch_size: int, num_epochs: float) -> int:
    """Return the optimizer steps of a run."""
    return max(1, round(num_epochs * -(-num_items // batch_size)))


def micro_batches(batch: Sequence[int], size: int, rank: int, world_size: int) -> list[list[int]]:
    """Return one process's micro-batches of a batch; those of all processes are the batch."""
    parts = [list(batch[start : start + size]) for start in range(0, len(batch), size)]
    return parts[rank::world_size]


def summary_of(caches: Mapping[str, TeacherCache]) -> dict[str, dict[str, str]]:
    """Return keys and roots of the caches a run read, by the name of the rows."""
    return {name: {"key": cache.key, "root": cache.root_digest} for name, cache in caches.items()}
