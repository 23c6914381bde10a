"""Writers that are killed, doubled or out of disk: what is left is resumed, with the uninterrupted run's bytes."""

from __future__ import annotations

import dataclasses
import errno
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest
from viker.precompute.cache import CacheError, CacheMismatch, TeacherCache
from viker.precompute.reading.verify import verify
from viker.precompute.writing import blocks
from viker.precompute.writing.store import StorageError, plan_blocks
from viker.tests.cache_samples import fill_block, make_builder, make_cache, make_rows, tree_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from viker.precompute.writing.store import CacheBuilder

LENGTHS = [3, 1, 4, 1, 5] * 10
WRITER = """
import sys, time
from pathlib import Path
from viker.tests.cache_samples import fill_block, make_builder
builder = make_builder(Path(sys.argv[1]), [3, 1, 4, 1, 5] * 10)
for block in range(len(builder.blocks)):
    if builder.claim(block):
        print("computing", block, flush=True)
        time.sleep(0.02)
        fill_block(builder, block)
        print("staged", block, flush=True)
builder.complete_blocks()
print(builder.assemble())
"""


def start_writer(home: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", WRITER, str(home)], stdout=subprocess.PIPE, text=True)


def fill_and_assemble(builder: CacheBuilder) -> None:
    for block in range(len(builder.blocks)):
        fill_block(builder, block)
    builder.assemble()


def resume(home: Path) -> int:
    """Finish a cache and return how many blocks had to be computed."""
    builder = make_builder(home, LENGTHS)
    missing = set(range(len(builder.blocks))) - set(builder.complete_blocks())
    for block in sorted(missing):
        assert builder.claim(block)
        fill_block(builder, block)
    builder.assemble()
    return len(missing)


@pytest.mark.parametrize(
    ("lengths", "least"), [([1] * 20, 20), ([1] * 39, 39), ([500] + [1] * 40, 20), ([100] * 1000, 25), ([5000, 1], 2)]
)
def test_blocks_are_whole_samples_in_order(lengths, least):
    plan = plan_blocks(lengths)
    assert len(plan) >= least
    assert [start for start, _ in plan] == [0, *(stop for _, stop in plan[:-1])]
    assert plan[-1][1] == len(lengths)
    assert all(sum(lengths[start:stop]) <= 4096 or stop - start == 1 for start, stop in plan)
    assert plan_blocks([]) == []


@pytest.mark.parametrize("blocks_before_kill", [1, 7, 13])
def test_a_killed_writer_costs_one_block_and_changes_no_byte(tmp_path, blocks_before_kill):
    with start_writer(tmp_path / "killed") as writer:
        started = staged = 0
        while staged < blocks_before_kill or started == staged:
            line = writer.stdout.readline()
            started, staged = started + line.startswith("computing"), staged + line.startswith("staged")
        time.sleep(0.01 * (blocks_before_kill % 3))  # inside the computation, later in it, around the write
        os.kill(writer.pid, signal.SIGKILL)
        started += sum(line.startswith("computing") for line in writer.stdout)
    assert writer.returncode == -signal.SIGKILL
    num_blocks = len(make_builder(tmp_path / "killed", LENGTHS).blocks)
    assert num_blocks >= 20
    computed_again = resume(tmp_path / "killed") - (num_blocks - started)
    assert computed_again in (0, 1)
    whole = make_cache(tmp_path / "whole", LENGTHS)
    assert tree_bytes(tmp_path / "killed") == {f"{whole.name}/{path}": data for path, data in tree_bytes(whole).items()}


def test_a_kill_while_sealing_leaves_the_blocks(tmp_path):
    builder = make_builder(tmp_path, LENGTHS)
    for block in range(len(builder.blocks)):
        fill_block(builder, block)
    sealing = tmp_path / f"{builder.key[:16]}.dead.sealing"
    sealing.mkdir()
    (sealing / "half").write_bytes(b"x")
    (builder.staging / "block-00000.uuid.partial").write_bytes(b"half a block")
    assert resume(tmp_path) == 0
    assert [path.name for path in tmp_path.iterdir()] == [builder.key[:16]]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "another block"])
def test_a_damaged_block_is_computed_again(tmp_path, damage, caplog):
    builder = make_builder(tmp_path, LENGTHS)
    for block in range(len(builder.blocks)):
        fill_block(builder, block)
    path = builder.staging / "block-00003"
    content = path.read_bytes()
    flipped = content[:-1] + bytes([content[-1] ^ 1])
    other = (builder.staging / "block-00008").read_bytes()
    path.write_bytes({"truncated": content[:-1], "flipped": flipped, "empty": b"", "another block": other}[damage])
    assert resume(tmp_path) == 1
    assert "block-00003 is damaged" in caplog.text
    assert verify(builder.root, "full") == []


