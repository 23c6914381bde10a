"""The options of `viker evaluate`, by what they decide: whom, what is asked, how, what is attacked and judged."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from ..data.options import config_option, model_options, source_options
from .attacks.attacks import ATTACKS
from .protocols.every import CORRECTIONS

Command = TypeVar("Command", bound=Callable[..., Any])

TASKS = ("classification", "cloze", "generation", "captioning", "recognition")
_PATH = click.Path(path_type=Path)

_WHOM = (
    click.option("--run", type=_PATH, help="Evaluate this run's models; evaluations go to RUN/evaluations."),
    click.option(
        "--target", "target", multiple=True, metavar="NAME",
        help="With --run: only these (vanilla, retain-only, an adapter's name).",
    ),
    click.option("--output", type=_PATH, help="Where the evaluation of --model goes (without --run)."),
    source_options,
    model_options,
)  # fmt: skip
_ASKED = (
    click.option(
        "--protocol", type=click.Choice(["fixed", "official"]), default="fixed", show_default=True,
        help="fixed: every known mistake of the published code corrected; official: none, but seeded.",
    ),
    click.option(
        "--as-published", multiple=True, type=click.Choice(list(CORRECTIONS)),
        help="fixed, but for this correction, to see its effect (repeatable; --list-corrections explains them).",
    ),
    click.option(
        "--style", type=click.Choice(["official", "plain"]), default="official", show_default=True,
        help="The protocol's instructions, or the bare question (--protocol official has its own).",
    ),
    click.option(
        "--task", "task", multiple=True, type=click.Choice(TASKS), default=TASKS, show_default=True,
        help="Which tasks, of those the source has (repeatable).",
    ),
    click.option(
        "--few-shot", type=click.IntRange(0),
        help="Answered questions of so many people in front (default: none; official: as published, 1 and 2).",
    ),
    click.option(
        "--real", type=click.Choice(["all", "heldout"]), default="all", show_default=True,
        help="heldout: without the celebrities that are references.",
    ),
    click.option(
        "--controls", metavar="DIR|ID", help="Ask about these people too, whom no model here was trained on."
    ),
    click.option("--max-new-tokens", default=50, show_default=True, type=click.IntRange(1), help="Longest reply."),
    click.option(
        "--seed", default=0, show_default=True,
        help="Seed of the intervals and of what the official code leaves to chance.",
    ),
    click.option("--limit", type=click.IntRange(1), help="Only so many people a split."),
)  # fmt: skip
_MEASURED = (
    click.option(
        "--gradient-norm/--no-gradient-norm", default=False, show_default=True,
        help="For membership inference: a backward pass an answer about forget people and controls.",
    ),
    click.option(
        "--fluency/--no-fluency", default=True, show_default=True,
        help="Ask vanilla how likely every reply is (the run's, or --vanilla).",
    ),
    click.option("--vanilla", metavar="DIR|ID", help="The model before unlearning, where no --run says it."),
    click.option(
        "--gibberish", metavar="DIR|ID", help="A classifier of gibberish: its P(clean) of every reply is scored."
    ),
    click.option("--gibberish-revision", help="Branch, tag or commit of a hub classifier."),
    click.option(
        "--gibberish-max-length", default=64, show_default=True, type=click.IntRange(1),
        help="Tokens of a reply that the classifier reads; what is longer is cut, and counted.",
    ),
)  # fmt: skip
_HOW = (
    click.option(
        "--batch-size", default=32, show_default=True, type=click.IntRange(1),
        help="Questions a batch; halved when memory runs out.",
    ),
    click.option(
        "--processes", default=1, show_default=True, type=click.IntRange(1),
        help="Local processes, each with the model; with as many threads each, the answers are the same.",
    ),
    click.option(
        "--engine", type=click.Choice(["transformers", "vllm"]), default="transformers", show_default=True,
        help="What generates replies; likelihoods are always transformers'.",
    ),
    click.option(
        "--vllm-option", "vllm_options", multiple=True, metavar="NAME=VALUE", help="Passed to vLLM (repeatable)."
    ),
)  # fmt: skip
_JUDGED = (
    click.option(
        "--attacks", "attacks", multiple=True, type=click.Choice(["all", *ATTACKS]), metavar="NAME",
        help=f"Try to undo it: all, {', '.join(ATTACKS)} (repeatable).",
    ),
    click.option(
        "--attack-people", default=8, show_default=True, type=click.IntRange(1),
        help="Retain people and controls that attacked models are asked about.",
    ),
    click.option("--attack-seed", default=0, show_default=True, help="Seed of what attacks draw."),
    click.option(
        "--relearn-epochs", default=1.0, show_default=True, type=click.FloatRange(0, min_open=True),
        help="Relearning: passes over the training questions of those who are learned again.",
    ),
    click.option(
        "--relearn-learning-rate", default=2e-5, show_default=True, type=click.FloatRange(0, min_open=True),
        help="Relearning: its learning rate.",
    ),
    click.option(
        "--relearn-share", default=1 / 3, show_default="1/3", type=click.FloatRange(0, 1, min_open=True, max_open=True),
        help="Relearning: the share of the forget people who are learned again; the others are asked.",
    ),
    click.option(
        "--policy", type=click.Path(path_type=Path, exists=True, dir_okay=False),
        help="Thresholds, fixed before the run: exit code 4 where an adapter fails them.",
    ),
    click.option(
        "--compare", nargs=2, multiple=True, metavar="A B",
        help="Compare two evaluations pair by pair (directories, or names in --run; several worlds: A1,A2 B1,B2).",
    ),
    click.option(
        "--effects", multiple=True, metavar="NAME=DIR",
        help="Table of what corrections change: evaluations by variant (fixed=DIR, official=DIR, CORRECTION=DIR).",
    ),
    click.option(
        "--compare-metric", "compare_metrics", multiple=True, metavar="NAME",
        help="With --compare: test only these, chosen before looking (repeatable; fewer tests lose less to Holm).",
    ),
)  # fmt: skip
_WHAT = (
    click.option("--list-attacks", is_flag=True, help="Say what each attack does."),
    click.option("--list-corrections", is_flag=True, help="Say what each correction corrects."),
    click.option("--rescore", is_flag=True, help="Score the kept answers again; no model is loaded."),
    click.option("--overwrite", is_flag=True, help="Ask again where an evaluation with other options is complete."),
    click.option("--dry-run", is_flag=True, help="Say what would be asked."),
    click.option("--json", "as_json", is_flag=True, help="Print lists, comparisons and verdicts as JSON."),
    config_option,
)

NOT_PROTOCOL = (
    "run", "output", "target", "overwrite", "dry_run", "rescore", "device", "batch_size", "as_json", "model",
    "processes", "attacks", "attack_people", "attack_seed", "relearn_epochs",
    "relearn_learning_rate", "relearn_share", "policy", "compare", "compare_metrics", "effects", "vanilla",
    "list_attacks", "list_corrections",
)  # fmt: skip


def evaluate_options(command: Command) -> Command:
    """Add everything `viker evaluate` takes."""
    for option in reversed((*_WHOM, *_ASKED, *_MEASURED, *_HOW, *_JUDGED, *_WHAT)):
        command = option(command)
    return command
