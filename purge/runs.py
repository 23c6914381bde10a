"""What the artefacts of runs hold of a person: replies, reports, the keys of caches, models that were trained on them.

Replies, diagnoses and reports are data about a person. A model is derived from such data: one that unlearned somebody
must not be thrown away lightly, for without it the model below knows them again. Both are found here and told apart;
which of them is removed is decided in `purge/commands.py`, how in `purge/act.py`.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data.artefact import CHECKPOINT_CONFIG, CONFIG, read_json
from ..data.example import DataError
from ..data.source import Source
from .find import DATA_SCHEMA, DIAGNOSIS, TOKENS, Artefact, Finding, Kind, file_digest, is_about, tree_digest
from .trained import KnownCaches, Told, Trained, locate, open_recorded

_WEIGHTS = "adapter_model.safetensors"
_EVALUATIONS = frozenset({"viker/evaluation/1", "viker/evaluation/2"})
_ASKED = _EVALUATIONS | {"viker/attack/1"}  # whatever keeps replies in answers.jsonl
_WORK = "work"  # of an interrupted evaluation: results of finished batches, which do not say whom they are about
_TOLD = {
    "forget": "was trained to forget them: without it the model knows them again",
    "retain": "was trained to remember them (the retain term)",
    "all": "was taught about them",
}


def find_in_artefacts(artefacts: Sequence[Artefact], person: str, caches: KnownCaches) -> list[Finding]:
    """Return what replies, reports, stored keys and models hold of a person."""
    trained = Trained(person, caches)
    findings = [found for artefact in artefacts for found in (*in_answers(artefact, person), *_in_work(artefact))]
    asked = {Path(found.place) for found in findings if found.problem is None}
    findings += [found for artefact in artefacts for found in _in_diagnosis(artefact, person)]
    for artefact in artefacts:
        match artefact.schema:
            case "viker/report-config/1":
                findings += _in_report(artefact, person, asked)
            case "viker/precompute/1":
                findings += _in_stored_key(artefact, caches)
            case "viker/adapter/1" | "viker/adapter/2":
                findings += _in_model(artefact, artefact.config, artefact.provenance, trained)
            case "viker/export/1":
                known = artefact.provenance.get("adapter", {})
                findings += _in_model(artefact, known.get("config", {}), known.get("provenance", {}), trained)
            case "viker/finetune/1":
                findings += _in_model(artefact, artefact.config, artefact.provenance, trained)
    return findings


def in_answers(artefact: Artefact, person: str) -> list[Finding]:
    """Return the finding for an evaluation or an attack whose replies are about a person, or do not parse."""
    if artefact.schema not in _ASKED:
        return []
    told = []
    for name, what in (("answers.jsonl", "replies"), (TOKENS, "answers token by token")):
        path = artefact.path / name
        try:
            lines = read_lines(path) if path.is_symlink() or path.is_file() else []
        except DataError as error:
            return [Finding(kind="answers", place=artefact.path, told=what, problem=str(error))]
        if held := sum(is_about(record, person) for _, record in lines):
            told.append(f"{held} of {len(lines)} {what}")
    if not told:
        return []
    told_of_both = f"{' and '.join(told)} are about them"
    return [Finding(kind="answers", place=artefact.path, told=told_of_both, before=_digests(artefact.path))]


def _in_work(artefact: Artefact) -> list[Finding]:
    """Return the finding for what an interrupted evaluation was told so far: it may be about anybody."""
    path = artefact.path / _WORK
    if artefact.schema not in _ASKED or not path.is_dir():
        return []
    return [Finding(kind="remnant", place=path, told="replies of an interrupted evaluation, which may be about them")]


def _in_diagnosis(artefact: Artefact, person: str) -> list[Finding]:
    """Return the finding for an adapter's diagnosis that shows answers about a person, or does not parse."""
    path = artefact.path / DIAGNOSIS
    if not (path.is_symlink() or path.is_file()):
        return []
    try:
        held = sum(is_about(record, person) for _, record in read_lines(path))
    except DataError as error:
        return [Finding(kind="diagnosis", place=path, told="a diagnosis", problem=str(error))]
    told = f"shows {held} times the words of an answer about them"
    return [Finding(kind="diagnosis", place=path, told=told, before={"diagnosis": file_digest(path)})] if held else []


def read_lines(path: Path) -> list[tuple[bytes, Any]]:
    """Return the lines of a JSON-lines file, as bytes without the line's end and parsed.

    Raises:
        DataError: it is a link, or a line is not JSON.
    """
    if path.is_symlink():
        raise DataError(f"{path}: expected a plain file, found a link, which is not followed. Purge where it points.")
    lines = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        try:
            lines += [(line, json.loads(line))] if line.strip() else []
        except ValueError as error:
            raise DataError(
                f"{path}:{number}: expected a JSON object, found something else ({error}). It may be about anybody: "
                "correct or remove the line."
            ) from error
    return lines


