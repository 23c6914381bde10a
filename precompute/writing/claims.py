"""Who computes a block: claims that keep makers apart while they live, and bind nobody once they do not.

A claim is a file made by exclusive create that says which process holds it, renewed (its time of change set anew) for
as long as the work goes on. A claim is believed only while it is fresh: not renewed for a minute, it is stale,
whichever host made it, so that a stopped or unplugged maker costs the others a minute. On one host a dead process's
claim is stale at once. Ages are compared by the clock of the file system that holds the claim, by touching a file
there: hosts whose clocks disagree agree about that one.

Claims save work and protect nothing. Two makers may take over a stale claim at the same moment, and one that was
stopped may wake up and go on: both then compute a block, with the same content, and whole files replace each other.
That is also why a maker that hangs is renewed for at most an hour.
"""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ...data.example import canonical_json
from .blocks import share

CLAIM_SECONDS = 60.0  # without renewal, and a claim is stale
_RENEWALS = 12  # in that time
_MOST_SECONDS = 3600.0  # of renewals by a thread, which lives on where the work hangs


def take_claim(path: Path, timeout_s: float) -> bool:
    """Create a claim, or take over a stale one; return whether it is ours now.

    Raises:
        FileNotFoundError: the claim's folder is gone.
    """
    if _create(path):
        return True
    content, renewed = _read(path)
    if content == _this_process():
        os.utime(path)
        return True
    believed_s = timeout_s if content else timeout_s / _RENEWALS  # an empty one: killed between creating and writing it
    if content is not None and not _is_dead(content) and file_system_now(path.parent) - renewed <= believed_s:
        return False
    path.unlink(missing_ok=True)
    return _create(path)


def drop_claim(path: Path) -> None:
    """Remove a claim that is ours; one that another process has taken over stays."""
    with contextlib.suppress(OSError):  # what cannot be removed expires
        if _read(path)[0] == _this_process():
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def renewing(path: Path, timeout_s: float) -> Iterator[None]:
    """Renew a claim from a thread while the work under it goes on; drop it when that ends, however it ends."""
    ended = threading.Event()
    thread = threading.Thread(target=_renew_until, args=(ended, path, timeout_s / _RENEWALS), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        drop_claim(path)


def renewer(path: Path, timeout_s: float) -> Callable[[], None]:
    """Return what renews a claim when called often, for work that can say that it goes on."""
    due = time.monotonic()

    def renew() -> None:
        nonlocal due
        if time.monotonic() >= due:
            due = time.monotonic() + timeout_s / _RENEWALS
            _touch(path)

    return renew


def file_system_now(folder: Path) -> float:
    """Return the time by the clock of the file system that holds a folder."""
    clock = folder / "clock"
    with clock.open("ab") as file:
        share(file.fileno(), folder)
    os.utime(clock)
    return clock.stat().st_mtime


def _create(path: Path) -> bool:
    try:
        with path.open("xb", buffering=0) as file:
            file.write(_this_process())
            share(file.fileno(), path.parent)
    except FileExistsError:
        return False
    return True


def _read(path: Path) -> tuple[bytes | None, float]:
    """Return what a claim says and when it was renewed; None when it is gone.

    It is opened for both, since network file systems ask the server again when a file is opened.
    """
    try:
        with path.open("rb") as file:
            return file.read(), os.fstat(file.fileno()).st_mtime
    except FileNotFoundError:
        return None, 0.0
    except PermissionError:  # killed between writing and sharing it: its age decides
        return b"?", path.stat().st_mtime


def _this_process() -> bytes:
    return canonical_json({"host": socket.gethostname(), "pid": os.getpid(), "pids": _pid_namespace()})


def _pid_namespace() -> str:
    """Return what pids are counted in: containers of one host may share its name and not its processes."""
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def _is_dead(content: bytes) -> bool:
    """Whether a claim is of a process that this one could see, and that no longer runs."""
    try:
        owner, own = json.loads(content), json.loads(_this_process())
        return bool((owner["host"], owner["pids"]) == (own["host"], own["pids"])) and not _runs(owner["pid"])
    except (ValueError, KeyError, TypeError):  # unreadable, or torn by a power cut: its age decides
        return False


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _renew_until(ended: threading.Event, path: Path, interval_s: float) -> None:
    for _ in range(int(_MOST_SECONDS / interval_s)):
        if ended.wait(interval_s):
            return
        _touch(path)


def _touch(path: Path) -> None:
    with contextlib.suppress(OSError):  # taken over and dropped, or the folder is gone: the work ends all the same
        os.utime(path)
