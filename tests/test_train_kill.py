"""`viker train` as a process of its own, killed and interrupted at any moment: run again, it has the same bytes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
from command_line import succeed
from training_run import checkpoints, results
from viker.data.artefact import is_complete, read_json

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
DEADLINE_S = 600
NUM_STEPS = 64  # long enough that a fast machine is not done before it is killed


@pytest.fixture
def command(mini_world: Path, tiny_model_dir: Path, tmp_path: Path, quiet_torch: None) -> list[str]:
    """A run of 64 steps with cached rows, a retain term, dropout, points with replies, and a save every three."""
    named = ["--data", str(mini_world), "--model", str(tiny_model_dir), "--run", str(tmp_path / "run")]
    pool = str(mini_world / "pools" / "pets")
    succeed("precompute", *named, "--pool", pool, "--num-references", 2, "--top-k", 8, "--split", "forget")
    succeed("precompute", *named, "--teacher", "self", "--split", "retain-seen")
    return [
        "train", *named, "--method", "recommended", "--top-k", "8", "--limit", "8", "--num-train-epochs", "16",
        "--per-device-train-batch-size", "2", "--lora-dropout", "0.2", "--learning-rate", "1e-3", "--no-stop",
        "--evaluate-every", "5", "--evaluate-people", "1", "--save-steps", "3",
    ]  # fmt: skip


def start(command: list[str], output: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "viker", *command, "--output", str(output)],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def finish(command: list[str], output: Path) -> str:
    process = start(command, output)
    _, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, err
    return err


def steps_in(output: Path) -> int:
    log = output / "training_log.jsonl"
    return log.read_bytes().count(b"\n") if log.is_file() else 0


def stop(process: subprocess.Popen[str], output: Path, step: int, delay: float, how: signal.Signals) -> tuple[int, str]:
    """Send a signal a little after the log has a step; return exit status and standard error."""
    end = time.monotonic() + DEADLINE_S
    while steps_in(output) < step:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end, f"{steps_in(output)} steps in {DEADLINE_S} s"
        time.sleep(0.005)
    time.sleep(delay)
    process.send_signal(how)
    _, err = process.communicate(timeout=DEADLINE_S)
    return process.returncode, err


def test_killed_at_any_moment_it_ends_with_the_same_bytes(command: list[str], tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    finish(command, whole)
    moments = random.Random("kill")
    for step in (0, 2, 14, 29, 45):
        delay = 3.0 if step == 0 else moments.uniform(0, 0.1)
        code, err = stop(start(command, broken), broken, step, delay, signal.SIGKILL)
        assert code == -signal.SIGKILL, err
        assert not is_complete(broken)
    assert "goes on from step" in finish(command, broken)
    assert is_complete(broken)
    assert checkpoints(broken) == []
    assert results(broken).keys() == results(whole).keys()
    assert {name for name, content in results(broken).items() if content != results(whole)[name]} == set()
    assert steps_in(broken) == NUM_STEPS
    assert len(read_json(broken / "provenance.json")["resumed_at"]) >= 2


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_interrupted_it_saves_says_so_and_goes_on(command: list[str], tmp_path: Path, how: signal.Signals) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    finish(command, whole)
    code, err = stop(start(command, broken), broken, 4, 0.1, how)
    assert code == 75, err
    assert "Traceback" not in err
    assert f"of {NUM_STEPS}, saved in {broken / 'checkpoint' / 'step-'}" in err
    assert ("finishing the step" in err) == (how == signal.SIGINT)
    (saved,) = checkpoints(broken)
    assert int(saved[-5:]) == steps_in(broken)
    assert f"goes on from step {steps_in(broken)}" in finish(command, broken)
    assert results(broken) == results(whole)
