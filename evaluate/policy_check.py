"""Judge one model by a policy: every requirement against a number that was measured, and a verdict that is a record.

A requirement whose number was not measured fails: "not measured" is never a pass, and neither is a difference from
something that is not there, nor a number that is not finite. All requirements are judged, also behind a failed one, so
a failed verdict holds as much as a passed one. Without retain-only and without controls nothing says what a model that
never knew would answer: then there is no verdict, which counts as failed unless the policy allows it by name; the label
stays in the record either way.
Where numbers come from is not known here: a `Lookup` holds plain records {model, split, task, modality, metric, value,
n, ci} with `person` where it is of one person, and `attack` and `against` where it is the recovery by an attack beyond
that of `against` (retain-only or controls). Controls are the records of a model's own split `controls`. Bounds include
their ends, and a rounding of 1e-9 is forgiven: a mean of fractions and the same count over their number may differ in
the last bits. Reading and recording a policy is `policy.py`'s; leaving with exit code 4 is the command's.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..data.example import DataError
from .policy import BOUNDS, CONTROLS, RETAIN_ONLY, UNCOMPARED, Policy, PolicyRecord, Requirement

VERDICT_SCHEMA = "viker/verdict/1"
VERDICT_FILE = "verdict.json"
NO_VERDICT = f"{UNCOMPARED}: no verdict"
ALLOWED = f"{UNCOMPARED}: allowed by the policy, which judges the numbers alone"

_ROUNDING = 1e-9
_NAMES = ("model", "split", "task", "modality", "metric", "person", "attack", "against")
_AGAINST = (RETAIN_ONLY, CONTROLS)  # in this order: controls are the stand-in

Record = Mapping[str, Any]
_Key = tuple[str | None, ...]


class Lookup:
    """Measured numbers by what they are of."""

    def __init__(self, records: Iterable[Record]) -> None:
        self._records: dict[_Key, Record] = {}
        self._people: dict[_Key, list[str]] = {}
        for record in records:
            key = _key(**{name: record.get(name) for name in _NAMES})
            if key in self._records:
                raise DataError(f"{_said(key)}: expected one number, found two. Score the evaluation again.")
            self._records[key] = record
            if record.get("person") is not None:
                self._people.setdefault(_key(**{**record, "person": None}), []).append(str(record["person"]))

    def find(self, **names: str | None) -> Record | None:
        """Return the record of exactly these names (model, split, task, modality, metric; person, attack, against)."""
        return self._records.get(_key(**names))

    def people(self, **names: str | None) -> list[str]:
        """Return who has a record of their own by these names."""
        return sorted(self._people.get(_key(**names), ()))

    def compared_with(self, model: str) -> str | None:
        """Return what says how a model that never knew answers: retain-only, else the model's controls, else None."""
        of = {(key[0], key[1]) for key, record in self._records.items() if record.get("attack") is None}
        if any(name == RETAIN_ONLY for name, _ in of):
            return RETAIN_ONLY
        return CONTROLS if (model, CONTROLS) in of else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One requirement judged: the `value` that the bound is on, made of `own` and `other`; None where not measured."""

    requirement: Requirement
    passed: bool
    words: str
    value: float | None = None
    own: float | None = None
    other: float | None = None
    n: int | None = None
    ci: tuple[float, float] | None = None
    person: str | None = None
    against: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """One model judged by a policy; `label` is what the verdict must not be read without."""

    model: str
    checks: tuple[Check, ...]
    compared_with: str | None
    label: str | None
    passed: bool


@dataclass(frozen=True, slots=True)
class _Number:
    """A value that a bound is on, and what it is made of."""

    value: float
    own: Record
    other: float | None = None
    person: str | None = None
    against: str | None = None


class _NotMeasured(Exception):
    """Why there is no number to judge."""


def check(policy: Policy, found: Lookup, *, model: str) -> Verdict:
    """Judge one model; what was not measured fails, and so does a model that is compared with nothing (see above)."""
    checks = tuple(_check(requirement, found, model) for requirement in policy.requirements)
    compared_with = found.compared_with(model)
    allowed = UNCOMPARED in policy.allow
    label = None if compared_with else ALLOWED if allowed else NO_VERDICT
    passed = all(one.passed for one in checks) and (compared_with is not None or allowed)
    return Verdict(model=model, checks=checks, compared_with=compared_with, label=label, passed=passed)


def verdict_json(policy: Policy, verdict: Verdict, record: PolicyRecord | None) -> dict[str, Any]:
    """Return the content of a verdict file; `record` is what `record_policy` left beside the evaluation."""
    return {
        "schema": VERDICT_SCHEMA,
        "model": verdict.model,
        "passed": verdict.passed,
        "label": verdict.label,
        "compared_with": verdict.compared_with,
        "policy": {
            "name": policy.name,
            "sha256": policy.sha256,
            "text": policy.text,
            "recorded": record.recorded if record is not None else None,
            "replaced": list(record.replaced) if record is not None else [],
            "fixed_before_run": was_fixed_before(policy, record),
            "words": words_on_record(policy, record),
        },
        "checks": [_check_json(one) for one in verdict.checks],
    }


def was_fixed_before(policy: Policy, record: PolicyRecord | None) -> bool:
    """Tell whether exactly this policy was recorded beside the evaluation before its answers were made."""
    return record is not None and record.sha256 == policy.sha256 and not record.answers_existed


def words_on_record(policy: Policy, record: PolicyRecord | None) -> str:
    """Return in words since when the policy is known to the evaluation."""
    if record is None:
        return "not fixed before the run: no policy is recorded beside the evaluation"
    if record.sha256 != policy.sha256:
        return f"not fixed before the run: another policy is recorded beside the evaluation ({record.sha256[:16]})"
    if record.answers_existed:
        changed = f", after {len(record.replaced)} other(s)" if record.replaced else ""
        return f"not fixed before the run: recorded {record.recorded}{changed}, when there were answers already"
    return f"fixed before the run: recorded {record.recorded}, before the first answer"


def as_text(policy: Policy, verdict: Verdict, record: PolicyRecord | None) -> str:
    """Return the verdict for a terminal: a line for every requirement, failed ones too."""
    failed = sum(not one.passed for one in verdict.checks)
    outcome = "passed" if verdict.passed else "FAILED"
    lines = [f"policy {policy.name!r} on {verdict.model}: {outcome} ({failed} of {len(verdict.checks)} not met)"]
    for one in verdict.checks:
        lines.append(f"  {'met' if one.passed else 'NOT MET':8}{asked(one.requirement)}: {one.words}")
        lines += [f"          {one.requirement.why}"] if one.requirement.why and not one.passed else []
    lines += [f"  {verdict.label}"] if verdict.label else []
    return "\n".join([*lines, f"  {words_on_record(policy, record)}; sha256 {policy.sha256[:16]}"])


def asked(requirement: Requirement) -> str:
    """Return a requirement in words."""
    cell = f"{requirement.metric} ({requirement.split}, {requirement.task}, {requirement.modality})"
    what = f"excess recovery of {cell} by {requirement.attack}" if requirement.attack else cell
    side = "at most" if requirement.at_most is not None else "at least"
    relative = f" beyond {requirement.relative_to}'s" if requirement.relative_to else ""
    everyone = ", for every person" if requirement.worst_person else ""
    return f"{what} {side} {_bound(requirement):g}{relative}{everyone}"


def _check(requirement: Requirement, found: Lookup, model: str) -> Check:
    try:
        numbers = _numbers(requirement, found, model)
    except _NotMeasured as reason:
        return Check(requirement=requirement, passed=False, words=f"not measured: {reason}")
    choose = max if requirement.at_most is not None else min
    worst = choose(numbers, key=lambda number: number.value)
    ci = worst.own.get("ci")
    return Check(
        requirement=requirement,
        passed=_holds(requirement, worst.value),
        words=_words(requirement, numbers, worst),
        value=worst.value,
        own=float(worst.own["value"]),
        other=worst.other,
        n=worst.own.get("n"),
        ci=(float(ci[0]), float(ci[1])) if ci else None,
        person=worst.person,
        against=worst.against,
    )


def _numbers(requirement: Requirement, found: Lookup, model: str) -> list[_Number]:
    """Return the numbers that a bound is on: one, or one a person.

    Raises:
        _NotMeasured: one of them is not there.
    """
    if requirement.relative_to == model:
        raise _NotMeasured(f"{model} would be compared with itself")
    cell = {
        "model": model, "split": requirement.split, "task": requirement.task, "modality": requirement.modality,
        "metric": requirement.metric,
    }  # fmt: skip
    if requirement.attack is not None:
        cell |= {"attack": requirement.attack, "against": _against(cell, requirement.attack, found)}
    if not requirement.worst_person:
        return [_number(requirement, found, cell, None)]
    people = found.people(**cell)
    if not people:
        raise _NotMeasured(f"{_said(_key(**cell))} has no number for every person")
    numbers = [_number(requirement, found, cell, person) for person in people]
    _require_everyone(found.find(**cell), [number.own for number in numbers])
    return numbers


def _against(cell: Mapping[str, str], attack: str, found: Lookup) -> str:
    """Return what the recovery of an attack is beyond: retain-only's, else the controls'."""
    for other in _AGAINST:
        names = {**cell, "attack": attack, "against": other}
        if found.find(**names) is not None or found.people(**names):
            return other
    raise _NotMeasured(
        f"no recovery of {cell['metric']} ({cell['split']}, {cell['task']}, {cell['modality']}) by {attack}, beyond "
        f"that of {' or '.join(_AGAINST)}"
    )


def _number(requirement: Requirement, found: Lookup, cell: Mapping[str, str], person: str | None) -> _Number:
    own = _measured(found, {**cell, "person": person})
    if requirement.relative_to is None:
        return _Number(float(own["value"]), own, person=person, against=cell.get("against"))
    if requirement.relative_to == CONTROLS:  # other people: theirs is one number for everyone
        other = _measured(found, {**cell, "split": CONTROLS, "person": None})
    else:
        other = _measured(found, {**cell, "model": requirement.relative_to, "person": person})
    difference = float(own["value"]) - float(other["value"])
    return _Number(difference, own, float(other["value"]), person, requirement.relative_to)


def _measured(found: Lookup, names: Mapping[str, str | None]) -> Record:
    """Return a record whose value is a finite number."""
    record = found.find(**names)
    if record is None:
        raise _NotMeasured(f"{_said(_key(**names))} is not among the scores")
    value = record.get("value")
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _NotMeasured(f"{_said(_key(**names))} is {value!r}")
    if record.get("n") == 0:
        raise _NotMeasured(f"{_said(_key(**names))} is over no answers")
    return record


def _require_everyone(whole: Record | None, parts: Sequence[Record]) -> None:
    """Raise where people's numbers hold less than the whole's: somebody has none, and may be the worst."""
    if whole is None or whole.get("n") is None or any(part.get("n") is None for part in parts):
        return
    if (number := sum(part["n"] for part in parts)) < whole["n"]:
        raise _NotMeasured(f"the people's own numbers are of {number} of {whole['n']} answers, somebody has none")


def _holds(requirement: Requirement, value: float) -> bool:
    if requirement.at_most is not None:
        return value <= requirement.at_most + _ROUNDING
    return value >= _bound(requirement) - _ROUNDING


def _bound(requirement: Requirement) -> float:
    bound = requirement.at_most if requirement.at_most is not None else requirement.at_least
    assert bound is not None, "a policy without a bound is not read"
    return bound


def _words(requirement: Requirement, numbers: Sequence[_Number], worst: _Number) -> str:
    """Return the number in words, with what it is made of."""
    parts = [f"{worst.value:.4g}"]
    if worst.other is not None:
        parts.append(f"{float(worst.own['value']):.4g} against {worst.against}'s {worst.other:.4g}")
    elif worst.against is not None:
        parts.append(f"beyond {worst.against}'s")
    if worst.person is not None:
        broken = sum(not _holds(requirement, number.value) for number in numbers)
        parts.append(f"the worst of {len(numbers)} people, {worst.person}; {broken} of them not within the bound")
    if worst.own.get("n") is not None:
        parts.append(f"n = {worst.own['n']}")
    if ci := worst.own.get("ci"):
        parts.append(f"95 % interval {float(ci[0]):.4g} to {float(ci[1]):.4g}")
    return ", ".join(parts)


def _check_json(one: Check) -> dict[str, Any]:
    kept = asdict(one)
    requirement = kept.pop("requirement")
    bounds = {name: requirement.pop(name) for name in BOUNDS}
    return {
        **requirement,
        **{name: value for name, value in bounds.items() if value is not None},
        **kept,
        "ci": list(one.ci) if one.ci else None,
        "asked": asked(one.requirement),
    }


def _key(**names: str | None) -> _Key:
    return tuple(None if names.get(name) is None else str(names[name]) for name in _NAMES)


def _said(key: _Key) -> str:
    """Return in words what a number is of."""
    model, split, task, modality, metric, person, attack, against = key
    behind = [f"of {person}"] * (person is not None) + [f"by {attack}, beyond {against}'s"] * (attack is not None)
    return " ".join([f"{metric} ({split}, {task}, {modality}) of {model}", *behind])
