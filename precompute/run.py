"""From examples and a frozen teacher to a sealed cache: what is asked, what is already there, what has to be run.

The key is known before any weight is loaded (files are digested, nothing runs), so a cache that exists, or one that
serves by the rules of identity, costs no model at all. Otherwise blocks are computed one by one and staged; a kill
loses at most the block in flight. Which block is where on disk is `store.py`'s; how rows come about is the engines'.
Shapes: M answer tokens of an example.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data.example import DataError, Example
from ..models.encode import Encoder
from ..models.interventions import Intervention, pixels_digest, require_images
from .cache import (
    Fingerprint,
    fingerprint_key,
    lineage_of,
    make_fingerprint,
    person_digest,
    row_key,
    token_hash,
)
from .engines.rows import Pending, Probabilities
from .topk import rows_from_probabilities
from .writing.derive import NOTHING_KNOWN, KnownRows, join_rows
from .writing.schedule import EVERYTHING, Part, stage_blocks
from .writing.store import CacheBuilder, Sample

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


def samples_for(request: Request, intervention: Intervention) -> list[Sample]:
    """Return the samples of a request, sorted: one a row key and person."""
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
    return sorted(samples)


def start_builder(home: Path, request: Request, intervention: Intervention, build: Mapping[str, Any]) -> CacheBuilder:
    """Create or join the staging folder of a request."""
    pool = () if intervention.pool is None else intervention.pool.images
    digests = [bytes.fromhex(image.sha256) for image in pool]
    return CacheBuilder(home, request.fingerprint, build, samples_for(request, intervention), digests)


def compute_blocks(
    builder: CacheBuilder, request: Request, intervention: Intervention, encoder: Encoder, rows_of: RowsOf, device: str,
    known: KnownRows = NOTHING_KNOWN, part: Part = EVERYTHING,
) -> int:  # fmt: skip
    """Compute every block of a part that nobody has staged, waiting for those another process is at.

    The teacher is not asked for rows that are known. Return the pairs run, of one example under one image.
    """
    works = request.by_row_key

    def compute(block: int) -> None:
        arrays = _block_arrays(builder, block, works, intervention, encoder, rows_of, known)
        builder.write_block(block, arrays, known.device(_row_keys(builder, block), device))

    def num_pairs(block: int) -> int:
        return count_pairs(builder.samples[slice(*builder.blocks[block])], known)

    return stage_blocks(builder, compute, num_pairs, part=part)


def _row_keys(builder: CacheBuilder, block: int) -> list[bytes]:
    """Return the distinct row keys of a block."""
    return list(dict.fromkeys(sample.row_key for sample in builder.samples[slice(*builder.blocks[block])]))


def count_pairs(samples: Sequence[Sample], known: KnownRows) -> int:
    """Return how many pairs of an example and an image the teacher runs for samples: each unknown row key once."""
    images = {sample.row_key: max(1, len(sample.references)) for sample in samples if sample.row_key not in known}
    return sum(images.values())


def _block_arrays(
    builder: CacheBuilder,
    block: int,
    works: Mapping[bytes, Work],
    intervention: Intervention,
    encoder: Encoder,
    rows_of: RowsOf,
    known: KnownRows,
) -> dict[str, np.ndarray]:
    """Compute a block: each unknown row key once, its rows repeated for every person who shares it."""
    keys = _row_keys(builder, block)
    rows = {key: known.rows(key) for key in keys if key in known}
    asked = [key for key in keys if key not in known]
    pending = [pending_of(works[key], intervention, encoder) for key in asked]
    for key, item, found in zip(asked, pending, rows_of(pending), strict=True):
        rows[key] = stored_rows(found, item, builder.fingerprint)
    return join_rows([rows[sample.row_key] for sample in builder.samples[slice(*builder.blocks[block])]])


def stored_rows(found: Probabilities, item: Pending, fingerprint: Fingerprint) -> dict[str, np.ndarray]:
    """Return the rows of one example as a cache of this fingerprint stores them."""
    dtype = {"float16": torch.float16, "float32": torch.float32}[fingerprint["storage"]["logprobs"]]
    answer_ids_M = torch.tensor(item.answer_ids, device=found.mean_MV.device)
    top_k = fingerprint["objective"]["top_k"]
    rows = rows_from_probabilities(found.mean_MV, found.mean_entropy_M, answer_ids_M, top_k, dtype)
    return {name: tensor.cpu().numpy() for name, tensor in rows.items()}


def pending_of(work: Work, intervention: Intervention, encoder: Encoder) -> Pending:
    """Return one example encoded under each image it is shown."""
    shown = intervention.shown(work.example, work.row_key)
    encoded = [encoder.assemble(work.example, work.prompt_ids, work.answer_ids, images) for images in shown]
    return Pending(encoded, [tuple(image.sha256 for image in images) for images in shown])


def first_pending(request: Request, intervention: Intervention, encoder: Encoder) -> Pending:
    """Return the work of the first example, for the engine's self-check."""
    return pending_of(request.works[0], intervention, encoder)
