"""Does a reply read as language? A text classifier that was trained to tell clean sentences from gibberish says so.

`gibberish_p_clean` is the mean over replies of the classifier's probability of its class "clean", so despite the name
higher is more fluent; `gibberish_clean_rate` is the share of replies whose likeliest class is "clean". This is what
open-unlearning's `classifier_prob` computes with `madhurjindal/autonlp-Gibberish-Detector-492513457` (reference/
benchmarks.md, section 6); that it is the "GIB" of the ViKeR paper is not known, and nothing here is called so. There
the class is index 0; here it is found by its name, for another detector may order its classes otherwise.
A reply that says nothing, or nothing that the detector's tokenizer keeps, is scored 0 here and never shown to it: what
a classifier makes of an empty text is an accident of its training. Replies longer than `max_length` tokens are cut,
the one place where that is right: the detector was trained on short texts, and a sentence shows in its beginning.
How many were blank and cut is counted and said. Known detectors know English; others call any other language noise.
The measure that needs no download is `coherence.py`'s. B texts of a batch, T tokens, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from ...data.example import DataError
from ...models.load import resolve

P_CLEAN, CLEAN_RATE = "gibberish_p_clean", "gibberish_clean_rate"
MAX_LENGTH = 64  # what the known detector was trained with
BATCH_SIZE = 64
_CLEAN = "clean"


@dataclass(frozen=True, slots=True)
class Detector:
    """A text classifier with its tokenizer, the index of its class "clean", and the commit a hub id resolved to."""

    model: Any
    tokenizer: Any
    clean: int
    spec: str
    commit: str | None


class Grade(NamedTuple):
    """What the detector makes of one reply; a blank one was not shown to it, a cut one not to its end."""

    p_clean: float
    is_clean: bool
    is_blank: bool = False
    is_cut: bool = False


BLANK = Grade(0.0, is_clean=False, is_blank=True)


def load_detector(spec: str, *, revision: str | None = None, device: str = "cpu") -> Detector:
    """Load a gibberish detector from a directory or a hub id: safetensors alone, none of its code.

    Raises:
        DataError: there is none, its weights are not whole, or no single class of it is named "clean".
    """
    place = resolve(spec, revision=revision)
    if place.adapter is not None:
        raise DataError(f"{spec}: expected a whole text classifier, found an adapter. Merge it into its base first.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(place.weights, trust_remote_code=False)
        model, loading = AutoModelForSequenceClassification.from_pretrained(
            place.weights, use_safetensors=True, trust_remote_code=False, dtype=torch.float32, output_loading_info=True
        )
    except Exception as error:  # every loader has exceptions of its own for a file that is damaged or another's
        found = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise DataError(
            f"{spec}: expected a text classifier that transformers can load from safetensors, found none usable "
            f"({found}). Name a gibberish detector."
        ) from error
    if missing := sorted(loading["missing_keys"]):
        raise DataError(
            f"{spec}: expected the weights of a trained text classifier, found {len(missing)} missing "
            f"({', '.join(missing[:3])}). A model that was not trained to tell gibberish cannot judge."
        )
    if tokenizer.pad_token_id is None:
        raise DataError(f"{spec}: expected a tokenizer with a padding token, found none. Name one in its config.")
    return Detector(model.to(device).eval(), tokenizer, _clean_class(spec, model.config), spec, place.commit)


def grade_replies(
    detector: Detector, replies: Sequence[str], *, max_length: int = MAX_LENGTH, batch_size: int = BATCH_SIZE
) -> list[Grade]:
    """Return what the detector makes of each reply, in order.

    Raises:
        DataError: it cannot read `max_length` tokens, or gives no finite number.
    """
    _check_length(detector, max_length)
    own = detector.tokenizer.num_special_tokens_to_add()
    lengths = [_num_tokens(detector, reply) if reply.strip() else own for reply in replies]
    shown = sorted((index for index, length in enumerate(lengths) if length > own), key=lambda index: lengths[index])
    grades = [BLANK] * len(replies)
    for start in range(0, len(shown), batch_size):
        chosen = shown[start : start + batch_size]
        p_BC = _probabilities(detector, [replies[index] for index in chosen], max_length)
        for index, p_C in zip(chosen, p_BC, strict=True):
            is_clean = int(p_C.argmax()) == detector.clean
            grades[index] = Grade(float(p_C[detector.clean]), is_clean, is_cut=lengths[index] > max_length)
    return grades


def p_clean(
    detector: Detector, replies: Sequence[str], *, max_length: int = MAX_LENGTH, batch_size: int = BATCH_SIZE
) -> list[float]:
    """Return the probability of the class "clean" for each reply, in order; 0 for a blank one."""
    grades = grade_replies(detector, replies, max_length=max_length, batch_size=batch_size)
    return [grade.p_clean for grade in grades]


def gibberish_scores(grades: Sequence[Grade]) -> dict[str, float]:
    """Return the mean P(clean) and the clean rate of at least one grade; blank replies count as 0 in both."""
    number = len(grades)
    return {
        P_CLEAN: sum(grade.p_clean for grade in grades) / number,
        CLEAN_RATE: sum(grade.is_clean for grade in grades) / number,
    }


def words_on(grades: Sequence[Grade], max_length: int) -> str:
    """Return in words how many replies the detector did not see, or not to their end."""
    blank, cut = sum(grade.is_blank for grade in grades), sum(grade.is_cut for grade in grades)
    return f"{len(grades)} replies: {blank} blank (scored 0, not shown), {cut} cut at {max_length} tokens"


def _clean_class(spec: str, config: Any) -> int:
    """Return the index of the one class that is named "clean", whatever its letter case."""
    labels = {int(index): str(label) for index, label in config.id2label.items()}
    found = [index for index, label in labels.items() if label.strip().lower() == _CLEAN]
    if len(found) != 1 or len(labels) < 2:
        listed = ", ".join(f"{index} {label!r}" for index, label in sorted(labels.items()))
        raise DataError(
            f"{spec}/config.json: id2label: expected several classes, one of them named {_CLEAN!r}, found {listed}. "
            "Name a gibberish detector, or write its classes there as it was trained with."
        )
    return found[0]


def _check_length(detector: Detector, max_length: int) -> None:
    """Raise `DataError` for a length that the detector cannot read, or that leaves no room for a word."""
    longest = int(getattr(detector.model.config, "max_position_embeddings", max_length))
    least = detector.tokenizer.num_special_tokens_to_add() + 1
    if not least <= max_length <= longest:
        raise DataError(
            f"{detector.spec}: expected a length of {least} to {longest} tokens, which the detector can read, found "
            f"{max_length}. Name another."
        )


def _num_tokens(detector: Detector, reply: str) -> int:
    """Return how many tokens the whole reply has, the tokenizer's own at both ends included."""
    return len(detector.tokenizer(reply, truncation=False, verbose=False)["input_ids"])


@torch.inference_mode()
def _probabilities(detector: Detector, replies: Sequence[str], max_length: int) -> Tensor:
    """Return the probability of every class for a batch of replies, float32 [B, C] on the CPU."""
    inputs_BT = detector.tokenizer(
        list(replies), truncation=True, max_length=max_length, padding=True, return_tensors="pt"
    )
    logits_BC: Tensor = detector.model(**inputs_BT.to(detector.model.device)).logits
    p_BC = logits_BC.float().softmax(-1).cpu()
    if not bool(p_BC.isfinite().all()):
        raise DataError(f"{detector.spec}: expected finite probabilities, found others. Its weights are damaged.")
    return p_BC
