"""Lay out what a report says beyond accuracy: forgetting, coherence, attacks and verdicts, as Markdown tables.

The tables show a few numbers of the image questions that the headline is made of; all of them are in `report.json`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from .table import table

Rows = list[list[str]]

# Column -> (metric, what it is measured against). A dash is a number that was not measured.
MEASURES = {
    "answer probability": ("answer_probability", "nothing"),
    "extraction strength": ("extraction_strength", "nothing"),
    "exact memorization": ("exact_memorization", "nothing"),
    "KS to retain-only": ("answer_probability_ks", "retain-only"),
    "JS to retain-only": ("answer_probability_js", "retain-only"),
    "AUC loss": ("auc_loss", "controls"),
    "AUC Min-K": ("auc_min_k", "controls"),
    "AUC Min-K++": ("auc_min_k_plus_plus", "controls"),
    "AUC gradient norm": ("auc_gradient_norm", "controls"),
    "minus controls (nats)": ("answer_logprob_difference", "controls"),
}
TEXT_MEASURES = ("fact_recall", "rougeL", "answer_probability")


def evidence_markdown(report: Mapping[str, Any], missing: str) -> list[str]:
    """Return the sections' lines; `missing` is what every title has to say of models that are not there."""
    column = report["headline"]["columns"][0]
    cell = ("forget", column["task"], column["modality"])
    return [
        *_forgetting(report, cell, missing), *_leakage(report, column["task"], missing),
        *_clear(report, missing), *_coherence(report, missing), *_attacks(report, missing), *_verdicts(report, missing),
    ]  # fmt: skip


def _forgetting(report: Mapping[str, Any], cell: tuple[str, str, str], missing: str) -> list[str]:
    found = report["forgetting"]
    told = (
        f"{found['label']}. The forget people's answers ({cell[1]}, {cell[2]}): how likely they still are, how much of "
        "them the model completes, how far their distribution is from retain-only's (KS, JS: 0 is the same), how well "
        "somebody tells them from controls' by likelihood (AUC: .5 is not at all), and the paired difference from "
        "controls. p-values and intervals of all of them are in `report.json`."
    )
    rows = [
        [name, *(_measured(found["measures"], name, cell, *of) for of in MEASURES.values())] for name in _names(report)
    ]
    return [f"## Did it really forget?{missing}", told, table(["model", *MEASURES], rows)]


def _leakage(report: Mapping[str, Any], task: str, missing: str) -> list[str]:
    """Return what the forget people's names alone bring out, where a source asks without a picture."""
    cell = ("forget", task, "text")
    records = report["forgetting"]["measures"]
    if not any((one["split"], one["task"], one["modality"]) == cell for one in records):
        return [
            f"### Without the picture{missing}",
            "Not measured: the source asks nothing without a picture.",
        ]
    rows = [
        [name, *(_measured(records, name, cell, metric, "nothing") for metric in TEXT_MEASURES)]
        for name in _names(report)
    ]  # fmt: skip
    told = "The same people asked about by name, without a picture: what an unlearned picture still leaves in the text."
    return [f"### Without the picture{missing}", told, table(["model", *TEXT_MEASURES], rows)]


def _clear(report: Mapping[str, Any], missing: str) -> list[str]:
    """Return CLEAR's published table, where it was asked."""
    tables = report["clear"]
    if not tables:
        return []
    names = list(dict.fromkeys(name for found in tables.values() for name in found["values"]))
    rows = [[name, *(number(found["values"].get(name)) for found in tables.values())] for name in names]
    told = (
        "As CLEAR publishes it, its known mistakes corrected (docs/protocols.md). The Forget metric averages a number "
        "that should fall with one that should rise, so it ranks nothing; Forget Quality is read beside what "
        "two samples of one distribution would show."
    )
    return [f"## CLEAR's table{missing}", told, table(["", *tables], rows)]


def _coherence(report: Mapping[str, Any], missing: str) -> list[str]:
    header = ["model", "split", "task", "modality", "repetition", "blank", "fluency", "typical token", "in words"]
    rows = [
        [
            row["model"], row["split"], row["task"], row["modality"], number(row["repetition"]),
            number(row["blank_share"]), number(row["fluency"], 2), number(row["typical"], 2), row["words"],
        ]
        for row in report["coherence"]
    ]  # fmt: skip
    told = (
        "Shares of repeated words and of empty replies; nats a token of the replies under vanilla, asked the same: the "
        "mean, and the median token, which one private word does not move and which decides."
    )
    return [f"## Does it still speak?{missing}", told, table(header, rows)]


def _attacks(report: Mapping[str, Any], missing: str) -> list[str]:
    title = f"## Can it be undone?{missing}"
    if not report["attacks"]:
        return [title, "No attack was made: `viker evaluate --attacks all` with the options of the evaluation."]
    header = [
        "model",
        "attack",
        "metric",
        "before",
        "after",
        "recovery",
        "baseline",
        "excess",
        "p",
        "retain change",
        "n",
    ]
    rows = [
        [
            row["model"], row["attack"], row["metric"], number(row["before"]), number(row["after"]),
            number(row["recovery"]) + interval(row["recovery_ci"]), row["baseline"] or row["label"],
            number(row["excess"]) + interval(row["excess_ci"]), number(row["p"], 3), number(row["retain_change"]),
            str(row["n"]),
        ]
        for row in report["attacks"] if row["model"] != "retain-only"
    ]  # fmt: skip
    told = (
        "Recovery: what came back about the forget people. Excess: recovery minus that of the baseline under the same "
        "attack. Where retain people's answers change as much, speech came back and not facts. p is not adjusted for "
        "the number of rows."
    )
    return [title, told, table(header, rows)]


def _verdicts(report: Mapping[str, Any], missing: str) -> list[str]:
    title = f"## Verdict{missing}"
    if not report["verdicts"]:
        return [title, "No policy was applied: `viker evaluate --policy FILE.toml`."]
    lines = []
    for verdict in report["verdicts"]:
        policy = verdict["policy"]
        passed = "passed" if verdict["passed"] else "**failed**"
        lines.append(f"**{verdict['model']}**: {passed}, policy {policy['name']!r} (sha256 `{policy['sha256'][:16]}`).")
        lines += [f"- {'met' if check['passed'] else '**not met**'}: {check['words']}" for check in verdict["checks"]]
        lines += [f"- {verdict['label']}"] if verdict["label"] else []
    return [title, "\n".join(lines)]


def _names(report: Mapping[str, Any]) -> list[str]:
    return [row["model"] for row in report["headline"]["rows"]]


def _measured(
    records: Sequence[Mapping[str, Any]], model: str, cell: tuple[str, str, str], metric: str, against: str
) -> str:
    for one in records:
        place = (one["split"], one["task"], one["modality"])
        if (one["model"], place, one["metric"], one["against"]) == (model, cell, metric, against):
            return number(one["value"]) + interval(one["ci"])
    return "-"


def number(value: float | None, digits: int = 3) -> str:
    """Return a number for a table cell; a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"


def interval(ci: Sequence[float] | None) -> str:
    """Return an interval to stand behind its number; nothing where there is none."""
    return "" if ci is None else f" [{ci[0]:.3f}, {ci[1]:.3f}]"
