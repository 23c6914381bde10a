"""One training of a sweep: its command line, for a process here or as one line for a cluster."""

import os
import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import click

from .adapters import NOWHERE, Adapter, adapter_of
from .grid import POOL, REFERENCES, NameOf, Setting
from .prepare import Draw, Run, cache_key

# What the sweep says itself, of all that `viker train` can be told.
_OWN = (
    "--run", "--output", "--data", "--model", "--method", "--lambda", "--retain", "--learning-rate", "--top-k",
    "--cache", "--num-train-epochs", "--seed", "--hp", "--stop", "--no-stop", "--evaluate-every", "--evaluate-people",
    "--regularizer", "--ascent", "--teacher", "--token-lambda", "--overwrite", "--dry-run", "--list-methods",
)  # fmt: skip


class Recipe(NamedTuple):
    """What all jobs of a sweep have in common: the preset, and words of `viker train`."""

    preset: str | None
    words: tuple[str, ...]

    @property
    def opening(self) -> list[str]:
        """The words before the name of a stage."""
        return [] if self.preset is None else ["--preset", self.preset]

    def diagnosed(self) -> "Recipe":
        """Return it with the diagnostics of the theory, which touch nothing of a training."""
        return self._replace(words=(*self.words, "--diagnose"))

    def name_of(self) -> NameOf:
        """Return what names an adapter by the options of its training alone."""
        return lambda words: adapter_of([*self.opening, "train", *NOWHERE, *self.words, *words]).path.name


class Job(NamedTuple):
    """A setting to be trained in a run under a seed."""

    run: Run
    setting: Setting
    seed: int
    recipe: Recipe

    @property
    def name(self) -> str:
        """What it is called where it fails."""
        return f"{self.setting.label} seed={self.seed} in {self.run.path}"

    @property
    def words(self) -> list[str]:
        """The words behind `viker`.

        Raises:
            DataError: the cache of its references was not made yet.
        """
        draw = draw_of(self.setting)
        cache = [] if draw is None else ["--cache", cache_key(self.run, draw)]
        return [
            *self.recipe.opening, "train", "--run", str(self.run.path), *self.run.named, *self.setting.words, *cache,
            "--seed", str(self.seed), *self.recipe.words,
        ]  # fmt: skip

    @property
    def log(self) -> Path:
        """Where its output goes."""
        name = re.sub(r"[^\w.=-]+", "_", f"{self.setting.label} seed={self.seed}")
        return self.run.path / "logs" / f"{name}.log"

    def adapter(self) -> Adapter:
        """Return what it writes, and whether it has."""
        return adapter_of(self.words)


def draw_of(setting: Setting) -> Draw | None:
    """Return the draw of references that a setting names, if it is another than its run's."""
    pool, count = setting.values.get(POOL), setting.values.get(REFERENCES)
    if pool is None and count is None:
        return None
    return Draw(None if pool is None else str(pool), None if count is None else int(count))


def recipe_words(
    num_train_epochs: float | None, evaluate_every: int, evaluate_people: int, more: Sequence[str]
) -> tuple[str, ...]:
    """Return the words that give every job one step cap and a trajectory up to it, and the user's own.

    Raises:
        click.UsageError: the user's own are the sweep's to say.
    """
    clashing = [word for word in more if word.partition("=")[0] in _OWN]
    if clashing:
        raise click.UsageError(
            f"sweep -- {clashing[0]}: expected options that no axis and no option of the sweep has, found one. "
            "See `viker sweep --help`."
        )
    epochs = [] if num_train_epochs is None else ["--num-train-epochs", repr(num_train_epochs)]
    measured = ["--evaluate-every", str(evaluate_every), "--evaluate-people", str(evaluate_people)]
    return (*epochs, "--no-stop", *measured, *more)


def as_line(commands: Iterable[Sequence[str]]) -> str:
    """Return commands of `viker`, one after the other, as a line for a shell anywhere this directory is."""
    home = os.environ.get("VIKER_CACHE_DIR")
    opening = [["cd", str(Path.cwd())], *([["export", f"VIKER_CACHE_DIR={Path(home).resolve()}"]] if home else [])]
    return " && ".join(shlex.join(words) for words in [*opening, *map(as_process, commands)])


def as_process(words: Sequence[str]) -> list[str]:
    """Return the arguments of a process that runs `viker WORDS` by this very Python."""
    return [sys.executable, "-m", "viker", *words]
