"""A block has the same bytes whoever computes it: threads and kernels are agreed on before the first."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import torch
from cache_samples import tree_bytes
from command_line import call, succeed
from viker.precompute.cache import CacheMismatch, TeacherCache
from viker.precompute.same_bytes import as_agreed, one_order
from viker.tests.cache_maker import LENGTHS
from viker.tests.cache_samples import make_builder

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def threads() -> int:
    """The number of threads here, restored afterwards."""
    before = torch.get_num_threads()
    yield before
    torch.set_num_threads(before)


@pytest.fixture
def precompute(mini_world: Path, tiny_model_dir: Path, quiet_torch: None) -> list[str]:
    pool = mini_world / "pools" / "pets"
    return [
        "precompute", "--data", str(mini_world), "--model", str(tiny_model_dir), "--pool", str(pool), "--split", "all",
        "--num-references", "2", "--limit", "40", "--token-budget", "256",
    ]  # fmt: skip


def kernels() -> tuple[bool, ...]:
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    strict = torch.are_deterministic_algorithms_enabled()
    return strict, cudnn.deterministic, not cudnn.benchmark, not cudnn.allow_tf32, not matmul.allow_tf32


def run(command: list[str], home: Path, threads: int) -> tuple[Path | None, str]:
    """Run a command in a process of its own with so many threads; return the cache, if it sealed one, and its words."""
    environment = {**os.environ, "VIKER_CACHE_DIR": str(home), "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(
        [sys.executable, "-m", "viker", *command], env=environment, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return next((path.parent for path in home.glob("*/manifest.json")), None), done.stderr


def test_every_maker_takes_the_threads_of_the_first_and_says_so(tmp_path, threads):
    told: list[str] = []
    torch.set_num_threads(3)
    with as_agreed(make_builder(tmp_path, LENGTHS), False, "cpu", told.append):
        assert torch.get_num_threads() == 3
    assert told == []
    torch.set_num_threads(1)
    builder = make_builder(tmp_path, LENGTHS)
    with as_agreed(builder, False, "cpu", told.append):
        assert torch.get_num_threads() == 3
    assert torch.get_num_threads() == 1
    assert "computing with 3 threads in place of 1" in told[0]
    assert builder.build["num_threads"] == 3


def test_on_a_gpu_threads_are_everyone_s_own(tmp_path, threads):
    told: list[str] = []
    torch.set_num_threads(3)
    with as_agreed(make_builder(tmp_path, LENGTHS), False, "cuda", told.append):
        torch.set_num_threads(1)
    with as_agreed(make_builder(tmp_path, LENGTHS), False, "cuda", told.append):
        assert torch.get_num_threads() == 1
    assert told == []


def test_only_kernels_with_one_order_run_where_that_is_asked_for(tmp_path):
    before = kernels()
    with as_agreed(make_builder(tmp_path, LENGTHS), True, "cuda", print) as deterministic:
        assert deterministic
        assert kernels() == (True,) * 5
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert kernels() == before
    assert not before[0]


def test_kernels_are_restored_after_an_error():
    before = kernels()
    with pytest.raises(KeyboardInterrupt), one_order():
        raise KeyboardInterrupt
    assert kernels() == before


def test_a_cache_begun_with_one_order_is_finished_so(tmp_path):
    told: list[str] = []
    with as_agreed(make_builder(tmp_path, LENGTHS), True, "cuda", told.append):
        pass
    builder = make_builder(tmp_path, LENGTHS)
    with as_agreed(builder, False, "cuda", told.append) as deterministic:
        assert deterministic
        assert torch.are_deterministic_algorithms_enabled()
    assert "begun with --deterministic: going on so" in told[0]
    assert builder.build["deterministic"] is True


def test_one_order_cannot_be_had_for_half_a_cache(tmp_path):
    with as_agreed(make_builder(tmp_path, LENGTHS), False, "cuda", print):
        pass
    again = make_builder(tmp_path, LENGTHS)
    refused = pytest.raises(CacheMismatch, match="expected blocks computed with --deterministic, found a cache begun")
    with refused, as_agreed(again, True, "cuda", print):
        pass


def test_the_command_says_so_too(precompute):
    succeed(*precompute, "--part", "0/2")
    outcome = call(*precompute, "--deterministic")
    assert outcome.code == 3
    assert "Leave the option out to finish it" in outcome.message


def test_with_one_order_on_a_cpu_rows_are_what_they_are_without(precompute, tmp_path, monkeypatch):
    plain = json.loads(succeed(*precompute, "--json").out)
    monkeypatch.setenv("VIKER_CACHE_DIR", str(tmp_path))
    strict = json.loads(succeed(*precompute, "--json", "--deterministic").out)
    assert plain["key"] == strict["key"], "how rows are computed is no part of what they mean"
    assert TeacherCache.open(strict["path"]).build["deterministic"] is True
    assert TeacherCache.open(plain["path"]).build["deterministic"] is False
    assert rows(strict["path"]) == rows(plain["path"])


def rows(path: str) -> dict[str, bytes]:
    return {name: data for name, data in tree_bytes(TeacherCache.open(path).root).items() if "cache.zarr" in name}


def test_repeated_and_resumed_with_other_threads_a_cache_has_the_same_bytes(precompute, tmp_path):
    """One process with one thread; and two, the second told to use two, that make half each."""
    whole, _ = run([*precompute, "--deterministic"], tmp_path / "whole", 1)
    nothing, _ = run([*precompute, "--deterministic", "--part", "0/2"], tmp_path / "shared", 1)
    assert nothing is None
    shared, said = run([*precompute, "--deterministic"], tmp_path / "shared", 2)
    assert "computing with 1 threads in place of 2" in said
    assert tree_bytes(shared) == tree_bytes(whole)
