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


def computing_options(command: Command) -> Command:
    """Add the options of how rows are computed and summed up."""
    for option in reversed(_COMPUTING):
        command = option(command)
    return command


_COMPUTING = (
    click.option(
        "--engine",
        type=click.Choice(["shared-prefix", "naive"]),
        default="shared-prefix",
        show_default=True,
        help="How rows are computed.",
    ),
    click.option("--token-budget", default=4096, show_default=True, help="shared-prefix: suffix tokens a batch."),
    click.option(
        "--key-entropy",
        default=1.0,
        show_default=True,
        help="Nats above which a token counts as a key token in the summary.",
    ),
    click.option("--skip-text", is_flag=True, help="reference: leave out examples without an image, and say how many."),
    click.option("--limit", type=int, help="Only so many examples (smoke runs)."),
)
