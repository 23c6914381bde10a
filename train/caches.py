"""Find the caches a training run reads: the one its run stores, one named by hand, or one found by the rules.

A run stores keys, never rows. Without a run, fingerprints in the cache home are compared field by field with what this
student needs; the pool, the draw and the storage are then taken from the cache and reported, since no pool is at hand.
"""

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data.artefact import is_complete, read_json
from ..data.example import Example
from ..data.kinds import Answers, Kind
from ..models.encode import Encoder
from ..models.interventions import intervention_identity
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
from .named import path_of

_DECIDED_BY_CACHE = (
    "pool", "draw.policy", "draw.seed", "draw.num_references", "storage.ids", "storage.logprobs", "teacher_dtype",
    "quantization", "objective.top_k", "rows",
)  # fmt: skip


def wanted_fingerprint(
    identity: Mapping[str, Any], encoder: Encoder, kind: Kind, keys: set[bytes], top_k: int, *,
    answers: Answers = "own", instruction: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Return what a student needs of a cache, without the fields a cache may decide (pool, draw, storage)."""
    intervention = {"intervention": intervention_identity(kind, answers, instruction)}
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
    extend: Sequence[str],
    announce: Callable[[str], None],
    fetch: Callable[[str, str], bool],
    overridden: Sequence[str] = (),
    answers: Answers = "own",
    instruction: str | None = None,
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
        extend: the options with which `viker cache extend` adds them to a cache that lacks some.
        announce: told what was taken from the cache rather than asked for.
        fetch: fetches the cache of a key and a root from a remote; returns whether it is here now.
        overridden: fields that the user allows to differ.
        answers: whether the examples have refusals for answers.
        instruction: what the teacher was told before the question, where its kind is told anything.

    Raises:
        CacheMismatch: no cache serves; every differing field with both values.
        RowsNotCovered: a cache of the right thing lacks rows.
    """
    keys = item_keys(encoder, examples, kind)
    wanted = wanted_fingerprint(identity, encoder, kind, keys, top_k, answers=answers, instruction=instruction)
    try:
        cache = (
            _named_cache(named, run_artefact, wanted, keys, overridden)
            or _run_cache(run_artefact, wanted, keys, overridden, fetch)
            or find(cache_home(), wanted, (), keys, overridden)
        )
    except RowsNotCovered as error:
        added = _extend_command(TeacherCache.open(error.root), extend, wanted)
        raise RowsNotCovered(f"{error}\nAdd the rows with:\n  {added}", error.root) from error
    except CacheMismatch as error:
        raise CacheMismatch(f"{error}\nMake the rows with:\n  {command}") from error
    taken = require_serves(cache, wanted, (), keys, overridden).reported
    draw, pool = cache.fingerprint["draw"], cache.fingerprint["pool"]
    source = (
        f"; pool {pool[:8]}, {draw['num_references']} references {draw['policy']}, seed {draw['seed']}" if pool else ""
    )
    assert taken.keys() <= {*_DECIDED_BY_CACHE, *overridden}, f"unexpected difference {taken}"
    for field in sorted(taken.keys() & set(overridden)):
        announce(f"train: WARNING: --override {field}: cache {taken[field][0]}, student {taken[field][1]}")
    bits = cache.fingerprint["quantization"]
    computes = cache.fingerprint["teacher_dtype"] + (f", weights in {bits}" if bits else "")
    announce(f"train: {kind} rows from {cache.root}{source}, teacher in {computes}")
    return cache


def overridden_fields(
    caches: Mapping[str, TeacherCache], identity: Mapping[str, Any], overridden: Sequence[str]
) -> dict[str, dict[str, dict[str, Any]]]:
    """Return by kind of rows which overridden fields do differ, with the cached and the wanted value."""
    found = {
        kind: {
            field: {"cached": cache.fingerprint[field], "wanted": identity[field]}
            for field in overridden
            if cache.fingerprint[field] != identity[field]
        }
        for kind, cache in caches.items()
    }
    return {kind: fields for kind, fields in found.items() if fields}


def _extend_command(cache: TeacherCache, options: Sequence[str], wanted: Mapping[str, Any]) -> str:
    """Return the command that adds rows to a cache; it takes the cache's own teacher where the student is another."""
    words, model = list(options), cache.build.get("model")
    if cache.fingerprint["weights"] != wanted["weights"] and model is not None:
        words[words.index("--model") + 1] = str(model)
    if cache.fingerprint["pool"] is not None:
        words += ["--pool", str(cache.build.get("pool") or "DIR")]
    name = cache.root.name if cache.root.parent == cache_home() else str(cache.root)
    return shlex.join(["viker", "cache", "extend", name, *words])


def _named_cache(
    named: Sequence[str], run_artefact: Path | None, wanted: dict[str, Any], keys: set[bytes], overridden: Sequence[str]
) -> TeacherCache | None:
    """Return the first cache named by hand that serves, None where no cache of this kind is named.

    Raises:
        CacheMismatch, RowsNotCovered: caches of this kind are named, and none serves.
    """
    caches = [(name, TeacherCache.open(path_of(name))) for name in named]
    chosen = [(name, cache) for name, cache in caches if _rows_of(cache.fingerprint) == _rows_of(wanted)]
    refusal: CacheMismatch | RowsNotCovered | None = None
    for name, cache in chosen:
        try:
            require_serves(cache, wanted, (), keys, overridden)
            if not Path(name).is_dir():  # a key means the bytes the run was told, a folder means what is in it
                _require_stored_root(cache, run_artefact)
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
        name for name in named if path_of(name).resolve() not in {cache.root.resolve() for cache in read.values()}
    ]
    if unread and len(unread) == len(named):
        found = ", ".join(f"{name} of {_kind(TeacherCache.open(path_of(name)))} rows" for name in unread)
        kinds = " or ".join(sorted({_kind(cache) for cache in read.values()})) or "no"
        raise CacheMismatch(
            f"--cache: expected a cache of {kinds} rows, which this method reads, found {found}. "
            "Name another, or leave --cache out."
        )
    for name in unread:
        announce(f"train: --cache {name}: this method does not read it")


