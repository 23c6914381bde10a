"""Read the rows of an answer out of what vLLM returns about a prompt.

vLLM gives one entry a prompt token: None for the first (nothing predicts it), then the token itself followed by the
likeliest ones, K or K + 1 in all, as dicts or flattened into parallel lists, where the token itself may stand twice.
The prompt it speaks of is the expanded one, so an answer is found from its end. Only what was counted among the K
likeliest bounds the rest: the token itself may be far below. Nothing here imports vLLM.
"""

# M answer tokens, L tokens listed a row, V vocabulary

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ...data.example import DataError
from .vllm_bounds import Listed


class Entry(NamedTuple):
    """What vLLM lists at one prompt position, the prompt's own token first; ranks count from 1."""

    ids_L: NDArray[np.int64]
    logprobs_L: NDArray[np.float64]
    ranks_L: NDArray[np.int64]


def read_lists(prompt_logprobs: Any, answer_ids: Sequence[int], top: int) -> Listed:
    """Return the answer's rows of a request for the `top` likeliest tokens (-1: all) of every position.

    Raises:
        DataError: there are fewer positions than answer tokens, or the answer is not at the end.
    """
    if prompt_logprobs is None or len(prompt_logprobs) <= len(answer_ids):
        found = "none" if prompt_logprobs is None else len(prompt_logprobs)
        raise DataError(f"vLLM: expected rows of more than {len(answer_ids)} prompt tokens, found {found}.")
    entries = [_entry(prompt_logprobs, len(prompt_logprobs) - back) for back in range(len(answer_ids), 0, -1)]
    own = [int(entry.ids_L[0]) for entry in entries]
    if own != list(answer_ids):
        raise DataError(f"vLLM: expected the rows of the answer's tokens {list(answer_ids)}, found those of {own}.")
    longest = max(len(entry.ids_L) for entry in entries)
    return Listed(
        torch.from_numpy(np.stack([_padded(entry.ids_L, longest) for entry in entries])),
        torch.from_numpy(np.stack([_padded(entry.logprobs_L, longest) for entry in entries])),
        torch.tensor([0.0 if top < 0 else _ceiling(entry, top) for entry in entries], dtype=torch.float64),
    )


def read_scores(scores_MV: NDArray[np.float32] | None, answer_ids: Sequence[int], vocab_size: int) -> Listed:
    """Return the answer's rows of a request that named every token at them.

    Raises:
        DataError: there are none, of another shape, or they are no distributions.
    """
    shape = (len(answer_ids), vocab_size)
    if scores_MV is None or scores_MV.shape != shape:
        found = "none" if scores_MV is None else list(scores_MV.shape)
        raise DataError(f"vLLM: expected scores of the shape {list(shape)}, found {found}.")
    logprobs_MV = torch.from_numpy(np.array(scores_MV))
    furthest = float((logprobs_MV.double().exp().sum(1) - 1).abs().max())
    if not furthest < 1e-2:
        raise DataError(f"vLLM: expected scores of each row to sum to 1, found one {furthest:.3g} away.")
    ids_MV = torch.arange(vocab_size).expand(shape)
    return Listed(ids_MV, logprobs_MV, torch.zeros(len(answer_ids), dtype=torch.float64))


def _entry(prompt_logprobs: Any, position: int) -> Entry:
    if hasattr(prompt_logprobs, "start_indices"):
        part = slice(prompt_logprobs.start_indices[position], prompt_logprobs.end_indices[position])
        ids, logprobs, ranks = (getattr(prompt_logprobs, name)[part] for name in ("token_ids", "logprobs", "ranks"))
    else:
        found: Mapping[int, Any] = prompt_logprobs[position] or {}
        ids = list(found)
        logprobs = [one.logprob for one in found.values()]
        ranks = [one.rank for one in found.values()]
    if not ids:
        raise DataError(f"vLLM: expected a row at position {position} of {len(prompt_logprobs)}, found none.")
    return Entry(np.array(ids, np.int64), np.array(logprobs, np.float64), np.array(ranks, np.int64))


def _ceiling(entry: Entry, top: int) -> float:
    """Return the probability of the least likely token that is among the `top` likeliest."""
    return float(np.exp(entry.logprobs_L[entry.ranks_L <= top].min()))


def _padded(values_L: NDArray[Any], length: int) -> NDArray[Any]:
    """Repeat the first entry, the prompt's own token, up to a length; a token listed twice counts once."""
    return np.concatenate([values_L, np.repeat(values_L[:1], length - len(values_L))])
