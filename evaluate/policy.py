"""A policy: thresholds that are fixed before a run, in a TOML file that is read whole or not at all.

    schema = "viker/policy/1"
    name = "what we promise"
    allow = ["no retain-only, no controls"]       # optional: what else would be a failure
    [[require]]                                   # as many as are wanted, at least one
    metric = "fact_recall"                        # as scores.json names it
    split = "forget"
    task = "generation"                           # default: generation
    modality = "image"                            # default: image
    at_most = 0.1                                 # exactly one of at_most and at_least
    relative_to = "retain-only"                   # optional: the bound is on the difference from vanilla, retain-only
                                                  #   or the controls (the same model, asked about never-seen people)
    attack = "relearn-forget"                     # optional, not with relative_to: the bound is on the excess recovery
                                                  #   of this attack, which is relative already
    worst_person = true                           # optional: the bound must hold for every person
    why = "..."                                   # optional: for whoever reads the verdict

All mistakes of a file are listed at once; there is no lenient reading, since a key that is not understood is a
requirement that is not checked. `record_policy` writes the policy beside an evaluation before its answers exist, which
is what makes "fixed before the run" a fact of the record; a policy of another digest is refused there afterwards.
Judging is `policy_check.py`'s. No torch here: a mistake in a policy is said before anything is loaded.
"""

import hashlib
import time
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.artefact import ArtefactMismatch, is_complete, read_json, write_json
from ..data.example import TASKS, DataError

POLICY_SCHEMA = "viker/policy/1"
RECORD_SCHEMA = "viker/policy-record/1"
POLICY_FILE = "policy.json"
MAX_BYTES = 1024**2
_TRACES = ("answers*", "work")  # what an evaluation's directory holds once there are answers, some or all
_LARGEST = 1e300  # TOML's integers have no end, and neither `inf` nor `nan` is within

UNCOMPARED = "no retain-only, no controls"
ALLOWANCES = (UNCOMPARED,)
VANILLA, RETAIN_ONLY, CONTROLS = "vanilla", "retain-only", "controls"
RELATIVES = (VANILLA, RETAIN_ONLY, CONTROLS)
BOUNDS = ("at_least", "at_most")

_MODALITIES = ("image", "text")
_DEFAULTS = {"task": "generation", "modality": "image"}
_TOP = ("schema", "name", "allow", "require")


@dataclass(frozen=True, kw_only=True, slots=True)
class Requirement:
    """One bound on one number; exactly one of `at_least` and `at_most` is set."""

    metric: str
    split: str
    task: str
    modality: str
    at_least: float | None = None
    at_most: float | None = None
    relative_to: str | None = None
    attack: str | None = None
    worst_person: bool = False
    why: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """A policy as it was read: its text and digest, and what it requires and allows."""

    name: str
    text: str
    sha256: str
    requirements: tuple[Requirement, ...]
    allow: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyRecord:
    """What stands beside an evaluation: which policy was recorded when, and whether answers were there already.

    `replaced` are the digests of policies that were recorded there before and overwritten.
    """

    sha256: str
    recorded: str
    answers_existed: bool
    replaced: tuple[str, ...] = ()


def read_policy(path: Path, known: Mapping[str, Collection[str]] | None = None) -> Policy:
    """Read a policy.

    Args:
        path: the TOML file.
        known: the names that this run can measure, by key (`metric`, `split`, `attack`): others are mistakes, so that
            a slip of the pen is said before hours of work and not after. Keys that are absent are not looked at.

    Raises:
        DataError: the file is no policy; all its mistakes are listed.
    """
    data = _read(path)
    try:
        text = data.decode("utf-8")
        table = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: expected a policy in TOML, found something else ({error}). Correct it.") from error
    if not table:
        raise DataError(f"{path}: expected a policy ({POLICY_SCHEMA}), found an empty file. Write what is required.")
    mistakes = _mistakes(table, known or {})
    if mistakes:
        listed = "\n".join(f"  {mistake}" for mistake in mistakes)
        raise DataError(f"{path}: expected a policy ({POLICY_SCHEMA}), found mistakes. Correct all of them:\n{listed}")
    requirements = tuple(Requirement(**_DEFAULTS | _as_floats(entry)) for entry in table["require"])
    return Policy(
        name=table["name"],
        text=text,
        sha256=hashlib.sha256(data).hexdigest(),
        requirements=requirements,
        allow=frozenset(table.get("allow", ())),
    )


