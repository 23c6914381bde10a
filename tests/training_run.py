"""A small unlearning run through the command line, what it leaves, and how to break it off."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from viker.train.journal import Journal

if TYPE_CHECKING:
    import signal
    from pathlib import Path

    import pytest
    from viker.train.step_log import StepLog

NUM_STEPS = 6  # of `line`: six examples, two a step, two epochs
RESULTS = ("adapter_model.safetensors", "training_log.jsonl", "trajectory.jsonl")


class Killed(BaseException):
    """Ends a run without giving it a chance to do anything about it."""


def line(data: Path, model: Path, output: Path, *options: object) -> list[object]:
    """A run that needs no rows, and has everything a checkpoint must hold: a mask, dropout, a retain term."""
    return [
        "train", "--data", data, "--model", model, "--output", output, "--method", "mmunlearner", "--limit", 6,
        "--num-train-epochs", 2, "--per-device-train-batch-size", 2, "--lora-dropout", 0.3, "--learning-rate", 1e-3,
        "--no-stop", *options,
    ]  # fmt: skip


def results(output: Path) -> dict[str, bytes]:
    """What a run is for, byte for byte."""
    return {name: (output / name).read_bytes() for name in RESULTS if (output / name).is_file()}


def checkpoints(output: Path) -> list[str]:
    folder = output / "checkpoint"
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def measure_weights(*_: Any) -> Any:
    """In place of replies, which take seconds: a number that any change of the weights changes."""

    def measure(model: Any, encoder: Any) -> dict[str, float]:
        import torch

        torch.rand(7)  # measuring may draw random numbers
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        value = float(sum(weight.detach().double().abs().sum() for weight in weights))
        return {"weights": value, "retain_heldout_rougeL": 1.0, "retain_heldout_repetition": 0.0}

    return measure


def after_step(monkeypatch: pytest.MonkeyPatch, step: int, act: Any) -> None:
    """Do something once a step's line is written."""
    write = Journal.write

    def writing(self: Journal, log: StepLog) -> None:
        write(self, log)
        if log.step == step:
            act()

    monkeypatch.setattr(Journal, "write", writing)


def kill() -> None:
    raise Killed


def send(number: signal.Signals) -> Any:
    return lambda: os.kill(os.getpid(), number)
