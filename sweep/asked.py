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
from .grid import Setting, read_numbers
from .jobs import Job, Recipe, draw_of, recipe_words
from .parts import resolve_parts
from .prepare import Role, Run, Step, rows_to_make, steps, world
from .study import DIAGNOSED, STUDIES, Study

_MINI = "mini"
_LOGGED = ("--teacher", "reference", "--split", "forget")  # rows that every log of a world speaks of


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A sweep: its runs, its settings, what all jobs have in common; `told` is what the results file says of it.

    `follows` names by label the settings whose learning rate is that which another contender is chosen.
    """

    runs: tuple[Run, ...]
    settings: tuple[Setting, ...]
    follows: Mapping[str, str]
    seeds: tuple[int, ...]
    recipe: Recipe
    analyses: tuple[str, ...]
    told: Mapping[str, Any]

    def under(self, role: Role) -> list[Run]:
        """Return the runs of a role."""
        return [run for run in self.runs if run.role == role]

    @property
    def tried(self) -> list[Setting]:
        """The settings that are trained on development worlds, to be chosen from."""
        return [setting for setting in self.settings if setting.label not in self.follows]

    def jobs(self, role: Role, settings: Sequence[Setting]) -> list[Job]:
        """Return the trainings of settings in the runs of a role."""
        diagnosed = role == "reported" and DIAGNOSED in self.analyses
        recipe = self.recipe.diagnosed() if diagnosed else self.recipe
        return [
            Job(run, setting, seed, recipe) for run in self.under(role) for setting in settings for seed in self.seeds
        ]

    def steps(self, run: Run) -> list[Step]:
        """Return the commands after which a run can be trained in."""
        settings = self.settings if run.role == "reported" else self.tried
        rows = rows_to_make([record_of(setting) for setting in settings], self._values("top_k"))
        logged = [_LOGGED] if run.is_world and not any(words[: len(_LOGGED)] == _LOGGED for words in rows) else []
        draws = [draw for setting in settings if (draw := draw_of(setting)) is not None]
        return steps(run, [*logged, *rows], list(dict.fromkeys(draws)))

    def _values(self, axis: str) -> tuple[int, ...]:
        found = [setting.values[axis] for setting in self.settings if axis in setting.values]
        return tuple(dict.fromkeys(map(int, found)))


def record_of(setting: Setting) -> Method:
    """Return the record of a method under a setting: its weights and words decide which rows it reads."""
    values: Mapping[str, Any] = setting.values
    return choose_method(
        setting.method, lambda_=values.get("lambda"), retain=values.get("retain"), ascent=values.get("ascent"),
        regularizer=values.get("regularizer"), token_lambda=values.get("token_lambda", "constant"),
        teacher=values.get("teacher"),
    )  # fmt: skip


def ranked_as(setting: Setting) -> tuple[str, bool]:
    """Return whom a setting is ranked as, and whether it trains on retain data."""
    needs_retain = record_of(setting).needs_retain
    return contender_of(setting, needs_retain, find_method(setting.method).needs_retain), needs_retain


def resolve(options: Mapping[str, Any], preset: str | None, announce: Callable[[str], None]) -> Asked:
    """Return the sweep that options ask for.

    Raises:
        click.UsageError, DataError: it cannot be.
    """
    study = None if options["study"] is None else STUDIES[options["study"]]
    options = _with_study(options, study)
    runs = _runs(options, preset)
    preset = preset or (_MINI if runs[0].is_world else None)
    shared = recipe_words(
        options["num_train_epochs"], options["evaluate_every"], options["evaluate_people"], options["train_options"]
    )
    recipe = Recipe(preset, shared)
    asked_parts = resolve_parts(study, options, recipe.name_of(), announce)
    seeds = read_numbers("--seeds", options["seeds"], int)
    told = {
        "command": shlex.join(["viker", *sys.argv[1:]]), "study": options["study"], "preset": preset,
        "methods": asked_parts.methods, "seeds": seeds, "axes": asked_parts.axes,
        "parts": [part._asdict() for part in asked_parts.parts],
        "num_train_epochs": options["num_train_epochs"], "evaluate_every": options["evaluate_every"],
        "evaluate_people": options["evaluate_people"], "train_options": list(options["train_options"]),
    }  # fmt: skip
    return Asked(
        runs=tuple(runs), settings=asked_parts.settings, follows=asked_parts.follows, seeds=tuple(seeds),
        recipe=recipe, analyses=() if study is None else study.analyses, told=told,
    )  # fmt: skip


def _with_study(options: Mapping[str, Any], study: Study | None) -> dict[str, Any]:
    """Return options with a study's worlds, rates and step cap where none were named; a given run has its own."""
    filled = dict(options)
    if study is None:
        return filled
    names = () if options["run"] is not None else ("learning_rates", "num_train_epochs", "dev", "worlds")
    return filled | {name: getattr(study, name) for name in names if filled[name] is None}


def _runs(options: Mapping[str, Any], preset: str | None) -> list[Run]:
    if options["run"] is None:
        return _worlds(options, _of_preset(preset or _MINI, "base") or "tiny")
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


def _worlds(options: Mapping[str, Any], base: str) -> list[Run]:
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
        runs += [world(str(seed), options["runs"], role, base) for seed in seeds]
    names = [run.name for run in runs]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise click.UsageError(
            f"sweep: expected --worlds that nothing was chosen on, found {', '.join(repeated)} in --dev too."
        )
    return runs


def _pool_of(preset: str | None, data: str) -> str | None:
    return None if preset is None else _of_preset(preset, "pool").replace("{data}", data) or None


def _of_preset(preset: str, name: str) -> str:
    """Return what the pipeline's table of a preset says, as text; nothing where it says nothing."""
    from ..cli import read_preset

    return str(read_preset(preset).get("pipeline", {}).get(name, ""))
