"""Rank reference pools by the teacher's cached rows under each of them: nothing is trained, and no model is run.

Under a good pool the teacher stays sure of words that are not private and is unsure of those that are. Which tokens
these are nobody says of a user's own people, and the rows of one pool cannot say it of themselves: a pool under which
the teacher still knows the answer would have no key token and no leak. So the pools vote: a token is key where the
median over the pools of the entropy of its row is above `key_entropy`. The vote errs where half of the pools leak an
answer, or half of them confuse the teacher about ordinary words; with one pool it is that pool's own word.

    agreement   mean R(y) at normal tokens: how firmly the regularizer holds ordinary words
    leak        mean R(y) at key tokens: how firmly it holds private ones
    score       agreement - leak, in [-1, 1]

No constant is tuned. The factor of log q(y) in ViKeR's loss is 1 - lambda R(y) (reference/methods.md, 1.3), so lambda
times the score is by how much less ascent pushes at the average normal token than at the average key token. Whether
that tells which pool retains more is a question for a study (`sweep/analyses/reference_ranking.py`), not a promise.
Finding a pool's cache is `pool_caches.py`'s; ranking the images of one pool `image_scores.py`'s.
"""

# P pools, n answers (row keys), N answer tokens of all of them, G people

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.example import DataError
from .cache import CacheMismatch, RowsNotCovered, TeacherCache, compare
from .reading.identity import show_differences

KEY_ENTROPY = 1.0  # nats, the default of every command

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False, kw_only=True)
class PooledRows:
    """The same answers under several pools: their tokens end to end, in the order of the row keys."""

    names: tuple[str, ...]
    row_keys: tuple[bytes, ...]
    answer_N: NDArray[np.int64]  # index of a token's row key
    person_N: NDArray[np.int64]  # a number for whom it is about
    entropy_PN: Floats
    answer_logprob_PN: Floats
    is_key_N: NDArray[np.bool_]

    @property
    def probability_PN(self) -> Floats:
        """R(y) of each token under each pool."""
        return np.exp(self.answer_logprob_PN)


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolScore:
    """What the rows of one pool come to; entropies in nats, standard errors over people (None below two)."""

    name: str
    rank: int
    cache: str
    images: int
    num_references: int
    tokens: int
    key_tokens: int
    people: int
    agreement: float
    damage: float
    leak: float
    key_entropy: float
    normal_entropy: float
    score: float
    score_error: float | None
    behind: float
    behind_error: float | None

    def told(self) -> dict[str, Any]:
        """Return it for JSON."""
        return asdict(self)


def pool_scores(
    caches: Mapping[str, TeacherCache], key_entropy: float = KEY_ENTROPY, row_keys: Collection[bytes] | None = None
) -> list[PoolScore]:
    """Return a score for each pool, best first; equal scores are in the order of their names.

    `damage` is mean -log R(y) at normal tokens, which is KL(one-hot || R); `behind` is the best pool's score minus
    this one's, on the same tokens. Standard errors leave out one person at a time (jackknife).

    Args:
        caches: reference rows of one teacher and one draw (k, seed, policy), by the names of their pools.
        key_entropy: in nats; tokens whose median entropy over the pools is above it are key.
        row_keys: whose rows are looked at; all that every cache holds, if it is not said.

    Raises:
        DataError: there is no cache, or no key token, or no normal one.
        CacheMismatch: the caches are of other teachers, or of other draws than the first.
        RowsNotCovered: a cache lacks rows that are asked for, or no row is in all of them.
    """
    rows = pooled_rows(caches, key_entropy, row_keys)
    number_of_key = int(rows.is_key_N.sum())
    if number_of_key in (0, len(rows.is_key_N)):
        missing = "key" if number_of_key == 0 else "normal"
        raise DataError(
            f"expected key and normal tokens at an entropy of {key_entropy:g} nats, found no {missing} token among "
            f"{len(rows.is_key_N)} by the median over {len(rows.names)} pools. Use another --key-entropy."
        )
    scores_P, held_out_PG = _scores(rows)
    order = sorted(range(len(rows.names)), key=lambda index: (-scores_P[index], rows.names[index]))
    best = order[0]
    return [
        _as_score(rows, index, rank, caches[rows.names[index]], scores_P, held_out_PG, best)
        for rank, index in enumerate(order, start=1)
    ]


def pooled_rows(
    caches: Mapping[str, TeacherCache], key_entropy: float = KEY_ENTROPY, row_keys: Collection[bytes] | None = None
) -> PooledRows:
    """Return the rows of the same answers in every cache, and the vote on key tokens; each row key counts once.

    Raises:
        DataError, CacheMismatch, RowsNotCovered: as `pool_scores`.
    """
    _require_comparable(caches)
    keys = _shared_keys(caches, row_keys)
    rows = [[cache.rows_of(_place(cache, key)) for key in keys] for cache in caches.values()]
    lengths = [[len(one) for one in of_cache] for of_cache in rows]
    if any(of_cache != lengths[0] for of_cache in lengths):
        raise CacheMismatch(
            "expected as many rows of an answer in every cache, found others. A cache is damaged or forged: check them "
            "with `viker cache verify --depth semantic`."
        )
    entropy_PN = np.array([np.concatenate([one.entropy_N for one in of_cache]) for of_cache in rows], np.float64)
    logprob_PN = np.array([np.concatenate([one.answer_logprob_N for one in of_cache]) for of_cache in rows], np.float64)
    answer_N = np.repeat(np.arange(len(keys)), lengths[0])
    return PooledRows(
        names=tuple(caches), row_keys=keys, answer_N=answer_N,
        person_N=_people(next(iter(caches.values())), keys)[answer_N], entropy_PN=entropy_PN,
        answer_logprob_PN=logprob_PN, is_key_N=np.median(entropy_PN, axis=0) > key_entropy,
    )  # fmt: skip


