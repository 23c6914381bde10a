"""From examined examples to the records of diagnose.jsonl: one an example, and one of numbers over all of them.

A record of an example names its people, so that it can be found and taken out; one of numbers names nobody. Numbers are
rounded to six digits; what does not exist is null.
"""

# M answer tokens of all examples, N of one

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ..data.example import Example
from .key_words import KeyWord, agreement
from .method import Method
from .token_weights import BOUND, TokenWeights, reweighting_of

FILE = "diagnose.jsonl"
SCHEMA = "viker/diagnose/1"
NEAR = 0.1  # a weight this near its limit has reached it

When = Literal["before", "after"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Examined:
    """One example as the student has it now; entropies, log R(y) and words are None where no rows are known."""

    example: Example
    weights: TokenWeights
    entropy_N: Sequence[float] | None
    teacher_logprob_N: Sequence[float] | None
    words: Sequence[KeyWord] | None


def as_record(one: Examined, key_entropy: float) -> dict[str, Any]:
    """Return what is written of an example: its words, and a list a number with an entry a token."""
    weights = one.weights
    tokens = {
        "entropy": one.entropy_N, "teacher_logprob": one.teacher_logprob_N, "logprob": weights.logprob_M.tolist(),
        "weight": weights.weight_M.tolist(), "predicted_weight": weights.predicted_M.tolist(),
        "error": weights.error_M.tolist(), "kept_mean": weights.kept_mean_M.tolist(),
        "kept_max": weights.kept_max_M.tolist(), "kept_above_one": weights.kept_above_one_M.tolist(),
    }  # fmt: skip
    return {
        "kind": "example", "example": one.example.id, "people": list(one.example.people),
        "words": [_word(word, weights, key_entropy) for word in one.words or ()], "tokens": _rounded(tokens),
    }  # fmt: skip


def _word(found: KeyWord, weights: TokenWeights, key_entropy: float) -> dict[str, Any]:
    """Return what is written of a word; its log-probability is the sum of its tokens', its weight the largest."""
    place = slice(found.word.first, found.word.last + 1)
    numbers = {
        "entropy": found.entropy, "logprob": float(weights.logprob_M[place].sum()),
        "weight": float(weights.weight_M[place].max()),
    }  # fmt: skip
    return {
        "word": found.word.text, "first": found.word.first, "last": found.word.last, **_rounded(numbers),
        "is_key": found.entropy > key_entropy, "is_private": found.is_private,
    }  # fmt: skip


def summarize(
    examined: Sequence[Examined], method: Method, epsilons: Sequence[float], key_entropy: float
) -> dict[str, Any]:
    """Return the numbers over all examples: how the prediction holds, entropy classes, key words against private."""
    weights = TokenWeights.join([one.weights for one in examined])
    entropy_M = _joined([one.entropy_N for one in examined])
    teacher_M = _joined([one.teacher_logprob_N for one in examined])
    summary = {
        "kind": "summary", "method": method.name, "settings": dict(method.settings), "examples": len(examined),
        "tokens": len(weights.logprob_M), "key_entropy": key_entropy,
        "weight": _mean(weights.weight_M), "no_prediction": _why_none(method),
        "prediction": _prediction(weights, entropy_M, method, key_entropy), "entropy_classes": None, "key_words": None,
    }  # fmt: skip
    if entropy_M is not None and teacher_M is not None:
        summary["entropy_classes"] = [_classes(weights, entropy_M, teacher_M, epsilon) for epsilon in epsilons]
    words = [word for one in examined for word in one.words or ()]
    if words and all(word.is_private is not None for word in words):
        summary["key_words"] = [agreement(words, epsilon) for epsilon in epsilons]
    rounded: dict[str, Any] = _rounded(summary)
    return rounded


def _why_none(method: Method) -> str | None:
    if method.layer:
        return "its loss is one of hidden states, which no logit enters"
    return None if reweighting_of(method) else "its loss is not ascent plus KL(R || q)"


def _prediction(
    weights: TokenWeights, entropy_M: Tensor | None, method: Method, key_entropy: float
) -> dict[str, Any] | None:
    """Return how predicted gradients compare with measured ones, and what Propositions 2 and 3 come to."""
    theory = reweighting_of(method)
    if theory is None:
        return None
    worst, limit = float(weights.error_M.max()), theory.normal_limit
    found = {"max_error": worst, "bound": BOUND, "holds": worst <= BOUND, "normal_limit": limit}
    if entropy_M is None:
        return found
    is_key_M = entropy_M > key_entropy
    near_M = ((weights.weight_M - limit).abs() <= NEAR)[~is_key_M]
    above_M = (weights.kept_max_M > 1)[is_key_M]
    return found | {"normal_near_limit": _mean(near_M.double()), "key_with_kept_above_one": _mean(above_M.double())}


def _classes(weights: TokenWeights, entropy_M: Tensor, teacher_M: Tensor, epsilon: float) -> dict[str, Any]:
    is_key_M = entropy_M > epsilon
    return {
        "epsilon": epsilon,
        **{
            name: {
                "tokens": int(chosen_M.sum()), "logprob": _mean(weights.logprob_M[chosen_M]),
                "teacher_logprob": _mean(teacher_M[chosen_M]), "weight": _mean(weights.weight_M[chosen_M]),
            }
            for name, chosen_M in (("key", is_key_M), ("normal", ~is_key_M))
        },
    }  # fmt: skip


def _joined(parts: Sequence[Sequence[float] | None]) -> Tensor | None:
    known = [torch.tensor(part, dtype=torch.float64) for part in parts if part is not None]
    return torch.cat(known) if known and len(known) == len(parts) else None


def _mean(values_M: Tensor) -> float | None:
    """Return the mean of what is finite."""
    known_M = values_M[values_M.isfinite()]
    return float(known_M.mean()) if len(known_M) else None


def _rounded(value: Any) -> Any:
    """Return plain values with six digits, and None for what is no number."""
    if isinstance(value, Mapping):
        return {name: _rounded(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def as_text(summary: Mapping[str, Any], seconds: float) -> str:
    """Return a summary in a few lines, without a word of any answer."""
    moment = "before training" if summary["when"] == "before" else f"after step {summary['step']}"
    lines = [f"{moment}: {summary['examples']} examples, {summary['tokens']} answer tokens, {seconds:.1f} s"]
    lines.append(_told_of_prediction(summary))
    lines += [_told_of_classes(one) for one in _at_key_entropy(summary, "entropy_classes")]
    lines += [_told_of_words(one) for one in _at_key_entropy(summary, "key_words")]
    if summary["entropy_classes"] is None:
        lines.append("no rows of these answers are known: no entropy classes, no key words")
    elif summary["key_words"] is None:
        lines.append("the source has no list of private words: key words are not compared with them")
    return "\n".join(f"diagnose: {line}" for line in lines)


def _at_key_entropy(summary: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    return [one for one in summary[name] or () if one["epsilon"] == summary["key_entropy"]]


def _told_of_prediction(summary: Mapping[str, Any]) -> str:
    found = summary["prediction"]
    if found is None:
        return f"token weights are measured, mean {_shown(summary['weight'])} of ascent's, and not predicted: " + str(
            summary["no_prediction"]
        )
    verdict = "hold" if found["holds"] else "DO NOT HOLD"
    told = f"predicted token weights {verdict} (largest relative error {_shown(found['max_error'])})"
    if "normal_near_limit" not in found:
        return told
    return (
        f"{told}; {_shown(found['normal_near_limit'])} of normal tokens are within {NEAR} of their limit "
        f"{found['normal_limit']:g}, at {_shown(found['key_with_kept_above_one'])} of key tokens another is raised "
        "harder than by ascent"
    )


def _told_of_classes(one: Mapping[str, Any]) -> str:
    told = [
        f"{part['tokens']} {name} tokens (log q(y) {_shown(part['logprob'])}, log R(y) "
        f"{_shown(part['teacher_logprob'])}, weight {_shown(part['weight'])})"
        for name, part in (("key", one["key"]), ("normal", one["normal"]))
    ]
    return f"above {one['epsilon']:g} nats: {', '.join(told)}"


def _told_of_words(one: Mapping[str, Any]) -> str:
    return (
        f"{one['key']} of {one['words']} words are key, {one['private']} private: precision "
        f"{_shown(one['precision'])}, recall {_shown(one['recall'])}"
    )


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
