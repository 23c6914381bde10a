"""What every engine takes and gives: an example under its k images, and its averaged distributions.

Shapes: k images of an example, M its answer tokens, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...data.example import EncodedImage
from ...models.encode import Encoded


@dataclass(frozen=True, slots=True)
class Pending:
    """One distinct row key to compute: the example encoded under each image it is shown, with the images' digests.

    `images` are the pictures themselves, for an engine that reads them its own way; `name` is the example's, for
    errors.
    """

    shown: Sequence[Encoded]
    image_digests: Sequence[tuple[str, ...]]
    images: Sequence[Sequence[EncodedImage]] = ()
    name: str = ""

    @property
    def num_rows(self) -> int:
        """Number of answer tokens."""
        return len(self.shown[0].answer_ids)

    @property
    def answer_ids(self) -> tuple[int, ...]:
        """The answer's token ids."""
        return self.shown[0].answer_ids


LEAST_LOGPROB = -200.0  # its exponential is zero in float32, and zero times it is zero


@dataclass(frozen=True, slots=True)
class Probabilities:
    """Averaged distributions of one example: `mean_MV` float32 [M, V] and the mean of the k entropies, [M]."""

    mean_MV: Tensor
    mean_entropy_M: Tensor


RowsOf = Callable[[Sequence[Pending]], Iterator[Probabilities]]


def number_rows(pending: Sequence[Pending]) -> list[list[int]]:
    """Number the rows of examples from 0: equal for equal images, prompt and answer so far, where rows are equal."""
    numbers: dict[object, int] = {}
    numbered = []
    for item in pending:
        assert len(set(item.image_digests)) == len(item.image_digests), "an average of different images"
        context: object = (item.shown[0].prompt_ids, tuple(item.image_digests))
        rows = []
        for token in item.answer_ids:
            rows.append(numbers.setdefault(context, len(numbers)))
            context = (rows[-1], token)
        numbered.append(rows)
    return numbered


def entropy(probabilities: Tensor, logprobs: Tensor) -> Tensor:
    """Return the entropy in nats over the last axis; what has no probability adds nothing."""
    products: Tensor = torch.linalg.vecdot(probabilities, logprobs.clamp_min(LEAST_LOGPROB))
    return -products


def average(logprobs_kMV: Tensor) -> Probabilities:
    """Average k distributions in probability space, in float32."""
    probabilities_kMV = logprobs_kMV.exp()
    return Probabilities(probabilities_kMV.mean(0), entropy(probabilities_kMV, logprobs_kMV).mean(0))
