"""`viker bench evaluate`: questions a second of the published loop and of the product's own way, answers compared.

Both ask one model the same questions in one process. A round asks the loop's questions in parts, and all of them the
product's way before each part, so that whatever else the machine does meets both alike; medians of the rounds count.
Beside them stands the rate at which this device does the very matrix products of the second, alone. Processor seconds
are told too: on a machine that others use they say more than a clock.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .rounds import Measured, device_name, note, variant

if TYPE_CHECKING:
    from .evaluate import Asked, Identical, Said

PARTS = 4
AT_LEAST_ONE = click.IntRange(min=1)


class Clock:
    """Rounds of both sides: seconds, processor seconds and peak memory of each."""

    def __init__(self) -> None:
        self.table: dict[str, list[Measured]] = {}
        self.processor: dict[str, list[float]] = {}

    def time(self, name: str, act: Callable[[], Any]) -> Any:
        """Run something under a name, and return what it does."""
        import torch

        found: list[Any] = []
        on_gpu = torch.cuda.is_available()
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        started = time.process_time()
        note(self.table, name, lambda: found.append(act()))
        self.processor.setdefault(name, []).append(time.process_time() - started)
        if on_gpu:
            self.table[name][-1] = self.table[name][-1]._replace(peak_memory=torch.cuda.max_memory_allocated())
        return found[0]

    def join(self, name: str, count: int) -> None:
        """Make one of the last so many measurements of a name: their sum."""
        last, self.table[name][-count:] = self.table[name][-count:], []
        peaks = [one.peak_memory for one in last if one.peak_memory is not None]
        self.table[name].append(Measured(sum(one.seconds for one in last), max(peaks, default=None)))
        self.processor[name][-count:] = [sum(self.processor[name][-count:])]


@click.command()
@click.option("--model", help="A model to ask, as a run's vanilla (default: one taught in half a minute).")
@click.option("--data", help="Its data; goes with --model.")
@click.option("--people", type=AT_LEAST_ONE, default=6, show_default=True,
              help="Forget people, and as many retain people, whose questions are asked.")  # fmt: skip
@click.option("--batch-size", type=AT_LEAST_ONE, default=512, show_default=True, help="viker: questions a batch.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), default="float32", show_default=True,
              help="What the model computes in.")  # fmt: skip
@click.option("--rounds", type=AT_LEAST_ONE, default=3, show_default=True,
              help="Rounds; the median of each variant counts.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def evaluate(
    model: str | None, data: str | None, people: int, batch_size: int, dtype: str, rounds: int, as_json: bool
) -> None:
    """Compare asking a model by MLLMU-Bench's own loop and by Viker: the same questions, the same answers."""
    import torch

    from .evaluate import OFFICIAL_TOKENS, open_run, teach_quickly

    if (model is None) != (data is None):
        raise click.UsageError("bench evaluate: expected --model and --data together, found one of them.")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory(prefix="viker-bench-") as scratch:
        if model is None or data is None:
            asked = teach_quickly(Path(scratch), people=people, device=device, dtype=dtype)
        else:
            asked = open_run(model, data, people=people, device=device, dtype=dtype)
        told = {
            "schema": "viker/bench/1", "what": "evaluate",
            "device": torch.cuda.get_device_name() if device == "cuda" else device_name(),
            "threads": torch.get_num_threads(), "model": model or "quickly taught", "dtype": dtype,
            "questions": len(asked.questions), "max_new_tokens": OFFICIAL_TOKENS, "batch_size": batch_size,
            "rounds": rounds, **_measure(asked, batch_size, rounds, device),
        }  # fmt: skip
    click.echo(json.dumps(told, indent=2) if as_json else _as_text(told))