def _require_comparable(caches: Mapping[str, TeacherCache]) -> None:
    if not caches:
        raise DataError("expected the cached rows of at least one pool, found none. Name pools with --pool.")
    (first_name, first), *others = caches.items()
    for name, cache in others:
        found, _ = compare(cache.fingerprint, first.fingerprint, ("draw", "quantization"))
        differences = {field: values for field, values in found.items() if field != "objective.top_k"}
        if differences:
            raise CacheMismatch(
                f"expected rows under {name} of the same teacher and draw as under {first_name}, found other "
                f"({cache.root} is the cache, {first.root} is wanted):\n{show_differences(differences)}\n"
                "Pools compare only where nothing else differs: make those rows again with `viker precompute`."
            )


def _shared_keys(caches: Mapping[str, TeacherCache], row_keys: Collection[bytes] | None) -> tuple[bytes, ...]:
    shared = frozenset.intersection(*(cache.row_keys for cache in caches.values()))
    missing = frozenset(row_keys or ()) - shared
    if missing or not shared:
        raise RowsNotCovered(
            f"expected the rows asked for under each of {', '.join(caches)}, found "
            f"{f'{len(missing)} answers' if missing else 'every answer'} missing from one. Add them with `viker cache "
            "extend`.",
            next(iter(caches.values())).root,
        )
    return tuple(sorted(shared if row_keys is None else frozenset(row_keys)))


def _place(cache: TeacherCache, key: bytes) -> int:
    index = cache.find_row(key)
    assert index is not None, "the row keys are those of every cache"
    return index


def _people(cache: TeacherCache, keys: Sequence[bytes]) -> NDArray[np.int64]:
    """Return a number for whom each answer is about; a cache keeps a digest of the person."""
    people = [cache.sample_keys[_place(cache, key)][16:] for key in keys]
    numbers = {person: number for number, person in enumerate(sorted(set(people)))}
    return np.array([numbers[person] for person in people])


def _scores(rows: PooledRows) -> tuple[Floats, Floats]:
    """Return the score of each pool, and the scores with each person left out (NaN where a class is then empty)."""
    number = int(rows.person_N.max()) + 1
    sums = []
    for is_class_N in (~rows.is_key_N, rows.is_key_N):
        count_G = np.bincount(rows.person_N[is_class_N], minlength=number).astype(np.float64)
        held_PG = np.array(
            [np.bincount(rows.person_N[is_class_N], one_N[is_class_N], number) for one_N in rows.probability_PN]
        )
        sums.append((held_PG, count_G))
    (normal_PG, normals_G), (key_PG, keys_G) = sums
    scores_P = normal_PG.sum(1) / normals_G.sum() - key_PG.sum(1) / keys_G.sum()
    with np.errstate(invalid="ignore", divide="ignore"):
        held_out_PG = (normal_PG.sum(1, keepdims=True) - normal_PG) / (normals_G.sum() - normals_G) - (
            key_PG.sum(1, keepdims=True) - key_PG
        ) / (keys_G.sum() - keys_G)
    return scores_P, held_out_PG


def _as_score(
    rows: PooledRows, index: int, rank: int, cache: TeacherCache, scores_P: Floats, held_out_PG: Floats, best: int
) -> PoolScore:
    is_key_N, entropy_N = rows.is_key_N, rows.entropy_PN[index]
    probability_N, logprob_N = rows.probability_PN[index], rows.answer_logprob_PN[index]
    return PoolScore(
        name=rows.names[index], rank=rank, cache=cache.key, images=len(cache.reference_sha256),
        num_references=int(cache.fingerprint["draw"]["num_references"]), tokens=len(is_key_N),
        key_tokens=int(is_key_N.sum()), people=held_out_PG.shape[1],
        agreement=float(probability_N[~is_key_N].mean()), damage=float(-logprob_N[~is_key_N].mean()),
        leak=float(probability_N[is_key_N].mean()), key_entropy=float(entropy_N[is_key_N].mean()),
        normal_entropy=float(entropy_N[~is_key_N].mean()), score=float(scores_P[index]),
        score_error=jackknife_error(held_out_PG[index]), behind=float(scores_P[best] - scores_P[index]),
        behind_error=None if index == best else jackknife_error(held_out_PG[best] - held_out_PG[index]),
    )  # fmt: skip


def jackknife_error(values_G: Floats) -> float | None:
    """Return the standard error of a statistic from its values with one person left out at a time.

    None below two people, or where it is undefined without one of them (Efron and Stein 1981).
    """
    G = len(values_G)
    if G < 2 or not np.isfinite(values_G).all():
        return None
    return float(np.sqrt((G - 1) / G * ((values_G - values_G.mean()) ** 2).sum()))
