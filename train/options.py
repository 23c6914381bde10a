"""The options of `viker train`, by what they decide: the method, its rows, the steps, when to stop, what is kept."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

from ..data.example import DataError
from ..data.kinds import KINDS
from .methods import METHODS
from .trackers import TRACKERS

Command = TypeVar("Command", bound=Callable[..., Any])

OVERRIDABLE = ("weights",)  # fields of FIELD_RULES with this rule, named here to load no numpy
TRADE_OFFS = ("harmonic", "nearness")  # of `guards.py`, named here to load no torch


def _read_settings(_ctx: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, float]:
    """Return the numbers of `NAME=VALUE` by their names."""
    settings = {}
    for value in values:
        name, _, number = value.partition("=")
        try:
            settings[name] = float(number)
        except ValueError:
            raise click.BadParameter(f"expected NAME=NUMBER, found {value!r}.") from None
    return settings


_METHOD = (
    click.option(
        "--method", "method", multiple=True, default=["recommended"], show_default=True, metavar="NAME|FILE.py:NAME",
        help=f"{', '.join(METHODS)}, or your own (repeatable).",
    ),
    click.option("--lambda", "lambda_", type=float, help="Weight of the regularizer (default: the method's)."),
    click.option("--retain", type=float, help="Weight of the retain term (default: the method's)."),
    click.option(
        "--hp", "settings", multiple=True, metavar="NAME=NUMBER", callback=_read_settings,
        help="A number of the method, as --list-methods names it: beta=0.1 (repeatable).",
    ),
    click.option(
        "--regularizer", type=click.Choice(["kl", "jsd", "cosine", "none"]),
        help="Another distance to the forget rows (cosine: over kept tokens), or none (ablation without Reg).",
    ),
    click.option(
        "--ascent", type=click.Choice(["uniform", "adaptive", "none"]),
        help="Another ascent, weighted by 1 - R(y), or none (ablation without GA).",
    ),
    click.option(
        "--token-lambda", type=click.Choice(["constant", "entropy"]), default="constant", show_default=True,
        help="entropy: each token's lambda times exp(-H) of its row, 1 where the teacher is certain.",
    ),
)  # fmt: skip
_ROWS = (
    click.option(
        "--teacher", type=click.Choice(KINDS),
        help="Other rows of the forget examples than the method's (self: ablation without Vis).",
    ),
    click.option(
        "--teacher-from", type=click.Choice(["cache", "online"]), default="cache", show_default=True,
        help="online: run the teacher in every step, by taking the adapter off; slow, exact.",
    ),
    click.option("--pool", metavar="DIR|NAME", help="online, --spot-check: the images that references are drawn from."),
    click.option(
        "--num-references", type=click.IntRange(min=1),
        help="online: images averaged an answer (default: 8, of noise 1).",
    ),
    click.option("--shared-references", is_flag=True, help="online: one set of references for every example."),
    click.option("--draw-seed", default=0, show_default=True, help="online: seed of the draw of references."),
    click.option("--instruction", metavar="TEXT|FILE", help="prompt, noise: what the rows' teacher was told."),
    click.option("--top-k", default=64, show_default=True, help="Kept tokens a row that the loss sees."),
    click.option("--cache", "cache", multiple=True, metavar="PATH|KEY|URL", help="Read this cache (repeatable)."),
    click.option(
        "--spot-check", default=0, show_default=True,
        help="Run the teacher on so many examples first, and compare with the cached rows.",
    ),
    click.option(
        "--override", multiple=True, type=click.Choice(OVERRIDABLE),
        help="Let this field of the cache differ from the student's, and record both: weights, where the teacher is an "
        "ancestor of the student (a second deletion request).",
    ),
)  # fmt: skip
_STEPS = (
    click.option("--num-train-epochs", default=1.0, show_default=True, help="Passes over the forget examples."),
    click.option("--per-device-train-batch-size", default=2, show_default=True, help="Examples a forward pass."),
    click.option("--gradient-accumulation-steps", default=1, show_default=True, help="Forward passes a step."),
    click.option(
        "--group-by-image/--sample-examples", default=False, show_default=True,
        help="Draw images, then questions, and run an image once for its questions of a forward pass.",
    ),
    click.option(
        "--group-size", type=click.IntRange(min=0), default=0, show_default=True,
        help="--group-by-image: questions of one image behind one copy of it, at most (0: all of a forward pass); on "
        "a CPU 4 is fastest.",
    ),
    click.option(
        "--row-length", type=click.IntRange(min=0), default=0, show_default=True,
        help="--group-by-image: let images share rows of the batch of so many tokens (0: of the longest image's "
        "questions); less padding, more attention.",
    ),
    click.option("--learning-rate", default=5e-6, show_default=True, help="Peak of a linear schedule."),
    click.option("--weight-decay", default=0.0, show_default=True, help="AdamW weight decay."),
    click.option("--warmup-ratio", default=0.0, show_default=True, help="Share of the steps spent warming up."),
    click.option("--max-grad-norm", default=1.0, show_default=True, help="Gradients are clipped to this norm."),
    click.option("--lora-r", default=8, show_default=True, help="LoRA rank."),
    click.option("--lora-alpha", default=16, show_default=True, help="LoRA alpha."),
    click.option("--lora-dropout", default=0.0, show_default=True, help="LoRA dropout."),
    click.option("--bf16", is_flag=True, help="Load the model and compute in bfloat16."),
    click.option(
        "--quantization", type=click.Choice(["int8", "nf4"]),
        help="QLoRA: load the model's linear layers in 8 or 4 bits (bitsandbytes); the adapter stays in full.",
    ),
    click.option("--gradient-checkpointing", is_flag=True, help="Trade time for memory."),
    click.option("--seed", default=0, show_default=True, help="Seed of order and LoRA weights."),
    click.option("--limit", type=int, help="Only so many forget examples (smoke runs)."),
    click.option(
        "--skip-text", is_flag=True, help="reference, noise: leave out examples without an image, as precompute did."
    ),
)  # fmt: skip
_STOPPING = (
    click.option("--key-entropy", default=1.0, show_default=True, help="Nats above which a row is a key token's."),
    click.option(
        "--stop/--no-stop", default=True, show_default=True,
        help="Stop when key tokens are as unlikely as the teacher has them.",
    ),
    click.option(
        "--evaluate-every", default=0, show_default=True,
        help="Measure and keep a snapshot every so many steps (0: never).",
    ),
    click.option(
        "--evaluate-people", default=12, show_default=True, help="Retain people a half measured at each point."
    ),
    click.option(
        "--min-retain", type=click.FloatRange(0, 1), metavar="SHARE",
        help="End the run (exit 4) where held-out retain people keep less than this share of their ROUGE-L.",
    ),
    click.option(
        "--max-repetition", type=click.FloatRange(0, 1), metavar="SHARE",
        help="End the run (exit 4) where more trigrams of replies about them repeat than before, by this much.",
    ),
    click.option(
        "--keep-best", type=click.Choice(TRADE_OFFS),
        help="Keep the measured point with the best trade-off of forgotten and kept, not the last step.",
    ),
)  # fmt: skip
_OUTPUT = (
    click.option(
        "--save-steps",
        default=100,
        show_default=True,
        type=click.IntRange(0),
        help="Save the run every so many steps, to go on from after a kill (0: only when it is interrupted).",
    ),
    click.option(
        "--resume/--no-resume",
        default=True,
        show_default=True,
        help="Go on from what an interrupted run of the same options saved.",
    ),
    click.option(
        "--report-to",
        type=click.Choice(TRACKERS),
        default="none",
        show_default=True,
        help="Show the run's numbers in TensorBoard (files in the adapter's directory) or Weights & Biases.",
    ),
    click.option(
        "--diagnose",
        is_flag=True,
        help="Measure token weights, entropy classes and key words before and after; writes diagnose.jsonl, which "
        "holds answers.",
    ),
    click.option(
        "--diagnose-examples",
        type=click.IntRange(min=1),
        default=32,
        show_default=True,
        help="--diagnose: forget examples looked at, at most.",
    ),
    click.option("--list-methods", is_flag=True, help="Print the methods and end."),
    click.option("--json", "as_json", is_flag=True, help="With --list-methods: print JSON."),
    click.option("--overwrite", is_flag=True, help="Train again where an adapter is complete."),
    click.option("--dry-run", is_flag=True, help="Say what would be trained."),
)


def train_options(command: Command) -> Command:
    """Add every option of training but those that name a run, a source and a model."""
    for option in reversed((*_METHOD, *_ROWS, *_STEPS, *_STOPPING, *_OUTPUT)):
        command = option(command)
    return command


def require_points(options: dict[str, Any]) -> None:
    """Raise `DataError` where something looks at points along the run and none are measured."""
    looks = [
        f"--{name.replace('_', '-')}"
        for name in ("min_retain", "max_repetition", "keep_best")
        if options[name] is not None
    ]
    if looks and not options["evaluate_every"]:
        raise DataError(
            f"{looks[0]}: expected points to look at, found --evaluate-every 0. Name the steps between points."
        )
