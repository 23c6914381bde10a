"""The table of docs/scale.md: what a precompute costs at LLaVA-1.5-7B, from hundreds of people to millions.

Operations and bytes are `cost.py`'s formulas on sizes and lengths that are written here; hours divide the pairs by one
measured rate, a prototype's on an H200 (docs/scale.md says what it ran). A test holds the page to this module, and the
sizes to the model that the classes build.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from ..precompute.cache import make_fingerprint
from .cost import TYPICAL_SHARE, Shape, Tower, prefix_operations, raw_bytes, suffix_operations
from .sharing import run_behind
from .told import scaled
from .work import Prefix, Suffix

LLAVA_7B = Shape(
    vision=Tower(weights=323_563_520, layers=24, width=1024),
    text=Tower(weights=6_476_005_376, layers=32, width=4096),
    patch=588, tile_patches=576, key_value_width=4096, hidden=4096, intermediate=11008, vocab_size=32064,
    parameters=7_063_427_072,
)  # fmt: skip
PREFIX_TOKENS, QUESTION_TOKENS, ANSWER_TOKENS = 581, 28, 32  # those that the rate was measured with
PAIRS_PER_SECOND = 702
TOP_K = 64


class Case(NamedTuple):
    """How many people, questions about each, references an example, and images to draw those from."""

    people: int
    questions: int
    references: int
    pool: int


class Price(NamedTuple):
    """What a case amounts to and costs; hours are those of one GPU."""

    pairs: int
    rows: int
    raw_bytes: int
    operations: int
    hours: float


CASES = (
    Case(500, 13, 8, 76),
    Case(50_000, 13, 8, 500),
    Case(5_000_000, 13, 8, 500),
    Case(5_000_000, 13, 1, 500),
)


def price(case: Case) -> Price:
    """Return what a case costs when no question is shared."""
    examples = case.people * case.questions
    pairs, rows = examples * case.references, examples * ANSWER_TOKENS
    prefix = Prefix(("",), 0, PREFIX_TOKENS, LLAVA_7B.patch * LLAVA_7B.tile_patches)
    behind = sum(suffix_operations(LLAVA_7B, run_behind(PREFIX_TOKENS, [_suffix()])))
    return Price(
        pairs=pairs,
        rows=rows,
        raw_bytes=raw_bytes(_fingerprint(case.references), examples, rows, case.pool),
        operations=pairs * behind + case.pool * sum(prefix_operations(LLAVA_7B, prefix)),
        hours=pairs / PAIRS_PER_SECOND / 3600,
    )


def hours_per_million() -> float:
    """Return the hours of one GPU for a million pairs."""
    return 1e6 / PAIRS_PER_SECOND / 3600


def as_table(cases: Sequence[Case] = CASES) -> list[str]:
    """Return the lines of the table."""
    lines = [
        "| people | questions each | k | pairs | rows | bytes, raw | bytes, expected | FLOP | H200-hours |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for case in cases:
        cost = price(case)
        cells = (
            f"{case.people:,}", case.questions, case.references, _count(cost.pairs), _count(cost.rows),
            f"{scaled(cost.raw_bytes)}B", f"{scaled(cost.raw_bytes * TYPICAL_SHARE)}B", f"{cost.operations:.2e}",
            f"{cost.hours:.3g}" if cost.hours < 1000 else f"{cost.hours:,.0f}",
        )  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def _count(number: int) -> str:
    return scaled(number).strip()


def _suffix() -> Suffix:
    return Suffix((0,) * QUESTION_TOKENS, (0,) * ANSWER_TOKENS)


def _fingerprint(num_references: int) -> dict[str, Any]:
    draw = {"policy": "per-example", "seed": 0, "num_references": num_references}
    identity = {"weights": "", "tokenizer": "", "processor": "", "rendering": {}}
    intervention = {"intervention": {"kind": "reference", "answers": "own"}, "draw": draw, "pool": ""}
    return make_fingerprint(
        identity, intervention, top_k=TOP_K, vocab_size=LLAVA_7B.vocab_size, teacher_dtype="bfloat16",
        logprob_dtype="float16", row_keys=(),
    )  # fmt: skip
