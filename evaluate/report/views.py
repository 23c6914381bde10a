"""What stands behind the templates of the HTML page: verdict cards, figures with their tables, replies, words, stages.

Templates hold no logic and no defaults, so here every part that a report may lack (an older record, a redacted one, a
run without logs) becomes a view that says so. Values come from the report alone; nothing is computed but places,
counts and levels of shading.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from .cells import Table, decimals, missing, model_cell, percent, plain, table
from .figures import looks, pareto_svg, training_svgs

MOST_CARDS = 6  # verdicts that are open when the page is; the others are one click away
MOST_DRAWN = 12  # adapters whose training is drawn
ABSENT = "(withheld)"
LEVELS = (0.1, 0.5, 1.0, 1.5, 2.0)  # of the entropy of a key token: where the shading of a word gets darker
_COLUMNS = {
    "loss": "loss", "key_logprob": "key tokens (nats)", "key_teacher_logprob": "teacher, key tokens (nats)",
    "normal_logprob": "normal tokens (nats)", "gradient_norm": "gradient norm",
}  # fmt: skip
_BEFORE = ("vanilla", "retain-only")
_OF_STAGE = ("device", "finished", "code_version", "wall_seconds", "peak_resident_bytes")

Report = Mapping[str, Any]


def verdict_view(report: Report) -> dict[str, Any]:
    """Return the verdict's cards: those that are open and those behind them."""
    verdict = report["verdict_in_words"]
    models = verdict["models"]
    return {**verdict, "open": models[:MOST_CARDS], "folded": models[MOST_CARDS:], "missing": missing(report)}


def stage_anchors(report: Report) -> dict[str, str]:
    """Return the anchor of each stage by name; a model that was not evaluated leads to its adapter."""
    anchors = {stage["stage"]: f"stage-{place}" for place, stage in enumerate(report["stages"], start=1)}
    for name, anchor in list(anchors.items()):
        folder, _, model = name.partition("/")
        if folder == "adapters":
            anchors.setdefault(f"evaluations/{model}", anchor)
    return anchors


def pareto_view(report: Report) -> dict[str, Any]:
    """Return the figure of all measured points, its legend and its table."""
    pareto = report["pareto"]
    drawn = looks(_adapters(report))
    what = {"fact": "facts", "rougeL": "ROUGE-L"}[pareto["value"]]
    rows = [
        [model_cell(point["model"], "adapters" if point["from"] == "trajectory" else "evaluations"),
         plain(point["from"]), plain(point["step"]), percent(point["forget"]), percent(point["retain"]),
         plain("on the front" if point["front"] else None)]
        for point in pareto["points"]
    ]  # fmt: skip
    header = ["model", "measured by", "step", f"forget {what}", f"held-out retain {what}", "front"]
    title = f"Forgetting against keeping{missing(report)}"
    return {
        "title": title, "reason": pareto["reason"], "svg": pareto_svg(pareto, drawn), "legend": drawn,
        "bar": pareto["bar"], "value": pareto["value"],
        "table": table(f"Points of the figure: {title}", header, rows, "`trajectory.jsonl` and `answers.jsonl`"),
    }  # fmt: skip


def curves_view(report: Report) -> dict[str, Any]:
    """Return how each adapter was trained: panels, and tables of the same numbers."""
    curves = report["curves"]
    drawn = looks(_adapters(report))
    having = [curve for curve in curves["models"] if curve["log"]["of"] or curve["trajectory"]["of"]]
    shown = having[:MOST_DRAWN]
    return {
        "title": f"Training{missing(report)}",
        "models": [
            {
                "model": curve["model"], "look": drawn[curve["model"]], "log": curve["log"],
                "trajectory": curve["trajectory"],
                "svgs": training_svgs(f"training-{place}", curve, curves["value"], drawn[curve["model"]]),
                "tables": [_log_table(curve, missing(report)), _trajectory_table(curve, missing(report))],
            }
            for place, curve in enumerate(shown, start=1)
        ],
        "without": [curve["model"] for curve in curves["models"] if curve not in having],
        "folded": [curve["model"] for curve in having[MOST_DRAWN:]],
        "longest": curves["longest"],
    }  # fmt: skip


def replies_view(report: Report) -> dict[str, Any]:
    """Return the questions with all replies, and what they can be filtered by."""
    replies = report.get("replies") or {}
    rows = replies.get("rows") or []
    models = list(replies.get("models") or [])
    return {
        "title": f"Answers before and after{missing(report)}", "models": models,
        "shown": len(rows), "of": replies.get("of", len(rows)),
        "people": _counted(row["person"] for row in rows), "splits": _counted(row["split"] for row in rows),
        "rows": [_reply_card(row, models) for row in rows],
    }  # fmt: skip