def find_sources(artefacts: Sequence[Artefact], person: str) -> list[Finding]:
    """Return the sources that artefacts were made from and that hold a person; one that is gone is no finding."""
    findings: dict[Path, Finding] = {}
    for artefact in artefacts:
        spec, options = str(artefact.path), dict[str, Any]()
        if artefact.schema != DATA_SCHEMA:
            spec, options = locate(str(artefact.options.get("data") or ""), artefact.path), dict(artefact.options)
        try:
            source = open_recorded(options, spec) if spec else None
        except (DataError, OSError):  # gone, or not what it was: nothing here is to be removed
            continue
        if source is not None and source.location not in findings:
            findings |= _in_source(source, person)
    return list(findings.values())


def _in_source(source: Source, person: str) -> dict[Path, Finding]:
    held = {person in about for split in ("train", *source.splits()) for about in _people_of(source, split)}
    told = "the source itself: yours to delete; from it every stage can make its rows, replies and reports again"
    return {source.location: Finding(kind="source", place=source.location, told=told)} if True in held else {}


def _people_of(source: Source, split: str) -> Collection[tuple[str, ...]]:
    try:
        examples = source.training("all") if split == "train" else source.read(split)
        return {example.people for example in examples}
    except DataError:  # a source may come without a split, or with a broken one
        return ()


def _in_report(artefact: Artefact, person: str, asked: Collection[Path]) -> list[Finding]:
    """Return the finding for a report that quotes replies about a person, or counts them."""
    path = artefact.path / "report.json"
    try:
        quoted = [is_about(answer, person) for answer in read_json(path).get("answers", [])] if path.is_file() else []
    except DataError as error:
        return [Finding(kind="report", place=artefact.path, told="a report", problem=str(error))]
    run = artefact.path.parent
    counted = [name for name in artefact.config.get("inputs", {}) if run / name in asked]
    if not any(quoted) and not counted:
        return []
    told = f"quotes {sum(quoted)} questions about them, and counts their replies"
    return [Finding(kind="report", place=artefact.path, told=told, before={"tree": tree_digest(artefact.path)})]


def _in_stored_key(artefact: Artefact, caches: KnownCaches) -> list[Finding]:
    stored = artefact.provenance.get("cache", {})
    if stored.get("key") not in caches.holding:
        return []
    told = f"names the cache {stored['key'][:16]}, which holds them"
    return [Finding(kind="stored key", place=artefact.path, told=told, before=dict(stored))]


def _in_model(
    artefact: Artefact, config: Mapping[str, Any], provenance: Mapping[str, Any], trained: Trained
) -> list[Finding]:
    """Return the finding for a model that was trained on a person, or of which nobody knows."""
    roles = trained.roles(config, provenance, artefact.path)
    kind: Kind = "adapter" if (artefact.path / _WEIGHTS).is_file() else "model"
    learned = [name for name, told in roles.items() if told]
    if learned:
        told = "; ".join(
            _TOLD["retain" if name == "retain" and "role" not in config else _of(name)] for name in learned
        )
        return [Finding(kind=kind, place=artefact.path, told=told, before=_model_digests(artefact))]
    if None in roles.values():
        return [Finding(kind=kind, place=artefact.path, told=f"a trained {kind}", problem=_unknown(artefact, roles))]
    return []


def _of(name: str) -> str:
    return "forget" if name == "forget" else "all"


def _unknown(artefact: Artefact, roles: Mapping[str, Told]) -> str:
    parts = " or ".join(name for name, told in roles.items() if told is None)
    return (
        f"{artefact.path}: expected its source as it was, or the caches it read, to tell whether its {parts} people "
        "include this one; found neither. Remove it by hand if it may."
    )


def _model_digests(artefact: Artefact) -> dict[str, str]:
    """Return digests that name a model; those of a whole checkpoint are taken from its provenance, not computed."""
    config = next(artefact.path / name for name in (CHECKPOINT_CONFIG, CONFIG) if (artefact.path / name).is_file())
    weights = artefact.path / _WEIGHTS
    recorded = artefact.provenance.get("weights")
    digests = {"config": file_digest(config)} | ({"weights": str(recorded)} if recorded else {})
    return digests | ({"weights": file_digest(weights)} if weights.is_file() else {})


def _digests(evaluation: Path) -> dict[str, str]:
    paths = {
        "answers": evaluation / "answers.jsonl",
        "scores": evaluation / "scores.json",
        "tokens": evaluation / TOKENS,
    }
    return {name: file_digest(path) for name, path in paths.items() if path.is_file()}
