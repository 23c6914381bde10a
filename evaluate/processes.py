"""The batches of an evaluation computed by several processes of this machine, each with the model loaded once.

This process cuts the work and hands out batches, one at a time, to whoever is free; children compute them and keep them
in journals of their own (`work.py`), from which this process reads the results at the end. So what a batch gives does
not depend on who computes it, and a kill of a child, of this process or of all loses no more than the batches in
flight. A child that dies ends the evaluation: its death has a reason (memory, most often) that a successor would meet
again. Children end when the pipe to this process closes, so none outlives it by more than a batch.

Each child talks through a pipe of its own. A queue shared by all would have a lock, and one killed while it holds the
lock would stop the others for good. GPUs are dealt out in turn; on a CPU each has its share of the threads.
"""

import multiprocessing
import os
import signal
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from ..data.example import DataError
from ..data.stopping import interrupted_by_sigterm
from ..models.encode import Encoder
from ..models.identity import weights_digest
from ..models.load import Checkpoint, Loaded, load, load_encoder
from .work import (
    Batch,
    Job,
    Journal,
    Result,
    compute,
    device_stamp,
    in_order,
    plan,
    progress,
    read_journals,
    stamp_of,
)

READY = -1
END_SECONDS = 10.0
Compute = Callable[[Batch, Sequence[Job]], list[Result]]


class ProcessEnded(DataError):
    """A child ended before its work did: what it and the others finished is kept, and worth keeping."""


