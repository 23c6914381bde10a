"""From kept answers to numbers, without a model: long-form scores of every split, task, modality, and person.

Source: MLLMU-Bench `eval.py` (commit 0e3098e; reference/benchmarks.md, section 1.5); design, sections 4 and 11. What
one answer is worth is `measures/per_answer.py`'s. Every value is a share in [0, 1], where the official code prints
accuracies times 100, but for `answer_logprob` and `fluency`, which are nats a token. A score is a function of counts
that add up over people, so its interval resamples people: answers about one person stand or fall together. A caller
that pools worlds puts the world into `person`. Corpus BLEU is a property of all answers of a cell, and 0 for one-word
answers. Empty replies and empty expectations are 0, never skipped. Asking is `questions.py`'s and `generate.py`'s work,
what is kept of it `answers.py`'s; comparing methods is `matched.py`'s, tables are the report's.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import sacrebleu
from numpy.typing import NDArray
from sacrebleu.metrics.bleu import BLEU

from ..data.example import DataError
from ..data.sidecar import Sidecar
from .answers import Answer
from .measures.per_answer import per_answer
from .measures.statistics import Statistic, cluster_interval
from .recall import fact_counts

SCORES_SCHEMA = "viker/scores/2"
NO_BLEU = ("classification", "cloze")
FACTS = "fact_recall"

# P people, S counts that add up over people (the last is always how many were scored).


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


@dataclass(frozen=True, kw_only=True, slots=True)
class PersonScore:
    """One metric of one person, over `n` answers (facts, for `fact_recall`); too few for an interval."""

    model: str
    split: str
    task: str
    modality: str
    person: str
    metric: str
    value: float
    n: int


Cell = tuple[str, str, str, str]  # model, split, task, modality
Counts = dict[str, list[float]]  # metric -> [sum of values, number]


def score_answers(
    answers: Sequence[Answer], facts: Sidecar | None, seed: int, as_published: frozenset[str] = frozenset()
) -> list[ScoreRecord]:
    """Score kept answers by model, split, task and modality.

    Args:
        answers: at least one, none of them twice.
        facts: needed for `fact_recall` only.
        seed: of the intervals.
        as_published: steps to take as the published code takes them (`protocols/corrections.py`).
    """
    _refuse_duplicates(answers)
    return [
        record
        for cell, people in sorted(_cells(answers).items())
        for record in _cell_records(cell, people, facts, seed, as_published)
    ]


def person_scores(
    answers: Sequence[Answer], facts: Sidecar | None, as_published: frozenset[str] = frozenset()
) -> list[PersonScore]:
    """Score kept answers by person too: who was forgotten, and who was not, behind a mean over all of them."""
    return [
        PersonScore(**_named(cell), person=person, metric=metric, value=total / number, n=int(number))
        for cell, people in sorted(_cells(answers).items())
        for person, theirs in sorted(people.items())
        for metric, (total, number) in _mean_counts(theirs, facts, as_published).items()
    ]


def scores_json(records: Iterable[ScoreRecord], people: Iterable[PersonScore] = ()) -> dict[str, Any]:
    """Return the content of `scores.json`, ready for `json.dump`."""
    scores = [asdict(record) | {"ci": list(record.ci) if record.ci else None} for record in records]
    return {"schema": SCORES_SCHEMA, "scores": scores, "people": [asdict(record) for record in people]}


def corpus_bleu(expected: Sequence[str], replies: Sequence[str]) -> float:
    """Return sacrebleu's corpus BLEU with its defaults, as a share."""
    return _bleu_of(np.asarray(_bleu_counts(expected, replies)))


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


def _cells(answers: Iterable[Answer]) -> dict[Cell, dict[str, list[Answer]]]:
    """Group answers by model, split, task and modality, then by person."""
    cells: dict[Cell, dict[str, list[Answer]]] = {}
    for answer in answers:
        cell = cells.setdefault((answer.model, answer.split, answer.task, answer.modality), {})
        cell.setdefault(answer.person, []).append(answer)
    return cells


def _named(cell: Cell) -> dict[str, str]:
    return dict(zip(("model", "split", "task", "modality"), cell, strict=True))


def _cell_records(
    cell: Cell, people: dict[str, list[Answer]], facts: Sidecar | None, seed: int, as_published: frozenset[str]
) -> list[ScoreRecord]:
    """Score answers of one cell: a table of counts a metric, one row a person."""
    tables: dict[str, tuple[Statistic, list[list[float]]]] = {}
    for _, theirs in sorted(people.items()):
        for metric, row in _mean_counts(theirs, facts, as_published).items():
            tables.setdefault(metric, (_mean_of, []))[1].append(row)
        if cell[2] not in NO_BLEU:
            counts = _bleu_counts([given.expected for given in theirs], [given.reply or "" for given in theirs])
            tables.setdefault("corpus_bleu", (_bleu_of, []))[1].append(counts)
    return [_record(cell, metric, *table, seed) for metric, table in tables.items()]


def _record(cell: Cell, metric: str, statistic: Statistic, rows: list[list[float]], seed: int) -> ScoreRecord:
    counts_PS = np.asarray(rows, dtype=np.float64)
    sums_S = counts_PS.sum(axis=0)
    return ScoreRecord(
        **_named(cell),
        metric=metric,
        value=statistic(sums_S),
        n=int(sums_S[-1]),
        ci=cluster_interval(counts_PS, statistic, seed),
        seed=seed,
    )


def _mean_counts(answers: Iterable[Answer], facts: Sidecar | None, as_published: frozenset[str]) -> Counts:
    """Sum the [value, number] of each metric over one person's answers; facts count each by itself."""
    counts: Counts = {}
    for answer in answers:
        for metric, value in per_answer(answer, facts, as_published).items():
            hits, number = fact_counts(answer, facts) if metric == FACTS else (value, 1)
            before = counts.get(metric, [0.0, 0.0])
            counts[metric] = [before[0] + hits, before[1] + number]
    return counts


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
