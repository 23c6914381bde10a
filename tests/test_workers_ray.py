"""Real Ray on this machine: two workers, a cluster that loses a node, workers and drivers killed; always one cache."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cache_samples import tree_bytes
from viker.precompute.cache import TeacherCache

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.slow

DEADLINE_S = 240
NODES = """
import os, sys
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
from ray.cluster_utils import Cluster
small = {"object_store_memory": 80 * 2**20}
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **small})
nodes = [cluster.add_node(num_cpus=1, **small) for _ in range(2)]
print(cluster.address, flush=True)
for line in sys.stdin:
    cluster.remove_node(nodes.pop(), allow_graceful=False)
    print("removed", flush=True)
cluster.shutdown()
"""


@pytest.fixture(scope="module")
def precompute(mini_world: Path, tiny_model_dir: Path) -> list[str]:
    """A precompute of more than twenty blocks, made slow by the oracle's one example at a time."""
    return [
        "precompute", "--data", str(mini_world), "--model", str(tiny_model_dir), "--pool",
        str(mini_world / "pools" / "pets"), "--split", "all", "--num-references", "6", "--top-k", "16", "--engine",
        "naive", "--json",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def whole(precompute: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The cache that one process makes."""
    home = tmp_path_factory.mktemp("whole")
    code, _, err = ended(start(precompute, home))
    assert code == 0, err
    return cache_bytes(home)


def start(precompute: list[str], home: Path, *more: object, threads: int = 1) -> subprocess.Popen[str]:
    environment = {
        **os.environ, "VIKER_CACHE_DIR": str(home), "OMP_NUM_THREADS": str(threads), "RAY_USAGE_STATS_ENABLED": "0",
    }  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-m", "viker", *precompute, *map(str, more)], env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=DEADLINE_S)
    return process.returncode, out, err


def cache_bytes(home: Path) -> dict[str, bytes]:
    (root,) = (path.parent for path in home.glob("*/manifest.json"))
    assert [path for path in home.iterdir() if path.is_dir() and not path.name.startswith(".")] == [root]
    return tree_bytes(root)


def staged(home: Path) -> int:
    return len([path for path in home.glob("*.building/block-*") if path.suffix == ""])


def wait_until(holds: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + DEADLINE_S
    while not holds():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.02)


def descendants(pid: int) -> dict[int, str]:
    """The processes below one, by id, with the time they were started, which tells them from later ones of that id."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            found[int(path.parent.name)] = (int(fields[1]), fields[19])
    below = {pid}
    while more := {child for child, (parent, _) in found.items() if parent in below} - below:
        below |= more
    return {child: found[child][1] for child in below - {pid}}


def alive(processes: dict[int, str]) -> set[int]:
    running = set()
    for pid, started in processes.items():
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            if fields[0] != "Z" and fields[19] == started:
                running.add(pid)
    return running


def command_of(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return ""


@contextlib.contextmanager
def two_nodes() -> Iterator[Any]:
    process = subprocess.Popen(
        [sys.executable, "-c", NODES], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        yield process
    finally:
        process.communicate(timeout=DEADLINE_S)


def test_two_workers_make_the_bytes_of_one_process(precompute, whole, tmp_path):
    code, out, err = ended(start(precompute, tmp_path, "--workers", 2))
    assert code == 0, err
    assert err.count("worker on") == 2
    assert err.count("pair/s") >= 1
    summary = json.loads(out)
    assert summary["engine"] == "naive"
    assert summary["pairs"] > 0
    assert cache_bytes(tmp_path) == whole
    assert set(TeacherCache.open(next(tmp_path.glob("*/manifest.json")).parent).build["block_devices"]) == {"cpu"}


def test_a_node_that_dies_in_the_middle_costs_its_blocks_and_changes_no_byte(precompute, whole, tmp_path):
    with two_nodes() as nodes:
        address = nodes.stdout.readline().strip()
        process = start(precompute, tmp_path, "--workers", address)
        wait_until(lambda: staged(tmp_path) >= 3, process)
        nodes.stdin.write("remove\n")
        nodes.stdin.flush()
        assert nodes.stdout.readline() == "removed\n"
        staged_then = staged(tmp_path)
        code, _, err = ended(process)
    assert code == 0, err
    assert 3 <= staged_then < 20, "the test has to remove it in the middle"
    assert "WARNING: lost the worker on" in err
    assert cache_bytes(tmp_path) == whole


def test_a_driver_that_is_no_node_reaches_a_cluster_by_ray_client(precompute, whole, tmp_path):
    """The client server's own mode: what `ray start` puts before it, to keep drivers apart, is left out."""
    pytest.importorskip("grpc", reason="ray:// needs pip install 'viker[distributed]'")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with two_nodes() as nodes:
        address = nodes.stdout.readline().strip()
        server = subprocess.Popen(
            [
                sys.executable, "-m", "ray.util.client.server", "--address", address, "--host", "127.0.0.1", "--port",
                str(port), "--mode", "legacy",
            ],
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            code, _, err = ended(start(precompute, tmp_path, "--workers", f"ray://127.0.0.1:{port}"))
        finally:
            server.kill()
            server.wait()
    assert code == 0, err
    assert cache_bytes(tmp_path) == whole


def test_a_worker_that_is_killed_is_replaced(precompute, whole, tmp_path):
    process = start(precompute, tmp_path, "--workers", 2)
    wait_until(lambda: staged(tmp_path) >= 2, process)
    (victim, *_) = [pid for pid in descendants(process.pid) if command_of(pid).startswith("ray::Worker")]
    os.kill(victim, signal.SIGKILL)
    code, _, err = ended(process)
    assert code == 0, err
    assert "WARNING: lost the worker on" in err
    assert cache_bytes(tmp_path) == whole


def test_a_driver_that_is_stopped_or_killed_leaves_no_process_and_resumes(precompute, whole, tmp_path):
    process = start(precompute, tmp_path, "--workers", 2)
    wait_until(lambda: staged(tmp_path) >= 2, process)
    ray_processes = descendants(process.pid)
    process.send_signal(signal.SIGTERM)
    code, _, err = ended(process)
    assert code == 75, err
    assert "Interrupted. Run the same command again: what is complete is kept." in err
    assert "Traceback" not in err
    kept = staged(tmp_path)
    assert 2 <= kept < 20
    gone_within(ray_processes, 30)

    process = start(precompute, tmp_path, "--workers", 2)
    wait_until(lambda: staged(tmp_path) > kept, process)
    ray_processes = descendants(process.pid)
    process.kill()
    code, _, err = ended(process)
    assert code == -signal.SIGKILL
    assert kept < staged(tmp_path) < 20, "the test has to kill it in the middle"
    gone_within(ray_processes, 180)  # agents notice late that they are alone

    code, _, err = ended(start(precompute, tmp_path))
    assert code == 0, err
    assert cache_bytes(tmp_path) == whole


def gone_within(processes: dict[int, str], seconds: float) -> None:
    assert processes
    end = time.monotonic() + seconds
    while running := alive(processes):
        assert time.monotonic() < end, {pid: command_of(pid) for pid in running}
        time.sleep(0.1)


def test_parts_with_workers_share_a_cache(precompute, whole, tmp_path):
    code, _, err = ended(start(precompute, tmp_path, "--workers", 1, "--part", "1/2"))
    assert code == 0, err
    assert "the part that finishes last seals" in err
    code, _, err = ended(start(precompute, tmp_path, "--part", "0/2"))
    assert code == 0, err
    assert cache_bytes(tmp_path) == whole


def test_sigterm_without_workers_is_an_interruption_too(precompute, tmp_path):
    process = start(precompute, tmp_path)
    wait_until(lambda: staged(tmp_path) >= 2, process)
    process.send_signal(signal.SIGTERM)
    code, _, err = ended(process)
    assert code == 75, err
    assert staged(tmp_path) >= 2
