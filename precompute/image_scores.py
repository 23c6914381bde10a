"""Which images of a pool go with good rows: an association over the draws that a cache records, and no more.

Every answer was shown its own draw of k images, and a cache says which (`sample/reference`). So each image divides the
answers into those that were shown it and those that were not, and the difference of their mean scores is how the image
does. An answer's score is the mean R(y) of its normal tokens minus that of its key tokens, as for a pool
(`reference_scores.py`). With k images averaged, one of them moves a row by 1/k at most, and answers differ for other
reasons; so the largest difference is held against those under draws that were shuffled between the answers.
"""

# n answers, M images of the pool, D shuffles

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.example import DataError
from .cache import TeacherCache
from .reference_scores import PooledRows

SHUFFLES = 999
NOISE = 0.05  # a p-value above it is called no more than noise
_AT_ONCE = 100

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageScore:
    """One image: the mean score of answers that were shown it minus that of the others, and its standard error."""

    rank: int
    sha256: str
    shown: int
    association: float
    standard_error: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageScores:
    """The images of a pool, best first; `p` is of the largest difference among them, by shuffled draws."""

    pool: str
    answers: int
    left_out: int
    not_ranked: int
    images: tuple[ImageScore, ...]
    p: float

    @property
    def is_noise(self) -> bool:
        """Whether shuffled draws give differences as large often enough that these say nothing."""
        return self.p > NOISE

    def told(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {**asdict(self), "images": [asdict(image) for image in self.images], "is_noise": self.is_noise}


def image_scores(rows: PooledRows, name: str, cache: TeacherCache, seed: int = 0) -> ImageScores:
    """Return the association of every image of a pool with the scores of the answers that were shown it.

    Answers without a key token, or without a normal one, have no score and are left out; images that all of the others
    were shown, or none, are not ranked. Standard errors are Welch's over answers, which are not independent where they
    are about one person; None where a side has one answer. `p` counts shuffles, the true draw among them, whose
    largest difference is as large, each in units of what its group sizes would give by chance.

    Args:
        rows: the same answers under all the pools, with the vote on key tokens.
        name: the pool whose images are ranked.
        cache: its rows.
        seed: of the shuffles.

    Raises:
        DataError: every answer was shown the same images, or none has a score.
    """
    scores_n = _answer_scores(rows, rows.names.index(name))
    has_score_n = np.isfinite(scores_n)
    is_shown_nM = _shown(rows, cache)[has_score_n]
    scores_n = scores_n[has_score_n]
    shown_M = is_shown_nM.sum(0)
    ranked_M = np.flatnonzero((shown_M > 0) & (shown_M < len(scores_n)))
    if not len(ranked_M):
        raise DataError(
            f"--images {name}: expected answers that were shown different images, found {len(scores_n)} answers with a "
            f"score and {len(shown_M)} images, of which each was shown to all or to none. Images compare under draws "
            "an example (no --shared-references, and fewer references than images)."
        )
    found = [_image(scores_n, is_shown_nM[:, index]) for index in ranked_M]
    order = sorted(range(len(found)), key=lambda place: (-found[place][0], int(ranked_M[place])))
    images = tuple(
        ImageScore(
            rank=rank, sha256=cache.reference_sha256[ranked_M[place]].tobytes().hex(),
            shown=int(shown_M[ranked_M[place]]), association=found[place][0], standard_error=found[place][1],
        )
        for rank, place in enumerate(order, start=1)
    )  # fmt: skip
    return ImageScores(
        pool=name, answers=len(scores_n), left_out=int((~has_score_n).sum()),
        not_ranked=len(shown_M) - len(ranked_M), images=images, p=_p(scores_n, is_shown_nM[:, ranked_M], seed),
    )  # fmt: skip


def _answer_scores(rows: PooledRows, pool: int) -> Floats:
    """Return each answer's mean R(y) at normal tokens minus that at key tokens; NaN where it lacks either."""
    probability_N, number = rows.probability_PN[pool], len(rows.row_keys)
    means = []
    for is_class_N in (~rows.is_key_N, rows.is_key_N):
        count_n = np.bincount(rows.answer_N[is_class_N], minlength=number)
        sum_n = np.bincount(rows.answer_N[is_class_N], probability_N[is_class_N], number)
        means.append(np.where(count_n > 0, sum_n / np.maximum(count_n, 1), np.nan))
    scores_n: Floats = means[0] - means[1]
    return scores_n


def _shown(rows: PooledRows, cache: TeacherCache) -> NDArray[np.bool_]:
    """Return which answer was shown which image, [n, M]."""
    is_shown_nM = np.zeros((len(rows.row_keys), len(cache.reference_sha256)), np.bool_)
    for answer, key in enumerate(rows.row_keys):
        sample = cache.find_row(key)
        assert sample is not None, "the row keys are those of every cache"
        is_shown_nM[answer, cache.reference[sample]] = True
    return is_shown_nM


def _image(scores_n: Floats, is_shown_n: NDArray[np.bool_]) -> tuple[float, float | None]:
    with_it, without = scores_n[is_shown_n], scores_n[~is_shown_n]
    association = float(with_it.mean() - without.mean())
    if min(len(with_it), len(without)) < 2:
        return association, None
    return association, float(np.sqrt(with_it.var(ddof=1) / len(with_it) + without.var(ddof=1) / len(without)))


def _p(scores_n: Floats, is_shown_nM: NDArray[np.bool_], seed: int) -> float:
    """Return the share of draws, the true one among them, with a largest difference at least as large."""
    n, shown_M = len(scores_n), is_shown_nM.sum(0)
    centred_n = scores_n - scores_n.mean()
    # A sum over the answers shown an image is its mean difference, but for a factor of the group sizes.
    unit_M = np.sqrt(shown_M * (n - shown_M) / n)

    def largest(values_Dn: Floats) -> Floats:
        differences_DM: Floats = np.abs(values_Dn @ is_shown_nM.astype(np.float64)) / unit_M
        largest_D: Floats = differences_DM.max(axis=1)
        return largest_D

    bar = float(largest(centred_n[None])[0]) * (1 - 1e-9)
    reached = sum(int((largest(values_Dn) >= bar).sum()) for values_Dn in _shuffled(centred_n, seed))
    return (reached + 1) / (SHUFFLES + 1)


def _shuffled(values_n: Floats, seed: int) -> Iterator[Floats]:
    rng = np.random.default_rng(seed)
    for start in range(0, SHUFFLES, _AT_ONCE):
        number = min(_AT_ONCE, SHUFFLES - start)
        yield rng.permuted(np.tile(values_n, (number, 1)), axis=1)
