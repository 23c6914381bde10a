"""What a deletion record does not show, in words: said in the record itself, so that nobody reads more into it.

Each sentence is there because it is true of this record: of a model that was merged or not, of attacks that were made
or not, of what was measured without a picture. None of them is to be shortened away on a page.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from .measured import FORGET, RETAIN_ONLY, UNLEARNED, VANILLA

Row = Mapping[str, Any]


def limits_section(
    weights: Mapping[str, Any], numbers: Mapping[str, Any], attacks: Mapping[str, Any], left_out: int
) -> list[str]:
    """Return the sentences."""
    return [
        *_of_weights(weights), *_of_numbers(numbers), *_of_text(numbers["subject"]), *_of_attacks(attacks),
        *([f"{left_out} examples about the person were left out of the training: they were not unlearned."]
          if left_out else []),
        "It does not show that copies are gone: of the base and the vanilla model, of other adapters, exports and "
        "backups, of the source, of teacher caches and of kept replies. viker purge takes the person out of what "
        "viker wrote, and keeps a record of its own.",
        "It does not show who made it, or when: its digest finds changes, and whoever changes it can digest it again. "
        "Deposit the digest, or sign the file, where others keep it.",
        "The pseudonym hides the person from whoever has this record alone. Whoever has the key, or the run's files, "
        "can tell whom it is about.",
    ]  # fmt: skip


def _of_weights(weights: Mapping[str, Any]) -> list[str]:
    merged = weights["merged"]
    if merged is None:
        return [
            "The adapter can be taken off: without it the model below knows what it knew. Whoever can load the model "
            "without the adapter can ask it."
        ]
    return [
        f"The numbers were measured on the adapter and its base. The merged model holds the same weights in "
        f"{merged['dtype']}, and was not asked itself."
    ]


def _of_numbers(numbers: Mapping[str, Any]) -> list[str]:
    told = [
        "The numbers about the person are over a handful of questions and have no interval: a fact that was not asked "
        "for was not tested."
    ]
    if RETAIN_ONLY not in numbers["models"]:
        told.append(
            "No model that never knew the person was measured, so nothing says what an answer at random would reach."
        )
    if VANILLA not in numbers["models"]:
        told.append("The model before unlearning was not measured, so nothing says what it knew.")
    return told


def _of_text(rows: Sequence[Row]) -> list[str]:
    """Say what is left without a picture, which an unlearned picture need not touch."""
    names = ("fact_recall", "rougeL")
    found = [
        row for name in names for row in rows
        if (row["split"], row["modality"], row["metric"]) == (FORGET, "text", name) and row["task"] == "generation"
    ]  # fmt: skip
    if not found:
        return ["Asked without a picture, by name alone, the model may still answer: that was not measured."]
    row = found[0]
    beside = [f"{part} {100 * row[part]['value']:.1f} %" for part in (VANILLA, RETAIN_ONLY) if row.get(part)]
    what = "of the facts" if row["metric"] == "fact_recall" else "of the answers' words (ROUGE-L)"
    behind = f" ({', '.join(beside)})" if beside else ""
    return [
        f"Asked about the person without a picture, by name alone, the unlearned model gives "
        f"{100 * row[UNLEARNED]['value']:.1f} % {what}{behind}."
    ]


def _of_attacks(attacks: Mapping[str, Any]) -> list[str]:
    if not attacks["run"]:
        return ["No attack was made: nothing says whether the answers are gone or only hidden."]
    untried = ", and those not made are not tested" if attacks["not_run"] else ""
    skipped = [one["attack"] for one in attacks["run"] if one["subject"] is None]
    own = f" About this person nothing was asked under {', '.join(skipped)}." if skipped else ""
    return [f"Attacks are those that are listed: another may bring back what these did not{untried}.{own}"]
