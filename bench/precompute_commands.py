"""`viker bench precompute`: pairs a second of every way to compute a teacher's rows, beside what the device can do.

A first, untimed round of each variant warms it up, counts the products it runs, padding included, and compares its rows
with the naive ones. Timed rounds end in a sealed cache. Beside them stand the device's rate in one big square product
and in the very products of the default engine, and that engine alone without rows being cut and written (`kernel`).
"""

import json
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from .rounds import Measured, device_name, note, variant

if TYPE_CHECKING:
    from ..models.encode import Encoder
    from ..precompute.engines.rows import Pending, RowsOf

DEFAULT_EXAMPLES = 64
NOT_INSTALLED = {"rate": None, "unit": "pairs/s", "ratio": None, "peak_memory": None}


@click.command()
@click.option(
    "--shapes", type=click.Choice(["mini", "long", "llava-7b"]), default="mini", show_default=True,
    help="The embedded benchmark, or sizes of a model with seeded weights and examples: a 581-token prefix for a CPU, "
    "LLaVA-1.5-7B (GPU only).",
)  # fmt: skip
@click.option("--examples", type=int, help="Examples, each under its references (default: all of mini's, else 64).")
@click.option("--num-references", default=8, show_default=True, help="References an example.")
@click.option("--pool-size", type=int, help="Images to draw from, k for each example (default: one set of k for all).")
@click.option("--token-budget", default=4096, show_default=True, help="shared-prefix: suffix tokens a batch.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), default="float32", show_default=True,
              help="What the model computes in.")  # fmt: skip
@click.option("--rounds", default=3, show_default=True, help="Rounds; the median of each variant counts.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def precompute(
    shapes: str, examples: int | None, num_references: int, pool_size: int | None, token_budget: int, dtype: str,
    rounds: int, as_json: bool,
) -> None:  # fmt: skip
    """Compare ways of computing a teacher's rows, from pictures and ids to a sealed cache."""
    import torch

    from . import operations
    from . import precompute as bench

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if shapes == "llava-7b" and device == "cpu":
        raise click.UsageError("--shapes llava-7b: expected a GPU, found none. On a CPU, name mini or long.")
    drawn = {"num_references": num_references, "pool_size": pool_size or num_references}
    table: dict[str, list[Measured]] = {}
    with tempfile.TemporaryDirectory(prefix="viker-bench-") as scratch:
        place = Path(scratch)
        prepared = _prepare(shapes, place, device, dtype, examples, num_references, drawn["pool_size"])
        model, work, pad_id = prepared.model, prepared.work, prepared.pad_id
        vocab_size = model.config.get_text_config().vocab_size
        engines: dict[str, Callable[[], RowsOf]] = {
            "naive": partial(bench.naive, model, pad_id),
            "batched-naive": partial(bench.batched_naive, model, pad_id),
            "shared-prefix": partial(bench.shared_prefix, model, token_budget),
        }
        compared = bench.compare(work, engines)
        for turn in range(rounds):
            for name, engine in engines.items():
                home = place / f"{name}-{turn}"
                note(table, name, lambda: bench.make_cache(home, work, engine(), vocab_size))  # noqa: B023 - run at once
        if prepared.encoder is not None:
            from .precompute_vllm import vllm_rows

            if rows_of := vllm_rows(place / "model", prepared.encoder, work[0], dtype=dtype):
                for turn in range(rounds):
                    note(table, "vllm", partial(bench.make_cache, place / f"vllm-{turn}", work, rows_of, vocab_size))
        alone, seconds = _alone(engines["shared-prefix"](), work, rounds)
    size, square = operations.square_rate(device, model.dtype)
    own = operations.product_rate(alone, device, model.dtype)
    kernel = operations.operations(alone) / seconds
    told = {
        "schema": "viker/bench/1", "what": "precompute", "device": device_name(), "shapes": shapes,
        "pairs": len(work) * num_references, **drawn, "token_budget": token_budget, "dtype": dtype, "rounds": rounds,
        "largest_variation": compared.variation,
        "ceiling": {
            "name": f"matmul {size}^3", "rate": square / 1e12, "unit": "TFLOP/s",
            "own_products": own / 1e12,
        },
        "kernel": {"pairs_per_s": len(work) * num_references / seconds, "tflops": kernel / 1e12,
                   "share_of_own_products": kernel / own},
        "variants": [
            _line(name, table, len(work) * num_references, compared.products, compared.padding)
            for name in (*engines, "vllm")
        ],
    }  # fmt: skip
    click.echo(json.dumps(told, indent=2) if as_json else _as_text(told))


