"""Which of the caches at hand serves a request: the exact one, else the one whose rows fit by the rules of identity.

The rules are the table of `identity.py`; here they are applied to directories, and every refusal says which fields
forbid it. Looking elsewhere than in one folder is `remote.py`'s.
"""

import logging
from collections.abc import Collection
from pathlib import Path

from .identity import Comparison, Fingerprint, Names, compare, show_differences
from .layout import CacheError, CacheMismatch, RowsNotCovered
from .reader import TeacherCache

logger = logging.getLogger(__name__)


def require_serves(
    cache: TeacherCache, wanted: Fingerprint, named: Names, row_keys: Collection[bytes], overridden: Names = ()
) -> Comparison:
    """Return how a cache differs from what is wanted once it is known to serve.

    Raises:
        CacheMismatch: listing every field whose rule (`FIELD_RULES`) forbids the difference.
        RowsNotCovered: when rows are missing.
    """
    refusal = _refusal(cache, wanted, named, row_keys, overridden)
    if refusal is not None:
        raise refusal
    return compare(cache.fingerprint, wanted, named, overridden)


def serving_caches(
    home: Path, wanted: Fingerprint, named: Names, row_keys: Collection[bytes], overridden: Names = ()
) -> list[TeacherCache]:
    """Return every complete cache in a folder that serves by the rules; an exact one comes first."""
    caches = _open_all(home)
    serving = [cache for cache in caches if _refusal(cache, wanted, named, row_keys, overridden) is None]
    return sorted(serving, key=lambda cache: cache.fingerprint != wanted)


def find(
    home: Path, wanted: Fingerprint, named: Names, row_keys: Collection[bytes], overridden: Names = ()
) -> TeacherCache:
    """Return the one cache in a folder that serves: the exact one, else the only one.

    Raises:
        CacheMismatch: when none serves, or several do and none is exact.
        RowsNotCovered: when caches of the right thing lack rows.
    """
    serving = serving_caches(home, wanted, named, row_keys, overridden)
    if len(serving) == 1 or (serving and serving[0].fingerprint == wanted):
        return serving[0]
    if serving:
        places = "\n".join(f"  {cache.root}" for cache in serving)
        raise CacheMismatch(f"Expected one teacher cache that serves, found several. Name one by `--cache`:\n{places}")
    refusals = [_refusal(cache, wanted, named, row_keys, overridden) for cache in _open_all(home)]
    uncovered = [refusal for refusal in refusals if isinstance(refusal, RowsNotCovered)]
    if uncovered:
        raise RowsNotCovered("\n".join(map(str, uncovered)), _fullest(uncovered, row_keys))
    reasons = "\n".join(map(str, refusals)) or "It holds no complete cache: make one with `viker precompute`."
    raise CacheMismatch(f"Expected a teacher cache that serves in {home}, found none.\n{reasons}")


def _open_all(home: Path) -> list[TeacherCache]:
    """Open every complete cache in a folder; a damaged one is left out, with a warning."""
    caches = []
    for manifest in sorted(home.glob("[0-9a-f]*/manifest.json")):
        if "." in manifest.parent.name:  # being sealed, or being removed
            continue
        try:
            caches.append(TeacherCache.open(manifest.parent))
        except CacheError as error:
            logger.warning("left out of the search: %s", error)
    return caches


def _refusal(
    cache: TeacherCache, wanted: Fingerprint, named: Names, row_keys: Collection[bytes], overridden: Names
) -> CacheError | None:
    """Return why a cache does not serve, if it does not."""
    mismatches = compare(cache.fingerprint, wanted, named, overridden).mismatches
    if mismatches:
        return CacheMismatch(
            f"{cache.root} was made for something else:\n{show_differences(mismatches)}\n"
            "Ask for what it holds, or make a cache of what you ask with `viker precompute`."
        )
    missing = len(set(row_keys) - cache.row_keys)
    if missing:
        return RowsNotCovered(
            f"{cache.root}: expected all {len(set(row_keys))} row keys asked for, found {missing} of them missing. "
            f"Add them with `viker cache extend {cache.root.name}`: it makes another cache, and computes no row again.",
            cache.root,
        )
    return None


def _fullest(refusals: list[RowsNotCovered], row_keys: Collection[bytes]) -> Path:
    """Return where the cache is that lacks the fewest rows, hence is extended by the least work."""
    return min((refusal.root for refusal in refusals), key=lambda root: _num_missing(root, row_keys))


def _num_missing(root: Path, row_keys: Collection[bytes]) -> int:
    return len(set(row_keys) - TeacherCache.open(root).row_keys)
