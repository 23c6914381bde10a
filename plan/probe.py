"""Seconds of the work itself, measured on a few seconds of it: the engine, the blocks and the disk that will be used.

Blocks are run in order, each twice: the first time its new prefixes are computed, the second time they are there, so
the difference is what prefixes cost, and the second run what questions and answers cost behind them. A block that is
too large for the time left is cut between prefixes, as the engine's batches are. Rows are cut, staged and sealed in a
temporary cache as real ones are. What is measured is divided by the operations or rows it took (`cost.py`), and what
remains is the same work at the same rates. A probe that gets through all blocks has measured everything.
"""

import itertools
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from ..precompute.ask import Asked
from ..precompute.engines.rows import Pending
from ..precompute.open_teacher import Teacher
from ..precompute.reading.identity import rows_digest
from ..precompute.run import first_pending, pending_of, stored_rows
from ..precompute.writing.derive import join_rows
from ..precompute.writing.store import CacheBuilder, Sample
from .cost import SHARED, Shape, block_operations
from .work import Block, Planned, Prefix

Arrays = Mapping[str, np.ndarray]


class Storing(NamedTuple):
    """What storing takes: seconds to stage a block and a row, to seal a cache and a row; bytes of a cache and a row.

    `num_rows` is how many rows this comes from.
    """

    stage_block: float
    stage_row: float
    seal: float
    seal_row: float
    bytes: float
    bytes_row: float
    num_rows: int


class Rates(NamedTuple):
    """What was measured, a unit of work, and the pairs that this comes from.

    Seconds an operation of vision and prefix, an operation behind it, a pair to encode, a distinct row to cut.
    """

    prefix: float
    suffix: float
    encode: float
    cut: float
    storing: Storing
    num_pairs: int


@dataclass(slots=True)
class _Measured:
    """Sums over what was run: seconds of each kind, and the work they were for."""

    cold: list[tuple[float, int]] = field(default_factory=list)  # (seconds more than warm, operations of new prefixes)
    warm: list[tuple[float, int]] = field(default_factory=list)
    encode: list[tuple[float, int]] = field(default_factory=list)
    cut: list[tuple[float, int]] = field(default_factory=list)
    rows: list[tuple[tuple[Sample, ...], Arrays]] = field(default_factory=list)
    num_pairs: int = 0


def measure(planned: Planned, asked: Asked, teacher: Teacher, shape: Shape, home: Path, seconds: float) -> Rates:
    """Run blocks for some seconds (at least a prefix with what follows it), store their rows, and return the rates.

    `home` is an empty folder on the disk of the caches.
    """
    measured = _run_blocks(planned, asked, teacher, shape, time.perf_counter() + seconds)
    suffix = _rate(measured.warm)
    return Rates(
        prefix=_rate(measured.cold) if measured.cold else suffix,
        suffix=suffix,
        encode=_rate(measured.encode),
        cut=_rate(measured.cut),
        storing=_store(measured.rows, asked, home),
        num_pairs=measured.num_pairs,
    )


def _run_blocks(planned: Planned, asked: Asked, teacher: Teacher, shape: Shape, deadline: float) -> _Measured:
    measured, known = _Measured(), _prefixes_of_self_check(planned, asked)
    pace = _run_once(_first_prefixes(planned.blocks[0], 1), asked, teacher, shape, known, measured)
    measured = _Measured()  # the first run warms the machine up, it is no measure
    for block in planned.blocks:
        left = max(0.0, deadline - time.perf_counter())
        expected = 2 * pace * block_operations(shape, block, teacher.engine, block.suffixes).total
        part = block if expected <= left else _first_prefixes(block, max(2, int(left / expected * len(block.suffixes))))
        if measured.warm and part is not block:
            break
        pace = _run_once(part, asked, teacher, shape, known, measured)
    return measured


def _run_once(
    block: Block, asked: Asked, teacher: Teacher, shape: Shape, known: set[Prefix], measured: _Measured
) -> float:
    """Run a block cold and warm, note what it took, and return the seconds an operation took warm."""
    works = asked.request.by_row_key
    keys = list(dict.fromkeys(sample.row_key for sample in block.samples))
    started = time.perf_counter()
    pending = [pending_of(works[key], asked.intervention, asked.encoder) for key in keys]
    measured.encode.append((time.perf_counter() - started, sum(len(item.shown) for item in pending)))
    shown = {prefix.digests for prefix in block.suffixes}
    kept = [(key, part) for key, item in zip(keys, pending, strict=True) for part in _only(item, shown)]
    pending = [part for _, part in kept]
    new = [prefix for prefix in block.suffixes if prefix not in known]
    cold = _compute(pending, asked, teacher, measured) if new else None
    warm = _compute(pending, asked, teacher, measured)
    operations = block_operations(shape, block, teacher.engine, new)
    behind = operations.suffix + operations.head
    if teacher.engine != SHARED:
        behind = operations.total
    elif cold is not None:
        measured.cold.append((cold.seconds - warm.seconds, operations.vision + operations.prefix))
    measured.warm.append((warm.seconds, behind))
    known.update(block.suffixes)
    measured.num_pairs += len(block.pairs)
    rows = dict(zip((key for key, _ in kept), warm.rows, strict=True))
    samples = tuple(sample for sample in block.samples if sample.row_key in rows)
    measured.rows.append((samples, join_rows([rows[sample.row_key] for sample in samples])))
    return warm.seconds / behind


