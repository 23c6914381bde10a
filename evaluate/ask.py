"""Put one model through a protocol: every question as jobs for a model, every result as a kept answer.

Classification is asked twice, by letter (the official protocol) and by the likelihood of the options' texts, because a
small model may know an answer and not the letter game; recognition is asked openly and, where wrong names are
published, by options too. The rest is generated. What was expected is also asked for its likelihood, token by token,
behind the bare question in every style, as it was trained on and as trajectories ask it; so are published paraphrases
and wrong answers. Prompts come from `questions.py` and `protocols/`, batches and processes are `work.py`'s, scores come
from the kept answers alone (`score.py`), so they can be computed again without a model.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from ..data.controls import control_questions
from ..data.example import DataError, Example
from ..data.halves import half_of
from ..data.source import Source
from ..models.encode import Encoder
from .answers import Answer
from .protocols.clear import BLIND_SUFFIX, OPTION_SUFFIX, option_questions, without_picture
from .protocols.clear import PROMPTS as CLEAR_PROMPTS
from .protocols.mllmu import Prompted, prompts
from .questions import Style, option_examples
from .work import Job, run_jobs_here

LETTER_TOKENS = 4  # only the first character of a letter reply counts
NO_PICTURE = "rouge-text-only"  # the correction of CLEAR that is about pictures
PUBLISHED_TOKENS = {"mllmu": 50, "clear": 300}  # longest reply of each benchmark's own code
SPLITS = ("forget", "test", "retain-seen", "retain-heldout", "real")
CONTROLS = "controls"
CLEAR_TASKS = ("captioning", "recognition")
LIKELY_TASKS = ("generation", "captioning", "recognition")  # whose expected answers are asked for their likelihood

Result = Any  # of a job: a reply, or what `generate.py` says of every token of an answer


@dataclass(frozen=True, kw_only=True, slots=True)
class Protocol:
    """How a model is asked; all of it is written beside the answers.

    `few_shot` is the number of people whose answered questions stand in front, None for what the protocol publishes;
    `max_new_tokens` None is the published length.
    """

    style: Style
    max_new_tokens: int | None
    batch_size: int
    tasks: tuple[str, ...]
    few_shot: int | None = 0
    as_published: frozenset[str] = frozenset()
    seed: int = 0


class Purpose(NamedTuple):
    """What a job's result is for: which question's reply, option (by letter), expected, paraphrased or wrong answer."""

    question: int
    what: Literal["reply", "option", "answer", "paraphrase", "wrong"]
    letter: str = ""


def collect_questions(
    source: Source, tasks: Iterable[str], limit: int | None = None, real: str = "all", controls: Source | None = None
) -> dict[str, list[Example]]:
    """Return the questions of every split, and those about controls where there are any.

    `limit` keeps the first so many people of each, by id; `real` is `all`, or `heldout` to leave out the half of the
    celebrities that serves as a reference pool.
    """
    wanted = frozenset(tasks)
    splits: dict[str, list[Example]] = {split: [] for split in SPLITS}
    for name in ("forget", "test", "retain", "real"):
        for example in source.read(name):
            half = half_of(example.people[0])
            if name == "real" and real == "heldout" and half == "seen":
                continue
            if example.task in wanted:
                split = f"retain-{half.replace('-', '')}" if name == "retain" else name
                splits[split].append(example)
    if controls is not None:
        splits[CONTROLS] = control_questions(controls, wanted)
    return {split: _first_people(examples, limit) for split, examples in splits.items()}


def _first_people(examples: list[Example], limit: int | None) -> list[Example]:
    people = sorted({example.people[0] for example in examples})[:limit]
    return [example for example in examples if example.people[0] in people]


def prompted_questions(questions: Mapping[str, Sequence[Example]], protocol: Protocol) -> list[Prompted]:
    """Return every question as it is asked: by MLLMU-Bench, or where there are names and captions by CLEAR."""
    if not is_clear(questions):
        return prompts(
            questions, style=protocol.style, few_shot=protocol.few_shot, as_published=protocol.as_published,
            seed=protocol.seed,
        )  # fmt: skip
    if protocol.few_shot:
        raise DataError(
            f"--few-shot: expected 0 for names and captions, which CLEAR asks zero-shot, found {protocol.few_shot}."
        )
    return [
        Prompted(split=split, example=example, prompt=CLEAR_PROMPTS[protocol.style](example))
        for split, examples in questions.items()
        for example in (*examples, *_clear_variants(examples, protocol))
    ]


def without_options(questions: Mapping[str, Sequence[Example]], protocol: Protocol) -> dict[str, dict[str, int]]:
    """Return by split, and by reason, what CLEAR's questions by options have to go without."""
    if not is_clear(questions):
        return {}
    return {split: option_questions(examples, protocol.seed)[1] for split, examples in questions.items()}


