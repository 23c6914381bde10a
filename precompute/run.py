"""From examples and a frozen teacher to a sealed cache: what is asked, what is already there, what has to be run.

The key is known before any weight is loaded (files are digested, nothing runs), so a cache that exists, or one that
serves by the rules of identity, costs no model at all. Otherwise blocks are computed one by one and staged, the input
of one being read and the rows of another being written meanwhile. Which block is where on disk is `store.py`'s; how
rows come about is the engines', and what becomes of a block that does not fit into memory `token_budget.py`'s.
Shapes: M answer tokens of an example.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data.example import DataError, Example
from ..data.kinds import REPLACES_IMAGES, SHOWS_OWN_IMAGE
from ..models.encode import Encoder
from ..models.interventions import Intervention, encode_view, pixels_digest, require_images, teacher_prompt
from .cache import (
    Fingerprint,
    fingerprint_key,
    lineage_of,
    make_fingerprint,
    person_digest,
    row_key,
    token_hash,
)
from .engines.rows import Pending, Probabilities, RowsOf
from .token_budget import TokenBudget
from .topk import rows_from_probabilities
from .writing.derive import NOTHING_KNOWN, KnownRows, join_rows
from .writing.overlap import Steps
from .writing.schedule import EVERYTHING, Made, Part, stage_blocks
from .writing.store import CacheBuilder, Sample

ROWS_AT_ONCE = 1024  # cut to what is kept at a time


@dataclass(frozen=True, slots=True)
class Work:
    """One example to have rows for: its unexpanded ids and its row key.

    `shown_ids` is the prompt that the teacher reads, where that is not the example's own.
    """

    example: Example
    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    row_key: bytes
    shown_ids: tuple[int, ...] | None = None

    @property
    def read_ids(self) -> tuple[int, ...]:
        """The unexpanded prompt that the teacher reads."""
        return self.prompt_ids if self.shown_ids is None else self.shown_ids


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
        DataError: no examples, one that cannot be encoded, here or as the teacher reads it, or is about nobody, or
            those without the image that the intervention replaces.
    """
    if not examples:
        raise DataError("expected examples to compute rows for, found none. Check the source and its forget split.")
    if intervention.kind in REPLACES_IMAGES:
        require_images(examples, intervention.kind)
    works = []
    for example in map(intervention.answered, examples):
        if not example.people:
            raise DataError(
                f"{example.id}: expected an example about at least one person, found none. Name whom it is about."
            )
        prompt_ids, answer_ids = encoder.ids(example)
        key = row_key(prompt_ids, answer_ids, pixels_digest(example, intervention.kind))
        shown_ids = teacher_prompt(intervention, encoder, example, prompt_ids, answer_ids)
        works.append(Work(example, prompt_ids, answer_ids, key, shown_ids))
    fingerprint = make_fingerprint(
        identity, intervention.identity(), top_k=top_k, vocab_size=encoder.vocab_size, teacher_dtype=teacher_dtype,
        logprob_dtype=logprob_dtype, row_keys={work.row_key for work in works},
    )  # fmt: skip
    return Request(fingerprint, fingerprint_key(fingerprint), tuple(works))


def samples_for(request: Request, intervention: Intervention) -> list[Sample]:
    """Return the samples of a request, one a row key and person, in the order that saves most work.

    What shows the same image lies together, then what is asked alike, then what is answered alike: engines run once
    what the examples of a block share.
    """
    by_row_key = request.by_row_key
    ranks = {
        key: rank
        for rank, key in enumerate(sorted(by_row_key, key=lambda key: _likeness(by_row_key[key], intervention)))
    }
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
    return sorted(samples, key=lambda sample: (ranks[sample.row_key], sample))


def _likeness(work: Work, intervention: Intervention) -> tuple[Any, ...]:
    shows_own = intervention.kind in SHOWS_OWN_IMAGE
    own_images = tuple(image.sha256 for image in work.example.images) if shows_own else ()
    return own_images, work.prompt_ids, work.answer_ids, work.row_key


def start_builder(home: Path, request: Request, intervention: Intervention, build: Mapping[str, Any]) -> CacheBuilder:
    """Create or join the staging folder of a request."""
    pool = () if intervention.pool is None else intervention.pool.images
    digests = [bytes.fromhex(image.sha256) for image in pool]
    return CacheBuilder(home, request.fingerprint, build, samples_for(request, intervention), digests)


def compute_blocks(
    builder: CacheBuilder, request: Request, intervention: Intervention, encoder: Encoder, rows_of: RowsOf, device: str,
    known: KnownRows = NOTHING_KNOWN, part: Part = EVERYTHING, budget: TokenBudget | None = None,
) -> Made:  # fmt: skip
    """Compute every block of a part that nobody has staged, waiting for those another process is at.

    The teacher is not asked for rows that are known. While a block is computed here, the encoder belongs to the thread
    that reads the next one.

    Raises:
        MemoryShortage: a block does not fit into memory, whatever the token budget.
    """
    works, fitting = request.by_row_key, budget or TokenBudget()

    def prepare(block: int) -> Iterator[Pending]:
        return block_pending(samples_of_block(builder, block), works, intervention, encoder, known)

    def compute(block: int, pending: list[Pending]) -> tuple[dict[str, np.ndarray], int | None]:
        samples = samples_of_block(builder, block)
        run = partial(arrays_from_pending, samples, pending, rows_of, builder.fingerprint, known)
        return fitting.fit(run, pending), fitting.tokens if pending else None

    def write(block: int, computed: tuple[dict[str, np.ndarray], int | None]) -> None:
        arrays, tokens = computed
        made_on = known.device(_row_keys(samples_of_block(builder, block)), device)
        builder.write_block(block, arrays, made_on, tokens)

    def num_pairs(block: int) -> int:
        return count_pairs(samples_of_block(builder, block), known, builder.fingerprint)

    return stage_blocks(builder, Steps(prepare, compute, write), num_pairs, part=part)


