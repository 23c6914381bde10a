"""The sections of a report beyond accuracy, as values: forgetting, coherence, attacks and verdicts.

The tables show a few numbers of the image questions that the headline is made of; all of them are in `report.json`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from .cells import Cell, Section, Table, decimals, missing, model_cell, plain, table, with_interval

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
_ANSWERS = "`answers.jsonl` of each evaluation"


def evidence_list(report: Mapping[str, Any]) -> list[Section]:
    """Return the sections beyond accuracy, in order."""
    sections = [
        forgetting_section(report), clear_section(report), coherence_section(report), attacks_section(report),
        verdicts_section(report),
    ]  # fmt: skip
    return [section for section in sections if section is not None]


def forgetting_section(report: Mapping[str, Any]) -> Section:
    """Return the measures of forgetting, with what the people's names alone bring out below."""
    found, column = report["forgetting"], report["headline"]["columns"][0]
    cell = ("forget", column["task"], column["modality"])
    told = (
        f"{found['label']}. The forget people's answers ({cell[1]}, {cell[2]}): how likely they still are, how much of "
        "them the model completes, how far their distribution is from retain-only's (KS, JS: 0 is the same), how well "
        "somebody tells them from controls' by likelihood (AUC: .5 is not at all), and the paired difference from "
        "controls. p-values and intervals of all of them are in `report.json`."
    )
    rows = [
        [model_cell(name), *(_measured(found["measures"], name, cell, *of) for of in MEASURES.values())]
        for name in _names(report)
    ]
    title = f"Did it really forget?{missing(report)}"
    shown = table(title, ["model", *MEASURES], rows, _ANSWERS)
    return Section(name="forgetting", title=title, blocks=(told, shown, _leakage(report, column["task"])))


def _leakage(report: Mapping[str, Any], task: str) -> Section:
    """Return what the forget people's names alone bring out, where a source asks without a picture."""
    cell = ("forget", task, "text")
    title = f"Without the picture{missing(report)}"
    records = report["forgetting"]["measures"]
    if not any((one["split"], one["task"], one["modality"]) == cell for one in records):
        nothing = "Not measured: the source asks nothing without a picture."
        return Section(name="without-picture", title=title, blocks=(nothing,))
    rows = [
        [model_cell(name), *(_measured(records, name, cell, metric, "nothing") for metric in TEXT_MEASURES)]
        for name in _names(report)
    ]
    told = "The same people asked about by name, without a picture: what an unlearned picture still leaves in the text."
    shown = table(title, ["model", *TEXT_MEASURES], rows, _ANSWERS)
    return Section(name="without-picture", title=title, blocks=(told, shown))


def clear_section(report: Mapping[str, Any]) -> Section | None:
    """Return CLEAR's published table, where it was asked."""
    tables = report["clear"]
    if not tables:
        return None
    names = list(dict.fromkeys(name for found in tables.values() for name in found["values"]))
    rows = [[plain(name), *(decimals(found["values"].get(name)) for found in tables.values())] for name in names]
    told = (
        "As CLEAR publishes it, its known mistakes corrected (docs/protocols.md). The Forget metric averages a number "
        "that should fall with one that should rise, so it ranks nothing; Forget Quality is read beside what "
        "two samples of one distribution would show."
    )
    title = f"CLEAR's table{missing(report)}"
    return Section(name="clear", title=title, blocks=(told, table(title, ["", *tables], rows, _ANSWERS)))


def coherence_section(report: Mapping[str, Any]) -> Section:
    """Return how every model speaks."""
    header = ["model", "split", "task", "modality", "repetition", "blank", "fluency", "typical token", "in words"]
    rows = [
        [
            model_cell(row["model"]), plain(row["split"]), plain(row["task"]), plain(row["modality"]),
            decimals(row["repetition"]), decimals(row["blank_share"]), decimals(row["fluency"], 2),
            decimals(row["typical"], 2), plain(row["words"]),
        ]
        for row in report["coherence"]
    ]  # fmt: skip
    told = (
        "Shares of repeated words and of empty replies; nats a token of the replies under vanilla, asked the same: the "
        "mean, and the median token, which one private word does not move and which decides."
    )
    title = f"Does it still speak?{missing(report)}"
    return Section(name="coherence", title=title, blocks=(told, table(title, header, rows, _ANSWERS)))


