"""The digest of a model's weights is remembered, and never for weights that have changed since."""

from __future__ import annotations

import json
import os
import shutil
import struct
import time
from typing import TYPE_CHECKING

import pytest
from viker.models import identity
from viker.models.identity import weights_digest
from viker.models.load import Checkpoint

if TYPE_CHECKING:
    from pathlib import Path

TENSORS, TENSOR_BYTES = 28, 512 << 20  # 15 GB in half precision: a 7 B model


def write_weights(directory: Path, fill: float) -> Checkpoint:
    import torch
    from safetensors.torch import save_file

    directory.mkdir(exist_ok=True)
    save_file({"weight": torch.full((4, 4), fill)}, directory / "model.safetensors")
    return Checkpoint(str(directory), directory, directory)


def write_sparse(directory: Path) -> Checkpoint:
    """Weights that are as large as a 7 B model's, all of them zero and without a block on disk."""
    layout = {
        f"layer.{index}": {
            "dtype": "F16", "shape": [TENSOR_BYTES // 2],
            "data_offsets": [index * TENSOR_BYTES, (index + 1) * TENSOR_BYTES],
        }
        for index in range(TENSORS)
    }  # fmt: skip
    header = json.dumps(layout).encode()
    header += b" " * (-len(header) % 8)
    with (directory / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + TENSORS * TENSOR_BYTES)
    return Checkpoint(str(directory), directory, directory)


def set_same_date(checkpoint: Checkpoint, model: Checkpoint) -> None:
    path, like = (one.weights / "model.safetensors" for one in (checkpoint, model))
    os.utime(path, ns=(like.stat().st_mtime_ns, like.stat().st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (like.stat().st_size, like.stat().st_mtime_ns)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many times files were digested."""
    calls: list[int] = []
    digest = identity._digest_tensors
    monkeypatch.setattr(identity, "_digest_tensors", lambda files: (calls.append(len(files)), digest(files))[1])
    return calls


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trust the clock of the file system at once; these tests change files by whole seconds."""
    monkeypatch.setattr(identity, "SETTLED_S", -3600.0)


def test_weights_are_digested_once(tmp_path, counted, settled):
    checkpoint = write_weights(tmp_path / "model", 1.0)
    assert weights_digest(checkpoint) == weights_digest(checkpoint)
    assert len(counted) == 1


def test_weights_replaced_under_the_same_size_and_date_are_noticed(tmp_path, counted, settled):
    checkpoint = write_weights(tmp_path / "model", 1.0)
    other = write_weights(tmp_path / "other", 2.0)
    before = weights_digest(checkpoint)
    set_same_date(other, checkpoint)
    shutil.copy2(other.weights / "model.safetensors", checkpoint.weights / "model.safetensors")
    assert weights_digest(checkpoint) == weights_digest(other) != before


def test_another_file_renamed_into_the_place_is_noticed(tmp_path, settled):
    checkpoint = write_weights(tmp_path / "model", 1.0)
    before = weights_digest(checkpoint)
    other = write_weights(tmp_path / "other", 2.0)
    set_same_date(other, checkpoint)
    (other.weights / "model.safetensors").replace(checkpoint.weights / "model.safetensors")
    assert weights_digest(checkpoint) != before


def test_weights_that_were_written_a_moment_ago_are_not_remembered(tmp_path, counted):
    checkpoint = write_weights(tmp_path / "model", 1.0)
    assert weights_digest(checkpoint) == weights_digest(checkpoint)
    assert len(counted) == 2
    time.sleep(identity.SETTLED_S + 0.1)
    assert weights_digest(checkpoint) == weights_digest(checkpoint)
    assert len(counted) == 3


@pytest.mark.slow
def test_fifteen_gigabytes_take_under_a_second_the_second_time(tmp_path, record_property):
    checkpoint = write_sparse(tmp_path)
    time.sleep(identity.SETTLED_S + 0.1)
    seconds = []
    for _ in range(2):
        started = time.monotonic()
        weights_digest(checkpoint)
        seconds.append(time.monotonic() - started)
    record_property("seconds", seconds)
    assert seconds[1] < 1 < seconds[0]