def samples_of_block(builder: CacheBuilder, block: int) -> Sequence[Sample]:
    """Return the samples of a block, in order."""
    return builder.samples[slice(*builder.blocks[block])]


def _row_keys(samples: Sequence[Sample]) -> list[bytes]:
    """Return the distinct row keys of samples, in order."""
    return list(dict.fromkeys(sample.row_key for sample in samples))


def count_pairs(samples: Sequence[Sample], known: KnownRows, fingerprint: Fingerprint) -> int:
    """Return how many pairs of an example and an image the teacher runs for samples: each unknown row key once."""
    num_passes: int = max(1, fingerprint["draw"]["num_references"])
    return num_passes * len({sample.row_key for sample in samples if sample.row_key not in known})


def block_arrays(
    samples: Sequence[Sample], works: Mapping[bytes, Work], intervention: Intervention, encoder: Encoder,
    rows_of: RowsOf, fingerprint: Fingerprint, known: KnownRows = NOTHING_KNOWN, budget: TokenBudget | None = None,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Compute the arrays of a block from its samples, as `CacheBuilder.write_block` takes them; nothing is staged.

    Raises:
        MemoryShortage: they do not fit into memory, whatever the token budget.
    """
    pending = list(block_pending(samples, works, intervention, encoder, known))
    run = partial(arrays_from_pending, samples, pending, rows_of, fingerprint, known)
    return (budget or TokenBudget()).fit(run, pending)


def block_pending(
    samples: Sequence[Sample], works: Mapping[bytes, Work], intervention: Intervention, encoder: Encoder,
    known: KnownRows = NOTHING_KNOWN,
) -> Iterator[Pending]:  # fmt: skip
    """Yield what the teacher is asked of a block, images decoded: each unknown row key once, in order."""
    for key in _row_keys(samples):
        if key not in known:
            yield pending_of(works[key], intervention, encoder)


def arrays_from_pending(
    samples: Sequence[Sample], pending: Sequence[Pending], rows_of: RowsOf, fingerprint: Fingerprint, known: KnownRows
) -> dict[str, np.ndarray]:
    """Run the teacher on what `block_pending` yielded; the rows of a row key are repeated for all who share it."""
    keys = _row_keys(samples)
    rows = {key: known.rows(key) for key in keys if key in known}
    asked = [key for key in keys if key not in known]
    rows.update(zip(asked, stored_rows(rows_of(pending), pending, fingerprint), strict=True))
    return join_rows([rows[sample.row_key] for sample in samples])


def stored_rows(
    found: Iterable[Probabilities], pending: Sequence[Pending], fingerprint: Fingerprint
) -> Iterator[dict[str, np.ndarray]]:
    """Yield the rows of each example as a cache of this fingerprint stores them; many examples are cut at once."""
    held: list[tuple[Probabilities, Pending]] = []
    for one in zip(found, pending, strict=True):
        if sum(item.num_rows for _, item in held) + one[1].num_rows > ROWS_AT_ONCE:
            yield from _cut_rows(held, fingerprint)
            held = []
        held.append(one)
    yield from _cut_rows(held, fingerprint)


def _cut_rows(
    held: Sequence[tuple[Probabilities, Pending]], fingerprint: Fingerprint
) -> Iterator[dict[str, np.ndarray]]:
    if not held:
        return
    dtype = {"float16": torch.float16, "float32": torch.float32}[fingerprint["storage"]["logprobs"]]
    mean_NV = torch.cat([found.mean_MV for found, _ in held])
    entropy_N = torch.cat([found.mean_entropy_M for found, _ in held])
    answer_ids_N = torch.tensor([token for _, item in held for token in item.answer_ids], device=mean_NV.device)
    arrays = rows_from_probabilities(mean_NV, entropy_N, answer_ids_N, fingerprint["objective"]["top_k"], dtype)
    whole = {name: tensor.cpu().numpy() for name, tensor in arrays.items()}
    stops = list(itertools.accumulate((item.num_rows for _, item in held), initial=0))
    for start, stop in itertools.pairwise(stops):
        yield {name: array[start:stop] for name, array in whole.items()}


def pending_of(work: Work, intervention: Intervention, encoder: Encoder) -> Pending:
    """Return one example encoded under each image it is shown; where it is shown noise, `images` holds none."""
    views = intervention.views(work.example, work.row_key)
    seen = [encode_view(encoder, work.example, work.read_ids, work.answer_ids, view) for view in views]
    images = [view.images for view in views if not view.noises]
    return Pending([encoded for encoded, _ in seen], [digests for _, digests in seen], images, work.example.id)


def first_pending(request: Request, intervention: Intervention, encoder: Encoder) -> Pending:
    """Return the work of the first example, for the engine's self-check."""
    return pending_of(request.works[0], intervention, encoder)
