"""Forget, test, retain and real side by side: the same few metrics on each, every model in one row.

The headline has four numbers; whoever judges a method wants the same ones of every split, to see a loss on celebrities
as soon as one on retain people. Columns that no model has are left out, controls stand behind where they were asked.
"""

from collections.abc import Iterable

SPLITS = ("forget", "test", "retain-heldout", "real", "controls")


def split_columns(cells: Iterable[tuple[str, str, str, str]], task: str, modality: str) -> list[dict[str, str]]:
    """Return the columns of each split, of the cells (split, task, modality, metric) that were measured.

    `task` and `modality` are the headline's. Multiple choice is scored by likelihood where that was done, which needs
    no skill at letters, else by the letter.
    """
    measured = set(cells)
    return [
        {"label": label, "split": split, "task": of, "modality": modality, "metric": metric}
        for split in SPLITS
        for label, of, metric in _metrics(measured, split, task, modality)
        if (split, of, modality, metric) in measured
    ]


def _metrics(
    measured: set[tuple[str, str, str, str]], split: str, task: str, modality: str
) -> list[tuple[str, str, str]]:
    by_likelihood = (split, "classification", modality, "accuracy_likelihood") in measured
    choice = ("choice", "classification", "accuracy_likelihood" if by_likelihood else "accuracy_letter")
    return [("facts", task, "fact_recall"), ("ROUGE-L", task, "rougeL"), choice]
