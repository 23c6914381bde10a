"""Which blocks of a cache a maker computes, and when it waits: the loop that every maker runs.

Makers agree through the staging folder alone (`store.py`): each computes what it can claim, and waits for what others
hold until they have staged it or their claims are stale. A *part* i of N, counted from 0, concerns itself with every
N-th block: it is how an array of jobs shares a cache without idling, and it leaves the others' blocks to them.
How the rows of a block come about is the caller's (`run.py`), how its steps overlap with its neighbors' `overlap.py`'s.
"""

import time
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

from tqdm import tqdm

from .claims import CLAIM_SECONDS
from .overlap import Overlap, Spent, Steps
from .store import POLL_SECONDS, CacheBuilder

Part = tuple[int, int]
EVERYTHING: Part = (0, 1)


class Made(NamedTuple):
    """The pairs of the blocks that a maker computed, and how it spent its time on them."""

    num_pairs: int
    spent: Spent


def stage_blocks(
    builder: CacheBuilder,
    steps: Steps[Any, Any],
    num_pairs: Callable[[int], int],
    *,
    part: Part = EVERYTHING,
    timeout_s: float = CLAIM_SECONDS,
) -> Made:
    """Compute every block of a part that nobody has staged, waiting for those another process is at.

    Args:
        builder: the cache in the making.
        steps: how a block is prepared, computed, and written with the builder.
        num_pairs: how much work a block is, for the progress bar.
        part: (i, N): only blocks whose number leaves i when divided by N.
        timeout_s: how long a claim that is not renewed is believed.
    """
    index, count = part
    mine = range(index, len(builder.blocks), count)
    computed, done = 0, set(builder.complete_blocks())
    hold = partial(builder.holding, timeout_s=timeout_s)
    bar = tqdm(total=sum(map(num_pairs, mine)), unit="pair", desc="precompute")
    bar.update(sum(map(num_pairs, done.intersection(mine))))
    with Overlap(steps, hold) as overlap:
        while not builder.sealed and not done.issuperset(mine):
            staged = set()
            for block in overlap.run(_claimed(builder, mine, done, timeout_s)):
                staged.add(block)
                computed += num_pairs(block)
                bar.update(num_pairs(block))
            before, done = done, set(builder.complete_blocks())
            bar.update(sum(map(num_pairs, (done - before - staged).intersection(mine))))
            if done == before:  # what is missing is another process's
                time.sleep(POLL_SECONDS)
    bar.close()
    return Made(computed, overlap.spent)


def _claimed(builder: CacheBuilder, mine: Iterable[int], done: Collection[int], timeout_s: float) -> Iterator[int]:
    """Claim the blocks that nobody has staged or is at, each when it is asked for."""
    for block in mine:
        if block not in done and builder.claim(block, timeout_s):
            yield block
