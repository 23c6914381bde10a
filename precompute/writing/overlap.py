"""Three blocks in flight: the input of the next is read and the one before is written while one is computed.

The processor that computes is what the others wait on, so it should wait for nobody: tokens and pictures of the next
block are made ready in one thread, and rows are checked and made durable in another. Never more than one block ahead
and one behind, so that memory holds three at most, and a kill costs the block being computed and, in the instant
before it is on disk, the one behind.

Blocks take their turns in lockstep: while one is computed, only the writer touches the cache's files, and claims are
taken between two blocks when it rests. So the files of a maker change in the same order every time. An error in a
thread is raised here as it is, as soon as the block being computed is done; an interrupt lets the writer finish.
"""

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from itertools import islice
from types import TracebackType
from typing import Generic, NamedTuple, Self, TypeVar

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Rows = TypeVar("Rows")
Hold = Callable[[int], AbstractContextManager[None]]


@dataclass(frozen=True, slots=True)
class Steps(Generic[Item, Rows]):
    """How a block is made: its input piece by piece, its rows from all pieces, and their file.

    Each step of a block runs in a thread of its own, and a step of one block beside the other steps of its neighbors:
    what `prepare` uses, the others must not.
    """

    prepare: Callable[[int], Iterator[Item]]
    compute: Callable[[int, list[Item]], Rows]
    write: Callable[[int, Rows], None]


@dataclass(slots=True)
class Spent:
    """Seconds spent computing, waiting for input and for the writer, and in all of it."""

    computing: float = 0.0
    waiting_for_input: float = 0.0
    waiting_for_writer: float = 0.0
    total: float = 0.0

    def without(self, seconds: float) -> dict[str, float]:
        """Return the seconds, less some of computing that were none, and the share of all that was computing."""
        computing, total = self.computing - seconds, self.total - seconds
        times = {"computing": computing, "for_input": self.waiting_for_input, "for_writer": self.waiting_for_writer}
        return {**{name: round(spent, 3) for name, spent in times.items()}, "busy": round(computing / total, 4)}

    @contextlib.contextmanager
    def on(self, what: str) -> Iterator[None]:
        """Add the time that passes, however it ends."""
        started = time.monotonic()
        try:
            yield
        finally:
            setattr(self, what, getattr(self, what) + time.monotonic() - started)


class _Begun(NamedTuple, Generic[Item]):
    """A claimed block: what keeps its claim, and its input in the making."""

    block: int
    claim: ExitStack
    prepared: Future[list[Item]]


class Overlap(Generic[Item, Rows]):
    """Runs the steps of blocks side by side; leaving it stops what was begun and drops the claims on it."""

    def __init__(self, steps: Steps[Item, Rows], hold: Hold) -> None:
        self.spent = Spent()
        self._steps, self._hold = steps, hold
        self._stopping = threading.Event()
        self._claims: list[ExitStack] = []
        self._reader = ThreadPoolExecutor(1, "precompute-reader")
        self._writer = ThreadPoolExecutor(1, "precompute-writer")
        self._writing: Future[int] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._reader.shutdown(cancel_futures=True)
        self._writer.shutdown()
        for claim in self._claims:
            claim.close()
        failure = self._writing.exception() if self._writing is not None else None
        if failure is not None and failure is not error:
            logger.warning("a block could not be staged either: %s", failure)

    def run(self, claimed: Iterator[int]) -> Iterator[int]:
        """Compute the blocks of an iterator that claims them as it is asked, and yield each once it is staged."""
        with self.spent.on("total"):
            begun = deque(map(self._begin, islice(claimed, 2)))
            while begun:
                current = begun.popleft()
                with self.spent.on("waiting_for_input"):
                    items = current.prepared.result()
                with self.spent.on("computing"):
                    rows = self._steps.compute(current.block, items)
                del items
                yield from self._written()
                begun.extend(map(self._begin, islice(claimed, 1)))
                self._writing = self._writer.submit(self._write, current.block, rows, current.claim)
            yield from self._written()

    def _begin(self, block: int) -> _Begun[Item]:
        claim = ExitStack()
        claim.enter_context(self._hold(block))
        self._claims.append(claim)
        return _Begun(block, claim, self._reader.submit(self._prepare, block))

    def _prepare(self, block: int) -> list[Item]:
        items = []
        for item in self._steps.prepare(block):
            if self._stopping.is_set():
                raise CancelledError
            items.append(item)
        return items

    def _write(self, block: int, rows: Rows, claim: ExitStack) -> int:
        with claim:
            self._steps.write(block, rows)
        return block

    def _written(self) -> Iterator[int]:
        """Wait for the block behind and yield it, if there is one."""
        if self._writing is None:
            return
        with self.spent.on("waiting_for_writer"):
            block = self._writing.result()
        self._writing = None
        yield block
