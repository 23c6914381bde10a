"""Fuzz the reader of teacher caches with inputs that coverage chooses: `fuzz_cache.py` under atheris.

    pip install atheris==3.0.0          (Python 3.11 to 3.13, Linux)
    python tests/fuzz_cache_guided.py CORPUS -timeout=10 -rss_limit_mb=700 -max_len=512 -max_total_time=1500

An input is the bytes that decide the changes. The first finding ends the run, and lies beside it as `crash-*`, which
the same command repeats when it is given in place of CORPUS. The bound on memory is libFuzzer's, not 64 MiB an input:
the seeded run holds it to that.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["viker.precompute"]):
    import viker.precompute.cache
    import viker.precompute.reading.verify  # noqa: F401

from viker.tests.fuzz_cache import Choices, Folder, ask


class Fed(Choices):
    """Decisions from the bytes of an input."""

    def __init__(self, data: bytes) -> None:
        self._provider = atheris.FuzzedDataProvider(data)

    def number(self, least: int, most: int) -> int:
        return self._provider.ConsumeIntInRange(least, most)

    def bytes(self, length: int) -> bytes:
        return self._provider.ConsumeBytes(length)


def main() -> None:
    folder = Folder()
    atheris.Setup(sys.argv, lambda data: ask(folder, Fed(data)))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