def is_clear(questions: Mapping[str, Sequence[Example]]) -> bool:
    """Tell whether questions are CLEAR's: only it asks for names and captions."""
    return any(example.task in CLEAR_TASKS for examples in questions.values() for example in examples)


def longest_reply(questions: Mapping[str, Sequence[Example]], protocol: Protocol) -> int:
    """Return the most tokens of a reply."""
    return protocol.max_new_tokens or PUBLISHED_TOKENS["clear" if is_clear(questions) else "mllmu"]


def letter_tokens(questions: Mapping[str, Sequence[Example]], protocol: Protocol) -> int:
    """Return the most tokens of a letter: a few, unless all of the reply decides what counts of it."""
    return longest_reply(questions, protocol) if "reply-cut" in protocol.as_published else LETTER_TOKENS


def _clear_variants(examples: Sequence[Example], protocol: Protocol) -> list[Example]:
    """Return recognition by options, and where pictures are forgotten as published, every question without its own."""
    by_options, _ = option_questions(examples, protocol.seed)
    blind = [without_picture(one) for one in examples if one.images] if NO_PICTURE in protocol.as_published else []
    return [*by_options, *blind]


def jobs_of(prompted: Sequence[Prompted], longest: int, letters: int) -> tuple[list[Job], list[Purpose]]:
    """Return what a model has to be asked, and what each result is for.

    Args:
        prompted: the questions.
        longest: most tokens of a reply.
        letters: the same where a letter is asked for.
    """
    jobs: list[Job] = []
    purposes: list[Purpose] = []
    for index, asked in enumerate(prompted):
        for purpose, job in _jobs_of(index, asked, longest, letters):
            jobs.append(job)
            purposes.append(purpose)
    return jobs, purposes


def _jobs_of(index: int, asked: Prompted, longest: int, letters: int) -> Iterable[tuple[Purpose, Job]]:
    example = asked.example
    is_choice = example.task == "classification"
    yield Purpose(index, "reply"), Job("reply", asked.prompt, letters if is_choice else longest, asked.text)
    has_names = example.id.endswith(OPTION_SUFFIX)  # whose likelihood is asked behind the open question
    for letter, option in option_examples(example) if is_choice and not has_names else ():
        yield Purpose(index, "option", letter), Job("score", option)
    if example.task in LIKELY_TASKS and not example.id.endswith(BLIND_SUFFIX):
        yield Purpose(index, "answer"), Job("score", example)
        if example.paraphrase:
            yield Purpose(index, "paraphrase"), Job("score", replace(example, answer=example.paraphrase))
        for wrong in example.wrong:
            yield Purpose(index, "wrong"), Job("score", replace(example, answer=wrong))


def answers_of(
    prompted: Sequence[Prompted], purposes: Sequence[Purpose], results: Sequence[Result], name: str
) -> list[Answer]:
    """Return one answer a question from the results of its jobs."""
    found: list[dict[str, Any]] = [{"option_logprobs": (), "wrong_logprobs": ()} for _ in prompted]
    for (index, what, letter), result in zip(purposes, results, strict=True):
        kept = found[index]
        match what:
            case "reply":
                kept["reply"] = result
            case "option":
                kept["option_logprobs"] += ((letter, *_summed(result)),)
            case "answer":
                kept |= {"answer_logprob": _summed(result), "answer_tokens": result}
            case "paraphrase":
                kept["paraphrase_logprob"] = _summed(result)
            case "wrong":
                kept["wrong_logprobs"] += (_summed(result),)
    return [_answer(asked, fields, name) for asked, fields in zip(prompted, found, strict=True)]


def ask_everything(
    model: Any, encoder: Encoder, questions: Mapping[str, Sequence[Example]], protocol: Protocol, name: str
) -> list[Answer]:
    """Return one answer a question of every split, asked here and now: nothing is kept on the way."""
    prompted = prompted_questions(questions, protocol)
    jobs, purposes = jobs_of(prompted, longest_reply(questions, protocol), letter_tokens(questions, protocol))
    results = run_jobs_here(jobs, model, encoder, batch_size=protocol.batch_size, desc=f"ask {name}")
    return answers_of(prompted, purposes, results, name)


def _summed(tokens: Sequence[Sequence[float]]) -> tuple[float, int]:
    """Return the log-probability of a whole answer, and its number of tokens."""
    return float(sum(token[0] for token in tokens)), len(tokens)


def _answer(asked: Prompted, fields: Mapping[str, Any], name: str) -> Answer:
    example = asked.example
    return Answer(
        model=name, split=asked.split, task=example.task, modality=example.modality, person=example.people[0],
        id=example.id, question=example.question, expected=example.answer, options=example.options, **fields,
    )  # fmt: skip
