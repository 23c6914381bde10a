"""How far two versions of the same rows are apart: total variation, as far as what is stored can tell.

Total variation is the mass by which one row exceeds the other, summed over tokens. For a token both keep that is known.
A token only one of them keeps is, in the other, no likelier than the other's least kept token and than its tail; and
everything but the common tokens is one bucket of known mass in both. The larger of the two accounts is taken, in both
directions. The answer's own probability is known whatever is kept, and is all that rows which keep nothing can be
compared by. Each account leaves out or merges tokens, which never adds distance, so the largest of them is a lower
bound of the total variation over the whole vocabulary, up to the rounding of storage.

Who compares, and what is too far, is the caller's: two makers of one key (`viker cache push`), or a cache and its
teacher (`semantic.py`).
"""

# N answer tokens, K kept, P pairs of equal ids

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..cache import CacheMismatch, Rows, TeacherCache

ROWS_AT_ONCE = 32768  # bounds the memory: 64 + 64 kept tokens take 100 MB
KEYS_AT_ONCE = 1024

Indices = NDArray[np.int64]
Places = Sequence[Indices]


def row_distances(ours: Rows, theirs: Rows) -> NDArray[np.float64]:
    """Return a lower bound of the total variation between each row of ours and the same row of theirs, [N].

    The two may keep different numbers of tokens, in whatever order.
    """
    assert len(ours) == len(theirs), f"the same rows twice, not {len(ours)} and {len(theirs)}"
    steps = range(0, len(ours), ROWS_AT_ONCE)
    parts = [_distances(ours.slice(at, at + ROWS_AT_ONCE), theirs.slice(at, at + ROWS_AT_ONCE)) for at in steps]
    return np.concatenate([np.empty(0), *parts])


def cache_distances(ours: TeacherCache, theirs: TeacherCache) -> NDArray[np.float64]:
    """Return the distances of all rows whose row keys both caches hold, in the order of the row keys.

    Caches of one key may name other people for the same rows, so samples are paired by row key.

    Raises:
        CacheMismatch: when a row key has answers of different lengths.
    """
    keys = sorted(ours.row_keys & theirs.row_keys)
    parts = []
    for at in range(0, len(keys), KEYS_AT_ONCE):
        some = keys[at : at + KEYS_AT_ONCE]
        our_places, their_places = _places(ours, some), _places(theirs, some)
        _expect_equal_lengths(ours, theirs, some, our_places, their_places)
        parts.append(row_distances(_taken(ours.load(), our_places), _taken(theirs.load(), their_places)))
    return np.concatenate([np.empty(0), *parts])


def _places(cache: TeacherCache, keys: Sequence[bytes]) -> list[Indices]:
    """Return where the rows of each row key are."""
    indices = [index for key in keys if (index := cache.find_row(key)) is not None]
    return [np.arange(*cache.offset[index : index + 2]) for index in indices]


def _taken(rows: Rows, places: Places) -> Rows:
    index_N = np.concatenate(places)
    return Rows(**{name: array[index_N] for name, array in vars(rows).items()})


def _expect_equal_lengths(
    ours: TeacherCache, theirs: TeacherCache, keys: Sequence[bytes], our_places: Places, their_places: Places
) -> None:
    for key, one, other in zip(keys, our_places, their_places, strict=True):
        if len(one) != len(other):
            raise CacheMismatch(
                f"{theirs.root}: expected {len(one)} rows for the row key {key.hex()}, as in {ours.root}, found "
                f"{len(other)}. One of the two is damaged or forged: rebuild it with `viker precompute`."
            )


def _distances(ours: Rows, theirs: Rows) -> NDArray[np.float64]:
    row_P, our_column_P, their_column_P = _common(ours, theirs)
    forth_N = _excess(ours, theirs, row_P, our_column_P, their_column_P)
    back_N = _excess(theirs, ours, row_P, their_column_P, our_column_P)
    answer_N = np.abs(_probabilities(ours.answer_logprob_N) - _probabilities(theirs.answer_logprob_N))
    return np.asarray(np.maximum(np.maximum(forth_N, back_N), answer_N))


def _excess(
    ours: Rows, theirs: Rows, row_P: Indices, our_column_P: Indices, their_column_P: Indices
) -> NDArray[np.float64]:
    """Return at least how much mass ours have beyond theirs, [N], given where the ids are that both keep."""
    N = len(ours)
    p_NK, q_NK = _probabilities(ours.kept_logprobs_NK), _probabilities(theirs.kept_logprobs_NK)
    p_tail_N, q_tail_N = _probabilities(ours.tail_logprob_N), _probabilities(theirs.tail_logprob_N)
    p_P, q_P = p_NK[row_P, our_column_P], q_NK[row_P, their_column_P]
    excess_N = np.bincount(row_P, np.maximum(p_P - q_P, 0), N)
    p_rest_N = p_NK.sum(1) + p_tail_N - np.bincount(row_P, p_P, N)
    q_rest_N = q_NK.sum(1) + q_tail_N - np.bincount(row_P, q_P, N)
    q_most_N = np.minimum(q_tail_N, q_NK.min(1, initial=np.inf))  # of a token that theirs do not keep
    p_NK[row_P, our_column_P] = 0
    return np.asarray(
        excess_N + np.maximum(np.maximum(p_NK - q_most_N[:, None], 0).sum(1), np.maximum(p_rest_N - q_rest_N, 0))
    )


def _common(ours: Rows, theirs: Rows) -> tuple[Indices, Indices, Indices]:
    """Return row, column of ours and column of theirs for every id that both keep.

    Ids and columns are sorted as one number: equal ids become neighbors, ours before theirs.
    """
    ids_NW = np.concatenate([ours.kept_ids_NK, theirs.kept_ids_NK], axis=1).astype(np.int64)
    width = ids_NW.shape[1]
    places_NW = np.sort(ids_NW * width + np.arange(width), axis=1)
    ids_NW = places_NW // max(width, 1)
    row_P, at_P = np.nonzero(ids_NW[:, :-1] == ids_NW[:, 1:])
    columns_P2 = np.stack([places_NW[row_P, at_P], places_NW[row_P, at_P + 1]], axis=1) % max(width, 1)
    return row_P, columns_P2[:, 0], columns_P2[:, 1] - ours.kept_ids_NK.shape[1]


def _probabilities(logprobs: NDArray[np.float32]) -> NDArray[np.float64]:
    return np.exp(logprobs, dtype=np.float64)
