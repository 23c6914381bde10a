"""What a loss term is given: a micro-batch's answer tokens as the student and the teacher score them.

A term (`methods.py`) reads this and its settings, and gives one number: a sum over the examples. Nothing here knows a
method; nothing a term sees is larger than K + 2 numbers an answer token (and a decoder layer's states, for RMU).
"""

# M answer tokens, B examples, C buckets (kept, answer, tail), D hidden

from dataclasses import dataclass

import torch
from torch import Tensor

from .rows import ANSWER, TeacherRows, teacher_buckets


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """M answer tokens of B examples.

    `example_M` says whose each token is. `rows` are those the method reads (with no kept tokens and NaN where it reads
    none). `refusal`: the same examples with a refusal for an answer. `states_MD` and `frozen_states_MD`: what a decoder
    layer gives with and without the adapter.
    """

    student_MC: Tensor
    rows: TeacherRows
    example_M: Tensor
    num_examples: int
    vocab_size: int
    refusal: "Scored | None" = None
    states_MD: Tensor | None = None
    frozen_states_MD: Tensor | None = None

    @property
    def answer_logprob_M(self) -> Tensor:
        """Log q(y), differentiable."""
        return self.student_MC[:, ANSWER]

    @property
    def teacher_MC(self) -> Tensor:
        """The teacher in the student's buckets."""
        return teacher_buckets(self.rows, self.vocab_size)

    def sum_by_example(self, values_M: Tensor) -> Tensor:
        """Return the sum of values over each example's tokens, [B]."""
        return values_M.new_zeros(self.num_examples).index_add(0, self.example_M, values_M)

    @property
    def num_tokens_B(self) -> Tensor:
        """Answer tokens of each example."""
        return torch.bincount(self.example_M, minlength=self.num_examples)

    @property
    def log_ratio_B(self) -> Tensor:
        """Log p(y) / p0(y) of each example, jointly over its tokens; p0 from the cached scalars."""
        return self.sum_by_example(self.answer_logprob_M - self.rows.answer_logprob_M)
