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
import shutil
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from .evaluate_commands import evaluate
from .precompute_commands import precompute
from .rounds import Measured, device_name, note, variant
from .train_commands import train

Arrays = Mapping[str, NDArray[Any]]

ROWS_PER_EXAMPLE = 40
DISTINCT_ROWS = 32768


@click.group()
def command() -> None:
    """Measure speed and size on this machine."""


command.add_command(evaluate)
command.add_command(precompute)
command.add_command(train)


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
        "schema": "viker/bench/1", "what": "cache", "device": device_name(), "rows": rows, "origin": origin,
        "rounds": rounds, "decoded_bytes": decoded,
        "ceiling": {"name": "write and fsync of the decoded bytes", "rate": disk, "unit": "MB/s"},
        "bytes_per_row": {name: round(size / rows, 1) for name, size in sizes.items()},
        "variants": [_cache_variant(name, table, decoded) for name in table],
    }  # fmt: skip
    click.echo(json.dumps(told, indent=2) if as_json else _as_text(told))


def _one_round(folder: Path, arrays: Arrays, vocab_size: int, table: dict[str, list[Measured]]) -> dict[str, int]:
    """Let every format write, open, load and give one example; return the bytes each takes."""
    from .cache import FORMATS

    sizes = {}
    for name, kind in FORMATS.items():
        place = folder / name
        place.mkdir(parents=True)
        prepared = kind.prepare(arrays, vocab_size, ROWS_PER_EXAMPLE)
        note(table, f"write-{name}", partial(kind.write, place, prepared))
        sizes[name] = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
        note(table, f"open-{name}", partial(kind.open, place))
        note(table, f"load-{name}", partial(kind.load, kind.open(place)))
        opened = kind.open(place)
        kind.example(opened, 0, ROWS_PER_EXAMPLE)  # what is decoded on first use is loading, above
        middle = len(arrays["token/entropy"]) // 2 // ROWS_PER_EXAMPLE * ROWS_PER_EXAMPLE
        note(table, f"example-{name}", partial(kind.example, opened, middle, ROWS_PER_EXAMPLE))
        shutil.rmtree(place)
    return sizes


def _cache_variant(name: str, table: Mapping[str, list[Measured]], decoded: int) -> dict[str, Any]:
    """Return one line: decoded MB/s of writing and loading, times a second of the rest, and the ratio to the first."""
    verb = name.partition("-")[0]
    first = next(other for other in table if other.startswith(verb))
    amount, unit = (decoded / 1e6, "MB/s") if verb in ("write", "load") else (1, "1/s")
    return variant(name, table[name], table[first], amount, unit)


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
