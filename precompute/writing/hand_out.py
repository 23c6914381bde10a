"""Blocks of a cache handed to workers: the loop of a maker that claims and stages, and lets others compute.

To the staging folder this is one more maker: what it has given out it holds a claim on and renews, so that parts and
teammates cooperate with it as with any other. It gives out as much as its workers can take at once, so a kill loses
those blocks and no others; workers need no disk in common with it, since their rows come back as arrays. Which workers
there are, and what becomes of a block when one dies, is theirs to know (`workers.py`).
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Protocol

from numpy.typing import NDArray
from tqdm import tqdm

from .claims import CLAIM_SECONDS
from .schedule import EVERYTHING, Part
from .store import POLL_SECONDS, CacheBuilder


class Computed(NamedTuple):
    """The rows of a block, as `CacheBuilder.write_block` takes them, and what computed them."""

    block: int
    arrays: dict[str, NDArray[Any]]
    device: str
    token_budget: int | None = None


class Workers(Protocol):
    """Who computes the blocks that are handed out."""

    def room(self) -> int:
        """Return how many more blocks can be begun now."""

    def begin(self, block: int) -> None:
        """Have a block computed; only where there is room."""

    def finished(self, timeout_s: float) -> list[Computed]:
        """Return the blocks computed since the last call, waiting for the first of them for at most so long."""


def hand_out_blocks(
    builder: CacheBuilder,
    workers: Workers,
    num_pairs: Callable[[int], int],
    *,
    part: Part = EVERYTHING,
    timeout_s: float = CLAIM_SECONDS,
) -> int:
    """Have every block of a part computed that nobody has staged, waiting for those another process is at.

    Args:
        builder: the cache in the making.
        workers: compute the blocks.
        num_pairs: how much work a block is, for the progress bar.
        part: (i, N): only blocks whose number leaves i when divided by N.
        timeout_s: how long a claim that is not renewed is believed.

    Returns:
        The pairs of the blocks computed here.
    """
    mine = blocks_of_part(builder, part)
    num_computed, done = 0, set(builder.complete_blocks())
    with (
        tqdm(total=sum(map(num_pairs, mine)), unit="pair", desc="precompute") as bar,
        _claims() as held,
    ):
        bar.update(sum(map(num_pairs, done.intersection(mine))))
        while not builder.sealed and not done.issuperset(mine):
            for block in _claimed(builder, workers, set(mine) - done - held.keys(), timeout_s):
                held[block] = contextlib.ExitStack()
                held[block].enter_context(builder.holding(block, timeout_s))
                workers.begin(block)
            for block, arrays, device, token_budget in workers.finished(POLL_SECONDS):
                builder.write_block(block, arrays, device, token_budget)
                held.pop(block).close()
                num_computed += num_pairs(block)
            before, done = done, set(builder.complete_blocks())
            if done != before:
                bar.update(sum(map(num_pairs, (done - before).intersection(mine))))
    return num_computed


def blocks_of_part(builder: CacheBuilder, part: Part) -> range:
    """Return the blocks of a part."""
    index, count = part
    return range(index, len(builder.blocks), count)


@contextlib.contextmanager
def _claims() -> Iterator[dict[int, contextlib.ExitStack]]:
    """Give what keeps the claims on blocks that are given out; drop them all at the end, however that comes."""
    held: dict[int, contextlib.ExitStack] = {}
    try:
        yield held
    finally:
        for claim in held.values():
            claim.close()


def _claimed(builder: CacheBuilder, workers: Workers, blocks: Iterable[int], timeout_s: float) -> Iterator[int]:
    """Claim and yield blocks while the workers have room for one more."""
    for block in sorted(blocks):
        if not workers.room():
            return
        if builder.claim(block, timeout_s):
            yield block