class Opening(Protocol):
    """How a child gets at what computes: picklable values, opened once in the child."""

    def open(self, process: int) -> Compute:
        """Return what computes a batch, in the child of this number."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Loading:
    """How to load a model with transformers, as values that another process can be handed."""

    checkpoint: Checkpoint
    device: str
    dtype: str = "float32"
    attention: str = "sdpa"
    trust_remote_code: bool = False
    chat_template: Path | None = None
    system_prompt: str | None = None
    score_end_token: bool | None = None

    def encoder(self) -> Encoder:
        """Load what reads questions, without any weights."""
        return load_encoder(
            self.checkpoint, trust_remote_code=self.trust_remote_code, chat_template=self.chat_template,
            system_prompt=self.system_prompt, score_end_token=self.score_end_token,
        )  # fmt: skip

    def load(self) -> Loaded:
        """Load the model and its encoder."""
        return load(
            self.checkpoint, dtype=self.dtype, device=self.device, attention=self.attention,
            trust_remote_code=self.trust_remote_code, chat_template=self.chat_template,
            system_prompt=self.system_prompt, score_end_token=self.score_end_token,
        )  # fmt: skip

    def open(self, process: int) -> Compute:
        """Load the model, on the next GPU in turn where the device is not a numbered one; see `Opening`."""
        loaded = replace(self, device=_device_of(self.device, process)).load()
        return lambda batch, jobs: compute(batch, jobs, loaded.model, loaded.encoder)

    def stamp(self, num_threads: int) -> dict[str, str]:
        """Return what of a model decides results, by name; as `run_jobs` has it for a model it is given."""
        return {
            "weights": weights_digest(self.checkpoint), "dtype": self.dtype, "attention": self.attention,
            **device_stamp(self.device, num_threads),
        }  # fmt: skip


class Refused(NamedTuple):
    """Why a child cannot go on, where a user can do something about it."""

    why: str


def run_jobs_in_processes(
    jobs: Sequence[Job], loading: Loading, *, num_processes: int, batch_size: int, folder: Path, desc: str,
    num_threads: int | None = None,
) -> list[Result]:  # fmt: skip
    """Compute jobs in several processes and return their results in order, those of `run_jobs` with as many threads.

    Args:
        jobs: what to ask.
        loading: how each process loads the model; nothing is loaded where nothing is left to compute.
        num_processes: how many; never more than batches left.
        batch_size: most jobs a batch.
        folder: where journals are, of this and of earlier runs.
        desc: name of the progress bar.
        num_threads: of each process; None gives each its share, or what OMP_NUM_THREADS says.

    Raises:
        DataError: a job cannot be encoded, or the model cannot be loaded.
        ProcessEnded: a process ended before its work did; the next call goes on from what is kept.
    """
    encoder, num_threads = loading.encoder(), num_threads or threads_each(num_processes)
    batches = plan(jobs, encoder, batch_size)
    stamp = stamp_of(jobs, batches, encoder, loading.stamp(num_threads))
    work = Work(jobs, batches, stamp, folder, num_threads)
    return run_batches(work, loading, num_processes=num_processes, desc=desc)


def threads_each(num_processes: int) -> int:
    """Return the threads of each of so many processes: their share of torch's, or all of what OMP_NUM_THREADS says."""
    ours = torch.get_num_threads()
    return ours if "OMP_NUM_THREADS" in os.environ else max(1, ours // num_processes)


class Work(NamedTuple):
    """All that a child needs beside the model: jobs cut into batches, and where and for what it keeps results."""

    jobs: Sequence[Job]
    batches: Sequence[Batch]
    stamp: Mapping[str, str]
    folder: Path
    num_threads: int


def run_batches(work: Work, opening: Opening, *, num_processes: int, desc: str) -> list[Result]:
    """Have the batches that no journal holds computed by children, and return the results of all jobs in order.

    Raises:
        DataError: a child cannot go on.
        ProcessEnded: a child ended before its work did.
    """
    done = read_journals(work.folder, work.stamp, work.batches)
    waiting = deque(number for number in range(len(work.batches)) if number not in done)
    if waiting:
        children: list[_Child] = []
        try:
            with interrupted_by_sigterm(), progress(desc, work.batches, done) as bar:
                children.extend(_Child(number) for number in range(min(num_processes, len(waiting))))
                for child in children:  # all are starting by now
                    child.give((child.number, work, opening))
                _hand_out(children, work, waiting, bar)
        finally:
            for child in children:
                child.end()
        done = read_journals(work.folder, work.stamp, work.batches)
    return in_order(work.batches, done)


class _Child:
    """One process as this one sees it."""

    def __init__(self, number: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.number = number
        self.connection, theirs = context.Pipe()
        # Not daemonic: vLLM may have processes of its own.
        self._process = context.Process(target=_work, args=(theirs,), name=f"viker-evaluate-{number}")
        with _interrupts_held_back():
            self._process.start()
        theirs.close()  # so that the pipe ends with the child

    def told(self) -> int:
        """Return the number of the batch it finished, or READY.

        Raises:
            DataError: it cannot go on.
            ProcessEnded: it is dead.
        """
        try:
            said = self.connection.recv()
        except (EOFError, OSError):
            raise self._died() from None
        if isinstance(said, Refused):
            raise DataError(said.why)
        return int(said)

    def give(self, what: Any) -> None:
        """Hand it what to work with, then the numbers of batches, then None: there are no more.

        Raises:
            ProcessEnded: it is dead.
        """
        try:
            self.connection.send(what)
        except OSError:
            raise self._died() from None

    def finish(self) -> None:
        """Give it time to end by itself."""
        self._process.join(END_SECONDS)

    def end(self) -> None:
        """End it, whatever it is at; its journal stays."""
        self.connection.close()
        if self._process.is_alive():
            self._process.terminate()
            self._process.join(END_SECONDS)
        if self._process.is_alive():
            self._process.kill()
        self._process.join()
        self._process.close()

    def _died(self) -> ProcessEnded:
        self._process.join(END_SECONDS)
        code = self._process.exitcode
        if code is not None and code < 0:
            how = f"ended by signal {-code} ({signal.Signals(-code).name}). If memory ran out, use fewer --processes"
        else:
            how = f"ended with exit status {code}, having said why above"
        return ProcessEnded(
            f"evaluate: expected process {self.number} (pid {self._process.pid}) to finish its work, found it {how}. "
            "What was finished is kept: run the same command again."
        )


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Keep Ctrl-C, now and later, from a process that is started within: it ends when this one has it end."""
    resource_tracker.ensure_running()  # which starts a process too, and changes the mask
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _hand_out(children: Sequence[_Child], work: Work, waiting: deque[int], bar: Any) -> None:
    """Hand each child the next batch whenever it is free, until there are none."""
    busy = {child.connection: child for child in children}
    while busy:
        for connection in wait(list(busy)):
            assert isinstance(connection, Connection)
            child = busy[connection]
            finished = child.told()
            if finished != READY:
                bar.update(len(work.batches[finished].jobs))
            batch = waiting.popleft() if waiting else None
            child.give(batch)
            if batch is None:
                del busy[connection]
    for child in children:
        child.finish()


# ---- In a child ------------------------------------------------------------------------------------------------------


def _work(connection: Connection) -> None:
    """Compute the batches this child is given, until it is told that there are no more or nobody is left to tell it."""
    # As `cli.py` has it: peft 0.21 reads a name that transformers 5.23 renamed.
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
    try:
        process, work, opening = connection.recv()
        try:
            torch.set_num_threads(work.num_threads)
            _compute_given(connection, work, opening.open(process))
        except (DataError, torch.OutOfMemoryError) as error:
            connection.send(Refused(str(error)))
    except (EOFError, ConnectionError):
        return


def _compute_given(connection: Connection, work: Work, calculate: Compute) -> None:
    with Journal(work.folder, work.stamp) as journal:
        connection.send(READY)
        while (number := connection.recv()) is not None:
            journal.append(number, calculate(work.batches[number], work.jobs))
            connection.send(number)


def _device_of(device: str, process: int) -> str:
    """Return the device of a process: GPUs in turn, where none is named by its number."""
    if device != "cuda" or torch.cuda.device_count() < 2:
        return device
    return f"cuda:{process % torch.cuda.device_count()}"
