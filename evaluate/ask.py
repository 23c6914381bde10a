"""Put one model through the protocol: every split's questions, every reply kept.

Classification is asked twice, by letter (the official protocol) and by the likelihood of the options' texts, because
a small model may know an answer and not the letter game; the rest is generated. Answers of the generation task are
also asked for their likelihood, behind the bare question in every style, as it was trained on and as trajectories ask
it. Splits are forget, test, retain-seen, retain-heldout and real. Scores come from the kept replies and likelihoods
alone (`score.py`), so they can be computed again without a model; prompts come from `questions.py`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..data.example import Example
from ..data.halves import half_of
from ..data.source import Source
from ..models.encode import Encoder
from ..models.load import load, pick_device, resolve
from .answers import Answer
from .generate import answer_likelihoods, generate_replies
from .questions import PROMPTS, Style, few_shot_prompts, option_examples

LETTER_TOKENS = 4
SPLITS = ("forget", "test", "retain-seen", "retain-heldout", "real")


@dataclass(frozen=True, kw_only=True, slots=True)
class Protocol:
    """How a model is asked; all of it is written beside the answers."""

    style: Style
    max_new_tokens: int
    batch_size: int
    tasks: tuple[str, ...]
    few_shot: int = 0
    seed: int = 0


def collect_questions(
    source: Source, tasks: Iterable[str], limit: int | None = None, real: str = "all"
) -> dict[str, list[Example]]:
    """Return the questions of every split.

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
    return {split: _first_people(examples, limit) for split, examples in splits.items()}


def ask_model(
    spec: str, options: Mapping[str, Any], questions: Mapping[str, Sequence[Example]], protocol: Protocol, name: str
) -> tuple[list[Answer], dict[str, Any]]:
    """Load one model or adapter, ask it everything, and return its answers with facts for provenance."""
    checkpoint = resolve(spec, revision=options["revision"], processor=options["processor"])
    device = pick_device(options["device"])
    loaded = load(
        checkpoint, dtype=options["dtype"], device=device, attention=options["attention"],
        trust_remote_code=options["trust_remote_code"], chat_template=options["chat_template"],
        system_prompt=options["system_prompt"], score_end_token=options["score_end_token"],
    )  # fmt: skip
    answers = ask_everything(loaded.model, loaded.encoder, questions, protocol, name)
    counts = {split: len(examples) for split, examples in questions.items()}
    return answers, {"device": device, "model_commit": checkpoint.commit, "questions": counts}


def _first_people(examples: list[Example], limit: int | None) -> list[Example]:
    people = sorted({example.people[0] for example in examples})[:limit]
    return [example for example in examples if example.people[0] in people]


def ask_everything(
    model: Any, encoder: Encoder, questions: Mapping[str, Sequence[Example]], protocol: Protocol, name: str
) -> list[Answer]:
    """Return one answer a question of every split."""
    splits = [split for split, examples in questions.items() for _ in examples]
    asked = [example for examples in questions.values() for example in examples]
    retain = [example for split, example in zip(splits, asked, strict=True) if split.startswith("retain")]
    replies = _replies(model, encoder, asked, retain, protocol, name)
    options = _option_likelihoods(model, encoder, asked, protocol.batch_size)
    likelihoods = _expected_likelihoods(model, encoder, asked, protocol.batch_size)
    return [
        _answer(name, split, example, reply, options.get(example.id, ()), likelihood)
        for split, example, reply, likelihood in zip(splits, asked, replies, likelihoods, strict=True)
    ]


def _replies(
    model: Any, encoder: Encoder, examples: Sequence[Example], retain: Sequence[Example], protocol: Protocol, name: str
) -> list[str]:
    """Return the reply to each question; the letter game is played by the official prompt in every style.

    Only the first character of a letter reply counts, so those replies are cut short.
    """
    replies = [""] * len(examples)
    passes: tuple[tuple[bool, Style, int], ...] = (
        (True, "official", LETTER_TOKENS), (False, protocol.style, protocol.max_new_tokens),
    )  # fmt: skip
    for is_choice, style, longest in passes:
        chosen = [index for index, example in enumerate(examples) if (example.task == "classification") == is_choice]
        prompts = _prompts([examples[index] for index in chosen], style, retain, protocol)
        texts = generate_replies(
            model, encoder, prompts, max_new_tokens=longest, batch_size=protocol.batch_size, desc=f"ask {name}"
        )
        for index, text in zip(chosen, texts, strict=True):
            replies[index] = text
    return replies


def _prompts(examples: Sequence[Example], style: Style, retain: Sequence[Example], protocol: Protocol) -> list[Example]:
    """Return the questions as they are asked, behind answered questions of retain people where that is wanted."""
    if style == "official" and protocol.few_shot:
        return few_shot_prompts(examples, retain, few_shot=protocol.few_shot, seed=protocol.seed)
    return [PROMPTS[style](example) for example in examples]


def _option_likelihoods(
    model: Any, encoder: Encoder, examples: Sequence[Example], batch_size: int
) -> dict[str, tuple[tuple[str, float, int], ...]]:
    """Return for each classification question (letter, summed log-probability, tokens) of its options."""
    choices = [
        (example.id, letter, option)
        for example in examples
        if example.task == "classification"
        for letter, option in option_examples(example)
    ]
    values = answer_likelihoods(model, encoder, [option for _, _, option in choices], batch_size=batch_size)
    found: dict[str, tuple[tuple[str, float, int], ...]] = {}
    for (question, letter, _), (logprob, num_tokens) in zip(choices, values, strict=True):
        found[question] = (*found.get(question, ()), (letter, logprob, num_tokens))
    return found


def _expected_likelihoods(
    model: Any, encoder: Encoder, examples: Sequence[Example], batch_size: int
) -> list[tuple[float, int] | None]:
    """Return for each question of the generation task (summed log-probability, tokens) of its answer, else None."""
    chosen = [index for index, example in enumerate(examples) if example.task == "generation"]
    values = answer_likelihoods(model, encoder, [examples[index] for index in chosen], batch_size=batch_size)
    found = dict(zip(chosen, values, strict=True))
    return [found.get(index) for index in range(len(examples))]


def _answer(
    model: str,
    split: str,
    example: Example,
    reply: str | None,
    option_logprobs: tuple[tuple[str, float, int], ...],
    answer_logprob: tuple[float, int] | None,
) -> Answer:
    return Answer(
        model=model,
        split=split,
        task=example.task,
        modality=example.modality,
        person=example.people[0],
        id=example.id,
        question=example.question,
        expected=example.answer,
        reply=reply,
        options=example.options,
        option_logprobs=option_logprobs,
        answer_logprob=answer_logprob,
    )
