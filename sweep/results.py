"""The results file: everything a sweep found, in one JSON file from which its page can be made again.

Schema `viker/sweep/2`. Trajectories are kept whole, a line each and by column, so that the file stays small and
another rule of choosing can be tried on it.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..data.artefact import read_json
from ..data.example import DataError
from .choose import RULE, Choice, Row, choose, grouped, summarize, summarize_ends
from .collect import Point, SweptRun, Trained
from .pareto import Place, axes_of, front, places
from .people import Difference, differences

SCHEMA = "viker/sweep/2"


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """What a sweep was asked, what it trained, and what was found without training; the rest follows."""

    asked: Mapping[str, Any]
    runs: tuple[SweptRun, ...]
    trained: tuple[Trained, ...]
    failed: tuple[str, ...]
    analyses: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def parts(self) -> list[Mapping[str, Any]]:
        """The tables: title, question, labels of settings, names of contenders; one of everything without parts."""
        everything = {"title": "", "question": "", "labels": [one.label for one in self.trained], "names": {}}
        return list(self.asked.get("parts") or [everything])

    def part(self, labels: Sequence[str]) -> "Result":
        """Return what it is with some settings alone."""
        return replace(self, trained=tuple(one for one in self.trained if one.label in set(labels)))

    @property
    def differences(self) -> list[Difference]:
        """How the rows differ from the first contender of the table, at matched forgetting."""
        reported = self.under("reported")
        if self.no_bar or not reported:
            return []
        return differences(grouped(reported, lambda one: one.label), reported[0].label)

    def under(self, role: str) -> list[Trained]:
        """Return what was trained in the runs of a role."""
        return [one for one in self.trained if one.role == role]

    def replicates(self, role: str) -> int:
        """Return how many runs and seeds a setting is trained under."""
        return len(self.names(role)) * len(self.asked["seeds"])

    def names(self, role: str) -> list[str]:
        """Return the names of the runs of a role."""
        return [run.name for run in self.runs if run.role == role]

    @property
    def no_bar(self) -> str | None:
        """Why there is no comparison at matched forgetting, None where there is one."""
        return next((run.reason for run in self.runs if run.reason), None)

    @property
    def chosen(self) -> dict[str, Choice]:
        """The choices made on development worlds, by contender."""
        return choose(self.under("development"), self.replicates("development"))

    @property
    def never_crossing(self) -> dict[str, bool]:
        """Contenders that crossed under no setting on development worlds, and whether they need retain data."""
        needs = {one.contender: one.needs_retain for one in self.trained}
        return {name: needs[name] for name, choice in self.chosen.items() if choice.label is None}

    @property
    def rows(self) -> list[Row]:
        """The rows of the table."""
        summarized = summarize_ends if self.no_bar else summarize
        return summarized(self.under("reported"), self.replicates("reported"))

    def fronts(self) -> dict[str, list[Place]]:
        """Return by role the points that no other point beats."""
        return {role: front(self.places(role)) for role in ("reported", "development") if self.under(role)}

    def places(self, role: str) -> list[Place]:
        """Return the points of a role."""
        trained = self.under(role)
        return places(trained, self.axes, self.replicates(role))

    @property
    def axes(self) -> tuple[str, str]:
        """The two values that points are compared by."""
        return axes_of(self.trained)


def write_result(path: Path, result: Result) -> None:
    """Write a results file durably, one trajectory a line."""
    known = {
        "schema": SCHEMA, **result.asked, "rule": RULE, "failed": list(result.failed),
        "runs": [asdict(run) for run in result.runs],
        "chosen": {name: asdict(choice) for name, choice in result.chosen.items()},
        "summary": [asdict(row) for row in result.rows],
        "differences": {
            part["title"]: [asdict(one) for one in result.part(part["labels"]).differences] for part in result.parts
        },
        "analyses": dict(result.analyses),
        "pareto": {
            "axes": list(result.axes),
            **{role: [asdict(place) for place in found] for role, found in result.fronts().items()},
        },
    }  # fmt: skip
    text = json.dumps(known, indent=1, ensure_ascii=False)  # in order: that of the grid, and of ranks
    lines = ",\n".join(json.dumps(_as_record(one)) for one in result.trained)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as stream:
        stream.write(f'{text[:-2]},\n "trained": [\n{lines}\n ]\n}}\n')
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)


def read_result(path: Path) -> Result:
    """Return what a results file holds.

    Raises:
        DataError: it is of another schema, or damaged.
    """
    known = read_json(path)
    if known.get("schema") != SCHEMA:
        raise DataError(f"{path}: expected {SCHEMA}, found {known.get('schema')}. Run the sweep again.")
    derived = (
        "schema", "rule", "runs", "trained", "failed", "chosen", "summary", "differences", "analyses", "pareto"
    )  # fmt: skip
    try:
        return Result(
            asked={name: value for name, value in known.items() if name not in derived},
            runs=tuple(SweptRun(**run) for run in known["runs"]),
            trained=tuple(_from_record(record) for record in known["trained"]), failed=tuple(known["failed"]),
            analyses=known.get("analyses", {}),
        )  # fmt: skip
    except (KeyError, TypeError) as error:
        raise DataError(f"{path}: expected a results file, found another structure ({error!r}).") from error


def _as_record(one: Trained) -> dict[str, Any]:
    names = dict.fromkeys(name for point in one.points for name in point)
    columns = {name: [point.get(name) for point in one.points] for name in names}
    crossing = None if one.crossing is None else one.crossing["step"]
    return {**asdict(one), "points": columns, "crossing": crossing}


def _from_record(record: dict[str, Any]) -> Trained:
    columns = record["points"]
    points: list[Point] = [
        {name: column[place] for name, column in columns.items() if column[place] is not None}
        for place in range(len(columns["step"]))
    ]
    crossing = next((point for point in points if point["step"] == record["crossing"]), None)
    return Trained(**{**record, "points": tuple(points), "crossing": crossing})
