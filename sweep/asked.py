"""From options to a sweep: which runs, which settings, who is ranked as whom, and what all jobs have in common.

Everything that can be wrong with a grid is said here, before anything is started. A study fills in what was not named.
"""

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from ..data.example import DataError
from ..train.choose_method import choose_method, find_method
from ..train.method import Method
from .collect import contender_of
from .grid import OPTIONS, REFERENCES, Axis, Setting, expand, option_axis, read_numbers, references_axis, setting_axis
from .jobs import Job, Recipe, recipe_words
from .prepare import Role, Run, Step, rows_to_make, steps, world
from .studies import STUDIES

_AXES = {"learning_rates": "learning_rate", "lambdas": "lambda", "retains": "retain", "top_ks": "top_k"}
_MINI = "mini"
_LOGGED = ("--teacher", "reference", "--split", "forget")  # rows that every log of a world speaks of


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A sweep: its runs, its settings, what all jobs have in common; `told` is what the results file says of it."""

    runs: tuple[Run, ...]
    settings: tuple[Setting, ...]
    seeds: tuple[int, ...]
    recipe: Recipe
    top_ks: tuple[int, ...]
    references: tuple[int, ...]
    told: Mapping[str, Any]

    def under(self, role: Role) -> list[Run]:
        """Return the runs of a role."""
        return [run for run in self.runs if run.role == role]

    def jobs(self, role: Role, settings: Sequence[Setting]) -> list[Job]:
        """Return the trainings of settings in the runs of a role."""
        return [
            Job(run, setting, seed, self.recipe)
            for run in self.under(role)
            for setting in settings
            for seed in self.seeds
        ]

    def steps(self, run: Run) -> list[Step]:
        """Return the commands after which a run can be trained in."""
        rows = rows_to_make([record_of(setting) for setting in self.settings], self.top_ks)
        logged = [_LOGGED] if run.is_world and not any(words[: len(_LOGGED)] == _LOGGED for words in rows) else []
        return steps(run, [*logged, *rows], self.references)


def record_of(setting: Setting) -> Method:
    """Return the record of a method under a setting: its weights decide which rows it reads."""
    values = setting.values
    return choose_method(setting.method, lambda_=values.get("lambda"), retain=values.get("retain"))


def ranked_as(setting: Setting) -> tuple[str, bool]:
    """Return whom a setting is ranked as, and whether it trains on retain data."""
    needs_retain = record_of(setting).needs_retain
    return contender_of(setting, needs_retain, find_method(setting.method).needs_retain), needs_retain


def resolve(options: Mapping[str, Any], preset: str | None, announce: Callable[[str], None]) -> Asked:
    """Return the sweep that options ask for.

    Raises:
        click.UsageError, DataError: it cannot be.
    """
    options = _with_study(options)
    runs = _runs(options, preset)
    preset = preset or (_MINI if runs[0].is_world else None)
    shared = recipe_words(
        options["num_train_epochs"], options["evaluate_every"], options["evaluate_people"], options["train_options"]
    )
    recipe, axes = Recipe(preset, shared), _axes(options)
    methods = [(name, find_method(name)) for name in dict.fromkeys(options["methods"].split(","))]
    seeds = read_numbers("--seeds", options["seeds"], int)
    told = {
        "command": shlex.join(["viker", *sys.argv[1:]]), "study": options["study"], "preset": preset,
        "methods": [name for name, _ in methods], "seeds": seeds,
        "axes": {axis.option: [choice.value for choice in axis.choices] for axis in axes},
        "num_train_epochs": options["num_train_epochs"], "evaluate_every": options["evaluate_every"],
        "evaluate_people": options["evaluate_people"], "train_options": list(options["train_options"]),
    }  # fmt: skip
    return Asked(
        runs=tuple(runs), settings=tuple(expand(methods, axes, recipe.name_of(), announce)), seeds=tuple(seeds),
        recipe=recipe, top_ks=_values(axes, "top_k"), references=_values(axes, REFERENCES), told=told,
    )  # fmt: skip


def _with_study(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options with a study's axes where none were named."""
    filled = dict(options)
    if options["study"] is not None and options["run"] is not None:
        raise click.UsageError("sweep --study: expected worlds of the embedded benchmark, found --run. Leave one out.")
    if options["study"] is not None:
        study = STUDIES[options["study"]]
        named = {**study._asdict(), "methods": ",".join(study.methods)}
        filled |= {name: value for name, value in named.items() if filled[name] is None}
    filled["methods"] = filled["methods"] or "recommended"
    return filled


def _runs(options: Mapping[str, Any], preset: str | None) -> list[Run]:
    if options["run"] is None:
        return _worlds(options)
    if options["worlds"] is not None or options["dev"] is not None:
        raise click.UsageError("sweep: expected --run, or --worlds of the embedded benchmark, found both.")
    for name in ("data", "model"):
        if options[name] is None:
            raise click.UsageError(f"sweep --run: expected --{name}, found none.")
    path = Path(options["run"])
    if not path.is_dir():
        raise DataError(f"--run {path}: expected a run directory, found none. Check the name, or run `./pipeline.sh`.")
    pool = options["pool"] or _pool_of(preset, options["data"])
    return [Run(path.name, "reported", path, options["data"], options["model"], pool)]


def _worlds(options: Mapping[str, Any]) -> list[Run]:
    for name in ("data", "model", "pool"):
        if options[name] is not None:
            raise click.UsageError(f"sweep --{name}: expected it with --run alone, found none. Worlds have their own.")
    if not options["worlds"]:
        raise click.UsageError("sweep: expected --run DIR, --worlds SEEDS or --study NAME, found none of them.")
    runs = []
    named: dict[str, tuple[Role, str]] = {
        "--dev": ("development", options["dev"] or ""),
        "--worlds": ("reported", options["worlds"]),
    }
    for option, (role, text) in named.items():
        seeds = read_numbers(option, text, int) if text else []
        runs += [world(str(seed), options["runs"], role) for seed in seeds]
    names = [run.name for run in runs]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise click.UsageError(
            f"sweep: expected --worlds that nothing was chosen on, found {', '.join(repeated)} in --dev too."
        )
    return runs


def _pool_of(preset: str | None, data: str) -> str | None:
    from ..cli import read_preset

    pool = "" if preset is None else str(read_preset(preset).get("pipeline", {}).get("pool", ""))
    return pool.replace("{data}", data) or None


def _axes(options: Mapping[str, Any]) -> list[Axis]:
    named = [option_axis(axis, options[name]) for name, axis in _AXES.items() if options[name] is not None]
    if options[REFERENCES] is not None:
        named.append(references_axis(options[REFERENCES]))
    assert set(_AXES.values()) == set(OPTIONS), "every axis has an option"
    return [*named, *(setting_axis(text) for text in options["hp"])]


def _values(axes: Sequence[Axis], name: str) -> tuple[int, ...]:
    return tuple(int(choice.value) for axis in axes if axis.name == name for choice in axis.choices)
