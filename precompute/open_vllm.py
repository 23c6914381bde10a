"""Open vLLM as the teacher's engine: lay the weights out, start it, check it, and say how its rows come about.

Engines are soft facts: the fingerprint of a cache is the same for all, build.json names the one, its version and what
it was asked for. Only what no other engine needs is here; `open_teacher.py` comes here for `--engine vllm`.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..models.encode import Encoder
from ..models.load import DTYPES, Checkpoint
from ..models.vllm_start import read_options, require_vllm, share_image_processor, start_llm
from ..models.vllm_weights import lay_out
from .engines.rows import Pending, Probabilities, RowsOf
from .engines.vllm import ALL, Kept, VllmEngine, can_score_rows
from .engines.vllm_bounds import ENTROPY_WITHIN, LOGPROB_WITHIN

SETTINGS = {
    "max_logprobs": -1,  # lists may be of the whole vocabulary
    "enable_prefix_caching": False,  # what lists prompt rows cannot read it
    "enforce_eager": True,
    "max_num_batched_tokens": 4096,  # prefill only; small, for logits of every token
}


def open_vllm(
    options: Mapping[str, Any], checkpoint: Checkpoint, encoder: Encoder, first: Pending,
    announce: Callable[[str], None],
) -> tuple[str, RowsOf]:  # fmt: skip
    """Return the engine's name, as build.json has it, and its rows.

    Raises:
        DataError: vLLM is not installed, an option is not one of its, or it reads pictures or prompts otherwise.
    """
    found, arguments = require_vllm(), read_options(options["vllm_option"], SETTINGS)
    num_listed = options["vllm_listed"] or ALL
    with tempfile.TemporaryDirectory(prefix="viker-vllm-") as scratch:
        directory = lay_out(
            checkpoint, Path(scratch), dtype=options["dtype"], trust_remote_code=options["trust_remote_code"]
        )
        llm = start_llm(directory, arguments, dtype=options["dtype"], trust_remote_code=options["trust_remote_code"])
        share_image_processor(llm, encoder)
    scores_rows = can_score_rows(llm, first, encoder.vocab_size, options["dtype"], announce)
    engine = VllmEngine(
        llm, vocab_size=encoder.vocab_size, num_listed=num_listed, scores_rows=scores_rows,
        kept=Kept(top_k=options["top_k"], logprob_dtype=DTYPES[options["store_logprobs"]]),
    )  # fmt: skip
    if num_listed == ALL:
        return f"vllm {found}, whole vocabulary", engine.rows
    announce(
        f"precompute: vLLM lists {num_listed} tokens an image; rows it leaves open by more than {LOGPROB_WITHIN} nats "
        f"(log-probabilities) or {ENTROPY_WITHIN} (entropies) are asked for whole"
    )
    name = f"vllm {found}, {num_listed} tokens listed, certified to {LOGPROB_WITHIN} and {ENTROPY_WITHIN} nats"

    def told(pending: Sequence[Pending]) -> Iterator[Probabilities]:
        is_first = engine.certified + engine.asked_again == 0
        yield from engine.rows(pending)
        if is_first:
            announce(
                f"precompute: of the first {len(pending)} examples {engine.certified} certified, {engine.asked_again} "
                "asked for whole; where many are, list more tokens, or leave --vllm-listed out"
            )

    return name, told
