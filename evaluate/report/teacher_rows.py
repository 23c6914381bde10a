"""Find the rows of a run's teacher in this machine's caches, by the keys that its stages store.

A report must be readable where the cache is not: whatever is wrong is a sentence, never an exception. Rows under
references come first, for they are what the papers color by; rows of another kind serve where a run has no others, and
the section says which. The seam itself is `precompute/cache.py`.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from ...data.artefact import cache_home, read_json
from ...data.example import DataError
from ...precompute.cache import CacheError, Rows, TeacherCache
from .run import Run

REFERENCE = "reference"
_STORED = "precompute/reference-forget"
_NONE = "has no rows of these answers"


class TeacherRows(NamedTuple):
    """The rows of some answers, by hex row key, and what says whose they are."""

    rows: dict[str, Rows]
    told: dict[str, Any]


def find_teacher_rows(run: Run, row_keys: Sequence[str]) -> TeacherRows | str:
    """Return the rows of answers from the first cache of a run that has any, or why there are none, in words.

    Args:
        run: whose stages name caches.
        row_keys: in hex, of answers whose own image the teacher was not shown.
    """
    keys = list(dict.fromkeys(_stored_keys(run)))
    if not keys:
        return f"{run.path}: no stage of this run names a teacher cache, so there are no rows to color answers by."
    found, problems = [], []
    for key in keys:
        rows = _rows_in(key, row_keys)
        if isinstance(rows, str):
            problems.append(rows)
        elif rows.told["kind"] == REFERENCE:
            return rows
        else:
            found.append(rows)
    # Of what is wrong the first that matters: a cache that merely holds others, as a retain term's does, is no news.
    return found[0] if found else next((text for text in problems if _NONE not in text), problems[0])


def _stored_keys(run: Run) -> Iterator[str]:
    """Yield the keys of the caches a run names: of its rows under references, of other rows, of what adapters read.

    A purge leaves the stage that stored a key unfinished, with the key of the cache that took its place.
    """
    stages = [run.stages[_STORED]] if _STORED in run.stages else []
    if not stages and _STORED in run.unfinished:
        yield from _key_left_by_a_purge(run)
    stages += [*run.under("precompute").values(), *run.under("adapters").values()]
    for stage in stages:
        yield from (cache["key"] for cache in stage.caches.values())


def _key_left_by_a_purge(run: Run) -> list[str]:
    try:
        cache = read_json(run.path / _STORED / "provenance.json").get("cache")
    except DataError:
        return []
    key = cache.get("key") if isinstance(cache, dict) else None
    return [key] if isinstance(key, str) else []


def _rows_in(key: str, row_keys: Sequence[str]) -> TeacherRows | str:
    """Return the rows of answers that one cache has, or why it gives none."""
    root = cache_home() / str(key)[:16]
    if not root.is_dir():
        return f"The teacher cache {str(key)[:16]} is not on this machine ({root.parent}): purged, or never fetched."
    try:
        cache = TeacherCache.open(root)
        places = {name: cache.find_row(bytes.fromhex(name)) for name in dict.fromkeys(row_keys)}
        rows = {name: cache.rows_of(place) for name, place in places.items() if place is not None}
    except (CacheError, OSError) as error:
        return f"The teacher cache {str(key)[:16]} cannot be read: {error}"
    if cache.key != key:
        return f"The teacher cache {str(key)[:16]} is another than the one this run names."
    if not rows:
        return f"The teacher cache {str(key)[:16]} {_NONE}."
    intervention, draw = cache.fingerprint["intervention"], cache.fingerprint["draw"]
    told = {"kind": intervention["kind"], "num_references": draw["num_references"], "top_k": cache.top_k,
            "key": cache.key, "root": cache.root_digest}  # fmt: skip
    return TeacherRows(rows, told)
