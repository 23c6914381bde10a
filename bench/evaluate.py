"""The two sides of `viker bench evaluate`: the published loop and the product's own way, asked the same questions.

`official` is MLLMU-Bench's loop (`eval.py`, commit 0e3098e; reference/benchmarks.md, section 1.5): a question at a
time, its picture through the processor anew (decoded once for neighbors that share it), one `model.generate` of at most
50 tokens each, letters of classification questions too. `viker` is what `viker evaluate` does for these replies: jobs
cut into batches, letters cut short. Answers are worth comparing only where they are the same: letters as they are
parsed, replies as they are written. The model is a run's vanilla, or one taught in half a minute: an untrained one
never ends a reply, which would flatter whoever decodes many at once.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from PIL import Image

from ..data.example import DataError, EncodedImage, Example, Message
from ..data.source import Source
from ..data.sources import open_source
from ..evaluate.ask import LETTER_TOKENS
from ..evaluate.questions import official_prompt, option_examples, parse_letter
from ..evaluate.work import Job, run_jobs_here
from ..models.encode import Encoder
from ..models.load import load, resolve
from ..models.pictures import decode
from ..models.render import chat_messages, render_llava
from ..train.finetune import finetune
from .mini_world import build_world

OFFICIAL_TOKENS = 50
TASKS = ("classification", "cloze", "generation")
QUICK_EPOCHS = 3  # from random weights: enough that replies are sentences of the right length, not that they are right


class Asked(NamedTuple):
    """A model with its encoder, and what it is asked; prompts are worded as published, questions as in their source."""

    model: Any
    encoder: Encoder
    questions: list[Example]
    prompts: list[Example]


class Said(NamedTuple):
    """A reply and the tokens that were generated for it."""

    reply: str
    num_tokens: int


class Identical(NamedTuple):
    """How many answers of each kind are the same, of how many, and the questions of those that are not."""

    letters: int
    of_letters: int
    replies: int
    of_replies: int
    others: list[str]


def open_run(model: str, data: str, *, people: int, device: str, dtype: str) -> Asked:
    """Return a model of a run and the questions about the first forget and retain people of its data.

    Raises:
        DataError: one of them cannot be read, or there is no such question.
    """
    loaded = load(resolve(model), device=device, dtype=dtype)
    return _asked(loaded.model, loaded.encoder, open_source(data), people)


def teach_quickly(folder: Path, *, people: int, device: str, dtype: str) -> Asked:
    """Write the embedded benchmark into a folder, and teach its model to answer in sentences that end."""
    model, encoder = build_world(folder, device=device, dtype="float32")
    source = open_source(str(folder / "data"))
    logs = finetune(
        model, encoder, list(source.training("all")), num_epochs=QUICK_EPOCHS, batch_size=24, group_size=4,
        learning_rate=2e-3, weight_decay=0.0, warmup_ratio=0.1, seed=0, augment_pictures=False, stop_memorized=1.0,
        accelerator=Accelerator(cpu=device == "cpu"),
    )  # fmt: skip
    for _ in logs:
        pass
    return _asked(model.to(getattr(torch, dtype)), encoder, source, people)


def _asked(model: Any, encoder: Encoder, source: Source, people: int) -> Asked:
    questions = [example for split in ("forget", "retain") for example in _of_first_people(source.read(split), people)]
    if not questions:
        raise DataError(
            f"bench evaluate: expected questions of the tasks {', '.join(TASKS)}, found none. Check --data."
        )
    return Asked(model, encoder, questions, [official_prompt(example) for example in questions])


def _of_first_people(examples: Iterator[Example], count: int) -> list[Example]:
    chosen = [example for example in examples if example.task in TASKS]
    names = sorted({example.people[0] for example in chosen})[:count]
    return [example for example in chosen if example.people[0] in names]


def official(asked: Asked, prompts: Sequence[Example]) -> list[Said]:
    """Return what is said to some prompts by the published loop."""
    replies: list[Said] = []
    shown: tuple[EncodedImage, ...] = ()
    for prompt in prompts:
        if prompt.images and prompt.images != shown:
            shown, pictures = prompt.images, [decode(image) for image in prompt.images]
        replies.append(_official_reply(asked.model, asked.encoder, prompt, pictures if prompt.images else []))
    return replies


@torch.no_grad()
def _official_reply(model: Any, encoder: Encoder, prompt: Example, pictures: list[Image.Image]) -> Said:
    text = _text_of(prompt.messages, encoder)
    begin = encoder.tokenizer.bos_token
    inputs = encoder.processor(
        text=text, **({"images": pictures} if pictures else {}), return_tensors="pt",
        add_special_tokens=not (begin and text.startswith(begin)),
    ).to(model.device, model.dtype)  # fmt: skip
    ids = model.generate(**inputs, max_new_tokens=OFFICIAL_TOKENS, do_sample=False)
    new_ids = ids[0, inputs["input_ids"].shape[1] :]
    return Said(str(encoder.tokenizer.decode(new_ids, skip_special_tokens=True)).strip(), len(new_ids))


def _text_of(messages: Sequence[Message], encoder: Encoder) -> str:
    rendering = encoder.rendering
    if rendering.system_prompt is not None and messages[0].role != "system":
        messages = [Message("system", rendering.system_prompt), *messages]
    if rendering.template == "llava":
        end = encoder.tokenizer.eos_token if rendering.score_end_token else ""
        return render_llava(messages, None, image_token=encoder.image_token, end_token=end)
    return str(encoder.processor.apply_chat_template(
        chat_messages(messages), chat_template=rendering.chat_template, add_generation_prompt=True
    ))  # fmt: skip


def viker(asked: Asked, batch_size: int) -> list[str]:
    """Return replies to all prompts by the product's own way."""
    jobs = [
        Job("reply", prompt, LETTER_TOKENS if prompt.task == "classification" else OFFICIAL_TOKENS)
        for prompt in asked.prompts
    ]
    return [str(reply) for reply in run_jobs_here(jobs, asked.model, asked.encoder, batch_size=batch_size, desc="ask")]


def likelihood_jobs(asked: Asked) -> list[Job]:
    """Return what `viker evaluate` asks beside replies: each option's likelihood, and that of published answers."""
    jobs = []
    for example in asked.questions:
        if example.task == "classification":
            jobs += [Job("score", option) for _, option in option_examples(example)]
        if example.task == "generation":
            jobs.append(Job("score", example))
    return jobs


def compare(asked: Asked, one: Sequence[str], other: Sequence[str]) -> Identical:
    """Count answers that are the same: of classification questions the parsed letter, of others the whole reply."""
    same: dict[bool, list[bool]] = {True: [], False: []}
    others = []
    for example, *replies in zip(asked.questions, one, other, strict=True):
        is_choice = example.task == "classification"
        letters = [letter for letter, _ in example.options]
        first, second = (parse_letter(reply, letters) if is_choice else reply for reply in replies)
        same[is_choice].append(first == second)
        if first != second:
            others.append(example.id)
    return Identical(sum(same[True]), len(same[True]), sum(same[False]), len(same[False]), others)
