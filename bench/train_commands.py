"""`viker bench train`: samples a second of unlearning with the teacher in the loop and with cached rows.

A first, untimed pass over the examples warms each variant up and takes its loss, which must be the others'; a second
one counts the products it runs. Timed passes follow, variants in turn. Beside them stand the device's rate in one big
square product and in the very products of the fastest variant, forward and backward. A variant that does not fit into
the device's memory has no rate.
"""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .rounds import device_name, variant

if TYPE_CHECKING:
    from .train import Raced
    from .train_work import Prepared

DEFAULTS = {
    "mini": {"examples": 72, "batch": 12},  # all six forget people's
    "long": {"examples": 14, "batch": 14},
    "llava-7b": {"examples": 56, "batch": 14},
}
AT_LEAST_ONE = click.IntRange(min=1)
NO_ROOM = {"rate": None, "unit": "samples/s", "ratio": None, "seconds": None, "peak_memory": None, "tflops": None}


@click.command()
@click.option(
    "--shapes", type=click.Choice(list(DEFAULTS)), default="mini", show_default=True,
    help="The embedded benchmark, or sizes of a model with seeded weights and examples: a 581-token prefix for a CPU, "
    "LLaVA-1.5-7B (GPU only).",
)  # fmt: skip
@click.option("--examples", type=AT_LEAST_ONE, help="Examples (default: all 72 of mini, 14 of long, 56 of llava-7b).")
@click.option("--batch", type=AT_LEAST_ONE, help="Examples a step (default: 12 of mini, else 14).")
@click.option("--grouped-batch", type=AT_LEAST_ONE, help="The same of grouped variants, which hold more (--batch).")
@click.option("--num-references", type=AT_LEAST_ONE, default=8, show_default=True, help="References an example.")
@click.option("--pool-size", type=AT_LEAST_ONE, help="Images to draw k from for each example (default: one set of k).")
@click.option("--top-k", type=AT_LEAST_ONE, default=64, show_default=True, help="Cached rows: tokens kept, in float16.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), default="float32", show_default=True,
              help="What the model computes in.")  # fmt: skip
@click.option("--gradient-checkpointing", is_flag=True, help="Trade time for memory.")
@click.option("--steps", type=AT_LEAST_ONE, default=1, show_default=True,
              help="Timed steps a round, at least: passes over all examples are taken.")  # fmt: skip
