"""The default engine: each image runs once, questions and answers follow as suffixes behind its keys and values.

Work of a block is ordered by image, then by question, and cut into batches of at most `token_budget` suffix tokens, so
that batch composition is a function of the block and the budget alone. A batch holds suffixes of as many images as fit,
each attending to its own prefix where it lies (`models/two_part.py`), so that examples with references of their own
fill batches as shared ones do; questions asked more than once run once (`answer_states.py`). Prefixes outlive the block
within a byte budget (least recently used first out). Averages are float32 sums in the order of images, whatever the
batches.
Shapes: M answer tokens of an example, V vocabulary.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ...models.prefix import Prefix, compute_prefix, prefix_bytes, split_at_image
from .answer_states import Suffix, answer_states
from .naive import naive_rows
from .rows import Pending, Probabilities, entropy

PREFIX_BYTES = 4 * 1024**3
ROWS_AT_ONCE = 1024  # answer rows through the output layer at a time: 130 MB of float32 logits for LLaVA's vocabulary

_Place = tuple[int, int]  # (which pending example, which of its images)
_PrefixKey = tuple[tuple[int, ...], tuple[str, ...]]


class SharedPrefixEngine:
    """Computes rows behind shared image prefixes for one model."""

    def __init__(self, model: Any, *, token_budget: int, prefix_bytes: int = PREFIX_BYTES) -> None:
        self._model = model
        self._head = model.get_output_embeddings()
        self._token_budget = token_budget
        self._prefix_bytes = prefix_bytes
        self._prefixes: OrderedDict[_PrefixKey, Prefix] = OrderedDict()

    @torch.inference_mode()
    def rows(self, pending: Sequence[Pending]) -> Iterator[Probabilities]:
        """Yield the averaged distributions of each pending example, in order."""
        sums: list[Any] = [None] * len(pending)
        entropies: list[Any] = [None] * len(pending)
        for places, states_MD in self._states(pending):
            counts = [pending[item].num_rows for item, _ in places]
            for chunk, part_MD in _chunks(places, counts, states_MD):
                parts = self._head(part_MD).float().log_softmax(-1).split([pending[item].num_rows for item, _ in chunk])
                for (item, _), logprobs_MV in zip(chunk, parts, strict=True):
                    probabilities_MV, entropy_M = logprobs_MV.exp(), entropy(logprobs_MV)
                    sums[item] = probabilities_MV if sums[item] is None else sums[item].add_(probabilities_MV)
                    entropies[item] = entropy_M if entropies[item] is None else entropies[item].add_(entropy_M)
        for work, total_MV, total_M in zip(pending, sums, entropies, strict=True):
            yield Probabilities(total_MV / len(work.shown), total_M / len(work.shown))

    def _states(self, pending: Sequence[Pending]) -> Iterator[tuple[list[_Place], Tensor]]:
        """Yield batches of pairs with the hidden states of their answer rows, pair after pair."""
        for batch in self._batches(pending):
            places = [place for _, group in batch for place in group]
            suffixes: list[Suffix] = []
            for key, group in batch:
                prefix = self._prefix(key, pending, group[0])
                suffixes.extend(
                    Suffix(prefix, _question(pending, place, prefix.length), pending[place[0]].answer_ids)
                    for place in group
                )
            yield places, answer_states(self._model, suffixes)

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

    def _batches(self, pending: Sequence[Pending]) -> Iterator[list[tuple[_PrefixKey, list[_Place]]]]:
        """Cut all pairs into batches of at most the token budget, by prefix and then by question.

        A batch may hold suffixes of several prefixes, as many as fit the budget of prefixes (one at least).
        """
        batch: list[tuple[_PrefixKey, list[_Place]]] = []
        room, held = self._token_budget, 0
        for key, places in self._by_prefix(pending).items():
            lengths = {place: len(pending[place[0]].shown[place[1]].input_ids) - len(key[0]) for place in places}
            size = prefix_bytes(self._model, len(key[0]))
            order = {place: (_question(pending, place, len(key[0])), -lengths[place], place) for place in places}
            for place in sorted(places, key=order.__getitem__):
                is_new = not batch or batch[-1][0] != key
                if batch and (lengths[place] > room or (is_new and held + size > self._prefix_bytes)):
                    yield batch
                    batch, room, held, is_new = [], self._token_budget, 0, True
                if is_new:
                    batch.append((key, []))
                    held += size
                batch[-1][1].append(place)
                room -= lengths[place]
        if batch:
            yield batch


def _question(pending: Sequence[Pending], place: _Place, prefix_length: int) -> tuple[int, ...]:
    """Return the rest of a pair's prompt behind its image."""
    item, image = place
    shown = pending[item].shown[image]
    return shown.input_ids[prefix_length : shown.num_prompt]


def _chunks(
    places: Sequence[_Place], counts: Sequence[int], states_MD: Tensor
) -> Iterator[tuple[list[_Place], Tensor]]:
    """Cut a batch between pairs into at most `ROWS_AT_ONCE` rows (one pair alone may have more)."""
    chunk: list[_Place] = []
    start = stop = 0
    for place, count in zip(places, counts, strict=True):
        if chunk and stop + count - start > ROWS_AT_ONCE:
            yield chunk, states_MD[start:stop]
            chunk, start = [], stop
        chunk.append(place)
        stop += count
    yield chunk, states_MD[start:stop]


def disagreement_with_naive(engine: SharedPrefixEngine, model: Any, item: Pending, pad_id: int) -> float:
    """Return the largest total variation between this engine's rows and the oracle's on one example."""
    shared = next(engine.rows([item]))
    oracle = next(naive_rows(model, [item], pad_id))
    return float((shared.mean_MV - oracle.mean_MV).abs().sum(-1).max()) / 2