def record_policy(directory: Path, policy: Policy, *, overwrite: bool = False) -> PolicyRecord:
    """Write a policy beside an evaluation, or find it there; call it before the first answer is made.

    Any file whose name begins with `answers`, the folder of half-done work, and a complete evaluation count as answers:
    an evaluation that a kill left may be gone on with, its policy chosen by what is there. A policy that is recorded
    there already keeps the time of its first recording.

    Raises:
        ArtefactMismatch: another policy is recorded there, and it is not to be overwritten.
        DataError: what is recorded there is damaged.
    """
    found = recorded_policy(directory)
    if found is not None and found.sha256 == policy.sha256:
        return found
    if found is not None and not overwrite:
        raise ArtefactMismatch(
            f"{directory / POLICY_FILE}: expected the policy that was recorded for this evaluation "
            f"({found.sha256[:16]}, {found.recorded}), found another ({policy.sha256[:16]}, {policy.name!r}). Judge by "
            "the recorded one, evaluate into another directory, or --overwrite: then the verdict says so."
        )
    record = PolicyRecord(
        sha256=policy.sha256,
        recorded=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        answers_existed=is_complete(directory) or any(any(directory.glob(trace)) for trace in _TRACES),
        replaced=(*found.replaced, found.sha256) if found is not None else (),
    )
    write_json(
        directory / POLICY_FILE,
        {
            "schema": RECORD_SCHEMA, "name": policy.name, "sha256": record.sha256, "text": policy.text,
            "recorded": record.recorded, "answers_existed": record.answers_existed, "replaced": list(record.replaced),
        },
    )  # fmt: skip
    return record


def recorded_policy(directory: Path) -> PolicyRecord | None:
    """Return what is recorded beside an evaluation, None where nothing is.

    Raises:
        DataError: it is damaged.
    """
    path = directory / POLICY_FILE
    if not path.exists():
        return None
    found = read_json(path)
    replaced = found.get("replaced")
    wrong = [name for name in ("sha256", "recorded", "text") if not isinstance(found.get(name), str)]
    wrong += ["answers_existed"] * (not isinstance(found.get("answers_existed"), bool))
    wrong += ["replaced"] * (not isinstance(replaced, list) or not all(isinstance(one, str) for one in replaced))
    wrong += ["schema"] * (found.get("schema") != RECORD_SCHEMA)
    if not wrong and hashlib.sha256(found["text"].encode()).hexdigest() != found["sha256"]:
        wrong = ["sha256 (it is not the text's)"]
    if wrong:
        raise DataError(
            f"{path}: expected the record of a policy ({RECORD_SCHEMA}), found missing or malformed "
            f"{', '.join(wrong)}. Evaluate again with --overwrite."
        )
    return PolicyRecord(
        sha256=found["sha256"],
        recorded=found["recorded"],
        answers_existed=found["answers_existed"],
        replaced=tuple(found["replaced"]),
    )


def _read(path: Path) -> bytes:
    """Return the bytes of a file that is small enough to be a policy."""
    if not path.is_file():
        raise DataError(f"--policy {path}: expected a TOML file, found none. Check the path.")
    if path.stat().st_size > MAX_BYTES:
        raise DataError(
            f"--policy {path}: expected a policy of at most {MAX_BYTES} bytes, found {path.stat().st_size}. "
            "Name another file."
        )
    return path.read_bytes()


