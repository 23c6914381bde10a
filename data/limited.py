"""A source cut down to its first people: the same splits and files, fewer people, for smoke runs on real data.

The first so many people to forget and the first so many others are kept, by id; of people who are in neither (the
celebrities of `real`, whoever CLEAR's text questions do not name), the first so many that are read of each published
folder. What is cut is decided here once, so every stage of a run sees the same people.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from .example import Example
from .source import Source


class FirstPeople:
    """A source that knows only the first `limit` people to forget, and as many others."""

    def __init__(self, source: Source, limit: int) -> None:
        self._source, self._limit = source, limit
        self._all = source.people()
        forget = source.forget_people()
        self._forget = frozenset(sorted(forget)[:limit])
        self._kept = self._forget | frozenset(sorted(self._all - forget)[:limit])

    @property
    def location(self) -> Path:
        """The local directory that is read."""
        return self._source.location

    @property
    def commit(self) -> str | None:
        """The hub commit the data came from, if it came from a hub."""
        return self._source.commit

    def splits(self) -> tuple[str, ...]:
        """Name what is here, by the published names."""
        return self._source.splits()

    def people(self) -> frozenset[str]:
        """Name the people that are kept."""
        return self._kept

    def forget_people(self) -> frozenset[str]:
        """Name the people to forget among them."""
        return self._forget

    def read(self, split: str) -> Iterator[Example]:
        """Yield the questions about the people that are kept."""
        return self._first(self._source.read(split))

    def training(self, part: Literal["all", "forget", "retain"]) -> Iterator[Example]:
        """Yield the training text about the people that are kept."""
        return self._first(self._source.training(part))

    def skipped(self) -> Mapping[str, Mapping[str, int]]:
        """Count what the latest read of each split left out, by reason; people beyond the limit are not counted."""
        return self._source.skipped()

    def _first(self, examples: Iterator[Example]) -> Iterator[Example]:
        strangers: dict[str, set[str]] = {}
        for example in examples:
            person = example.people[0]
            known = strangers.setdefault(example.id.partition("/")[0], set())
            if person not in self._all and len(known) < self._limit:
                known.add(person)
            if person in self._kept or person in known:
                yield example
