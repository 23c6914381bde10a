"""CLEAR's published table of one model: six tasks, their aggregates, and the distance of forgetting to retain-only.

Source: CLEAR `mm/calculate_metrics.py`, `mm/build_vllm_table.py` and `config/mm/eval.yaml` (reference/benchmarks.md,
section 2.3). Values have their published names. Steps named in `as_published` are taken as their code takes them, the
others as `clear_corrections.py` says.
Retain people are two halves here: `retain-halves` as published takes them together in the order of the source; ours is
the held-out half for every number named Retain, and the other half beside it, named Retain Seen, in no aggregate.
A number that lacks what it needs is None, as is every aggregate over it, and `notes` says why. Forget Quality is as
published of captions; the same of names (`FaceRec`), the KS statistic and what Forget Quality would be of two samples
of one distribution are ours. Rows of one person are not independent draws, which the KS test takes them for: read its
p-value as a distance. No interval is given here; `clear_scores.py` has them for all numbers that are means.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import jensenshannon  # type: ignore[import-untyped]
from scipy.stats import hmean, ks_2samp  # type: ignore[import-untyped]

from ...data.example import DataError
from ..answers import Answer
from .clear import BLIND_SUFFIX
from .clear_metrics import PROBABILITIES, Kind, answer_metrics, kind_of, truth_value
from .clear_scores import log_truth_ratios

TABLE_SCHEMA = "viker/clear-table/1"
OFFICIAL_ROWS = 300  # ds_size of config/mm/eval.yaml
JS_BINS = 10
RELABELLINGS = 200

Floats = NDArray[np.float64]
Rows = dict[str, list[Answer]]  # by task
Values = dict[str, float | None]

REAL, RETAIN, FORGET = "Real", "Retain", "Forget"
# The tasks of each part: the name behind the metric's, and the kind of question.
PARTS: dict[str, tuple[tuple[str, Kind], ...]] = {
    REAL: (("Real Faces", "recognition"), ("Real World", "real-world")),
    RETAIN: (("Retain", "captioning"), ("Retain FaceRec", "recognition")),
    FORGET: (("Forget", "captioning"), ("Forget FaceRec", "recognition")),
}
SEEN: tuple[tuple[str, Kind], ...] = (("Retain Seen", "captioning"), ("Retain Seen FaceRec", "recognition"))
NUMBERS = ("Prob.", "ROUGE", "Truth Ratio")


def clear_table(
    answers: Sequence[Answer],
    retain_only: Sequence[Answer] | None,
    as_published: frozenset[str] = frozenset(),
    seed: int = 0,
) -> dict[str, Any]:
    """Return the published table of one model's answers: `values` by name, `rows` by task, and `notes`.

    `retain_only` are the gold model's answers to the same questions; without them Forget Quality is not measured. The
    seed is that of the relabellings behind `Forget Quality (same distribution)`.

    Raises:
        DataError: answers of several models, or two to one question.
    """
    notes: list[str] = []
    rows = task_rows(answers, as_published)
    for task, uncut in task_rows(answers, as_published - {"first-rows"}).items():
        if len(uncut) > len(rows[task]):
            notes.append(f"{task}: the first {len(rows[task])} of {len(uncut)} rows, as published")
    values: Values = {}
    for task, chosen in rows.items():
        values |= _task_values(task, chosen, rouge_rows(chosen, answers, as_published), as_published, notes)
    values |= _aggregates(values, notes)
    values |= _forget_quality(rows, retain_only, as_published, seed, notes)
    counts = {task: len(chosen) for task, chosen in rows.items()}
    return {
        "schema": TABLE_SCHEMA, "as_published": sorted(as_published), "values": values, "rows": counts, "notes": notes
    }  # fmt: skip


def task_rows(answers: Sequence[Answer], as_published: frozenset[str]) -> Rows:
    """Return the answers of each task in the order of the source, cut where that is as published.

    Raises:
        DataError: answers of several models, or two to one question.
    """
    _refuse_mixed(answers)
    joins_halves = "retain-halves" in as_published
    splits = {
        REAL: ("real",), RETAIN: ("retain-seen", "retain-heldout") if joins_halves else ("retain-heldout",),
        FORGET: ("forget",),
    }  # fmt: skip
    tasks = [(task, kind, splits[part]) for part, pairs in PARTS.items() for task, kind in pairs]
    tasks += [] if joins_halves else [(task, kind, ("retain-seen",)) for task, kind in SEEN]
    most = OFFICIAL_ROWS if "first-rows" in as_published else None
    return {
        task: sorted((answer for answer in answers if answer.split in chosen and kind_of(answer) == kind),
                     key=_source_order)[:most]
        for task, kind, chosen in tasks
    }  # fmt: skip


def _refuse_mixed(answers: Sequence[Answer]) -> None:
    models = sorted({answer.model for answer in answers})
    if len(models) > 1:
        raise DataError(f"expected the answers of one model, found {', '.join(models)}. Make one table a model.")
    seen: set[tuple[str, str]] = set()
    for answer in answers:
        if (answer.split, answer.id) in seen:
            raise DataError(f"expected one answer a question, found {answer.split} / {answer.id} twice. Remove one.")
        seen.add((answer.split, answer.id))


def _source_order(answer: Answer) -> list[tuple[int, str]]:
    """Order ids by the numbers in them, so that row 10 is behind row 9, whatever half its person is in."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", answer.id)]


