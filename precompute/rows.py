"""Rows in memory, and the rules their values obey; the same rules hold when a block is written and when it is read.

Checks are vectorized over slices of 32768 rows: a million rows of 64 kept tokens pass in about 0.6 s. What the arrays
mean is in the docstring of `cache.py`.
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
ROWS_AT_ONCE = 32768  # bounds the memory of the checks

Floats = NDArray[np.float32]


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
    for start in range(0, len(rows), ROWS_AT_ONCE):
        for problem, bad_N in _broken_rows(rows.slice(start, start + ROWS_AT_ONCE), vocab_size).items():
            if problem not in first and bad_N.any():
                first[problem] = start + int(bad_N.argmax())
    return [f"{problem} (first at row {row})" for problem, row in first.items()]


def _broken_rows(rows: Rows, vocab_size: int) -> dict[str, NDArray[np.bool_]]:
    """Return for each rule of the format which rows break it; written so that NaN breaks a rule."""
    ids_NK, logprobs_NK = rows.kept_ids_NK, rows.kept_logprobs_NK
    sorted_ids_NK = np.sort(ids_NK, axis=1)
    falls_NK = logprobs_NK[:, :-1] > logprobs_NK[:, 1:]
    ties_NK = (logprobs_NK[:, :-1] == logprobs_NK[:, 1:]) & (ids_NK[:, :-1] < ids_NK[:, 1:])
    with np.errstate(over="ignore", invalid="ignore"):
        mass_N = np.exp(logprobs_NK).sum(axis=1) + np.exp(rows.tail_logprob_N)
    most = np.log(vocab_size) + ROUNDING
    return {
        f"kept id is not below {vocab_size}": (ids_NK >= vocab_size).any(axis=1),
        "kept id occurs twice": (sorted_ids_NK[:, 1:] == sorted_ids_NK[:, :-1]).any(axis=1),
        "kept log-probability is not finite": ~np.isfinite(logprobs_NK).all(axis=1),
        "kept log-probability is above 0": (logprobs_NK > ROUNDING).any(axis=1),
        "kept log-probabilities are not ordered by value, then id": ~(falls_NK | ties_NK).all(axis=1),
        f"kept and tail mass is not 1 within {MASS_TOLERANCE}": ~(np.abs(mass_N - 1) <= MASS_TOLERANCE),
        "tail log-probability is not at most 0": ~(rows.tail_logprob_N <= ROUNDING),
        "entropy is not in [0, log V]": ~((rows.entropy_N >= -ROUNDING) & (rows.entropy_N <= most)),
        "answer log-probability is not finite and at most 0": ~(
            (rows.answer_logprob_N <= ROUNDING) & (rows.answer_logprob_N > -math.inf)
        ),
        "sum of squares is not in (0, 1]": ~((rows.sum_squares_N > 0) & (rows.sum_squares_N <= 1 + ROUNDING)),
        "disagreement is not in [0, log V]": ~((rows.disagreement_N >= 0) & (rows.disagreement_N <= most)),
    }
