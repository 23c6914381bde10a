"""What a cache is going to hold, before any row is known: its samples, cut into the blocks that makers compute.

A block is whole samples in the order given, and samples of one row key share a block, so that the teacher runs once for
them. Which order saves work is its maker's to know; a sealed cache is sorted whatever it was. Where blocks lie and who
computes them is `store.py`'s.
"""

# n samples, k references, M pool images

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...data.example import canonical_json
from ..cache import CacheError, Fingerprint

ROWS_PER_BLOCK = 4096
LEAST_BLOCKS = 20  # of a cache with that many samples: a kill costs one of them, rarely two


@dataclass(frozen=True, order=True, slots=True)
class Sample:
    """One sample of a cache, before its rows are known: identity, length, and the pool images it averages."""

    row_key: bytes
    person: bytes
    token_hash: int
    num_rows: int
    references: tuple[int, ...] = ()


def plan_blocks(lengths_n: Sequence[int]) -> list[tuple[int, int]]:
    """Cut samples into blocks of whole samples and return their (start, stop).

    A block has at most 4096 rows, unless one sample alone has more, and at most a twentieth of the samples.
    """
    most_samples = max(1, len(lengths_n) // LEAST_BLOCKS)
    blocks, start, rows = [], 0, 0
    for index, length in enumerate(lengths_n):
        if index > start and (rows + length > ROWS_PER_BLOCK or index - start == most_samples):
            blocks.append((start, index))
            start, rows = index, 0
        rows += length
    return [*blocks, (start, len(lengths_n))] if lengths_n else []


def blocks_of(samples: Sequence[Sample]) -> list[tuple[int, int]]:
    """Cut samples into blocks and return their (start, stop); samples of one row key stay together."""
    groups = [list(group) for _, group in itertools.groupby(samples, key=lambda sample: sample.row_key)]
    bounds = [0, *itertools.accumulate(map(len, groups))]
    lengths = [sum(sample.num_rows for sample in group) for group in groups]
    return [(bounds[start], bounds[stop]) for start, stop in plan_blocks(lengths)]


def check_samples(samples: Sequence[Sample], pool_sha256: Sequence[bytes], fingerprint: Fingerprint) -> None:
    """Check that there are samples, each with rows.

    Raises:
        CacheError: when there are none, or one has an empty answer.
    """
    pairs = {(sample.row_key, sample.person) for sample in samples}
    if not samples or min(sample.num_rows for sample in samples) < 1:
        raise CacheError("Expected at least one sample, each with an answer token; found none, or an empty answer.")
    assert len(pairs) == len(samples), "one sample a row key and person"
    runs = sum(1 for _ in itertools.groupby(samples, key=lambda sample: sample.row_key))
    assert runs == len({sample.row_key for sample in samples}), "samples of one row key lie side by side"
    assert all(len(key) == len(person) == 16 for key, person in pairs)
    assert bool(pool_sha256) == (fingerprint["pool"] is not None)
    k = fingerprint["draw"]["num_references"] if pool_sha256 else 0
    assert all(len(sample.references) == k for sample in samples)


def plan_bytes(
    key: str, blocks: Sequence[tuple[int, int]], samples: Sequence[Sample], pool_sha256: Sequence[bytes]
) -> bytes:
    """Return plan.json: what all makers of a cache agree about."""
    samples_sha256 = hashlib.sha256(repr([astuple(sample) for sample in samples]).encode()).hexdigest()
    pool = hashlib.sha256(b"".join(pool_sha256)).hexdigest()
    return canonical_json(
        {"key": key, "blocks": list(map(list, blocks)), "samples_sha256": samples_sha256, "pool_sha256": pool}
    )


def sample_arrays(samples: Sequence[Sample], pool_sha256: Sequence[bytes]) -> dict[str, NDArray[Any]]:
    """Return the arrays of a cache that hold no rows, by name."""
    offset = [0, *itertools.accumulate(sample.num_rows for sample in samples)]
    arrays: dict[str, NDArray[Any]] = {
        "sample/offset": np.array(offset, np.int64),
        "sample/key": _bytes_to_array([sample.row_key for sample in samples]),
        "sample/person": _bytes_to_array([sample.person for sample in samples]),
        "sample/token_hash": np.array([sample.token_hash for sample in samples], np.uint64),
    }
    if pool_sha256:
        arrays["sample/reference"] = np.array([sample.references for sample in samples], np.uint16)
        arrays["reference/sha256"] = _bytes_to_array(pool_sha256)
    return arrays


def _bytes_to_array(digests: Sequence[bytes]) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(digests), np.uint8).reshape(len(digests), -1)
