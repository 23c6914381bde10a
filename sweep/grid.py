"""What a sweep tries: axes with their values as words of `viker train`, and every combination that says something new.

An axis that a method does not read is left out of its settings, so that nothing is trained twice under two names.
Whether it is read is not written down here: adapters are named by what their method reads, so an axis whose values all
give one name makes no difference. Numbers of references (k) and pools are another cache each, not an option of
training: whether a method reads them is told by the rows it asks `viker precompute` for. Values that are words
(another regularizer, ascent, teacher, pool) make another contender of a method; numbers are settings that a contender
is tried at.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import click

from ..data.example import DataError
from ..train.method import Method

LEARNING_RATE, REFERENCES, POOL = "learning_rate", "num_references", "pool"
# axis -> the option of `viker sweep`, the option of `viker train`
OPTIONS = {
    LEARNING_RATE: ("--learning-rates", "--learning-rate"),
    "lambda": ("--lambdas", "--lambda"),
    "retain": ("--retains", "--retain"),
    "top_k": ("--top-ks", "--top-k"),
    "regularizer": ("--regularizers", "--regularizer"),
    "ascent": ("--ascents", "--ascent"),
    "teacher": ("--teachers", "--teacher"),
    "token_lambda": ("--token-lambdas", "--token-lambda"),
}
WORDS = ("regularizer", "ascent", "teacher", "token_lambda")
DRAWS = {REFERENCES: "--num-references", POOL: "--pools"}  # axes whose every value is another cache
_SHORT = {LEARNING_RATE: "lr", REFERENCES: "k", "top_k": "K"}

NameOf = Callable[[Sequence[str]], str]  # words of `viker train` -> the name of the adapter it would write


class Choice(NamedTuple):
    """One value of an axis, and the words that say it to `viker train`."""

    axis: str
    value: float | str
    words: tuple[str, ...]

    @property
    def told(self) -> str:
        """What it is called in a label."""
        value = self.value if isinstance(self.value, str) else f"{self.value:.12g}"
        return f"{_SHORT.get(self.axis, self.axis)}={value}"


class Axis(NamedTuple):
    """One direction of the grid; `method` where it is meant for one method alone."""

    name: str
    option: str
    choices: tuple[Choice, ...]
    method: str | None = None


@dataclass(frozen=True, slots=True)
class Setting:
    """A method and one value of every axis it reads; `method` is a name or FILE.py:NAME."""

    method: str
    choices: tuple[Choice, ...]

    @property
    def words(self) -> tuple[str, ...]:
        """The words of `viker train` that name it; the cache of its references is another matter."""
        return ("--method", self.method, *(word for choice in self.choices for word in choice.words))

    @property
    def values(self) -> dict[str, float | str]:
        """The value of every axis."""
        return {choice.axis: choice.value for choice in self.choices}

    @property
    def variant(self) -> str:
        """The method, and the words that make it another: what numbers are tried for."""
        return " ".join([self.method, *(choice.told for choice in self.choices if isinstance(choice.value, str))])

    @property
    def label(self) -> str:
        """What it is called in tables and logs."""
        return " ".join([self.method, *(choice.told for choice in self.choices)])


def read_numbers(option: str, text: str, kind: type[int] | type[float] = float) -> list[Any]:
    """Return the numbers of a comma list, each once.

    Raises:
        click.UsageError: it is not one.
    """
    try:
        return list(dict.fromkeys(kind(word) for word in text.split(",")))
    except ValueError:
        raise click.UsageError(f"sweep {option}: expected numbers joined by commas, found {text!r}.") from None


def read_words(option: str, text: str) -> list[str]:
    """Return the words of a comma list, each once.

    Raises:
        click.UsageError: one of them is empty.
    """
    words = list(dict.fromkeys(word.strip() for word in text.split(",")))
    if not all(words):
        raise click.UsageError(f"sweep {option}: expected words joined by commas, found {text!r}.")
    return words


def option_axis(name: str, text: str) -> Axis:
    """Return an axis that is an option of `viker train`, from a comma list."""
    option, of_train = OPTIONS[name]
    if name in WORDS:
        words = read_words(option, text)
        return Axis(name, option, tuple(Choice(name, word, (of_train, word)) for word in words))
    values = read_numbers(option, text, int if name == "top_k" else float)
    return Axis(name, option, tuple(Choice(name, value, (of_train, repr(value))) for value in values))


def draw_axis(name: str, text: str) -> Axis:
    """Return the axis of pools or of numbers of references, from a comma list."""
    option = DRAWS[name]
    values = read_words(option, text) if name == POOL else read_numbers(option, text, int)
    return Axis(name, option, tuple(Choice(name, value, ()) for value in values))


def setting_axis(text: str) -> Axis:
    """Return the axis of a method's own setting, from `NAME=a,b` or `METHOD:NAME=a,b`.

    Raises:
        click.UsageError: it is neither, or has an axis of its own.
    """
    left, _, values = text.partition("=")
    method, _, name = left.rpartition(":")
    if not name or not values:
        raise click.UsageError(f"sweep --hp: expected NAME=a,b or METHOD:NAME=a,b, found {text!r}.")
    if name in OPTIONS:
        raise click.UsageError(f"sweep --hp {name}: expected a method's own setting; use {OPTIONS[name][0]}.")
    numbers = read_numbers(f"--hp {left}", values)
    return Axis(
        name, f"--hp {left}", tuple(Choice(name, value, ("--hp", f"{name}={value!r}")) for value in numbers),
        method or None,
    )  # fmt: skip


def reads_references(method: Method) -> bool:
    """Tell whether a method's rows come from irrelevant images, whose pool and number are axes."""
    return any(teacher_of(words) == "reference" for words in method.precomputes)


