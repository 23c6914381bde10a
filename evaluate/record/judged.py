"""The policy an adapter was judged by and its verdict, without the people that a verdict names.

`verdict.json` names the person who is worst by a requirement, in a field and in its words. A record holds the numbers
of every check and, in the place of who, whether it is this person. Words are made here from the numbers. What the
policy's author wrote (its name, its reasons) is copied with ids and private words withheld; its digest stands for the
text.
"""

from collections.abc import Mapping
from typing import Any

from ...data.artefact import read_json
from ..policy import POLICY_FILE
from ..policy_check import VERDICT_FILE
from ..report.run import Stage
from .keys import PersonKey
from .withheld import Withhold

NO_POLICY = "no policy: nothing was promised before, so nothing is judged"
NOT_JUDGED = "a policy was recorded, and no verdict was made by it"
_ASKED = (
    "metric", "split", "task", "modality", "at_least", "at_most", "relative_to", "attack", "worst_person", "passed",
    "value", "own", "other", "n", "ci", "against", "asked",
)  # fmt: skip


def policy_section(evaluation: Stage, key: PersonKey, withhold: Withhold) -> dict[str, Any]:
    """Return the policy with its thresholds, digest and date, and the verdict with every check."""
    path = evaluation.path / POLICY_FILE
    recorded = read_json(path) if path.is_file() else None
    verdict = read_json(evaluation.path / VERDICT_FILE) if (evaluation.path / VERDICT_FILE).is_file() else None
    if verdict is None:
        policy = None if recorded is None else _policy(recorded, withhold)
        return {"policy": policy, "verdict": None, "words": NO_POLICY if recorded is None else NOT_JUDGED}
    judged = verdict["policy"]
    return {
        "policy": _policy({**judged, "answers_existed": (recorded or {}).get("answers_existed")}, withhold),
        "verdict": {
            "passed": verdict["passed"], "label": verdict["label"], "compared_with": verdict["compared_with"],
            "fixed_before_run": judged["fixed_before_run"],
            "checks": [_check(one, key, withhold) for one in verdict["checks"]],
        },
        "words": judged["words"],
    }  # fmt: skip


def _policy(kept: Mapping[str, Any], withhold: Withhold) -> dict[str, Any]:
    return {
        "name": withhold.text(str(kept["name"])), "sha256": kept["sha256"], "recorded": kept.get("recorded"),
        "answers_existed": kept.get("answers_existed"), "replaced": list(kept.get("replaced") or ()),
    }  # fmt: skip


def _check(one: Mapping[str, Any], key: PersonKey, withhold: Withhold) -> dict[str, Any]:
    kept = {name: one[name] for name in _ASKED if name in one}
    worst = one.get("person")
    kept["worst"] = None if worst is None else "this person" if worst == key.person else "another person"
    why = withhold.text(str(one.get("why") or ""))
    return {**kept, "why": why, "words": _words(one, kept["worst"])}


def _words(one: Mapping[str, Any], worst: str | None) -> str:
    """Return a check's number in words, as `policy_check.py` has it, without a name."""
    if one.get("value") is None:
        return "not measured, which is never a pass"
    parts = [f"{one['value']:.4g}"]
    if one.get("other") is not None:
        parts.append(f"{one['own']:.4g} against {one['against']}'s {one['other']:.4g}")
    elif one.get("against") is not None:
        parts.append(f"beyond {one['against']}'s")
    parts += [f"the worst is {worst}"] if worst else []
    parts += [f"n = {one['n']}"] if one.get("n") is not None else []
    if ci := one.get("ci"):
        parts.append(f"95 % interval {ci[0]:.4g} to {ci[1]:.4g}")
    return ", ".join(parts)