def _measure(asked: "Asked", batch_size: int, rounds: int, device: str) -> dict[str, Any]:
    """Warm both sides up, let them take turns, and return what is told of them."""
    from ..evaluate.work import run_jobs_here
    from . import evaluate as sides
    from .operations import counting, operations, product_rate

    clock, jobs = Clock(), sides.likelihood_jobs(asked)
    sides.official(asked, asked.prompts[:: len(asked.prompts) // 4 or 1])
    with counting() as products:
        ours = sides.viker(asked, batch_size)
    for _ in range(rounds):
        theirs = _round(asked, batch_size, clock)
        clock.time("likelihoods", lambda: run_jobs_here(
            jobs, asked.model, asked.encoder, batch_size=batch_size, desc="likelihood"
        ))  # fmt: skip
    alone = operations(products) / product_rate(products, device, asked.model.dtype)
    lines = [_line(name, clock, len(asked.questions)) for name in ("official", "viker")]
    return {
        "reply_tokens": statistics.fmean(said.num_tokens for said in theirs),
        "identical": _identical(sides.compare(asked, [said.reply for said in theirs], ours)),
        "ceiling": {
            "name": "the matrix products of viker alone", "rate": len(asked.questions) / alone, "unit": "questions/s"
        },
        "variants": lines,
        "likelihoods": _likelihoods(clock, len(jobs)),
    }  # fmt: skip


def _round(asked: "Asked", batch_size: int, clock: Clock) -> "list[Said]":
    """Ask everything by the published loop in parts, and by the product before each; return what the loop says."""
    from . import evaluate as sides

    size = -(-len(asked.prompts) // PARTS)
    parts = [asked.prompts[start : start + size] for start in range(0, len(asked.prompts), size)]
    replies: list[Said] = []
    for part in parts:
        clock.time("viker", lambda: sides.viker(asked, batch_size))
        replies += clock.time("official", lambda: sides.official(asked, part))  # noqa: B023 - run at once
    clock.join("official", len(parts))
    return replies


def _line(name: str, clock: Clock, num_questions: int) -> dict[str, Any]:
    line = variant(name, clock.table[name], clock.table["official"], num_questions, "questions/s")
    seconds = {other: statistics.median(clock.processor[other]) for other in (name, "official")}
    return {**line, "processor_seconds": seconds[name], "processor_ratio": seconds["official"] / seconds[name]}


def _likelihoods(clock: Clock, count: int) -> dict[str, Any]:
    """Return what the likelihoods cost that `viker evaluate` asks beside replies, and the ratio with them."""
    medians = {name: statistics.median(one.seconds for one in rounds) for name, rounds in clock.table.items()}
    return {
        "answers": count, "seconds": medians["likelihoods"],
        "ratio_with_them": medians["official"] / (medians["viker"] + medians["likelihoods"]),
    }  # fmt: skip


def _identical(found: "Identical") -> dict[str, Any]:
    same, of = found.letters + found.replies, found.of_letters + found.of_replies
    return {"answers": same, "of": of, **found._asdict()}


def _as_text(told: Mapping[str, Any]) -> str:
    identical, likelihoods, ceiling = told["identical"], told["likelihoods"], told["ceiling"]
    head = (
        f"{told['questions']} questions of {told['model']}, replies of {told['reply_tokens']:.1f} tokens, "
        f"{told['dtype']}, {told['device']}, {told['threads']} thread(s); {ceiling['name']} {ceiling['rate']:.4g} "
        f"{ceiling['unit']}"
    )
    lines = [
        f"  {line['name']:10} {line['rate']:8.4g} questions/s {line['ratio']:7.3g}x {line['seconds']:8.2f} s "
        f"{line['processor_seconds']:8.2f} s of processor {line['processor_ratio']:7.3g}x{_memory(line)}"
        for line in told["variants"]
    ]
    same = f"  identical answers: {identical['answers']} of {identical['of']}" + _others(identical["others"])
    beside = (
        f"  likelihoods of {likelihoods['answers']} options and answers, which only viker asks: "
        f"{likelihoods['seconds']:.2f} s, {likelihoods['ratio_with_them']:.3g}x with them"
    )
    return "\n".join([head, *lines, same, beside])


def _memory(line: Mapping[str, Any]) -> str:
    return "" if line["peak_memory"] is None else f" {line['peak_memory'] / 2**30:8.2f} GiB"


def _others(others: Sequence[str]) -> str:
    return f" (not {', '.join(others[:5])}{', ...' if len(others) > 5 else ''})" if others else ""
