"""Expected seconds of all the work, from what a probe measured and what was counted.

The parts of `viker precompute` in its order: Python's libraries, tokens and name; weights and the engine's self-check;
blocks; the seal. Blocks are read, computed and staged side by side, so the slowest of the three counts. A prefix is
computed once where the engine can keep it and again where it cannot, as the engine's own store says when asked.
"""

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import torch

from ..models.prefix import Prefix as Held
from ..precompute.engines.prefix_store import PrefixStore
from .cost import SHARED, Shape, block_operations, prefix_bytes, prefix_operations, total_operations
from .probe import Rates
from .work import Planned, Prefix


class Seconds(NamedTuple):
    """Expected seconds by part; `reading` and `staging` go on beside computing (prefixes, suffixes, rows)."""

    start: float
    load: float
    reading: float
    prefixes: float
    suffixes: float
    rows: float
    staging: float
    seal: float

    @property
    def total(self) -> float:
        """Expected seconds of the command."""
        computing = self.prefixes + self.suffixes + self.rows
        return self.start + self.load + max(self.reading, computing, self.staging) + self.seal


def times_computed(
    planned: Planned, shape: Shape, element_size: int, *, device_bytes: int, host_bytes: int
) -> Mapping[Prefix, int]:
    """Return how often each prefix is computed within a budget, by asking the engine's store for keys alone."""
    store = PrefixStore(device_bytes, host_bytes, to_host=_stay, to_device=_stay)
    times: Counter[Prefix] = Counter()
    for block in planned.blocks:
        for prefix in block.suffixes:
            before = store.computed
            store.get(prefix, lambda: _placeholder(shape, prefix.length, element_size))  # noqa: B023 - called at once
            times[prefix] += store.computed - before
    return times


def forecast(
    planned: Planned, shape: Shape, engine: str, rates: Rates, times: Mapping[Prefix, int], *, start: float,
    load: float, pictures: float,
) -> Seconds:  # fmt: skip
    """Return the seconds expected of all blocks, given those of starting, loading and reading each picture once."""
    if engine != SHARED:
        prefixes, suffixes = 0, total_operations(shape, planned, engine).total
    else:
        prefixes = sum(sum(prefix_operations(shape, prefix)) * count for prefix, count in times.items())
        behind = [block_operations(shape, block, engine, ()) for block in planned.blocks]
        suffixes = sum(operations.suffix + operations.head for operations in behind)
    storing, num_rows = rates.storing, planned.stored_rows
    return Seconds(
        start=start,
        load=load,
        reading=pictures + rates.encode * planned.num_pairs,
        prefixes=rates.prefix * prefixes,
        suffixes=rates.suffix * suffixes,
        rows=rates.cut * sum(block.distinct_rows for block in planned.blocks),
        staging=storing.stage_block * len(planned.blocks) + storing.stage_row * num_rows,
        seal=storing.seal + storing.seal_row * num_rows,
    )


def _placeholder(shape: Shape, length: int, element_size: int) -> Held:
    """Return a prefix of the right number of bytes, none of which is allocated."""
    num_bytes = prefix_bytes(shape, [length], element_size)
    nothing = torch.empty(num_bytes // 2, dtype=torch.uint8, device="meta")
    return Held(((nothing, nothing),), length)


def _stay(tensor: torch.Tensor) -> torch.Tensor:
    return tensor
