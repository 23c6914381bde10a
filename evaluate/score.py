"""From kept answers to numbers, without a model: every metric of the MLLMU protocol, and fact recall.

Source: MLLMU-Bench `eval.py` (commit 0e3098e; reference/benchmarks.md, section 1.5); design, sections 4 and 11. Every
value is a share in [0, 1], where the official code prints accuracies times 100, but for `answer_logprob`, ours: nats a
token of the published answer, a mean over answers (it says how far something was pushed down that is said no more). A
score is a function of counts that add up over people, so its interval resamples people: answers about one person stand
or fall together. Intervals are 95 % percentile bootstraps, and None below 18 people. A caller that pools worlds puts
the world into `person`.
What the libraries do to short answers, so that nobody reads it as forgetting: `sentence_bleu` of a perfect one-word
answer is 0.18 and `corpus_bleu` of one-word answers is 0; ROUGE drops all characters outside a-z and 0-9, so a perfect
answer in Cyrillic is 0. Empty replies and empty expectations are 0, never skipped.
Asking is `questions.py`'s and `generate.py`'s work, what is kept of it `answers.py`'s; comparing methods is
`matched.py`'s, tables are the report's.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numpy as np
import sacrebleu
from nltk.translate.bleu_score import SmoothingFunction
from nltk.translate.bleu_score import sentence_bleu as nltk_sentence_bleu
from numpy.typing import NDArray
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.bleu import BLEU

from ..data.example import DataError
from ..data.sidecar import Sidecar, fact_in
from .answers import LOGPROB, Answer, token_logprob
from .questions import parse_letter

SCORES_SCHEMA = "viker/scores/1"
MIN_CLUSTERS = 18
BOOTSTRAP_DRAWS = 1000

ROUGE_TYPES = ("rouge1", "rouge2", "rougeL")

# P people, S counts that add up over people (the last is always how many were scored), D bootstrap draws.
Statistic = Callable[[NDArray[np.float64]], float]


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreRecord:
    """One long-form score over `n` answers (facts, for `fact_recall`); `seed` is that of the interval `ci`."""

    model: str
    split: str
    task: str
    modality: str
    metric: str
    value: float
    n: int
    ci: tuple[float, float] | None
    seed: int


def score_answers(answers: Sequence[Answer], facts: Sidecar | None, seed: int) -> list[ScoreRecord]:
    """Score kept answers by model, split, task and modality; `facts` is needed for `fact_recall` only."""
    _refuse_duplicates(answers)
    cells: dict[tuple[str, str, str, str], list[Answer]] = {}
    for answer in answers:
        cells.setdefault((answer.model, answer.split, answer.task, answer.modality), []).append(answer)
    return [record for cell in sorted(cells) for record in _cell_records(cells[cell], facts, seed)]


def scores_json(records: Iterable[ScoreRecord]) -> dict[str, Any]:
    """Return the content of `scores.json`, ready for `json.dump`."""
    scores = [asdict(record) | {"ci": list(record.ci) if record.ci else None} for record in records]
    return {"schema": SCORES_SCHEMA, "scores": scores}


def fact_recall_by_person(answers: Iterable[Answer], facts: Sidecar | None) -> dict[str, tuple[int, int]]:
    """Return (facts recalled, facts asked) for each person with any, over all the answers given."""
    recall: dict[str, tuple[int, int]] = {}
    for answer in answers:
        hits, asked = _fact_counts(answer, facts)
        if asked:
            before = recall.get(answer.person, (0, 0))
            recall[answer.person] = (before[0] + hits, before[1] + asked)
    return recall


def rouge(expected: str, reply: str) -> dict[str, float]:
    """Return the F-measures of ROUGE-1, 2 and L with stemming (official)."""
    if not expected.strip() or not reply.strip():
        return dict.fromkeys(ROUGE_TYPES, 0.0)
    return {name: float(score.fmeasure) for name, score in _rouge_scorer().score(expected, reply).items()}


def sentence_bleu(expected: str, reply: str) -> float:
    """Return the BLEU of one reply, words split at white space, smoothed by method 1 (official)."""
    if not expected.strip() or not reply.strip():
        return 0.0
    smoothing = SmoothingFunction().method1
    return float(nltk_sentence_bleu([expected.split()], reply.split(), smoothing_function=smoothing))


def corpus_bleu(expected: Sequence[str], replies: Sequence[str]) -> float:
    """Return sacrebleu's corpus BLEU with its defaults, as a share."""
    return _bleu_of(np.asarray(_bleu_counts(expected, replies)))


def cloze_correct(expected: str, reply: str) -> bool:
    """Tell whether a reply contains the expected words, ignoring case (official; empty words never are)."""
    return bool(expected.strip()) and expected.lower() in reply.lower()


def likeliest_letter(option_logprobs: Sequence[tuple[str, float, int]]) -> str:
    """Return the option with the highest log-probability per token; the first of equals.

    Per token, for options differ in length and a plain sum prefers the short one whatever it says.
    """
    for letter, total, num_tokens in option_logprobs:
        if num_tokens < 1 or not math.isfinite(total):
            raise ValueError(
                f"option {letter}: expected a finite log-probability of at least one token, "
                f"found {total} of {num_tokens}. Score the options again."
            )
    return max(option_logprobs, key=lambda option: option[1] / option[2])[0]


