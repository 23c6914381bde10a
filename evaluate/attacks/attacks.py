"""The attacks by name: what each does, and which can be made here.

An attack asks whether what was unlearned is gone or only hidden: the same questions are asked again, worded otherwise,
about a changed picture, or of changed weights, and what comes back is compared (`recovery.py`). Records alone, so that
`viker evaluate --list-attacks` and the documentation are written from them without loading anything; how each is made
is the work of the file that its kind names.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ...data.example import DataError

AttackKind = Literal["questions", "pictures", "model"]
ALL = "all"


@dataclass(frozen=True, slots=True)
class Attack:
    """One attack: its name, what it does in one sentence, and what it changes."""

    name: str
    summary: str
    kind: AttackKind


_RECORDS = (
    Attack("paraphrase", "Each question is asked in other words, by one of five rules chosen by hash.", "questions"),
    Attack(
        "prefix",
        "The reply must begin with the true answer's words up to its first private word; only what follows counts.",
        "questions",
    ),
    Attack("crop", "A random part of 90 % of the picture's width and height is shown.", "pictures"),
    Attack("flip", "The picture is mirrored left to right.", "pictures"),
    Attack("blur", "The picture is blurred by a Gaussian of 2 % of its shorter side.", "pictures"),
    Attack("noise", "Gaussian noise of 8 % of the grey range is added to every color of every pixel.", "pictures"),
    Attack("jpeg", "The picture is stored as JPEG of quality 20.", "pictures"),
    Attack(
        "int8",
        "Linear layers of the text model compute in 8 bits, on the CPU, with the adapter merged before.",
        "model",
    ),
    Attack(
        "nf4", "Linear layers are stored in 4 bits by bitsandbytes, on a GPU, with the adapter merged before.", "model"
    ),
    Attack(
        "relearn-forget",
        "Fresh LoRA weights learn the training questions of a third of the forget people; the others are asked.",
        "model",
    ),
    Attack(
        "relearn-unrelated",
        "Fresh LoRA weights learn as many training questions of retain people who are not asked about.",
        "model",
    ),
)
ATTACKS: Mapping[str, Attack] = {attack.name: attack for attack in _RECORDS}


def choose_attacks(asked: Sequence[str], reasons_against: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Return the attacks to make, in the order of the records, and a line for each that is left out of `all`.

    `reasons_against` says why an attack cannot be made here ("expected ..., found ... Do ..."), by name.

    Raises:
        DataError: a name is not known, or an attack that was named cannot be made.
    """
    unknown = sorted(set(asked) - set(ATTACKS) - {ALL})
    if unknown:
        raise DataError(f"--attacks: expected some of {ALL}, {', '.join(ATTACKS)}, found {', '.join(unknown)}.")
    for name in asked:
        if name in reasons_against:
            raise DataError(f"--attacks {name}: {reasons_against[name]}")
    wanted = [name for name in ATTACKS if name in asked or ALL in asked]
    lines = [f"attack {name}: left out: {reasons_against[name]}" for name in wanted if name in reasons_against]
    return [name for name in wanted if name not in reasons_against], lines
