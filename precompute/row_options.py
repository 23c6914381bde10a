"""Options of the commands that compute rows: whose questions, and how."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

SPLITS = ("forget", "retain", "retain-seen", "all")

split_option = click.option(
    "--split",
    type=click.Choice(SPLITS),
    default="forget",
    show_default=True,
    help="Whose training questions get rows.",
)


instruction_option = click.option(
    "--instruction",
    metavar="TEXT|FILE",
    help="prompt, noise: what the teacher reads before each question (default for prompt: to ignore private facts; for "
    "noise: nothing). No cache keeps its text, so that one of your own is named again to add or check rows.",
)


def computing_options(command: Command) -> Command:
    """Add the options of how rows are computed and summed up."""
    for option in reversed(_COMPUTING):
        command = option(command)
    return command


_COMPUTING = (
    click.option(
        "--engine",
        type=click.Choice(["shared-prefix", "naive", "vllm"]),
        default="shared-prefix",
        show_default=True,
        help="How rows are computed.",
    ),
    click.option(
        "--token-budget",
        type=click.IntRange(min=1),
        help="shared-prefix: suffix tokens a batch. Default: what the cache was begun with; for a new one 4096 on a "
        "CPU and with --deterministic, else the fastest of a few that are tried.",
    ),
    click.option(
        "--deterministic",
        is_flag=True,
        help="Same bytes on every GPU of one model, at a price in speed; on a CPU they are the same anyway.",
    ),
    click.option(
        "--torch-compile/--no-torch-compile",
        default=False,
        help="shared-prefix: compile the text layers first, for large caches on a GPU; on a CPU it does not pay.",
    ),
    click.option(
        "--vllm-listed",
        type=click.IntRange(min=1),
        metavar="N",
        help="vllm: ask for the N likeliest tokens an image, and for the whole vocabulary only where their bounds "
        "leave a row open (default: the whole vocabulary).",
    ),
    click.option(
        "--vllm-option",
        multiple=True,
        metavar="NAME=VALUE",
        help="vllm: enforce_eager, gpu_memory_utilization, max_model_len, max_num_batched_tokens, max_num_seqs or "
        "tensor_parallel_size; repeatable.",
    ),
    click.option(
        "--key-entropy",
        default=1.0,
        show_default=True,
        help="Nats above which a token counts as a key token in the summary.",
    ),
    click.option(
        "--skip-text",
        is_flag=True,
        help="reference, noise: leave out examples without an image, and say how many.",
    ),
    click.option("--limit", type=int, help="Only so many examples (smoke runs)."),
)
