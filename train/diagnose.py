"""`viker train --diagnose`: what a method's theory says about the answers of a run, measured before it and after it.

For a sample of forget examples: how hard each answer token is pushed against what is predicted (`token_weights.py`),
what key and normal tokens look like at several entropies, and which words were treated as key (`key_words.py`). It
looks on: no weight, no random state and no batch of the run is touched. **`diagnose.jsonl` holds the sampled answers
word by word, with the ids of the people they are about**: as sensitive as the forget set, never exported with an
adapter, and cleared of a person by `viker purge`. Its numbers over all examples are `diagnose_summary.py`'s.
"""

# M answer tokens, N tokens of one example's rows, V vocabulary

import json
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.sidecar import Sidecar, read_sidecar
from ..data.source import Source
from ..models.encode import Encoder
from ..models.forward import answer_logits, to_device
from .batches import Item, no_rows
from .diagnose_summary import FILE, SCHEMA, Examined, When, as_record, as_text, summarize
from .key_words import key_words
from .line_files import read_lines
from .method import Method
from .rows import TeacherRows
from .scored import Scored
from .steps import RowsOf, batch_of, cached_rows
from .token_weights import score_in_float64, token_weights

NUM_EXAMPLES = 32
EPSILONS = (0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0)  # nats


class Diagnosis:
    """Looks at the same sample of a run's forget examples each time it is asked."""

    def __init__(
        self, model: Any, encoder: Encoder, items: Sequence[Item], method: Method, output: Path | None, *,
        rows_of: RowsOf, key_entropy: float, facts: Sidecar | None, seed: int, num_examples: int = NUM_EXAMPLES,
        epsilons: Sequence[float] = EPSILONS,
    ) -> None:  # fmt: skip
        """Draw the sample.

        Args:
            model: the student as it is trained, not wrapped for parallel training.
            encoder: its encoder.
            items: the run's forget examples.
            method: whose loss is differentiated.
            output: the adapter's directory, where diagnose.jsonl goes; None on a process that only takes part, as all
                do where the weights are shared over them.
            rows_of: gives the rows that the loss reads, from the cache or a live teacher.
            key_entropy: nats above which words are flagged as key; one more entropy to tell classes at.
            facts: the private words of the benchmark, where it knows them.
            seed: of the sample.
            num_examples: how many examples are looked at, at most.
            epsilons: entropies to tell key from normal tokens at.
        """
        self._model, self._encoder, self._method, self._rows_of = model, encoder, method, rows_of
        self._output, self._facts, self._key_entropy = output, facts, key_entropy
        self._epsilons = sorted({*epsilons, key_entropy})
        self.chosen = sample(items, num_examples, seed)

    def take(self, when: When, step: int) -> str:
        """Look at the student as it is now, write what was seen, and return a summary in a few lines.

        A moment that is looked at again (a resumed run) takes the place of what was written of it.
        """
        started = time.perf_counter()
        with _looking(self._model):
            examined = [self._examine(item) for item in self.chosen]
        summary = summarize(examined, self._method, self._epsilons, self._key_entropy)
        moment = {"schema": SCHEMA, "when": when, "step": step}
        records = [{**moment, **found} for found in (*(as_record(one, self._key_entropy) for one in examined), summary)]
        if self._output is not None:
            replace_moment(self._output / FILE, when, records)
        return as_text(records[-1], time.perf_counter() - started)

    def _examine(self, item: Item) -> Examined:
        logits_MV = self._logits(item)
        rows = _rows(self._rows_of, item).to(logits_MV.device)
        weights = token_weights(logits_MV, rows, self._method, self._encoder.vocab_size, self._refusal(item))
        entropy_N, teacher_logprob_N = _known_of(item, rows)
        words = None
        if entropy_N is not None:
            words = key_words(self._encoder.tokenizer, item.answer_ids, entropy_N, item.example, self._facts)
        return Examined(
            example=item.example, weights=weights, entropy_N=entropy_N,
            teacher_logprob_N=teacher_logprob_N, words=words,
        )  # fmt: skip

    def _refusal(self, item: Item) -> Scored | None:
        if not self._method.refusals:
            return None
        assert item.refusal is not None, "a method that reads refusals is given them"
        logits_MV = self._logits(item.refusal)
        rows = _rows(cached_rows(0), item.refusal).to(logits_MV.device)
        return score_in_float64(logits_MV, rows, self._encoder.vocab_size)

    def _logits(self, item: Item) -> Tensor:
        weights = next(self._model.parameters())
        batch = batch_of(self._model, self._encoder, [item], 1)
        inputs = to_device(batch.inputs, weights.device, weights.dtype)
        with torch.no_grad():
            return answer_logits(self._model, inputs, batch.batch_M, batch.position_M)


def sample(items: Sequence[Item], num_examples: int, seed: int) -> list[Item]:
    """Return some of the items in their order, a function of their number and the seed."""
    chosen = random.Random(f"{seed}/diagnose").sample(range(len(items)), min(num_examples, len(items)))
    return [items[index] for index in sorted(chosen)]


def private_words(source: Source) -> Sidecar | None:
    """Return the private words of a source that knows them."""
    path = source.location / "sidecar.json"
    return read_sidecar(path) if path.is_file() else None


def replace_moment(path: Path, when: When, records: Sequence[Mapping[str, Any]]) -> None:
    """Write the records of a moment in place of those that are there of it; others stay."""
    kept = [line for line in read_lines(path) if line["when"] != when]
    # In place: a temporary file that a kill leaves behind would hold answers where nobody looks for them.
    with path.open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(line, allow_nan=False) + "\n" for line in [*kept, *records])


@contextmanager
def _looking(model: Any) -> Iterator[None]:
    """Put a model into evaluation mode for a while: nothing is dropped out, so no random number is drawn."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _rows(rows_of: RowsOf, item: Item) -> TeacherRows:
    rows = rows_of([item])
    return no_rows(item.answer_ids) if rows is None else rows


def _known_of(item: Item, rows: TeacherRows) -> tuple[list[float] | None, list[float] | None]:
    """Return entropy and log R(y) of each token, of the rows that the log speaks of where the item has them."""
    if item.log_rows is not None:
        return item.log_rows.entropy_N.tolist(), item.log_rows.answer_logprob_N.tolist()
    if bool(rows.entropy_M.isnan().any()):
        return None, None
    return rows.entropy_M.tolist(), rows.answer_logprob_M.tolist()
