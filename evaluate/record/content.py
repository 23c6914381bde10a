"""From a run to one deletion record: whom, which examples, which weights, what was measured, tried and decided.

A record is evidence for years, read by people who have neither the data nor the run. So it holds pseudonyms alone, says
in words what it does not show, and carries its own digest. `record_sha256` finds a change by anybody who does not make
it again; `seal` is a digest under the person's key, which nobody without the key can make. Everything is derived
from what the run keeps: nothing is measured here, and no torch is needed. The person's key is `keys.py`'s, what may be
copied `withheld.py`'s, the page `page.py`'s, comparing a record with a run later `check.py`'s.
"""

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ...data.example import DataError, canonical_json
from ..answers import read_answers
from ..report.run import Run, Stage
from .concerned import Concerned, examples_section, find_concerned
from .judged import policy_section
from .keys import PersonKey
from .limits import limits_section
from .made_of import files_of, stages_section
from .measured import FORGET, RETAIN_ONLY, UNLEARNED, VANILLA, attacks_section, evaluations_beside, numbers_section
from .weights import MERGED, REVERSIBLE, combined_digest, describe_merged, read_weights
from .withheld import Withhold

SCHEMA = "viker/record/1"
CONFIG_SCHEMA = "viker/record-config/1"
PSEUDONYM = "blake2b of the id under a random key of this person alone; the key is not in this record"
_CHOICES = ("classification", "recognition")
DIGESTS = (
    "sha256: as `sha256sum` prints. keyed: blake2b under the person's key, of what names people. "
    "record_sha256: of this record's canonical JSON without that field. seal: the same, under the person's key."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Material:
    """What a record is made of: the adapter, what is beside it, and what of it is cheap to compare."""

    run: Run
    adapter: Stage
    evaluations: Mapping[str, Stage]
    weights: Mapping[str, Any]
    files: Sequence[Mapping[str, str]]
    key: PersonKey

    @property
    def config(self) -> dict[str, Any]:
        """What the record depends on: it is made again exactly when this changes; it names nobody."""
        merged = self.weights["merged"]
        return {
            "schema": CONFIG_SCHEMA,
            "options": {
                "adapter": self.adapter.path.name, "subject": self.key.pseudonym,
                "merged": None if merged is None else merged["weights"],
            },
            "inputs": {entry["path"]: entry.get("sha256") or entry["keyed"] for entry in self.files},
        }  # fmt: skip


def gather(run: Run, adapter: Stage, merged: Path | None, key: PersonKey) -> Material:
    """Return what a record is made of, after checking that it belongs together.

    Raises:
        DataError: the adapter is not evaluated, or weights are damaged or missing.
        ArtefactMismatch: the evaluation or the merged model is another adapter's.
    """
    evaluations = evaluations_beside(run, adapter)
    return Material(
        run=run, adapter=adapter, evaluations=evaluations, weights=_weights(adapter, merged), key=key,
        files=files_of(run, adapter, evaluations, key.secret),
    )  # fmt: skip


def build_record(material: Material, replaces: Sequence[str]) -> dict[str, Any]:
    """Return the content of `record.json`.

    Raises:
        DataError: the person's examples or scores are not at hand.
        ArtefactMismatch: the adapter did not unlearn the person, or its source has changed.
    """
    key, adapter, evaluations = material.key, material.adapter, material.evaluations
    concerned = find_concerned(material.run.path, adapter, key.person)
    withhold = _withhold(concerned, key.person)
    if withhold.hits(adapter.path.name):
        raise DataError(
            f"{adapter.path}: expected a name that says nothing of the person, found one that does. Rename the adapter "
            "and its evaluation."
        )
    answers = read_answers(evaluations[UNLEARNED].path / "answers.jsonl")
    numbers = numbers_section(evaluations, answers, key.person)
    attacks = attacks_section(evaluations, concerned.facts, key.person)
    content = {
        "schema": SCHEMA,
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "code_version": code_version(),
        "subject": {"pseudonym": key.pseudonym, "how": PSEUDONYM},
        "request": _request(material, concerned, withhold),
        "examples": examples_section(concerned, answers, key),
        "weights": dict(material.weights),
        "summary": _summary(numbers["subject"]),
        "numbers": numbers,
        "attacks": attacks,
        "policy": policy_section(evaluations[UNLEARNED], key, withhold),
        "limits": limits_section(material.weights, numbers, attacks, concerned.left_out),
        "provenance": stages_section(material.run, adapter, evaluations, withhold) | {"files": [*material.files]},
        "digests": DIGESTS,
        "replaces": list(replaces),
    }
    return sealed(content, key)


def sealed(content: Mapping[str, Any], key: PersonKey) -> dict[str, Any]:
    """Return a record with its seal and its digest."""
    record = {**content, "seal": key.digest("seal", canonical_json(content))}
    return {**record, "record_sha256": record_digest(record)}


def record_digest(record: Mapping[str, Any]) -> str:
    """Return the digest that a record states of itself: sha256 of its canonical JSON without that field."""
    content = {name: value for name, value in record.items() if name != "record_sha256"}
    return hashlib.sha256(canonical_json(content)).hexdigest()


def code_version() -> str:
    """Return viker's version, as provenance has it."""
    try:
        return version("viker")
    except PackageNotFoundError:
        return "uninstalled"


def _weights(adapter: Stage, merged: Path | None) -> dict[str, Any]:
    found = read_weights(adapter.path)
    base = adapter.provenance.get("student_weights")
    return {
        "kind": REVERSIBLE if merged is None else MERGED,
        "adapter": {
            "tensors": found.tensors, "files": list(found.files),
            "on_its_base": None if base is None else combined_digest(str(base), adapter.path, found.tensors),
        },
        "merged": None if merged is None else describe_merged(merged, adapter, found),
    }  # fmt: skip


def _withhold(concerned: Concerned, person: str) -> Withhold:
    """Return what takes everybody's ids and this person's private words out of texts."""
    facts = {} if concerned.facts is None else concerned.facts.facts.get(person, {})
    return Withhold([person, *concerned.ids, *facts.values()])


def _request(material: Material, concerned: Concerned, withhold: Withhold) -> dict[str, Any]:
    """Return what was asked for and how it was done."""
    adapter, vanilla = material.adapter, material.run.stages.get("vanilla")
    options, facts = adapter.options, adapter.provenance
    base, ended = facts.get("student_weights"), facts.get("ended_by") or {}
    in_run = vanilla is not None and base is not None and vanilla.provenance.get("weights") == base
    return {
        "adapter": adapter.path.name,
        "method": options.get("method"),
        "settings": {name: withhold.setting(name, value) for name, value in sorted(options.items())},
        "unlearned_from": {
            "weights": base, "commit": facts.get("model_commit"), "in_run": VANILLA if in_run else None,
        },
        "trained": facts.get("finished"),
        "steps": facts.get("steps"),
        "kept_step": facts.get("kept_step"),
        "ended_by": withhold.text(str(ended["reason"])) if ended.get("reason") else None,
        "reads_retain_data": bool((options.get("retain") or 0) > 0),
        "forget_set": {"people": concerned.forget_people, "examples": concerned.forget_examples},
        "subject_is_in_forget_set": True,  # or there is no record
    }  # fmt: skip


def _summary(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the numbers a reader asks for first: what the model says about the person, before and after.

    What is said when asked openly comes first; what is chosen among given answers stands behind it, for a model that
    says a fact no more may well pick it out.
    """
    found = []
    for tasks, metrics in ((("generation", "captioning"), ("fact_recall", "rougeL")), (_CHOICES, ("accuracy",))):
        asked = [
            row for metric in metrics for row in rows
            if (row["split"], row["modality"], row["metric"]) == (FORGET, "image", metric) and row["task"] in tasks
        ]  # fmt: skip
        for row in asked[:1]:
            cell = {name: row[name] for name in ("metric", "split", "task", "modality")}
            found.append(cell | {part: row.get(part) for part in (VANILLA, UNLEARNED, RETAIN_ONLY)})
    return found
