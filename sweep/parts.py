"""From a study's parts, or the axes on the command line, to settings, and to which of them stand in which table.

A sweep without a study is one part with one grid. Settings that several parts ask for are one setting.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import click

from ..train.choose_method import find_method
from .grid import DRAWS, OPTIONS, Axis, NameOf, Setting, draw_axis, expand, option_axis, setting_axis
from .study import Grid, Part, Study

# option of `viker sweep`, as click names it -> axis
_AXES = {
    "learning_rates": "learning_rate", "lambdas": "lambda", "retains": "retain", "top_ks": "top_k",
    "regularizers": "regularizer", "ascents": "ascent", "teachers": "teacher", "token_lambdas": "token_lambda",
    "num_references": "num_references", "pools": "pool",
}  # fmt: skip
_RATES = "learning_rates"


class AskedPart(NamedTuple):
    """One table: its question, the labels of settings that may stand in it, and what contenders are called."""

    title: str
    question: str
    labels: list[str]
    names: dict[str, str]


class AskedParts(NamedTuple):
    """All settings, those among them that follow another's rate, the tables, and the axes as they were named."""

    settings: tuple[Setting, ...]
    follows: dict[str, str]
    parts: list[AskedPart]
    methods: list[str]
    axes: dict[str, list[float | str]]


def resolve_parts(
    study: Study | None, options: Mapping[str, Any], name_of: NameOf, announce: Callable[[str], None]
) -> AskedParts:
    """Return what the parts of a study, or the options alone, ask for.

    Raises:
        click.UsageError, DataError: an axis cannot be, or none of the study's grids has it.
    """
    settings: dict[str, Setting] = {}
    follows, tables, axes = dict[str, str](), list[AskedPart](), dict[str, list[float | str]]()
    parts = _parts_of(study, options)
    for part in parts:
        labels: dict[str, None] = {}
        for grid in part.grids:
            along = _axes(grid, options)
            axes |= {axis.option: [choice.value for choice in axis.choices] for axis in along}
            for setting in expand([(name, find_method(name)) for name in grid.methods], along, name_of, announce):
                settings.setdefault(setting.label, setting)
                labels[setting.label] = None
                if grid.rate_of is not None:
                    follows[setting.label] = grid.rate_of
        tables.append(AskedPart(part.title, part.question, list(labels), dict(part.names)))
    methods = dict.fromkeys(name for part in parts for grid in part.grids for name in grid.methods)
    return AskedParts(tuple(settings.values()), follows, tables, list(methods), axes)


def _parts_of(study: Study | None, options: Mapping[str, Any]) -> Sequence[Part]:
    """Return the parts, with what was named on the command line in place of a study's own."""
    named = {name: options[name] for name in _AXES if name != _RATES and options[name] is not None}
    methods = None if options["methods"] is None else tuple(dict.fromkeys(options["methods"].split(",")))
    if study is None:
        return [Part("", "", (Grid(methods or ("recommended",), named),))]
    grids = [grid for part in study.parts for grid in part.grids]
    if len(grids) == 1:
        (part,) = study.parts
        grid = Grid(methods or grids[0].methods, {**grids[0].axes, **named}, grids[0].rate_of)
        return [part._replace(grids=(grid,))]
    if methods is not None:
        raise click.UsageError("sweep --methods: expected a study of one grid, found several. Leave it out.")
    for name in named:
        if not any(name in grid.axes for grid in grids):
            raise click.UsageError(
                f"sweep --{name.replace('_', '-')}: expected an axis of the study, found one that no part of it has. "
                "Leave it out, or name no study."
            )
    return [part._replace(grids=tuple(_replaced(grid, named) for grid in part.grids)) for part in study.parts]


def _replaced(grid: Grid, named: Mapping[str, str]) -> Grid:
    return grid._replace(axes={name: named.get(name, values) for name, values in grid.axes.items()})


def _axes(grid: Grid, options: Mapping[str, Any]) -> list[Axis]:
    """Return the axes of a grid: the learning rates first, then its own, then methods' own settings."""
    texts = {_RATES: options[_RATES], **grid.axes}
    named = [_axis(_AXES[name], texts[name]) for name in _AXES if texts.get(name) is not None]
    assert set(_AXES.values()) == {*OPTIONS, *DRAWS}, "every axis has an option"
    return [*named, *(setting_axis(text) for text in options["hp"])]


def _axis(axis: str, text: str) -> Axis:
    return draw_axis(axis, text) if axis in DRAWS else option_axis(axis, text)
