"""Ctrl-C and a scheduler's SIGTERM while a run takes steps: the step is finished first, then the run is saved.

A signal only raises a flag; the loop asks for it, with several processes in the exchange that every step has anyhow, so
all of them stop behind the same step. A second Ctrl-C ends at once. What is done with the flag is `unlearn.py`'s.
"""

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

_NOTICE = b"\ntrain: finishing the step, then saving; Ctrl-C again ends at once.\n"


class Interrupted(Exception):
    """A run was asked to stop, and saved itself: says where."""


class Interrupt:
    """Catches SIGINT and SIGTERM within a `with` block; elsewhere than in the main thread it catches nothing."""

    def __init__(self, num_processes: int) -> None:
        """`num_processes`: one that waits for others runs no Python, so only the system can end it at once."""
        self.is_asked = False
        self._at_once = signal.default_int_handler if num_processes == 1 else signal.SIG_DFL
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.is_asked = True
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, self._at_once)
            os.write(2, _NOTICE)  # not through a stream: the signal may have come in the middle of its write
