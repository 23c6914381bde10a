"""From examples and a frozen teacher to a sealed cache: what is asked, what is already there, what has to be run.

The key is known before any weight is loaded (files are digested, nothing runs), so a cache that exists, or one that
serves by the rules of identity, costs no model at all. Otherwise blocks are computed one by one and staged; a kill
loses at most the block in flight. Which block is where on disk is `store.py`'s; how rows come about is the engines'.
Shapes: M answer tokens of an example.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ..data.example import DataError, Example
from ..models.encode import Encoder
from ..models.interventions import Intervention, pixels_digest, require_images
from .cache import (
    Fingerprint,
    TeacherCache,
    fingerprint_key,
    lineage_of,
    make_fingerprint,
    person_digest,
    row_key,
    serving_caches,
    token_hash,
)
from .engines.rows import Pending, Probabilities
from .store import CacheBuilder, Sample
from .topk import rows_from_probabilities

RowsOf = Callable[[Sequence[Pending]], Iterator[Probabilities]]


@dataclass(frozen=True, slots=True)
class Work:
    """One example to have rows for: its unexpanded ids and its row key."""

    example: Example
    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    row_key: bytes


@dataclass(frozen=True, slots=True)
class Request:
    """Everything that decides a cache: the fingerprint, its key, and the work of each row key."""

    fingerprint: Fingerprint
    key: str
    works: tuple[Work, ...]

    @property
    def by_row_key(self) -> dict[bytes, Work]:
        """One representative work a row key; equal keys have equal rows."""
        return {work.row_key: work for work in self.works}


def make_request(
    encoder: Encoder,
    examples: Sequence[Example],
    intervention: Intervention,
    identity: Mapping[str, Any],
    *,
    top_k: int,
    teacher_dtype: str,
    logprob_dtype: str,
) -> Request:
    """Tokenize the examples and name the cache that holds their rows; no model is loaded.

    Raises:
        DataError: no examples, one that cannot be encoded or is about nobody, or those without the image that the
            intervention replaces.
    """
    if not examples:
        raise DataError("expected examples to compute rows for, found none. Check the source and its forget split.")
    if intervention.pool is not None:
        require_images(examples)
    works = []
    for example in examples:
        if not example.people:
            raise DataError(
                f"{example.id}: expected an example about at least one person, found none. Name whom it is about."
            )
        prompt_ids, answer_ids = encoder.ids(example)
        key = row_key(prompt_ids, answer_ids, pixels_digest(example, intervention.kind))
        works.append(Work(example, prompt_ids, answer_ids, key))
    fingerprint = make_fingerprint(
        identity, intervention.identity(), top_k=top_k, vocab_size=encoder.vocab_size, teacher_dtype=teacher_dtype,
        logprob_dtype=logprob_dtype, row_keys={work.row_key for work in works},
    )  # fmt: skip
    return Request(fingerprint, fingerprint_key(fingerprint), tuple(works))


def find_existing(home: Path, request: Request, named: frozenset[str]) -> TeacherCache | None:
    """Return the cache of this key, else one whose rows serve by the rules of identity, else None."""
    exact = home / request.key[:16]
    if (exact / "manifest.json").is_file():
        return TeacherCache.open(exact)
    serving = serving_caches(home, request.fingerprint, named, set(request.by_row_key))
    return serving[0] if serving else None


def start_builder(home: Path, request: Request, intervention: Intervention, build: Mapping[str, Any]) -> CacheBuilder:
    """Create or join the staging folder of a request."""
    lineage = lineage_of(request.fingerprint)
    samples = {
        Sample(
            row_key=work.row_key,
            person=person_digest(lineage, person),
            token_hash=token_hash(lineage, work.prompt_ids, work.answer_ids),
            num_rows=len(work.answer_ids),
            references=intervention.draw(work.row_key),
        )
        for work in request.works
        for person in work.example.people
    }
    pool = () if intervention.pool is None else intervention.pool.images
    return CacheBuilder(
        home, request.fingerprint, build, sorted(samples), [bytes.fromhex(image.sha256) for image in pool]
    )


def compute_blocks(
    builder: CacheBuilder, request: Request, intervention: Intervention, encoder: Encoder, rows_of: RowsOf, device: str
) -> int:
    """Compute every block that nobody has staged, waiting for those another process is at; return the pairs run.

    A pair is one example under one image.
    """
    works, num_pairs = request.by_row_key, 0
    done = set(builder.complete_blocks())
    bar = tqdm(total=_num_pairs(builder, range(len(builder.blocks))), unit="pair", desc="precompute")
    bar.update(_num_pairs(builder, done))
    while not builder.sealed and len(done) < len(builder.blocks):
        for block in sorted(set(range(len(builder.blocks))) - done):
            if not builder.claim(block):
                continue
            builder.write_block(block, _block_arrays(builder, block, works, intervention, encoder, rows_of), device)
            pairs = _num_pairs(builder, [block])
            bar.update(pairs)
            num_pairs += pairs
        known, done = len(done), set(builder.complete_blocks())
        if len(done) == known:  # what is missing is another process's
            time.sleep(0.2)
    bar.close()
    return num_pairs


def _num_pairs(builder: CacheBuilder, blocks: Any) -> int:
    samples = (sample for block in blocks for sample in builder.samples[slice(*builder.blocks[block])])
    return sum(max(1, len(sample.references)) for sample in samples)


def _block_arrays(
    builder: CacheBuilder,
    block: int,
    works: Mapping[bytes, Work],
    intervention: Intervention,
    encoder: Encoder,
    rows_of: RowsOf,
) -> dict[str, np.ndarray]:
    """Compute a block: each distinct row key once, its rows repeated for every person who shares it."""
    samples = builder.samples[slice(*builder.blocks[block])]
    keys = list(dict.fromkeys(sample.row_key for sample in samples))
    pending = [_pending(works[key], intervention, encoder) for key in keys]
    top_k = builder.fingerprint["objective"]["top_k"]
    dtype = {"float16": torch.float16, "float32": torch.float32}[builder.fingerprint["storage"]["logprobs"]]
    rows = {}
    for key, item, found in zip(keys, pending, rows_of(pending), strict=True):
        answer_ids_M = torch.tensor(item.answer_ids, device=found.mean_MV.device)
        rows[key] = rows_from_probabilities(found.mean_MV, found.mean_entropy_M, answer_ids_M, top_k, dtype)
    names = rows[keys[0]]
    return {name: torch.cat([rows[sample.row_key][name] for sample in samples]).cpu().numpy() for name in names}


def _pending(work: Work, intervention: Intervention, encoder: Encoder) -> Pending:
    shown = intervention.shown(work.example, work.row_key)
    encoded = [encoder.assemble(work.example, work.prompt_ids, work.answer_ids, images) for images in shown]
    return Pending(encoded, [tuple(image.sha256 for image in images) for images in shown])


def first_pending(request: Request, intervention: Intervention, encoder: Encoder) -> Pending:
    """Return the work of the first example, for the engine's self-check."""
    return _pending(request.works[0], intervention, encoder)
