"""The work and the variants of `viker bench precompute`: the same pairs through every way of computing their rows.

A pair is one example under one reference. Models are built from config with seeded weights (speed does not depend on
what they know), examples are seeded ids of ragged lengths that have nothing in common, pictures are seeded pixels; the
embedded benchmark's own are in `mini_world.py`. Every variant ends with the same
work: averaged in float32, cut to rows, staged in blocks and sealed into a cache. `naive` is what peers' code does; the
fast variant must give its rows, and the largest total variation is part of the result.
"""

# k references an example, M answer tokens of an example, B sequences of a batch, V vocabulary

import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from ..models.encode import Encoded, answer_rows, collate
from ..models.expand import Picture
from ..models.forward import answer_logits, to_device
from ..precompute.engines.naive import naive_rows
from ..precompute.engines.rows import Pending, Probabilities, average
from ..precompute.engines.shared_prefix import SharedPrefixEngine
from ..precompute.run import stored_rows
from ..precompute.writing.derive import join_rows
from ..precompute.writing.overlap import Steps
from ..precompute.writing.schedule import stage_blocks
from ..precompute.writing.store import CacheBuilder, Sample
from .cache import bare_fingerprint
from .operations import Product, counting

PAD, IMAGE, FIRST = 0, 4, 5  # ids: padding, the image token, the first of ordinary words
BEFORE_IMAGE = (1, 2, 3, 2, 1)
TOP_K = 64
SEQUENCES_AT_ONCE = 32


class Shape(NamedTuple):
    """Sizes of a model and the lengths of its questions and answers."""

    image_size: int
    vision: tuple[int, int]  # hidden size, layers
    text: tuple[int, int, int, int]  # hidden size, intermediate size, layers, heads
    vocab_size: int
    question: tuple[int, int]
    answer: tuple[int, int]


SHAPES = {
    "long": Shape(336, (64, 2), (512, 1376, 6, 8), 32064, (16, 40), (8, 56)),
    "llava-7b": Shape(336, (1024, 24), (4096, 11008, 32, 32), 32064, (16, 40), (8, 56)),
}


