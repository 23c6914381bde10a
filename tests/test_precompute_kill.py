"""A precompute that is interrupted or killed in the middle: what it staged is kept, the cache has the same bytes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
from cache_samples import tree_bytes
from command_line import succeed
from viker.precompute.verify import verify

if TYPE_CHECKING:
    from pathlib import Path

DEADLINE_S = 240
LEAST_BLOCKS = 20


@pytest.fixture
def precompute(mini_world: Path, tiny_model_dir: Path, quiet_torch: None) -> list[str]:
    """A precompute of at least twenty blocks, made slow by the oracle's one example at a time."""
    pool = mini_world / "pools" / "pets"
    return [
        "precompute", "--data", str(mini_world), "--model", str(tiny_model_dir), "--pool", str(pool), "--split", "all",
        "--num-references", "6", "--top-k", "16", "--engine", "naive",
    ]  # fmt: skip


def start(precompute: list[str], home: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "VIKER_CACHE_DIR": str(home), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "viker", *precompute], env=environment, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def staged(home: Path) -> set[str]:
    return {path.name for path in home.glob("*.building/block-*") if path.suffix == ""}


def stop_after(process: subprocess.Popen[str], home: Path, blocks: int, how: signal.Signals) -> tuple[int, str]:
    """Wait until so many blocks are staged, send a signal, and return the exit status and standard error."""
    end = time.monotonic() + DEADLINE_S
    while len(staged(home)) < blocks:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end, f"{len(staged(home))} blocks in {DEADLINE_S} s"
        time.sleep(0.01)
    process.send_signal(how)
    return process.wait(60), process.communicate()[1]


def run_here(precompute: list[str], home: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("VIKER_CACHE_DIR", str(home))
    return succeed(*precompute, "--json").out


def test_interrupted_and_killed_it_resumes_to_the_same_bytes(
    precompute: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, whole = tmp_path / "broken", tmp_path / "whole"

    code, err = stop_after(start(precompute, broken), broken, 3, signal.SIGINT)
    assert code == 75, err
    assert "Interrupted. Run the same command again: what is complete is kept." in err
    assert "Traceback" not in err
    interrupted = staged(broken)
    plan = json.loads(next(broken.glob("*.building/plan.json")).read_text())
    assert len(plan["blocks"]) >= LEAST_BLOCKS
    assert 3 <= len(interrupted) < LEAST_BLOCKS

    code, err = stop_after(start(precompute, broken), broken, len(interrupted) + 3, signal.SIGKILL)
    assert code == -signal.SIGKILL, err
    killed = staged(broken)
    assert interrupted < killed
    assert len(killed) < LEAST_BLOCKS, "the test has to stop it in the middle"
    assert [path.suffix for path in broken.iterdir()] == [".building"], "nothing that could pass for a cache"

    resumed = json.loads(run_here(precompute, broken, monkeypatch))
    uninterrupted = json.loads(run_here(precompute, whole, monkeypatch))

    assert 0 < resumed["pairs"] < uninterrupted["pairs"], "staged blocks are not computed again"
    assert resumed["key"] == uninterrupted["key"]
    (resumed_root,) = broken.iterdir()
    (whole_root,) = whole.iterdir()
    assert resumed_root.name == whole_root.name
    assert verify(resumed_root, "full") == []
    arrays, expected = tree_bytes(resumed_root), tree_bytes(whole_root)
    assert arrays.keys() == expected.keys()
    differing = {name for name in arrays if arrays[name] != expected[name]}
    assert differing == set()


def test_run_again_it_computes_nothing(precompute: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = [*precompute, "--limit", "20", "--num-references", "1"]
    first = json.loads(run_here(quick, tmp_path / "home", monkeypatch))
    second = json.loads(run_here(quick, tmp_path / "home", monkeypatch))
    assert first["pairs"] == 20
    assert (second["pairs"], second["how"]) == (0, "found, nothing computed")
    assert first["key"] == second["key"]
