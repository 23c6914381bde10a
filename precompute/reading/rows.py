"""Rows in memory, and the rules their values obey; the same rules hold when a block is written and when it is read.

The arrays describe one distribution from several sides, so each is also held against the others: kept values bound the
sum of squares, the entropy and the answer's probability. That finds rows whose arrays belong to different rows, which
no range finds. Checks are vectorized over slices: a million rows of 64 kept tokens pass in about 0.4 s. What the
arrays mean is in the docstring of `cache.py`.
"""

# N answer tokens, K kept, V vocabulary

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MASS_TOLERANCE = 2e-3  # float16 rounds log-probabilities in [4, 8) by up to 1.95e-3
ROUNDING = 1e-3  # how far beyond its bound a rounded value may lie
HALF_STEP = 2**-11  # relative rounding of float16
VALUES_AT_ONCE = 1 << 19  # kept values: bounds the memory of the checks, and fits a processor's cache

Floats = NDArray[np.float32]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, eq=False, kw_only=True)
class Rows:
    """Rows in memory, ready to train on; log-probabilities widened to float32."""

    kept_ids_NK: NDArray[np.unsignedinteger[Any]]
    kept_logprobs_NK: Floats
    tail_logprob_N: Floats
    entropy_N: Floats
    answer_logprob_N: Floats
    sum_squares_N: Floats
    disagreement_N: Floats

    def __len__(self) -> int:
        return len(self.entropy_N)

    def slice(self, start: int, stop: int) -> "Rows":
        """Return views of the rows start:stop."""
        return Rows(**{name: array[start:stop] for name, array in vars(self).items()})


def as_rows(arrays: Mapping[str, NDArray[Any]]) -> Rows:
    """Return rows from the `token/` arrays of the format; without the kept ones, K is 0."""
    N = len(arrays["token/entropy"])
    return Rows(
        kept_ids_NK=arrays.get("token/kept_id", np.empty((N, 0), np.uint16)),
        kept_logprobs_NK=arrays.get("token/kept_logprob", np.empty((N, 0))).astype(np.float32, copy=False),
        tail_logprob_N=arrays["token/tail_logprob"],
        entropy_N=arrays["token/entropy"],
        answer_logprob_N=arrays["token/answer_logprob"],
        sum_squares_N=arrays["token/sum_squares"],
        disagreement_N=arrays["token/disagreement"].astype(np.float32),
    )


