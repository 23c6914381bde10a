"""The default engine: each image runs once, and behind it what is asked and answered alike runs once.

Work of a block is ordered by image, then by text, and cut into batches of at most `token_budget` suffix tokens, so that
batch composition is a function of the block and the budget alone. A batch holds suffixes of as many images as fit, each
attending to its own prefix where it lies (`models/two_part.py`), so that examples with references of their own fill
batches as shared ones do. Behind an image suffixes share tokens (`models/forest.py`), and a state that predicts for
several examples goes through the output layer once. Prefixes outlive the block (`prefix_store.py`). Averages are
float32 sums in the order of images, whatever the batches.
"""

# M answer tokens of an example, C distinct rows, U distinct states, A additions of a state to a row, V vocabulary

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ...models.forest import num_shared, plant
from ...models.prefix import Prefix, compute_prefix, prefix_bytes, run_forest, split_at_image
from .naive import naive_rows
from .prefix_store import prefix_store_for
from .rows import Pending, Probabilities, entropy, number_rows

PREFIX_BYTES = 4 * 1024**3
HOST_BYTES = 16 * 1024**3  # of pinned memory, taken as prefixes leave the device
SUM_BYTES = 1024**3  # of averages in the making; a block that needs more is cut
ROWS_AT_ONCE = 1024  # answer rows through the output layer at a time: 130 MB of float32 logits for LLaVA's vocabulary

_Place = tuple[int, int]  # (which pending example, which of its images)
_PrefixKey = tuple[tuple[int, ...], tuple[str, ...]]
_Suffix = tuple[int, ...]
_Batch = list[tuple[_PrefixKey, list[tuple[_Place, _Suffix]]]]


