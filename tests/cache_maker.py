"""Makers of one small cache, each in a process of its own that can be killed or failed at any moment it has.

`python -m viker.tests.cache_maker` imports everything once and forks a maker for each order it reads, so that a hundred
kills take seconds. A moment is an event: the file operations Python reports to audit hooks (open, rename, remove,
mkdir, chmod, utime, ...), and the beginning and end of every fsync, as far as they are about the cache home. An
uninterrupted maker has the same events every time, so "killed at event 217" names one instant, and every instant has a
number.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from viker.precompute.writing.agreed import agree
from viker.precompute.writing.overlap import Steps
from viker.precompute.writing.schedule import stage_blocks
from viker.tests.cache_samples import fill_block, make_builder, make_cache

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from viker.precompute.writing.store import CacheBuilder

LENGTHS = [3, 1, 4, 1, 5] * 10
NUM_BLOCKS = 25
PHASES = (
    "joining", "claim", "block written", "block fsynced", "block renamed", "claim on the seal", "arrays written",
    "arrays fsynced", "manifest", "cache renamed", "staging removed",
)  # fmt: skip
_READING = os.O_RDONLY


class Events:
    """Counts what happens to the files of a home, names the phase of each event, and strikes at one of them."""

    def __init__(self, order: Mapping[str, Any]) -> None:
        self.home, self.order = str(Path(order["home"]).absolute()), order
        self.count, self._blocks_begun, self._sealed = 0, False, False
        self._stop_in = order.get("stop_in")
        self._trace = os.open(order["trace"], os.O_WRONLY | os.O_CREAT | os.O_APPEND) if order.get("trace") else None

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Take an event of Python's own."""
        if event == "open":
            self.happened("read" if _only_reads(arguments) else "open", arguments[0])
        elif event == "os.rename":
            self.happened(event, arguments[0], arguments[1])
        elif event in ("os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.chown", "os.utime"):
            self.happened(event, _whole(arguments[0], arguments[-1]))

    def fsync(self, descriptor: int) -> None:
        """Fsync, with an event before and one after it."""
        path = path_of(descriptor)
        self.happened("fsync", path)
        _fsync(descriptor)
        self.happened("fsynced", path)

    def happened(self, event: str, path: Any, target: Any = None) -> None:
        """Count an event about the home, and strike if it is the one."""
        where = str(Path(path).absolute()) if isinstance(path, str | os.PathLike) else ""
        if not where.startswith(self.home):
            return
        self.count += 1
        phase = self._phase(event, where, str(target))
        if self._trace is not None:
            os.write(self._trace, f"{phase}\n".encode())
        self._strike(event, phase, where)

    def _phase(self, event: str, path: str, target: str) -> str:
        name = Path(path).name
        if self._sealed:
            return "staging removed"
        if ".sealing" in path:
            self._sealed = event == "os.rename" and "." not in Path(target).name
            if self._sealed:
                return "cache renamed"
            if "manifest" in name:
                return "manifest"
            return "arrays fsynced" if event in ("fsync", "fsynced") else "arrays written"
        if name.startswith("seal.claim"):
            return "claim on the seal"
        if name.startswith("block-"):
            self._blocks_begun = True
            if name.endswith(".claim"):
                return "claim"
            return {"fsync": "block fsynced", "fsynced": "block fsynced", "os.rename": "block renamed"}.get(
                event, "block written"
            )
        return "block renamed" if self._blocks_begun else "joining"

    def _strike(self, event: str, phase: str, path: str) -> None:
        if self.count == self.order.get("die_at"):
            os.kill(os.getpid(), signal.SIGKILL)
        if phase == self._stop_in:
            self._stop_in = None
            os.kill(os.getpid(), signal.SIGSTOP)
        fail_at, code, lasting = self.order.get("fail", (0, 0, False))
        hit = self.count >= fail_at if lasting else self.count == fail_at
        if fail_at and hit and not (event == "read" and code != errno.EIO):
            raise OSError(code, os.strerror(code), path)


_fsync = os.fsync


def path_of(descriptor: int) -> str:
    """Return what a file descriptor is open on."""
    return str(Path(f"/proc/self/fd/{descriptor}").readlink())


def _whole(path: Any, folder: int) -> str:
    """Return the path an event is about, which may be a descriptor or relative to one."""
    if isinstance(path, int):
        return path_of(path)
    return f"{path_of(folder)}/{path}" if folder >= 0 else str(path)


def _only_reads(arguments: tuple[Any, ...]) -> bool:
    _, mode, flags = arguments
    return not set("wxa+") & set(mode) if isinstance(mode, str) else flags & os.O_ACCMODE == _READING


