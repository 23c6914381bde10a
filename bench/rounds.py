"""Rounds of variants: seconds and peak memory of each, and a line of the table from the median round."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple


class Measured(NamedTuple):
    """Seconds of one round of one variant, and the peak of resident memory meanwhile (None where it is not known)."""

    seconds: float
    peak_memory: int | None


def note(table: dict[str, list[Measured]], name: str, act: Callable[[], Any]) -> None:
    """Run something and add its time and peak memory to a table."""
    _reset_peak()
    started = time.perf_counter()
    act()
    table.setdefault(name, []).append(Measured(time.perf_counter() - started, _peak()))


def variant(
    name: str, measured: Sequence[Measured], first: Sequence[Measured], amount: float, unit: str
) -> dict[str, Any]:
    """Return one line of a table: how much a second, by the median round, and the ratio to the first variant."""
    seconds = statistics.median(one.seconds for one in measured)
    peaks = [one.peak_memory for one in measured if one.peak_memory is not None]
    return {
        "name": name, "rate": amount / seconds, "unit": unit,
        "ratio": statistics.median(one.seconds for one in first) / seconds, "seconds": seconds,
        "peak_memory": max(peaks) if peaks else None,
    }  # fmt: skip


def device_name() -> str:
    """Return the processor and how many of its cores this process may use."""
    return f"{platform.processor() or platform.machine()}, {len(os.sched_getaffinity(0))} of {os.cpu_count()} cores"


def _reset_peak() -> None:
    """Let Linux count the peak of resident memory anew; elsewhere it is not known."""
    path = Path("/proc/self/clear_refs")
    if path.exists():
        path.write_text("5")


def _peak() -> int | None:
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    line = next((line for line in status.read_text().splitlines() if line.startswith("VmHWM")), None)
    return None if line is None else int(line.split()[1]) * 1024