@click.option("--rounds", type=AT_LEAST_ONE, default=3, show_default=True,
              help="Rounds; the median of each variant counts.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def train(shapes: str, steps: int, rounds: int, as_json: bool, **options: Any) -> None:
    """Compare training with a live teacher and with cached rows, the questions of an image apart and together."""
    import torch

    from .train import race

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if shapes == "llava-7b" and device == "cpu":
        raise click.UsageError("--shapes llava-7b: expected a GPU, found none. On a CPU, name mini or long.")
    with tempfile.TemporaryDirectory(prefix="viker-bench-") as scratch:
        prepared, sizes = _prepare(shapes, Path(scratch), device, options)
    passes = max(1, -(-steps * sizes["batch"] // sizes["examples"]))
    raced = race(
        prepared, top_k=sizes["top_k"], batch_size=sizes["batch"], grouped_batch_size=sizes["grouped_batch"],
        num_rounds=rounds, passes_a_round=passes,
    )  # fmt: skip
    told = {
        "schema": "viker/bench/1", "what": "train", "device": _device(device), "shapes": shapes, **sizes,
        "samples": passes * sizes["examples"], "rounds": rounds,
        **_compared(raced, passes, sizes["examples"], device, prepared.model.dtype),
    }  # fmt: skip
    click.echo(json.dumps(told, indent=2) if as_json else _as_text(told))


def _prepare(shapes: str, place: Path, device: str, options: Mapping[str, Any]) -> tuple["Prepared", dict[str, Any]]:
    """Build a student and its examples, and fill in what the options left open."""
    import torch

    from ..train.open_student import checkpoint_layers
    from . import train_work
    from .precompute import SHAPES

    num_examples, batch = (options[name] or default for name, default in DEFAULTS[shapes].items())
    references = options["num_references"]
    drawn = {"num_references": references, "pool_size": options["pool_size"] or references}
    if shapes == "mini" and num_examples > DEFAULTS[shapes]["examples"]:
        raise click.UsageError(f"--examples {num_examples}: expected at most {DEFAULTS[shapes]['examples']} of mini.")
    if shapes == "mini":
        prepared = train_work.prepare_mini(place, device=device, dtype=options["dtype"], **drawn)
    else:
        dtype = getattr(torch, options["dtype"])
        prepared = train_work.prepare_seeded(
            SHAPES[shapes], device=device, dtype=dtype, num_examples=num_examples, **drawn
        )
    if options["gradient_checkpointing"]:
        checkpoint_layers(prepared.model)
    sizes = {"examples": num_examples, "batch": batch, "grouped_batch": options["grouped_batch"] or batch}
    return prepared._replace(items=prepared.items[:num_examples]), {**options, **sizes, **drawn}


def _compared(raced: "Raced", passes: int, num_examples: int, device: str, dtype: Any) -> dict[str, Any]:
    """Return losses, ceiling, ratios and a line a variant."""
    from . import operations
    from . import train as bench

    size, square = operations.square_rate(device, dtype)
    fastest = raced.products.get(bench.BEST)
    own = operations.product_rate(fastest, device, dtype) if fastest else None
    lines = [_line(name, raced, passes, num_examples, square) for name in bench.VARIANTS]
    return {
        "loss": raced.loss_told(),
        "ceiling": {
            "name": f"matmul {size}^3", "rate": square / 1e12, "unit": "TFLOP/s",
            "own_products": None if own is None else own / 1e12,
        },
        "ratios": [_ratio(one, other, lines) for one, other in bench.RATIOS],
        "variants": [{**line, "includes": bench.VARIANTS[line["name"]].includes} for line in lines],
    }  # fmt: skip


def _line(name: str, raced: "Raced", passes: int, num_examples: int, square: float) -> dict[str, Any]:
    """Return one variant's line, with the operations a second of its products and their share of the ceiling."""
    from .operations import operations
    from .train import FIRST

    if name not in raced.table:
        return {"name": name, **NO_ROOM, "share_of_ceiling": None}
    first = raced.table.get(FIRST)
    line = variant(name, raced.table[name], first or raced.table[name], passes * num_examples, "samples/s")
    rate = passes * operations(raced.products[name]) / line["seconds"]
    return {
        **line, "ratio": line["ratio"] if first else None, "tflops": rate / 1e12, "share_of_ceiling": rate / square
    }  # fmt: skip


def _ratio(one: str, other: str, lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    rates = {line["name"]: line["rate"] for line in lines}
    known = rates[one] is not None and rates[other] is not None
    return {"of": one, "against": other, "ratio": rates[one] / rates[other] if known else None}


def _device(device: str) -> str:
    """Return the GPU that computes, else the processor."""
    import torch

    return torch.cuda.get_device_name() if device == "cuda" else device_name()


def _as_text(told: Mapping[str, Any]) -> str:
    ceiling, loss = told["ceiling"], told["loss"]
    own = "not run" if ceiling["own_products"] is None else f"{ceiling['own_products']:.4g}"
    head = (
        f"{told['examples']} examples, {told['shapes']}, {told['batch']} a step ({told['grouped_batch']} grouped), "
        f"{told['num_references']} references of {told['pool_size']}, {told['dtype']}, {told['device']}; "
        f"{ceiling['name']} {ceiling['rate']:.4g} TFLOP/s, the products of cached-grouped {own}"
    )
    ratios = [
        f"  {one['of']} / {one['against']}: " + ("not known" if one["ratio"] is None else f"{one['ratio']:.3g}x")
        for one in told["ratios"]
    ]
    losses = (
        f"  loss {loss['mean']:.4f}; largest difference {loss['largest_difference']:.2g}, of rows stored as top "
        f"{told['top_k']} in float16 {loss['stored_difference']:.2g}"
    )
    lines = [text for line in told["variants"] for text in (_line_as_text(line), f"    {line['includes']}")]
    return "\n".join([head, *ratios, losses, *lines])


def _line_as_text(line: Mapping[str, Any]) -> str:
    if line["rate"] is None:
        return f"  {line['name']:30} out of memory"
    ratio = "" if line["ratio"] is None else f"{line['ratio']:.3g}x"
    memory = "" if line["peak_memory"] is None else f"{line['peak_memory'] / 2**30:.2f} GiB"
    return (
        f"  {line['name']:30} {line['rate']:8.4g} samples/s {ratio:>7} {line['tflops']:9.3g} TFLOP/s "
        f"{line['share_of_ceiling']:6.1%} of the ceiling {memory:>10}"
    )
