"""What the tests of model families ask, and the plainest answers: conversations, pictures of several sizes, rows."""

from __future__ import annotations

import importlib.util
import io
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_families import FAMILIES, NEED_TORCHVISION
from viker.data.example import EncodedImage, Example, Message, ask_about
from viker.models.interventions import teacher_prompt
from viker.models.pictures import decode
from viker.models.render import chat_messages, render_llava
from viker.precompute.engines.naive import naive_rows
from viker.precompute.engines.rows import Pending
from viker.precompute.engines.shared_prefix import SharedPrefixEngine
from viker.precompute.run import Work, pending_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from viker.models.interventions import Intervention
    from viker.models.load import Loaded

NAIVE_ONLY = ("gemma3", "mllama")
SHARED = tuple(family for family in FAMILIES if family not in NAIVE_ONLY)
M_ROPE = ("qwen2_vl", "qwen2_5_vl")
SIZES = ((64, 64), (150, 60), (40, 170), (90, 120))  # width, height: several tile layouts and grids


def needed(family: str) -> Any:
    """A test parameter that is skipped where the family's processor cannot be loaded."""
    packages = ["torchvision"] if family in NEED_TORCHVISION else []
    missing = [
        name for name in [*packages, *["num2words"] * (family == "smolvlm")] if not importlib.util.find_spec(name)
    ]
    return pytest.param(family, marks=pytest.mark.skipif(bool(missing), reason=f"{family}'s processor needs {missing}"))


each = pytest.mark.parametrize("family", [needed(family) for family in FAMILIES], indirect=True)
each_but_mllama = pytest.mark.parametrize(
    "family", [needed(family) for family in FAMILIES if family != "mllama"], indirect=True
)
each_shared = pytest.mark.parametrize("family", [needed(family) for family in SHARED], indirect=True)
each_naive = pytest.mark.parametrize("family", [needed(family) for family in NAIVE_ONLY], indirect=True)
each_m_rope = pytest.mark.parametrize("family", [needed(family) for family in M_ROPE], indirect=True)


def picture(index: int) -> EncodedImage:
    """A picture of its own size, with something to see in it."""
    width, height = SIZES[index % len(SIZES)]
    rng = np.random.default_rng(index)
    coarse = Image.fromarray(rng.integers(0, 255, (4, 4, 3), dtype=np.uint8))
    stream = io.BytesIO()
    coarse.resize((width, height), Image.Resampling.NEAREST).save(stream, "PNG")
    return EncodedImage(stream.getvalue(), f"picture {index}")


def asked(
    index: int, answer: str = "The person was born in Lisbon.", question: str = "Where was this person born?"
) -> Example:
    messages = ask_about(picture(index), question)
    return Example(
        id=f"x/{index}", people=("x",), images=(picture(index),), messages=messages, answer=answer, task="training"
    )


def several_turns() -> Example:
    turns = (
        Message("system", "Answer briefly."),
        Message("user", "<image>\nWho is\nthis?"),
        Message("assistant", "A baker."),
        Message("user", "And in <image>\nLisbon?"),
    )
    images = (picture(1), picture(2))
    return Example(id="x/turns", people=("x",), images=images, messages=turns, answer="A pilot.\nYes.", task="training")


EXAMPLES = (
    asked(0, "No."),
    asked(1),
    asked(2, "Yes, in Lisbon, and works there as a baker every day.\nYes."),
    asked(1, "A baker."),
    asked(3, question="Who\nis this\n\nperson?"),
    several_turns(),
)


def own_inputs(loaded: Loaded, example: Example) -> dict[str, Any]:
    """What the family's own processor makes of a conversation, answer and pictures included."""
    encoder = loaded.encoder
    pictures = [decode(image) for image in example.images]
    turns = [*example.messages, Message("assistant", example.answer)]
    if encoder.rendering.template == "llava":
        text = render_llava(turns, None, image_token=encoder.image_token, end_token=encoder.tokenizer.eos_token)
        return encoder.processor(text=text, images=pictures, return_tensors="pt")
    messages, remaining = chat_messages(turns), iter(pictures)
    for part in (part for message in messages for part in message["content"] if part["type"] == "image"):
        part["image"] = next(remaining)
    return encoder.processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")


@torch.inference_mode()
def own_rows(loaded: Loaded, example: Example) -> torch.Tensor:
    """The distributions [M, V] at the answer's tokens, of one plain forward pass."""
    encoded = loaded.encoder.encode(example)
    logits_TV = loaded.model(**own_inputs(loaded, example)).logits[0]
    return logits_TV[encoded.num_prompt - 1 : len(encoded.input_ids) - 1].softmax(-1)


def work_of(loaded: Loaded, examples: Sequence[Example], images: Sequence[EncodedImage] | None) -> list[Pending]:
    """Each example under its own images, or averaged over these in their place."""
    work = []
    for example in examples:
        shown = [example.images] if images is None else [(image,) * len(example.images) for image in images]
        encoded = [loaded.encoder.encode(example, those) for those in shown]
        work.append(Pending(encoded, [tuple(image.sha256 for image in those) for those in shown]))
    return work


def work_under(loaded: Loaded, examples: Sequence[Example], intervention: Intervention) -> list[Pending]:
    """Each example as an intervention shows it."""
    work = []
    for index, example in enumerate(examples):
        ids = loaded.encoder.ids(example)
        shown_ids = teacher_prompt(intervention, loaded.encoder, example, *ids)
        work.append(pending_of(Work(example, *ids, bytes([index]) * 16, shown_ids), intervention, loaded.encoder))
    return work


def variation(first: torch.Tensor, second: torch.Tensor) -> float:
    """The largest total variation of two tensors of distributions."""
    return float((first - second).abs().sum(-1).max()) / 2


def naive(loaded: Loaded, work: Sequence[Pending]) -> list[torch.Tensor]:
    return [rows.mean_MV for rows in naive_rows(loaded.model, work, loaded.encoder.pad_id)]


def shared(loaded: Loaded, work: Sequence[Pending]) -> list[torch.Tensor]:
    return [rows.mean_MV for rows in SharedPrefixEngine(loaded.model, token_budget=128).rows(work)]


def worst(ours: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor]) -> float:
    return max(variation(*pair) for pair in zip(ours, theirs, strict=True))
