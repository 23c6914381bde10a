"""The allow-list of a redacted report: for every section, which keys may leave, and what of their values.

A mapping names keys, a list of one rule holds for every item, `Keyed` for objects whose keys are data. What is not
named here is withheld, so a new section or a new key stays inside until somebody writes here what it may say; the walk
in `redaction.py` counts it. `Emptied` are values that pages read and outsiders get without content.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from ...data.example import TASKS
from ...data.notices import NOTICES
from ..attacks.attacks import ATTACKS
from ..attacks.recovery import NO_BASELINE
from ..measures.coherence import AS_FLUENT, LESS_FLUENT, LOOPS, NOT_KNOWN, SILENT
from ..measures.comparisons import NO_VERDICT
from ..policy_check import ALLOWED
from ..policy_check import NO_VERDICT as NOTHING_TO_COMPARE
from ..protocols.clear_table import NUMBERS, PARTS
from .likelihood import LESS, NO_ERROR, NOT_ASKED, OVER, SAME
from .redaction_leaves import (
    REFERENCES,
    SPLITS,
    Leaf,
    Sentences,
    citation,
    covered,
    like,
    made_of,
    method,
    model,
    model_or_teacher,
    number,
    numbered,
    one_of,
    person,
    stage,
)


class Keyed(NamedTuple):
    """An object whose keys are data: a rule for them, and one for what they hold."""

    key: Leaf
    value: Any


class ByPerson(NamedTuple):
    """A list whose items each name a person: put in the order of splits and people's numbers, as its own tells who."""

    item: Any


class Emptied(NamedTuple):
    """A value that a page reads, without anything in it."""

    value: Any


SENTENCES = Sentences(
    [
        LESS, SAME, OVER, NO_ERROR, NOT_ASKED,
        "vanilla knows #% of the {split} facts (head-room asks for #%)",
        "retain-only, which never saw them, says #% of the forget facts; guessing gives #%",
        "not known without both vanilla and retain-only",
        "{split} {number}: vanilla #%, retain-only #%",
        "without retain-only and known facts nothing says when a person counts as forgotten",
        "vanilla itself is at or below the bar, so there was nothing to forget",
        "No ranks: without retain-only and known facts nothing says when a person counts as forgotten.",
        "No ranks: vanilla itself is at or below the bar, so there was nothing to forget.",
        "retain-only is not evaluated with known facts, so there is no bar",
        "no adapter has a trajectory with known facts (train with --evaluate-every)",
        "no adapter is evaluated on both forget and held-out retain people",
        "Trajectories measure a fixed number of retain people; vanilla and retain-only are shown on all of them.",
        "Trajectories ask the bare question, the bar comes from the `{style}` style of evaluation.",
        "retain-only is not evaluated, so nothing says how likely the answers are to a model that never knew",
        "retain-only's answers to such questions hold no log-probabilities; evaluate it again",
        "# questions were asked of one model only", "# people in no pair",
        "# forget people, # others, questions unmatched",
        "distinguishable (p=#, n=#): {side} never-seen people by #",
        "too few people (n=# < #) for an interval: no verdict", "not told apart at n=#, difference within [#, #]",
        "not measured: no answer of the {members} holds what it needs; evaluate the model again to keep it",
        "not measured: # non-members, # % false alarms need #",
    ],
    {
        "split": {*SPLITS, "held-out retain"}, "number": {"fact recall", "ROUGE-L", "cloze accuracy"},
        "style": {"official", "plain"}, "side": {"above", "below"}, "members": {"members", "non-members"},
    },
)  # fmt: skip

