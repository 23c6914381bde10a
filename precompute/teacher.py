"""Find a cache, or load the teacher and compute it: what `viker precompute` does once it has decided to look.

Splitting this from the command keeps the decision to skip free of torch. The engine is checked against the oracle on
one example before the first block; where a model family breaks its assumption, the oracle takes over, loudly.
"""

import os
from collections.abc import Callable, Mapping
from typing import Any

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
from ..models.load import Checkpoint, load_encoder, load_model, pick_device, resolve
from ..models.pictures import look_alike, thumbnail
from .cache import TeacherCache, cache_home
from .engines.naive import naive_rows
from .engines.shared_prefix import SharedPrefixEngine, disagreement_with_naive
from .run import Request, RowsOf, compute_blocks, find_existing, first_pending, make_request, start_builder

SELF_CHECK_VARIATION = {"float32": 1e-4, "bfloat16": 0.05, "float16": 0.02}


def find_or_compute(
    options: Mapping[str, Any], *, named: frozenset[str], announce: Callable[[str], None]
) -> tuple[TeacherCache, dict[str, Any]] | None:
    """Return the cache asked for and facts for provenance; None under --dry-run."""
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
    announce(f"precompute: key {request.key[:16]}, {len(request.works)} examples, {len(request.by_row_key)} distinct")
    if os.environ.get("VIKER_CACHE_REMOTE"):
        announce(
            f"precompute: WARNING: $VIKER_CACHE_REMOTE is set and not read by this version; looking in {cache_home()}"
        )
    existing = find_existing(cache_home(), request, named)
    facts: dict[str, Any] = {
        "model_commit": checkpoint.commit,
        "data_commit": source.commit,
        "device": pick_device(options["device"]),
    }
    if existing is not None:
        exact = "found" if existing.key == request.key else "found one that serves"
        return existing, {**facts, "how": f"{exact}, nothing computed", "pairs": 0, "engine": None}
    if options["dry_run"]:
        announce(f"precompute: would compute it into {cache_home() / request.key[:16]}")
        return None
    return _compute(options, request, intervention, checkpoint, encoder, facts, announce)


def _compute(
    options: Mapping[str, Any], request: Request, intervention: Intervention, checkpoint: Checkpoint, encoder: Encoder,
    facts: dict[str, Any], announce: Callable[[str], None],
) -> tuple[TeacherCache, dict[str, Any]]:  # fmt: skip
    model = load_model(
        checkpoint, dtype=options["dtype"], device=facts["device"], attention=options["attention"],
        trust_remote_code=options["trust_remote_code"],
    )  # fmt: skip
    device = torch.cuda.get_device_name() if facts["device"].startswith("cuda") else "cpu"
    engine, rows_of = _engine(options, model, encoder, request, intervention, announce)
    build = {
        "schema": "viker/build/1",
        "model": checkpoint.spec,
        "model_commit": checkpoint.commit,
        "data": options["data"],
        "split": options["split"],
        "libraries": library_versions(),
        "engine": engine,
        "token_budget": options["token_budget"],
        "num_threads": torch.get_num_threads(),
    }
    builder = start_builder(cache_home(), request, intervention, build)
    num_pairs = compute_blocks(builder, request, intervention, encoder, rows_of, device)
    cache = TeacherCache.open(builder.assemble())
    return cache, {**facts, "how": f"{num_pairs} pairs computed", "pairs": num_pairs, "engine": engine}


def _engine(
    options: Mapping[str, Any], model: Any, encoder: Encoder, request: Request, intervention: Intervention,
    announce: Callable[[str], None],
) -> tuple[str, RowsOf]:  # fmt: skip
    """Return the engine asked for, or the oracle where the shared prefix does not hold for this model."""

    def oracle(pending: Any) -> Any:
        return naive_rows(model, pending, encoder.pad_id)

    if options["engine"] == "naive":
        return "naive", oracle
    shared = SharedPrefixEngine(model, encoder, token_budget=options["token_budget"])
    try:
        variation = disagreement_with_naive(
            shared, model, first_pending(request, intervention, encoder), encoder.pad_id
        )
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        announce(
            f"precompute: WARNING: the shared-prefix engine cannot run this model ({error}); "
            "using naive, which is slower."
        )
        return "naive", oracle
    if variation > SELF_CHECK_VARIATION[options["dtype"]]:
        announce(
            f"precompute: WARNING: shared-prefix rows differ from naive ones by total variation {variation:.2g}; "
            "this model breaks the engine's assumption. Using naive, which is slower."
        )
        return "naive", oracle
    return "shared-prefix", shared.rows


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
