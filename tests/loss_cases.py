"""Small random cases of what a loss sees: a student, a teacher, the answers, and the teacher's rows.

Rows are made twice: `exact_rows` in float64 by a few lines of its own, `stored_rows` by the product's code as a cache
keeps them. References in the tests are plain loops over `merged` probabilities.
"""

# M answer tokens, V vocabulary, K kept, C buckets, D hidden, B examples

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from viker.precompute.topk import rows_from_probabilities
from viker.train import divergences, losses
from viker.train.rows import TeacherRows, answer_bucket, teacher_buckets
from viker.train.scored import Scored
from viker.train.student import dense_buckets

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

M, V, D = 7, 23, 5


class Case(NamedTuple):
    """A student's logits, a teacher's probabilities, answers, and rows of them."""

    logits_MV: Tensor
    teacher_MV: Tensor
    answers_M: Tensor
    rows: TeacherRows

    @property
    def student_MV(self) -> Tensor:
        """The student's probabilities."""
        return self.logits_MV.softmax(-1)

    @property
    def student_MC(self) -> Tensor:
        """The student in buckets."""
        return dense_buckets(self.logits_MV, self.rows.kept_ids_MK, self.answers_M)

    @property
    def teacher_MC(self) -> Tensor:
        """The teacher in buckets."""
        return teacher_buckets(self.rows, self.logits_MV.shape[1])

    def named(self, row: int) -> list[int]:
        """Return the tokens that have a bucket of their own in a row."""
        return sorted({int(token) for token in (*self.rows.kept_ids_MK[row], self.answers_M[row])})


def random_case(
    seed: int = 0, *, top_k: int = 4, scale: float = 2.0, num_tokens: int = M, vocab_size: int = V,
    answers: str = "random",
) -> Case:  # fmt: skip
    """Return a case in float64; `answers` are random, the teacher's likeliest tokens (kept), or its least likely."""
    generator = torch.Generator().manual_seed(seed)
    shape = (num_tokens, vocab_size)
    logits_MV, teacher_MV = (scale * torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    teacher_MV = teacher_MV.softmax(-1)
    answers_M = {
        "random": torch.randint(vocab_size, (num_tokens,), generator=generator),
        "likeliest": teacher_MV.argmax(1) if num_tokens else torch.zeros(0, dtype=torch.long),
        "unlikely": teacher_MV.argmin(1) if num_tokens else torch.zeros(0, dtype=torch.long),
    }[answers]
    return Case(logits_MV, teacher_MV, answers_M, exact_rows(teacher_MV, answers_M, top_k))


def exact_rows(teacher_MV: Tensor, answers_M: Tensor, top_k: int) -> TeacherRows:
    """Return rows in float64, without any rounding of storage."""
    order_MV = teacher_MV.argsort(dim=1, descending=True, stable=True)
    kept_MK, outside_MO = order_MV[:, :top_k], order_MV[:, top_k:]
    return TeacherRows(
        kept_ids_MK=kept_MK,
        kept_logprobs_MK=teacher_MV.gather(1, kept_MK).log(),
        tail_logprob_M=teacher_MV.gather(1, outside_MO).sum(1).log(),
        answer_ids_M=answers_M,
        answer_logprob_M=teacher_MV.gather(1, answers_M[:, None])[:, 0].log(),
        entropy_M=-torch.special.xlogy(teacher_MV, teacher_MV).sum(1),
        sum_squares_M=teacher_MV.square().sum(1),
    )


def stored_rows(teacher_MV: Tensor, answers_M: Tensor, top_k: int, dtype: torch.dtype = torch.float32) -> TeacherRows:
    """Return rows as the cache keeps them."""
    arrays = rows_from_probabilities(teacher_MV, torch.zeros(len(answers_M)), answers_M, top_k, dtype)
    return TeacherRows(
        kept_ids_MK=arrays["kept_id"],
        kept_logprobs_MK=arrays["kept_logprob"].float(),
        tail_logprob_M=arrays["tail_logprob"],
        answer_ids_M=answers_M,
        answer_logprob_M=arrays["answer_logprob"],
        entropy_M=arrays["entropy"],
        sum_squares_M=arrays["sum_squares"],
    )


def one_hot(answers_M: Tensor, vocab_size: int = V) -> Tensor:
    """Return a teacher that is certain of the answers."""
    return torch.nn.functional.one_hot(answers_M, vocab_size).double()


def merged(probs_V: Tensor, named: Sequence[int]) -> list[float]:
    """Return the probabilities of the named tokens, and of all others together if there are any."""
    others = [float(p) for token, p in enumerate(probs_V.tolist()) if token not in named]
    return [float(probs_V[token]) for token in named] + ([math.fsum(others)] if others else [])


def scored(case: Case, lengths: Sequence[int], **others: object) -> Scored:
    """Return a case as what a term is given: examples of some lengths, end to end."""
    example_M = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    return Scored(
        student_MC=case.student_MC, rows=case.rows, example_M=example_M, num_examples=len(lengths),
        vocab_size=case.logits_MV.shape[1], **others,
    )  # fmt: skip


# From log q in buckets and a case to values: every loss that is the integral of its gradient (WGA and SatImp hold a
# weight constant).
DIFFERENTIABLE: dict[str, Callable[[Tensor, Case], Tensor]] = {
    "ascent": lambda student_MC, _: losses.ascent(student_MC[:, -2]),
    "adaptive": lambda student_MC, case: losses.adaptive_ascent(student_MC[:, -2], case.rows.answer_logprob_M),
    "entropy-lambda": lambda student_MC, case: (
        losses.lambda_by_entropy(case.rows.entropy_M) * divergences.forward_kl(case.teacher_MC, student_MC)
    ),
    "npo": lambda student_MC, case: losses.npo(student_MC[:, -2] - case.rows.answer_logprob_M, 0.4),
    "simnpo": lambda student_MC, _: losses.simnpo(student_MC[:, -2], torch.arange(1, M + 1), 4.5, 0.3),
    "idkpo": lambda student_MC, case: losses.idkpo(
        student_MC[:, -2].roll(1), student_MC[:, -2] - case.rows.answer_logprob_M, 0.4
    ),
    "undial": lambda student_MC, case: losses.undial(case.teacher_MC, student_MC, answer_bucket(case.rows), 3.0),
    "kl": lambda student_MC, case: divergences.forward_kl(case.teacher_MC, student_MC),
    "jsd": lambda student_MC, case: divergences.jensen_shannon(case.teacher_MC, student_MC),
    "cosine": lambda student_MC, case: divergences.kept_cosine_distance(case.teacher_MC, student_MC),
}
