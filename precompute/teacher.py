"""Find a cache, or load the teacher and compute it: what `viker precompute` does once it has decided to look.

Splitting this from the command keeps the decision to skip free of torch. The engine is checked against the oracle on
one example before the first block; where a model family breaks its assumption, the oracle takes over, loudly.
"""

import os
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch

from ..data.artefact import library_versions
from ..data.example import DataError, Example
from ..data.halves import training_questions
from ..data.inputs import other_commits
from ..data.references import Pool, open_pool
from ..data.sources import Source, open_source
from ..models.encode import Encoder
from ..models.identity import teacher_identity
from ..models.interventions import Intervention, require_images
from ..models.load import Checkpoint, load_encoder, pick_device, resolve
from ..models.pictures import look_alike, thumbnail
from .cache import CacheError, TeacherCache, cache_home
from .open_teacher import open_teacher
from .run import Request, compute_blocks, count_pairs, first_pending, make_request, start_builder
from .sharing.addresses import open_store
from .sharing.lookup import look_up, require_open, take
from .sharing.pointer import record_making
from .sharing.stores import Store
from .writing.derive import NOTHING_KNOWN, KnownRows
from .writing.schedule import EVERYTHING, Part
from .writing.store import CacheBuilder

# Options by which the source, the model and the pool are found again; never whom somebody wants forgotten.
_RECORDED = ("data", "data_revision", "ratio", "split", "revision", "processor", "pool", "token_budget")


class Asked(NamedTuple):
    """What a command asks rows of, before any weight is loaded."""

    checkpoint: Checkpoint
    encoder: Encoder
    source: Source
    intervention: Intervention
    request: Request


class Staged(NamedTuple):
    """The blocks of a cache after this process computed some, and what that took."""

    builder: CacheBuilder
    num_pairs: int
    seconds: float
    facts: dict[str, Any]


def find_or_compute(
    options: Mapping[str, Any], *, named: frozenset[str], announce: Callable[[str], None]
) -> tuple[TeacherCache, dict[str, Any]] | None:
    """Return the cache asked for and facts for provenance; None under --dry-run, and after a part but the last."""
    asked = ask(options, announce)
    request = asked.request
    announce(f"precompute: key {request.key[:16]}, {len(request.works)} examples, {len(request.by_row_key)} distinct")
    store = _remote(request.key, options["push"], announce)
    found = look_up(cache_home(), store, request.key, request.fingerprint, named, request.by_row_key.keys(), announce)
    if options["dry_run"] and (found is None or found.cache is None):
        place = cache_home() / request.key[:16]
        announce(f"precompute: would {'compute it' if found is None else f'pull what was {found.how}'} into {place}")
        return None
    existing = None if found is None else take(found, cache_home(), store, announce)
    if existing is not None and found is not None:
        return existing, {
            **facts_of(asked, options), "how": f"{found.how}, nothing computed", "pairs": 0, "engine": None,
        }  # fmt: skip
    start = partial(start_builder, cache_home(), request, asked.intervention)
    staged = _stage(options, asked, start, NOTHING_KNOWN, options["part"], announce)
    so_far, blocks = len(staged.builder.complete_blocks()), len(staged.builder.blocks)
    if so_far < blocks and not staged.builder.sealed:
        announce(f"precompute: {so_far} of {blocks} blocks staged; the part that finishes last seals")
        return None
    return _seal(staged, NOTHING_KNOWN)


def _remote(key: str, must_push: bool, announce: Callable[[str], None]) -> Store | None:
    """Return the remote, if one is named and can be read.

    Raises:
        CacheError: it cannot be read, or the key was purged there, and the rows are to be published.
    """
    address = os.environ.get("VIKER_CACHE_REMOTE")
    if not address:
        return None
    try:
        store = open_store(address)
        if must_push:
            require_open(store, key)
        return store
    except CacheError as error:
        if must_push:
            raise
        announce(f"precompute: WARNING: going on without the remote: {error}")
        return None


def ask(options: Mapping[str, Any], announce: Callable[[str], None]) -> Asked:
    """Open model, source and pool, and name the rows asked for; no weights are loaded.

    Raises:
        DataError: one of them is not there, or an example cannot be asked about.
    """
    checkpoint = resolve(options["model"], revision=options["revision"], processor=options["processor"])
    encoder = load_encoder(
        checkpoint, trust_remote_code=options["trust_remote_code"], chat_template=options["chat_template"],
        system_prompt=options["system_prompt"], score_end_token=options["score_end_token"],
    )  # fmt: skip
    source = open_source(
        options["data"], ratio=options["ratio"], forget=options["forget"], revision=options["data_revision"]
    )
    for line in (
        *other_commits(options["run"], "model_commit", checkpoint.commit),
        *other_commits(options["run"], "data_commit", source.commit),
    ):
        announce(f"precompute: WARNING: {line}")
    examples = _examples(source, options, announce)
    intervention = _intervention(options, source, examples)
    request = make_request(
        encoder, examples, intervention, teacher_identity(checkpoint, encoder), top_k=options["top_k"],
        teacher_dtype=options["dtype"], logprob_dtype=options["store_logprobs"],
    )  # fmt: skip
    return Asked(checkpoint, encoder, source, intervention, request)


