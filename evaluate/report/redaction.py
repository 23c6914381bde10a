"""A report for outsiders: its numbers, without people, questions, answers, replies, paths, and digests of these.

It works by an allow-list (`redaction_rules.py`): a section or key that is not on it is withheld, counted, and said so
in a notice, so what is added to reports later does not leak. People get numbers and models the names of their methods
(`redaction_leaves.py`). Digests go too, because who guesses which few people were to be forgotten could confirm the
guess by a digest that depends on it: adapters' names, digests of options, keys of caches. Sentences are kept where they
are ours to the letter, or written again from redacted numbers. What it cannot hide: to somebody who holds the data
numbers and lengths are fingerprints, a report about one person is about that person, and when stages ran is told.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from ...data.example import canonical_json
from ..policy import Requirement
from ..policy_check import asked
from .cells import missing
from .content import PRIVACY
from .formats import is_pooled
from .redaction_leaves import BLOCK, WITHHELD, Names, stage
from .redaction_rules import POOLED, REPORT, ByPerson, Emptied, Keyed
from .words import verdict_in_words

SCHEMA = "viker/redaction/1"
WORDS = (
    "Redacted: people are numbered and models are named by their methods; questions, answers, replies, paths, commands "
    f"and digests are withheld. Where a page shows {BLOCK} there was a text."
)
_NOT_SHOWN = {"title", "notices", "directory", "verdict_in_words"}  # made again from what is shown
_PERSON_KEYS = ("person", "people")
_NOTICES = (
    (r"`(?P<stage>[^`]+)` was begun and not finished: it is not in this report\.",
     "`{stage}` was begun and not finished: it is not in this report."),
    (r"Adapter `(?P<model>[^`]+)` is not evaluated: .*", "Adapter `{model}` is not evaluated."),
    (r"The evaluation of `(?P<model>[^`]+)` is older than .*: evaluate it again\.",
     "The evaluation of `{model}` is older than what it was made of."),
    (r"The evaluations differ in `(?P<option>[a-z_]{2,24})`, so their numbers may not be compared: .*",
     "The evaluations differ in `{option}`, so their numbers may not be compared."),
    (r"Evaluations are limited to (?P<option>\d+) people a split\.",
     "Evaluations are limited to {option} people a split."),
    (r"`real` leaves out the half of the celebrities that serves as the reference pool\.", None),
    (r"The run has no complete `data` folder, so where its data comes from is not known here\.", None),
)  # fmt: skip


def redacted(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return a report, of one run or of several, as an outsider may read it.

    It has the shape of the report, so every format can be made of it; `redacted` counts by section what was withheld.
    """
    rules = POOLED if is_pooled(report) else REPORT
    names = _names(report)
    walk = _Walk(names)
    shown = {
        section: walk.kept(rules[section], value, section) for section, value in report.items() if section in rules
    }
    dropped = [section for section in report if section not in rules and section not in _NOT_SHOWN]
    for section in dropped:
        walk.count("other sections", report[section])
    told = _told(walk.withheld, len(dropped))
    if not is_pooled(report):
        shown |= _rewritten(report, shown, names, told)
    return {**shown, "redacted": {"schema": SCHEMA, "words": told, "withheld": dict(sorted(walk.withheld.items()))}}


class _Walk:
    """One pass over a report, with the count of what was withheld by section."""

    def __init__(self, names: Names) -> None:
        self.withheld: Counter[str] = Counter()
        self._names = names

    def count(self, section: str, value: Any) -> None:
        """Count the values of something that is left out."""
        self.withheld[section] += sum(1 for _ in _leaves(value))

    def kept(self, rule: Any, value: Any, section: str) -> Any:
        """Return what a rule lets through: texts become a block, anything else None, and are counted."""
        if value is None:
            return None
        if isinstance(rule, Emptied):
            self.count(section, value)
            return rule.value
        if isinstance(rule, list | ByPerson):
            return self._items(rule, value, section)
        if isinstance(rule, Mapping | Keyed):
            return self._object(rule, value, section)
        passed = rule(value, self._names)
        if passed is not WITHHELD:
            return passed
        self.count(section, value)
        return BLOCK if isinstance(value, str) else None

    def _items(self, rule: Any, value: Any, section: str) -> list[Any]:
        if not isinstance(value, list):
            self.count(section, value)
            return []
        if isinstance(rule, list):
            return [self.kept(rule[0], item, section) for item in value]
        items = [self.kept(rule.item, item, section) for item in value]
        splits = list(dict.fromkeys(item.get("split") for item in items))
        return sorted(items, key=lambda item: (splits.index(item.get("split")), _place(item.get("person"))))

    def _object(self, rule: Any, value: Any, section: str) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            self.count(section, value)
            return {}
        found: dict[str, Any] = {}
        for name, item in value.items():
            inner = rule.value if isinstance(rule, Keyed) else rule.get(name)
            shown = rule.key(name, self._names) if isinstance(rule, Keyed) else name
            if inner is None or shown is WITHHELD:
                self.count(section, item)
            else:
                found[shown] = self.kept(inner, item, section)
        return found


