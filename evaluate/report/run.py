"""Read a run directory: which stages are complete, which are not, and everything they wrote about themselves.

Only JSON is read, so that deciding whether a report is still true costs milliseconds. A stage that was interrupted is
listed, never left out in silence; an evaluation is stale where a model or data folder was made again after it.
What the numbers mean is `content.py`'s work, how they look `page.py`'s.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...data.artefact import is_complete, read_config, read_json
from ...data.example import DataError, canonical_json

CONFIG_SCHEMA = "viker/report-config/1"
_SINGLE = ("data", "base", "vanilla", "retain-only")
_FOLDERS = ("precompute", "adapters", "evaluations")


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One complete artefact of a run: its name is its path inside the run."""

    name: str
    path: Path
    config: Mapping[str, Any]
    provenance: Mapping[str, Any]

    @property
    def options(self) -> Mapping[str, Any]:
        """The options it was made with, by name."""
        options: Mapping[str, Any] = self.config.get("options", self.config)
        return options

    @property
    def config_digest(self) -> str:
        """Digest of everything it was made with."""
        return hashlib.sha256(canonical_json(self.config)).hexdigest()

    @property
    def caches(self) -> dict[str, dict[str, str]]:
        """Key and root digest of each teacher cache it made or read, by kind of rows."""
        found: dict[str, dict[str, str]] = dict(self.provenance.get("caches", {}))
        if "cache" in self.provenance:
            found[self.path.name] = self.provenance["cache"]
        return found

    def describe(self) -> dict[str, Any]:
        """Return what identifies this stage and what it cost, as plain values."""
        names = ("finished", "code_version", "command", "libraries", "device", "wall_seconds", "peak_resident_bytes")
        facts = {name: self.provenance.get(name) for name in names}
        return {
            "stage": self.name, "config_digest": self.config_digest, "caches": self.caches, **facts,
            "inputs": dict(self.config.get("inputs", {})), "options": dict(self.options),
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A run directory: its complete stages by name, and the names of those that were interrupted."""

    path: Path
    stages: Mapping[str, Stage]
    unfinished: tuple[str, ...]

    def under(self, folder: str) -> dict[str, Stage]:
        """Return the complete stages of a folder (`adapters`, `evaluations`, ...) by their directory's name."""
        return {stage.path.name: stage for name, stage in self.stages.items() if name.startswith(f"{folder}/")}

    @property
    def source(self) -> str | None:
        """What the run's data was made from: `mini`, a directory or a hub id."""
        stage = self.stages.get("data")
        return None if stage is None else stage.config.get("source")


def read_run(path: Path) -> Run:
    """Read every stage of a run.

    Raises:
        DataError: there is no such run, or it holds no evaluation.
    """
    if not path.is_dir():
        raise DataError(f"--run {path}: expected a run directory, found none. Check the name, or run `./pipeline.sh`.")
    places = _places(path)
    complete = {name: place for name, place in places.items() if is_complete(place)}
    if not any(name.startswith("evaluations/") for name in complete):
        raise DataError(
            f"{path}: expected at least one complete evaluation, found none. Run `viker evaluate --run {path}`."
        )
    stages = {
        name: Stage(name=name, path=place, config=read_config(place), provenance=read_json(place / "provenance.json"))
        for name, place in complete.items()
    }
    return Run(path=path, stages=stages, unfinished=tuple(sorted(set(places) - set(complete))))


def report_config(run: Run, published: Sequence[Mapping[str, Any]], ours: Sequence[str]) -> dict[str, Any]:
    """Return what a report depends on: it is made again exactly when this changes."""
    stamps = {name: _stamp(stage) for name, stage in run.stages.items()}
    inputs = {**stamps, **dict.fromkeys(run.unfinished, "unfinished")}
    config = {
        "schema": CONFIG_SCHEMA, "inputs": inputs,
        "options": {"published": [dict(item) for item in published], "ours": list(ours)},
    }  # fmt: skip
    plain: dict[str, Any] = json.loads(json.dumps(config))
    return plain


def read_scores(stage: Stage) -> list[dict[str, Any]]:
    """Return the long-form records of an evaluation, under the evaluation's own name."""
    records = read_json(stage.path / "scores.json").get("scores")
    if not isinstance(records, list):
        raise DataError(
            f"{stage.path / 'scores.json'}: expected a list `scores`, found none. Run `viker evaluate --rescore`."
        )
    return [{**record, "model": stage.path.name} for record in records]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the records of a JSON-lines file."""
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    except ValueError as error:
        raise DataError(
            f"{path}: expected a JSON object a line, found something else ({error}). Train again."
        ) from error


def sidecar_file(run: Run) -> Path | None:
    """Return the file that marks the private words of the run's data, if it has one."""
    folders = [run.path / "data", *([Path(run.source)] if run.source else [])]
    return next((folder / "sidecar.json" for folder in folders if (folder / "sidecar.json").is_file()), None)


def stale_inputs(stage: Stage) -> list[str]:
    """Return the inputs of a stage that were made again after it."""
    return [
        name
        for name, stamp in stage.config.get("inputs", {}).items()
        if is_complete(Path(name)) and read_json(Path(name) / "provenance.json").get("finished") != stamp
    ]


def _places(path: Path) -> dict[str, Path]:
    """Return every directory of the run that a stage writes, complete or begun."""
    places = {name: path / name for name in _SINGLE if (path / name).is_dir()}
    for folder in _FOLDERS:
        if (path / folder).is_dir():
            places |= {f"{folder}/{place.name}": place for place in sorted((path / folder).iterdir()) if place.is_dir()}
    return places


def _stamp(stage: Stage) -> str:
    """Return when and with what a stage was finished; of an evaluation also what was made of it since.

    It can be scored again, attacked and judged.
    """
    stamp = f"{stage.provenance.get('finished')} config {stage.config_digest[:16]}"
    for name in ("scores.json", "attacks/attacks.json", "verdict.json"):
        if (stage.path / name).is_file():
            digest = hashlib.sha256((stage.path / name).read_bytes()).hexdigest()[:16]
            stamp += f" {name.partition('.')[0].rpartition('/')[2]} {digest}"
    return stamp
