"""Which examples are about the person: those the adapter unlearned, and the questions that were asked afterwards.

The examples come from the source the adapter was trained from, as it was then: the same stamp and the same number of
examples, for a source that was made again would be counted as if it had been unlearned. They enter the record as counts
and as digests under the person's key, so that whoever has key and source can show that these very examples are meant.
Membership is strict: a record about somebody whom the adapter never unlearned would be evidence of nothing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ...data.artefact import ArtefactMismatch, is_complete, read_json
from ...data.example import DataError, Example, canonical_json
from ...data.sidecar import Sidecar, read_sidecar
from ...data.source import Source
from ...data.sources import open_source
from ..answers import Answer
from ..report.run import Stage
from .keys import PersonKey


@dataclass(frozen=True, kw_only=True, slots=True)
class Concerned:
    """What an adapter unlearned of a person, out of everything it unlearned.

    Attributes:
        examples: the training examples about the person that were unlearned.
        left_out: how many others about them the training left out.
        forget_people, forget_examples: how many people and examples the adapter unlearned.
        ids: everybody's ids in the source, for what must not be copied.
        facts: the source's private words, if it marks them.
    """

    examples: Sequence[Example]
    left_out: int
    forget_people: int
    forget_examples: int
    ids: frozenset[str]
    facts: Sidecar | None


def find_concerned(run: Path, adapter: Stage, person: str) -> Concerned:
    """Return what an adapter unlearned of a person.

    Raises:
        DataError: the source is not at hand.
        ArtefactMismatch: it is not what it was, or the adapter did not unlearn this person.
    """
    source = _training_source(run, adapter)
    everything = list(source.training("forget"))
    unlearned = _unlearned(adapter, source, everything)
    examples = [example for example in unlearned if person in example.people]
    if not examples:
        raise ArtefactMismatch(_why_not(adapter, source, person, everything))
    sidecar = source.location / "sidecar.json"
    return Concerned(
        examples=examples,
        left_out=sum(person in example.people for example in everything) - len(examples),
        forget_people=len({example.people[0] for example in unlearned}),
        forget_examples=len(unlearned),
        ids=source.people() | {name for example in everything for name in example.people},
        facts=read_sidecar(sidecar) if sidecar.is_file() else None,
    )


def examples_section(concerned: Concerned, answers: Sequence[Answer], key: PersonKey) -> dict[str, Any]:
    """Return the record's counts and keyed digests of what was unlearned and what was asked about the person."""
    asked: dict[str, list[str]] = {}
    for answer in answers:
        if answer.person == key.person:
            content = canonical_json([answer.split, answer.id, answer.question, answer.expected])
            asked.setdefault(answer.split, []).append(key.digest("question", content))
    unlearned = [key.digest("example", example.digest().encode()) for example in concerned.examples]
    pictured = sum(bool(example.images) for example in concerned.examples)
    return {
        "unlearned": {
            "count": len(unlearned), "with_picture": pictured, "left_out_of_training": concerned.left_out,
            "digests": sorted(unlearned),
        },
        "asked": {split: {"count": len(found), "digests": sorted(found)} for split, found in sorted(asked.items())},
    }  # fmt: skip


def _training_source(run: Path, adapter: Stage) -> Source:
    """Open the source an adapter was trained from, where it is now: in its run, where its options say, or above."""
    options, spec = adapter.options, str(adapter.options["data"])
    stamp = adapter.config.get("inputs", {}).get(spec)
    found = {_stamp(place): place for place in reversed(list(_places(run, spec)))}
    if stamp not in (None, "given"):
        if stamp not in found:
            others = ", ".join(f"{place} ({when})" for when, place in found.items())
            raise (ArtefactMismatch if found else DataError)(
                f"{adapter.path}: expected the data it was trained from ({spec}, made {stamp}), found "
                f"{others or 'none'}. A record names examples: it is made while they are at hand."
            )
        spec = str(found[stamp])
    elif "given" in found:
        spec = str(found["given"])
    commit = options.get("data_revision") or adapter.provenance.get("data_commit")
    return open_source(
        spec, ratio=options.get("ratio"), forget=options.get("forget") or (),
        revision=None if Path(spec).is_dir() else commit, local_files_only=True,
    )  # fmt: skip


def _places(run: Path, spec: str) -> Iterator[Path]:
    """Yield the directories a recorded path may be now, the likeliest first."""
    above = (folder / spec for folder in run.resolve().parents)
    yield from (place for place in (run / "data", Path(spec).expanduser(), *above) if place.is_dir())


def _stamp(place: Path) -> str:
    return str(read_json(place / "provenance.json").get("finished")) if is_complete(place) else "given"


def _unlearned(adapter: Stage, source: Source, everything: Sequence[Example]) -> list[Example]:
    """Return the examples that training used, by its options, and as many as its provenance counts."""
    options, count = adapter.options, adapter.provenance.get("forget_examples")
    used = list(islice(everything, options.get("limit")))
    if options.get("skip_text") and count != len(used):
        used = [example for example in used if example.images]
    if count not in (None, len(used)):
        raise ArtefactMismatch(
            f"{source.location}: expected the {count} examples that {adapter.path.name} unlearned, found {len(used)}. "
            "The source has changed since: restore it, or train again."
        )
    return used


def _why_not(adapter: Stage, source: Source, person: str, everything: Sequence[Example]) -> str:
    """Return in words why somebody is not among those whom an adapter unlearned, and what to do."""
    known = ", ".join(sorted(source.forget_people())[:8])
    asked = f"--person {person}: expected somebody whom {adapter.path.name} unlearned ({known}), found"
    if any(person in example.people for example in everything):
        return f"{asked} that its training left out every example about them (--limit, --skip-text). Train without."
    if person in source.people():
        return f"{asked} a person of {source.location} who is not to be forgotten there. Unlearn them first."
    return f"{asked} nobody of that id in {source.location}. Use the id as in the source."
