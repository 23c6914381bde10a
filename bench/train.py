"""The variants of `viker bench train`: the same samples through the training loop, with the teacher in it or cached.

All of them take the steps of `viker train` itself (forward, backward, clipping, AdamW) on one model, in passes over all
examples, so that grouped and ungrouped batches see the same samples. The learning rate is 0: a step does all its work,
and every variant is asked about the same weights, so their losses must agree, pass by pass. The first variant is what a
user has without Viker, the memory of vision features left out; whatever else a variant includes is said beside it.
"""

import contextlib
import io
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator

from ..models.positions import backbone
from ..train.batches import Item
from ..train.loop import Optimization, StepLog, Unlearning
from ..train.methods import METHODS
from ..train.online import PassesOf, naive_passes, online_rows, shared_prefix_passes
from .operations import Product, counting
from .rounds import Measured, note
from .train_work import Prepared, with_rows

METHOD = METHODS["viker"]
FIRST, BEST_ONLINE, BEST = "online-naive-ungrouped", "online-shared-prefix-grouped", "cached-grouped"
RATIOS = (
    (BEST, BEST_ONLINE), (BEST, FIRST), (BEST, "cached-ungrouped"), ("cached-ungrouped", FIRST),
    (BEST_ONLINE, FIRST),
)  # fmt: skip

_NAIVE = "the teacher in every step, an example's references as one batch, their vision tower each time"
_SHARED = (
    "the teacher in every step, each reference once for the examples of the batch, their texts behind it as a trie"
)
_CACHED = "rows from memory, as a cache gives them, and no teacher"
_ALONE = "every question with its own copy of its image"
_TOGETHER = "the questions of an image behind one copy of it"
_FRESH = "its vision tower each time"
_REMEMBERED = "vision features of the students' images remembered"


class Variant(NamedTuple):
    """One way to train: who gives the rows (`passes` of a live teacher, else a cache), and how questions lie.

    `remembers`: whether vision features of the students' images are kept from step to step.
    """

    passes: PassesOf | None
    grouped: bool
    remembers: bool
    includes: str


VARIANTS = {
    FIRST: Variant(naive_passes, False, False, f"{_NAIVE}; {_ALONE}, {_FRESH}"),
    "online-naive-grouped": Variant(naive_passes, True, True, f"{_NAIVE}; {_TOGETHER}; {_REMEMBERED}"),
    "online-shared-prefix-ungrouped": Variant(shared_prefix_passes, False, True, f"{_SHARED}; {_ALONE}; {_REMEMBERED}"),
    BEST_ONLINE: Variant(shared_prefix_passes, True, True, f"{_SHARED}; {_TOGETHER}; {_REMEMBERED}"),
    "cached-ungrouped": Variant(None, False, True, f"{_CACHED}; {_ALONE}; {_REMEMBERED}"),
    BEST: Variant(None, True, True, f"{_CACHED}; {_TOGETHER}; {_REMEMBERED}"),
}


class Raced(NamedTuple):
    """What came of variants, by name; one that does not fit into the device's memory is in none of them.

    `losses`: the mean loss of an example in the first pass. `products`: what a pass runs. `table`: timed rounds.
    `exact_loss`: that of the fastest variant with rows that keep the whole vocabulary in float32.
    """

    exact_loss: float
    losses: dict[str, float]
    products: dict[str, Counter[Product]]
    table: dict[str, list[Measured]]

    def loss_told(self) -> dict[str, float]:
        """Return the loss, how far whole rows are apart from it, live or cached, and how far those that are stored."""
        live = [loss for name, loss in self.losses.items() if VARIANTS[name].passes is not None]
        stored = [loss for name, loss in self.losses.items() if VARIANTS[name].passes is None]
        return {
            "mean": self.exact_loss,
            "largest_difference": max(abs(loss - self.exact_loss) for loss in (*live, self.exact_loss)),
            "stored_difference": max(abs(loss - self.exact_loss) for loss in (*stored, self.exact_loss)),
        }