class _Run(NamedTuple):
    seconds: float
    rows: list[dict[str, np.ndarray]]


def _compute(pending: Sequence[Pending], asked: Asked, teacher: Teacher, measured: _Measured) -> _Run:
    """Run the teacher and cut its rows, each on its own clock."""
    started = time.perf_counter()
    found = list(teacher.rows_of(pending))
    if found[0].mean_MV.is_cuda:
        torch.cuda.synchronize()
    computed = time.perf_counter()
    rows = list(stored_rows(found, pending, asked.request.fingerprint))
    measured.cut.append((time.perf_counter() - computed, sum(item.num_rows for item in pending)))
    return _Run(computed - started, rows)


def _only(item: Pending, digests: Collection[tuple[str, ...]]) -> Iterator[Pending]:
    """Yield an example under those of its sets of images that are asked for, if there are any."""
    kept = [index for index, shown in enumerate(item.image_digests) if shown in digests]
    if kept:
        yield replace(
            item, shown=[item.shown[index] for index in kept],
            image_digests=[item.image_digests[index] for index in kept],
            images=[item.images[index] for index in kept] if item.images else (),
        )  # fmt: skip


def _first_prefixes(block: Block, count: int) -> Block:
    return replace(block, suffixes=dict(itertools.islice(block.suffixes.items(), count)))


def _prefixes_of_self_check(planned: Planned, asked: Asked) -> set[Prefix]:
    """Return the prefixes that opening the teacher computed: those of the first example."""
    shown = set(first_pending(asked.request, asked.intervention, asked.encoder).image_digests)
    return {prefix for prefix in planned.prefixes if prefix.digests in shown}


def _store(computed: Sequence[tuple[tuple[Sample, ...], Arrays]], asked: Asked, home: Path) -> Storing:
    """Stage and seal what was computed, after one sample of it alone: what a cache costs before it has rows."""
    samples = [sample for block, _ in computed for sample in block]
    by_key: dict[bytes, Arrays] = {}
    for block, arrays in computed:
        starts = np.cumsum([0, *(sample.num_rows for sample in block)])
        for sample, start, stop in zip(block, starts, starts[1:], strict=False):
            by_key[sample.row_key] = {name: array[start:stop] for name, array in arrays.items()}
    least, most = _make(samples[:1], by_key, asked, home / "least"), _make(samples, by_key, asked, home / "most")
    more = max(1, most.num_rows - least.num_rows)
    return Storing(
        stage_block=least.stage,
        stage_row=max(0.0, most.stage - most.num_blocks * least.stage) / more,
        seal=least.seal,
        seal_row=max(0.0, most.seal - least.seal) / more,
        bytes=least.num_bytes,
        bytes_row=max(0.0, most.num_bytes - least.num_bytes) / more,
        num_rows=most.num_rows,
    )


class _Made(NamedTuple):
    stage: float
    seal: float
    num_rows: int
    num_blocks: int
    num_bytes: int


def _make(samples: Sequence[Sample], by_key: Mapping[bytes, Arrays], asked: Asked, home: Path) -> _Made:
    fingerprint = {**asked.request.fingerprint, "rows": rows_digest({sample.row_key for sample in samples})}
    pool = () if asked.intervention.pool is None else asked.intervention.pool.images
    home.mkdir()
    builder = CacheBuilder(home, fingerprint, {}, samples, [bytes.fromhex(image.sha256) for image in pool])
    started = time.perf_counter()
    for block, (start, stop) in enumerate(builder.blocks):
        builder.claim(block)
        builder.write_block(block, join_rows([dict(by_key[sample.row_key]) for sample in builder.samples[start:stop]]))
    staged = time.perf_counter()
    root = builder.assemble()
    sealed = time.perf_counter()
    num_bytes = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
    num_rows = sum(sample.num_rows for sample in samples)
    return _Made(staged - started, sealed - staged, num_rows, len(builder.blocks), num_bytes)


def _rate(noted: Sequence[tuple[float, int]]) -> float:
    """Return seconds a unit over all that was noted, never below zero."""
    units = sum(count for _, count in noted)
    return max(0.0, sum(seconds for seconds, _ in noted)) / units if units else 0.0
