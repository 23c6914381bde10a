"""Before training: run the teacher on a few examples and hold the cached rows against what it says.

A cache names its teacher by digests, so this finds what digests cannot: another library that computes otherwise, a
device that rounds otherwise, rows that were forged with their digests. After it the teacher is not run again.
"""

# M answer tokens, C buckets (kept, answer, tail)

from collections.abc import Mapping, Sequence
from typing import Any

from ..data.example import DataError
from ..data.references import open_pool
from ..data.source import Source
from ..models.encode import Encoder
from ..models.interventions import Intervention
from ..precompute.cache import CacheMismatch, TeacherCache
from .batches import Item
from .online import naive_passes, online_rows
from .rows import TeacherRows, regroup, teacher_buckets
from .steps import cached_rows

TOLERANCE = 0.02  # total variation between devices and precisions, as the cache format has it


def spot_check(
    model: Any, encoder: Encoder, items: Sequence[Item], cache: TeacherCache, intervention: Intervention, count: int
) -> float:
    """Return the largest total variation between cached rows and the teacher's, over `count` examples.

    Raises:
        CacheMismatch: it is more than devices and precisions explain.
    """
    step = max(1, len(items) // count)
    live_of, cached_of = online_rows(model, encoder, intervention, naive_passes), cached_rows(cache.top_k)
    worst = 0.0
    for item in items[::step][:count]:
        variation = _variation(live_of([item]), cached_of([item]), encoder.vocab_size)
        worst = max(worst, variation)
        if variation > TOLERANCE:
            raise CacheMismatch(
                f"{cache.root}: expected rows of {item.example.id} within a total variation of {TOLERANCE} of what the "
                f"teacher says now, found {variation:.3f}. The cache was made by another teacher, library or "
                "intervention than it says: `viker cache verify --depth semantic`, then make it again."
            )
    return worst


def _variation(live: TeacherRows | None, cached: TeacherRows | None, vocab_size: int) -> float:
    """Return the largest total variation of rows, in the buckets of the cached ones."""
    assert live is not None, "a live teacher gives rows"
    assert cached is not None, "what is checked has cached rows"
    same = regroup(live, cached.to(live.entropy_M.device))
    gap_MC = teacher_buckets(same, vocab_size).exp() - teacher_buckets(cached, vocab_size).to(same.entropy_M).exp()
    return float(gap_MC.abs().sum(1).max()) / 2


def intervention_of(cache: TeacherCache, options: Mapping[str, Any], source: Source) -> Intervention:
    """Return what the teacher of a cache was shown, with the pool and the instruction that the user names again.

    Raises:
        DataError: a pool is needed, and none or another is named.
    """
    draw, kind = cache.fingerprint["draw"], cache.fingerprint["intervention"]["kind"]
    pool = None
    if cache.fingerprint["pool"] is not None:
        if options["pool"] is None:
            raise DataError("--spot-check: expected --pool, the images of the cache's references, found none. Name it.")
        pool = open_pool(options["pool"], source)
        if pool.digest != cache.fingerprint["pool"]:
            raise DataError(
                f"--pool {options['pool']}: expected the images that {cache.root} was made with (digest "
                f"{cache.fingerprint['pool'][:12]}), found others ({pool.digest[:12]}). Name that pool."
            )
    return Intervention(
        kind=kind, answers=cache.fingerprint["intervention"]["answers"], pool=pool, seed=draw["seed"],
        num_references=max(1, draw["num_references"]), shared=draw["policy"] == "shared",
        instruction=options["instruction"],
    )  # fmt: skip