class SharedPrefixEngine:
    """Computes rows behind shared image prefixes for one model."""

    def __init__(
        self, model: Any, *, token_budget: int, prefix_bytes: int = PREFIX_BYTES, host_bytes: int = HOST_BYTES
    ) -> None:
        """Take a model on its device; `token_budget` may be changed between blocks."""
        self.token_budget = token_budget
        self._model = model
        self._device = next(model.parameters()).device
        self._head = model.get_output_embeddings()
        self._vocab_size = model.config.get_text_config().vocab_size
        self._prefix_bytes = prefix_bytes
        self._prefixes = prefix_store_for(self._device, prefix_bytes, host_bytes)

    def forget(self) -> None:
        """Give back the memory of prefixes."""
        self._prefixes.clear()

    @torch.inference_mode()
    def rows(self, pending: Sequence[Pending]) -> Iterator[Probabilities]:
        """Yield the averaged distributions of each pending example, in order."""
        for part in _cut(pending, SUM_BYTES // (4 * self._vocab_size)):
            yield from self._rows(part)

    def _rows(self, pending: Sequence[Pending]) -> Iterator[Probabilities]:
        numbers = number_rows(pending)
        num_distinct = 1 + max(number for item in numbers for number in item)
        sum_CV = torch.zeros(num_distinct, self._vocab_size, device=self._device)
        entropy_C = torch.zeros(num_distinct, device=self._device)
        added: set[tuple[int, tuple[str, ...]]] = set()
        for batch in self._batches(pending):
            states_TD, additions = self._run(batch, pending, numbers, added)
            for start in range(0, len(additions), ROWS_AT_ONCE):
                states, rows = zip(*additions[start : start + ROWS_AT_ONCE], strict=True)
                state_U, which_A = torch.tensor(states).unique_consecutive(return_inverse=True)
                row_A = torch.tensor(rows, device=self._device)
                logprobs_UV = self._head(states_TD[state_U.to(self._device)]).float().log_softmax(-1)
                which_A = which_A.to(self._device)
                probabilities_UV = logprobs_UV.exp()
                entropy_C.index_add_(0, row_A, entropy(probabilities_UV, logprobs_UV)[which_A])
                if len(states) > len(state_U):
                    probabilities_UV = probabilities_UV[which_A]
                sum_CV.index_add_(0, row_A, probabilities_UV)
        for work, row_M in zip(pending, numbers, strict=True):
            k = len(work.shown)
            yield Probabilities(sum_CV[row_M] / k, entropy_C[row_M] / k)

    def _run(
        self, batch: _Batch, pending: Sequence[Pending], numbers: Sequence[Sequence[int]],
        added: set[tuple[int, tuple[str, ...]]],
    ) -> tuple[Tensor, list[tuple[int, int]]]:  # fmt: skip
        """Return the states [T, D] of a batch's tokens, and which of them is added to which distinct row, in order.

        Rows that have an image's state already, from an earlier batch that this one overlaps, are left out.
        """
        prefixes = [self._prefix(key, pending, group[0][0]) for key, group in batch]
        forest = plant([[suffix for _, suffix in group] for _, group in batch])
        additions: list[tuple[int, int]] = []
        paths = iter(forest.paths)
        for (_, images), group in batch:
            for (item, _), _ in group:
                for state, row in zip(next(paths)[-len(numbers[item]) :], numbers[item], strict=True):
                    if (row, images) not in added:
                        added.add((row, images))
                        additions.append((state, row))
        return run_forest(self._model, prefixes, forest), sorted(additions)

    def _by_prefix(self, pending: Sequence[Pending]) -> dict[_PrefixKey, list[_Place]]:
        """Group the pairs by prefix, prefixes in the order of their images' digests."""
        groups: dict[_PrefixKey, list[_Place]] = {}
        for item, work in enumerate(pending):
            for image, encoded in enumerate(work.shown):
                prefix_ids, _ = split_at_image(encoded)
                groups.setdefault((prefix_ids, work.image_digests[image]), []).append((item, image))
        return {key: groups[key] for key in sorted(groups, key=lambda key: (key[1], key[0]))}

    def _prefix(self, key: _PrefixKey, pending: Sequence[Pending], place: _Place) -> Prefix:
        item, image = place
        return self._prefixes.get(key, lambda: compute_prefix(self._model, key[0], pending[item].shown[image]))

    def _batches(self, pending: Sequence[Pending]) -> Iterator[_Batch]:
        """Cut all pairs into batches of at most the token budget, by prefix and then by text.

        A batch may hold suffixes of several prefixes, as many as fit the budget of prefixes (one at least).
        """
        batch: _Batch = []
        room, held = self.token_budget, 0
        for key, places in self._by_prefix(pending).items():
            suffixes = {place: _suffix(pending, place, len(key[0])) for place in places}
            size = prefix_bytes(self._model, len(key[0]))
            before: tuple[int, ...] = ()
            for place in sorted(places, key=lambda place: (suffixes[place], place)):
                new = len(suffixes[place]) - num_shared(before, suffixes[place])
                is_new = not batch or batch[-1][0] != key
                if batch and (new > room or (is_new and held + size > self._prefix_bytes)):
                    yield batch
                    batch, room, held, is_new = [], self.token_budget, 0, True
                    new = len(suffixes[place])
                if is_new:
                    batch.append((key, []))
                    held += size
                batch[-1][1].append((place, suffixes[place]))
                room, before = room - new, suffixes[place]
        if batch:
            yield batch


def _suffix(pending: Sequence[Pending], place: _Place, prefix_length: int) -> tuple[int, ...]:
    """Return what follows a pair's image; the last answer token predicts nothing that is scored, so it is not run."""
    item, image = place
    return pending[item].shown[image].input_ids[prefix_length:-1]


def _cut(pending: Sequence[Pending], most_rows: int) -> Iterator[Sequence[Pending]]:
    """Cut examples into runs of at most so many rows (one example alone may have more)."""
    start = rows = 0
    for index, item in enumerate(pending):
        if index > start and rows + item.num_rows > most_rows:
            yield pending[start:index]
            start, rows = index, 0
        rows += item.num_rows
    if pending:
        yield pending[start:]


def disagreement_with_naive(engine: SharedPrefixEngine, model: Any, item: Pending, pad_id: int) -> float:
    """Return the largest total variation between this engine's rows and the oracle's on one example."""
    shared = next(engine.rows([item]))
    oracle = next(naive_rows(model, [item], pad_id))
    return float((shared.mean_MV - oracle.mean_MV).abs().sum(-1).max()) / 2