def tokens_view(report: Report) -> dict[str, Any]:
    """Return the key-token view: words with their shading, and the candidates that the script shows."""
    section = report.get("key_tokens") or {"reason": "this report holds none"}
    title = f"Key tokens{missing(report)}"
    examples = section.get("examples") or []
    reason = section.get("reason") or (None if examples else "this report quotes none")
    if reason:
        return {"title": title, "reason": reason, "notes": section.get("notes") or []}
    key_entropy = float(section["key_entropy"])
    order = [model["model"] for model in report["verdict_in_words"]["models"]]
    after = sorted((name for name in section["models"] if name != "vanilla"), key=[*order, *section["models"]].index)
    return {
        "title": title, "reason": None, "notes": section.get("notes") or [], "shown": section["shown"],
        "of": section["of"], "key_entropy": key_entropy, "after": after, "has_before": "vanilla" in section["models"],
        "teacher": section.get("teacher"), "people": _counted(example["person"] for example in examples),
        "scale": [key_entropy * level for level in LEVELS],
        "examples": [{**example, "pieces": _pieces(example, key_entropy)} for example in examples],
        "data": [{"tokens": example["tokens"], "words": example["words"]} for example in examples],
    }  # fmt: skip


def stages_view(report: Report) -> list[dict[str, Any]]:
    """Return every stage with what made it, and links to the stages that it read."""
    anchors = stage_anchors(report)
    return [
        {
            "name": stage["stage"], "anchor": anchors[stage["stage"]], "command": stage["command"],
            "facts": [(name.replace("_", " "), stage[name]) for name in _OF_STAGE if stage[name] is not None],
            "config_digest": stage["config_digest"], "caches": stage["caches"],
            "libraries": stage["libraries"] or {}, "options": stage.get("options") or {},
            "inputs": [
                (name, stamp, anchors.get(_made_by(report, name, stamp)))
                for name, stamp in (stage.get("inputs") or {}).items()
            ],
        }
        for stage in report["stages"]
    ]  # fmt: skip


def _made_by(report: Report, path: str, stamp: str) -> str:
    """Return the stage of this run that an input is: the same place, and the same time or cache; empty if none is."""
    for stage in report["stages"]:
        name = stage["stage"]
        keys = [f"{cache['key'][:16]}/{cache['root'][:16]}" for cache in stage["caches"].values()]
        if name == f"precompute/{path}" and stamp in keys:
            return str(name)
        if stage["finished"] == stamp and f"/{path}".endswith(f"/{name}"):
            return str(name)
    return ""


def _adapters(report: Report) -> list[str]:
    return [model["name"] for model in report["models"] if model["role"] not in ("vanilla", "retain-only")]


def _log_table(curve: Mapping[str, Any], suffix: str) -> Table:
    log = curve["log"]
    names = [name for name in _COLUMNS if name in log]
    rows = [[plain(step), *(decimals(log[name][place], 4) for name in names)] for place, step in enumerate(log["step"])]
    return table(
        f"Training steps of {curve['model']}{suffix}", ["step", *(_COLUMNS[name] for name in names)], rows,
        f"`training_log.jsonl`, {len(rows)} of {log['of']} steps",
    )  # fmt: skip


def _trajectory_table(curve: Mapping[str, Any], suffix: str) -> Table:
    measured = curve["trajectory"]
    names = [name for name in measured if name not in ("of", "step")]
    rows = [
        [plain(step), *(percent(measured[name][place]) for name in names)]
        for place, step in enumerate(measured["step"])
    ]
    return table(
        f"Trajectory of {curve['model']}{suffix}", ["step", *(name.replace("_", " ") for name in names)], rows,
        f"`trajectory.jsonl`, {len(rows)} of {measured['of']} points, percent",
    )  # fmt: skip


def _reply_card(row: Mapping[str, Any], models: Sequence[str]) -> dict[str, Any]:
    """Return one question with every model's reply; `says` is whether the fact asked for is in it."""
    replies, says = row.get("replies") or {}, row.get("says") or {}
    return {
        "person": row["person"], "split": row["split"], "modality": row["modality"],
        "question": row.get("question") or ABSENT, "expected": row.get("expected") or ABSENT,
        "before": [name for name in models if name in _BEFORE],
        "after": [name for name in models if name not in _BEFORE],
        "replies": replies, "says": says,
    }  # fmt: skip


def _pieces(example: Mapping[str, Any], key_entropy: float) -> list[dict[str, Any]]:
    """Return an answer's words with the text between them, so that the answer reads as it was written."""
    pieces: list[dict[str, Any]] = []
    answer, place = str(example.get("answer") or ""), 0
    for number, word in enumerate(example["words"]):
        start = answer.find(word["text"], place)
        gap = (answer[place:start] if start >= 0 else " ") if pieces else ""
        place = start + len(word["text"]) if start >= 0 else place
        level = sum(word["entropy"] >= key_entropy * bound for bound in LEVELS)
        is_private = bool(word.get("is_private"))
        kinds = ["key word"] * word["is_key"] + ["private word"] * is_private
        label = ", ".join([str(word["text"]), f"entropy {word['entropy']:.2f} nats", *kinds])
        pieces.append(
            {
                "gap": gap,
                "text": word["text"],
                "number": number,
                "level": level,
                "is_key": word["is_key"],
                "is_private": is_private,
                "label": label,
            }
        )
    return pieces


def _counted(names: Any) -> list[tuple[str, int]]:
    """Return the different names in order of appearance, with how often each appears."""
    return list(Counter(names).items())
