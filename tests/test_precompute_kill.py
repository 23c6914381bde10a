"""A precompute that is interrupted or killed in the middle: what it staged is kept, the cache has the same bytes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cache_samples import tree_bytes
from command_line import call, succeed
from viker.precompute.reading.verify import verify

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
    (resumed_root,) = broken.glob("*/")
    (whole_root,) = whole.glob("*/")
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


def artefact_is_there(run: Path) -> bool:
    return (run / "precompute" / "reference-all" / "COMPLETE").is_file()


def test_parts_compute_each_their_share_and_the_last_one_seals(
    precompute: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick, run = [*precompute, "--limit", "40", "--num-references", "1"], tmp_path / "run"
    expected = json.loads(run_here(quick, tmp_path / "whole", monkeypatch))
    monkeypatch.setenv("VIKER_CACHE_DIR", str(tmp_path / "shared"))
    for part, so_far in (("2/3", 12), ("0/3", 25), ("0/3", 25)):
        outcome = succeed(*quick, "--run", run, "--part", part)
        assert f"{so_far} of 38 blocks staged; the part that finishes last seals" in outcome.err
        assert outcome.out == ""
        assert not artefact_is_there(run)
        assert [path.suffix for path in (tmp_path / "shared").iterdir()] == [".building"]
    last = json.loads(succeed(*quick, "--run", run, "--part", "1/3", "--json").out)
    assert artefact_is_there(run)
    assert (last["key"], last["pairs"]) == (expected["key"], 13)
    assert tree_bytes(Path(last["path"])) == tree_bytes(Path(expected["path"]))
    assert "complete, skipped" in succeed(*quick, "--run", run).out, "which part it was is no option of the rows"


def test_a_run_without_part_completes_what_parts_left(
    precompute: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = [*precompute, "--limit", "40", "--num-references", "1"]
    monkeypatch.setenv("VIKER_CACHE_DIR", str(tmp_path / "shared"))
    succeed(*quick, "--part", "1/2")
    assert json.loads(succeed(*quick, "--json").out)["pairs"] == 19
    assert json.loads(succeed(*quick, "--part", "1/2", "--json").out)["how"] == "found, nothing computed"


@pytest.mark.parametrize("part", ["2/2", "0/0", "-1/2", "1", "a/b", "1/2/3", ""])
def test_a_part_that_is_none_is_a_usage_error(precompute: list[str], part: str) -> None:
    outcome = call(*precompute, f"--part={part}")
    assert outcome.code == 2
    assert f"expected i/N with 0 <= i < N, parts are counted from 0; found '{part}'" in outcome.message


def test_what_a_kill_left_beside_a_sealed_cache_is_swept_when_that_is_found(
    precompute: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick, home = [*precompute, "--limit", "20", "--num-references", "1"], tmp_path / "home"
    root = Path(json.loads(run_here(quick, home, monkeypatch))["path"])
    (home / f"{root.name}.building").mkdir()
    (home / f"{root.name}.building" / "block-00000").write_bytes(b"a block")
    (home / f"{root.name}.0123.sealing" / "cache.zarr").mkdir(parents=True)
    assert json.loads(run_here(quick, home, monkeypatch))["how"] == "found, nothing computed"
    assert [path for path in home.glob(f"{root.name}*") if path.is_dir()] == [root]


def test_a_home_that_cannot_be_written_is_one_clear_error(
    precompute: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(home)], check=False).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        monkeypatch.setenv("VIKER_CACHE_DIR", str(home))
        outcome = call(*precompute, "--limit", "20", "--num-references", "1")
    finally:
        subprocess.run(["umount", str(home)], check=True)
    assert outcome.code == 1
    assert "expected a folder to write in, found Read-only file system" in outcome.message
    assert "point VIKER_CACHE_DIR elsewhere" in outcome.message
