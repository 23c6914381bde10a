"""What work costs, from the sizes of a model: operations, bytes of a cache, memory. Formulas, and nothing measured.

A multiplication and its addition are two operations. With W the weights of a part's linear layers:

    vision   2 W_vision T + 4 width layers T T_tile      an image of T patches; attention inside a tile of T_tile
    prefix   2 W_text P + 4 width layers P (P + 1) / 2   P tokens, each of which sees those before it and itself
    suffix   2 W_text T + 4 width layers (tokens seen)   T tokens that are run
    head     2 hidden V                                  a state that predicts an answer token

where width is heads times head size. Normalization, activations, rotary embeddings and softmax are left out: they move
bytes, not operations. The first two are run once a prefix, by other engines once a pair. Sizes are `shape.py`'s.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..precompute.cache import Fingerprint
from ..precompute.reading.layout import array_plans
from .sharing import Run, run_shared
from .work import Block, Planned, Prefix

SHARED = "shared-prefix"
TYPICAL_SHARE = 183.1 / 274.0  # of the raw bytes: rows of a trained model, benchmarks/cache.md
CONCURRENT_LOGITS = 4  # float32 arrays of a chunk of logits at a time: logits, log-probabilities, two of the entropy


class Tower(NamedTuple):
    """Weights of the linear layers of a model's part, its layers, and its heads times their size."""

    weights: int
    layers: int
    width: int


class Shape(NamedTuple):
    """The sizes of a model that decide what work costs."""

    vision: Tower
    text: Tower
    patch: int  # elements of a pixel tensor that make one patch
    tile_patches: int
    key_value_width: int  # key-value heads times their size
    hidden: int
    intermediate: int
    vocab_size: int
    parameters: int


class Operations(NamedTuple):
    """Operations by part."""

    vision: int
    prefix: int
    suffix: int
    head: int

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self)


class Memory(NamedTuple):
    """Bytes on the device at the peak, by what holds them."""

    weights: int
    prefixes: int
    averages: int
    logits: int
    activations: int

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self)


def prefix_operations(shape: Shape, prefix: Prefix) -> tuple[int, int]:
    """Return the operations of running a prefix's images and its tokens."""
    patches = prefix.pixels // shape.patch
    seen = patches * min(patches, shape.tile_patches)
    return _through(shape.vision, patches, seen), _through(shape.text, prefix.length, _triangle(prefix.length))


def suffix_operations(shape: Shape, run: Run) -> tuple[int, int]:
    """Return the operations of running suffix tokens, and of the output layer on the states that predict."""
    return _through(shape.text, run.tokens, run.seen), 2 * shape.hidden * shape.vocab_size * run.states


def block_operations(shape: Shape, block: Block, engine: str, new: Iterable[Prefix]) -> Operations:
    """Return the operations of a block for which these prefixes are computed anew (other engines compute all)."""
    if engine != SHARED:
        runs = [prefix_operations(shape, prefix) for prefix, _ in block.pairs]
        suffixes = [suffix_operations(shape, _alone(prefix, len(s.run), len(s.answer))) for prefix, s in block.pairs]
    else:
        runs = [prefix_operations(shape, prefix) for prefix in new]
        suffixes = [suffix_operations(shape, run_shared(block))]
    return Operations(*_sums(runs), *_sums(suffixes))


def total_operations(shape: Shape, planned: Planned, engine: str) -> Operations:
    """Return the operations of all blocks, each prefix computed once."""
    seen: set[Prefix] = set()
    parts = []
    for block in planned.blocks:
        parts.append(block_operations(shape, block, engine, block.suffixes.keys() - seen))
        seen |= block.suffixes.keys()
    return Operations(*map(sum, zip(*parts, strict=True)))


def raw_bytes(fingerprint: Fingerprint, num_samples: int, num_rows: int, pool_size: int) -> int:
    """Return the bytes of a cache's arrays before compression, which is the most they take but for metadata."""
    plans = array_plans(fingerprint, num_samples, num_rows, pool_size).values()
    return sum(math.prod(plan.shape) * np.dtype(plan.dtype).itemsize for plan in plans)


def prefix_bytes(shape: Shape, lengths: Iterable[int], element_size: int) -> int:
    """Return the bytes of the keys and values of prefixes."""
    return 2 * shape.text.layers * shape.key_value_width * element_size * sum(lengths)


def peak_memory(
    shape: Shape, planned: Planned, element_size: int, *, token_budget: int, prefix_budget: int, sum_budget: int,
    rows_at_once: int, bytes_a_weight: float,
) -> Memory:  # fmt: skip
    """Estimate the memory of the shared-prefix engine; budgets are the engine's, in tokens, bytes, bytes and rows.

    Activations are a batch's hidden states, keys, queries, values and the feed-forward layer's two halves; what is
    quantised are the linear layers, so those alone take `bytes_a_weight`.
    """
    linear = shape.vision.weights + shape.text.weights
    most_rows = max(block.distinct_rows for block in planned.blocks)
    width = 4 * shape.hidden + shape.text.width + 2 * shape.key_value_width + 2 * shape.intermediate
    tokens = max(token_budget, max(prefix.length for prefix in planned.prefixes))
    most_states = max(run_shared(block).states for block in planned.blocks)
    return Memory(
        weights=round(bytes_a_weight * linear) + (shape.parameters - linear) * element_size,
        prefixes=min(prefix_budget, prefix_bytes(shape, (one.length for one in planned.prefixes), element_size)),
        averages=min(sum_budget, 4 * shape.vocab_size * most_rows),
        logits=CONCURRENT_LOGITS * 4 * shape.vocab_size * min(rows_at_once, most_states),
        activations=element_size * width * tokens,
    )


def _through(tower: Tower, tokens: int, seen: int) -> int:
    return 2 * tower.weights * tokens + 4 * tower.width * tower.layers * seen


def _triangle(count: int) -> int:
    return count * (count + 1) // 2


def _alone(prefix: Prefix, tokens: int, states: int) -> Run:
    seen = _triangle(prefix.length + tokens) - _triangle(prefix.length)
    return Run(tokens, seen, states)


def _sums(pairs: Sequence[tuple[int, int]]) -> tuple[int, int]:
    return sum(first for first, _ in pairs), sum(second for _, second in pairs)


def told(value: Any) -> dict[str, Any]:
    """Return operations, memory or seconds for JSON, with their total."""
    return {**value._asdict(), "total": value.total}
