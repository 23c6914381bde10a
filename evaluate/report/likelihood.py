"""How far were the forgotten answers pushed down: not as far as a model that never knew, as far, or further?

Fact recall stops at zero, likelihood does not: an answer that is said no more may still be the likeliest but one, or so
unlikely that its absence gives it away. Retain-only says how likely the published answers are to a model that never met
the people. Each model's mean log-probability per token of them is a mean over people of means over their questions,
taken over the questions that both models were asked, and one standard error of retain-only's over those people is what
counts as the same. Scores per split are in `scores.json`; whose recall is low enough is `rank.py`'s work.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ..answers import Answer, token_logprob
from ..matched import mean_and_standard_error

LESS = "less forgotten than a model that never knew"
SAME = "about the same"
OVER = "over-forgotten: pushed below a model that never knew"
NO_ERROR = "not known: one person has no standard error"
NOT_ASKED = "not known: its answers hold no log-probabilities, evaluate it again"

_NO_RETAIN_ONLY = "retain-only is not evaluated, so nothing says how likely the answers are to a model that never knew"
_NOT_ASKED_THERE = "retain-only's answers to such questions hold no log-probabilities; evaluate it again"

Logprobs = Mapping[str, tuple[str, float]]  # question -> (person, nats a token of the published answer)


def likelihood_section(
    answers: Mapping[str, Sequence[Answer]], models: Sequence[Mapping[str, Any]], task: str, modality: str
) -> dict[str, Any]:
    """Return the comparison of every evaluated model with retain-only on the forget people, or why there is none."""
    found = {name: _forget_logprobs(kept, task, modality) for name, kept in answers.items()}
    if not found.get("retain-only"):
        reason = _NOT_ASKED_THERE if "retain-only" in found else _NO_RETAIN_ONLY
        return {"reason": reason, "task": task, "modality": modality, "rows": []}
    rows = [_row(model, found[model["name"]], found["retain-only"]) for model in models if model["evaluated"]]
    return {"reason": None, "task": task, "modality": modality, "rows": rows}


def verdict_on(difference: float, error: float) -> str:
    """Return in words what a difference from retain-only (nats a token) says, given retain-only's standard error."""
    if abs(difference) <= error:
        return SAME
    return LESS if difference > 0 else OVER


def _row(model: Mapping[str, Any], ours: Logprobs, ideal: Logprobs) -> dict[str, Any]:
    """Return one model's numbers; a verdict is for what forgot, so vanilla and retain-only have none."""
    shared = sorted(set(ours) & set(ideal))
    about = {
        "model": model["name"], "role": model["role"], "reads_retain_data": model["reads_retain_data"],
        "questions": len(shared), "people": len({ideal[question][0] for question in shared}),
    }  # fmt: skip
    is_reference = model["role"] in ("vanilla", "retain-only")
    if not shared:
        unknown = dict.fromkeys(("answer_logprob", "difference", "error"))
        return about | unknown | {"verdict": None if is_reference else NOT_ASKED}
    mean, _ = mean_and_standard_error(_by_person(ours, shared))
    mean_ideal, error = mean_and_standard_error(_by_person(ideal, shared))
    verdict = verdict_on(mean - mean_ideal, error) if about["people"] > 1 else NO_ERROR
    values = {"answer_logprob": mean, "difference": mean - mean_ideal, "error": error}
    return about | values | {"verdict": None if is_reference else verdict}


def _forget_logprobs(kept: Sequence[Answer], task: str, modality: str) -> dict[str, tuple[str, float]]:
    return {
        given.id: (given.person, value)
        for given in kept
        if (given.split, given.task, given.modality) == ("forget", task, modality)
        and (value := token_logprob(given)) is not None
    }


def _by_person(logprobs: Logprobs, questions: Sequence[str]) -> dict[str, tuple[float, int]]:
    """Return (sum over the questions, number of questions) of each person."""
    sums: dict[str, tuple[float, int]] = {}
    for question in questions:
        person, value = logprobs[question]
        total, number = sums.get(person, (0.0, 0))
        sums[person] = (total + value, number + 1)
    return sums
