"""Several evaluations that differ only by their seed, as one: intervals over all people, spread over the runs.

A person of one world is a cluster ("world/person") however many runs asked about them: two training seeds on one world
give no new people, two worlds do, so a caller names runs of one world alike. `value` and its interval are over all
answers pooled; `run_mean` and `run_sd` are over the runs, each counting once, and the latter is None for a single run.
The two spreads answer different questions: what other people would give, and what another seed would.
Only one model at a time: the caller pools runs of what is one method with one set of options.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean, stdev
from typing import Any

from ...data.example import DataError
from ...data.sidecar import Sidecar
from ..answers import Answer
from ..score import corpus_bleu, score_answers
from .per_answer import Cell, Scored, cells, metrics_of, scored, sums_by_cluster
from .statistics import Interval, clustered_mean

POOLED_SCHEMA = "viker/pooled/1"
BLEU = "corpus_bleu"
_WITHOUT_BLEU = ("classification", "cloze")

Evaluation = tuple[str, Sequence[Answer], Sidecar | None]  # world, answers of one model, its private words


@dataclass(frozen=True, kw_only=True, slots=True)
class Pooled:
    """One metric over `n` answers about `clusters` people (world/person) in `runs` evaluations."""

    split: str
    task: str
    modality: str
    metric: str
    value: float
    ci: Interval | None
    n: int
    clusters: int
    runs: int
    run_mean: float
    run_sd: float | None


def pool(evaluations: Sequence[Evaluation], seed: int) -> list[Pooled]:
    """Return every metric of every cell over all evaluations that have it.

    A run whose answers lack a metric is not in its `runs`. Raises `DataError` where there is nothing to pool.
    """
    if not evaluations:
        raise DataError("expected evaluations to pool, found none. Evaluate a model first.")
    runs = [cells(scored(answers, facts, world)) for world, answers, facts in evaluations]
    return [
        record
        for cell in sorted({cell for run in runs for cell in run})
        for record in _cell_records(cell, [run[cell] for run in runs if cell in run], seed)
    ]


def pooled_json(records: Iterable[Pooled]) -> dict[str, Any]:
    """Return pooled records ready for `json.dump`."""
    pooled = [asdict(record) | {"ci": list(record.ci) if record.ci else None} for record in records]
    return {"schema": POOLED_SCHEMA, "pooled": pooled}


def _cell_records(cell: Cell, runs: Sequence[Sequence[Scored]], seed: int) -> list[Pooled]:
    everything = [item for run in runs for item in run]
    found = []
    for metric in metrics_of(everything):
        mean = clustered_mean(sums_by_cluster(everything, metric), seed)
        by_run = [fmean(values) for run in runs if (values := _values(run, metric))]
        found.append(
            Pooled(
                **cell._asdict(),
                metric=metric,
                value=mean.value,
                ci=mean.ci,
                n=mean.n,
                clusters=mean.clusters,
                **_spread(by_run),
            )
        )
    return found if cell.task in _WITHOUT_BLEU else [*found, _bleu_record(cell, runs, seed)]


def _values(items: Iterable[Scored], metric: str) -> list[float]:
    return [item.values[metric] for item in items if metric in item.values]


def _bleu_record(cell: Cell, runs: Sequence[Sequence[Scored]], seed: int) -> Pooled:
    """Return corpus BLEU, which is no mean over answers, with the interval that `score.py` makes of its counts."""
    relabelled = [
        replace(item.answer, model="", person=item.cluster, id=f"{number}/{item.answer.id}")
        for number, run in enumerate(runs)
        for item in run
    ]
    [score] = [record for record in score_answers(relabelled, None, seed) if record.metric == BLEU]
    by_run = [corpus_bleu([i.answer.expected for i in run], [i.answer.reply or "" for i in run]) for run in runs]
    return Pooled(
        **cell._asdict(), metric=BLEU, value=score.value, ci=score.ci, n=score.n,
        clusters=len({answer.person for answer in relabelled}), **_spread(by_run),
    )  # fmt: skip


def _spread(by_run: Sequence[float]) -> dict[str, Any]:
    return {
        "runs": len(by_run), "run_mean": fmean(by_run), "run_sd": stdev(by_run) if len(by_run) > 1 else None,
    }  # fmt: skip
