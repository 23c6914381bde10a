"""Points along a run: what is forgotten and what is left every so many steps, with a snapshot of the weights at each.

Measuring is evaluation's business and arrives as a function; which point is kept, and when a guard ends the run, is
`guards.py`'s. Measuring leaves random numbers as they were: a run takes the same steps whether it is measured or not.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from ..models.encode import Encoder
from .line_files import append_line, read_lines, sync_tree

Point = dict[str, Any]
Measure = Callable[[Any, Encoder], dict[str, Any]]
FILE = "trajectory.jsonl"


class Trajectory:
    """Keeps points and snapshots of a run in its directory, beginning with the model as it was."""

    def __init__(self, model: Any, encoder: Encoder, output: Path, *, every: int, measure: Measure | None) -> None:
        """Measure every `every` steps (0: never); `measure` is None on processes that only take steps."""
        self._model, self._encoder, self._output = model, encoder, output
        self._every, self._measure = every, measure
        self._path = output / FILE
        self.points: list[Point] = read_points(self._path)

    def is_due(self, step: int) -> bool:
        """Tell whether a step is measured, by any process."""
        return self._every > 0 and step % self._every == 0

    def begin(self) -> Point | None:
        """Measure the model before the first step, unless a resumed run did, and return the point."""
        return self._keep(0) if self._every and not self.points else None

    def after_step(self, step: int) -> Point | None:
        """Measure after a step whose turn it is, and return the point."""
        return self._keep(step) if self.is_due(step) else None

    def restore(self, step: int) -> None:
        """Put the weights of a snapshot back onto the model."""
        from peft import set_peft_model_state_dict

        weights = load_file(snapshot_of(self._output, step) / "adapter_model.safetensors")
        set_peft_model_state_dict(self._model, weights)

    def save_snapshot(self, step: int) -> Path:
        """Keep the weights as they are, as an adapter by themselves."""
        path = snapshot_of(self._output, step)
        self._model.save_pretrained(path)
        sync_tree(path)
        return path

    def _keep(self, step: int) -> Point | None:
        if self._measure is None:
            return None
        devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        self._model.eval()
        with torch.random.fork_rng(devices=devices):
            point = {"schema": "viker/trajectory/1", "step": step, **self._measure(self._model, self._encoder)}
        self._model.train()
        self.save_snapshot(step)
        with self._path.open("a", encoding="utf-8") as stream:
            append_line(stream, point)
        self.points.append(point)
        return point


def snapshots_of(output: Path) -> Path:
    """Return where the weights of measured steps are kept."""
    return output / "snapshots"


def snapshot_of(output: Path, step: int) -> Path:
    """Return where the weights of a step are kept."""
    return snapshots_of(output) / f"step-{step:05d}"


def read_points(path: Path) -> list[Point]:
    """Return the points of a trajectory.jsonl, none where there is no such file."""
    return read_lines(path)
