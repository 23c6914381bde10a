"""What a record stands on: every file it was made from by digest, and every stage by date, version and command.

Files are named by their place in the run. Most digests are plain sha256, what `sha256sum` prints: of weights, replies
and scores, which nobody can guess, and which `viker purge` writes into its own record as they were before it. Files
that are short and name people (options, provenance, a verdict) are digested under the person's key: everything else in
them stands in the record itself, so a plain digest would let anybody try ids until one fits. Both are checked by
`viker record --check`.
"""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ...data.artefact import CHECKPOINT_CONFIG, CONFIG
from ..report.run import Run, Stage
from .keys import keyed_digest
from .measured import UNLEARNED
from .withheld import Withhold

_NAMES_PEOPLE = frozenset({CONFIG, CHECKPOINT_CONFIG, "provenance.json", "verdict.json"})
_OF_ADAPTER = ("adapter_model.safetensors", "adapter_config.json", CONFIG, "provenance.json")
_OF_EVALUATION = (CONFIG, "provenance.json", "answers.jsonl", "scores.json")
_OF_JUDGED = ("policy.json", "verdict.json", "attacks/attacks.json")
_BESIDE = ("data", "base", "vanilla", "retain-only")


def files_of(run: Run, adapter: Stage, evaluations: Mapping[str, Stage], secret: bytes) -> list[dict[str, str]]:
    """Return place and digest of every file that a record's numbers are from, in the order of their places."""
    paths = [adapter.path / name for name in _OF_ADAPTER]
    for part, stage in evaluations.items():
        paths += [stage.path / name for name in (*_OF_EVALUATION, *(_OF_JUDGED if part == UNLEARNED else ()))]
        paths += sorted(stage.path.glob("attacks/*/answers.jsonl"))
    found = (path for path in paths if path.is_file())
    return sorted((digested(path, run.path, secret) for path in found), key=lambda entry: entry["path"])


def digested(path: Path, run: Path, secret: bytes) -> dict[str, str]:
    """Return a file's place in its run and its digest: `sha256`, or `keyed` where the file names people."""
    place = path.relative_to(run).as_posix()
    if path.name in _NAMES_PEOPLE:
        return {"path": place, "keyed": keyed_digest(secret, "file", path.read_bytes())}
    with path.open("rb") as stream:
        return {"path": place, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


def stages_section(run: Run, adapter: Stage, evaluations: Mapping[str, Stage], withhold: Withhold) -> dict[str, Any]:
    """Return the stages that led to the record with dates, versions and commands, and the libraries they ran with."""
    keys = {cache["key"] for cache in adapter.caches.values()}
    rows = [stage for name, stage in run.stages.items()
            if name.startswith("precompute/") and {cache["key"] for cache in stage.caches.values()} & keys]  # fmt: skip
    beside = [run.stages[name] for name in _BESIDE if name in run.stages]
    chosen = [*beside, *rows, adapter, *evaluations.values()]
    return {
        "stages": [_stage(stage, withhold) for stage in chosen],
        "libraries": _versions(chosen),
        "caches": {name: dict(cache) for name, cache in adapter.caches.items()},
    }


def _stage(stage: Stage, withhold: Withhold) -> dict[str, Any]:
    facts = stage.describe()
    kept = {name: facts[name] for name in ("stage", "finished", "code_version", "device", "wall_seconds")}
    return {**kept, "command": withhold.command(str(facts["command"] or ""))}


def _versions(stages: Iterable[Stage]) -> dict[str, list[str]]:
    """Return every version of each library that a stage ran with."""
    found: dict[str, set[str]] = {}
    for stage in stages:
        for name, version in (stage.provenance.get("libraries") or {}).items():
            found.setdefault(name, set()).add(str(version))
    return {name: sorted(versions) for name, versions in sorted(found.items())}
