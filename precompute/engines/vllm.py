"""Rows from vLLM, for teams that serve with it: each pair of an example and an image is one request of one new token.

A prompt goes out as ids with one placeholder an image, and vLLM puts the image's tokens in; the ids it read come back
and have to be ours. Where its runner scores named tokens at named rows, every token of the vocabulary is asked for at
the answer's rows. Elsewhere lists are: of the whole vocabulary, which are lists of every *prompt* row too and cost
about 100 bytes a number, or of the K' likeliest, certified by `vllm_bounds.py` example by example; what it does not
certify is asked for whole. Nothing of a prompt is shared between requests (vLLM cannot read its prefix cache and list
prompt rows), but each picture is looked at once while vLLM keeps it. The scores of named tokens are a young interface,
so the first example's are held against its lists before they are used. Starting vLLM is `models/vllm_start.py`'s.
"""

# k images of an example, M answer tokens, V vocabulary

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch

from ...data.example import DataError, EncodedImage
from ...models.encode import Encoded
from ...models.pictures import decode
from ...models.vllm_prompt import require_same_ids, vllm_prompt
from .rows import Pending, Probabilities
from .vllm_bounds import Bounded, Listed, average_listed, is_certified
from .vllm_lists import read_lists, read_scores

BYTES_A_NUMBER = 110  # of a list: a float, an id and a rank as Python objects, and their places in four lists
BYTES_AT_ONCE = 4 * 1024**3
ALL = -1
SCORES_WITHIN = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.02}  # nats, between two ways through one output layer


class Pair(NamedTuple):
    """One request: an example under one of its images."""

    item: Pending
    image: int

    @property
    def shown(self) -> Encoded:
        """The example encoded under the image."""
        return self.item.shown[self.image]

    @property
    def images(self) -> Sequence[EncodedImage]:
        """The pictures it shows."""
        return self.item.images[self.image]


@dataclass(frozen=True, kw_only=True, slots=True)
class Kept:
    """What a cache will keep of the rows, which is what a certificate is about."""

    top_k: int
    logprob_dtype: torch.dtype


class VllmEngine:
    """Computes rows through one started `vllm.LLM`."""

    def __init__(
        self, llm: Any, *, vocab_size: int, num_listed: int, kept: Kept, scores_rows: bool,
        bytes_at_once: int = BYTES_AT_ONCE,
    ) -> None:  # fmt: skip
        self._llm = llm
        self._vocab_size = vocab_size
        self._num_listed = num_listed
        self._kept = kept
        self._scores_rows = scores_rows
        self._bytes_at_once = bytes_at_once
        self.certified = self.asked_again = 0  # examples

    def rows(self, pending: Sequence[Pending]) -> Iterator[Probabilities]:
        """Yield the averaged distributions of each pending example, in order.

        Raises:
            DataError: vLLM read other ids than ours, or one example's lists are larger than what is allowed at once.
        """
        for item, bounded in zip(pending, self._averages(pending, self._num_listed), strict=True):
            if self._num_listed == ALL:
                yield bounded.rows()
            elif is_certified(bounded, self._kept.top_k, self._kept.logprob_dtype):
                self.certified += 1
                yield bounded.rows()
            else:
                self.asked_again += 1
                yield next(self._averages([item], ALL)).rows()

    def _averages(self, pending: Sequence[Pending], num_listed: int) -> Iterator[Bounded]:
        pairs = [Pair(item, image) for item in pending for image in range(len(item.shown))]
        listed = (one for part in self._parts(pairs, num_listed) for one in self._ask(part, num_listed))
        for item in pending:
            yield average_listed(islice(listed, len(item.shown)), len(item.shown), self._vocab_size)

    def _parts(self, pairs: Sequence[Pair], num_listed: int) -> Iterator[list[Pair]]:
        """Cut pairs so that what comes back at once stays within the bytes allowed."""
        part: list[Pair] = []
        room = self._bytes_at_once
        for pair in pairs:
            size = self._num_bytes(pair, num_listed)
            if size > self._bytes_at_once:
                raise DataError(_too_large(pair, size, self._bytes_at_once))
            if size > room:
                yield part
                part, room = [], self._bytes_at_once
            part.append(pair)
            room -= size
        if part:
            yield part

    def _num_bytes(self, pair: Pair, num_listed: int) -> int:
        if num_listed == ALL and self._scores_rows:
            return pair.item.num_rows * self._vocab_size * 8
        width = self._vocab_size if num_listed == ALL else num_listed
        return len(pair.shown.input_ids) * (width + 1) * BYTES_A_NUMBER

    def _ask(self, pairs: Sequence[Pair], num_listed: int) -> Iterator[Listed]:
        scores = num_listed == ALL and self._scores_rows
        requests = [scores_request(pair, self._vocab_size) if scores else lists_request(num_listed) for pair in pairs]
        for pair, output in zip(pairs, generate(self._llm, pairs, requests), strict=True):
            if scores:
                yield read_scores(output.prompt_token_id_logprobs, pair.item.answer_ids, self._vocab_size)
            else:
                yield read_lists(output.prompt_logprobs, pair.item.answer_ids, num_listed)