def attacks_section(report: Mapping[str, Any]) -> Section:
    """Return what every attack brought back."""
    title = f"Can it be undone?{missing(report)}"
    if not report["attacks"]:
        nothing = "No attack was made: `viker evaluate --attacks all` with the options of the evaluation."
        return Section(name="attacks", title=title, blocks=(nothing,))
    header = [
        "model", "attack", "metric", "before", "after", "recovery", "baseline", "excess", "p", "retain change", "n",
    ]  # fmt: skip
    rows = [
        [
            model_cell(row["model"]), plain(row["attack"]), plain(row["metric"]), decimals(row["before"]),
            decimals(row["after"]), with_interval(row["recovery"], row["recovery_ci"], decimals),
            plain(row["baseline"] or row["label"]), with_interval(row["excess"], row["excess_ci"], decimals),
            decimals(row["p"]), decimals(row["retain_change"]), plain(row["n"]),
        ]
        for row in report["attacks"] if row["model"] != "retain-only"
    ]  # fmt: skip
    told = (
        "Recovery: what came back about the forget people. Excess: recovery minus that of the baseline under the same "
        "attack. Where retain people's answers change as much, speech came back and not facts. p is not adjusted for "
        "the number of rows."
    )
    source = "`attacks/attacks.json` of each evaluation"
    return Section(name="attacks", title=title, blocks=(told, table(title, header, rows, source)))


def verdicts_section(report: Mapping[str, Any]) -> Section:
    """Return what the policy decided, requirement by requirement."""
    title = f"Does it meet the policy?{missing(report)}"
    if not report["verdicts"]:
        nothing = "No policy was applied: `viker evaluate --policy FILE.toml`."
        return Section(name="policy", title=title, blocks=(nothing,))
    blocks: list[str | Table] = []
    for verdict in report["verdicts"]:
        policy = verdict["policy"]
        passed = "passed" if verdict["passed"] else "**failed**"
        label = f" {verdict['label'][0].upper()}{verdict['label'][1:]}." if verdict["label"] else ""
        told = f"**{verdict['model']}**: {passed}, policy {policy['name']!r} (sha256 `{policy['sha256'][:16]}`), "
        rows = [
            [plain(check["asked"]), plain(check["words"]), _met(check["passed"]), plain(check.get("why") or None)]
            for check in verdict["checks"]
        ]
        caption = f"Requirements of the policy on {verdict['model']}{missing(report)}"
        source = f"`evaluations/{verdict['model']}/verdict.json`"
        blocks += [
            f"{told}{policy['words']}.{label}",
            table(caption, ["requirement", "found", "met", "why it is asked"], rows, source),
        ]
    return Section(name="policy", title=title, blocks=tuple(blocks))


def _met(passed: bool) -> Cell:
    return Cell(text="met" if passed else "not met", tone="good" if passed else "bad")


def _names(report: Mapping[str, Any]) -> list[str]:
    return [row["model"] for row in report["headline"]["rows"]]


def _measured(
    records: Sequence[Mapping[str, Any]], model: str, cell: tuple[str, str, str], metric: str, against: str
) -> Cell:
    for one in records:
        place = (one["split"], one["task"], one["modality"])
        if (one["model"], place, one["metric"], one["against"]) == (model, cell, metric, against):
            return with_interval(one["value"], one["ci"], decimals)
    return plain(None)


def number(value: float | None, digits: int = 3) -> str:
    """Return a number for a table cell; a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"


def interval(ci: Sequence[float] | None) -> str:
    """Return an interval to stand behind its number; nothing where there is none."""
    return "" if ci is None else f" [{ci[0]:.3f}, {ci[1]:.3f}]"