def _mistakes(table: Mapping[str, Any], known: Mapping[str, Collection[str]]) -> list[str]:
    """Return every mistake of a policy, one line each."""
    found = [f"{name}: unknown; known are {', '.join(_TOP)}" for name in sorted(set(table) - set(_TOP))]
    if table.get("schema") != POLICY_SCHEMA:
        found.append(f"schema: expected {POLICY_SCHEMA!r}, found {table.get('schema')!r}")
    if not _is_text(table.get("name")):
        found.append(f"name: expected words, found {table.get('name')!r}")
    allow = table.get("allow", [])
    if not isinstance(allow, list) or not all(one in ALLOWANCES for one in allow):
        found.append(f"allow: expected a list of {_quoted(ALLOWANCES)}, found {allow!r}")
    require = table.get("require", [])
    if not isinstance(require, list) or not require or not all(isinstance(entry, dict) for entry in require):
        return [*found, f"require: expected at least one [[require]] table, found {require!r}"]
    places: dict[tuple[Any, ...], int] = {}
    for number, entry in enumerate(require, start=1):
        own = _requirement_mistakes(entry, known)
        first = places.setdefault(_bounded(entry), number) if not own else number
        own += [f"the same bound on the same number as require {first}"] * (first != number)
        found += [f"require {number}: {mistake}" for mistake in own]
    return found


def _requirement_mistakes(entry: Mapping[str, Any], known: Mapping[str, Collection[str]]) -> list[str]:
    names = Requirement.__dataclass_fields__
    found = [f"{name}: unknown; known are {', '.join(names)}" for name in sorted(set(entry) - set(names))]
    found += [
        f"{name}: expected {'words' if name == 'why' else 'a name'}, found {entry.get(name)!r}"
        for name in ("metric", "split", "attack", "why")
        if not _is_text(entry.get(name)) and (name in entry or name in ("metric", "split"))
    ]
    choices = {"task": TASKS, "modality": _MODALITIES, "relative_to": RELATIVES}
    found += [
        f"{name}: expected one of {_quoted(values)}, found {entry[name]!r}"
        for name, values in choices.items()
        if name in entry and entry[name] not in values
    ]
    found += [
        f"{name}: expected one of {_quoted(values)}, which this run can measure, found {entry[name]!r}"
        for name, values in known.items()
        if _is_text(entry.get(name)) and entry[name] not in values
    ]
    if not isinstance(entry.get("worst_person", False), bool):
        found.append(f"worst_person: expected true or false, found {entry['worst_person']!r}")
    if "relative_to" in entry and "attack" in entry:
        found.append("relative_to, attack: expected one of them; the recovery of an attack is relative already")
    if entry.get("relative_to") == CONTROLS and entry.get("split") == CONTROLS:
        found.append("relative_to: expected another split than the controls themselves, found controls beside controls")
    return found + _bound_mistakes(entry)


def _bound_mistakes(entry: Mapping[str, Any]) -> list[str]:
    bounds = [name for name in BOUNDS if name in entry]
    if len(bounds) != 1:
        return [f"expected exactly one of at_least and at_most, found {' and '.join(bounds) or 'neither'}"]
    value = entry[bounds[0]]
    if isinstance(value, bool) or not isinstance(value, int | float) or not -_LARGEST < value < _LARGEST:
        return [f"{bounds[0]}: expected a finite number, found {value!r}"]
    return []


def _bounded(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what a requirement bounds and from which side: two of these are one too many."""
    whole = {**_DEFAULTS, **entry}
    names = ("metric", "split", "task", "modality", "relative_to", "attack", "worst_person")
    return (*(whole.get(name) or None for name in names), *(name for name in BOUNDS if name in entry))


def _as_floats(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {name: float(value) if name in BOUNDS else value for name, value in entry.items()}


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _quoted(names: Collection[str]) -> str:
    return ", ".join(map(repr, names))