def lists_request(num_listed: int) -> dict[str, Any]:
    """Return what asks vLLM for the likeliest tokens of every prompt row."""
    return {"prompt_logprobs": num_listed, "flat_logprobs": True}


def scores_request(pair: Pair, vocab_size: int) -> dict[str, Any]:
    """Return what asks vLLM for every token at the answer's rows alone; its rows count from the token that predicts."""
    ids_MV = np.broadcast_to(np.arange(vocab_size, dtype=np.int32), (pair.item.num_rows, vocab_size))
    return {
        "prompt_logprob_token_ids": np.ascontiguousarray(ids_MV),
        "prompt_logprob_start": pair.shown.num_prompt - 1,
    }


def generate(llm: Any, pairs: Sequence[Pair], requests: Sequence[dict[str, Any]]) -> list[Any]:
    """Run pairs and return vLLM's outputs, in order.

    Raises:
        DataError: vLLM read other ids than ours.
    """
    from vllm import SamplingParams

    params = [SamplingParams(max_tokens=1, temperature=0.0, detokenize=False, **request) for request in requests]
    pictures = {image.sha256: image for pair in pairs for image in pair.images}
    decoded = {digest: decode(image) for digest, image in pictures.items()}
    # Requests that show one picture follow each other, while vLLM still has what its tower made of it.
    order = sorted(range(len(pairs)), key=lambda index: pairs[index].item.image_digests[pairs[index].image])
    prompts = [
        vllm_prompt((*pairs[index].shown.prompt_ids, *pairs[index].item.answer_ids), pairs[index].images, decoded)
        for index in order
    ]
    found = llm.generate(prompts, [params[index] for index in order], use_tqdm=False)
    outputs = dict(zip(order, found, strict=True))
    for index, pair in enumerate(pairs):
        require_same_ids(pair.item.name, pair.shown.input_ids, outputs[index].prompt_token_ids)
    return [outputs[index] for index in range(len(pairs))]


def can_score_rows(llm: Any, first: Pending, vocab_size: int, dtype: str, announce: Callable[[str], None]) -> bool:
    """Tell whether this vLLM scores named tokens at named rows, and as its lists do; where it does not, say so."""
    if not getattr(llm.llm_engine.vllm_config, "use_v2_model_runner", False):
        return False
    pair, answer_ids = Pair(first, 0), first.answer_ids
    try:
        output = generate(llm, [pair], [scores_request(pair, vocab_size)])[0]
        scores = read_scores(getattr(output, "prompt_token_id_logprobs", None), answer_ids, vocab_size)
        lists = read_lists(generate(llm, [pair], [lists_request(1)])[0].prompt_logprobs, answer_ids, 1)
    except (ValueError, TypeError, AttributeError) as error:
        announce(f"precompute: WARNING: this vLLM cannot score named tokens ({error}); using its lists, slower.")
        return False
    answer_M1 = torch.tensor(answer_ids)[:, None]
    furthest = float((scores.logprobs_ML.gather(1, answer_M1)[:, 0] - lists.logprobs_ML[:, 0]).abs().max())
    if furthest > SCORES_WITHIN[dtype]:
        announce(
            f"precompute: WARNING: vLLM's scores of named tokens are {furthest:.2g} nats off its lists; using its "
            "lists, slower."
        )
        return False
    return True


def _too_large(pair: Pair, size: int, allowed: int) -> str:
    return (
        f"{pair.item.name}: expected vLLM's lists of one request to take at most {allowed / 2**30:.3g} GiB, found "
        f"{size / 2**30:.3g} ({len(pair.shown.input_ids)} prompt tokens, and tokens listed at each). Use --engine "
        "shared-prefix, which reads the rows of answers alone."
    )
