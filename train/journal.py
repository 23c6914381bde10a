"""What a run writes while it steps: training_log.jsonl, and the tracker that it reports to, if any.

On the main process alone; on others nothing happens. A run that goes on from a checkpoint cuts the log back to the
lines that belong to it, and so writes the same file as one that was never stopped. What a step says is `step_log.py`'s,
points along the run are `trajectory.py`'s.
"""

from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from accelerate import Accelerator

from .line_files import append_line, read_lines
from .step_log import StepLog, as_line, from_line

LOG = "training_log.jsonl"


class Journal:
    """Appends a line a step, and reports its numbers."""

    def __init__(self, output: Path, accelerator: Accelerator) -> None:
        self._path, self._accelerator = output / LOG, accelerator
        lines = read_lines(self._path) if accelerator.is_main_process else []
        self.num_lines = len(lines)
        self.last: StepLog | None = from_line(lines[-1]) if lines else None
        self._file: TextIO | None = None

    def __enter__(self) -> Self:
        if self._accelerator.is_main_process:
            self._file = self._path.open("a", encoding="utf-8")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
        for tracker in self._accelerator.trackers:
            tracker.finish()

    def write(self, log: StepLog) -> None:
        """Write a step's line and report its numbers."""
        self.last = log
        if self._file is not None:
            append_line(self._file, as_line(log))
            self.num_lines += 1
        self._accelerator.log(as_scalars(log), step=log.step)

    def report(self, point: dict[str, Any] | None) -> None:
        """Report the numbers of a point, if one was measured; its line is the trajectory's."""
        if point is None:
            return
        numbers = {name: value for name, value in point.items() if isinstance(value, int | float) and name != "step"}
        self._accelerator.log({f"point/{name}": value for name, value in numbers.items()}, step=point["step"])


def as_scalars(log: StepLog) -> dict[str, float]:
    """Return a step's numbers by the names a tracker shows them under."""
    known = {
        "loss": log.loss, "epoch": log.epoch, "gradient_norm": log.gradient_norm, "learning_rate": log.learning_rate,
        "logprob/key": log.key_logprob, "logprob/key_teacher": log.key_teacher_logprob,
        "logprob/normal": log.normal_logprob,
    }  # fmt: skip
    terms = {f"term/{name}": value for name, value in log.terms.items()}
    return {name: value for name, value in (known | terms).items() if value is not None}
