"""ViKeR's loss for other trainers: from their logits and the cache's rows to one number.

The same terms as `viker train --method viker` (sums over answer tokens, forward KL in buckets), without its loop, so
that a TRL or torchunlearn user adopts the cache before the trainer. Dividing by the number of examples, retain terms
and stopping are theirs.
"""

# M answer tokens, V vocabulary

from collections.abc import Sequence

from torch import Tensor

from ..data.example import DataError
from ..precompute.cache import Rows
from .batches import stack_rows
from .divergences import forward_kl
from .losses import ascent
from .rows import ANSWER, teacher_buckets
from .student import dense_buckets


def viker_loss(
    student_logits_MV: Tensor, rows: Rows | Sequence[Rows], answer_ids: Sequence[int] | Tensor, *, lambda_: float = 0.5
) -> Tensor:
    """Return sum over answer tokens of log q(y) + lambda KL(R || q), to minimize (arXiv 2601.22020, L_ViKeR).

    Args:
        student_logits_MV: logits that predict the answer tokens, any float dtype; row i comes from the position before
            answer token i.
        rows: the cached rows of these answers, one example's or several end to end.
        answer_ids: the M answer tokens.
        lambda_: weight of the regularizer.

    Raises:
        DataError: logits, rows and answer tokens are not of the same number.
    """
    parts = [rows] if isinstance(rows, Rows) else list(rows)
    ids = [int(token) for token in answer_ids]
    num_rows = sum(map(len, parts))
    if not len(student_logits_MV) == num_rows == len(ids):
        raise DataError(
            f"viker_loss: expected logits, rows and answer ids of one length, found {len(student_logits_MV)}, "
            f"{num_rows} and {len(ids)}. Pick the positions that predict the answer tokens."
        )
    teacher = stack_rows(parts, ids).to(student_logits_MV.device)
    student_MC = dense_buckets(student_logits_MV, teacher.kept_ids_MK, teacher.answer_ids_M)
    teacher_MC = teacher_buckets(teacher, student_logits_MV.shape[1])
    return (ascent(student_MC[:, ANSWER]) + lambda_ * forward_kl(teacher_MC, student_MC)).sum()