_MODEL, _SPLIT, _TASK, _MODALITY = model, one_of(*SPLITS), one_of(*TASKS), one_of("image", "text")
_METRIC = like(r"[A-Za-z][A-Za-z0-9_@]{1,47}")
_DATE = like(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
_DIGEST = like(r"[0-9a-f]{64}")
_ROLE = one_of(*REFERENCES, "adapter", "other")
_CELL = {"split": _SPLIT, "task": _TASK, "modality": _MODALITY, "metric": _METRIC}
_NUMBERS = [number]
_COLUMN = {**_CELL, "label": made_of({
    *SPLITS, "held", "out", "seen", "fact", "facts", "recall", "ROUGE", "L", "cloze", "accuracy", "choice", "retain",
})}  # fmt: skip
_ROW = {"model": _MODEL, "values": _NUMBERS, "ci": [_NUMBERS]}
_RANKED = {
    "role": _ROLE, "reads_retain_data": number, "rank": number, "model": _MODEL
}  # fmt: skip
_AGAINST = one_of("nothing", *REFERENCES, *SPLITS)
_CLEAR_NAME = made_of({
    *" ".join([*NUMBERS, *PARTS, *(task for pairs in PARTS.values() for task, _ in pairs)]).split(), "metric", "Model",
    "Utility", "Seen", "Quality", "(same", "distribution)", "JS", "KS", "test", "statistic", "p", "value",
})  # fmt: skip

_HEADLINE = {
    "columns": [_COLUMN], "bar": number, "no_ranks": SENTENCES,
    "rows": [{**_ROW, **_RANKED, "forgotten": number, "recall": number}],
}  # fmt: skip
_MATCHED = {
    "bar": number, "reason": SENTENCES, "without_trajectory": [_MODEL], "caveats": [SENTENCES],
    "rows": [{
        **_RANKED, "crosses": number, "step": number, "forget_fact": number, "retain_heldout_fact": number,
        "retain_heldout_rougeL": number, "retain_seen_fact": number,
    }],
}  # fmt: skip
_LIKELIHOOD = {
    "reason": SENTENCES, "task": _TASK, "modality": _MODALITY,
    "rows": [{
        "model": _MODEL, "role": _ROLE, "reads_retain_data": number, "questions": number, "people": number,
        "answer_logprob": number, "difference": number, "error": number, "verdict": SENTENCES,
    }],
}  # fmt: skip
_FORGETTING = {
    "label": one_of(NO_VERDICT, "against retain-only", "against controls", "against retain-only and controls"),
    "measures": [{
        **_CELL, "model": _MODEL, "value": number, "n": number, "people": number, "ci": _NUMBERS, "p": number,
        "against": _AGAINST, "note": SENTENCES,
    }],
}  # fmt: skip
_COHERENCE = [{
    "model": _MODEL, "split": _SPLIT, "task": _TASK, "modality": _MODALITY,
    "words": one_of(AS_FLUENT, LESS_FLUENT, LOOPS, NOT_KNOWN, SILENT),
    **dict.fromkeys((
        "replies", "blank_share", "repetition", "repetition_difference", "questions", "people", "fluency",
        "fluency_difference", "typical", "typical_difference",
    ), number),
}]  # fmt: skip
_ATTACK = [{
    "model": _MODEL, "attack": one_of(*ATTACKS), "metric": _METRIC, "baseline": _AGAINST, "label": one_of(NO_BASELINE),
    **dict.fromkeys((
        "before", "after", "recovery", "retain_change", "baseline_recovery", "excess", "n", "n_baseline", "p", "seed",
    ), number),
    "recovery_ci": _NUMBERS, "excess_ci": _NUMBERS,
}]  # fmt: skip
_VERDICT = [{
    "model": _MODEL, "passed": number, "label": one_of(NOTHING_TO_COMPARE, ALLOWED), "compared_with": _AGAINST,
    "policy": {
        "name": covered, "sha256": _DIGEST, "recorded": _DATE, "replaced": [_DIGEST], "fixed_before_run": number,
    },
    "checks": [{
        **_CELL, "relative_to": _AGAINST, "attack": one_of(*ATTACKS), "worst_person": number, "at_least": number,
        "at_most": number, "passed": number, "value": number, "own": number, "other": number, "n": number,
        "ci": _NUMBERS, "person": person, "against": _AGAINST,
    }],
}]  # fmt: skip
_REPLIES = {
    "task": _TASK, "models": [_MODEL], "shown": number, "of": number,
    "rows": ByPerson({
        "split": _SPLIT, "person": person, "task": _TASK, "modality": _MODALITY, "id": covered, "question": covered,
        "expected": covered, "replies": Keyed(_MODEL, covered), "says": Keyed(_MODEL, number),
    }),
}  # fmt: skip
_TOKEN = {
    "text": covered, "entropy": number, "disagreement": number, "teacher": [[number]],
    "models": Keyed(_MODEL, [[number]]), "answer_prob": Keyed(model_or_teacher, number),
}  # fmt: skip
_TOKENS = {
    "reason": Emptied("the whole report says why."), "key_entropy": number, "shown": number, "of": number,
    "models": [_MODEL], "notes": Emptied([]),
    "teacher": {"kind": one_of("reference", "self", "noise", "prompt", "text"), "num_references": number,
                "top_k": number, "key": covered, "root": covered},
    "examples": ByPerson({
        "id": covered, "person": person, "people": [person], "question": covered, "answer": covered, "tokens": [_TOKEN],
        "words": [{"text": covered, "first": number, "last": number, "entropy": number, "is_key": number,
                   "is_private": number}],
    }),
}  # fmt: skip
_LOG = {
    "of": number, "step": _NUMBERS,
    **dict.fromkeys((
        "loss", "key_logprob", "key_teacher_logprob", "normal_logprob", "gradient_norm", "forget_fact",
        "retain_heldout_fact", "retain_seen_fact", "forget_rougeL", "retain_heldout_rougeL", "retain_seen_rougeL",
    ), _NUMBERS),
}  # fmt: skip

REPORT: Mapping[str, Any] = {
    "schema": like(r"viker/report/\d+"),
    "embedded": one_of(*NOTICES.values()),
    "models": [{
        "name": _MODEL, "role": _ROLE, "evaluated": number, "method": method, "lambda": number, "retain": number,
        "reads_retain_data": number, "steps": number, "stopped": number, "kind": one_of("reversible: adapter only"),
    }],
    "headline": _HEADLINE,
    "splits": {"columns": [_COLUMN], "rows": [_ROW]},
    "seen_retain": {"columns": [_COLUMN], "rows": [_ROW]},
    "matched": _MATCHED,
    "likelihood": _LIKELIHOOD,
    "forgetting": _FORGETTING,
    "coherence": _COHERENCE,
    "attacks": _ATTACK,
    "verdicts": _VERDICT,
    "clear": Keyed(_MODEL, {"values": Keyed(_CLEAR_NAME, number), "rows": Keyed(_CLEAR_NAME, number)}),
    "head_room": [{"check": one_of("vanilla on forget", "vanilla on test", "retain-only on forget",
                                   "vanilla and retain-only"), "ok": number, "text": SENTENCES}],
    "answers": Emptied([]),
    "replies": _REPLIES,
    "key_tokens": _TOKENS,
    "pareto": {
        "value": one_of("fact", "rougeL"), "bar": number, "reason": SENTENCES,
        "points": [{"model": _MODEL, "role": _ROLE, "step": number, "from": one_of("trajectory", "evaluation"),
                    "forget": number, "retain": number, "front": number}],
    },
    "curves": {
        "longest": number, "value": one_of("fact", "rougeL"),
        "models": [{"model": _MODEL, "method": method, "log": _LOG, "trajectory": _LOG}],
    },
    "published": [{
        "row": method, "split": _SPLIT, "metric": _METRIC, "value": number, "source": citation, "task": _TASK,
        "modality": _MODALITY, "ours": Keyed(_MODEL, number), "our_split": _SPLIT, "our_metric": _METRIC,
        "our_task": _TASK,
    }],
    "scores": [{**_CELL, "model": _MODEL, "value": number, "n": number, "ci": _NUMBERS, "seed": number}],
    "stages": [{
        "stage": stage, "finished": _DATE, "code_version": like(r"\d+(\.\w+)*(\+[\w.]+)?"), "wall_seconds": number,
        "libraries": Keyed(like(r"[a-z][a-z0-9_-]{1,31}"), like(r"absent|\d+(\.\w+)*(\+[\w.]+)?")),
        "device": like(r"(cpu|cuda|mps|xpu)[\w .:()/-]{0,60}"), "peak_resident_bytes": number,
        "config_digest": covered, "command": covered,
        **dict.fromkeys(("caches", "inputs", "options"), Emptied({})),
    }],
}  # fmt: skip

POOLED: Mapping[str, Any] = {
    "schema": like(r"viker/pooled-report/\d+"),
    "runs": [numbered("run")],
    "worlds": [numbered("world")],
    "not_in_every_run": [covered],
    "models": Keyed(_MODEL, {
        "schema": like(r"viker/pooled/\d+"),
        "pooled": [{
            **_CELL, "value": number, "ci": _NUMBERS, "n": number, "clusters": number, "runs": number,
            "run_mean": number, "run_sd": number,
        }],
    }),
}  # fmt: skip
