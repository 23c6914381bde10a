"""Add rows to a cache: a new one with all rows of the old and those missing of what is asked, which alone are computed.

What rows mean (intervention, draw, pool, top-k, storage, dtype) is the parent's and not asked for again; the model, its
rendering and the pool at hand must be the parent's too, and every difference is listed before any weight is loaded.
Copying and naming is `derive.py`'s, running the teacher `teacher.py`'s.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..data.example import DataError
from ..data.instructions import recorded_instruction
from ..data.kinds import ANSWERS, KINDS
from .ask import Asked, ask
from .cache import CacheMismatch, Fingerprint, TeacherCache, cache_home, compare, fingerprint_key
from .reading.identity import show_differences
from .recorded import asked_again
from .run import samples_for
from .teacher import compute, facts_of
from .writing.derive import KnownRows, fingerprint_of, samples_of, start_derived
from .writing.store import CacheBuilder, Sample


@dataclass(frozen=True, kw_only=True, slots=True)
class Extension:
    """How an extension ended: the cache that covers what was asked (None under --dry-run), its key, and the facts."""

    cache: TeacherCache | None
    key: str
    missing: dict[str, int]
    facts: dict[str, Any]


def as_made(fingerprint: Fingerprint, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options with those of `precompute` that a fingerprint answers, where they are not there.

    Raises:
        DataError: the teacher is none that this version knows, or its instruction has to be named.
    """
    kind, answers = (fingerprint["intervention"].get(name) for name in ("kind", "answers"))
    if kind not in KINDS or answers not in ANSWERS:
        raise DataError(
            f"expected rows of a teacher among {', '.join(KINDS)} for answers among {', '.join(ANSWERS)}, found "
            f"{kind} and {answers}. Another version of viker made this cache: use that one."
        )
    instruction = recorded_instruction(kind, fingerprint["intervention"].get("instruction"), options["instruction"])
    return {**_settings_of(fingerprint), **options, "instruction": instruction}


def _settings_of(fingerprint: Fingerprint) -> dict[str, Any]:
    draw = fingerprint["draw"]
    return {
        "teacher": fingerprint["intervention"]["kind"],
        "answers": fingerprint["intervention"]["answers"],
        "num_references": draw["num_references"],
        "shared_references": draw["policy"] == "shared",
        "seed": draw["seed"],
        "top_k": fingerprint["objective"]["top_k"],
        "store_logprobs": fingerprint["storage"]["logprobs"],
        "dtype": fingerprint["teacher_dtype"],
        "quantization": fingerprint["quantization"],
    }


def extend(parent: TeacherCache, options: Mapping[str, Any], announce: Callable[[str], None]) -> Extension:
    """Return a cache with all rows of the parent and those of the examples asked for.

    Args:
        parent: the cache to extend; it stays as it is.
        options: of `viker cache extend`; what the fingerprint answers may be there only where the user names it.
        announce: told what is asked, and of warnings.

    Raises:
        CacheMismatch: the model, its rendering or the pool are not the parent's; every difference with both values.
        DataError: model, source or pool are not there, or the instruction is not named.
        StorageError: the disk is full or failing; the same command resumes.
    """
    options = as_made(parent.fingerprint, options)
    asked = ask(options, announce)
    require_same_lineage(parent, asked.request.fingerprint)
    unknown = {key: work for key, work in asked.request.by_row_key.items() if key not in parent.row_keys}
    num_rows = sum(len(work.answer_ids) for work in unknown.values())
    missing = {"row_keys": len(unknown), "rows": num_rows}
    announce(f"extend: {len(unknown)} of {len(asked.request.by_row_key)} row keys are missing, {num_rows} rows")
    covered = {**facts_of(asked, options), "pairs": 0, "engine": None}
    if not unknown:
        facts = {**covered, "how": "the cache covers it already, nothing computed"}
        return Extension(cache=parent, key=parent.key, missing=missing, facts=facts)
    samples = union(parent, samples_for(asked.request, asked.intervention))
    key = fingerprint_key(fingerprint_of(parent, samples))
    if (cache_home() / key[:16] / "manifest.json").is_file():
        facts = {**covered, "how": "found, nothing computed"}
        return Extension(cache=TeacherCache.open(cache_home() / key[:16]), key=key, missing=missing, facts=facts)
    if options["dry_run"]:
        return Extension(cache=None, key=key, missing=missing, facts={**covered, "how": "nothing computed (--dry-run)"})

    def start(build: Mapping[str, Any]) -> CacheBuilder:
        again = asked_again(parent.build, options["split"], options["ratio"])
        return start_derived(cache_home(), parent, samples, {**build, **again}, "extend")

    rest = _only(asked, set(unknown))
    cache, facts = compute(options, rest, start, KnownRows(parent), announce)
    return Extension(cache=cache, key=key, missing=missing, facts=facts)


def require_same_lineage(parent: TeacherCache, wanted: Fingerprint) -> None:
    """Check that rows of a wanted fingerprint may lie beside those of a cache: all but `rows` is equal.

    Raises:
        CacheMismatch: listing every field that differs, with both values.
    """
    mismatches, reported = compare(parent.fingerprint, wanted, ())
    differences = {field: values for field, values in {**mismatches, **reported}.items() if field != "rows"}
    if differences:
        raise CacheMismatch(
            f"{parent.root}: expected the model, the rendering and the pool its rows were made with, found others:\n"
            f"{show_differences(dict(sorted(differences.items())))}\n"
            "Name those, or make a cache of its own with `viker precompute`."
        )


def union(parent: TeacherCache, asked: list[Sample]) -> list[Sample]:
    """Return the samples of a cache and then those asked for, in their order; where both know one, the cache's."""
    known = samples_of(parent)
    by_key: dict[bytes, dict[bytes, Sample]] = {}
    for sample in (*known, *asked):
        by_key.setdefault(sample.row_key, {}).setdefault(sample.person, sample)
    return [sample for people in by_key.values() for sample in people.values()]


def _only(asked: Asked, keys: set[bytes]) -> Asked:
    works = tuple(work for work in asked.request.works if work.row_key in keys)
    return asked._replace(request=replace(asked.request, works=works))
