"""The kinds of teacher, named by what the frozen model is shown, and what they have in common.

Commands have to know them before anything heavy is loaded, so the words are here; what each of them shows is
`models/interventions.py`'s.
"""

from typing import Literal, get_args

Kind = Literal["reference", "self", "noise", "prompt", "text"]
Answers = Literal["own", "refusal"]

KINDS: tuple[str, ...] = get_args(Kind)
ANSWERS: tuple[str, ...] = get_args(Answers)
REPLACES_IMAGES = ("reference", "noise")  # needs an image to replace, and draws what replaces it
SHOWS_OWN_IMAGE = ("self", "prompt")  # where the model memorized an answer, its rows may be the answer
TAKES_INSTRUCTION = ("noise", "prompt")


def rows_name(kind: str, split: str, answers: str, top_k: int) -> str:
    """Return what a run calls the rows of a teacher: `self-forget`, or `self-forget-refusal-scalars` where K is 0.

    One run may hold both the rows and, for methods that read no more, the scalars of the same answers.
    """
    parts = [kind, split, *([] if answers == "own" else [answers]), *([] if top_k else ["scalars"])]
    return "-".join(parts)