def test_two_processes_at_once(tmp_path):
    with start_writer(tmp_path / "shared") as first, start_writer(tmp_path / "shared") as second:
        outputs = [process.communicate(timeout=120)[0] for process in (first, second)]
    staged = [line for output in outputs for line in output.splitlines() if line.startswith("staged")]
    assert len(set(staged)) == len(staged), "claims kept them apart"
    assert 0 in (first.returncode, second.returncode), "whoever comes last finds all blocks and seals"
    whole = make_cache(tmp_path / "whole", LENGTHS)
    assert tree_bytes(tmp_path / "shared" / whole.name) == tree_bytes(whole)


def test_the_second_to_seal_drops_its_copy(tmp_path):
    first, second = make_builder(tmp_path, LENGTHS), make_builder(tmp_path, LENGTHS)
    for block in range(len(first.blocks)):
        fill_block(first, block)
    assert second.complete_blocks() == list(range(len(second.blocks)))
    before = tree_bytes(first.assemble())
    second._seal(lambda: None)  # it was about to when the first finished
    assert second.assemble() == first.root
    fill_block(second, 0)  # a laggard's write after the folder has gone is no error
    assert not second.claim(0)
    assert tree_bytes(first.root) == before
    assert [path.name for path in tmp_path.iterdir()] == [first.root.name]


def test_missing_blocks_are_not_sealed(tmp_path):
    builder = make_builder(tmp_path, LENGTHS)
    fill_block(builder, 0)
    with pytest.raises(CacheError, match=rf"expected all {len(builder.blocks)} blocks.*\(first 1\)"):
        builder.assemble()
    assert not builder.sealed


def test_other_people_for_the_same_rows_are_refused(tmp_path):
    first, *others = make_builder(tmp_path, LENGTHS).samples
    with pytest.raises(CacheMismatch, match="other people"):
        make_builder(tmp_path, LENGTHS, samples=[dataclasses.replace(first, person=b"stranger" * 2), *others])


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_full_disk_is_one_clear_error_and_resumable(tmp_path, monkeypatch, code):
    builder = make_builder(tmp_path, LENGTHS)
    for block in range(len(builder.blocks) - 1):
        fill_block(builder, block)

    def fail(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(blocks.os, "fsync", fail)
        found = {
            errno.ENOSPC: r"room for \d+ bytes, found \d+ free \(No space",
            errno.EIO: r"a disk .*, found Input/output",
        }
        with pytest.raises(StorageError, match=f"{found[code]}.*resume"):
            fill_block(builder, len(builder.blocks) - 1)
    fill_block(builder, len(builder.blocks) - 1)
    with monkeypatch.context() as patch:
        patch.setattr(blocks.os, "fsync", fail)
        with pytest.raises(StorageError, match="run the same command"):
            builder.assemble()
    assert sorted(path.name for path in tmp_path.iterdir()) == [builder.staging.name]
    assert not list(builder.staging.glob("*.partial"))
    assert resume(tmp_path) == 0
    assert len(TeacherCache.open(builder.root).load()) == sum(LENGTHS)


@pytest.mark.parametrize("size", [150, 330])  # of 240 kB of blocks and as much again of arrays
def test_a_disk_that_fills(tmp_path, size):
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(tmp_path)], check=False).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        builder = make_builder(tmp_path, [300] * 20)
        with pytest.raises(StorageError, match="room for"):
            fill_and_assemble(builder)
        assert not list(tmp_path.glob("*.sealing"))
        staged = builder.complete_blocks()
        subprocess.run(["mount", "-o", "remount,size=16m", str(tmp_path)], check=True)
        again = make_builder(tmp_path, [300] * 20)
        assert again.complete_blocks() == staged
        for block in set(range(len(again.blocks))) - set(staged):
            fill_block(again, block)
        assert verify(again.assemble(), "full") == []
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_rows_that_are_no_distribution_are_never_staged(tmp_path):
    builder = make_builder(tmp_path, LENGTHS)
    rows = make_rows(builder.num_rows(0), 0)
    rows["entropy"][1] = np.nan
    with pytest.raises(CacheError, match=r"Block 0.*entropy is not in \[0, log V\] \(first at row 1\).*float32"):
        builder.write_block(0, rows)
    assert builder.complete_blocks() == []
