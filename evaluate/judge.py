"""Judge adapters by a policy: gather what was measured of them, check, and leave a verdict beside each evaluation.

Numbers come from what evaluations keep: scores, scores of people, measures against retain-only and controls, and excess
recoveries of attacks. A verdict is written whether it passed or not. Vanilla and retain-only are never judged: they are
what an adapter is judged beside. What a policy may demand is `policy.py`'s, how it is checked `policy_check.py`'s.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from ..data.artefact import is_complete, read_json, write_json
from ..data.example import DataError
from .answers import read_answers
from .measures.comparisons import NOTHING, measure
from .named_source import facts_of
from .policy import Policy, record_policy
from .policy_check import VERDICT_FILE, Lookup, as_text, check, verdict_json

REFERENCE_MODELS = ("vanilla", "retain-only")
# Under attack, open questions about pictures of the forget people are one cell, by the names a policy has by default.
_ATTACKED = {"split": "forget", "task": "generation", "modality": "image"}


def judge_targets(options: Mapping[str, Any], targets: Mapping[str, tuple[str, Path]], policy: Policy) -> bool:
    """Judge every target but vanilla and retain-only, write and print the verdicts; return whether all passed.

    Raises:
        DataError: there is nobody to judge.
    """
    judged = {name: output for name, (_, output) in targets.items() if name not in REFERENCE_MODELS}
    if not judged:
        raise DataError(
            f"--policy: expected an adapter to judge, found only {', '.join(targets)}. Train one, or name it."
        )
    beside = {name: output.parent / name for output in judged.values() for name in REFERENCE_MODELS}
    evaluations = {name: path for name, path in {**beside, **judged}.items() if is_complete(path)}
    found = Lookup([record for name, path in evaluations.items() for record in records_of(name, path, options)])
    passed = True
    for name, output in judged.items():
        record = record_policy(output, policy, overwrite=bool(options["overwrite"]))
        verdict = check(policy, found, model=name)
        told = verdict_json(policy, verdict, record)
        write_json(output / VERDICT_FILE, told)
        click.echo(
            json.dumps(told, indent=2, ensure_ascii=False) if options["as_json"] else as_text(policy, verdict, record)
        )
        passed = passed and verdict.passed
    return passed


def records_of(name: str, evaluation: Path, options: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield everything measured of one model as plain records, each number once."""
    kept = read_json(evaluation / "scores.json")
    scored = [record | {"model": name} for record in (*kept["scores"], *kept.get("people", ()))]
    yield from scored
    seen = {(record["split"], record["task"], record["modality"], record["metric"]) for record in scored}
    for one in _measures(evaluation, options):
        place = (one["split"], one["task"], one["modality"], one["metric"])
        if one["value"] is not None and (one["against"] != NOTHING or place not in seen):
            yield one | {"model": name}
    attacks = evaluation / "attacks" / "attacks.json"
    for row in read_json(attacks)["rows"] if attacks.is_file() else ():
        if row["excess"] is not None:
            yield {**_ATTACKED, **row, "model": name, "value": row["excess"], "ci": row["excess_ci"],
                   "against": row["baseline"]}  # fmt: skip


def _measures(evaluation: Path, options: Mapping[str, Any]) -> list[dict[str, Any]]:
    ideal = evaluation.parent / "retain-only"
    retain_only = read_answers(ideal / "answers.jsonl") if is_complete(ideal) and ideal != evaluation else None
    found = measure(read_answers(evaluation / "answers.jsonl"), retain_only, facts_of(options), options["seed"])
    return [asdict(one) for one in found]
