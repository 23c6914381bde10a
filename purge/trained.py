"""Tell who a model was trained on, from what its directory records and what is still at hand.

A directory records options, counts and cache keys, never people. So there are three witnesses, asked in this order: the
people its options name, the source those options open, and the caches it read. A source is only believed to be without
somebody while it looks as it did then (the same stamp, the same number of examples): lines that were deleted since
would acquit a model that learned them. Where no witness knows, the answer is that nobody knows, never no.

What to do about it is `purge/commands.py`'s.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from ..data.artefact import read_json
from ..data.example import DataError
from ..data.halves import half_of
from ..data.inputs import input_stamps
from ..data.kinds import REPLACES_IMAGES
from ..data.source import Source
from ..data.sources import POINTER_FILE, named_people, open_source

Part = Literal["all", "forget", "retain", "retain-seen"]
Told = bool | None  # None: nobody knows

_ANY_RATIO = 10  # where people are named, or everybody is asked for, the published split plays no part


@dataclass(frozen=True, slots=True)
class KnownCaches:
    """The keys of the caches that could be searched, and of those among them that hold the person."""

    searched: frozenset[str]
    holding: frozenset[str]


@dataclass
class Trained:
    """Answers whether artefacts were trained on one person; sources are read once."""

    person: str
    caches: KnownCaches
    _read: dict[tuple[str, ...], list[tuple[str, ...]] | None] = field(default_factory=dict)

    def roles(self, config: Mapping[str, Any], provenance: Mapping[str, Any], near: Path) -> dict[str, Told]:
        """Return for each set of people a model learned from (forget, retain, or all) whether it holds the person.

        Args:
            config: the options of an adapter, or of a checkpoint that `viker finetune` made.
            provenance: what was recorded at its end; empty where it has none.
            near: its directory, for sources named by a relative path.
        """
        if "role" in config:
            part: Part = "retain" if config["role"] == "retain-only" else "all"
            return {part: self._told(part, config, near, provenance.get("examples"), None)}
        options, caches = config.get("options", {}), provenance.get("caches", {})
        parts: dict[str, Part] = {"forget": "forget"}
        if (options.get("retain") or 0) > 0:
            parts["retain"] = "retain-seen"
        return {
            name: self._told(part, config, near, provenance.get(f"{name}_examples"), caches.get(name, {}).get("key"))
            for name, part in parts.items()
        }

    def _told(self, part: Part, config: Mapping[str, Any], near: Path, count: int | None, cache: str | None) -> Told:
        options = config.get("options", {})
        spec = locate(str(options.get("data")), near)
        named = _named(options, spec)
        if part == "forget" and self.person in named:
            return True
        people = self._people(part, options, spec, named)
        if people is not None and any(self.person in about for about in people):
            return True
        if people is not None and _is_unchanged(config, spec) and count in (None, len(people)):
            return False
        return None if cache not in self.caches.searched else cache in self.caches.holding

    def _people(
        self, part: Part, options: Mapping[str, Any], spec: str, named: frozenset[str]
    ) -> list[tuple[str, ...]] | None:
        """Return whom each training example of a part is about, or None where the source cannot be read."""
        asked = (part, spec, *(str(options.get(name)) for name in ("ratio", "forget", "data_revision", "limit")))
        if asked not in self._read:
            try:
                self._read[asked] = _read_people(part, options, spec, named)
            except (DataError, OSError):
                self._read[asked] = None
        return self._read[asked]


def open_recorded(options: Mapping[str, Any], spec: str) -> Source:
    """Open the source an artefact was made from, as its options say, without asking any hub.

    Raises:
        DataError: it is not at hand, or not what it was.
    """
    return open_source(
        spec, ratio=options.get("ratio"), forget=options.get("forget") or (), revision=options.get("data_revision"),
        local_files_only=True,
    )  # fmt: skip


def locate(spec: str, near: Path) -> str:
    """Return a recorded path as it is reached from here: what was relative then is looked for above the artefact."""
    above = (folder / spec for folder in near.resolve().parents)
    return next((str(path) for path in above if spec and path.is_dir()), spec)


def _named(options: Mapping[str, Any], spec: str) -> frozenset[str]:
    """Return the people named to be forgotten, by the options or by the data folder they name."""
    forget, pointer = options.get("forget") or (), Path(spec) / POINTER_FILE
    if not forget and options.get("ratio") is None and pointer.is_file():
        forget = read_json(pointer).get("forget") or ()
    return named_people(forget) if forget else frozenset()


def _read_people(part: Part, options: Mapping[str, Any], spec: str, named: frozenset[str]) -> list[tuple[str, ...]]:
    """Return whom each training example is about, in the source's order.

    A source from which somebody was deleted no longer opens with them named to be forgotten; it is then read whole.
    """
    limit = None if part == "retain-seen" else options.get("limit")
    try:
        source = open_recorded(options, spec)
        of_part = source.training("retain" if part == "retain-seen" else part)
        asked = (example for example in islice(of_part, limit) if example.images or not _skips_text(part, options))
        people = [example.people for example in asked]
    except DataError:
        if not named:
            raise
        whole = open_source(spec, ratio=_ANY_RATIO, revision=options.get("data_revision"), local_files_only=True)
        everyone = (example.people for example in whole.training("all"))
        wanted = (about for about in everyone if part == "all" or (about[0] in named) == (part == "forget"))
        people = list(islice(wanted, limit))
    return [about for about in people if part != "retain-seen" or half_of(about[0]) == "seen"]


def _skips_text(part: Part, options: Mapping[str, Any]) -> bool:
    replaces = options.get("teacher", "reference") in REPLACES_IMAGES
    return part == "forget" and bool(options.get("skip_text")) and replaces


def _is_unchanged(config: Mapping[str, Any], spec: str) -> bool:
    """Whether a source is stamped as it was when the artefact was made; only artefacts carry a stamp."""
    stamps = config.get("inputs", {})
    try:
        return bool(stamps.get(config["options"]["data"]) == input_stamps(spec)[spec])
    except (DataError, KeyError):
        return False
