"""The published table: MLLMU-Bench's own keys and units, from kept answers of one model.

Source: MLLMU-Bench `eval.py` (commit 0e3098e; reference/benchmarks.md, 1.5), what its `main` writes to
`*_final_evaluation_results.json`. Accuracies are times 100 there and ROUGE and BLEU are not, and the two accuracy tasks
spell their keys differently; both is kept. Answers are parsed and scored as published, however they were asked: the
table is the published one only for answers asked under `official`. Both halves of the retain people are one set. What
nobody answered is left out, where the published code prints 0.
"""

from collections.abc import Callable, Sequence
from statistics import fmean

from ...data.example import DataError
from ..answers import Answer
from .corrections import CORRECTIONS
from .metrics import answer_scores
from .mllmu import MODES

TITLES = {
    "forget": "Forget Set Results",
    "test": "Test Set Results",
    "retain": "Retain Set (shared dataset) Results",
    "real": "Retain Set (real person) Results",
}
_ROUGE = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L", "sentence_bleu": "BLEU"}
_OPEN_TYPES = {"image": "Image_Textual", "text": "Pure_Text"}

Table = dict[str, dict[str, dict[str, float]]]


def official_table(answers: Sequence[Answer]) -> Table:
    """Return mode -> task -> key -> value as the published code writes them; other splits and tasks are left out.

    Raises:
        DataError: the answers are of several models.
    """
    if len(models := sorted({answer.model for answer in answers})) > 1:
        raise DataError(f"expected the answers of one model, found those of {', '.join(models)}. Make a table of each.")
    table: Table = {}
    for mode, title in TITLES.items():
        of_mode = [answer for answer in answers if MODES.get(answer.split) == mode]
        tasks = {
            name: keyed([answer for answer in of_mode if answer.task == task])
            for name, (task, keyed) in _TASKS.items()
            if any(answer.task == task for answer in of_mode)
        }
        table |= {title: tasks} if tasks else {}
    return table


def _fill_in_the_blank(answers: Sequence[Answer]) -> dict[str, float]:
    keys = {"image": "image_textual_accuracy", "text": "pure_text_accuracy"}
    return {key: 100 * _mean(answers, kind, "accuracy") for kind, key in _present(keys, answers)}


def _classification(answers: Sequence[Answer]) -> dict[str, float]:
    keys = {"image": "Image-Textual Question Accuracy", "text": "Pure Text Question Accuracy"}
    return {key: 100 * _mean(answers, kind, "accuracy_letter") for kind, key in _present(keys, answers)}


def _generation(answers: Sequence[Answer]) -> dict[str, float]:
    return {
        f"Average {name} ({kind})": _mean(answers, modality, metric)
        for modality, kind in _present(_OPEN_TYPES, answers)
        for metric, name in _ROUGE.items()
    }


_TASKS: dict[str, tuple[str, Callable[[Sequence[Answer]], dict[str, float]]]] = {
    "fill_in_the_blank": ("cloze", _fill_in_the_blank),
    "classification": ("classification", _classification),
    "generation": ("generation", _generation),
}


def _present(names: dict[str, str], answers: Sequence[Answer]) -> list[tuple[str, str]]:
    """Return the (modality, name) pairs that some answer is of; a choice without a letter was never asked so."""
    return [
        (modality, name)
        for modality, name in names.items()
        if any(answer.modality == modality and answer.reply is not None for answer in answers)
    ]


def _mean(answers: Sequence[Answer], modality: str, metric: str) -> float:
    published = frozenset(CORRECTIONS)
    chosen = [answer for answer in answers if answer.modality == modality and answer.reply is not None]
    return fmean(answer_scores(answer, published)[metric] for answer in chosen)
