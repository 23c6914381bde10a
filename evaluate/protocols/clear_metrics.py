"""What one kept answer of CLEAR is worth: probability, truth ratio, ROUGE-L recall, the name, the letter.

Source: CLEAR `mm/eval.py` and `mm/calculate_metrics.py`, MMUnlearner `CLEAR_eval.py` (reference/benchmarks.md, sections
2.3 and 2.4). Every function takes an answer and returns a number, or None where the answer lacks what it needs: that is
"not measured", which whoever adds up must count and say, and never a zero. All but losses and `log_truth_ratio` are in
[0, 1]. Probabilities are per token, exp(mean log p), so that a long name is not an unlikely one.
The truth ratio here is CLEAR's, R = exp(mean loss of the wrong answers - loss of the paraphrase): above 1 the truth is
likelier; TOFU's own is its inverse. Captions have a published paraphrase; for names and real-world answers the official
configuration gives the answer itself as its paraphrase.
Where `clear_corrections.py` names a correction, `as_published` chooses. What the official code computes from all rows
at once is `clear_scores.py`'s and `clear_table.py`'s.
"""

import math
import re
from collections.abc import Callable
from functools import cache
from typing import Any, Literal

import numpy as np
from rouge_score.rouge_scorer import RougeScorer

from ..answers import Answer
from .clear import BLIND_SUFFIX, name_recalled, official_letter, stated_letter
from .metrics import ScriptTokenizer, likeliest_letter

Kind = Literal["captioning", "recognition", "real-world", "qa", "options", "no-picture"]
Metric = Callable[[Answer], float | None]

_WITH_PICTURE: dict[str, Kind] = {
    "captioning": "captioning", "recognition": "recognition", "generation": "real-world", "classification": "options",
}  # fmt: skip
_WITHOUT_PICTURE: dict[str, Kind] = {"captioning": "no-picture", "recognition": "no-picture", "generation": "qa"}


def kind_of(answer: Answer) -> Kind | None:
    """Return which kind of question of CLEAR an answer is to, or None: it is no part of this protocol."""
    if answer.id.endswith(BLIND_SUFFIX):
        return "no-picture"
    return (_WITH_PICTURE if answer.modality == "image" else _WITHOUT_PICTURE).get(answer.task)


def answer_metrics(answer: Answer, as_published: frozenset[str] = frozenset()) -> dict[str, float | None]:
    """Return every number that an answer of its kind has, None where it lacks what the number needs.

    Steps named in `as_published` are taken as the official code takes them, but for the truth ratio, which is always
    of the row itself here (`clear_scores.py` has the official one).
    """
    kind = kind_of(answer)
    if kind is None:
        return {}
    if kind == "options":
        return _choice_metrics(answer, as_published)
    rouge = published_rouge_recall if "rouge-scripts" in as_published else rouge_recall
    name = published_name_match if "name-case" in as_published else name_recall
    metrics: dict[str, Metric] = {"rougeL_recall": rouge}
    if kind in PROBABILITIES:
        metrics["probability"] = PROBABILITIES[kind]
    if kind in ("captioning", "recognition", "real-world"):
        metrics["truth_ratio"] = truth_ratio
    if kind in ("recognition", "real-world"):
        metrics["accuracy_likelihood"] = likelihood_accuracy
    if kind == "recognition" or (kind == "captioning" and name_recalled(answer.person, answer.expected)):
        metrics["name_recall"] = name
    return {metric: function(answer) for metric, function in metrics.items()}


def answer_scores(answer: Answer, as_published: frozenset[str] = frozenset()) -> dict[str, float]:
    """Return the numbers that were measured of one answer (see `answer_metrics`)."""
    return {name: value for name, value in answer_metrics(answer, as_published).items() if value is not None}


def probability(answer: Answer) -> float | None:
    """Return exp of the mean log-probability per token of what was expected (CLEAR's Prob. of captions)."""
    logprob = _per_token(answer.answer_logprob)
    return None if logprob is None else math.exp(logprob)


def probability_among_wrong(answer: Answer) -> float | None:
    """Return p / (p + sum of the wrong answers' p), each per token (CLEAR's Prob. of everything but captions)."""
    truth = _per_token(answer.answer_logprob)
    if truth is None or not answer.wrong_logprobs:
        return None
    return float(np.exp(truth - np.logaddexp.reduce([truth, *_wrong_per_token(answer)])))


# Prob. by kind; text questions have no wrong answers here and are read as TOFU reads its own authors.
PROBABILITIES: dict[Kind, Metric] = {
    "captioning": probability,
    "recognition": probability_among_wrong,
    "real-world": probability_among_wrong,
    "qa": probability,
}