def _names(report: Mapping[str, Any]) -> Names:
    """Return the names of a report's models and people; the key that orders people is the whole report's digest."""
    names = Names(hashlib.sha256(canonical_json(report)).digest())
    listed = report["models"]
    if isinstance(listed, Mapping):
        for name in listed:
            names.add_model(name, name.partition(" ")[0])
    else:
        for model in listed:
            names.add_model(str(model["name"]), model["method"])
    names.add_people(_people(report))
    return names


def _people(value: Any) -> Iterator[str]:
    """Yield the ids under every key that names people, wherever it is."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            if name in _PERSON_KEYS:
                yield from (one for one in (item if isinstance(item, list) else [item]) if isinstance(one, str))
            yield from _people(item)
    elif isinstance(value, list):
        for item in value:
            yield from _people(item)


def _rewritten(
    report: Mapping[str, Any], shown: dict[str, Any], names: Names, told: list[str]
) -> dict[str, Any]:  # fmt: skip
    """Return the sections that are sentences, made of what is shown."""
    verdicts = [{**verdict, "policy": _policy(verdict["policy"]), "checks": list(map(_check, verdict["checks"]))}
                for verdict in shown["verdicts"]]  # fmt: skip
    notice = f": {shown['embedded']}" if shown["embedded"] else ""
    notices = [_notice(notice, names) for notice in report["notices"] if notice != PRIVACY]
    unsaid = sum(notice is None for notice in notices)
    more = (
        [f"Of its {len(report['notices'])} notices {unsaid} may name what is withheld, and are too."] if unsaid else []
    )
    rest = {"verdicts": verdicts, "title": f"Viker report, redacted{notice}{missing(shown)}", "directory": "",
            "notices": [*told, *more, *filter(None, notices)]}  # fmt: skip
    return {**rest, "verdict_in_words": verdict_in_words({**shown, **rest})}


def _told(withheld: Mapping[str, int], dropped: int) -> list[str]:
    total = sum(withheld.values())
    others = f"; of them {withheld['other sections']} in {dropped} sections left out whole" if dropped else ""
    return [WORDS, f"{total} values of the whole report are withheld{others}."]


def _notice(notice: str, names: Names) -> str | None:
    """Return a notice without what it names, None where it is not known to be safe."""
    for pattern, template in _NOTICES:
        if found := re.fullmatch(pattern, notice, re.DOTALL):
            parts = found.groupdict()
            shown = {"model": names.model(parts["model"])} if "model" in parts else parts
            if "stage" in parts:
                allowed = stage(parts["stage"], names)
                shown = {"stage": BLOCK if allowed is WITHHELD else allowed}
            return notice if template is None else template.format(**shown)
    return None


def _policy(policy: Mapping[str, Any]) -> dict[str, Any]:
    fixed = "fixed before the run" if policy.get("fixed_before_run") else "not fixed before the run"
    return {**policy, "words": fixed}


def _check(check: Mapping[str, Any]) -> dict[str, Any]:
    """Return a requirement with its words made of its numbers again."""
    names = ("metric", "split", "task", "modality", "at_least", "at_most", "relative_to", "attack", "worst_person")
    requirement = Requirement(**{name: check[name] for name in names if name in check})
    return {**check, "asked": asked(requirement), "words": ", ".join(_number_words(check)) or "not measured"}


def _number_words(check: Mapping[str, Any]) -> Iterator[str]:
    if check["value"] is None:
        return
    yield f"{check['value']:.4g}"
    if check["other"] is not None:
        yield f"{check['own']:.4g} against {check['against']}'s {check['other']:.4g}"
    elif check["against"] is not None:
        yield f"beyond {check['against']}'s"
    if check["person"] is not None:
        yield f"the worst of all people, {check['person']}"
    if check["n"] is not None:
        yield f"n = {check['n']}"
    if check["ci"]:
        yield f"95 % interval {check['ci'][0]:.4g} to {check['ci'][1]:.4g}"


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        for item in value.values():
            yield from _leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item)
    elif value is not None:
        yield value


def _place(person: str | None) -> int:
    """Return a person's number, 0 where nobody is named."""
    return int(person.removeprefix("person-")) if person is not None and person != BLOCK else 0
