"""Mid-run checkpoints: `<output>/checkpoint/step-NNNNN/`, written so that a kill at any moment leaves a whole one.

    tensors.safetensors   weights, AdamW's state, the mask of the forget gradient (`run_state.py`)
    state.json            canonical JSON: the step, the stop rule's window, random states, what the run was made from,
                          how many lines of the run's files belong to it, digests of the tensors and of itself

Both go into a folder under a temporary name, onto the disk, and only then is it renamed; the one before is removed
afterwards. Nothing is unpickled. One that is damaged all the same is found by its digests and never half taken up. When
a run saves, and what it does with one it finds, is `unlearn.py`'s.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..data.example import DataError, canonical_json
from .line_files import sync, sync_tree
from .run_state import RunState

SCHEMA = "viker/checkpoint/1"
FOLDER = "checkpoint"
_TENSORS, _STATE, _UNFINISHED = "tensors.safetensors", "state.json", ".writing"


class DamagedCheckpoint(DataError):
    """A checkpoint is not what was written."""


class Held(NamedTuple):
    """A checkpoint that was read.

    `made_from` names what the run was made from; `lines` counts those that belong to it, by file; `resumed` are the
    steps at which the run had been taken up before.
    """

    state: RunState
    made_from: Mapping[str, Any]
    lines: Mapping[str, int]
    resumed: tuple[int, ...]
    path: Path


def has_checkpoint(output: Path) -> bool:
    """Tell whether an output holds a checkpoint that was written to its end."""
    return _newest(output) is not None


def save_checkpoint(
    output: Path, state: RunState, *, made_from: Mapping[str, Any], lines: Mapping[str, int], resumed: tuple[int, ...]
) -> Path:
    """Write a checkpoint, remove the one before, and return where it is; at a step that has one, it is that one."""
    path = output / FOLDER / f"step-{state.step:05d}"
    if path.is_dir():
        return path
    unfinished = path.with_name(path.name + _UNFINISHED)
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    save_file(dict(state.tensors), unfinished / _TENSORS)
    told = {
        "schema": SCHEMA, "step": state.step, "recent": [list(pair) for pair in state.recent],
        "random": list(state.random), "made_from": dict(made_from), "lines": dict(lines), "resumed": list(resumed),
        "tensors": _file_digest(unfinished / _TENSORS),
    }  # fmt: skip
    (unfinished / _STATE).write_bytes(canonical_json({**told, "digest": _digest(canonical_json(told))}))
    for name, count in lines.items():
        if count:
            sync(output / name)  # a line that a checkpoint counts is on the disk before it
    sync_tree(unfinished)
    unfinished.rename(path)
    sync(path.parent)
    for other in path.parent.iterdir():
        if other != path:
            shutil.rmtree(other, ignore_errors=True)
    return path


def read_checkpoint(output: Path) -> Held | None:
    """Return the newest checkpoint of an output, or None where there is none.

    Raises:
        DamagedCheckpoint: it is not as it was written.
    """
    path = _newest(output)
    if path is None:
        return None
    told = _read_state(path / _STATE)
    try:
        is_whole = _file_digest(path / _TENSORS) == told["tensors"]
        tensors = load_file(path / _TENSORS) if is_whole else {}
    except (OSError, SafetensorError) as error:
        raise _damaged(path / _TENSORS, f"({error})") from error
    if not is_whole:
        raise _damaged(path / _TENSORS, "others")
    state = RunState(
        step=told["step"], tensors=tensors, recent=[(ours, theirs) for ours, theirs in told["recent"]],
        random=told["random"],
    )  # fmt: skip
    return Held(state, told["made_from"], told["lines"], tuple(told["resumed"]), path)


def remove_checkpoint(output: Path) -> None:
    """Remove what an output holds of checkpoints."""
    shutil.rmtree(output / FOLDER, ignore_errors=True)


def _newest(output: Path) -> Path | None:
    finished = [path for path in (output / FOLDER).glob("step-*") if path.suffix != _UNFINISHED]
    return max(finished, key=lambda path: int(path.name.removeprefix("step-")), default=None)


def _read_state(path: Path) -> dict[str, Any]:
    try:
        told = json.loads(path.read_bytes())
        digest = told.pop("digest")
        is_whole = digest == _digest(canonical_json(told))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise _damaged(path, f"something else ({error})") from error
    if not is_whole or told["schema"] != SCHEMA:
        raise _damaged(path, "others" if not is_whole else f"those of {told['schema']}")
    return dict(told)


def _damaged(path: Path, found: str) -> DamagedCheckpoint:
    return DamagedCheckpoint(f"{path}: expected the bytes that were written, as their digest has it, found {found}.")


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _file_digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
