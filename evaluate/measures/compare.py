"""Is one model's answer to the same question better than another's? Paired tests of two models, adjusted together.

`viker evaluate --compare A B` asks it of two evaluations of one world or of several. Questions are matched by world,
split and id; a person's value is the mean difference over their questions that both models were asked, and the test is
over people (world/person). Means of A and B are means over the same people of their means, so that B minus A is the
difference tested; `scores.json` has means over answers, which differ where people have different numbers of questions.
All tests of one comparison are one family: Holm's adjusted p-values stand beside the raw ones. Questions that one side
lacks are counted, and so are answers that lack a metric on either side.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from ...data.example import DataError
from ...data.sidecar import Sidecar
from ..answers import Answer
from .pairs import Pair, cluster_means, difference_sums, matched_by_id, with_metric
from .per_answer import Cell, cell_of, metrics_of, scored, sums_by_cluster
from .statistics import MIN_CLUSTERS, Interval, holm, paired_test

COMPARE_SCHEMA = "viker/compare/1"
_HEADINGS = ("split", "task", "modality", "metric", "A", "B", "B - A", "95 % interval", "n", "p", "Holm p")


@dataclass(frozen=True, kw_only=True, slots=True)
class Compared:
    """One metric of B minus A in one cell.

    It is over `questions` about `n` people; `without` were asked of both models and lack the metric on a side.
    """

    split: str
    task: str
    modality: str
    metric: str
    a: float
    b: float
    difference: float
    questions: int
    without: int
    n: int
    ci: Interval | None
    p: float
    p_holm: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """All tests of two models, and how many questions only one of them was asked."""

    records: tuple[Compared, ...]
    worlds: tuple[str, ...]
    only_a: int
    only_b: int


def compare(
    worlds: Sequence[tuple[str, Sequence[Answer], Sequence[Answer]]],
    facts: Mapping[str, Sidecar | None],
    seed: int,
    metrics: Collection[str] | None = None,
) -> Comparison:
    """Compare two models over worlds, each given as (name, answers of A, answers of B).

    `facts` holds the sidecar of each world that has one; `metrics` are those to test, all without it: fewer tests lose
    less to the adjustment, if they are chosen before looking. Raises `DataError` where a world is named twice, or the
    models share no question or none of the metrics.
    """
    names = [name for name, _, _ in worlds]
    if len(set(names)) < len(names):
        raise DataError(f"--compare: expected every world once, found {', '.join(names)}. Remove one of them.")
    pairs: list[Pair] = []
    only_a = only_b = 0
    for name, answers_a, answers_b in worlds:
        a, b = scored(answers_a, facts.get(name), name), scored(answers_b, facts.get(name), name)
        matched = matched_by_id(b, a)
        pairs += matched
        only_a, only_b = only_a + len(a) - len(matched), only_b + len(b) - len(matched)
    if not pairs:
        raise DataError(
            f"--compare: expected evaluations of the same questions, found none in common ({only_a} of A, {only_b} of "
            "B). Compare models of one run, or of runs on the same data."
        )
    records = _records(pairs, metrics, seed)
    if not records:
        known = ", ".join(metrics_of(b for b, _ in pairs))
        raise DataError(
            f"--compare: expected metrics that both models have, found none of {', '.join(metrics or ())}. "
            f"Choose among {known}."
        )
    return Comparison(records=records, worlds=tuple(names), only_a=only_a, only_b=only_b)


def as_json(comparison: Comparison, name_a: str, name_b: str) -> dict[str, Any]:
    """Return a comparison ready for `json.dump`."""
    records = [asdict(record) | {"ci": list(record.ci) if record.ci else None} for record in comparison.records]
    return {
        "schema": COMPARE_SCHEMA, "a": name_a, "b": name_b, "worlds": list(comparison.worlds),
        "only_a": comparison.only_a, "only_b": comparison.only_b, "tests": len(records), "records": records,
    }  # fmt: skip


def as_text(comparison: Comparison, name_a: str, name_b: str) -> str:
    """Return a comparison as a plain table, with what was left out beneath it."""
    rows = [_HEADINGS, *map(_row, comparison.records)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines = [f"A = {name_a}, B = {name_b}; worlds: {', '.join(comparison.worlds)}", *table]
    lines.append(
        f"Means over people; sign-flip tests over people, adjusted (Holm) over all {len(comparison.records)} tests."
    )
    fewest = min(record.n for record in comparison.records)
    if fewest < MIN_CLUSTERS:
        lines.append(
            f"No interval (-): fewer than {MIN_CLUSTERS} people. A test over {fewest} has no p-value below "
            f"{2.0 ** (1 - fewest):.2g} whatever the answers."
        )
    if comparison.only_a or comparison.only_b:
        lines.append(f"Left out: {comparison.only_a} questions asked of A only, {comparison.only_b} of B only.")
    without = sum(record.without for record in comparison.records)
    if without:
        lines.append(f"Left out: {without} values that an answer of either side does not hold.")
    return "\n".join(lines)


def _records(pairs: Sequence[Pair], metrics: Collection[str] | None, seed: int) -> tuple[Compared, ...]:
    """Return one record a cell and metric, of pairs (answer of B, answer of A)."""
    by_cell: dict[Cell, list[Pair]] = {}
    for pair in pairs:
        by_cell.setdefault(cell_of(pair[0]), []).append(pair)
    found = [
        _tested(cell, metric, shared, len(by_cell[cell]) - len(shared), seed)
        for cell in sorted(by_cell)
        for metric in metrics_of(b for b, _ in by_cell[cell])
        if (metrics is None or metric in metrics) and (shared := with_metric(by_cell[cell], metric))
    ]
    adjusted = holm([record["p"] for record in found])
    return tuple(Compared(**record, p_holm=p) for record, p in zip(found, adjusted, strict=True))


def _tested(cell: Cell, metric: str, pairs: Sequence[Pair], without: int, seed: int) -> dict[str, Any]:
    """Return a record but for its adjusted p-value."""
    mean_b, mean_a = (fmean(cluster_means(sums_by_cluster([pair[side] for pair in pairs], metric))) for side in (0, 1))
    test = paired_test(cluster_means(difference_sums(pairs, metric)), seed)
    return {
        **cell._asdict(), "metric": metric, "a": mean_a, "b": mean_b, "difference": test.mean,
        "questions": len(pairs), "without": without, "n": test.n, "ci": test.ci, "p": test.p,
    }  # fmt: skip


def _row(record: Compared) -> tuple[str, ...]:
    interval = "-" if record.ci is None else f"[{record.ci[0]:+.4f}, {record.ci[1]:+.4f}]"
    return (
        record.split, record.task, record.modality, record.metric, f"{record.a:.4f}", f"{record.b:.4f}",
        f"{record.difference:+.4f}", interval, str(record.n), f"{record.p:.4f}", f"{record.p_holm:.4f}",
    )  # fmt: skip