def make(order: Mapping[str, Any]) -> None:
    """Make the cache as `viker precompute` does, with what is ordered to happen to it."""
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.umask(order.get("umask", 0o077))  # so that giving a file its mode is an event between making and writing it
    if "host" in order:
        socket.gethostname = lambda: order["host"]
    if "clock_skew" in order:
        real_time = time.time
        time.time = lambda: real_time() + order["clock_skew"]
    events = Events(order)
    if "user" in order:
        _become(order["home"], *order["user"])
    os.fsync = events.fsync
    sys.addaudithook(events.audit)

    def compute(block: int) -> None:
        os.write(log, f"{order['name']} {block}\n".encode())  # at once: makers share it
        time.sleep(order.get("seconds", 0.0))

    home = Path("." if "user" in order else order["home"])
    share_work(home, compute, tuple(order.get("part", (0, 1))), order.get("timeout_s", 60.0))


def share_work(
    home: Path, compute: Callable[[int], None], part: tuple[int, int] = (0, 1), timeout_s: float = 60.0
) -> None:
    """Compute what nobody has staged, and seal the cache where all is."""
    builder = make_builder(home, LENGTHS)
    agree(builder, "token-budget", lambda: {"tokens": 4096}, timeout_s)
    steps = Steps(prepare=lambda _: iter(()), compute=lambda block, _: compute(block), write=partial(_fill, builder))
    stage_blocks(builder, steps, lambda _: 1, part=part, timeout_s=timeout_s)
    if builder.sealed or len(builder.complete_blocks()) == len(builder.blocks):
        builder.assemble(timeout_s)


def _fill(builder: CacheBuilder, block: int, _: None) -> None:
    fill_block(builder, block)


def _become(home: str, user: int, *groups: int) -> None:
    """Become another user, in the home, which may lie in folders that this user may not enter."""
    with tempfile.TemporaryDirectory() as folder:
        make_cache(Path(folder), LENGTHS)  # imports what is left to import, which this user may not read either
    os.chdir(home)
    os.setgroups(groups)
    os.setgid(groups[0])
    os.setuid(user)


class Makers:
    """Starts makers and waits for them; makers are forked by one process that has imported everything."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._server = subprocess.Popen(
            [sys.executable, "-m", "viker.tests.cache_maker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env=environment, text=True,
        )  # fmt: skip

    def start(self, home: Path, name: str = "maker", **order: Any) -> int:
        """Start a maker and return its pid."""
        home.mkdir(exist_ok=True)
        log = home.with_name(f"{home.name}.log")
        return int(self._ask({"home": str(home), "name": name, "log": str(log), **order}))

    def wait(self, pid: int) -> tuple[int, str]:
        """Return how a maker ended, minus the signal if by one, and the error it reported."""
        status, error = self._ask({"wait": pid})
        return status, error

    def run(self, home: Path, name: str = "maker", **order: Any) -> tuple[int, str]:
        """Run a maker to its end."""
        return self.wait(self.start(home, name, **order))

    def close(self) -> None:
        """End the process that forks."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.close()
        self._server.wait(60)
        self._server.stdout.close()

    def _ask(self, order: Mapping[str, Any]) -> Any:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(order) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())


def serve() -> None:
    """Fork a maker for each order on standard input, and tell how it ended when asked."""
    ended: dict[int, int] = {}

    def reap(*_: Any) -> None:
        """Take note of dead makers at once: until then, the system says they run."""
        with_children = True
        while with_children:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            with_children = pid != 0
            ended[pid] = os.waitstatus_to_exitcode(status)

    signal.signal(signal.SIGCHLD, reap)
    errors: dict[int, int] = {}
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            pid = order["wait"]
            while pid not in ended:
                time.sleep(0.002)
            with os.fdopen(errors.pop(pid)) as pipe:
                _answer([ended[pid], pipe.read()])
            continue
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reading)
            os._exit(_in_child(order, writing))
        os.close(writing)
        errors[pid] = reading
        _answer(pid)


def _answer(value: Any) -> None:
    sys.stdout.write(f"{json.dumps(value)}\n")
    sys.stdout.flush()


def _in_child(order: Mapping[str, Any], errors: int) -> int:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    os.dup2(os.open(os.devnull, os.O_RDWR), 2)  # progress bars
    try:
        make(order)
    except BaseException as error:
        os.write(errors, f"{type(error).__name__}: {error}".encode())
        return 1
    return 0


if __name__ == "__main__":
    serve()
