"""One worker of a precompute, in a process of its own and perhaps on another machine: it computes rows and stores none.

A worker is told the options and the fingerprint of a run. It opens model, data and pool on its own node, names the
rows it would compute, and refuses where that is not the name it was told: other weights, pictures or questions never
get into a cache unseen. Then it loads the teacher once, and returns the rows of each block it is handed: one thread
computes them, and those that take calls read the pictures of the next meanwhile.

What goes wrong in a way that a user can do something about is returned, not raised: it has to be told with the name of
the node, by a process that knows nothing of how exceptions travel. Who hands out blocks is `workers.py`'s.
"""

import socket
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from ..data.artefact import library_versions
from ..data.example import DataError
from .ask import Asked, ask
from .cache import CacheError, Fingerprint, compare, fingerprint_key
from .engines.rows import Pending
from .open_teacher import Teacher, open_teacher
from .run import arrays_from_pending, block_pending, first_pending
from .same_bytes import one_order
from .token_budget import TokenBudget, probe_budget
from .writing.derive import NOTHING_KNOWN
from .writing.store import Sample

_USERS = (DataError, CacheError, OSError)


class Place(NamedTuple):
    """Where a worker runs: the name of the machine, and Ray's of the node."""

    host: str
    node_id: str


class Opened(NamedTuple):
    """What a worker computes with, whether its batches have a token budget, and what it warned of."""

    engine: str
    device: str
    has_budget: bool
    libraries: dict[str, str]
    warnings: tuple[str, ...]


class Rows(NamedTuple):
    """The rows of a block as `CacheBuilder.write_block` takes them, their token budget, and what was warned of."""

    arrays: dict[str, np.ndarray]
    token_budget: int | None
    warnings: tuple[str, ...]


class Refused(NamedTuple):
    """Why a worker cannot go on; `differs` where its inputs are not those of the run."""

    why: str
    differs: bool = False


class Worker:
    """Computes the rows of blocks with a teacher of its own; may be asked for the next while it computes one."""

    def __init__(self, options: Mapping[str, Any], fingerprint: Fingerprint, num_threads: int, device: str) -> None:
        self._options, self._fingerprint, self._device = options, fingerprint, device
        self._asked: Asked | None = None
        self._teacher: Teacher | None = None
        self._told: list[str] = []
        self._budget = TokenBudget(self._told.append)
        self._reading = threading.Lock()
        self._teaching = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(num_threads,))
        if options["deterministic"]:
            self._order = one_order()
            self._order.__enter__()  # for as long as this process lives

    def place(self) -> Place:
        """Return where this process runs."""
        import ray

        return Place(socket.gethostname(), ray.get_runtime_context().get_node_id())

    def open(self) -> Opened | Refused:
        """Open the inputs, check that they are those of the run, and load the teacher."""
        try:
            asked = ask(self._options, self._told.append)
            if asked.request.key != fingerprint_key(self._fingerprint):
                return Refused(self._differences(asked.request.fingerprint), differs=True)
            first = first_pending(asked.request, asked.intervention, asked.encoder)
            teacher = self._teaching.submit(
                open_teacher, self._options, asked.checkpoint, asked.encoder, first, self._device, self._told.append
            ).result()
        except _USERS as error:
            return Refused(str(error))
        self._asked, self._teacher, self._budget.engine = asked, teacher, teacher.resizable
        has_budget = teacher.resizable is not None
        return Opened(teacher.engine, teacher.device, has_budget, library_versions(), self._warnings())

    def probe(self, samples: Sequence[Sample], num_pairs: int) -> int | Refused:
        """Return the token budget that is fastest here, tried out on the samples of a block."""
        assert self._teacher is not None
        assert self._teacher.resizable is not None
        engine, rows_of = self._teacher.resizable, self._teacher.rows_of
        try:
            pending = self._pending(samples)
            return self._teaching.submit(probe_budget, engine, rows_of, pending, num_pairs, self._told.append).result()
        except _USERS as error:
            return Refused(str(error))

    def rows(self, samples: Sequence[Sample], token_budget: int | None) -> Rows | Refused:
        """Return the rows of the samples of a block, end to end."""
        try:
            pending = self._pending(samples)
            return self._teaching.submit(self._rows, samples, pending, token_budget).result()
        except _USERS as error:
            return Refused(str(error))

    def _rows(self, samples: Sequence[Sample], pending: list[Pending], token_budget: int | None) -> Rows:
        assert self._teacher is not None
        if self._teacher.resizable is not None and token_budget is not None:
            self._teacher.resizable.token_budget = token_budget
        run = partial(arrays_from_pending, samples, pending, self._teacher.rows_of, self._fingerprint, NOTHING_KNOWN)
        return Rows(self._budget.fit(run, pending), self._budget.tokens, self._warnings())

    def _pending(self, samples: Sequence[Sample]) -> list[Pending]:
        assert self._asked is not None
        asked = self._asked
        with self._reading:  # an encoder is one thread's
            return list(block_pending(samples, asked.request.by_row_key, asked.intervention, asked.encoder))

    def _warnings(self) -> tuple[str, ...]:
        told = tuple(line for line in self._told if "WARNING" in line)
        self._told.clear()
        return told

    def _differences(self, found: Fingerprint) -> str:
        mismatches, reported = compare(found, self._fingerprint, ())
        differing = sorted({**mismatches, **reported}.items())
        return "\n".join(f"  {field}: expected {wanted}, found {there}" for field, (there, wanted) in differing)