def build_model(shape: Shape, *, device: str, dtype: torch.dtype) -> Any:
    """Return a LLaVA of a shape with seeded weights."""
    hidden, layers = shape.vision
    vision = CLIPVisionConfig(
        hidden_size=hidden, intermediate_size=4 * hidden, num_hidden_layers=layers,
        num_attention_heads=max(4, hidden // 64), image_size=shape.image_size, patch_size=14, projection_dim=hidden,
    )  # fmt: skip
    hidden, intermediate, layers, heads = shape.text
    text = LlamaConfig(
        vocab_size=shape.vocab_size, hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=heads, max_position_embeddings=4096, tie_word_embeddings=False,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=IMAGE, vision_feature_layer=-2,
        vision_feature_select_strategy="default", image_seq_length=(shape.image_size // 14) ** 2,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(device):
        model: Any = LlavaForConditionalGeneration(config)
    return model.to(dtype).eval()


def make_work(shape: Shape, *, num_examples: int, num_references: int, pool_size: int) -> list[Pending]:
    """Return seeded examples under references: the whole pool where it has k images, else k drawn for each."""
    rng = random.Random(0)
    generator = torch.Generator().manual_seed(0)
    tokens = (IMAGE,) * (shape.image_size // 14) ** 2
    size = (1, 3, shape.image_size, shape.image_size)
    pool = [Picture({"pixel_values": torch.randn(size, generator=generator)}, tokens) for _ in range(pool_size)]
    work = []
    for _ in range(num_examples):
        question, answer = (seeded_words(rng, lengths, shape.vocab_size) for lengths in (shape.question, shape.answer))
        drawn = sorted(rng.sample(range(pool_size), num_references))
        prompt = (*BEFORE_IMAGE, *tokens, *question)
        shown = [Encoded(question, answer, (*prompt, *answer), (pool[image],)) for image in drawn]
        work.append(Pending(shown, [(f"{image:08d}",) for image in drawn]))
    return work


def seeded_words(rng: random.Random, lengths: tuple[int, int], vocab_size: int) -> tuple[int, ...]:
    """Return ids of ordinary words, as many as lie between two lengths."""
    return tuple(rng.randrange(FIRST, vocab_size) for _ in range(rng.randint(*lengths)))


RowsOf = Callable[[Sequence[Pending]], Iterator[Probabilities]]


def naive(model: Any, pad_id: int) -> RowsOf:
    """Return the rows of an example at a time, its k images as one batch."""
    return lambda work: naive_rows(model, work, pad_id)


def batched_naive(model: Any, pad_id: int) -> RowsOf:
    """Return the rows of several examples and all their images as one padded batch, nothing shared."""
    return lambda work: _batched_naive_rows(model, work, pad_id)


@torch.inference_mode()
def _batched_naive_rows(model: Any, work: Sequence[Pending], pad_id: int) -> Iterator[Probabilities]:
    weights = next(model.parameters())
    for items in _batches(work):
        flat = [encoded for item in items for encoded in item.shown]
        inputs = to_device(collate(flat, pad_id=pad_id, side="right"), weights.device, weights.dtype)
        batch_M, position_M, _ = answer_rows(flat)
        logprobs_MV = torch.log_softmax(answer_logits(model, inputs, batch_M, position_M).float(), dim=-1)
        parts = iter(logprobs_MV.split([len(encoded.answer_ids) for encoded in flat]))
        for item in items:
            yield average(torch.stack([next(parts) for _ in item.shown]))


def shared_prefix(model: Any, token_budget: int) -> RowsOf:
    """Return the rows of the default engine, its prefixes computed anew."""
    return SharedPrefixEngine(model, token_budget=token_budget).rows


def make_cache(home: Path, work: Sequence[Pending], rows_of: RowsOf, vocab_size: int) -> Path:
    """Compute rows block by block and seal them into a cache, by the loop of `viker precompute`."""
    keys = [index.to_bytes(16, "big") for index in range(len(work))]
    fingerprint = bare_fingerprint(keys, top_k=TOP_K, vocab_size=vocab_size, logprob_dtype="float16")
    samples = [Sample(key, bytes(16), 0, item.num_rows) for key, item in zip(keys, work, strict=True)]
    builder = CacheBuilder(home, fingerprint, {}, samples)

    def prepare(block: int) -> Iterator[Pending]:
        return iter(work[slice(*builder.blocks[block])])

    def compute(_block: int, part: list[Pending]) -> dict[str, Any]:
        return join_rows(list(stored_rows(rows_of(part), part, fingerprint)))

    def num_pairs(block: int) -> int:
        return sum(len(item.shown) for item in prepare(block))

    stage_blocks(builder, Steps(prepare, compute, builder.write_block), num_pairs)
    return builder.assemble()


class Compared(NamedTuple):
    """What an untimed round of each engine showed.

    `variation`: the largest total variation between the default engine's rows and the naive ones. `products`: what each
    engine ran. `padding`: the share of the tokens it ran that were padding.
    """

    variation: float
    products: dict[str, Counter[Product]]
    padding: dict[str, float]


def compare(work: Sequence[Pending], engines: Mapping[str, Callable[[], RowsOf]]) -> Compared:
    """Run each engine once."""
    rows: dict[str, list[Tensor]] = {}
    products: dict[str, Counter[Product]] = {}
    for name, engine in engines.items():
        with counting() as products[name]:
            rows[name] = [found.mean_MV for found in engine()(work)]
    pairs = zip(rows["shared-prefix"], rows["naive"], strict=True)
    variation = max(float((one_MV - other_MV).abs().sum(-1).max()) / 2 for one_MV, other_MV in pairs)
    padding = {
        "naive": _padding([_lengths([item]) for item in work]),
        "batched-naive": _padding(list(map(_lengths, _batches(work)))),
        "shared-prefix": 0.0,  # suffixes lie end to end, and an image's prefix runs alone
    }
    return Compared(variation, products, padding)


def _batches(work: Sequence[Pending]) -> list[Sequence[Pending]]:
    """Cut examples into batches of about as many sequences as a batch is to have."""
    at_once = max(1, SEQUENCES_AT_ONCE // len(work[0].shown))
    return [work[start : start + at_once] for start in range(0, len(work), at_once)]


def _lengths(items: Sequence[Pending]) -> list[int]:
    return [len(shown.input_ids) for item in items for shown in item.shown]


def _padding(batches: Sequence[Sequence[int]]) -> float:
    """Return the share of the tokens of padded batches that are padding."""
    run = sum(len(batch) * max(batch) for batch in batches)
    return 1 - sum(map(sum, batches)) / run
