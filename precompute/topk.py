"""One full distribution over the vocabulary becomes one row of the cache. The only place that decides what is kept.

The order of a row is the order of its *stored* values, then of ids: float16 makes ties of neighbours, and a reader
that checks the order sees what was stored. The tail is the masked sum of what is outside, never `1 - sum`, which loses
all digits where the kept mass is near one. A zero probability is floored at the smallest normal float32, so that
logarithms are finite; the tail of a row that keeps everything is -inf, not a floor. Averaging over references is the
engines' work, in float32 or wider; storage is `cache.py`'s.
"""

# N answer tokens, K kept, V vocabulary

import torch
from torch import Tensor

FLOOR = torch.finfo(torch.float32).tiny


def rows_from_probabilities(
    mean_probs_NV: Tensor,
    mean_entropy_N: Tensor,
    answer_ids_N: Tensor,
    top_k: int,
    logprob_dtype: torch.dtype = torch.float16,
) -> dict[str, Tensor]:
    """Return the arrays of N rows under their names in the cache.

    Args:
        mean_probs_NV: probabilities averaged over the references, float32 or wider, each row summing to 1.
        mean_entropy_N: mean over the references of each one's own entropy, in nats.
        answer_ids_N: the answer's token at each row, integer.
        top_k: how many tokens to keep, 0 to V.
        logprob_dtype: storage type of the kept log-probabilities, float16 or float32.

    Returns:
        kept_id int64 [N,K], kept_logprob [N,K] in the storage type, tail_logprob, entropy, answer_logprob and
        sum_squares float32 [N], disagreement float16 [N].

    Raises:
        ValueError: when top_k is not in 0..V.
    """
    N, V = mean_probs_NV.shape
    assert mean_probs_NV.dtype in (torch.float32, torch.float64), "half precision cannot hold an average"
    assert mean_entropy_N.shape == answer_ids_N.shape == (N,)
    if not 0 <= top_k <= V:
        raise ValueError(f"Expected --top-k between 0 and the vocabulary's {V} tokens, found {top_k}.")
    logprobs_NV = mean_probs_NV.clamp(FLOOR, 1.0).log()
    kept_ids_NK, kept_logprobs_NK = _keep(logprobs_NV, top_k, logprob_dtype)
    outside_NV = torch.ones_like(mean_probs_NV, dtype=torch.bool).scatter_(1, kept_ids_NK, False)
    tail_N = mean_probs_NV.where(outside_NV, 0).sum(1)
    entropy_N = -(mean_probs_NV * logprobs_NV).sum(1)
    return {
        "kept_id": kept_ids_NK,
        "kept_logprob": kept_logprobs_NK,
        "tail_logprob": _tail_logprob(tail_N, top_k).float(),
        "entropy": entropy_N.clamp_min(0).float(),
        "answer_logprob": logprobs_NV.gather(1, answer_ids_N[:, None].long())[:, 0].float(),
        "sum_squares": mean_probs_NV.square().sum(1).float(),
        # Jensen makes the difference non-negative; rounding makes it -1e-8 where all references agree.
        "disagreement": (entropy_N - mean_entropy_N).clamp_min(0).half(),
    }


def _keep(logprobs_NV: Tensor, top_k: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the K likeliest ids and their stored log-probabilities, by stored value and then id.

    `topk` leaves the choice among equals open, so it is given numbers without equals: the bits of a non-negative float
    are in the order of its value, and the id breaks ties below them.
    """
    stored_NV = logprobs_NV.to(dtype)
    V = stored_NV.shape[1]
    bits_NV = stored_NV.abs().view(torch.int16 if dtype == torch.float16 else torch.int32)
    rank_NV = bits_NV.long().mul_(V).add_(torch.arange(V, device=stored_NV.device))
    ids_NK = rank_NV.topk(top_k, dim=1, largest=False).values % V
    return ids_NK, stored_NV.gather(1, ids_NK)


def _tail_logprob(tail_N: Tensor, top_k: int) -> Tensor:
    """Return the log of the mass outside kept; with nothing kept it is all the mass, whatever rounding says."""
    return torch.zeros_like(tail_N) if top_k == 0 else tail_N.clamp_max(1).log()