def race(
    prepared: Prepared, *, top_k: int, batch_size: int, grouped_batch_size: int, num_rounds: int, passes_a_round: int
) -> Raced:
    """Warm every variant up by a pass, count its products in another, and time rounds of passes, in turns.

    Args:
        prepared: what trains, on what.
        top_k: tokens that cached rows keep, in float16.
        batch_size: examples a step.
        grouped_batch_size: the same of grouped variants.
        num_rounds: timed turns of each variant.
        passes_a_round: passes over all examples a turn.
    """
    whole = with_rows(prepared, top_k=prepared.encoder.vocab_size, dtype=torch.float32)
    exact = next(passes_over(prepared, VARIANTS[BEST], whole, batch_size=grouped_batch_size, num_passes=1))
    del whole
    cached = with_rows(prepared, top_k=top_k, dtype=torch.float16)
    running = {
        name: passes_over(
            prepared, variant, cached, batch_size=grouped_batch_size if variant.grouped else batch_size,
            num_passes=2 + num_rounds * passes_a_round,
        )
        for name, variant in VARIANTS.items()
    }  # fmt: skip
    raced = Raced(exact, {}, {}, {})
    for name, passes in running.items():
        try:
            raced.losses[name] = next(passes)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            continue
        with counting() as raced.products[name]:
            next(passes)
    for _ in range(num_rounds):
        for name in raced.losses:
            _time(raced.table, name, partial(_take, running[name], passes_a_round))
    return raced


def _take(passes: Iterator[float], count: int) -> None:
    for _ in range(count):
        next(passes)


def _time(table: dict[str, list[Measured]], name: str, act: Callable[[], None]) -> None:
    """Run something and add its time and peak memory to a table: the device's memory where there is a GPU."""
    if not torch.cuda.is_available():
        note(table, name, act)
        return
    torch.cuda.reset_peak_memory_stats()
    note(table, name, act)
    table[name][-1] = table[name][-1]._replace(peak_memory=torch.cuda.max_memory_allocated())


def passes_over(
    prepared: Prepared, variant: Variant, cached: Sequence[Item], *, batch_size: int, num_passes: int
) -> Iterator[float]:
    """Train a variant; yield the mean loss of an example after each pass over all examples.

    Args:
        prepared: the student, and its examples for a live teacher.
        variant: which way to train.
        cached: the same examples with rows, for the others.
        batch_size: examples a step.
        num_passes: passes there will be.
    """
    run = _start(prepared, variant, cached, _optimization(batch_size, num_passes, variant, prepared.group_size))
    num_examples = len(prepared.items)
    sizes = [min(batch_size, num_examples - start) for start in range(0, num_examples, batch_size)]
    steps = _quiet(run)
    for _ in range(num_passes):
        losses = [size * log.loss for size, log in zip(sizes, itertools.islice(steps, len(sizes)), strict=True)]
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        yield sum(losses) / num_examples


def _start(prepared: Prepared, variant: Variant, cached: Sequence[Item], optimization: Optimization) -> Unlearning:
    items, rows_of = cached, None
    if variant.passes is not None:
        items = prepared.items
        rows_of = online_rows(prepared.model, prepared.encoder, prepared.intervention, variant.passes)
    with contextlib.nullcontext() if variant.remembers else _learning_to_see(prepared.model):
        return Unlearning(
            prepared.model, prepared.encoder, items, [], METHOD, optimization, key_entropy=1.0, stop_at_teacher=False,
            accelerator=Accelerator(cpu=not torch.cuda.is_available()), rows_of=rows_of,
        )  # fmt: skip


@contextmanager
def _learning_to_see(model: Any) -> Iterator[None]:
    """Let a tower look as if it learned while a run is made: the run then never remembers what it sees."""
    weight = next(backbone(model).vision_tower.parameters())
    weight.requires_grad_(True)
    try:
        yield
    finally:
        weight.requires_grad_(False)


def _optimization(batch_size: int, num_passes: int, variant: Variant, group_size: int) -> Optimization:
    return Optimization(
        num_train_epochs=num_passes, per_device_train_batch_size=batch_size, gradient_accumulation_steps=1,
        learning_rate=0.0, weight_decay=0.0, warmup_ratio=0.0, max_grad_norm=1.0, seed=0,
        group_by_image=variant.grouped, group_size=group_size,
    )  # fmt: skip


def _quiet(run: Unlearning) -> Iterator[StepLog]:
    """Yield the steps of a run whose bar, made at its first one, nobody sees: variants take turns."""
    steps = run.steps()
    with contextlib.redirect_stderr(io.StringIO()):
        first = next(steps)
    yield first
    yield from steps
