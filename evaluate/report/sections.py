"""The sections of a report, as values: headline, the four splits, matched forgetting, likelihood, cost, provenance.

Values are shares, in percent, or log-probabilities in nats a token; intervals stand behind where there are enough
people for one. Numbers come from the record alone, so a page cannot disagree with it. What is measured beyond accuracy
is `evidence_page.py`'s; how sections look is `page.py`'s and `html.py`'s.
"""

from collections.abc import Mapping
from typing import Any

from ..answers import LOGPROB
from .cells import (
    Cell,
    Section,
    gigabytes,
    group,
    missing,
    model_cell,
    nats,
    percent,
    plain,
    ranking,
    record_cell,
    shares,
    table,
    unit_of,
    yes_no,
)
from .rank import POINT_VALUES

UNITS = f"Percent, `{LOGPROB}` in nats a token; intervals are 95 %, over people, from 18 people on."
_TASKS = ("classification", "cloze", "generation")
_SPLITS = ("forget", "test", "retain-heldout", "real", "retain-seen")  # seen people last: they are no headline
_SCORES = "`scores.json` of each evaluation"

Report = Mapping[str, Any]


def verdict_section(report: Report) -> Section:
    """Return the verdict in plain sentences, model by model."""
    verdict = report["verdict_in_words"]
    blocks = [" ".join(told for told in (verdict["lead"], verdict["kept"], verdict["undone"]) if told)]
    for model in verdict["models"]:
        told = " ".join(sentence["text"] for sentence in model["sentences"])
        blocks.append(f"**{model['model']}**: {model['verdict']}. {told}")
    if verdict["not_measured"]:
        blocks.append(f"Not measured: {'; '.join(verdict['not_measured'])}.")
    return Section(name="in-words", title=f"In words{missing(report)}", blocks=tuple(blocks))


def headline_section(report: Report) -> Section:
    """Return the four numbers a method is known by."""
    headline, bar = report["headline"], report["headline"]["bar"]
    header = ["model", "retain data", *(column["label"] for column in headline["columns"]), "forgotten", "rank"]
    rows = [
        [model_cell(row["model"]), group(row), *shares(row), _forgotten(row["forgotten"]), ranking(row)]
        for row in headline["rows"]
    ]
    told = (
        f"Forgotten: forget fact recall (mean over people) at or below {bar:.1%}: retain-only's plus one standard "
        "error, and at least one fact. Ranks are by held-out retain, among those who have forgotten, with and without "
        "retain data apart."
        if headline["no_ranks"] is None
        else f"No ranks: {headline['no_ranks']}; a method that forgets nothing would win every retain score."
    )
    title = f"Four numbers a method{missing(report)}"
    return Section(
        name="four-numbers", title=title, blocks=("Percent.", table(title, header, rows, _SCORES), told)
    )  # fmt: skip


def splits_section(report: Report) -> Section:
    """Return forget, test, retain and real side by side."""
    splits = report["splits"]
    title = f"Forget, test, retain, real{missing(report)}"
    labels = [column["label"] for column in splits["columns"]]
    groups = [("", 1), *((split, sum(column["split"] == split for column in splits["columns"]))
                         for split in dict.fromkeys(column["split"] for column in splits["columns"]))]  # fmt: skip
    rows = [[model_cell(row["model"]), *shares(row)] for row in splits["rows"]]
    told = (
        "Forget people should be lost and everybody else kept; retain-only shows how far. `test` asks about the forget "
        "people by other pictures and phrasings, `retain-heldout` are people that no retain term trained on, `real` "
        "are celebrities. Percent."
    )
    return Section(
        name="splits", title=title, blocks=(told, table(title, ["model", *labels], rows, _SCORES, groups))
    )  # fmt: skip


