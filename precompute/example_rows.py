"""The rows of one answer, to be read by a person: what the teacher would say at each of its tokens.

A cache holds neither texts nor answers, so what can be shown depends on what is at hand: with the source and the
tokenizer, an example is found by its id and its tokens stand beside the rows; with the tokenizer alone, the candidates
are text; with the cache alone, they are ids. What is named has to be usable; what build.json records is tried, and a
failure is said. Weights are never loaded.
"""

# N answer tokens of the example

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

from ..data.example import DataError, Example
from ..data.refusals import refuse
from ..data.sources import open_source
from .cache import CacheMismatch, Rows, RowsNotCovered, TeacherCache, person_digest, row_key, token_hash
from .reading.identity import show_differences
from .recorded import recorded_defaults

if TYPE_CHECKING:
    from ..models.encode import Encoder

NUM_CANDIDATES = 5

T = TypeVar("T")
Announce = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class ExampleRows:
    """One sample's rows: its index, the example's id where it is known, and a line a token."""

    sample: int
    example: str | None
    tokens: list[dict[str, Any]]

    def told(self) -> dict[str, Any]:
        """Return it for JSON."""
        return asdict(self)


def find_rows(cache: TeacherCache, name: str, options: Mapping[str, Any], announce: Announce) -> ExampleRows:
    """Return the rows of an example by id, or of a sample by index.

    Args:
        cache: where to look.
        name: an index where it is all digits, else an example's id.
        options: of `viker cache inspect`: data, model and rendering, where they are named.
        announce: told what is taken from build.json, and what of it is not at hand.

    Raises:
        DataError: what is named is not there, or there is no such sample or example.
        CacheMismatch: the tokenizer named is not the cache's.
        RowsNotCovered: the cache has no rows of the example.
    """
    settings, taken = recorded_defaults(options, cache.build)
    if taken:
        announce(f"as the cache was made: {' '.join(taken)}")
    if name.isdecimal():
        return _of_sample(cache, name, settings, options, announce)
    return _of_example(cache, name, settings, options["key_entropy"])


def _of_sample(
    cache: TeacherCache, name: str, settings: Mapping[str, Any], options: Mapping[str, Any], announce: Announce
) -> ExampleRows:
    sample = int(name)
    if sample >= cache.num_samples:
        raise DataError(f"--example {name}: expected a sample of 0 to {cache.num_samples - 1}, found none such.")
    encoder = example = None
    if settings["model"] is not None:
        encoder = _attempt(lambda: open_encoder(cache, settings), options["model"], announce, "tokens are shown as ids")
    if encoder is not None and settings["data"] is not None:
        key = cache.sample_keys[sample][:16]
        example = _attempt(lambda: _with_key(cache, key, settings, encoder), options["data"], announce, "no answer")
    return _found(cache, sample, example, encoder, options["key_entropy"])


def _of_example(cache: TeacherCache, name: str, settings: Mapping[str, Any], key_entropy: float) -> ExampleRows:
    if settings["model"] is None or settings["data"] is None:
        raise DataError(
            f"--example {name}: expected --data and --model to find an example by its id, found not both. Name them, "
            f"or the index of a sample, 0 to {cache.num_samples - 1}."
        )
    encoder = open_encoder(cache, settings)
    pairs = ((example, _answered(cache, example)) for example in _examples(settings))
    example = next((answered for asked, answered in pairs if name in (asked.id, answered.id)), None)
    if example is None:
        raise DataError(f"--example {name}: expected the id of a training question of {settings['data']}, found none.")
    key = _key_of(cache, example, encoder)
    sample = cache.find_sample(key, person_digest(cache.lineage, example.people[0])) if example.people else None
    sample = cache.find_row(key) if sample is None else sample
    if sample is None:
        raise RowsNotCovered(
            f"{cache.root}: expected rows of {name}, found none. Add them with `viker cache extend {cache.root.name}`.",
            cache.root,
        )
    return _found(cache, sample, example, encoder, key_entropy)


def _attempt(open_it: Callable[[], T], named: object, announce: Announce, otherwise: str) -> T | None:
    """Return what is opened; None, said, where it fails and nobody named it."""
    try:
        return open_it()
    except (DataError, CacheMismatch) as error:
        if named is not None:
            raise
        announce(f"{otherwise}: {error}")
        return None