class _Prepared(NamedTuple):
    """A model and its work; the encoder where the work is pictures and texts, which vLLM needs."""

    model: Any
    work: "list[Pending]"
    pad_id: int
    encoder: "Encoder | None"


def _prepare(
    shapes: str, place: Path, device: str, dtype: str, examples: int | None, num_references: int, pool_size: int
) -> _Prepared:
    """Build a model and its pairs; the embedded benchmark is written into a folder first."""
    import torch

    from . import precompute as bench

    if shapes == "mini":
        from .mini_world import build_world, world_work

        model, encoder = build_world(place, device=device, dtype=dtype)
        work = world_work(place, encoder, num_references=num_references, pool_size=pool_size)[:examples]
        return _Prepared(model, work, encoder.pad_id, encoder)
    sizes = bench.SHAPES[shapes]
    model = bench.build_model(sizes, device=device, dtype=getattr(torch, dtype))
    num_examples = examples or DEFAULT_EXAMPLES
    work = bench.make_work(sizes, num_examples=num_examples, num_references=num_references, pool_size=pool_size)
    return _Prepared(model, work, bench.PAD, None)


def _alone(rows_of: "RowsOf", work: "Sequence[Pending]", rounds: int) -> tuple[Counter[Any], float]:
    """Return the products of an engine with its prefixes at hand, and its seconds, the median of the rounds."""
    from .operations import counting

    _finish(rows_of(work))
    with counting() as products:
        _finish(rows_of(work))
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        _finish(rows_of(work))
        times.append(time.perf_counter() - started)
    return products, statistics.median(times)


def _finish(rows: Iterator[Any]) -> None:
    """Take all rows and wait for the device."""
    import torch

    for _row in rows:
        pass
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _line(
    name: str, table: Mapping[str, list[Measured]], num_pairs: int, products: Mapping[str, Counter[Any]],
    padding: Mapping[str, float],
) -> dict[str, Any]:  # fmt: skip
    """Return one variant's line, with the operations a second of its products and the share of its tokens that pad."""
    from .operations import operations

    if name not in table:
        return {"name": name, **NOT_INSTALLED, "tflops": None, "padding": None}
    line = variant(name, table[name], table["naive"], num_pairs, "pairs/s")
    tflops = operations(products[name]) / line["seconds"] / 1e12 if name in products else None
    return {**line, "tflops": tflops, "padding": padding.get(name)}


def _as_text(told: Mapping[str, Any]) -> str:
    ceiling, kernel = told["ceiling"], told["kernel"]
    head = (
        f"{told['pairs']} pairs, {told['shapes']}, pool of {told['pool_size']}, {told['dtype']}, {told['device']}; "
        f"{ceiling['name']} {ceiling['rate']:.4g} TFLOP/s, the engine's own products {ceiling['own_products']:.4g}"
    )
    lines = [
        f"  {line['name']:14} {line['rate']:10.4g} pairs/s {line['ratio']:7.3g}x"
        + ("" if line["tflops"] is None else f" {line['tflops']:9.3g} TFLOP/s {line['padding']:7.1%} padding")
        for line in told["variants"]
        if line["rate"] is not None
    ]
    alone = (
        f"  shared-prefix alone, prefixes at hand: {kernel['pairs_per_s']:.4g} pairs/s, "
        f"{kernel['tflops']:.3g} TFLOP/s, "
        f"{kernel['share_of_own_products']:.0%} of its own products' rate"
    )
    return "\n".join([head, *lines, alone, f"  largest total variation from naive: {told['largest_variation']:.2g}"])
