"""Find the caches a training run reads: the one its run stores, one named by hand, or one found by the rules.

A run stores keys, never rows. Without a run, fingerprints in the cache home are compared field by field with what this
student needs; the pool, the draw and the storage are then taken from the cache and reported, since no pool is at hand.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data.artefact import is_complete, read_json
from ..data.example import DataError, Example
from ..models.encode import Encoder
from ..models.interventions import Kind
from ..precompute.cache import (
    CacheMismatch,
    RowsNotCovered,
    TeacherCache,
    cache_home,
    find,
    make_fingerprint,
    require_serves,
)
from .batches import item_keys

_DECIDED_BY_CACHE = (
    "pool", "draw.policy", "draw.seed", "draw.num_references", "storage.ids", "storage.logprobs", "teacher_dtype",
    "quantization", "objective.top_k", "rows",
)  # fmt: skip


def wanted_fingerprint(
    identity: Mapping[str, Any], encoder: Encoder, kind: Kind, keys: set[bytes], top_k: int
) -> dict[str, Any]:
    """Return what a student needs of a cache, without the fields a cache may decide (pool, draw, storage)."""
    intervention = {"intervention": {"kind": kind, "answers": "own"}}
    wanted = make_fingerprint(
        identity, intervention, top_k=top_k, vocab_size=encoder.vocab_size, teacher_dtype="float32",
        logprob_dtype="float16", row_keys=keys,
    )  # fmt: skip
    return {name: value for name, value in wanted.items() if name not in ("storage", "teacher_dtype", "quantization")}


def find_cache(
    examples: Sequence[Example],
    encoder: Encoder,
    identity: Mapping[str, Any],
    kind: Kind,
    *,
    top_k: int,
    named: Sequence[str],
    run_artefact: Path | None,
    command: str,
    announce: Callable[[str], None],
) -> TeacherCache:
    """Return the cache that holds the rows of these examples.

    Args:
        examples: whose rows are needed.
        encoder: the student's encoder.
        identity: the student's identity; its weights are the teacher's, before training.
        kind: the intervention the rows must come from.
        top_k: tokens a row must keep at least.
        named: caches named by hand: paths, or prefixes of keys in the cache home.
        run_artefact: where the run stores the key it was told.
        command: the command that makes the rows, for the error message.
        announce: told what was taken from the cache rather than asked for.

    Raises:
        CacheMismatch: no cache serves; every differing field with both values.
        RowsNotCovered: a cache of the right thing lacks rows.
    """
    keys = item_keys(encoder, examples, kind)
    wanted = wanted_fingerprint(identity, encoder, kind, keys, top_k)
    try:
        cache = (
            _named_cache(named, wanted, keys)
            or _run_cache(run_artefact, wanted, keys)
            or find(cache_home(), wanted, (), keys)
        )
    except (CacheMismatch, RowsNotCovered) as error:
        raise type(error)(f"{error}\nMake the rows with:\n  {command}") from error
    taken = require_serves(cache, wanted, (), keys).reported
    draw, pool = cache.fingerprint["draw"], cache.fingerprint["pool"]
    source = (
        f"; pool {pool[:8]}, {draw['num_references']} references {draw['policy']}, seed {draw['seed']}" if pool else ""
    )
    assert taken.keys() <= set(_DECIDED_BY_CACHE), f"unexpected difference {taken}"
    announce(f"train: {kind} rows from {cache.root}{source}, teacher in {cache.fingerprint['teacher_dtype']}")
    return cache


def _named_cache(named: Sequence[str], wanted: dict[str, Any], keys: set[bytes]) -> TeacherCache | None:
    """Return the first cache named by hand that serves, None where no cache of this kind is named.

    Raises:
        CacheMismatch, RowsNotCovered: caches of this kind are named, and none serves.
    """
    caches = [TeacherCache.open(_path_of(name)) for name in named]
    kind = wanted["intervention"]["kind"]
    chosen = [cache for cache in caches if _kind(cache) == kind]
    refusal: CacheMismatch | RowsNotCovered | None = None
    for cache in chosen:
        try:
            require_serves(cache, wanted, (), keys)
            return cache
        except (CacheMismatch, RowsNotCovered) as error:
            refusal = refusal or error
    if refusal is not None:
        raise refusal
    return None


def check_named(named: Sequence[str], read: Mapping[str, TeacherCache], announce: Callable[[str], None]) -> None:
    """Say which of the caches named by hand are not read, and refuse where that is all of them.

    Raises:
        CacheMismatch: the user named caches, and every row came from others.
    """
    unread = [
        name for name in named if _path_of(name).resolve() not in {cache.root.resolve() for cache in read.values()}
    ]
    if unread and len(unread) == len(named):
        found = ", ".join(f"{name} of {_kind(TeacherCache.open(_path_of(name)))} rows" for name in unread)
        kinds = " or ".join(sorted({_kind(cache) for cache in read.values()})) or "no"
        raise CacheMismatch(
            f"--cache: expected a cache of {kinds} rows, which this method reads, found {found}. "
            "Name another, or leave --cache out."
        )
    for name in unread:
        announce(f"train: --cache {name}: this method does not read it")


def _kind(cache: TeacherCache) -> str:
    return str(cache.fingerprint["intervention"]["kind"])


def _path_of(name: str) -> Path:
    if Path(name).is_dir():
        return Path(name)
    matches = sorted(path.parent for path in cache_home().glob(f"{name[:16]}*/manifest.json"))
    if len(matches) != 1:
        raise DataError(
            f"--cache {name}: expected a cache directory or the beginning of one key in {cache_home()}, found "
            f"{len(matches)} matches."
        )
    return matches[0]


def _run_cache(artefact: Path | None, wanted: dict[str, Any], keys: set[bytes]) -> TeacherCache | None:
    """Return the cache whose key the run stores, if it stores one and its cache is there."""
    if artefact is None or not is_complete(artefact):
        return None
    stored = read_json(artefact / "provenance.json")["cache"]
    path = cache_home() / stored["key"][:16]
    if not (path / "manifest.json").is_file():
        return None
    cache = TeacherCache.open(path)
    require_serves(cache, wanted, (), keys)
    if cache.root_digest != stored["root"]:
        raise CacheMismatch(
            f"{path}: expected the rows this run was told, root {stored['root'][:16]}, found root "
            f"{cache.root_digest[:16]}. "
            "Name the cache with --cache to use it all the same."
        )
    return cache