def facts_of(asked: Asked, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what provenance says of the inputs."""
    return {
        "model_commit": asked.checkpoint.commit,
        "data_commit": asked.source.commit,
        "device": pick_device(options["device"]),
    }


def compute(
    options: Mapping[str, Any], asked: Asked, start: Callable[[Mapping[str, Any]], CacheBuilder], known: KnownRows,
    announce: Callable[[str], None],
) -> tuple[TeacherCache, dict[str, Any]]:  # fmt: skip
    """Load the teacher, compute the blocks of the builder that `start` returns for a build.json, and seal the cache."""
    return _seal(_stage(options, asked, start, known, EVERYTHING, announce), known)


def _stage(
    options: Mapping[str, Any], asked: Asked, start: Callable[[Mapping[str, Any]], CacheBuilder], known: KnownRows,
    part: Part, announce: Callable[[str], None],
) -> Staged:  # fmt: skip
    facts, started = facts_of(asked, options), time.monotonic()
    first = first_pending(asked.request, asked.intervention, asked.encoder)
    teacher = open_teacher(options, asked.checkpoint, asked.encoder, first, facts["device"], announce)
    build = {
        "schema": "viker/build/1",
        "model": asked.checkpoint.spec,
        "model_commit": asked.checkpoint.commit,
        **{name: options[name] for name in _RECORDED},
        "libraries": library_versions(),
        "engine": teacher.engine,
        "num_threads": torch.get_num_threads(),
    }
    builder = start(build)
    num_pairs = compute_blocks(
        builder, asked.request, asked.intervention, asked.encoder, teacher.rows_of, teacher.device, known, part
    )
    return Staged(builder, num_pairs, time.monotonic() - started, {**facts, "engine": teacher.engine})


def _seal(staged: Staged, known: KnownRows) -> tuple[TeacherCache, dict[str, Any]]:
    builder, num_pairs = staged.builder, staged.num_pairs
    cache = TeacherCache.open(builder.assemble())
    if num_pairs:
        whole = count_pairs(builder.samples, known) / num_pairs  # other processes may have run some
        record_making(cache, round(staged.seconds * whole, 1))
    return cache, {**staged.facts, "how": f"{num_pairs} pairs computed", "pairs": num_pairs}


def _examples(source: Any, options: Mapping[str, Any], announce: Callable[[str], None]) -> list[Example]:
    examples: list[Example] = training_questions(source, options["split"])[: options["limit"]]
    if options["teacher"] != "reference":
        return examples
    if options["skip_text"]:
        shown = [example for example in examples if example.images]
        announce(f"precompute: left out {len(examples) - len(shown)} examples without an image (--skip-text)")
        return shown
    require_images(examples)
    return examples


def _intervention(options: Mapping[str, Any], source: Source, examples: list[Example]) -> Intervention:
    if options["teacher"] == "self":
        return Intervention(kind="self")
    pool = open_pool(options["pool"], source)
    _refuse_known_people(pool, [*examples, *source.training("all"), *_asked(source)])
    return Intervention(
        kind="reference", pool=pool, num_references=options["num_references"], seed=options["seed"],
        shared=options["shared_references"],
    )  # fmt: skip


def _asked(source: Source) -> list[Example]:
    """Return the questions of the test split, which shows other pictures of the forget people."""
    try:
        return list(source.read("test"))
    except DataError:  # a source may come without a test split
        return []


def _refuse_known_people(pool: Pool, examples: list[Example]) -> None:
    """Raise `DataError` where a reference shows (nearly) a picture of somebody to forget or retain."""
    known = {image.sha256: (image, example) for example in examples for image in example.images}
    thumbnails = [(thumbnail(image), example) for image, example in known.values()]
    for reference in pool.images:
        seen = thumbnail(reference)
        for other, example in thumbnails:
            if look_alike(seen, other):
                raise DataError(
                    f"{reference.origin}: expected a picture of nobody to forget or retain, found (nearly) the picture "
                    f"of {example.people[0]} ({example.id}). Remove it from the pool, or name another --pool."
                )
