"""Caches of reference rows with chosen scalars, for tests of what is read from several pools at once."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from cache_samples import make_fingerprint
from viker.precompute.cache import TeacherCache, lineage_of, person_digest, row_key, token_hash
from viker.precompute.reading.identity import rows_digest
from viker.precompute.writing.store import CacheBuilder, Sample

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

Token = tuple[float, float]  # entropy in nats, R(y)

DISAGREEMENT = 0.25


def key_of(answer: int) -> bytes:
    """The row key of an answer, the same in every cache."""
    return row_key([1, 2, answer], [7], None)


def make_pool_cache(
    home: Path, pool: str, answers: Mapping[int, tuple[str, Sequence[Token]]], *,
    draws: Mapping[int, tuple[int, ...]] | None = None, images: int = 3, keys: Mapping[int, bytes] | None = None,
    **changes: Any,
) -> TeacherCache:  # fmt: skip
    """A cache of scalars: for each answer its person and a (entropy, R(y)) a token; `draws` are the images shown."""
    keys = keys or {answer: key_of(answer) for answer in answers}
    draws = draws or dict.fromkeys(answers, (0, 1))
    fingerprint = make_fingerprint(top_k=0, pool=pool * 64, **changes)
    fingerprint["draw"]["num_references"] = len(next(iter(draws.values())))
    fingerprint["rows"] = rows_digest(set(keys.values()))
    lineage = lineage_of(fingerprint)
    samples = {
        answer: Sample(keys[answer], person_digest(lineage, person), token_hash(lineage, [answer], [7]),
                       len(tokens), draws[answer])
        for answer, (person, tokens) in answers.items()
    }  # fmt: skip
    digests = [bytes([number]) * 32 for number in range(images)]
    builder = CacheBuilder(home, fingerprint, {"source": "tests"}, sorted(samples.values()), digests)
    tokens_of = {samples[answer]: tokens for answer, (_, tokens) in answers.items()}
    for block, (start, stop) in enumerate(builder.blocks):
        builder.write_block(
            block, rows_of([token for sample in builder.samples[start:stop] for token in tokens_of[sample]])
        )
    return TeacherCache.open(builder.assemble())


def rows_of(tokens: Sequence[Token]) -> dict[str, np.ndarray]:
    """The arrays of rows that keep no token."""
    N = len(tokens)
    return {
        "kept_id": np.empty((N, 0), np.uint16),
        "kept_logprob": np.empty((N, 0), np.float16),
        "tail_logprob": np.zeros(N, np.float32),
        "entropy": np.array([entropy for entropy, _ in tokens], np.float32),
        "answer_logprob": np.array([math.log(probability) for _, probability in tokens], np.float32),
        "sum_squares": np.full(N, 0.5, np.float32),
        "disagreement": np.full(N, DISAGREEMENT, np.float16),
    }