def truth_loss(answer: Answer) -> float | None:
    """Return the loss per token of the truth in other words: a caption's paraphrase, else the answer itself."""
    logprob = _per_token(answer.paraphrase_logprob if answer.task == "captioning" else answer.answer_logprob)
    return None if logprob is None else -logprob


def wrong_losses(answer: Answer) -> list[float]:
    """Return the loss per token of each wrong answer."""
    return [-logprob for logprob in _wrong_per_token(answer)]


def log_truth_ratio(answer: Answer) -> float | None:
    """Return log R: the mean loss per token of the wrong answers, minus that of the paraphrase, in nats."""
    truth, wrong = truth_loss(answer), wrong_losses(answer)
    return None if truth is None or not wrong else sum(wrong) / len(wrong) - truth


def truth_value(log_ratio: float, split: str) -> float:
    """Return a truth ratio as CLEAR averages it: min(R, 1/R) on the forget split, else max(0, 1 - 1/R)."""
    return math.exp(-abs(log_ratio)) if split == "forget" else -math.expm1(-max(0.0, log_ratio))


def truth_ratio(answer: Answer) -> float | None:
    """Return the value of one row's truth ratio, from its own wrong answers."""
    log_ratio = log_truth_ratio(answer)
    return None if log_ratio is None else truth_value(log_ratio, answer.split)


def published_rouge_recall(answer: Answer) -> float | None:
    """Return the ROUGE-L recall of the reply, stemmed; 0 where nothing expected is in a-z or 0-9 (published)."""
    return None if answer.reply is None else _recall(_published_scorer(), answer.expected, answer.reply)


def rouge_recall(answer: Answer) -> float | None:
    """Return the published ROUGE-L recall over words of every script; None where nothing expected is a word."""
    if answer.reply is None or not _tokenizer().tokenize(answer.expected):
        return None
    return _recall(_scorer_of_scripts(), answer.expected, answer.reply)


def name_recall(answer: Answer) -> float | None:
    """Return 1 where the reply holds the person's name, else 0: the name asked for, or of the person captioned."""
    name = answer.expected if answer.task == "recognition" else answer.person
    return None if answer.reply is None or not name.strip() else float(name_recalled(name, answer.reply))


def published_name_match(answer: Answer) -> float | None:
    """Return 1 where MMUnlearner's code finds the name: as spelled, in the reply in lower case without spaces."""
    name = answer.expected if answer.task == "recognition" else answer.person
    if answer.reply is None or not name.strip():
        return None
    return float(name in re.sub(r"[^a-zA-Z0-9]", "", answer.reply).lower())


def likelihood_accuracy(answer: Answer) -> float | None:
    """Return 1 where what was expected is likelier, per token, than every wrong answer, else 0.

    Recognition by options for models that never saw an instruction: chance is one in (wrong answers + 1).
    """
    truth = _per_token(answer.answer_logprob)
    return None if truth is None or not answer.wrong_logprobs else float(truth > max(_wrong_per_token(answer)))


def _choice_metrics(answer: Answer, as_published: frozenset[str]) -> dict[str, float | None]:
    """Return `accuracy` (the headline), and what it is of: the letter replied, or the likeliest option."""
    letter = likeliest = None
    if answer.reply is not None and "letter-parsing" in as_published:
        letter = float(official_letter(answer.reply, dict(answer.options)) == answer.expected)
    elif answer.reply is not None:
        letter = float(stated_letter(answer.reply, answer.options) == answer.expected)
    if answer.option_logprobs:
        likeliest = float(likeliest_letter(answer.option_logprobs) == answer.expected)
    first, second = (letter, likeliest) if "choice-letter" in as_published else (likeliest, letter)
    headline = second if first is None else first
    return {"accuracy": headline, "accuracy_letter": letter, "accuracy_likelihood": likeliest}


def _per_token(logprob: tuple[float, int] | None) -> float | None:
    return None if logprob is None else logprob[0] / logprob[1]


def _wrong_per_token(answer: Answer) -> list[float]:
    return [total / num_tokens for total, num_tokens in answer.wrong_logprobs]


def _recall(scorer: Any, expected: str, reply: str) -> float:
    return float(scorer.score(expected, reply)["rougeL"].recall)


@cache
def _published_scorer() -> Any:
    return RougeScorer(["rougeL"], use_stemmer=True)


@cache
def _scorer_of_scripts() -> Any:
    return RougeScorer(["rougeL"], tokenizer=_tokenizer())


@cache
def _tokenizer() -> ScriptTokenizer:
    return ScriptTokenizer()