def _rows_of(fingerprint: Mapping[str, Any]) -> tuple[str, str]:
    """Return which rows a fingerprint is of: the kind of teacher, and whose answers."""
    intervention = fingerprint["intervention"]
    return intervention["kind"], intervention.get("answers", "own")


def _kind(cache: TeacherCache) -> str:
    return str(cache.fingerprint["intervention"]["kind"])


def _run_cache(
    artefact: Path | None, wanted: dict[str, Any], keys: set[bytes], overridden: Sequence[str],
    fetch: Callable[[str, str], bool],
) -> TeacherCache | None:  # fmt: skip
    """Return the cache whose key the run stores, if it stores one and its cache is there or can be fetched."""
    stored = _stored(artefact)
    if stored is None:
        return None
    path = cache_home() / stored["key"][:16]
    if not (path / "manifest.json").is_file() and not fetch(stored["key"], stored["root"]):
        return None
    cache = TeacherCache.open(path)
    require_serves(cache, wanted, (), keys, overridden)
    _require_stored_root(cache, artefact)
    return cache


def _require_stored_root(cache: TeacherCache, artefact: Path | None) -> None:
    """Check that a cache holds the bytes that a run was told, where the run stores its key."""
    stored = _stored(artefact)
    if stored is not None and stored["key"] == cache.key and stored["root"] != cache.root_digest:
        raise CacheMismatch(
            f"{cache.root}: expected the rows this run was told, root {stored['root']}, found root "
            f"{cache.root_digest}: other bytes under the same key. Name the folder with --cache to use it all the "
            "same, or let `viker precompute --overwrite` tell the run anew."
        )


def _stored(artefact: Path | None) -> dict[str, str] | None:
    """Return the key and the root that a run stores."""
    if artefact is None or not is_complete(artefact):
        return None
    stored: dict[str, str] = read_json(artefact / "provenance.json")["cache"]
    return stored
