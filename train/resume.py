"""When a run saves itself, and how the same command goes on from what it saved.

A checkpoint counts the lines of the run's files that belong to it; what came after is cut off and written again, so a
run that was killed ends with the same bytes as one that was not. It is taken up only by a run of the same inputs; the
options are in the adapter's config.json, which `commands.py` compares. The files are `checkpoint.py`'s.
"""

import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.artefact import ArtefactMismatch, differences
from ..data.example import canonical_json
from . import trajectory as points
from .batches import Item, summary_of
from .checkpoint import DamagedCheckpoint, Held, read_checkpoint, remove_checkpoint, save_checkpoint
from .diagnose_summary import FILE as DIAGNOSIS
from .journal import LOG, Journal
from .line_files import keep_lines
from .loop import Unlearning
from .processes import is_sharded, on_main
from .reading import Reader
from .trajectory import Trajectory, snapshots_of


def made_from(reader: Reader, items: Sequence[Item], num_processes: int) -> dict[str, Any]:
    """Return what a run is made from beside its options: another run must not go on from its checkpoint."""
    told = [[item.example.id, item.prompt_ids, item.answer_ids] for item in items]
    return {
        "student weights": reader.identity["weights"],
        "caches": summary_of(reader.caches),
        "examples": hashlib.sha256(canonical_json(told)).hexdigest(),
        "processes": num_processes,
    }


def find_held(output: Path, source: Mapping[str, Any], announce: Callable[[str], None]) -> Held | None:
    """Return the checkpoint that a run goes on from, its files cut back to it; without one, a clean beginning.

    Raises:
        ArtefactMismatch: it was made from something else.
    """
    held = _readable(output, announce)
    if held is not None:
        _require_same(held, source)
        if all(keep_lines(output / name, count) for name, count in held.lines.items()):
            announce(f"train: goes on from step {held.state.step} ({held.path})")
            return held
        announce(f"train: WARNING: {output}: expected the lines that {held.path} counts, found fewer: begins again.")
    for name in (LOG, points.FILE, DIAGNOSIS):
        (output / name).unlink(missing_ok=True)
    shutil.rmtree(snapshots_of(output), ignore_errors=True)
    remove_checkpoint(output)
    return None


def _readable(output: Path, announce: Callable[[str], None]) -> Held | None:
    try:
        return read_checkpoint(output)
    except DamagedCheckpoint as error:
        announce(f"train: WARNING: {error} It is of no use: the run begins again.")
        return None


def _require_same(held: Held, source: Mapping[str, Any]) -> None:
    lines = differences(held.made_from, source)
    if lines:
        raise ArtefactMismatch(
            f"{held.path}: expected a checkpoint of this run, found one that was made from something else.\n"
            + "\n".join(lines)
            + "\nPut back what it was made from, or begin again with --no-resume."
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Saver:
    """Saves a run between two of its steps; every process has to call it, the main one writes."""

    output: Path
    run: Unlearning
    journal: Journal
    trajectory: Trajectory
    source: Mapping[str, Any]
    resumed: tuple[int, ...]
    every: int

    def is_due(self, step: int) -> bool:
        """Tell whether a step's turn has come; a run that is over is about to be complete."""
        return self.every > 0 and step % self.every == 0 and not self.run.is_over

    def save(self) -> Path:
        """Save the run as it is, and return where."""
        state = self.run.state()
        lines = {LOG: self.journal.num_lines, points.FILE: len(self.trajectory.points)}
        return on_main(
            self.run.accelerator,
            lambda: save_checkpoint(self.output, state, made_from=self.source, lines=lines, resumed=self.resumed),
        )

    def save_good(self) -> str:
        """Save the weights before a step that failed, and say where they are."""
        path = self.save()
        if is_sharded(self.run.accelerator):
            return f"The weights before it are kept in {path}."
        snapshot = on_main(self.run.accelerator, lambda: self.trajectory.save_snapshot(self.run.step))
        return f"The weights before it are good, and kept: {path}, and as an adapter in {snapshot}."
