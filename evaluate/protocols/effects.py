"""What each correction changes: the same model under `fixed`, under `official`, and with one correction reverted.

A *variant* is `fixed`, `official` or the name of one reverted correction. A variant that is asked otherwise needs its
own answers; one that only reads replies otherwise (`RESCORED`) is scored from those of `fixed`. Only means are compared
here: which answers belong to which variant is the caller's to know.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from ...data.example import DataError
from ...data.sidecar import Sidecar
from ..answers import Answer
from ..recall import fact_recall_by_person
from .corrections import CORRECTIONS, as_published
from .metrics import answer_scores
from .mllmu import MODES

RESCORED = frozenset(name for name, correction in CORRECTIONS.items() if correction.step in ("parsing", "metric"))

_SHOWN = {
    "classification": ("accuracy", "accuracy_letter"),
    "cloze": ("accuracy",),
    "generation": ("rougeL", "sentence_bleu"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Effect:
    """One number of one variant; `change` is its difference from `fixed`, and `n` the answers it is a mean over."""

    model: str
    variant: str
    mode: str
    task: str
    modality: str
    metric: str
    value: float
    change: float
    n: int


def effects(answers_by_variant: Mapping[str, Sequence[Answer]], facts: Sidecar | None) -> list[Effect]:
    """Return the numbers of every variant beside those of `fixed`, by model, mode, task, modality and metric.

    `answers_by_variant` holds `fixed` and each variant that was asked by itself; `RESCORED` ones are added here.

    Raises:
        DataError: there are no answers of `fixed`, or a variant is no correction.
    """
    if "fixed" not in answers_by_variant:
        raise DataError(f"expected answers of the variant fixed, found {', '.join(answers_by_variant) or 'none'}.")
    rescored = {name: answers_by_variant["fixed"] for name in CORRECTIONS if name in RESCORED}
    numbers = {
        variant: _means(answers, published_of(variant), facts)
        for variant, answers in (rescored | dict(answers_by_variant)).items()
    }
    order = [name for name in ("fixed", "official", *CORRECTIONS) if name in numbers]
    return [
        Effect(
            model=model, variant=variant, mode=mode, task=task, modality=modality, metric=metric, value=value, n=n,
            change=value - numbers["fixed"][model, mode, task, modality, metric][0],
        )
        for variant in order
        for (model, mode, task, modality, metric), (value, n) in numbers[variant].items()
        if (model, mode, task, modality, metric) in numbers["fixed"]
    ]  # fmt: skip


def published_of(variant: str) -> frozenset[str]:
    """Return the steps a variant takes as published."""
    if variant == "official":
        return as_published("official")
    return as_published("fixed", () if variant == "fixed" else (variant,))


Cell = tuple[str, str, str, str]  # model, mode, task, modality
Numbers = dict[tuple[str, str, str, str, str], tuple[float, int]]  # (cell, metric) -> (mean, how many)


def _means(answers: Sequence[Answer], published: frozenset[str], facts: Sidecar | None) -> Numbers:
    cells: dict[Cell, list[Answer]] = {}
    for answer in answers:
        mode = MODES.get(answer.split, answer.split)
        cells.setdefault((answer.model, mode, answer.task, answer.modality), []).append(answer)
    numbers: Numbers = {}
    for cell, of_cell in cells.items():
        scores = [answer_scores(answer, published) for answer in of_cell]
        for metric in _SHOWN.get(cell[2], ()):
            if values := [score[metric] for score in scores if metric in score]:
                numbers[*cell, metric] = (fmean(values), len(values))
        recall = fact_recall_by_person(of_cell, facts).values()
        if asked := sum(number for _, number in recall):
            numbers[*cell, "fact_recall"] = (sum(hits for hits, _ in recall) / asked, asked)
    return numbers


def effects_table(
    rows: Sequence[Effect], modality: str = "image", modes: Sequence[str] = ("forget", "test", "retain")
) -> str:
    """Return effects as a Markdown table: a line a model and variant, a column a mode and metric, as shares."""
    shown = [row for row in rows if row.modality == modality and row.mode in modes]
    columns = list(dict.fromkeys((row.mode, row.task, row.metric) for row in shown))
    columns.sort(key=lambda column: modes.index(column[0]))
    values = {(row.model, row.variant, row.mode, row.task, row.metric): f"{row.value:.3f}" for row in shown}
    lines = [f"| model | variant | {' | '.join(map(' '.join, columns))} |", "|---" * (2 + len(columns)) + "|"]
    for model, variant in dict.fromkeys((row.model, row.variant) for row in shown):
        cells = [values.get((model, variant, *column), "-") for column in columns]
        lines.append(f"| {model} | {variant} | {' | '.join(cells)} |")
    return "\n".join(lines)
