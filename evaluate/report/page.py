"""Lay a report out: `report.md` for people, and the last screen of a run, from the record that `content.py` makes.

Plain Markdown tables, because they read in a terminal, a pull request and a browser alike. Values are shares, printed
in percent, or log-probabilities in nats a token; intervals stand behind where there are enough people for one. Replies
are strangers' text: they are escaped and shortened, never left out. Numbers come from the record alone, so the page
cannot disagree with it.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ..answers import LOGPROB
from .evidence_page import evidence_markdown
from .rank import POINT_VALUES
from .table import escaped, table

_LONGEST_REPLY = 240
_SCREEN_REPLY = 88
_NUM_SCREEN_ANSWERS = 3
_UNITS = f"Percent, `{LOGPROB}` in nats a token; intervals are 95 %, over people, from 18 people on."
_GROUPS = {False: "without retain data", True: "with retain data"}
_TASKS = ("classification", "cloze", "generation")
_SPLITS = ("forget", "test", "retain-heldout", "real", "retain-seen")  # seen people last: they are no headline

Report = Mapping[str, Any]
Unit = Callable[[float | None], str]


def render_markdown(report: Report) -> str:
    """Return the page of a report."""
    opening = [f"*{report['embedded']}*"] if report["embedded"] else []
    sections = [
        f"# {report['title']}", *opening, "\n".join(f"- {notice}" for notice in report["notices"]),
        *_headline(report), *_matched(report), *_likelihood(report),
        *evidence_markdown(report, _missing(report)), *_head_room(report), *_answers(report),
        *_seen(report), *_all_scores(report), *_published(report), *_models(report), *_cost(report),
        *_provenance(report),
    ]  # fmt: skip
    return "\n\n".join(section for section in sections if section) + "\n"


def print_last_screen(report: Report) -> str:
    """Return what a terminal shows at the end: three answers before and after, four numbers a method, the path."""
    lines = [report["title"], ""]
    for answer in report["answers"][:_NUM_SCREEN_ANSWERS]:
        lines += [f"{answer['question']}   ({answer['person']}, {answer['split']})"]
        told = {"expected": answer["expected"], **answer["replies"]}
        width = max(map(len, told))
        lines += [f"  {name:{width}}  {_shortened(reply, _SCREEN_REPLY)}" for name, reply in told.items()] + [""]
    columns = [column["label"] for column in report["headline"]["columns"]]
    rows = [["", *columns], *([row["model"], *map(_percent, row["values"])] for row in report["headline"]["rows"])]
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    for first, *others in rows:
        aligned = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
        lines.append("  ".join([first.ljust(widths[0]), *aligned]).rstrip())
    return "\n".join([*lines, "", f"{report['directory']}/report.md"])


def _headline(report: Report) -> list[str]:
    headline = report["headline"]
    header = ["model", "retain data", *(column["label"] for column in headline["columns"]), "forgotten", "rank"]
    rows = [
        [row["model"], _group(row), *_values(row), _yes_no(row["forgotten"]), _ranking(row)] for row in headline["rows"]
    ]
    bar = headline["bar"]
    told = (
        f"Forgotten: forget fact recall (mean over people) at or below {bar:.1%}: retain-only's plus one standard "
        "error, and at least one fact. Ranks are by held-out retain, among those who have forgotten, with and without "
        "retain data apart."
        if headline["no_ranks"] is None
        else f"No ranks: {headline['no_ranks']}; a method that forgets nothing would win every retain score."
    )
    return [f"## Four numbers a method{_missing(report)}", "Percent.", table(header, rows), told]


def _matched(report: Report) -> list[str]:
    matched = report["matched"]
    title = f"## Matched forgetting{_missing(report)}"
    others = [f"No trajectory: {', '.join(matched['without_trajectory'])}."] if matched["without_trajectory"] else []
    if matched["reason"]:
        return [title, f"No comparison at matched forgetting: {matched['reason']}."]
    header = ["model", "retain data", "step", "forget fact", "held-out retain fact", "held-out retain ROUGE-L",
              "seen retain fact", "rank"]  # fmt: skip
    rows = [
        [row["model"], _group(row), _step(row),
         *(_percent(row[name]) for name in POINT_VALUES),
         _ranking(row)]
        for row in matched["rows"]
    ]  # fmt: skip
    told = f"The first measured point with forget fact recall at or below {matched['bar']:.1%}. Percent."
    return [title, told, table(header, rows), " ".join([*others, *matched["caveats"]])]


def _likelihood(report: Report) -> list[str]:
    likelihood = report["likelihood"]
    title = f"## Likelihood of the forgotten answers{_missing(report)}"
    if likelihood["reason"]:
        return [title, f"No comparison with a model that never knew: {likelihood['reason']}."]
    header = ["model", "retain data", "log-probability", "minus retain-only", "standard error", "people", "verdict"]
    rows = [
        [row["model"], _group(row), *(_nats(row[name]) for name in ("answer_logprob", "difference", "error")),
         _plain(row["people"]), _plain(row["verdict"])]
        for row in likelihood["rows"]
    ]  # fmt: skip
    told = (
        f"Nats a token of the published answers about the forget people ({likelihood['task']}, "
        f"{likelihood['modality']}), mean over people. The same: within one standard error of retain-only's."
    )
    return [title, told, table(header, rows)]


def _head_room(report: Report) -> list[str]:
    checks = report["head_room"]
    if not checks:
        return [f"## Head-room{_missing(report)}", "Not known: vanilla's facts were not asked."]
    lines = [f"- {_verdict(check['ok'])} {check['text']}." for check in checks]
    if any(check["ok"] is False for check in checks):
        lines.append("\n**This split has little head-room: differences between methods here say little.**")
    return [f"## Head-room{_missing(report)}", "\n".join(lines)]


def _answers(report: Report) -> list[str]:
    blocks = [f"## Before and after{_missing(report)}"]
    for answer in report["answers"]:
        told = {"expected": answer["expected"], **answer["replies"]}
        rows = [[name, _shortened(reply, _LONGEST_REPLY)] for name, reply in told.items()]
        blocks += [
            f"**{escaped(answer['question'])}** ({answer['split']}, `{answer['id']}`)",
            table(["", "reply"], rows),
        ]
    return blocks


def _seen(report: Report) -> list[str]:
    seen = report["seen_retain"]
    known = {model["name"]: model for model in report["models"]}
    header = ["model", "retain data", *(column["label"] for column in seen["columns"])]
    rows = [[row["model"], _group(known[row["model"]]), *_values(row)] for row in seen["rows"]]
    told = "A retain term may have trained on these very people: their scores say little about others. Percent."
    return [f"## Seen retain people{_missing(report)}", told, table(header, rows)]


def _all_scores(report: Report) -> list[str]:
    names = [row["model"] for row in report["headline"]["rows"]]
    blocks = [f"## Every score{_missing(report)}", _UNITS]
    found = {record["split"] for record in report["scores"]}
    for split in sorted(found, key=lambda split: (_SPLITS.index(split) if split in _SPLITS else -1, split)):
        cells: dict[tuple[str, str, str], dict[str, Mapping[str, Any]]] = {}
        for record in report["scores"]:
            if record["split"] == split:
                cells.setdefault((record["task"], record["modality"], record["metric"]), {})[record["model"]] = record
        ordered = sorted(cells, key=lambda cell: (_TASKS.index(cell[0]) if cell[0] in _TASKS else len(_TASKS), cell[1]))
        rows = [[*cell, *(_record(cells[cell].get(name)) for name in names)] for cell in ordered]
        blocks += [f"### {split}{_missing(report)}", table(["task", "modality", "metric", *names], rows)]
    return blocks


def _published(report: Report) -> list[str]:
    if not report["published"]:
        return []
    header = ["row", "split", "metric", "published", "ours", "source"]
    rows = [
        [str(item["row"]), str(item["split"]), str(item["metric"]), str(item["value"]),
         ", ".join(f"{name} {_unit(item['our_metric'])(value)}" for name, value in item["ours"].items()) or "-",
         str(item.get("source", "-"))]
        for item in report["published"]
    ]  # fmt: skip
    told = (
        f"As published, in the publisher's unit; ours in percent, `{LOGPROB}` in nats a token. `retain` stands beside "
        "our held-out half. Other seeds and weights."
    )
    return [f"## Published numbers beside ours{_missing(report)}", told, table(header, rows)]


def _models(report: Report) -> list[str]:
    header = ["model", "method", "lambda", "retain", "steps", "stopped early", "kind"]
    rows = [
        [model["name"], *(_plain(model[name]) for name in ("method", "lambda", "retain", "steps")),
         _yes_no(model["stopped"]), _plain(model["kind"])]
        for model in report["models"]
    ]  # fmt: skip
    told = "Reversible: the base still knows. Merge with `viker adapter export --merge`."
    return [f"## Models{_missing(report)}", table(header, rows), told]


def _cost(report: Report) -> list[str]:
    rows = [
        [
            stage["stage"],
            _plain(stage["wall_seconds"]),
            _gigabytes(stage["peak_resident_bytes"]),
            _plain(stage["device"]),
        ]
        for stage in report["stages"]
    ]
    told = "Peak memory is its process's so far: stages that one command ran share it."
    return [f"## Cost{_missing(report)}", table(["stage", "seconds", "peak memory (GB)", "device"], rows), told]


def _provenance(report: Report) -> list[str]:
    rows = [
        [stage["stage"], _plain(stage["finished"]), _plain(stage["code_version"]), stage["config_digest"][:12],
         ", ".join(f"{kind} {cache['key'][:16]}/{cache['root'][:16]}" for kind, cache in stage["caches"].items())]
        for stage in report["stages"]
    ]  # fmt: skip
    found = {f"{name} {version}" for stage in report["stages"] for name, version in (stage["libraries"] or {}).items()}
    header = ["stage", "finished", "viker", "config digest", "caches (key/root)"]
    told = f"Libraries: {', '.join(sorted(found))}. Commands and full digests are in `report.json`."
    return [f"## Provenance{_missing(report)}", table(header, rows), told]


def _missing(report: Report) -> str:
    """Return what a table's title has to say when vanilla or retain-only is not in it."""
    names = {row["model"] for row in report["headline"]["rows"]}
    missing = [name for name in ("vanilla", "retain-only") if name not in names]
    return f" (without {' and '.join(missing)})" if missing else ""


