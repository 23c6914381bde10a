"""What a loss sees of the student: log q in the teacher's buckets, from hidden states, without logits that stay.

Every objective here is a function of log q at the kept tokens, the answer and the tail: K + 2 numbers an answer token
in place of V logits. So the output layer runs on answer rows only, a chunk of rows at a time, and its backward pass is
written out: with one gradient a bucket,

    d log q_b / d z_v = 1[v in b] q_v / q_b - q_v

hence no logits of all positions, no log-softmax that autograd keeps, and no gradient of the (frozen) output layer.
`dense_buckets` is the plain form that tests hold it to. The student's tail is a masked log-sum-exp, never log(1 - sum),
which loses its gradient once it is small. Encoding and the forward pass up to the states are `models/`'s.
"""

# M answer tokens, m of a chunk, K kept, C = K + 2 buckets: kept, answer, tail, V vocabulary, D hidden

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..models.forward import answer_states, answer_states_at, head_of
from .rows import has_tail

CHUNK_BYTES = 64 * 1024**2  # of float32 logits at a time: 520 rows of LLaVA's vocabulary
KEPT_BYTES = 64 * 1024**2  # of logits kept for the backward pass; where there are more, they are computed again


class Seen(NamedTuple):
    """What a forward pass gives: log q in buckets [M, C] and, where asked for, states [M, D] of a decoder layer."""

    student_MC: Tensor
    states_MD: Tensor | None


class Student(nn.Module):
    """The model with its answer head, as one module: what is wrapped for parallel training."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, inputs: dict[str, Tensor], batch_M: Tensor, position_M: Tensor, answer_ids_M: Tensor, kept_ids_MK: Tensor,
        layer: int | None = None,
    ) -> Seen:  # fmt: skip
        """Return log q in buckets at a batch's answer tokens, and the states behind a decoder layer if one is named."""
        states_MD = None
        if layer is None:
            last_MD = answer_states(self.model, inputs, batch_M, position_M)
        else:
            last_MD, states_MD = answer_states_at(self.model, inputs, batch_M, position_M, layer=layer)
        head = head_of(self.model)
        return Seen(buckets_from_states(last_MD, head.weight, head.bias, kept_ids_MK, answer_ids_M), states_MD)


def dense_buckets(logits_MV: Tensor, kept_ids_MK: Tensor, answer_ids_M: Tensor) -> Tensor:
    """Return log q in buckets [M, C] from logits, float32 or wider; a tail that holds no token is 0."""
    logits_MV = logits_MV.to(torch.promote_types(logits_MV.dtype, torch.float32))
    whole_M1 = torch.logsumexp(logits_MV, dim=1, keepdim=True)
    outside_MV = _outside(logits_MV, kept_ids_MK, answer_ids_M)
    tail_M1 = torch.logsumexp(logits_MV.masked_fill(~outside_MV, -math.inf), dim=1, keepdim=True)
    kept_MK, answer_M1 = logits_MV.gather(1, kept_ids_MK), logits_MV.gather(1, answer_ids_M[:, None])
    return torch.cat([kept_MK, answer_M1, tail_M1], dim=1) - whole_M1


def _outside(logits_MV: Tensor, kept_ids_MK: Tensor, answer_ids_M: Tensor) -> Tensor:
    """Return which tokens are in the tail, bool [M, V]; all of them in a row without a tail, whose share is then 1."""
    outside_MV = torch.ones_like(logits_MV, dtype=torch.bool).scatter_(1, kept_ids_MK, False)
    outside_MV.scatter_(1, answer_ids_M[:, None], False)
    is_kept_M = (kept_ids_MK == answer_ids_M[:, None]).any(1)
    exists_M = has_tail(kept_ids_MK.shape[1], is_kept_M, logits_MV.shape[1])
    return outside_MV | ~exists_M[:, None]


def buckets_from_states(
    states_MD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, kept_ids_MK: Tensor, answer_ids_M: Tensor
) -> Tensor:
    """Return log q in buckets [M, C], float32 or wider, whose gradient reaches the states alone."""
    found: Tensor = _Buckets.apply(states_MD, weight_VD, bias_V, kept_ids_MK, answer_ids_M)  # type: ignore[no-untyped-call]
    return found


class _Buckets(torch.autograd.Function):
    """`dense_buckets` of the output layer's logits, a chunk of rows at a time."""

    @staticmethod
    def forward(
        ctx: Any, states_MD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, kept_ids_MK: Tensor, answer_ids_M: Tensor
    ) -> Tensor:
        ctx.save_for_backward(states_MD, weight_VD, bias_V, kept_ids_MK, answer_ids_M)
        needs_all = states_MD.shape[0] * weight_VD.shape[0] * 4
        ctx.logits = [] if needs_all <= KEPT_BYTES and ctx.needs_input_grad[0] else None
        parts = []
        for rows in _chunks(states_MD.shape[0], weight_VD.shape[0]):
            logits_mV = _logits(states_MD[rows], weight_VD, bias_V)
            parts.append(dense_buckets(logits_mV, kept_ids_MK[rows], answer_ids_M[rows]))
            if ctx.logits is not None:
                ctx.logits.append(logits_mV)
        return torch.cat(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_MC: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        states_MD, weight_VD, bias_V, kept_ids_MK, answer_ids_M = ctx.saved_tensors
        gradient_MD = torch.empty_like(states_MD)
        for index, rows in enumerate(_chunks(states_MD.shape[0], weight_VD.shape[0])):
            kept = ctx.logits is not None
            logits_mV = ctx.logits[index] if kept else _logits(states_MD[rows], weight_VD, bias_V)
            of_logits_mV = logits_gradient(logits_mV, kept_ids_MK[rows], answer_ids_M[rows], gradient_MC[rows])
            gradient_MD[rows] = of_logits_mV.to(weight_VD.dtype) @ weight_VD
        ctx.logits = None
        return gradient_MD, None, None, None, None


def _chunks(num_rows: int, vocab_size: int) -> list[slice]:
    size = max(1, CHUNK_BYTES // (4 * vocab_size))
    return [slice(start, min(start + size, num_rows)) for start in range(0, num_rows, size)] or [slice(0, 0)]


def _logits(states_mD: Tensor, weight_VD: Tensor, bias_V: Tensor | None) -> Tensor:
    logits_mV = nn.functional.linear(states_mD, weight_VD, bias_V)
    return logits_mV.to(torch.promote_types(logits_mV.dtype, torch.float32))


def logits_gradient(logits_MV: Tensor, kept_ids_MK: Tensor, answer_ids_M: Tensor, gradient_MC: Tensor) -> Tensor:
    """Return the gradient of the logits [M, V] from that of the buckets of `dense_buckets`."""
    outside_MV = _outside(logits_MV, kept_ids_MK, answer_ids_M)
    of_whole_MV = logits_MV.softmax(1).mul_(-gradient_MC.sum(1, keepdim=True))
    of_tail_MV = logits_MV.masked_fill(~outside_MV, -math.inf).softmax(1)
    of_whole_MV.addcmul_(of_tail_MV, gradient_MC[:, -1:])
    of_whole_MV.scatter_add_(1, kept_ids_MK, gradient_MC[:, :-2])
    return of_whole_MV.scatter_add_(1, answer_ids_M[:, None], gradient_MC[:, -2:-1])
