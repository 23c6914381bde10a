"""Read caches in processes that may use 64 MiB more than an idle one, and say what came of it.

A server is started once; for each cache it forks, limits the child's address space, and lets it read everything. What
C code allocates counts, and what kills a child kills nobody else. Run as a script, this file is the server.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

MOST_EXTRA = 64 << 20  # bytes
SECONDS = 60


class Outcome(NamedTuple):
    """How reading ended: the exception's type and text (none when nothing was refused), problems found, peak memory."""

    error: str
    message: str
    problems: list[str]
    extra_bytes: int


class Sandbox:
    """The server, as its client sees it."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def read(self, root: Path) -> Outcome:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(str(root)) + "\n")
        self._server.stdin.flush()
        return Outcome(*json.loads(self._server.stdout.readline()))

    def close(self) -> None:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.close()
        self._server.wait(timeout=10)
        self._server.stdout.close()


def memory_of(field: str) -> int:
    """A size from /proc/self/status, in bytes."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith(field)).split()[1]) * 1024


def read_everything(root: Path) -> Any:
    """Ask a cache for all it has."""
    from viker.precompute.cache import TeacherCache

    cache = TeacherCache.open(root)
    found = [cache.offset, cache.sample_keys, cache.row_keys, cache.token_hash, cache.reference_sha256, cache.reference]
    return [*found, cache.load(), cache.rows_of(0), cache.find_sample(b"", b""), cache.root_digest]


def _child(path: str) -> Outcome:
    from viker.precompute.reading.verify import verify

    signal.alarm(SECONDS)
    before = memory_of("VmRSS")
    limit = memory_of("VmSize") + MOST_EXTRA
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    error, message = "", ""
    try:
        read_everything(Path(path))
    except Exception as raised:
        error, message = type(raised).__name__, str(raised)
    peak = memory_of("VmHWM") - before
    problems = [f"{problem.kind}: {problem.detail}" for problem in verify(Path(path), "full")]
    return Outcome(error, message, problems, max(peak, memory_of("VmHWM") - before))


def _serve() -> None:
    for golden in Path(__file__).parent.glob("golden/cache/*"):
        _child_warm(golden)
    for line in sys.stdin:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(writing, json.dumps(_child(json.loads(line))).encode())
            os._exit(0)
        os.close(writing)
        with open(reading, "rb") as pipe:
            told = pipe.read()
        _, status = os.waitpid(child, 0)
        killed = Outcome("killed", f"status {status}", [], 0)
        sys.stdout.write((told.decode() or json.dumps(killed)) + "\n")
        sys.stdout.flush()


def _child_warm(golden: Path) -> None:
    """Load what the first reading loads."""
    from viker.precompute.reading.verify import verify

    read_everything(golden)
    verify(golden, "full")


if __name__ == "__main__":
    _serve()