def rouge_rows(rows: Sequence[Answer], answers: Sequence[Answer], as_published: frozenset[str]) -> list[Answer | None]:
    """Return for each row the answer whose reply ROUGE scores: its own, or as published that without the picture."""
    if "rouge-text-only" not in as_published:
        return list(rows)
    blind = {(answer.split, answer.id): answer for answer in answers if answer.id.endswith(BLIND_SUFFIX)}
    return [blind.get((row.split, row.id + BLIND_SUFFIX)) for row in rows]


def _task_values(
    task: str,
    rows: Sequence[Answer],
    shown: Sequence[Answer | None],
    as_published: frozenset[str],
    notes: list[str],
) -> Values:
    """Return Prob., ROUGE and Truth Ratio of one task."""
    kind = kind_of(rows[0]) if rows else None
    if kind is None:
        notes.append(f"{task}: not measured, no answers were given")
        return dict.fromkeys(f"{number} {task}" for number in NUMBERS)
    ratios = log_truth_ratios(rows, as_published)
    measured = {
        "Prob.": [PROBABILITIES[kind](row) for row in rows],
        "ROUGE": [None if row is None else answer_metrics(row, as_published)["rougeL_recall"] for row in shown],
        "Truth Ratio": [
            None if ratio is None else truth_value(ratio, row.split) for row, ratio in zip(rows, ratios, strict=True)
        ],
    }
    return {f"{number} {task}": _mean(f"{number} {task}", values, notes) for number, values in measured.items()}


def _mean(name: str, measured: Sequence[float | None], notes: list[str]) -> float | None:
    """Return the mean of what was measured, and note how many rows lack what the number needs."""
    values = [value for value in measured if value is not None]
    if len(values) < len(measured):
        reason = "lack what it needs (see clear_metrics.py; as published, ROUGE needs replies without the picture)"
        state = "not measured, all" if not values else f"of {len(values)} rows,"
        notes.append(f"{name}: {state} {len(measured) - len(values)} rows {reason}")
    return float(np.mean(values)) if values else None


def _aggregates(values: Values, notes: list[str]) -> Values:
    """Return the harmonic means: of Prob. and Truth Ratio by part, and over all numbers of no forget or seen task."""
    groups = {
        f"{part} metric": [f"{number} {task}" for task, _ in pairs for number in ("Prob.", "Truth Ratio")]
        for part, pairs in PARTS.items()
    }
    kept = [task for part in (REAL, RETAIN) for task, _ in PARTS[part]]
    groups["Model Utility"] = [f"{number} {task}" for task in kept for number in NUMBERS]
    found: Values = {}
    for name, parts in groups.items():
        numbers = [values[part] for part in parts]
        missing = [part for part, number in zip(parts, numbers, strict=True) if number is None]
        if missing:
            notes.append(f"{name}: not measured without {', '.join(missing)}")
        found[name] = None if missing else float(hmean(numbers))
    return found


