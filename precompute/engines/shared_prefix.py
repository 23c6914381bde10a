"""The default engine: each image runs once, questions and answers follow as suffixes behind its keys and values.

Work of a block is ordered by image, then by suffix length, and cut into batches of at most `token_budget` suffix
tokens, so that batch composition is a function of the block and the budget alone. Prefixes outlive the block within a
byte budget (least recently used first out). Averages are float32 sums in the order of images, whatever the batches.
Shapes: M answer tokens of an example, V vocabulary.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from ...models.encode import Encoder
from ...models.prefix import Prefix, compute_prefix, split_at_image, suffix_answer_logits
from .naive import naive_rows
from .rows import Pending, Probabilities, entropy

PREFIX_BYTES = 4 * 1024**3

_Place = tuple[int, int]  # (which pending example, which of its images)
_PrefixKey = tuple[tuple[int, ...], tuple[str, ...]]


class SharedPrefixEngine:
    """Computes rows behind shared image prefixes for one model."""

    def __init__(self, model: Any, encoder: Encoder, *, token_budget: int, prefix_bytes: int = PREFIX_BYTES) -> None:
        self._model = model
        self._encoder = encoder
        self._token_budget = token_budget
        self._prefix_bytes = prefix_bytes
        self._prefixes: OrderedDict[_PrefixKey, Prefix] = OrderedDict()

    @torch.inference_mode()
    def rows(self, pending: Sequence[Pending]) -> Iterator[Probabilities]:
        """Yield the averaged distributions of each pending example, in order."""
        sums: list[Any] = [None] * len(pending)
        entropies: list[Any] = [None] * len(pending)
        for key, places in self._by_prefix(pending).items():
            prefix = self._prefix(key, pending, places[0])
            for batch in self._batches(pending, places, prefix.length):
                suffixes = [pending[item].shown[image].input_ids[prefix.length :] for item, image in batch]
                counts = [pending[item].num_rows for item, _ in batch]
                logits_MV = suffix_answer_logits(self._model, prefix, suffixes, counts, self._encoder.pad_id)
                logprobs = torch.log_softmax(logits_MV.float(), dim=-1).split(counts)
                for (item, _), logprobs_MV in zip(batch, logprobs, strict=True):
                    probabilities_MV, entropy_M = logprobs_MV.exp(), entropy(logprobs_MV)
                    sums[item] = probabilities_MV if sums[item] is None else sums[item].add_(probabilities_MV)
                    entropies[item] = entropy_M if entropies[item] is None else entropies[item].add_(entropy_M)
        for work, total_MV, total_M in zip(pending, sums, entropies, strict=True):
            yield Probabilities(total_MV / len(work.shown), total_M / len(work.shown))

    def _by_prefix(self, pending: Sequence[Pending]) -> dict[_PrefixKey, list[_Place]]:
        """Group the pairs by prefix, prefixes in the order of their images' digests."""
        groups: dict[_PrefixKey, list[_Place]] = {}
        for item, work in enumerate(pending):
            for image, encoded in enumerate(work.shown):
                prefix_ids, _ = split_at_image(encoded)
                groups.setdefault((prefix_ids, work.image_digests[image]), []).append((item, image))
        return {key: groups[key] for key in sorted(groups, key=lambda key: (key[1], key[0]))}

    def _prefix(self, key: _PrefixKey, pending: Sequence[Pending], place: _Place) -> Prefix:
        if key not in self._prefixes:
            item, image = place
            self._prefixes[key] = compute_prefix(self._model, key[0], pending[item].shown[image])
            while (
                sum(prefix.num_bytes for prefix in self._prefixes.values()) > self._prefix_bytes
                and len(self._prefixes) > 1
            ):
                self._prefixes.popitem(last=False)
        self._prefixes.move_to_end(key)
        return self._prefixes[key]

    def _batches(
        self, pending: Sequence[Pending], places: Sequence[_Place], prefix_length: int
    ) -> Iterator[list[_Place]]:
        """Cut the pairs behind one prefix into batches whose padded suffixes fit the token budget, longest first."""

        def suffix_length(place: _Place) -> int:
            return len(pending[place[0]].shown[place[1]].input_ids) - prefix_length

        ordered = sorted(places, key=lambda place: (-suffix_length(place), place))
        while ordered:
            size = max(1, self._token_budget // suffix_length(ordered[0]))
            yield ordered[:size]
            ordered = ordered[size:]


def disagreement_with_naive(engine: SharedPrefixEngine, model: Any, item: Pending, pad_id: int) -> float:
    """Return the largest total variation between this engine's rows and the oracle's on one example."""
    shared = next(engine.rows([item]))
    oracle = next(naive_rows(model, [item], pad_id))
    return float((shared.mean_MV - oracle.mean_MV).abs().sum(-1).max()) / 2
