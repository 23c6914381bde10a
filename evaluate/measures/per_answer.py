"""One answer's values by metric: the only table from which means, differences and tests are made.

A metric that an answer holds nothing for is absent, so that no mean is pulled to zero by a question that was not asked.
Texts are compared by `protocols/`, tokens by `memorization.py` and `truth_ratio.py`; corpus BLEU is a property of a
set of answers and not here. A fact recall is the share of the facts this answer must hold. Letters state no fact.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from ...data.sidecar import Sidecar
from ..answers import LOGPROB, Answer, token_logprob
from ..protocols import clear_metrics, metrics
from ..protocols.clear import OPTION_SUFFIX
from ..recall import fact_counts
from .coherence import speech_scores
from .memorization import answer_probability, exact_memorization, extraction_strength
from .truth_ratio import probability_among_options, truth_ratio, truth_share

OF_TOKENS = {
    LOGPROB: token_logprob,
    "answer_probability": answer_probability,
    "extraction_strength": extraction_strength,
    "exact_memorization": exact_memorization,
    "truth_ratio": truth_ratio,
    "truth_share": truth_share,
    "probability_among_options": probability_among_options,
}


CLEAN, CLEAN_RATE = "gibberish_p_clean", "gibberish_clean_rate"  # of a detector: higher is more like speech


class Cell(NamedTuple):
    """What values are never averaged over."""

    split: str
    task: str
    modality: str


class Scored(NamedTuple):
    """An answer, its values by metric, and the cluster whose answers stand or fall together."""

    answer: Answer
    values: Mapping[str, float]
    cluster: str


def per_answer(answer: Answer, facts: Sidecar | None, as_published: frozenset[str] = frozenset()) -> dict[str, float]:
    """Return the values of one answer by metric.

    `facts` is needed for `fact_recall` only; steps named in `as_published` are taken as the published code takes them.
    """
    values = _of_text(answer, as_published) | _of_facts(answer, facts) | _of_grade(answer)
    for metric, measure in OF_TOKENS.items():
        value = measure(answer)
        if value is not None:
            values[metric] = value
    return values


def scored(answers: Iterable[Answer], facts: Sidecar | None, world: str | None = None) -> list[Scored]:
    """Return every answer with its values; clusters are people, or "world/person" where worlds are pooled."""
    prefix = "" if world is None else f"{world}/"
    return [Scored(answer, per_answer(answer, facts), prefix + answer.person) for answer in answers]


def cells(items: Iterable[Scored]) -> dict[Cell, list[Scored]]:
    """Group answers by split, task and modality, cells in order, answers in theirs."""
    found: dict[Cell, list[Scored]] = {}
    for item in items:
        found.setdefault(cell_of(item), []).append(item)
    return dict(sorted(found.items()))


def cell_of(item: Scored) -> Cell:
    """Return the cell an answer belongs to."""
    return Cell(item.answer.split, item.answer.task, item.answer.modality)


def metrics_of(items: Iterable[Scored]) -> list[str]:
    """Return the metrics that any of the answers has, in the order they first appear."""
    return list(dict.fromkeys(metric for item in items for metric in item.values))


def sums_by_cluster(items: Iterable[Scored], metric: str) -> dict[str, tuple[float, int]]:
    """Return each cluster's (sum of the metric, number of answers that have it), clusters without any left out."""
    sums: dict[str, tuple[float, int]] = {}
    for item in items:
        if metric in item.values:
            total, number = sums.get(item.cluster, (0.0, 0))
            sums[item.cluster] = (total + item.values[metric], number + 1)
    return sums


def _of_text(answer: Answer, as_published: frozenset[str]) -> dict[str, float]:
    """Return what the protocols make of the reply, and how it is spoken; letters among names are parsed as CLEAR's."""
    if answer.id.endswith(OPTION_SUFFIX):
        return clear_metrics.answer_scores(answer, as_published)
    values = metrics.answer_scores(answer, as_published)
    if answer.task in ("classification", "cloze"):
        return values
    spoken = speech_scores(answer.reply or "", answer.fluency, answer.fluency_median)
    return values | clear_metrics.answer_scores(answer, as_published) | spoken


def _of_facts(answer: Answer, facts: Sidecar | None) -> dict[str, float]:
    hits, asked = fact_counts(answer, facts)
    return {"fact_recall": hits / asked} if asked else {}


def _of_grade(answer: Answer) -> dict[str, float]:
    return {} if answer.clean is None else {CLEAN: answer.clean[0], CLEAN_RATE: float(answer.clean[1])}
