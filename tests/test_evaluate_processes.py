"""Several processes: the results of one, bit for bit; deaths and interrupts lose what was in flight and no more."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import evaluation_jobs
import pytest
from evaluation_jobs import BATCH_SIZE, Broken, Dying, Refusing, jobs_about, loading_of
from viker.data.example import DataError
from viker.evaluate import processes
from viker.evaluate.processes import ProcessEnded, Work, run_batches, run_jobs_in_processes
from viker.evaluate.work import Batch, Job, run_jobs

if TYPE_CHECKING:
    from collections.abc import Iterator

DEADLINE_S = 240
STAMP = {"made": "here"}


MANY = 480  # examples of a run that is long enough to be killed four times on a fast machine


@pytest.fixture(scope="module")
def jobs(mini_world: Path) -> list[Job]:
    return jobs_about(mini_world)


def kept(folder: Path) -> Counter[int]:
    """How often each batch is in the journals of a folder."""
    lines = (line for path in folder.glob("*.jsonl") for line in path.read_bytes().split(b"\n")[1:-1])
    return Counter(json.loads(line)["batch"] for line in lines)


def workers(folder: Path) -> list[int]:
    """The processes that have a journal."""
    return [int(path.name.split("-")[1]) for path in folder.glob("*.jsonl")]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def works(jobs: list[Job], folder: Path, size: int = 1) -> Work:
    batches = [Batch("reply", 4, tuple(range(start, start + size))) for start in range(0, len(jobs), size)]
    return Work(jobs, batches, STAMP, folder, 1)


# ---- What comes out --------------------------------------------------------------------------------------------------


def test_two_processes_give_the_results_of_one_bit_for_bit(jobs, tiny, tiny_model_dir, tmp_path, monkeypatch):
    jobs = jobs[:40]
    alone = run_jobs(jobs, tiny, batch_size=BATCH_SIZE, folder=tmp_path / "one", desc="ask")
    asked = {"batch_size": BATCH_SIZE, "folder": tmp_path / "two", "desc": "ask", "num_threads": 1}
    loading = loading_of(tiny_model_dir)
    assert run_jobs_in_processes(jobs, loading, num_processes=2, **asked) == alone
    assert len(set(workers(tmp_path / "two"))) == 2
    assert set(kept(tmp_path / "two").values()) == {1}

    monkeypatch.setattr(processes, "_Child", None)  # nothing is left for one
    assert run_jobs_in_processes(jobs, loading, num_processes=3, **asked) == alone
    assert run_jobs_in_processes(jobs, loading, num_processes=3, **{**asked, "folder": tmp_path / "one"}) == alone


def test_each_process_has_its_share_of_the_threads_or_what_the_user_says(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(processes.torch, "get_num_threads", lambda: 9)
    assert [processes.threads_each(n) for n in (1, 2, 4, 20)] == [9, 4, 2, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "9")
    assert processes.threads_each(4) == 9


def test_gpus_are_dealt_out_in_turn(monkeypatch):
    monkeypatch.setattr(processes.torch.cuda, "device_count", lambda: 2)
    assert [processes._device_of("cuda", number) for number in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert [processes._device_of(device, 1) for device in ("cpu", "cuda:0")] == ["cpu", "cuda:0"]


# ---- What goes wrong -------------------------------------------------------------------------------------------------


def test_a_child_that_is_killed_is_named_and_what_was_finished_is_kept(jobs, tmp_path):
    work = works(jobs[:12], tmp_path)
    with pytest.raises(ProcessEnded, match=r"process [01] \(pid \d+\) .* ended by signal 9 \(SIGKILL\).* fewer --proc"):
        run_batches(work, Dying(at=7), num_processes=2, desc="ask")
    before = kept(tmp_path)
    assert 7 not in before
    assert before
    results = run_batches(work, Dying(at=-1), num_processes=1, desc="ask")
    assert results == [str(len(job.example.question)) for job in jobs[:12]]
    assert set(kept(tmp_path).values()) == {1}
    assert not any(map(is_running, workers(tmp_path)))


@pytest.mark.slow
def test_what_a_child_says_to_a_user_is_said_and_a_fault_of_ours_shows(jobs, tmp_path, capfd):
    with pytest.raises(DataError, match=r"^expected a model, found none. Make one.$"):
        run_batches(works(jobs[:2], tmp_path), Refusing(), num_processes=1, desc="ask")
    with pytest.raises(ProcessEnded, match="ended with exit status 1, having said why above"):
        run_batches(works(jobs[:2], tmp_path), Broken(), num_processes=1, desc="ask")
    assert "AssertionError: a fault of ours" in capfd.readouterr().err


# ---- Kills -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def start(mini_world: Path, tiny_model_dir: Path, tmp_path: Path) -> Iterator[object]:
    """Starts an evaluation in two processes, as a group of its own."""
    started: list[subprocess.Popen[str]] = []

    def begin() -> subprocess.Popen[str]:
        program = [sys.executable, evaluation_jobs.__file__, mini_world, tiny_model_dir, tmp_path / "kept", "2", MANY]
        process = subprocess.Popen(
            list(map(str, program)), env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True, stderr=subprocess.PIPE,
            start_new_session=True,
        )  # fmt: skip
        started.append(process)
        return process

    yield begin
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_for(process: subprocess.Popen[str], folder: Path, num_batches: int) -> None:
    end = time.monotonic() + DEADLINE_S
    while kept(folder).total() < num_batches:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end, f"{kept(folder).total()} batches in {DEADLINE_S} s"
        time.sleep(0.005)


def newest(folder: Path) -> int:
    """The process that began its journal last."""
    return int(max(folder.glob("*.jsonl"), key=lambda path: path.stat().st_mtime_ns).name.split("-")[1])


@pytest.mark.slow
def test_killed_child_group_and_parent_the_results_are_those_of_an_undisturbed_run(
    mini_world, tiny, tiny_model_dir, tmp_path, start
):
    folder, jobs = tmp_path / "kept", jobs_about(mini_world, MANY)
    expected = run_jobs(jobs, tiny, batch_size=1, folder=tmp_path / "whole", desc="ask")
    num_batches = len(kept(tmp_path / "whole"))

    process = start()
    wait_for(process, folder, 5)
    os.kill(newest(folder), signal.SIGKILL)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert "ended by signal 9 (SIGKILL)" in error

    process = start()
    wait_for(process, folder, kept(folder).total() + 5)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL

    process = start()
    wait_for(process, folder, kept(folder).total() + 5)
    os.kill(process.pid, signal.SIGKILL)  # the parent alone: its children see the pipe close
    process.wait()
    end = time.monotonic() + 30
    while any(map(is_running, workers(folder))):
        assert time.monotonic() < end, "a child outlived its parent"
        time.sleep(0.05)

    process = start()
    wait_for(process, folder, kept(folder).total() + 5)
    os.killpg(process.pid, signal.SIGINT)  # Ctrl-C goes to the whole group
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 75
    assert "Traceback" not in error
    assert not any(map(is_running, workers(folder)))

    so_far = kept(folder)
    assert 20 <= len(so_far) < num_batches, "each time it has to be stopped in the middle"
    asked = {"batch_size": 1, "folder": folder, "desc": "ask", "num_threads": 1}
    assert run_jobs_in_processes(jobs, loading_of(tiny_model_dir), num_processes=2, **asked) == expected
    assert kept(folder) == Counter(range(num_batches)), "finished batches are not computed again"
