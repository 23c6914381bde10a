"""How many suffix tokens the teacher takes at a time: agreed once for a cache, halved where memory runs out.

Which suffixes share a batch is a function of the block and of this number, and on a GPU the batch is part of what
decides the last bits of a row. So the number is settled before the first block and lies beside the blocks, for every
maker and every resume: a constant on a CPU and under --deterministic; elsewhere the fastest of a few that were tried on
the first block's own work; or what somebody named, which then counts for the blocks still to come. A block that does
not fit into memory halves it for itself and those behind it. Each block records the number it was computed with.
"""

import gc
import itertools
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeVar

import torch

from ..data.example import DataError
from .engines.rows import Pending, RowsOf
from .writing.agreed import agree, change
from .writing.store import CacheBuilder

TOKEN_BUDGET = 4096
PROBED = (1024, 2048, 4096, 8192, 16384, 32768)
_TRIES = 2  # of each, on twice as many tokens
_COST = 0.05  # of all tokens of a cache: what trying may take
_NEARLY = 1.03  # times the least seconds
_HEADROOM = 0.9  # of the free memory: allocators fragment
_FILE, _FIELD = "token-budget", "tokens"

Announce = Callable[[str], None]
T = TypeVar("T")


class MemoryShortage(DataError):
    """The teacher runs out of memory with a single suffix a batch: says what was needed and what to do."""


class Resizable(Protocol):
    """An engine whose batches have a token budget."""

    token_budget: int

    def forget(self) -> None:
        """Give back the memory of prefixes that are not in use."""


class Trial(NamedTuple):
    """What one run of some work took: seconds a token, and the bytes at its peak beyond those held before."""

    seconds_per_token: float
    extra_bytes: int