def teacher_of(words: Sequence[str]) -> str:
    """Return the kind of teacher that options of `viker precompute` name."""
    return words[words.index("--teacher") + 1] if "--teacher" in words else "reference"


def expand(
    methods: Sequence[tuple[str, Method]], axes: Sequence[Axis], name_of: NameOf, announce: Callable[[str], None]
) -> list[Setting]:
    """Return every setting of the grid, in the order of the axes; an axis a method goes without is announced.

    Args:
        methods: each as `viker train` is told it, with its record.
        axes: the directions of the grid.
        name_of: names the adapter of a training.
        announce: told which axes are left out of a method's settings, and why.

    Raises:
        DataError: a value is refused, or no method takes an axis.
    """
    axes_of: dict[str, list[Axis]] = {name: [] for name, _ in methods}
    for axis in axes:
        for name in _readers(axis, methods, name_of, announce):
            axes_of[name].append(axis)
    return [
        Setting(name, choices)
        for name, _ in methods
        for choices in itertools.product(*(axis.choices for axis in axes_of[name]))
    ]


def _readers(
    axis: Axis, methods: Sequence[tuple[str, Method]], name_of: NameOf, announce: Callable[[str], None]
) -> list[str]:
    """Return the methods to which an axis makes a difference.

    Raises:
        DataError: those that it is meant for refuse it.
    """
    meant = [(name, method) for name, method in methods if axis.method in (None, name)]
    if not meant:
        raise DataError(
            f"sweep {axis.option}: expected one of --methods, found {axis.method}. Add it, or leave it out."
        )
    readers, refusals = [], []
    for name, method in meant:
        try:
            reads = _makes_a_difference(axis, name, method, name_of)
        except _Refused as refusal:
            refusals.append(f"{name}: {refusal}")
            continue
        if reads:
            readers.append(name)
        else:
            announce(f"sweep: {axis.option} makes no difference to {name}")
    if refusals and not readers:
        raise DataError(
            f"sweep {axis.option}: expected a method that takes it, found none.\n  " + "\n  ".join(refusals)
        )
    for told in refusals:
        announce(f"sweep: {axis.option} left out of {told}")
    return readers


class _Refused(Exception):
    """A method takes no such option at all."""


def _makes_a_difference(axis: Axis, name: str, method: Method, name_of: NameOf) -> bool:
    """Tell whether a method reads an axis: then adapters have other names.

    Raises:
        _Refused: `viker train` takes none of the values.
        DataError: it takes some of them.
    """
    if axis.name == LEARNING_RATE:
        return True
    if axis.name in DRAWS:
        return reads_references(method)
    names, refused = {name_of(["--method", name])}, []
    for choice in axis.choices:
        try:
            names.add(name_of(["--method", name, *choice.words]))
        except (DataError, click.UsageError) as error:
            refused.append(error)
    if len(refused) == len(axis.choices):
        raise _Refused(str(refused[0]))
    if refused:
        raise DataError(f"sweep {axis.option}: {refused[0]}")
    return len(names) > 1
