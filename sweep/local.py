"""Run commands as processes of this machine, a fixed number at a time, each with its output in a file.

A command that fails stops nobody else. An interruption (Ctrl-C, SIGTERM) is passed on, so that what is resumable ends
as such; children are in process groups of their own, so that nothing of them stays behind. It is noted when it comes
and acted upon between two steps: an exception in the middle of starting a process would lose the process.
"""

import contextlib
import os
import shlex
import signal
import subprocess
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

from tqdm import tqdm

_POLL_SECONDS = 0.05
_GRACE_SECONDS = 30.0  # what an interrupted child has to save its state
_TAIL_LINES = 6


class Task(NamedTuple):
    """Processes to be run one after the other, under one name, into one log."""

    name: str
    processes: tuple[tuple[str, ...], ...]
    log: Path


class Failure(NamedTuple):
    """A task that did not end well: the exit code of the process that ended it, and how its log ends."""

    task: Task
    code: int
    tail: tuple[str, ...]

    def told(self) -> str:
        """Return it as lines of an error message."""
        opening = f"  {self.task.name}: exit {self.code}, {self.task.log}"
        return "\n".join([opening, *(f"    {line}" for line in self.tail or ("(no output)",))])


@dataclass
class _Running:
    """A task one of whose processes runs."""

    task: Task
    waiting: deque[tuple[str, ...]]
    log: IO[bytes]
    process: subprocess.Popen[bytes]


def environment_of(num_jobs: int) -> dict[str, str]:
    """Return the environment of processes: several share the cores, one thread each, unless the user said otherwise."""
    return dict(os.environ) if num_jobs == 1 else {"OMP_NUM_THREADS": "1", **os.environ}


def run_tasks(tasks: Sequence[Task], num_jobs: int, what: str) -> list[Failure]:
    """Run tasks, at most `num_jobs` at a time, and return those that failed.

    Raises:
        KeyboardInterrupt: after every process has ended.
    """
    environment, waiting = environment_of(num_jobs), deque(tasks)
    failures, running = list[Failure](), list[_Running]()
    with _noted_interruptions() as noted, tqdm(total=len(tasks), desc=f"sweep: {what}", unit="job") as bar:
        try:
            while waiting or running:
                while waiting and len(running) < num_jobs and not noted:
                    running.append(_begin(waiting.popleft(), environment))
                time.sleep(_POLL_SECONDS)
                if noted:
                    raise KeyboardInterrupt
                for one in [one for one in running if one.process.poll() is not None]:
                    if one.process.returncode == 0 and one.waiting:
                        one.process = _start(one.waiting.popleft(), one.log, environment)
                        continue
                    running.remove(one)
                    failures += _end(one)
                    bar.update()
        finally:
            _stop(running, noted)
    if noted:  # after the last look, when nothing was left to stop
        raise KeyboardInterrupt
    return failures


@contextlib.contextmanager
def _noted_interruptions() -> Iterator[list[int]]:
    """Note SIGINT and SIGTERM in a list instead of raising."""
    noted: list[int] = []
    before = {
        number: signal.signal(number, lambda got, _: noted.append(got)) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _begin(task: Task, environment: Mapping[str, str]) -> _Running:
    task.log.parent.mkdir(parents=True, exist_ok=True)
    log, waiting = task.log.open("wb"), deque(task.processes)
    return _Running(task, waiting, log, _start(waiting.popleft(), log, environment))


def _start(words: Sequence[str], log: IO[bytes], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    log.write(f"$ {shlex.join(words)}\n".encode())
    log.flush()
    return subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=dict(environment),
        start_new_session=True,
    )  # fmt: skip


def _end(one: _Running) -> list[Failure]:
    one.log.close()
    if one.process.returncode == 0:
        return []
    text = one.task.log.read_text(encoding="utf-8", errors="replace")
    lines = [line.rstrip() for line in text.replace("\r", "\n").split("\n") if line.strip()]
    return [Failure(one.task, one.process.returncode, tuple(lines[-_TAIL_LINES:]))]


def _stop(running: Sequence[_Running], noted: Sequence[int]) -> None:
    """Interrupt what runs, wait for it, and end by force what does not go; another interruption ends the wait."""
    for one in running:
        _signal(one, signal.SIGTERM)
    until, noted_before = time.monotonic() + _GRACE_SECONDS, len(noted)
    while time.monotonic() < until and len(noted) == noted_before:
        if all(one.process.poll() is not None for one in running):
            break
        time.sleep(_POLL_SECONDS)
    for one in running:
        _signal(one, signal.SIGKILL)
        one.process.wait()
        one.log.close()


def _signal(one: _Running, number: signal.Signals) -> None:
    """Send a signal to everything a task started; its group is gone where nothing of it is left."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(one.process.pid, number)
