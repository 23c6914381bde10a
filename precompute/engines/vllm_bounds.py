"""Average k distributions of which only the likeliest tokens are known, and say how wrong the average can be.

A serving engine lists the K' likeliest tokens of each image's distribution. A token that an image does not list is at
most as likely there as the last one listed, and all of them together have what the listed ones leave. So each averaged
probability lies between what is known of it and that plus a gap, and an entropy between two numbers. A row is certified
when, wherever the truth lies between those bounds, the same tokens are kept, their log-probabilities move by less than
`LOGPROB_WITHIN`, and the entropies by less than `ENTROPY_WITHIN`; every other row has to be asked for whole.

What no image lists is spread evenly over the tokens it leaves out: one of the distributions the bounds allow, so that
whatever is computed from it is within them too. Sums are in float64: rests are small differences.
"""

# k images, M answer tokens of an example, L tokens listed a row, V vocabulary

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from ..topk import rows_from_probabilities
from .rows import Probabilities

LOGPROB_WITHIN = 1e-3  # nats; half a step of float16 at -4 is 2e-3
ENTROPY_WITHIN = 1e-2  # nats


class Listed(NamedTuple):
    """What one image's request lists of each answer row, and how likely a token beside the list can be at most.

    `ids_ML` int64 and `logprobs_ML` float; a token may be listed twice. `ceiling_M` is a probability, 0 where every
    token is listed.
    """

    ids_ML: Tensor
    logprobs_ML: Tensor
    ceiling_M: Tensor


class Bounded(NamedTuple):
    """An average and its bounds: each truth is in known..known + gap, each entropy within `entropy_width_M` of ours."""

    mean_MV: Tensor
    known_MV: Tensor
    gap_MV: Tensor
    mean_entropy_M: Tensor
    entropy_width_M: Tensor

    def rows(self) -> Probabilities:
        """Return the average as every engine gives it, float32."""
        return Probabilities(self.mean_MV.float(), self.mean_entropy_M.float())


def average_listed(images: Iterable[Listed], num_images: int, vocab_size: int) -> Bounded:
    """Average what k images list, one image in memory at a time."""
    sums: tuple[Tensor, ...] | None = None
    for listed in images:
        ours_MV, is_listed_MV, left_M = _spread(listed, vocab_size)
        ceiling_M = torch.minimum(listed.ceiling_M.double(), left_M)
        known_MV, gap_MV = ours_MV.where(is_listed_MV, 0), ceiling_M[:, None].where(~is_listed_MV, 0)
        parts = (ours_MV, known_MV, gap_MV, -torch.xlogy(ours_MV, ours_MV).sum(1), left_M, ceiling_M)
        sums = parts if sums is None else tuple(total + part for total, part in zip(sums, parts, strict=True))
    assert sums is not None, "an example is shown at least once"
    mean_MV, known_MV, gap_MV, entropy_M, left_M, ceiling_M = (total / num_images for total in sums)
    return Bounded(mean_MV, known_MV, gap_MV, entropy_M, _entropy_width(known_MV, gap_MV, left_M, ceiling_M))


def is_certified(bounded: Bounded, top_k: int, logprob_dtype: torch.dtype) -> bool:
    """Tell whether all rows of an example are certified, for what would be kept of them."""
    nothing_M = torch.zeros(len(bounded.mean_MV))
    some_id_M = torch.zeros(len(bounded.mean_MV), dtype=torch.long)

    def keep(probs_MV: Tensor) -> Tensor:
        return rows_from_probabilities(probs_MV, nothing_M, some_id_M, top_k, logprob_dtype)["kept_id"]

    if bool((bounded.entropy_width_M > ENTROPY_WITHIN).any()):
        return False
    kept_MK = keep(bounded.mean_MV)
    is_kept_MV = torch.zeros_like(bounded.known_MV, dtype=torch.bool).scatter_(1, kept_MK, True)
    steps_MV = torch.log1p(bounded.gap_MV / bounded.known_MV).where(is_kept_MV & (bounded.gap_MV > 0), 0)
    if bool((steps_MV > LOGPROB_WITHIN).any()):
        return False
    # The kept as unlikely as they may be, all others as likely: the order of stored values is the cache's own.
    hardest_MV = bounded.known_MV.where(is_kept_MV, bounded.known_MV + bounded.gap_MV)
    return torch.equal(keep(hardest_MV).sort(1).values, kept_MK.sort(1).values)


def _spread(listed: Listed, vocab_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return an image's distributions [M, V], the rest spread evenly, which tokens are listed, and the rest [M]."""
    M = len(listed.ids_ML)
    probs_MV = torch.zeros((M, vocab_size), dtype=torch.float64)
    probs_MV.scatter_(1, listed.ids_ML, listed.logprobs_ML.double().exp())
    is_listed_MV = torch.zeros((M, vocab_size), dtype=torch.bool).scatter_(1, listed.ids_ML, True)
    others_M = vocab_size - is_listed_MV.sum(1)
    left_M = (1 - probs_MV.sum(1)).clamp_min(0).where(others_M > 0, 0)
    evenly_M1 = (left_M / others_M.clamp_min(1))[:, None]
    return probs_MV.where(is_listed_MV, evenly_M1), is_listed_MV, left_M


def _entropy_width(known_MV: Tensor, gap_MV: Tensor, left_M: Tensor, ceiling_M: Tensor) -> Tensor:
    """Return how far apart two entropies of averages within the bounds may be, or two means of the images' entropies.

    With f(x) = -x log x, which is concave: f(known + u) <= f(known) + f(u), and f(known + u) >= f(known) + u f'(known +
    gap). The u of a row sum to the mean rest, so all f(u) together are at most those of an even spread. An image's own
    entropy moves by left_j log(number of others * ceiling_j / left_j) at most; by the log sum inequality the mean of
    these is no more than the same of the mean rest and the mean ceiling, which the bound here is never below.
    """
    top_M = torch.maximum((known_MV + gap_MV).where(gap_MV > 0, 0).amax(1), ceiling_M)
    others_M = (gap_MV > 0).sum(1).clamp_min(1)
    most_M = torch.xlogy(left_M, others_M) - torch.xlogy(left_M, left_M)
    least_M = -torch.xlogy(left_M, top_M) - left_M
    return (most_M - least_M).clamp_min(0)
