"""From a record to the exact question a model is asked: the MLLMU-Bench protocol, with its bugs corrected.

Source: MLLMU-Bench `eval.py` (commit 0e3098e; reference/benchmarks.md, sections 1.5 and 1.6), LLaVA branch. Corrected:
few-shot people come from the retain people by a seed (official: unseeded, from the very people under evaluation), and
everybody is scored (official: not the few-shot person; here that person is shown somebody else's questions instead).
A prompt here is the content of the user's turn. `USER: ` before it and `ASSISTANT:` behind it are the chat template's,
so `models/render.py` decides two bytes that the official code varies: the break after `USER:` where there is no image,
and the trailing space behind `ASSISTANT:` of image generation. Few-shot blocks spell their own `USER:`, as published.
`official` is for models of a size that follows instructions; `plain` asks what was trained on and no more, for models
like the embedded one, which never saw an instruction. Asking a model is `generate.py`'s work, scoring `score.py`'s.
"""

import hashlib
from collections.abc import Callable, Collection, Iterable, Sequence
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


PROMPTS: dict[Style, Callable[[Example], Example]] = {"official": official_prompt, "plain": plain_prompt}


def few_shot_prompts(
    examples: Sequence[Example], retain: Iterable[Example], *, few_shot: int = 0, seed: int = 0
) -> list[Example]:
    """Return official prompts with every question of `few_shot` retain people, answered, in front of them.

    Classification and cloze only, as published, which uses one person for classification and two for cloze, and none
    for the classification of celebrities. People are ranked by the seed; nobody is shown their own answers.
    """
    pools = _ranked_people(retain, seed)
    return [_with_shots(example, pools.get((example.task, example.modality), []), few_shot) for example in examples]


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


def _ranked_people(retain: Iterable[Example], seed: int) -> dict[tuple[str, str], list[list[Example]]]:
    """Group questions by task and modality, then by person, people in an order that the seed alone decides."""
    pools: dict[tuple[str, str], dict[tuple[str, ...], list[Example]]] = {}
    for example in retain:
        pools.setdefault((example.task, example.modality), {}).setdefault(example.people, []).append(example)
    return {
        asked: [people[names] for names in sorted(people, key=lambda names: _rank(seed, names))]
        for asked, people in pools.items()
    }


def _rank(seed: int, names: tuple[str, ...]) -> bytes:
    return hashlib.sha256("/".join((str(seed), *names)).encode()).digest()


def _with_shots(example: Example, people: Sequence[Sequence[Example]], few_shot: int) -> Example:
    prompt = official_prompt(example)
    if few_shot == 0 or example.task not in ("classification", "cloze"):
        return prompt
    others = [shots for shots in people if not set(shots[0].people) & set(example.people)]
    if len(others) < few_shot:
        raise DataError(
            f"{example.id}: expected {few_shot} other retain people with {example.task} questions "
            f"({example.modality}) for few-shot blocks, found {len(others)}. Lower the number or give more people."
        )
    return _behind_blocks(prompt, [shot for shots in others[:few_shot] for shot in shots])


def _behind_blocks(prompt: Example, shots: Sequence[Example]) -> Example:
    opening = "USER: " if prompt.images else "USER:\n"
    text = "".join(map(_block, shots)) + opening + prompt.messages[-1].content
    # The first `USER:` is the chat template's. Images follow their markers: those of earlier turns stay in front.
    earlier = sum(message.content.count(IMAGE_MARKER) for message in prompt.messages[:-1])
    shown = [image for shot in shots for image in shot.images]
    return replace(
        prompt,
        messages=(*prompt.messages[:-1], Message("user", text.removeprefix("USER:").lstrip())),
        images=(*prompt.images[:earlier], *shown, *prompt.images[earlier:]),
    )


def _block(shot: Example) -> str:
    markers = f"{IMAGE_MARKER}\n" * len(shot.images)
    if shot.task == "classification":
        opening = "USER: " if shot.images else "USER:\n"
        return f"{opening}{markers}Question: {shot.question}\n{_option_lines(shot)}\nCorrect Answer: {shot.answer}\n"
    opening = "USER:" if shot.images else "USER:\n"
    return f"{opening}{markers}{official_prompt(shot).question}\nCorrect Answer: {shot.answer}\n"
