"""`viker bench`: measure speed and size, each claim beside what it is compared with, in one process and one run.

`cache` writes the same rows as a teacher cache, `.npz`, `.npy` files to map, and Parquet, and reads them back: bytes a
row, decoded MB/s, and one example. Rows are seeded numbers, or those of a cache that is there, repeated to the size
asked for (compression sees at most 8192 rows at once, so repeating does not help it). What a teacher cache does and the
others do not (checks of every value, digests, fsync of each block) is part of its time. Variants take turns, and the
median of the rounds counts. Stored figures and their reading: `benchmarks/`.
"""

# N answer tokens, K kept

import json
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]

ROWS_PER_EXAMPLE = 40
DISTINCT_ROWS = 32768


class Measured(NamedTuple):
    """Seconds of one round of one variant, and the peak of resident memory meanwhile (None where it is not known)."""

    seconds: float
    peak_memory: int | None


@click.group()
def command() -> None:
    """Measure speed and size on this machine."""


@command.command()
@click.option("--rows", default=100_000, show_default=True, help="Rows to write and read.")
@click.option("--cache", metavar="KEY|PATH", help="Take the rows of this cache (default: seeded numbers).")
@click.option("--top-k", default=64, show_default=True, help="Seeded numbers: tokens kept a row.")
@click.option("--vocab-size", default=32064, show_default=True, help="Seeded numbers: width of the vocabulary.")
@click.option("--rounds", default=3, show_default=True, help="Rounds; the median of each variant counts.")
@click.option(
    "--folder", type=click.Path(path_type=Path, file_okay=False), help="Where to write (default: a temporary folder)."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def cache(
    rows: int, cache: str | None, top_k: int, vocab_size: int, rounds: int, folder: Path | None, as_json: bool
) -> None:
    """Compare a teacher cache with .npz, mapped .npy and Parquet: size, writing, loading, one example."""
    rows = max(ROWS_PER_EXAMPLE, rows // ROWS_PER_EXAMPLE * ROWS_PER_EXAMPLE)
    arrays, vocab_size, origin = _rows_of_cache(cache, rows) if cache else _seeded(rows, top_k, vocab_size)
    decoded = sum(array.nbytes for array in arrays.values())
    table: dict[str, list[Measured]] = {}
    with tempfile.TemporaryDirectory(dir=folder, prefix="viker-bench-") as scratch:
        for turn in range(rounds):
            sizes = _one_round(Path(scratch) / str(turn), arrays, vocab_size, table)
        disk = _disk_speed(Path(scratch), decoded)
    told = {
        "schema": "viker/bench/1", "what": "cache", "device": _device(), "rows": rows, "origin": origin,
        "rounds": rounds, "decoded_bytes": decoded,
        "ceiling": {"name": "write and fsync of the decoded bytes", "rate": disk, "unit": "MB/s"},
        "bytes_per_row": {name: round(size / rows, 1) for name, size in sizes.items()},
        "variants": [_cache_variant(name, table, decoded) for name in table],
    }  # fmt: skip
    click.echo(json.dumps(told, indent=2) if as_json else _as_text(told))


@command.command()
@click.option(
    "--shape", type=click.Choice(["mini", "long", "llava-7b"]), default="mini", show_default=True,
    help="Sizes of the model: the embedded benchmark's, a 581-token prefix on a CPU, LLaVA-1.5-7B.",
)  # fmt: skip
@click.option("--examples", default=64, show_default=True, help="Examples, each under its references.")
@click.option("--num-references", default=8, show_default=True, help="References an example.")
@click.option("--pool-size", type=int, help="Images to draw from, k for each example (default: one set of k for all).")
@click.option("--token-budget", default=4096, show_default=True, help="shared-prefix: suffix tokens a batch.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), default="float32", show_default=True,
              help="What the model computes in.")  # fmt: skip
@click.option("--rounds", default=3, show_default=True, help="Rounds; the median of each variant counts.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def precompute(
    shape: str, examples: int, num_references: int, pool_size: int | None, token_budget: int, dtype: str, rounds: int,
    as_json: bool,
) -> None:  # fmt: skip
    """Compare ways of computing a teacher's rows, from pictures and ids to a sealed cache."""
    import torch

    from . import precompute as bench

    device = "cuda" if torch.cuda.is_available() else "cpu"
    sizes = bench.SHAPES[shape]
    model = bench.build_model(sizes, device=device, dtype=getattr(torch, dtype))
    work = bench.make_work(
        sizes, num_examples=examples, num_references=num_references, pool_size=pool_size or num_references
    )
    variants: dict[str, bench.Variant] = {
        "naive": bench.naive,
        "batched-naive": bench.batched_naive,
        "shared-prefix": partial(bench.shared_prefix, token_budget=token_budget),
    }
    table: dict[str, list[Measured]] = {}
    with tempfile.TemporaryDirectory(prefix="viker-bench-") as scratch:
        for turn in range(rounds):
            for name, rows_of in variants.items():
                home = Path(scratch) / f"{name}-{turn}"
                _note(table, name, lambda: bench.make_cache(home, work, rows_of(model, work), sizes.vocab_size))  # noqa: B023 - run at once
    num_pairs = examples * num_references
    told = {
        "schema": "viker/bench/1", "what": "precompute", "device": _device(), "shape": shape, "pairs": num_pairs,
        "pool_size": pool_size or num_references, "dtype": dtype, "rounds": rounds, "ceiling": None,
        "largest_variation": bench.largest_variation(model, work, token_budget),
        "variants": [_variant(name, table[name], table["naive"], num_pairs, "pairs/s") for name in table]
        + [{"name": "vllm", "rate": None, "unit": "pairs/s", "ratio": None, "peak_memory": None}],
    }  # fmt: skip
    click.echo(json.dumps(told, indent=2) if as_json else _pairs_text(told))


def _pairs_text(told: Mapping[str, Any]) -> str:
    head = (
        f"{told['pairs']} pairs, shape {told['shape']}, pool of {told['pool_size']}, {told['dtype']}, {told['device']}"
    )
    lines = [
        f"  {variant['name']:14} {variant['rate']:10.4g} pairs/s {variant['ratio']:7.3g}x"
        for variant in told["variants"]
        if variant["rate"] is not None
    ]
    return "\n".join([head, *lines, f"  largest total variation from naive: {told['largest_variation']:.2g}"])


def _one_round(folder: Path, arrays: Arrays, vocab_size: int, table: dict[str, list[Measured]]) -> dict[str, int]:
    """Let every format write, open, load and give one example; return the bytes each takes."""
    from .cache import FORMATS

    sizes = {}
    for name, kind in FORMATS.items():
        place = folder / name
        place.mkdir(parents=True)
        prepared = kind.prepare(arrays, vocab_size, ROWS_PER_EXAMPLE)
        _note(table, f"write-{name}", partial(kind.write, place, prepared))
        sizes[name] = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
        _note(table, f"open-{name}", partial(kind.open, place))
        _note(table, f"load-{name}", partial(kind.load, kind.open(place)))
        opened = kind.open(place)
        kind.example(opened, 0, ROWS_PER_EXAMPLE)  # what is decoded on first use is loading, above
        middle = len(arrays["token/entropy"]) // 2 // ROWS_PER_EXAMPLE * ROWS_PER_EXAMPLE
        _note(table, f"example-{name}", partial(kind.example, opened, middle, ROWS_PER_EXAMPLE))
        shutil.rmtree(place)
    return sizes


def _note(table: dict[str, list[Measured]], name: str, act: Callable[[], Any]) -> None:
    """Run something and add its time and peak memory to a table."""
    _reset_peak()
    started = time.perf_counter()
    act()
    table.setdefault(name, []).append(Measured(time.perf_counter() - started, _peak()))


def _cache_variant(name: str, table: Mapping[str, list[Measured]], decoded: int) -> dict[str, Any]:
    """Return one line: decoded MB/s of writing and loading, times a second of the rest, and the ratio to the first."""
    verb = name.partition("-")[0]
    first = next(other for other in table if other.startswith(verb))
    amount, unit = (decoded / 1e6, "MB/s") if verb in ("write", "load") else (1, "1/s")
    return _variant(name, table[name], table[first], amount, unit)


def _variant(name: str, measured: list[Measured], first: list[Measured], amount: float, unit: str) -> dict[str, Any]:
    """Return one line of a table: how much a second, by the median round, and the ratio to the first variant."""
    seconds = statistics.median(one.seconds for one in measured)
    peaks = [one.peak_memory for one in measured if one.peak_memory is not None]
    return {
        "name": name, "rate": amount / seconds, "unit": unit,
        "ratio": statistics.median(one.seconds for one in first) / seconds, "seconds": seconds,
        "peak_memory": max(peaks) if peaks else None,
    }  # fmt: skip


def _rows_of_cache(name: str, rows: int) -> tuple[Arrays, int, str]:
    """Return a real cache's rows under their names, repeated to the size asked for."""
    from ..precompute.cache import TeacherCache
    from ..precompute.local import find_path

    opened = TeacherCache.open(find_path(name))
    rows_N = opened.load()
    stored = {
        "token/kept_id": rows_N.kept_ids_NK,
        "token/kept_logprob": rows_N.kept_logprobs_NK.astype(opened.fingerprint["storage"]["logprobs"]),
        "token/tail_logprob": rows_N.tail_logprob_N,
        "token/entropy": rows_N.entropy_N,
        "token/answer_logprob": rows_N.answer_logprob_N,
        "token/sum_squares": rows_N.sum_squares_N,
        "token/disagreement": rows_N.disagreement_N.astype(np.float16),
    }
    times = -(-rows // opened.num_rows)
    arrays = {name: np.concatenate([array] * times)[:rows] for name, array in stored.items()}
    return arrays, opened.vocab_size, f"{opened.num_rows} rows of cache {opened.key[:16]}, repeated"


def _seeded(rows: int, top_k: int, vocab_size: int) -> tuple[Arrays, int, str]:
    """Return seeded rows: ids uniform over the vocabulary (nothing compresses worse), values falling as models' do."""
    rng = np.random.default_rng(0)
    distinct = min(rows, DISTINCT_ROWS)
    logits_NK = -(rng.exponential(0.2, (distinct, top_k)).cumsum(1) + rng.exponential(0.5, (distinct, 1)))
    logits_NK -= np.log(np.exp(logits_NK).sum(1, keepdims=True) / 0.97)
    stored_NK = logits_NK.astype(np.float16)
    ids_NK = np.stack([rng.choice(vocab_size, top_k, replace=False) for _ in range(distinct)])
    order_NK = np.lexsort((ids_NK, -stored_NK.astype(np.float32)), axis=1)
    stored_NK = np.take_along_axis(stored_NK, order_NK, 1)
    probs_NK = np.exp(stored_NK.astype(np.float64))
    tail_N = np.maximum(1 - probs_NK.sum(1), 1e-9)
    entropy_N = -(probs_NK * stored_NK).sum(1) - tail_N * np.log(tail_N / max(1, vocab_size - top_k))
    answer_N1 = np.take_along_axis(stored_NK, rng.integers(0, top_k, (distinct, 1)), 1)
    arrays = {
        "token/kept_id": np.take_along_axis(ids_NK, order_NK, 1).astype("uint16" if vocab_size <= 65535 else "uint32"),
        "token/kept_logprob": stored_NK,
        "token/tail_logprob": np.log(tail_N).astype("f4"),
        "token/entropy": entropy_N.astype("f4"),
        "token/answer_logprob": answer_N1[:, 0].astype("f4"),
        "token/sum_squares": np.square(probs_NK).sum(1).astype("f4"),
        "token/disagreement": (rng.random(distinct) * 0.1).astype(np.float16),
    }
    times = -(-rows // distinct)
    return {name: np.concatenate([array] * times)[:rows] for name, array in arrays.items()}, vocab_size, "seeded"


def _as_text(told: Mapping[str, Any]) -> str:
    head = f"{told['rows']} rows ({told['origin']}), {told['decoded_bytes'] / 1e6:.0f} MB decoded, {told['device']}"
    sizes = ", ".join(f"{name} {size}" for name, size in told["bytes_per_row"].items())
    lines = [
        f"  {variant['name']:18} {variant['rate']:12.4g} {variant['unit']:5} {variant['ratio']:8.3g}x "
        f"{variant['seconds'] * 1e3:10.3f} ms"
        for variant in told["variants"]
    ]
    disk = f"  disk               {told['ceiling']['rate']:12.4g} MB/s   (write and fsync)"
    return "\n".join([head, f"  bytes a row: {sizes}", *lines, disk])


def _disk_speed(folder: Path, num_bytes: int) -> float:
    content = os.urandom(1 << 20)
    started = time.perf_counter()
    with (folder / "disk").open("wb") as file:
        for _ in range(max(1, num_bytes >> 20)):
            file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return round(max(1, num_bytes >> 20) * 1.048576 / (time.perf_counter() - started), 1)


def _device() -> str:
    return f"{platform.processor() or platform.machine()}, {len(os.sched_getaffinity(0))} of {os.cpu_count()} cores"


def _reset_peak() -> None:
    """Let Linux count the peak of resident memory anew; elsewhere it is not known."""
    path = Path("/proc/self/clear_refs")
    if path.exists():
        path.write_text("5")


def _peak() -> int | None:
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    line = next((line for line in status.read_text().splitlines() if line.startswith("VmHWM")), None)
    return None if line is None else int(line.split()[1]) * 1024