def matched_section(report: Report) -> Section:
    """Return the comparison at matched forgetting."""
    matched = report["matched"]
    title = f"Matched forgetting{missing(report)}"
    others = [f"No trajectory: {', '.join(matched['without_trajectory'])}."] if matched["without_trajectory"] else []
    if matched["reason"]:
        told = f"No comparison at matched forgetting: {matched['reason']}."
        return Section(name="matched", title=title, blocks=(told,))
    header = ["model", "retain data", "step", "forget fact", "held-out retain fact", "held-out retain ROUGE-L",
              "seen retain fact", "rank"]  # fmt: skip
    rows = [
        [model_cell(row["model"], "adapters" if row["role"] == "adapter" else "evaluations"), group(row), _step(row),
         *(percent(row[name]) for name in POINT_VALUES), ranking(row)]
        for row in matched["rows"]
    ]  # fmt: skip
    told = f"The first measured point with forget fact recall at or below {matched['bar']:.1%}. Percent."
    source = "`trajectory.jsonl` of each adapter, `answers.jsonl` of the evaluations of vanilla and retain-only"
    behind = " ".join([*others, *matched["caveats"]])
    return Section(name="matched", title=title, blocks=(told, table(title, header, rows, source), behind))


def likelihood_section(report: Report) -> Section:
    """Return how far the forgotten answers were pushed down."""
    likelihood = report["likelihood"]
    title = f"Likelihood of the forgotten answers{missing(report)}"
    if likelihood["reason"]:
        told = f"No comparison with a model that never knew: {likelihood['reason']}."
        return Section(name="likelihood", title=title, blocks=(told,))
    header = ["model", "retain data", "log-probability", "minus retain-only", "standard error", "people", "verdict"]
    rows = [
        [model_cell(row["model"]), group(row),
         *(nats(row[name]) for name in ("answer_logprob", "difference", "error")),
         plain(row["people"]), plain(row["verdict"])]
        for row in likelihood["rows"]
    ]  # fmt: skip
    told = (
        f"Nats a token of the published answers about the forget people ({likelihood['task']}, "
        f"{likelihood['modality']}), mean over people. The same: within one standard error of retain-only's."
    )
    source = "`answers.jsonl` of each evaluation"
    return Section(name="likelihood", title=title, blocks=(told, table(title, header, rows, source)))


def head_room_section(report: Report) -> Section:
    """Return what the split lets a method show at all."""
    title, checks = f"Head-room{missing(report)}", report["head_room"]
    if not checks:
        return Section(name="head-room", title=title, blocks=("Not known: vanilla's facts were not asked.",))
    lines = "\n".join(f"- {_verdict(check['ok'])} {check['text']}." for check in checks)
    warning = "**This split has little head-room: differences between methods here say little.**"
    is_low = any(check["ok"] is False for check in checks)
    return Section(name="head-room", title=title, blocks=(lines, warning) if is_low else (lines,))


def seen_section(report: Report) -> Section:
    """Return the retain people that a retain term may have trained on, apart from the others."""
    seen = report["seen_retain"]
    known = {model["name"]: model for model in report["models"]}
    header = ["model", "retain data", *(column["label"] for column in seen["columns"])]
    rows = [[model_cell(row["model"]), group(known[row["model"]]), *shares(row)] for row in seen["rows"]]
    told = "A retain term may have trained on these very people: their scores say little about others. Percent."
    title = f"Seen retain people{missing(report)}"
    return Section(name="seen", title=title, blocks=(told, table(title, header, rows, _SCORES)))


def scores_section(report: Report) -> Section:
    """Return every score, split by split."""
    names = [row["model"] for row in report["headline"]["rows"]]
    blocks: list[str | Section] = [UNITS]
    found = {record["split"] for record in report["scores"]}
    for split in sorted(found, key=lambda split: (_SPLITS.index(split) if split in _SPLITS else -1, split)):
        cells: dict[tuple[str, str, str], dict[str, Mapping[str, Any]]] = {}
        for record in report["scores"]:
            if record["split"] == split:
                cells.setdefault((record["task"], record["modality"], record["metric"]), {})[record["model"]] = record
        ordered = sorted(cells, key=lambda cell: (_TASKS.index(cell[0]) if cell[0] in _TASKS else len(_TASKS), cell[1]))
        rows = [[*map(plain, cell), *(record_cell(cells[cell].get(name)) for name in names)] for cell in ordered]
        title = f"{split}{missing(report)}"
        shown = table(f"Every score: {title}", ["task", "modality", "metric", *names], rows, _SCORES)
        blocks.append(Section(name=f"scores-{split}", title=title, blocks=(shown,)))
    return Section(name="scores", title=f"Every score{missing(report)}", blocks=tuple(blocks))


