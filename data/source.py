"""What every source of examples can be asked, whatever its layout; which there are is `sources.py`'s."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, Protocol

from .example import Example


class Source(Protocol):
    """Examples about people, and who of them is to be forgotten."""

    @property
    def location(self) -> Path:
        """The local directory that is read."""

    @property
    def commit(self) -> str | None:
        """The hub commit the data came from, if it came from a hub."""

    def splits(self) -> tuple[str, ...]:
        """Name what is here, by the published names."""

    def people(self) -> frozenset[str]:
        """Name everyone who can be forgotten here."""

    def forget_people(self) -> frozenset[str]:
        """Name the people to forget."""

    def read(self, split: str) -> Iterator[Example]:
        """Yield the questions of a published folder, or of forget, retain, test or real."""

    def training(self, part: Literal["all", "forget", "retain"]) -> Iterator[Example]:
        """Yield the training text about everyone, the people to forget, or all others."""

    def skipped(self) -> Mapping[str, Mapping[str, int]]:
        """Count what the latest read of each split left out, by reason."""