def _forget_quality(
    rows: Rows, retain_only: Sequence[Answer] | None, as_published: frozenset[str], seed: int, notes: list[str]
) -> Values:
    """Return how far the truth ratios of the forget rows are from those of the gold model, for captions and names."""
    names = ("Forget Quality", "Forget Quality (same distribution)", "JS metric", "KS test statistic",
             "KS test p-value")  # fmt: skip
    gold = task_rows(retain_only, as_published) if retain_only else {}
    found: Values = {}
    for task, _ in PARTS[FORGET]:
        behind = task.removeprefix(FORGET)
        pair = _paired_ratios(rows[task], gold.get(task, []), as_published)
        lacking = max(len(rows[task]), len(gold.get(task, []))) - len(pair[0])
        if not len(pair[0]):
            reason = "no retain-only answers were given" if not retain_only else "no row has both models' truth ratios"
            notes.append(f"Forget Quality{behind}: not measured, {reason}")
            found |= dict.fromkeys(name + behind for name in names)
            continue
        if lacking:
            notes.append(f"Forget Quality{behind}: {lacking} rows lack the truth ratio of one of the models")
        test = ks_2samp(*pair)
        distance = js_distance(*pair, as_published)
        same = _same_distribution(*pair, as_published, seed)
        numbers = (1 - distance, 1 - same, distance, float(test.statistic), float(test.pvalue))
        found |= {name + behind: number for name, number in zip(names, numbers, strict=True)}
    return found


def _paired_ratios(
    unlearned: Sequence[Answer], gold: Sequence[Answer], as_published: frozenset[str]
) -> tuple[Floats, Floats]:
    """Return log R of the rows that both models have, in the order of the source."""
    ratios = [
        {answer.id: ratio for answer, ratio in zip(rows, log_truth_ratios(rows, as_published), strict=True)
         if ratio is not None}
        for rows in (unlearned, gold)
    ]  # fmt: skip
    both = [question for question in ratios[0] if question in ratios[1]]
    first, second = (np.asarray([found[question] for question in both], dtype=np.float64) for found in ratios)
    return first, second


def js_distance(unlearned: Floats, gold: Floats, as_published: frozenset[str]) -> float:
    """Return the Jensen-Shannon distance of two samples of log truth ratios.

    Ours: of their histograms between the pooled deciles, in bits, so that it is in [0, 1] and depends on the order of
    the values alone, as KS does. As published, the ratios themselves stand for probabilities of rows
    (`js-raw-vectors`), and logarithms are natural (`js-base`).
    """
    if "js-raw-vectors" in as_published:
        # The distance divides each vector by its sum, so a common factor of one of them changes nothing.
        weights = [np.exp(sample - sample.max()) for sample in (unlearned, gold)]
    else:
        edges = np.unique(np.quantile(np.concatenate([unlearned, gold]), np.arange(1, JS_BINS) / JS_BINS))
        weights = [
            np.bincount(np.searchsorted(edges, sample, side="right"), minlength=len(edges) + 1)
            for sample in (unlearned, gold)
        ]
    with np.errstate(invalid="ignore"):  # of vectors that are equal but for rounding, the square root of -1e-17
        distance = float(jensenshannon(*weights, base=None if "js-base" in as_published else 2))
    return 0.0 if np.isnan(distance) else distance


def _same_distribution(unlearned: Floats, gold: Floats, as_published: frozenset[str], seed: int) -> float:
    """Return the mean distance when the values are dealt to the two models at random: what equal models would show."""
    rng, pooled = np.random.default_rng(seed), np.concatenate([unlearned, gold])
    draws = [np.split(rng.permutation(pooled), [len(unlearned)]) for _ in range(RELABELLINGS)]
    return float(np.mean([js_distance(first, second, as_published) for first, second in draws]))