def cluster_interval(counts_PS: NDArray[np.float64], statistic: Statistic, seed: int) -> tuple[float, float] | None:
    """Return the 95 % percentile bootstrap interval of a statistic of summed counts, resampling rows (people).

    None below 18 rows: so few clusters give intervals that are too narrow (design, section 11).
    """
    P = len(counts_PS)
    if P < MIN_CLUSTERS:
        return None
    weights_DP = np.random.default_rng(seed).multinomial(P, [1 / P] * P, size=BOOTSTRAP_DRAWS)
    low, high = np.quantile([statistic(sums_S) for sums_S in weights_DP @ counts_PS], (0.025, 0.975))
    return float(low), float(high)


def _refuse_duplicates(answers: Sequence[Answer]) -> None:
    if not answers:
        raise DataError(
            "expected answers to score, found none. Run `viker evaluate` without a filter that excludes all."
        )
    seen: set[tuple[str, str, str]] = set()
    for answer in answers:
        key = (answer.model, answer.split, answer.id)
        if key in seen:
            raise DataError(f"expected one answer a question, found {' / '.join(key)} twice. Remove one of them.")
        seen.add(key)


def _cell_records(answers: Sequence[Answer], facts: Sidecar | None, seed: int) -> list[ScoreRecord]:
    """Score answers that share model, split, task and modality: a table of counts a metric, one row a person."""
    by_person: dict[str, list[Answer]] = {}
    for answer in answers:
        by_person.setdefault(answer.person, []).append(answer)
    people = [by_person[person] for person in sorted(by_person)]

    tables: dict[str, tuple[Statistic, list[list[float]]]] = {}
    for person in people:
        for metric, row in _mean_counts(person, facts).items():
            tables.setdefault(metric, (_mean_of, []))[1].append(row)
    if answers[0].task not in ("classification", "cloze"):
        bleu = [_bleu_counts([a.expected for a in person], [a.reply or "" for a in person]) for person in people]
        tables["corpus_bleu"] = (_bleu_of, bleu)
    return [_record(answers[0], metric, *table, seed) for metric, table in tables.items()]


def _record(like: Answer, metric: str, statistic: Statistic, rows: list[list[float]], seed: int) -> ScoreRecord:
    counts_PS = np.asarray(rows, dtype=np.float64)
    sums_S = counts_PS.sum(axis=0)
    return ScoreRecord(
        model=like.model,
        split=like.split,
        task=like.task,
        modality=like.modality,
        metric=metric,
        value=statistic(sums_S),
        n=int(sums_S[-1]),
        ci=cluster_interval(counts_PS, statistic, seed),
        seed=seed,
    )


def _mean_counts(answers: Iterable[Answer], facts: Sidecar | None) -> dict[str, list[float]]:
    """Sum the [value, number] of each metric over one person's answers."""
    counts: dict[str, list[float]] = {}
    for answer in answers:
        hits, asked = _fact_counts(answer, facts)
        scored = [(metric, value, 1) for metric, value in _answer_scores(answer).items()]
        scored += [("fact_recall", float(hits), asked)] if asked else []
        for metric, value, number in scored:
            before = counts.get(metric, [0.0, 0.0])
            counts[metric] = [before[0] + value, before[1] + number]
    return counts


def _answer_scores(answer: Answer) -> dict[str, float]:
    if answer.task == "classification":
        return _choice_scores(answer)
    reply = answer.reply or ""
    if answer.task == "cloze":
        return {"accuracy": float(cloze_correct(answer.expected, reply))}
    logprob = token_logprob(answer)
    texts = rouge(answer.expected, reply) | {"sentence_bleu": sentence_bleu(answer.expected, reply)}
    return texts if logprob is None else texts | {LOGPROB: logprob}


def _choice_scores(answer: Answer) -> dict[str, float]:
    letters = [letter for letter, _ in answer.options]
    scores = {}
    if answer.reply is not None:
        scores["accuracy_letter"] = float(parse_letter(answer.reply, letters) == answer.expected)
    if answer.option_logprobs:
        scores["accuracy_likelihood"] = float(likeliest_letter(answer.option_logprobs) == answer.expected)
    return scores


def _fact_counts(answer: Answer, facts: Sidecar | None) -> tuple[int, int]:
    """Count (recalled, asked) facts of one answer; a letter states none, and without candidates none can be judged."""
    if facts is None or answer.task == "classification":
        return 0, 0
    found = facts.fact_of(answer.expected, answer.person)
    asked = answer.facts or ((found,) if found else ())
    return sum(fact_in(answer.reply or "", kind, word, facts.candidates) for kind, word in asked), len(asked)


@cache
def _rouge_scorer() -> Any:
    return RougeScorer(list(ROUGE_TYPES), use_stemmer=True)


def _mean_of(sums_S: NDArray[np.float64]) -> float:
    return float(sums_S[0] / sums_S[1])


def _bleu_counts(expected: Sequence[str], replies: Sequence[str]) -> list[float]:
    """Return the counts corpus BLEU is made of, which add over people: 4 matches, 4 totals, both lengths, replies."""
    score = sacrebleu.corpus_bleu(list(replies), [list(expected)])
    return [*score.counts, *score.totals, score.sys_len, score.ref_len, len(replies)]


def _bleu_of(sums_S: NDArray[np.float64]) -> float:
    counts = [int(total) for total in sums_S]
    score = BLEU.compute_bleu(counts[:4], counts[4:8], counts[8], counts[9], smooth_method="exp")
    return float(score.score) / 100
