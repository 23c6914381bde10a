"""What a single value of a report may say to an outsider: a small rule a kind of value, each a closed list or a shape.

A rule takes a value and what names stand for (`Names`) and returns what may be shown, or `WITHHELD`. Words pass where
our code has a list of them, sentences where our code writes them and leaves room for nothing but numbers. Nothing
passes because it looks harmless. What rules stand where in a report is `redaction_rules.py`'s, walking it is
`redaction.py`'s.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import Any

from ...data.kinds import KINDS

BLOCK = "▇▇"
METHODS = frozenset({
    "recommended", "viker", "ga", "gd", "kl-min", "wga", "satimp", "mmunlearner", "npo", "simnpo", "idkpo", "po",
    "undial", "rmu", "vgid", "pubg",
})  # fmt: skip
SPLITS = frozenset({"forget", "test", "retain", "retain-seen", "retain-heldout", "real", "controls"})
REFERENCES = ("vanilla", "retain-only")
_STAGES = frozenset({"data", "base", *REFERENCES})
_ROWS = frozenset({*KINDS, "forget", "test", "retain", "real", "seen", "heldout", "all", "refusal", "scalars"})


class Withheld:
    """What a rule returns in place of a value that may not be shown."""


WITHHELD = Withheld()


class Names:
    """The names that outsiders read: models by their method, people by numbers that only the whole report explains.

    A digest of an id would not do: whoever knows the few ids there are can compute them all. So people are numbered, in
    the order of digests under a key that is made of the whole report: an outsider has neither the key nor the order,
    and the numbers are the same in every format of one report.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._models: dict[str, str] = {name: name for name in REFERENCES}
        self._people: dict[str, str] = {}
        self._others: dict[tuple[str, str], str] = {}

    def add_model(self, name: str, method: Any) -> None:
        """Name a model by its method, and a number where there may be several."""
        if name not in self._models:
            kind = method if method in METHODS else "model"
            number = 1 + sum(shown.rpartition("-")[0] == kind for shown in self._models.values())
            self._models[name] = f"{kind}-{number}"

    def add_people(self, people: Iterable[str]) -> None:
        """Number people, once all of them are known."""
        ordered = sorted(set(people), key=lambda person: blake2b(person.encode(), key=self._key).digest())
        self._people = {person: f"person-{number}" for number, person in enumerate(ordered, start=1)}

    def model(self, name: str) -> str:
        """Return what a model is called; one that the report does not list is numbered as it comes."""
        self.add_model(name, None)
        return self._models[name]

    def person(self, person: str) -> str | Withheld:
        """Return a person's number."""
        return self._people.get(person, WITHHELD)

    def numbered(self, kind: str, value: str) -> str:
        """Return a number for anything else that is told apart and not named."""
        known = sum(one == kind for one, _ in self._others)
        return self._others.setdefault((kind, value), f"{kind}-{known + 1}")


Leaf = Callable[[Any, Names], Any]


def number(value: Any, _names: Names) -> Any:
    """Pass numbers, yes and no."""
    return value if isinstance(value, int | float) else WITHHELD


def covered(_value: Any, _names: Names) -> Any:
    """Pass nothing."""
    return WITHHELD


def one_of(*words: str) -> Leaf:
    """Return a rule that passes these very words."""
    allowed = frozenset(words)
    return lambda value, _names: value if isinstance(value, str) and value in allowed else WITHHELD


def like(pattern: str) -> Leaf:
    """Return a rule that passes texts of a shape in which no name fits."""
    shape = re.compile(pattern)
    return lambda value, _names: value if isinstance(value, str) and shape.fullmatch(value) else WITHHELD


def made_of(words: Iterable[str]) -> Leaf:
    """Return a rule that passes texts all of whose words (between spaces, hyphens, underscores) are listed."""
    allowed = frozenset(words)
    return lambda value, _names: (
        value if isinstance(value, str) and allowed.issuperset(re.split(r"[ _-]", value)) else WITHHELD
    )


def numbered(kind: str) -> Leaf:
    """Return a rule that replaces a text by a number of its own."""
    return lambda value, names: names.numbered(kind, value) if isinstance(value, str) else WITHHELD


def model(value: Any, names: Names) -> Any:
    """Pass a model by its method."""
    return names.model(value) if isinstance(value, str) else WITHHELD


def model_or_teacher(value: Any, names: Names) -> Any:
    """Pass the teacher by that word, a model by its method."""
    return value if value == "teacher" else model(value, names)


def person(value: Any, names: Names) -> Any:
    """Pass a person by number."""
    return names.person(value) if isinstance(value, str) else WITHHELD


def method(value: Any, _names: Names) -> Any:
    """Pass the name of a method or of a reference model, however it is spelt."""
    return value if isinstance(value, str) and value.lower() in {*METHODS, *REFERENCES} else WITHHELD


def citation(value: Any, _names: Names) -> Any:
    """Pass the arXiv number that a source begins with, and nothing behind it."""
    found = re.match(r"arXiv \d{4}\.\d{4,5}(?!\d)", value) if isinstance(value, str) else None
    return found[0] if found else WITHHELD


def stage(value: Any, names: Names) -> Any:
    """Pass the name of a stage: fixed ones, and those of models and rows without what a user or a digest put there."""
    if not isinstance(value, str):
        return WITHHELD
    folder, _, name = value.partition("/")
    if folder in ("adapters", "evaluations") and name:
        return f"{folder}/{names.model(name)}"
    if folder == "precompute" and name:
        return value if _ROWS.issuperset(name.split("-")) else f"{folder}/{names.numbered('rows', name)}"
    return value if value in _STAGES else WITHHELD


class Sentences:
    """A rule that passes sentences of ours, several joined by `; ` too.

    Templates are written as our code prints them; `#` is any number, `{split}` and the like one of the words given.
    """

    def __init__(self, templates: Sequence[str], words: Mapping[str, Iterable[str]]) -> None:
        choices = {name: "|".join(map(re.escape, sorted(allowed))) for name, allowed in words.items()}
        one = "|".join(_as_pattern(template, choices) for template in templates)
        self._shape = re.compile(rf"(?:{one})(?:; (?:{one}))*")

    def __call__(self, value: Any, _names: Names) -> Any:
        """Return the sentences if all of them are ours."""
        return value if isinstance(value, str) and (not value or self._shape.fullmatch(value)) else WITHHELD


def _as_pattern(template: str, choices: Mapping[str, str]) -> str:
    parts = re.split(r"(#|\{\w+\})", template)
    return "".join(
        r"[-+]?[\d.]+(?:e[-+]?\d+)?"
        if part == "#"
        else f"(?:{choices[part[1:-1]]})"
        if part[:1] == "{"
        else re.escape(part)
        for part in parts
    )
