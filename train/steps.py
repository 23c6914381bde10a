"""One optimizer step: score micro-batches, add up the method's terms, and leave the gradient on the weights.

A step's loss is a sum over answer tokens, divided by the number of examples of the step over all processes, so batches
may be cut and shared anyhow. Where teacher rows come from (a cache, or a live teacher) is a function that is given.
Drawing, optimizing and logging are `loop.py`'s.
"""

# M answer tokens, B examples

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from ..models.encode import Encoder, answer_rows, collate
from ..models.forward import to_device
from ..models.pack import Packed, pack_for
from ..models.vision_memo import VisionMemo
from . import terms as built_in
from .batches import Item, micro_batches, no_rows, stack_rows
from .method import Method, Term
from .rows import TeacherRows
from .scored import Scored
from .student import Student

RowsOf = Callable[[Sequence[Item]], TeacherRows | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Sums:
    """Sums over a micro-batch: its terms, and log q(y) of its answer tokens for the log and the stop rule."""

    values: Mapping[str, float]
    logprob_M: Tensor
    items: Sequence[Item]


@dataclass(frozen=True, kw_only=True, slots=True)
class Scorer:
    """Runs the student on examples and says what it sees of their answers."""

    student: Student
    encoder: Encoder
    rows_of: RowsOf
    group_size: int
    memo: VisionMemo | None
    layer: int | None = None
    row_length: int = 0
    without_adapter: Callable[[], AbstractContextManager[Any]] = nullcontext

    def score(self, items: Sequence[Item], *, keeps_states: bool = False) -> Scored:
        """Return the scored answer tokens of examples, in the buckets of their rows if those are read.

        `keeps_states`: the layer's states are wanted without the adapter too.
        """
        answer_ids = [token for item in items for token in item.answer_ids]
        rows = self.rows_of(items)
        rows = no_rows(answer_ids) if rows is None else rows
        rows = rows.to(self._device)
        batch = batch_of(self._model, self.encoder, items, self.group_size, self.row_length)
        seen = self._run(batch, rows)
        frozen_MD = None
        if keeps_states:
            with torch.no_grad(), self.without_adapter():
                frozen_MD = self._run(batch, rows).states_MD
        lengths = torch.tensor([len(item.answer_ids) for item in items])
        return Scored(
            student_MC=seen.student_MC, rows=rows, num_examples=len(items),
            example_M=torch.repeat_interleave(torch.arange(len(items)), lengths).to(self._device),
            vocab_size=self.encoder.vocab_size, states_MD=seen.states_MD, frozen_states_MD=frozen_MD,
        )  # fmt: skip

    @property
    def _model(self) -> Any:
        """The model itself, under what it is wrapped in for parallel training."""
        return getattr(self.student, "module", self.student).model

    @property
    def _device(self) -> torch.device:
        device: torch.device = next(self.student.parameters()).device
        return device

    def _run(self, batch: Packed, rows: TeacherRows) -> Any:
        inputs = to_device(batch.inputs, self._device, self._dtype)
        showing = nullcontext() if self.memo is None else self.memo.showing(batch.pictures)
        with showing:
            return self.student(
                inputs, batch.batch_M, batch.position_M, rows.answer_ids_M, rows.kept_ids_MK, self.layer
            )

    @property
    def _dtype(self) -> torch.dtype:
        dtype: torch.dtype = next(self.student.parameters()).dtype
        return dtype


def batch_of(model: Any, encoder: Encoder, items: Sequence[Item], group_size: int, row_length: int = 0) -> Packed:
    """Return items as one batch, up to `group_size` questions behind one copy of their image."""
    rows = [item.encode(encoder) for item in items]
    if group_size > 1:
        return pack_for(model, rows, pad_id=encoder.pad_id, group_size=group_size, row_length=row_length)
    pictures = tuple(picture for row in rows for picture in row.pictures)
    return Packed(collate(rows, pad_id=encoder.pad_id, side="right"), *answer_rows(rows), pictures)


def cached_rows(top_k: int) -> RowsOf:
    """Return what reads the rows that items carry, cut to `top_k` kept tokens."""

    def rows_of(items: Sequence[Item]) -> TeacherRows | None:
        if items[0].rows is None:
            return None
        answer_ids = [token for item in items for token in item.answer_ids]
        return stack_rows([item.rows for item in items if item.rows is not None], answer_ids, top_k)

    return rows_of


TermFunction = Callable[[Scored, Mapping[str, float]], Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """The examples of a step that share their terms, and what scores them.

    `then` is called once their gradient is whole on every process.
    """

    batch: Sequence[Item]
    score: Callable[[Sequence[Item]], Scored]
    terms: Sequence[Term]
    then: Callable[[], None] | None = None


def run_step(
    student: Any, phases: Sequence[Phase], method: Method, accelerator: Accelerator, micro_batch_size: int
) -> Iterator[Sums]:
    """Run forward and backward over a step's micro-batches of this process, phase by phase; gradients add up."""
    for phase in phases:
        yield from _run_phase(student, phase, method, accelerator, micro_batch_size, is_last=phase is phases[-1])
        if phase.then is not None:
            phase.then()


def _run_phase(
    student: Any, phase: Phase, method: Method, accelerator: Accelerator, micro_batch_size: int, *, is_last: bool
) -> Iterator[Sums]:
    mine = micro_batches(
        range(len(phase.batch)), micro_batch_size, accelerator.process_index, accelerator.num_processes
    )
    # Processes that share weights must run equally often, and others wait for each other anyhow: so one that a short
    # batch leaves without examples runs some for nothing.
    rounds = -(-len(phase.batch) // (micro_batch_size * accelerator.num_processes))
    idle: list[list[int]] = [[0]] * (rounds - len(mine))
    # Wrapped for parallel training, gradients are averaged over processes where the step's loss is a sum.
    scale = accelerator.num_processes / len(phase.batch)
    for index, part in enumerate([*mine, *idle]):
        is_idle, is_whole = index >= len(mine), index == rounds - 1 and (is_last or phase.then is not None)
        with nullcontext() if is_whole else accelerator.no_sync(student):
            scored = phase.score([phase.batch[place] for place in part])
            values = {term.name: term_function(term)(scored, method.settings) for term in phase.terms}
            loss = _weighed(values, phase.terms, method, scored)
            if loss.requires_grad:  # not where nothing but a retain term is left
                accelerator.backward(loss * (0.0 if is_idle else scale))
        if not is_idle:
            yield Sums(
                values={name: float(value.detach()) for name, value in values.items()},
                logprob_M=scored.answer_logprob_M.detach(), items=[phase.batch[place] for place in part],
            )  # fmt: skip


def _weighed(values: Mapping[str, Tensor], terms: Sequence[Term], method: Method, scored: Scored) -> Tensor:
    """Return the weighted sum of terms; a loss of a middle layer's states reaches the layers above with zero."""
    loss = scored.student_MC.new_zeros(())
    for term in terms:
        loss = loss + method.weight(term) * values[term.name]
    return loss if scored.states_MD is None else loss + 0.0 * scored.answer_logprob_M.sum()


def term_function(term: Term) -> TermFunction:
    """Return a term's function: the one it is, or the one of `terms.py` that it names."""
    found: TermFunction = getattr(built_in, term.of) if isinstance(term.of, str) else term.of
    return found