def _shortened(reply: str | None, longest: int) -> str:
    text = "(not asked)" if reply is None else " ".join(reply.split()) or "(empty)"
    return text if len(text) <= longest else text[: longest - 3] + "..."


def _values(row: Mapping[str, Any]) -> list[str]:
    return [_with_interval(value, ci, _percent) for value, ci in zip(row["values"], row["ci"], strict=True)]


def _record(record: Mapping[str, Any] | None) -> str:
    return "-" if record is None else _with_interval(record["value"], record["ci"], _unit(record["metric"]))


def _with_interval(value: float | None, ci: Iterable[float] | None, unit: Unit) -> str:
    return unit(value) + (f" [{', '.join(map(unit, ci))}]" if ci else "")


def _unit(metric: str) -> Unit:
    return _nats if metric == LOGPROB else _percent


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _nats(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _group(row: Mapping[str, Any]) -> str:
    return _GROUPS[row["reads_retain_data"]] if row["role"] == "adapter" else "-"


def _ranking(row: Mapping[str, Any]) -> str:
    return "-" if row["rank"] is None else f"{row['rank']} ({_GROUPS[row['reads_retain_data']]})"


def _step(row: Mapping[str, Any]) -> str:
    return "never crosses" if row["crosses"] is False else _plain(row["step"])


def _verdict(ok: bool | None) -> str:
    return {True: "ok:", False: "**no head-room:**", None: "unknown:"}[ok]


def _yes_no(value: bool | None) -> str:
    return "-" if value is None else "yes" if value else "no"


def _plain(value: Any) -> str:
    return "-" if value is None else str(value)


def _gigabytes(value: float | None) -> str:
    return "-" if value is None else f"{value / 1e9:.2f}"
