"""Read back what a sweep trained: every trajectory with its crossing, and what each run says about itself.

Records here are those of the results file: from them alone choices, tables and fronts are made, so that any of those
can be made again without the runs. A run without facts or without a retain-only model has no bar of forgetting; its
points are then compared at the last step, and whoever shows them says so.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ..data.artefact import is_complete, read_json
from ..data.example import DataError
from ..evaluate.matched import first_crossing, forgetting_threshold
from .adapters import Adapter
from .grid import Setting
from .jobs import Job
from .prepare import Role, Run

Point = dict[str, float]

HEADLINE = "retain_heldout_fact"  # what methods are ranked by, and people compared by

_DIGITS = 4  # of what is stored, but for what a point is judged by: finer than the tolerance of its judgment
_JUDGED_BY, _JUDGED_DIGITS = "forget_fact", 10
_STAGES = ("base", "vanilla", "retain-only")


@dataclass(frozen=True, kw_only=True, slots=True)
class SweptRun:
    """A run: the bar of forgetting (None: nothing to make it from), and the models that stand beside every method."""

    name: str
    role: Role
    path: str
    threshold: float | None
    reason: str | None
    models: Mapping[str, Mapping[str, float]]
    key_word_auroc: float | None
    wall_seconds: Mapping[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """A trajectory: a setting under a seed in a run; `contender` is whom it is ranked as.

    `people` holds of its crossing the fact recall of every person of a split, in an order that is the same for all
    trajectories of a run; none where they were not measured by person.
    """

    run: str
    role: Role
    contender: str
    needs_retain: bool
    method: str
    values: Mapping[str, float | str]
    label: str
    seed: int
    adapter: str
    wall_seconds: float
    points: tuple[Point, ...]
    crossing: Point | None
    people: Mapping[str, Sequence[float]] = field(default_factory=dict)

    @property
    def last(self) -> Point:
        """Where it ended."""
        return self.points[-1]


def read_trained(job: Job, adapter: Adapter, contender: str, needs_retain: bool, threshold: float | None) -> Trained:
    """Return what a complete adapter says.

    Raises:
        DataError: its trajectory is not there, or is no trajectory.
    """
    path = adapter.path / "trajectory.jsonl"
    points = read_points(path)
    crossing = None if threshold is None else first_crossing(points, threshold)
    return Trained(
        run=job.run.name, role=job.run.role, contender=contender, needs_retain=needs_retain, method=job.setting.method,
        values=job.setting.values, label=job.setting.label, seed=job.seed, adapter=adapter.path.name,
        wall_seconds=float(read_json(adapter.path / "provenance.json")["wall_seconds"]), points=points,
        crossing=crossing, people={} if crossing is None else read_people(path, int(crossing["step"])),
    )  # fmt: skip


def read_points(path: Path) -> tuple[Point, ...]:
    """Return the measured points of a trajectory, by step, numbers alone.

    Raises:
        DataError: there is none, or it is not one.
    """
    with _complained_of(path):
        points = [
            {name: _stored(name, value) for name, value in line.items() if _is_number(value)}
            for line in _lines_of(path)
        ]
        return tuple(sorted(points, key=lambda point: point["step"]))


def read_people(path: Path, step: int) -> dict[str, list[float]]:
    """Return the fact recall of every person of a split at a step of a trajectory, by the name of the split's value.

    Raises:
        DataError: the file holds something else.
    """
    with _complained_of(path):
        (line,) = [line for line in _lines_of(path) if line["step"] == step]
        found = {name.removesuffix("_people"): people for name, people in line.items() if name.endswith("_people")}
        return {name: [round(hits / facts, _DIGITS) for hits, facts in people] for name, people in found.items()}


def _lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


@contextlib.contextmanager
def _complained_of(path: Path) -> Iterator[None]:
    """Turn what a file that is no trajectory does into one error."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise DataError(
            f"{path}: expected points with a step, found something else ({error!r}). Train again."
        ) from error


def _stored(name: str, value: float) -> float:
    return round(value, _JUDGED_DIGITS if name == _JUDGED_BY else _DIGITS)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class Bar(NamedTuple):
    """The forget fact recall at or below which a run's people count as forgotten, or why there is none."""

    threshold: float | None
    reason: str | None


def read_run(run: Run) -> SweptRun:
    """Return what a run says about itself: its bar, its models, its seconds."""
    from ..evaluate.world import key_word_auroc_of_run, numbers_of_evaluation

    bar = read_bar(run)
    evaluated = [name for name in ("vanilla", "retain-only") if is_complete(run.path / "evaluations" / name)]
    stages = [stage for stage in _STAGES if is_complete(run.path / stage)]
    return SweptRun(
        name=run.name, role=run.role, path=str(run.path), threshold=bar.threshold, reason=bar.reason,
        models={} if bar.reason else {name: numbers_of_evaluation(run.path, name) for name in evaluated},
        key_word_auroc=round(key_word_auroc_of_run(run.path), 5) if run.is_world else None,
        wall_seconds={stage: read_json(run.path / stage / "provenance.json")["wall_seconds"] for stage in stages},
    )  # fmt: skip


def read_bar(run: Run) -> Bar:
    """Return the bar of a run, made from its retain-only model's answers."""
    from ..data.sources import open_source

    if not is_complete(run.path / "evaluations" / "retain-only"):
        return Bar(None, f"{run.path} holds no evaluation of a retain-only model")
    data = run.path / "data"
    if not is_complete(data) or not (open_source(str(data)).location / "sidecar.json").is_file():
        return Bar(None, f"the data of {run.path} marks no facts")
    from ..evaluate.world import recall_of_evaluation

    return Bar(forgetting_threshold(recall_of_evaluation(run.path, "retain-only")["forget"]), None)


def contender_of(setting: Setting, needs_retain: bool, by_default: bool) -> str:
    """Return whom a setting is ranked as: its variant, told apart where retain data comes in or goes by a weight."""
    if needs_retain == by_default:
        return setting.variant
    return f"{setting.variant} {'with' if needs_retain else 'without'} retain"
