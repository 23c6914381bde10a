"""What has to exist before a job can run, as ordinary commands: worlds of the embedded benchmark, and teacher rows.

A world is one run directory. Its commands decide for themselves that a stage is complete, or that a complete one was
made with other options, so they are given again and again; the rows of a run that somebody else made are taken as they
are, whatever their options. One number of references more, or one pool more, is one cache more: its key is stored in a
folder of its own inside the run, because a run stores one key a kind, and what a folder stores is safe from `viker
cache gc`. A world's pools are the folders that come with it, and by name its own people (`forget`, `retain`), for
ablations.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import click

from ..data.artefact import is_complete, read_json
from ..data.kinds import rows_name
from ..data.portraits import POOLS
from ..train.method import Method
from .grid import teacher_of

Role = Literal["development", "reported"]
KEPT = 64  # tokens a row keeps if nobody says otherwise


class Run(NamedTuple):
    """A run directory that jobs train in; `name` is the seed of a world, or the directory's name.

    `base` is what a world's first model is built as.
    """

    name: str
    role: Role
    path: Path
    data: str
    model: str
    pool: str | None = None
    is_world: bool = False
    base: str = "tiny"

    @property
    def named(self) -> list[str]:
        """The words that name its data and model."""
        return ["--data", self.data, "--model", self.model]


class Draw(NamedTuple):
    """Another draw of references than the run's own: another pool, another number of images, or both."""

    pool: str | None
    num_references: int | None

    @property
    def folder(self) -> str:
        """The folder inside a run that stores the key of its rows."""
        pool = [] if self.pool is None else ["pool", Path(self.pool).name]
        count = [] if self.num_references is None else ["references", str(self.num_references)]
        return "-".join([*pool, *count])

    def images_of(self, run: Run) -> str | None:
        """Return what `viker precompute --pool` is told."""
        if self.pool is None:
            return run.pool
        inside = Path(run.data) / "pools" / self.pool
        return str(inside) if run.is_world and self.pool in POOLS else self.pool


class Step(NamedTuple):
    """One command, as words behind `viker --preset NAME`, and the artefacts it completes."""

    words: tuple[str, ...]
    makes: tuple[Path, ...]

    @property
    def is_done(self) -> bool:
        """Whether everything it makes is complete."""
        return all(map(is_complete, self.makes))


def world(seed: str, runs: Path, role: Role, base: str = "tiny") -> Run:
    """Return the run directory of a world."""
    path = runs / f"world-{seed}"
    data = path / "data"
    pool = str(data / "pools" / "people")
    return Run(seed, role, path, str(data), str(path / "vanilla"), pool, is_world=True, base=base)


def rows_to_make(methods: Iterable[Method], top_ks: Sequence[int] = ()) -> list[tuple[str, ...]]:
    """Return the options of `viker precompute` for every cache that methods read, each once.

    Rows that keep tokens keep as many as the largest K asked for.
    """
    asked = dict.fromkeys(words for method in methods for words in method.precomputes)
    most = max(top_ks, default=0)
    return [_with_top_k(words, most) if most > KEPT and _top_k(words) else words for words in asked]


def steps(run: Run, rows: Sequence[tuple[str, ...]], draws: Sequence[Draw] = ()) -> list[Step]:
    """Return the commands after which a run can be trained in, in order; a run that was given keeps what it has."""
    made = [_rows_step(run, words, _OWN) for words in rows]
    made += [_rows_step(run, _REFERENCES, draw) for draw in draws]
    if run.is_world:
        return [*_world_steps(run), *made]
    return [step for step in [*_evaluation(run), *made] if not step.is_done]


def cache_key(run: Run, draw: Draw) -> str:
    """Return the beginning of the key of a run's cache of another draw of references.

    Raises:
        DataError: it was not made yet.
    """
    stored = read_json(run.path / draw.folder / "precompute" / "reference-forget" / "provenance.json")
    return str(stored["cache"]["key"])[:16]


_REFERENCES = ("--teacher", "reference", "--split", "forget")
_OWN = Draw(None, None)


def _world_steps(run: Run) -> list[Step]:
    path, data, seed = run.path, Path(run.data), ("--seed", run.name)
    base = ("--data", str(data / "base"), "--looks", str(data / "looks"), "--model", run.base)
    made = [
        Step(("data", "make", "mini", str(data), *seed), (data,)),
        Step(("finetune", "base", *base, "--output", str(path / "base"), *seed), (path / "base",)),
    ]
    for role in ("vanilla", "retain-only"):
        words = ("--data", str(data), "--model", str(path / "base"), "--output", str(path / role), *seed)
        made.append(Step(("finetune", role, *words), (path / role,)))
    return [*made, _evaluation_step(run)]


def _evaluation(run: Run) -> list[Step]:
    """Return the step that evaluates a given run's retain-only model, where there is one."""
    return [_evaluation_step(run)] if is_complete(run.path / "retain-only") else []


def _evaluation_step(run: Run) -> Step:
    targets = ("vanilla", "retain-only")
    model = () if run.is_world else ("--model", run.model)
    words = ("evaluate", "--run", str(run.path), "--data", run.data, *model)
    asked = (word for target in targets for word in ("--target", target))
    return Step((*words, *asked), tuple(run.path / "evaluations" / target for target in targets))


def _rows_step(run: Run, words: tuple[str, ...], draw: Draw) -> Step:
    place = run.path / draw.folder
    made = place / "precompute" / _artefact(words)
    if draw.num_references is not None:
        words = (*words, "--num-references", str(draw.num_references))
    if teacher_of(words) == "reference":
        pool = draw.images_of(run)
        if pool is None and not is_complete(made):
            raise click.UsageError(
                f"sweep: expected --pool, a folder of irrelevant images, patterns or noise, for {made}, found none."
            )
        words = (*words, "--pool", str(pool))
    return Step(("precompute", "--run", str(place), *run.named, *words), (made,))


def _artefact(words: Sequence[str]) -> str:
    """Return the name under which a run stores the key of rows."""
    said = _as_options(words)
    return rows_name(teacher_of(words), said.get("--split", "forget"), said.get("--answers", "own"), _top_k(words))


def _top_k(words: Sequence[str]) -> int:
    """Return how many tokens a row keeps; methods say so of rows of which nothing is kept by default."""
    return int(_as_options(words).get("--top-k", KEPT))


def _with_top_k(words: Sequence[str], top_k: int) -> tuple[str, ...]:
    said = {**_as_options(words), "--top-k": str(top_k)}
    return tuple(word for option in said.items() for word in option)


def _as_options(words: Sequence[str]) -> dict[str, str]:
    return dict(zip(words[::2], words[1::2], strict=True))