def row_problems(rows: Rows, vocab_size: int) -> list[str]:
    """Return what is wrong with rows, one line a kind of problem with the first row that has it."""
    first: dict[str, int] = {}
    rows_at_once = max(1, VALUES_AT_ONCE // max(16, rows.kept_ids_NK.shape[1]))
    for start in range(0, len(rows), rows_at_once):
        part = rows.slice(start, start + rows_at_once)
        for problem, bad_N in (_broken_kept(part, vocab_size) | _broken_rows(part, vocab_size)).items():
            if problem not in first and bad_N.any():
                first[problem] = start + int(bad_N.argmax())
    return [f"{problem} (first at row {row})" for problem, row in first.items()]


def _broken_kept(rows: Rows, vocab_size: int) -> dict[str, Flags]:
    """Return for each rule of the kept tokens which rows break it; written so that NaN breaks a rule."""
    ids_NK, logprobs_NK = rows.kept_ids_NK, rows.kept_logprobs_NK
    sorted_ids_NK = np.sort(ids_NK, axis=1)
    falls_NK = logprobs_NK[:, :-1] > logprobs_NK[:, 1:]
    ties_NK = (logprobs_NK[:, :-1] == logprobs_NK[:, 1:]) & (ids_NK[:, :-1] < ids_NK[:, 1:])
    return {
        f"kept id is not below {vocab_size}": (sorted_ids_NK[:, -1:] >= vocab_size).any(axis=1),
        "kept id occurs twice": (sorted_ids_NK[:, 1:] == sorted_ids_NK[:, :-1]).any(axis=1),
        "kept log-probability is not finite": ~np.isfinite(logprobs_NK).all(axis=1),
        "kept log-probability is above 0": (logprobs_NK > ROUNDING).any(axis=1),
        "kept log-probabilities are not ordered by value, then id": ~(falls_NK | ties_NK).all(axis=1),
    }


@np.errstate(over="ignore", invalid="ignore", divide="ignore")
def _broken_rows(rows: Rows, vocab_size: int) -> dict[str, Flags]:
    """Return for each rule of whole rows which break it; written so that NaN breaks a rule."""
    most = np.log(vocab_size) + ROUNDING
    tail_N = np.exp(rows.tail_logprob_N)
    probs_NK = np.exp(rows.kept_logprobs_NK)
    mass_N, squares_N = probs_NK.sum(axis=1) + tail_N, np.einsum("nk,nk->n", probs_NK, probs_NK)
    least_entropy_N, most_entropy_N = _entropy_bounds(rows, probs_NK, tail_N, vocab_size)
    return {
        f"kept and tail mass is not 1 within {MASS_TOLERANCE}": ~(np.abs(mass_N - 1) <= MASS_TOLERANCE),
        "tail log-probability is not at most 0": ~(rows.tail_logprob_N <= ROUNDING),
        "entropy is not in [0, log V]": ~((rows.entropy_N >= -ROUNDING) & (rows.entropy_N <= most)),
        "entropy is not that of the kept tokens and their tail": ~(
            (rows.entropy_N >= least_entropy_N) & (rows.entropy_N <= most_entropy_N)
        ),
        "answer log-probability is not finite and at most 0": ~(
            (rows.answer_logprob_N <= ROUNDING) & (rows.answer_logprob_N > -math.inf)
        ),
        "answer log-probability is neither a kept one nor within the tail": ~_answers_fit(rows),
        "sum of squares is not in (0, 1]": ~((rows.sum_squares_N > 0) & (rows.sum_squares_N <= 1 + ROUNDING)),
        "sum of squares is not that of the kept tokens and their tail": ~(
            (rows.sum_squares_N >= squares_N - MASS_TOLERANCE)
            & (rows.sum_squares_N <= squares_N + tail_N**2 + MASS_TOLERANCE)
        ),
        "disagreement is not in [0, log V]": ~((rows.disagreement_N >= 0) & (rows.disagreement_N <= most)),
    }


def _entropy_bounds(rows: Rows, probs_NK: Floats, tail_N: Floats, vocab_size: int) -> tuple[Floats, Floats]:
    """Return the entropy if one token has all the tail, and if it is even, each farther by what rounding may do."""
    terms_NK = probs_NK * rows.kept_logprobs_NK
    kept_N = -terms_NK.sum(axis=1)
    rounding_N = ROUNDING + HALF_STEP * (kept_N + np.einsum("nk,nk->n", terms_NK, rows.kept_logprobs_NK))
    one_N = kept_N - np.where(tail_N > 0, tail_N * rows.tail_logprob_N, 0)
    outside = max(1, vocab_size - rows.kept_ids_NK.shape[1])
    return one_N - rounding_N, one_N + tail_N * np.float32(math.log(outside)) + rounding_N


def _answers_fit(rows: Rows) -> Flags:
    """Tell for each row whether the answer's token can be a kept one, or one of those after them."""
    answer_N, kept_NK = rows.answer_logprob_N, rows.kept_logprobs_NK
    rounding_N = ROUNDING + HALF_STEP * np.abs(answer_N)
    is_kept_N: Flags = np.abs(kept_NK - answer_N[:, None]).min(axis=1, initial=np.inf) <= rounding_N
    is_after_N: Flags = answer_N <= np.minimum(rows.tail_logprob_N, kept_NK.min(axis=1, initial=np.inf)) + rounding_N
    return is_kept_N | is_after_N
