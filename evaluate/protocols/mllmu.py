"""What MLLMU-Bench's protocol asks a model, as published or corrected: prompts, shown pictures, who is scored.

Source: MLLMU-Bench `eval.py` (commit 0e3098e; reference/benchmarks.md, 1.5 and 1.6), LLaVA branch. The published code
puts one answered person in front of classification (forget, test and retain) and two in front of cloze (all four), none
in front of generation; test questions show one of several pictures. It leaves to chance who and which, and draws the
people from those it evaluates; `corrections.py` names what we do instead, and `as_published` which of it is reverted.
Every draw ranks people or pictures by a hash of (seed, mode, task, person), so it depends on no order and no library. A
*mode* is what the published code calls a split: both halves of the retain people are one. Controls, which it does not
know, are asked as the forget people are, who are compared with them.
Words of a single question are `questions.py`'s, the template around them is `models/render.py`'s.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ...data.example import IMAGE_MARKER, DataError, EncodedImage, Example, Message
from ..questions import Style, official_prompt, shot_block
from .metrics import MARKER

MODES = {
    "forget": "forget",
    "test": "test",
    "retain-seen": "retain",
    "retain-heldout": "retain",
    "real": "real",
    "controls": "controls",
}  # split -> mode
PUBLISHED_SHOTS = {
    **{("classification", mode): 1 for mode in ("forget", "test", "retain", "controls")},
    **{("cloze", mode): 2 for mode in ("forget", "test", "retain", "real", "controls")},
}  # people in front; none elsewhere


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompted:
    """A question to be asked and scored.

    Attributes:
        example: the question as its source has it, with the picture that is shown.
        prompt: the question as the model is asked it.
        text: the whole published text, the template's part and `<image>` markers included, where the spacing that
            LLaVA's template does not make is asked for (`turn-spacing` as published); else None.
    """

    split: str
    example: Example
    prompt: Example
    text: str | None = None


def prompts(
    questions: Mapping[str, Sequence[Example]],
    *,
    style: Style,
    few_shot: int | None,
    as_published: frozenset[str],
    seed: int,
) -> list[Prompted]:
    """Return the questions that are asked and scored, in the given order, of the splits in `MODES`.

    As published, those of people who stand in front of others are left out: who asks compares the numbers, and says so.

    `few_shot` is the number of answered people in front: None for the published ones, 0 for zero-shot. Style `plain`
    asks bare questions, and choices of letters in the published words, all zero-shot.

    Raises:
        DataError: there are fewer people than are to stand in front, or `plain` with a number of them.
    """
    if style == "plain":
        _refuse_plain_shots(few_shot)
    draw = _Draw(questions, 0 if style == "plain" else few_shot, as_published, seed)
    return [
        _prompted(split, example, draw.shots(split, example), style, as_published)
        for split, example, is_scored in draw.questions()
        if is_scored
    ]


def published_text(prompt: Example, shots: Sequence[Example] = ()) -> str:
    """Return the whole text that the published LLaVA branch hands to the processor for a question in its words."""
    is_generation = prompt.task == "generation"
    opening = "USER: " if prompt.images or is_generation else "USER:\n"
    closing = f"\n{MARKER} " if prompt.images and is_generation else f"\n{MARKER}"
    return "".join(map(shot_block, shots)) + opening + prompt.messages[-1].content + closing


def _refuse_plain_shots(few_shot: int | None) -> None:
    if few_shot:
        raise DataError(
            f"--few-shot: expected 0 with --style plain, found {few_shot}. Answered questions stand in front of the "
            "published words only: use --style official."
        )


def _prompted(
    split: str, example: Example, shots: Sequence[Example], style: Style, as_published: frozenset[str]
) -> Prompted:
    if style == "plain" and example.task != "classification":
        return Prompted(split=split, example=example, prompt=example)
    prompt = official_prompt(example)
    is_single_turn = len(prompt.messages) == 1
    text = published_text(prompt, shots) if "turn-spacing" in as_published and is_single_turn else None
    return Prompted(split=split, example=example, prompt=_behind(prompt, shots), text=text)


def _behind(prompt: Example, shots: Sequence[Example]) -> Example:
    """Return a question behind answered ones, as one turn of the user: the template writes the first `USER:`."""
    if not shots:
        return prompt
    content = published_text(prompt, shots).rstrip().removesuffix(f"\n{MARKER}").removeprefix("USER:").lstrip()
    # Images follow their markers: those of earlier turns stay in front.
    earlier = sum(message.content.count(IMAGE_MARKER) for message in prompt.messages[:-1])
    shown = [image for shot in shots for image in shot.images]
    return replace(
        prompt,
        messages=(*prompt.messages[:-1], Message("user", content)),
        images=(*prompt.images[:earlier], *shown, *prompt.images[earlier:]),
    )


Kind = tuple[str, str]  # task, modality


class _Draw:
    """Everything that chance decides about a set of questions, ranked by the seed."""

    def __init__(
        self,
        questions: Mapping[str, Sequence[Example]],
        few_shot: int | None,
        as_published: frozenset[str],
        seed: int,
    ) -> None:
        self._few_shot = few_shot
        self._from_evaluated = "few-shot-people" in as_published
        self._leaves_out_shown = "few-shot-scored" in as_published
        self._seed = seed
        self._questions = {
            split: self._with_pictures(examples) if split == "test" and "test-picture" in as_published else examples
            for split, examples in questions.items()
        }
        by_mode: dict[str, list[Example]] = {mode: [] for mode in MODES.values()}
        for split, examples in self._questions.items():
            by_mode[MODES[split]].extend(examples)
        # As published, people are looked up in Full_Set; controls stand for forget people.
        pool = ("forget", "retain", "controls") if self._from_evaluated else ("retain",)
        self._pool = _answered([example for mode in pool for example in by_mode[mode]])
        # The published code draws the people of mode test from the forget folder, by their ids alone.
        self._evaluated = {mode: _people(by_mode["forget" if mode == "test" else mode]) for mode in by_mode}
        self._rankings: dict[tuple[str, Kind], list[str]] = {}

    def questions(self) -> list[tuple[str, Example, bool]]:
        """Return (split, question with the picture shown, whether it is scored) of every question."""
        found = []
        for split, examples in self._questions.items():
            places: Counter[tuple[str, Kind]] = Counter()
            for example in examples:
                key = (example.people[0], _kind(example))
                found.append((split, example, not self._is_left_out(MODES[split], example, places[key])))
                places[key] += 1
        return found

    def shots(self, split: str, example: Example) -> list[Example]:
        """Return the answered questions that stand in front of one."""
        kind = _kind(example)
        return [
            shot for person in sorted(self._shown(MODES[split], example)) for shot in self._pool.get((person, kind), ())
        ]

    def _is_left_out(self, mode: str, example: Example, place: int) -> bool:
        """Tell whether the published code leaves a question out: its place among those of a person shown in front."""
        if not self._leaves_out_shown or example.people[0] not in self._shown(mode, example):
            return False
        return place < len(self._pool.get((example.people[0], _kind(example)), ()))

    def _shown(self, mode: str, example: Example) -> list[str]:
        """Return the people who stand in front of a question."""
        kind = _kind(example)
        if not (number := self._number(mode, example.task)):
            return []
        ranking = self._ranking(mode, kind)
        if self._from_evaluated and not any((person, kind) in self._pool for person in ranking):
            return []  # as published: celebrities are not in Full_Set
        if not self._leaves_out_shown:
            ranking = [person for person in ranking if person not in example.people]
        if len(ranking) < number:
            raise DataError(
                f"{example.id}: expected {number} people to stand in front of its {example.task} questions "
                f"({mode}), found {len(ranking)}. Lower --few-shot, or ask about more people (--limit)."
            )
        return ranking[:number]

    def _number(self, mode: str, task: str) -> int:
        published = PUBLISHED_SHOTS.get((task, mode), 0)
        return published if self._few_shot is None or not published else self._few_shot

    def _ranking(self, mode: str, kind: Kind) -> list[str]:
        """Return those who may stand in front, in the order that seed, mode and task decide."""
        if (mode, kind) not in self._rankings:
            with_questions = [person for person, its_kind in self._pool if its_kind == kind]
            people = self._evaluated[mode] if self._from_evaluated else with_questions
            ranked = sorted(people, key=lambda person: (_hash(self._seed, mode, kind[0], person), person))
            self._rankings[mode, kind] = ranked
        return self._rankings[mode, kind]

    def _with_pictures(self, examples: Sequence[Example]) -> list[Example]:
        """Return test questions with one picture a person and task, of those that their person's questions show."""
        seen: dict[str, dict[str, EncodedImage]] = {}
        for example in examples:
            seen.setdefault(example.people[0], {}).update({image.sha256: image for image in example.images})
        return [self._with_picture(example, seen[example.people[0]]) for example in examples]

    def _with_picture(self, example: Example, seen: Mapping[str, EncodedImage]) -> Example:
        if len(example.images) != 1:
            return example
        drawn = int.from_bytes(_hash(self._seed, "test", example.task, example.people[0])[:8], "big")
        return replace(example, images=(seen[sorted(seen)[drawn % len(seen)]],))


def _kind(example: Example) -> Kind:
    return example.task, example.modality


def _people(examples: Sequence[Example]) -> list[str]:
    return list(dict.fromkeys(example.people[0] for example in examples))


def _answered(examples: Sequence[Example]) -> dict[tuple[str, Kind], list[Example]]:
    """Group questions by person, and by task and modality."""
    found: dict[tuple[str, Kind], list[Example]] = {}
    for example in examples:
        found.setdefault((example.people[0], _kind(example)), []).append(example)
    return found


def _hash(seed: int, mode: str, task: str, person: str) -> bytes:
    return hashlib.sha256("\0".join((str(seed), mode, task, person)).encode()).digest()