def open_encoder(cache: TeacherCache, settings: Mapping[str, Any]) -> "Encoder":
    """Return the encoder of a model, in the cache's rendering where no other is named; no weights are loaded.

    Raises:
        DataError: there is no such model.
        CacheMismatch: its tokenizer is not the cache's.
    """
    from ..models.identity import tokenizer_digest
    from ..models.load import load_encoder, resolve

    rendering = cache.fingerprint["rendering"]
    named = {name: settings[name] for name in ("system_prompt", "score_end_token")}
    encoder = load_encoder(
        resolve(settings["model"], revision=settings["revision"], processor=settings["processor"]),
        trust_remote_code=settings["trust_remote_code"], chat_template=settings["chat_template"],
        **{name: rendering.get(name) if value is None else value for name, value in named.items()},
    )  # fmt: skip
    digest = tokenizer_digest(encoder.tokenizer)
    if digest != cache.fingerprint["tokenizer"]:
        raise CacheMismatch(
            f"{cache.root}: expected the tokenizer its rows were made with, found another:\n"
            f"{show_differences({'tokenizer': (cache.fingerprint['tokenizer'], digest)})}\nName its own --model."
        )
    return encoder


def _examples(settings: Mapping[str, Any]) -> Iterator[Example]:
    """Yield the training questions about everybody, whoever is to be forgotten."""
    source = open_source(
        settings["data"], ratio=settings["ratio"], forget=settings["forget"], revision=settings["data_revision"]
    )
    parts: tuple[Literal["all", "forget", "retain"], ...] = ("all", "forget", "retain")
    for part in parts:
        yield from source.training(part)


def _with_key(cache: TeacherCache, key: bytes, settings: Mapping[str, Any], encoder: "Encoder") -> Example | None:
    answered = (_answered(cache, example) for example in _examples(settings))
    return next((example for example in answered if _key_of(cache, example, encoder) == key), None)


def _answered(cache: TeacherCache, example: Example) -> Example:
    """Return an example with the answer that a cache has rows of: its own, or its refusal."""
    return refuse(example) if cache.fingerprint["intervention"].get("answers") == "refusal" else example


def _key_of(cache: TeacherCache, example: Example, encoder: "Encoder") -> bytes:
    from ..models.interventions import pixels_digest

    return row_key(*encoder.ids(example), pixels_digest(example, cache.fingerprint["intervention"]["kind"]))


def _found(
    cache: TeacherCache, sample: int, example: Example | None, encoder: "Encoder | None", key_entropy: float
) -> ExampleRows:
    rows = cache.rows_of(sample)
    answers = [None] * len(rows) if example is None or encoder is None else _answers(cache, sample, example, encoder)
    tokens = [
        {
            "position": position,
            "answer": answer,
            "probability": _probability(rows.answer_logprob_N[position]),
            "entropy": round(float(rows.entropy_N[position]), 4),
            "is_key": bool(rows.entropy_N[position] > key_entropy),
            "disagreement": round(float(rows.disagreement_N[position]), 4),
            "tail": _probability(rows.tail_logprob_N[position]),
            "candidates": _candidates(rows, position, encoder),
        }
        for position, answer in enumerate(answers)
    ]
    return ExampleRows(sample=sample, example=None if example is None else example.id, tokens=tokens)


def _candidates(rows: Rows, position: int, encoder: "Encoder | None") -> list[dict[str, Any]]:
    kept = zip(rows.kept_ids_NK[position], rows.kept_logprobs_NK[position], strict=True)
    return [
        {"id": int(id_), "token": _named(int(id_), encoder), "probability": _probability(logprob)}
        for id_, logprob in itertools.islice(kept, NUM_CANDIDATES)
    ]


def _answers(cache: TeacherCache, sample: int, example: Example, encoder: "Encoder") -> list[str]:
    """Return the tokens of an answer as text, known to be those that the rows were made for."""
    prompt_ids, answer_ids = encoder.ids(example)
    if cache.token_hash[sample] != token_hash(cache.lineage, prompt_ids, answer_ids):
        raise CacheMismatch(
            f"{cache.root}: expected rows of the tokens of {example.id} in sample {sample}, found rows of others. The "
            "cache is damaged or forged: `viker cache verify --depth semantic` runs its teacher again."
        )
    return [_named(id_, encoder) for id_ in answer_ids]


def _named(id_: int, encoder: "Encoder | None") -> str:
    """Return a token as quoted text, or its id where no tokenizer is at hand."""
    return str(id_) if encoder is None else repr(encoder.tokenizer.decode([id_]))


def _probability(logprob: np.floating[Any]) -> float:
    return float(f"{math.exp(logprob):.6g}")
