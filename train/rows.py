"""Cached rows of a batch, in the buckets that a student is compared in.

A row knows K kept tokens and the mass of all others, so distributions are compared in buckets: each kept id, the answer
token itself where it is not kept, and one tail. Here is the teacher's side; the student's is `student.py`'s, in the
same columns. Stacking rows of examples is `batches.py`'s.
"""

# M answer tokens, K kept, C = K + 2 buckets: kept, answer, tail

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

ANSWER, TAIL = -2, -1  # columns of the buckets


@dataclass(frozen=True, slots=True)
class TeacherRows:
    """Rows of M answer tokens. Floats are float32; `kept_ids_MK` and `answer_ids_M` are int64."""

    kept_ids_MK: Tensor
    kept_logprobs_MK: Tensor
    tail_logprob_M: Tensor
    answer_ids_M: Tensor
    answer_logprob_M: Tensor
    entropy_M: Tensor
    sum_squares_M: Tensor

    def to(self, device: torch.device) -> "TeacherRows":
        """Return the rows on a device."""
        return TeacherRows(*(getattr(self, part.name).to(device) for part in fields(self)))

    @property
    def answer_is_kept_M(self) -> Tensor:
        """Whether the answer's token is among the kept ones, bool [M]."""
        return (self.kept_ids_MK == self.answer_ids_M[:, None]).any(1)


def cut_rows(rows: TeacherRows, top_k: int) -> TeacherRows:
    """Return rows that keep only their `top_k` likeliest tokens; what is cut goes into the tail."""
    if rows.kept_ids_MK.shape[1] <= top_k:
        return rows
    outside_MK = torch.cat([rows.kept_logprobs_MK[:, top_k:], rows.tail_logprob_M[:, None]], dim=1)
    return TeacherRows(
        kept_ids_MK=rows.kept_ids_MK[:, :top_k],
        kept_logprobs_MK=rows.kept_logprobs_MK[:, :top_k],
        tail_logprob_M=torch.logsumexp(outside_MK, dim=1),
        answer_ids_M=rows.answer_ids_M,
        answer_logprob_M=rows.answer_logprob_M,
        entropy_M=rows.entropy_M,
        sum_squares_M=rows.sum_squares_M,
    )


def regroup(whole: TeacherRows, like: TeacherRows) -> TeacherRows:
    """Return rows that keep the whole vocabulary as rows that keep the same tokens as others."""
    order_MV = whole.kept_ids_MK.argsort(1)
    logprobs_MV = whole.kept_logprobs_MK.gather(1, order_MV)
    outside_MV = logprobs_MV.scatter(1, like.kept_ids_MK, -math.inf)
    return TeacherRows(
        kept_ids_MK=like.kept_ids_MK,
        kept_logprobs_MK=logprobs_MV.gather(1, like.kept_ids_MK),
        tail_logprob_M=torch.logsumexp(outside_MV, dim=1),
        answer_ids_M=whole.answer_ids_M,
        answer_logprob_M=whole.answer_logprob_M,
        entropy_M=whole.entropy_M,
        sum_squares_M=whole.sum_squares_M,
    )


def teacher_buckets(rows: TeacherRows, vocab_size: int) -> Tensor:
    """Return the teacher's log-probabilities in buckets [M, C], -inf where one is empty.

    They are normalized to one, against rounding in storage. A kept answer's own column is empty.
    """
    is_kept_M = rows.answer_is_kept_M
    answer_M = rows.answer_logprob_M.masked_fill(is_kept_M, -math.inf)
    outside_M = (rows.tail_logprob_M.exp() - answer_M.exp()).clamp_min(0)
    tail_M = outside_M.masked_fill(~has_tail(rows.kept_ids_MK.shape[1], is_kept_M, vocab_size), 0.0).log()
    teacher_MC = torch.cat([rows.kept_logprobs_MK, answer_M[:, None], tail_M[:, None]], dim=1)
    return teacher_MC - torch.logsumexp(teacher_MC, dim=1, keepdim=True)


def has_tail(top_k: int, is_kept_M: Tensor, vocab_size: int) -> Tensor:
    """Return whether any token is neither kept nor the answer, bool [M]."""
    return top_k + (~is_kept_M).long() < vocab_size


def answer_bucket(rows: TeacherRows) -> Tensor:
    """Return the column that holds the answer token's probability, int64 [M]: its kept one, else its own."""
    top_k = rows.kept_ids_MK.shape[1]
    if top_k == 0:
        return torch.zeros_like(rows.answer_ids_M)
    column_M = (rows.kept_ids_MK == rows.answer_ids_M[:, None]).long().argmax(1)
    return torch.where(rows.answer_is_kept_M, column_M, torch.full_like(column_M, top_k))
