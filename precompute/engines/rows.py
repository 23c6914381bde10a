"""What every engine takes and gives: an example under its k images, and its averaged distributions.

Shapes: k images of an example, M its answer tokens, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...models.encode import Encoded


@dataclass(frozen=True, slots=True)
class Pending:
    """One distinct row key to compute: the example encoded under each image it is shown, with the images' digests."""

    shown: Sequence[Encoded]
    image_digests: Sequence[tuple[str, ...]]

    @property
    def num_rows(self) -> int:
        """Number of answer tokens."""
        return len(self.shown[0].answer_ids)

    @property
    def answer_ids(self) -> tuple[int, ...]:
        """The answer's token ids."""
        return self.shown[0].answer_ids


@dataclass(frozen=True, slots=True)
class Probabilities:
    """Averaged distributions of one example: `mean_MV` float32 [M, V] and the mean of the k entropies, [M]."""

    mean_MV: Tensor
    mean_entropy_M: Tensor


def entropy(logprobs: Tensor) -> Tensor:
    """Return the entropy in nats over the last axis."""
    probabilities = logprobs.exp()
    return -torch.xlogy(probabilities, probabilities).sum(-1)


def average(logprobs_kMV: Tensor) -> Probabilities:
    """Average k distributions in probability space, in float32."""
    return Probabilities(logprobs_kMV.exp().mean(0), entropy(logprobs_kMV).mean(0))
