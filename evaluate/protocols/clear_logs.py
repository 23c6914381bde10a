"""CLEAR's own record of an evaluation, `eval_log_aggregated.json`, made of kept answers.

Source: CLEAR `mm/eval.py` (reference/benchmarks.md, section 2.3). With it the official `mm/calculate_metrics.py` runs
on our answers, and its numbers can be held against `clear_table.py`'s. Names, also the doubled ones, are theirs; their
`truth_ratio` is the inverse of the one their table makes. Rows that lack a piece are left out and counted, for the
official code fails on them. Generated texts are the replies to questions without their picture where the set
`as_published` says so (`rouge-text-only`), else to the picture.
"""

import math
from collections.abc import Sequence
from typing import Any

from ..answers import Answer
from .clear_metrics import log_truth_ratio
from .clear_table import rouge_rows, task_rows

FILES = {
    "Real Faces": "eval_real_faces_wo_options.json",
    "Real World": "eval_real_world_wo_options.json",
    "Forget": "eval_log_forget.json",
    "Retain": "eval_log.json",
    "Forget FaceRec": "eval_forget_facerec.json",
    "Retain FaceRec": "eval_retain_facerec.json",
}


def eval_logs(answers: Sequence[Answer], as_published: frozenset[str]) -> tuple[dict[str, Any], dict[str, int]]:
    """Return the content of `eval_log_aggregated.json` of one model's answers, and by file how many rows it lacks.

    Rows are those of `clear_table.task_rows`.
    """
    rows = task_rows(answers, as_published)
    logs = {
        name: [
            _entry(row, shown)
            for row, shown in zip(rows[task], rouge_rows(rows[task], answers, as_published), strict=True)
        ]
        for task, name in FILES.items()
    }
    lacking = {name: sum(entry is None for entry in entries) for name, entries in logs.items()}
    return {name: _by_field(entries) for name, entries in logs.items()}, lacking


def _entry(answer: Answer, shown: Answer | None) -> dict[str, Any] | None:
    """Return one row's fields; None where it lacks a likelihood or its reply."""
    log_ratio, truth = log_truth_ratio(answer), answer.answer_logprob
    paraphrase = answer.paraphrase_logprob if answer.task == "captioning" else truth
    if log_ratio is None or truth is None or paraphrase is None or shown is None or shown.reply is None:
        return None
    return {
        "avg_gt_loss": -truth[0] / truth[1],
        "gt_loss": -truth[0],
        "num_token_gt": truth[1],
        "generated_text": [answer.question, shown.reply, answer.expected],
        "avg_paraphrased_loss": -paraphrase[0] / paraphrase[1],
        "paraphrased_loss": -paraphrase[0],
        "num_token_paraphrased": paraphrase[1],
        "average_perturb_loss": [-total / number for total, number in answer.wrong_logprobs],
        "perturb_loss": [-total for total, _ in answer.wrong_logprobs],
        "num_token_perturb": [number for _, number in answer.wrong_logprobs],
        "truth_ratio": math.exp(min(-log_ratio, 700.0)),
    }


def _by_field(entries: Sequence[dict[str, Any] | None]) -> dict[str, dict[str, Any]]:
    fields: dict[str, dict[str, Any]] = {}
    for index, entry in enumerate(entries):
        for field, value in (entry or {}).items():
            fields.setdefault(field, {})[str(index)] = value
    return fields
