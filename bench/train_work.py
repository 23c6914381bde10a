"""What `viker bench train` trains on: a LoRA student in the middle of a run, forget examples, and their cached rows.

*mini* is the embedded benchmark's own forget people. Other shapes have seeded weights, ids and pixels, since speed does
not depend on what was learnt: there an example's ids are given with it, and a stand-in for the encoder puts pictures in
their places. The student's LoRA is not zero, so that it differs from the teacher it is compared with. Which variants
train on it is `train.py`'s.
"""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ..data.example import DataError, EncodedImage, Example, Message
from ..data.references import make_pool, read_pool
from ..data.sources import open_source
from ..models.encode import Encoded
from ..models.expand import Picture
from ..models.interventions import Intervention
from ..models.lora import add_lora
from ..precompute.cache import row_key
from ..precompute.engines.shared_prefix import SharedPrefixEngine
from ..precompute.reading.rows import Rows, as_rows
from ..precompute.run import Work, pending_of
from ..precompute.topk import rows_from_probabilities
from ..train.batches import Item, read_items
from .mini_world import build_world
from .precompute import BEFORE_IMAGE, IMAGE, PAD, Shape, build_model, seeded_words

LORA_RANK, LORA_ALPHA = 8, 16
LORA_SPREAD = 0.02  # of the weights that start at zero
TOKEN_BUDGET = 4096
QUESTIONS = 7  # an image: what the papers' people have


GROUPS_ON_CPU = 4  # behind short images: a CPU computes the pairs that a mask hides, so few questions a row are fastest


class Prepared(NamedTuple):
    """A student with its encoder, forget examples without rows, and what their teacher is shown.

    `group_size`: questions behind one copy of their image, at most; 0 for all of a forward pass.
    """

    model: Any
    encoder: Any
    items: list[Item]
    intervention: Intervention
    group_size: int = 0


def prepare_mini(folder: Path, *, device: str, dtype: str, num_references: int, pool_size: int) -> Prepared:
    """Write the embedded benchmark into a folder, and return a student of its sizes and its forget people's questions.

    Raises:
        DataError: there are fewer images to draw from.
    """
    model, encoder = build_world(folder, device=device, dtype=dtype)
    examples = open_source(str(folder / "data")).training("forget")
    images = read_pool(folder / "data" / "pools" / "people").images
    if pool_size > len(images):
        raise DataError(f"--pool-size {pool_size}: expected at most {len(images)} for mini, found more. Name fewer.")
    images = images[:pool_size]
    return Prepared(
        _with_lora(model, folder / "model"), encoder, read_items(encoder, list(examples), None, "reference"),
        _references(images, num_references), GROUPS_ON_CPU if device == "cpu" else 0,
    )  # fmt: skip


def prepare_seeded(
    shape: Shape, *, device: str, dtype: torch.dtype, num_examples: int, num_references: int, pool_size: int
) -> Prepared:
    """Return a student of a shape, and examples of seeded ids and pixels, some about each image."""
    pool = [EncodedImage(f"reference {index}".encode(), "seeded") for index in range(pool_size)]
    return Prepared(
        _with_lora(build_model(shape, device=device, dtype=dtype), Path("seeded")), SeededEncoder(shape),
        _seeded_items(shape, num_examples), _references(pool, num_references),
    )  # fmt: skip


def with_rows(prepared: Prepared, *, top_k: int, dtype: torch.dtype) -> list[Item]:
    """Return prepared examples with the rows of their teacher, as a cache of that K and storage gives them."""
    work = [
        Work(item.example, item.prompt_ids, item.answer_ids, row_key(item.prompt_ids, item.answer_ids, None))
        for item in prepared.items
    ]
    pending = [pending_of(one, prepared.intervention, prepared.encoder) for one in work]
    engine = SharedPrefixEngine(prepared.model, token_budget=TOKEN_BUDGET)
    items = []
    with prepared.model.disable_adapter():
        for item, found in zip(prepared.items, engine.rows(pending), strict=True):
            answer_ids_M = torch.tensor(item.answer_ids, device=found.mean_MV.device)
            arrays = rows_from_probabilities(found.mean_MV, found.mean_entropy_M, answer_ids_M, top_k, dtype)
            rows = _stored({name: tensor.cpu().numpy() for name, tensor in arrays.items()})
            items.append(replace(item, rows=rows, log_rows=rows))
    return items


def _stored(arrays: dict[str, Any]) -> Rows:
    arrays["kept_id"] = arrays["kept_id"].astype(np.uint32)
    return as_rows({f"token/{name}": array for name, array in arrays.items()})


class SeededEncoder:
    """Stands in for an encoder where examples come with their ids: puts seeded pictures in their places."""

    def __init__(self, shape: Shape) -> None:
        self.vocab_size, self.pad_id = shape.vocab_size, PAD
        self._size = (1, 3, shape.image_size, shape.image_size)
        self._tokens = (IMAGE,) * (shape.image_size // 14) ** 2
        self._pictures: dict[str, Picture] = {}

    def assemble(
        self, _example: Example, prompt_ids: tuple[int, ...], answer_ids: tuple[int, ...],
        images: Sequence[EncodedImage],
    ) -> Encoded:  # fmt: skip
        """Return ids with these images in place of the image tokens, as `Encoder` does."""
        pictures = tuple(map(self._picture, images))
        parts = (self._tokens if token == IMAGE else (token,) for token in prompt_ids)
        return Encoded(prompt_ids, answer_ids, (*(id_ for part in parts for id_ in part), *answer_ids), pictures)

    def _picture(self, image: EncodedImage) -> Picture:
        if image.sha256 not in self._pictures:
            generator = torch.Generator().manual_seed(int(image.sha256[:8], 16))
            tensors = {"pixel_values": torch.randn(self._size, generator=generator)}
            self._pictures[image.sha256] = Picture(tensors, self._tokens)
        return self._pictures[image.sha256]


def _seeded_items(shape: Shape, num_examples: int) -> list[Item]:
    rng = random.Random(0)
    items = []
    for index in range(num_examples):
        person = f"{index // QUESTIONS:03d}"
        question, answer = (seeded_words(rng, lengths, shape.vocab_size) for lengths in (shape.question, shape.answer))
        example = Example(
            id=f"{person}/{index % QUESTIONS}", people=(person,), images=(EncodedImage(person.encode(), "seeded"),),
            messages=(Message("user", "<image>"),), answer="seeded", task="training",
        )  # fmt: skip
        items.append(Item(example, (*BEFORE_IMAGE, IMAGE, *question), answer, None))
    return items


def _references(images: Sequence[EncodedImage], num_references: int) -> Intervention:
    """Return references drawn from images for each example, or all of them where there are no more."""
    return Intervention(
        kind="reference", pool=make_pool("references", images), num_references=num_references, seed=0,
        shared=len(images) == num_references,
    )  # fmt: skip


def _with_lora(model: Any, base: Path) -> Any:
    """Return the model with LoRA on its language linears, as `viker train` adds it, a little way from its start."""
    adapted = add_lora(model, rank=LORA_RANK, alpha=LORA_ALPHA, dropout=0.0, base=base)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.copy_(LORA_SPREAD * torch.randn(weight.shape, generator=generator))
    return adapted