def published_section(report: Report) -> Section | None:
    """Return published numbers beside ours, where there are any."""
    if not report["published"]:
        return None
    header = ["row", "split", "metric", "published", "ours", "source"]
    rows = [
        [plain(item["row"]), plain(item["split"]), plain(item["metric"]), plain(item["value"]),
         plain(", ".join(f"{name} {unit_of(item['our_metric'])(value).text}" for name, value in item["ours"].items())
               or None), plain(item.get("source"))]
        for item in report["published"]
    ]  # fmt: skip
    told = (
        f"As published, in the publisher's unit; ours in percent, `{LOGPROB}` in nats a token. `retain` stands beside "
        "our held-out half. Other seeds and weights."
    )
    title = f"Published numbers beside ours{missing(report)}"
    return Section(name="published", title=title, blocks=(told, table(title, header, rows, _SCORES)))


def models_section(report: Report) -> Section:
    """Return what the models are."""
    header = ["model", "method", "lambda", "retain", "steps", "stopped early", "kind"]
    rows = [
        [model_cell(model["name"], "adapters" if model["role"] == "adapter" else "evaluations"),
         *(plain(model[name]) for name in ("method", "lambda", "retain", "steps")),
         yes_no(model["stopped"]), plain(model["kind"])]
        for model in report["models"]
    ]  # fmt: skip
    told = "Reversible: the base still knows. Merge with `viker adapter export --merge`."
    title = f"Models{missing(report)}"
    source = "`config.json` and `provenance.json` of each adapter"
    return Section(name="models", title=title, blocks=(table(title, header, rows, source), told))


def cost_section(report: Report) -> Section:
    """Return what every stage took."""
    rows = [
        [Cell(text=stage["stage"], stage=stage["stage"]), plain(stage["wall_seconds"]),
         gigabytes(stage["peak_resident_bytes"]), plain(stage["device"])]
        for stage in report["stages"]
    ]  # fmt: skip
    told = "Peak memory is its process's so far: stages that one command ran share it."
    title = f"Cost{missing(report)}"
    shown = table(
        title, ["stage", "seconds", "peak memory (GB)", "device"], rows, "`provenance.json` of each stage"
    )  # fmt: skip
    return Section(name="cost", title=title, blocks=(shown, told))


def provenance_section(report: Report) -> Section:
    """Return what made every stage: time, version, digest of its options, caches."""
    rows = [
        [Cell(text=stage["stage"], stage=stage["stage"]), plain(stage["finished"]), plain(stage["code_version"]),
         plain(stage["config_digest"][:12]),
         plain(", ".join(f"{kind} {cache['key'][:16]}/{cache['root'][:16]}"
                         for kind, cache in stage["caches"].items()) or None)]
        for stage in report["stages"]
    ]  # fmt: skip
    header = ["stage", "finished", "viker", "config digest", "caches (key/root)"]
    told = f"Libraries: {', '.join(libraries(report))}. Commands and full digests are in `report.json`."
    title = f"Provenance{missing(report)}"
    shown = table(title, header, rows, "`config.json` and `provenance.json` of each stage")
    return Section(name="provenance", title=title, blocks=(shown, told))


def libraries(report: Report) -> list[str]:
    """Return every library that a stage was made with, by name and version."""
    return sorted(
        {f"{name} {version}" for stage in report["stages"] for name, version in (stage["libraries"] or {}).items()}
    )


def _forgotten(value: bool | None) -> Cell:
    tone = {True: "good", False: "bad", None: ""}[value]
    return Cell(text=yes_no(value).text, tone=tone)


def _step(row: Mapping[str, Any]) -> Cell:
    return Cell(text="never crosses", tone="bad") if row["crosses"] is False else plain(row["step"])


def _verdict(ok: bool | None) -> str:
    return {True: "ok:", False: "**no head-room:**", None: "unknown:"}[ok]
