"""What a precompute is asked for: model, source and pool opened, and the rows named before any weight is loaded.

Every command that computes or checks rows begins here, and so does every worker on its own node (`worker.py`): what is
found there has to have the same name. Whether a cache of that name exists, and who computes it, is `teacher.py`'s.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..data.example import DataError, Example
from ..data.halves import training_questions
from ..data.inputs import other_commits
from ..data.kinds import REPLACES_IMAGES
from ..data.references import OWN_PEOPLE, Pool, open_pool, questions_of_test
from ..data.source import Source
from ..data.sources import open_source
from ..models.encode import Encoder
from ..models.identity import teacher_identity
from ..models.interventions import Intervention, require_images
from ..models.load import Checkpoint, load_encoder, resolve
from ..models.pictures import look_alike, thumbnail
from .run import Request, make_request


class Asked(NamedTuple):
    """What a command asks rows of, before any weight is loaded."""

    checkpoint: Checkpoint
    encoder: Encoder
    source: Source
    intervention: Intervention
    request: Request


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
    intervention = _intervention(options, source, examples, announce)
    identity = teacher_identity(checkpoint, encoder, quantization=options.get("quantization"))
    request = make_request(
        encoder, examples, intervention, identity, top_k=options["top_k"],
        teacher_dtype=options["dtype"], logprob_dtype=options["store_logprobs"],
    )  # fmt: skip
    return Asked(checkpoint, encoder, source, intervention, request)


def _examples(source: Any, options: Mapping[str, Any], announce: Callable[[str], None]) -> list[Example]:
    examples: list[Example] = training_questions(source, options["split"])[: options["limit"]]
    if options["teacher"] not in REPLACES_IMAGES:
        return examples
    if options["skip_text"]:
        shown = [example for example in examples if example.images]
        announce(f"precompute: left out {len(examples) - len(shown)} examples without an image (--skip-text)")
        return shown
    require_images(examples, options["teacher"])
    return examples


def _intervention(
    options: Mapping[str, Any], source: Source, examples: list[Example], announce: Callable[[str], None]
) -> Intervention:
    pool = None
    if options["teacher"] == "reference":
        pool = open_pool(options["pool"], source)
        if pool.name in OWN_PEOPLE and not Path(options["pool"]).is_dir():
            announce(
                f"precompute: WARNING: the pool `{pool.name}` shows the people themselves: an ablation. Rows made from "
                "it say what is to be forgotten, or to be kept; never unlearn a person from them."
            )
        else:
            _refuse_known_people(pool, [*examples, *source.training("all"), *questions_of_test(source)])
    return Intervention(
        kind=options["teacher"], answers=options["answers"], pool=pool, num_references=options["num_references"],
        seed=options["seed"], shared=options["shared_references"], instruction=options["instruction"],
    )  # fmt: skip


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
