"""Which blocks of a cache a maker computes, and when it waits: the loop that every maker runs.

Makers agree through the staging folder alone (`store.py`): each computes what it can claim, and waits for what others
hold until they have staged it or their claims are stale. A *part* i of N, counted from 0, concerns itself with every
N-th block: it is how an array of jobs shares a cache without idling, and it leaves the others' blocks to them.
How the rows of a block come about is the caller's (`run.py`).
"""

import time
from collections.abc import Callable

from tqdm import tqdm

from .claims import CLAIM_SECONDS
from .store import POLL_SECONDS, CacheBuilder

Part = tuple[int, int]
EVERYTHING: Part = (0, 1)


def stage_blocks(
    builder: CacheBuilder,
    compute: Callable[[int], None],
    num_pairs: Callable[[int], int],
    *,
    part: Part = EVERYTHING,
    timeout_s: float = CLAIM_SECONDS,
) -> int:
    """Compute every block of a part that nobody has staged, waiting for those another process is at.

    Args:
        builder: the cache in the making.
        compute: computes a block and writes it with the builder.
        num_pairs: how much work a block is, for the progress bar.
        part: (i, N): only blocks whose number leaves i when divided by N.
        timeout_s: how long a claim that is not renewed is believed.

    Returns:
        The pairs of the blocks computed here.
    """
    index, count = part
    mine = range(index, len(builder.blocks), count)
    computed, done = 0, set(builder.complete_blocks())
    bar = tqdm(total=sum(map(num_pairs, mine)), unit="pair", desc="precompute")
    bar.update(sum(map(num_pairs, done.intersection(mine))))
    while not builder.sealed and not done.issuperset(mine):
        for block in mine:
            if block in done or not builder.claim(block, timeout_s):
                continue
            with builder.holding(block, timeout_s):
                compute(block)
            computed += num_pairs(block)
        before, done = done, set(builder.complete_blocks())
        bar.update(sum(map(num_pairs, (done - before).intersection(mine))))
        if done == before:  # what is missing is another process's
            time.sleep(POLL_SECONDS)
    bar.close()
    return computed
