"""From a record to the words a model is asked in: MLLMU-Bench's, or the bare question.

Source: MLLMU-Bench `eval.py` (commit 0e3098e; reference/benchmarks.md, section 1.5), LLaVA branch. A prompt here is the
content of the user's turn: `USER: ` before it and `ASSISTANT:` behind it are the chat template's (`models/render.py`).
Blocks of answered questions that stand in front of others spell their own `USER:`, as published; who is in them, and
all else that the protocol decides about a set of questions, is `protocols/mllmu.py`'s. `official` is for models of a
size that follows instructions; `plain` asks what was trained on and no more, for models like the embedded one, which
never saw an instruction. Asking a model is `generate.py`'s work, scoring `score.py`'s.
"""

from collections.abc import Collection
from dataclasses import replace
from typing import Literal

from ..data.example import IMAGE_MARKER, DataError, Example, Message

Style = Literal["official", "plain"]

LETTER_INSTRUCTION = "Just give ONE letter representing the answer directly."
CLOZE_INSTRUCTION = "Please **ONLY** provide the correct answer that should replace the [Blank]."
# The two wordings differ in the published code; the numbers it reports come from both.
GENERATION_INSTRUCTIONS = {
    "image": "Answer the question based on your trained knowledge in one sentence accurately in ENGLISH.",
    "text": "Answer the question based on your trained knowledge in one sentence in ENGLISH.",
}


def official_prompt(example: Example) -> Example:
    """Return the example asked as MLLMU-Bench's `eval.py` asks it, zero-shot; other tasks are asked as they are."""
    content = example.messages[-1].content
    if example.task == "classification":
        return _asking(example, f"{content}\n{_option_lines(example)}\n{LETTER_INSTRUCTION}")
    if example.task == "cloze":
        return _asking(example, content.replace("__", "[Blank]") + f"\n{CLOZE_INSTRUCTION}")
    if example.task == "generation":
        return _asking(example, f"{content}\n{GENERATION_INSTRUCTIONS[example.modality]}")
    return example


def plain_prompt(example: Example) -> Example:
    """Return the example asked in its source's own words: no instruction, and no list of options."""
    return example


def shot_block(shot: Example) -> str:
    """Return a classification or cloze question with its answer as it stands in front of others, as published."""
    markers = f"{IMAGE_MARKER}\n" * len(shot.images)
    if shot.task == "classification":
        opening = "USER: " if shot.images else "USER:\n"
        return f"{opening}{markers}Question: {shot.question}\n{_option_lines(shot)}\nCorrect Answer: {shot.answer}\n"
    opening = "USER:" if shot.images else "USER:\n"
    return f"{opening}{markers}{official_prompt(shot).question}\nCorrect Answer: {shot.answer}\n"


def option_examples(example: Example) -> list[tuple[str, Example]]:
    """Return a (letter, example) per option: the bare question, answered by that option's text, for likelihoods."""
    return [
        (letter, replace(example, id=f"{example.id}:{letter}", answer=text, options=()))
        for letter, text in _options(example)
    ]


def parse_letter(reply: str, letters: Collection[str]) -> str | None:
    """Return the letter a reply chooses: its first character, upper-cased, if that is an option, else None."""
    first = reply.strip()[:1].upper()
    return first if first and first in letters else None


def _asking(example: Example, content: str) -> Example:
    return replace(example, messages=(*example.messages[:-1], Message("user", content)))


def _options(example: Example) -> tuple[tuple[str, str], ...]:
    if not example.options:
        raise DataError(
            f"{example.id}: expected the options of a classification question, found none. Correct the source."
        )
    return example.options


def _option_lines(example: Example) -> str:
    return "\n".join(f"{letter}: {text}" for letter, text in _options(example))