class TokenBudget:
    """The suffix tokens of a batch that an engine runs with; halved, loudly, by a block that does not fit.

    `engine` is None where there is none, or not yet: memory that runs out is then one clear error.
    """

    def __init__(self, announce: Announce = lambda _line: None, keep: Callable[[int], None] = lambda _tokens: None):
        """Be told of a budget that is halved: `announce` the line for people, `keep` the number for other makers."""
        self.engine: Resizable | None = None
        self._announce, self._keep = announce, keep

    @property
    def tokens(self) -> int | None:
        """The budget in force."""
        return None if self.engine is None else self.engine.token_budget

    def fit(self, run: Callable[[], T], pending: Sequence[Pending]) -> T:
        """Return what computing a block returns, with as small a budget as it takes.

        Raises:
            MemoryShortage: not even single suffixes fit.
        """
        while True:
            try:
                return run()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                found = (str(error).partition("\n")[0] or type(error).__name__).rstrip(". ")
            self._halve(found, pending)  # outside: the error holds on to what the run had allocated

    def _halve(self, found: str, pending: Sequence[Pending]) -> None:
        lengths = [len(shown.input_ids) - shown.image_end for item in pending for shown in item.shown]
        if self.engine is None or self.engine.token_budget < min(lengths):
            raise MemoryShortage(
                f"precompute: expected memory for one answer at a time, of at most {max(lengths)} tokens behind their "
                f"images; found too little ({found}). What is staged is kept: stop what else uses the device, or use a "
                "larger one, and run the same command to resume; or name a smaller --dtype, which makes another cache."
            )
        before, after = self.engine.token_budget, self.engine.token_budget // 2
        self.engine.forget()
        self.engine.token_budget = after
        give_memory_back()
        self._keep(after)
        self._announce(
            f"precompute: WARNING: out of memory with {before} tokens a batch ({found}). Going on with {after}, for "
            "this block and those to come; each block records its own."
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that memory could not be allocated, on a GPU or on the CPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(
        text in str(error) for text in ("can't allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED")
    )


def give_memory_back() -> None:
    """Free what nothing refers to any more, on the device too."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def settle_budget(builder: CacheBuilder, named: int | None, choose: Callable[[], int], announce: Announce) -> int:
    """Return the token budget of a cache in the making, which the first of its makers stores.

    Args:
        builder: the cache.
        named: what the user asks for; it counts from here on, for this maker and those that name none.
        choose: finds one where nobody has named or found one yet; other makers wait for it.
        announce: told of a budget that differs from the one before.
    """
    found = agree(builder, _FILE, lambda: {_FIELD: choose() if named is None else named})[_FIELD]
    if named is None or named == found:
        return found
    keep_budget(builder, named)
    announce(
        f"precompute: blocks so far were computed with {found} tokens a batch; those to come with the {named} of "
        "--token-budget. Each block records its own."
    )
    return named


def keep_budget(builder: CacheBuilder, tokens: int) -> None:
    """Store a budget for makers that join later, and for resuming."""
    change(builder, _FILE, {_FIELD: tokens})


def choose_budget(try_out: Callable[[int], Trial], free_bytes: float, sizes: Sequence[int]) -> int:
    """Return the budget that is fastest, or nearly so and smaller, among those that fit.

    Args:
        try_out: runs some work with a budget; may run out of memory, which ends the search.
        free_bytes: what a batch may take.
        sizes: the budgets to try, in ascending order.
    """
    spent: dict[int, float] = {}
    for tokens in sizes:
        try:
            trial = try_out(tokens)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            break
        if trial.extra_bytes > _HEADROOM * free_bytes:
            break
        spent[tokens] = trial.seconds_per_token
    give_memory_back()
    if not spent:
        return sizes[0] // 2  # halved further by a block that finds it too large
    return next(tokens for tokens, seconds in spent.items() if seconds <= _NEARLY * min(spent.values()))


def probe_budget(
    engine: Resizable, rows_of: RowsOf, pending: Sequence[Pending], num_pairs: int, announce: Announce
) -> int:
    """Return the best token budget for an engine, tried out on the first work of a block.

    Args:
        engine: its budget is changed on the way.
        rows_of: runs it.
        pending: the work of a block.
        num_pairs: of the whole cache; one too small to earn the trials back gets the constant.
        announce: told the choice.
    """
    total = sum(map(_num_tokens, pending)) / sum(len(item.shown) for item in pending) * num_pairs
    sizes = [
        tokens for tokens in PROBED if _TRIES * 2 * sum(size for size in PROBED if size <= tokens) <= _COST * total
    ]
    if len(sizes) < 2:
        return TOKEN_BUDGET

    def run(tokens: int) -> Trial:
        work = first_work(pending, 2 * tokens)
        engine.token_budget = tokens
        before, started = _reset_peak(), time.monotonic()
        for _ in rows_of(work):
            pass
        peak = _peak()  # waits for the device
        return Trial((time.monotonic() - started) / sum(map(_num_tokens, work)), peak - before)

    def try_out(tokens: int) -> Trial:
        return [run(tokens) for _ in range(_TRIES)][-1]  # the first compiles, and computes prefixes

    chosen = choose_budget(try_out, _free_bytes(), sizes)
    announce(f"precompute: {chosen} tokens a batch were fastest here; kept for every maker of this cache")
    return chosen


def first_work(pending: Sequence[Pending], most_tokens: int) -> Sequence[Pending]:
    """Return examples from the first on that have at least so many suffix tokens, or all."""
    totals = itertools.accumulate(map(_num_tokens, pending))
    return pending[: 1 + next((index for index, total in enumerate(totals) if total >= most_tokens), len(pending))]


def _num_tokens(item: Pending) -> int:
    """Return how many tokens follow the images of an example, in all its pairs."""
    return sum(len(shown.input_ids) - shown.image_end for shown in item.shown)


def _reset_peak() -> int:
    if not torch.cuda.is_available():
        return 0
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def _peak() -> int:
    """Return the most bytes held since the last reset, once the device has done what it was told."""
    if not torch.cuda.is_available():
        return 0
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


def _free_bytes() -> float:
    """Return the bytes of the device that nothing holds; on a CPU nobody says."""
    if not torch.cuda.is_available():
        return float("inf")
    free, _ = torch.cuda.mem_get_info()
    return free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
