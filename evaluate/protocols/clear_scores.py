"""Long-form scores of CLEAR's kept answers, with intervals that resample people, and what could not be measured.

One record a (model, split, task, modality, metric), a mean over answers, as `../score.py` makes them for MLLMU. Splits
stay apart: the retain people a retain term may train on (`retain-seen`) are never averaged with the held-out ones.
Two published steps need several rows at once and are taken here: the truth ratio of a row from the wrong answers of all
(`truth-ratio-mean`), and text questions scored by the last caption (`qa-last-reply`). Metrics of one answer are
`clear_metrics.py`'s; the published table, which mixes tasks, is `clear_table.py`'s.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from ..answers import Answer
from ..measures.statistics import cluster_interval
from ..score import ScoreRecord
from .clear_metrics import (
    answer_metrics,
    kind_of,
    log_truth_ratio,
    truth_loss,
    truth_value,
    wrong_losses,
)

Cell = tuple[str, str, str, str]  # model, split, task, modality
_TRUTH_RATIO = "truth_ratio"


def clear_scores(answers: Iterable[Answer], seed: int, as_published: frozenset[str] = frozenset()) -> list[ScoreRecord]:
    """Score CLEAR's answers; a metric that no answer of a cell allows has no record (`unmeasured` counts them)."""
    return [
        _record(cell, metric, people, seed)
        for cell, rows in _cells(answers, as_published).items()
        for metric, people in _sums_by_person(rows, as_published).items()
    ]


def unmeasured(
    answers: Iterable[Answer], as_published: frozenset[str] = frozenset()
) -> dict[tuple[str, str, str, str, str], int]:
    """Count by (model, split, task, modality, metric) the answers that lack what a metric of their kind needs."""
    return dict(
        Counter(
            (*cell, metric)
            for cell, rows in _cells(answers, as_published).items()
            for answer in rows
            for metric, value in answer_metrics(answer, as_published).items()
            if value is None
        )
    )


def log_truth_ratios(answers: Sequence[Answer], as_published: frozenset[str]) -> list[float | None]:
    """Return log R of each row of one file, in nats; None where it lacks its paraphrase or wrong answers.

    As published (`truth-ratio-mean`) the loss of wrong answers is one mean over the file's rows and wrong answers.
    """
    own = [log_truth_ratio(answer) for answer in answers]
    if "truth-ratio-mean" not in as_published:
        return own
    wrong = [loss for answer, ratio in zip(answers, own, strict=True) if ratio is not None
             for loss in wrong_losses(answer)]  # fmt: skip
    mean = float(np.mean(wrong)) if wrong else 0.0
    return [
        None if ratio is None or (truth := truth_loss(answer)) is None else mean - truth
        for answer, ratio in zip(answers, own, strict=True)
    ]


def _cells(answers: Iterable[Answer], as_published: frozenset[str]) -> dict[Cell, list[Answer]]:
    """Return the answers of each cell, in order; text questions with the reply they are scored by."""
    scored = _with_last_reply(list(answers)) if "qa-last-reply" in as_published else list(answers)
    cells: dict[Cell, list[Answer]] = {}
    for answer in scored:
        cells.setdefault((answer.model, answer.split, answer.task, answer.modality), []).append(answer)
    return {cell: cells[cell] for cell in sorted(cells)}


def _with_last_reply(answers: Sequence[Answer]) -> list[Answer]:
    """Give text questions the reply to the last captioned picture of their model and split (published)."""
    last = {(answer.model, answer.split): answer.reply for answer in answers if kind_of(answer) == "captioning"}
    return [
        replace(answer, reply=last[answer.model, answer.split])
        if kind_of(answer) == "qa" and last.get((answer.model, answer.split)) is not None
        else answer
        for answer in answers
    ]


def _sums_by_person(rows: Sequence[Answer], as_published: frozenset[str]) -> dict[str, list[tuple[float, int]]]:
    """Return for each metric of one cell the (sum, number) of every person, people in the order of their names."""
    sums: dict[str, dict[str, tuple[float, int]]] = {}
    for answer, ratio in zip(rows, log_truth_ratios(rows, as_published), strict=True):
        values = answer_metrics(answer, as_published)
        if _TRUTH_RATIO in values:
            values[_TRUTH_RATIO] = None if ratio is None else truth_value(ratio, answer.split)
        for metric, value in values.items():
            if value is not None:
                people = sums.setdefault(metric, {})
                total, number = people.get(answer.person, (0.0, 0))
                people[answer.person] = (total + value, number + 1)
    return {metric: [people[person] for person in sorted(people)] for metric, people in sorted(sums.items())}


def _record(cell: Cell, metric: str, people: Sequence[tuple[float, int]], seed: int) -> ScoreRecord:
    model, split, task, modality = cell
    counts_P2 = np.asarray(people, dtype=np.float64)
    total, number = counts_P2.sum(axis=0)
    return ScoreRecord(
        model=model, split=split, task=task, modality=modality, metric=metric, value=float(total / number),
        n=int(number), ci=cluster_interval(counts_P2, lambda sums: float(sums[0] / sums[1]), seed), seed=seed,
    )  # fmt: skip
