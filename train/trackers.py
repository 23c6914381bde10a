"""`--report-to`: a run's numbers in TensorBoard or Weights & Biases, through accelerate.

accelerate leaves out a tracker whose package is missing without a word; here that is an error before anything heavy is
loaded. Imports nothing heavy. What is reported is `journal.py`'s.
"""

import importlib.util
from collections.abc import Mapping
from typing import Any

from ..data.example import DataError

TRACKERS = ("none", "tensorboard", "wandb")
PROJECT = "viker"
FOLDER = "tracking"  # in the adapter's directory: event files of TensorBoard
_PACKAGES = {"tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",)}


def require_tracker(name: str) -> None:
    """Raise `DataError` where the package of a tracker is not installed."""
    packages = _PACKAGES.get(name, ())
    if packages and not any(importlib.util.find_spec(package) for package in packages):
        raise DataError(
            f"--report-to {name}: expected the package {packages[0]}, found none. Install it (pip install "
            f"{packages[0]}), or leave the option out: training_log.jsonl has the same numbers."
        )


def reported_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that a tracker can show beside a run: numbers, words and switches."""
    return {name: value for name, value in options.items() if isinstance(value, bool | int | float | str)}
