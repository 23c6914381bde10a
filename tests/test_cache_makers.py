"""Several makers of one cache: every block once, the same bytes as one maker's, and nobody waits for the dead."""

from __future__ import annotations

import json
import os
import random
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from viker.precompute.cache import TeacherCache
from viker.precompute.writing.claims import drop_claim, file_system_now, renewing, take_claim
from viker.tests.cache_maker import LENGTHS, NUM_BLOCKS, Makers
from viker.tests.cache_samples import fill_block, make_builder, make_cache, tree_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DEADLINE_S = 60
ELSEWHERE = b'{"host":"elsewhere","pid":1,"pids":"pid:[1]"}'


@pytest.fixture(scope="module")
def makers() -> Iterator[Makers]:
    makers = Makers()
    yield makers
    makers.close()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    home = tmp_path_factory.mktemp("whole")
    make_cache(home, LENGTHS)
    return tree_bytes(home)


def computed(home: Path) -> list[tuple[str, int]]:
    """Who began to compute which block, in order."""
    lines = map(str.split, home.with_name(f"{home.name}.log").read_text().splitlines())
    return [(name, int(block)) for name, block in lines]


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.005)


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def test_four_makers_compute_every_block_once(makers, whole, tmp_path):
    home = tmp_path / "home"
    pids = [makers.start(home, f"maker-{number}", seconds=0.02) for number in range(4)]
    assert [makers.wait(pid) for pid in pids] == [(0, "")] * 4
    blocks = computed(home)
    assert sorted(block for _, block in blocks) == list(range(NUM_BLOCKS))
    assert len({name for name, _ in blocks}) > 1, "they shared the work"
    assert tree_bytes(home) == whole


def test_makers_outlive_those_that_are_killed(makers, whole, tmp_path):
    """Two of four are killed at random events; the other two go on at once, and end the work."""
    home, rng = tmp_path / "home", random.Random(1)
    doomed = [makers.start(home, f"doomed-{number}", die_at=rng.randint(1, 150)) for number in range(2)]
    pids = [makers.start(home, f"maker-{number}", seconds=0.02) for number in range(2)]
    begun = time.monotonic()
    ends = {makers.wait(pid)[0] for pid in doomed}
    assert -signal.SIGKILL in ends
    assert ends <= {-signal.SIGKILL, 0}  # on a busy machine one may start when the others have nearly done
    assert [makers.wait(pid) for pid in pids] == [(0, "")] * 2
    assert time.monotonic() - begun < 30, "not the minute of a claim's timeout"
    assert NUM_BLOCKS <= len(computed(home)) <= NUM_BLOCKS + 4, "two blocks a kill at most"
    assert tree_bytes(home) == whole


def test_all_makers_killed_and_started_again(makers, whole, tmp_path):
    home, rng = tmp_path / "home", random.Random(2)
    for round_ in range(4):
        pids = [makers.start(home, f"r{round_}-{n}", die_at=rng.randint(50, 400)) for n in range(3)]
        for pid in pids:
            makers.wait(pid)
    assert makers.run(home, timeout_s=5.0) == (0, "")
    assert len(computed(home)) <= NUM_BLOCKS + 24
    assert tree_bytes(home) == whole


def test_parts_compute_their_own_blocks_and_the_last_one_seals(makers, whole, tmp_path):
    home = tmp_path / "home"
    for index in (2, 0):
        assert makers.run(home, str(index), part=(index, 3)) == (0, "")
        assert [path.suffix for path in home.iterdir()] == [".building"]
    assert makers.run(home, "0", part=(0, 3)) == (0, ""), "once more: nothing left for it"
    assert makers.run(home, "1", part=(1, 3)) == (0, "")
    assert all(block % 3 == int(name) for name, block in computed(home))
    assert sorted(block for _, block in computed(home)) == list(range(NUM_BLOCKS))
    assert tree_bytes(home) == whole


def test_parts_at_once_one_of_which_is_killed(makers, whole, tmp_path):
    home = tmp_path / "home"
    pids = [makers.start(home, str(index), part=(index, 4), seconds=0.01) for index in range(3)]
    pids.append(makers.start(home, "3", part=(3, 4), die_at=40))
    assert [makers.wait(pid) for pid in pids] == [*[(0, "")] * 3, (-signal.SIGKILL, "")]
    assert not list(home.glob("*/manifest.json"))
    assert makers.run(home, "whole") == (0, ""), "a run without --part completes it"
    blocks = [block for _, block in computed(home)]
    assert set(blocks) == set(range(NUM_BLOCKS))
    assert len(blocks) <= NUM_BLOCKS + 2
    assert tree_bytes(home) == whole


@pytest.mark.parametrize("clock", ["right", "a day ahead", "a day behind"])
def test_a_stopped_maker_of_another_host_costs_the_timeout(clock, makers, whole, tmp_path):
    """It holds three blocks, alive and silent: others wait for its claims to grow old; it may wake up when it likes."""
    home, skew = tmp_path / "home", {"right": 0, "a day ahead": 86400, "a day behind": -86400}[clock]
    stopped = makers.start(home, "stopped", host="elsewhere", stop_in="block fsynced")
    wait_until(lambda: is_stopped(stopped))
    begun = time.monotonic()
    assert makers.run(home, "maker", timeout_s=2.0, clock_skew=skew) == (0, "")
    waited = time.monotonic() - begun
    assert tree_bytes(home) == whole
    os.kill(stopped, signal.SIGCONT)
    assert makers.wait(stopped) == (0, ""), "it finds the cache sealed"
    assert 1.0 < waited < 20.0
    assert [name for name, block in computed(home) if block == 0] == ["stopped", "maker"]
    assert NUM_BLOCKS < len(computed(home)) <= NUM_BLOCKS + 3, "what it had in hand"
    assert tree_bytes(home) == whole


def test_a_maker_that_is_slow_and_alive_keeps_its_block(makers, whole, tmp_path):
    """Three times as slow as a claim lasts; it renews it."""
    home = tmp_path / "home"
    slow = makers.start(home, "slow", seconds=1.5, timeout_s=0.5, host="elsewhere", part=(0, NUM_BLOCKS))
    wait_until(lambda: home.with_name("home.log").exists() and ("slow", 0) in computed(home))
    fast = makers.start(home, "fast", timeout_s=0.5)
    assert [makers.wait(pid) for pid in (slow, fast)] == [(0, "")] * 2
    assert [name for name, block in computed(home) if block == 0] == ["slow"]
    assert tree_bytes(home) == whole


def test_a_sealer_that_is_stopped_is_replaced_and_cannot_do_harm(makers, whole, tmp_path):
    home = tmp_path / "home"
    sealer = makers.start(home, "sealer", host="elsewhere", stop_in="arrays fsynced")
    wait_until(lambda: is_stopped(sealer))
    assert makers.run(home, "maker", timeout_s=1.0) == (0, "")
    assert tree_bytes(home) == whole, "the stopped one's folder is gone too"
    os.kill(sealer, signal.SIGCONT)
    assert makers.wait(sealer) == (0, "")
    assert tree_bytes(home) == whole


def test_a_sealer_that_lost_its_claim_leaves_the_seal_to_the_other(tmp_path, monkeypatch):
    """Its folder vanishes under it while nobody has sealed yet: no error, no half a cache, and it tries again."""
    first, second = make_builder(tmp_path, LENGTHS), make_builder(tmp_path, LENGTHS)
    for block in range(NUM_BLOCKS):
        fill_block(first, block)
    real, asked = type(first)._rows_of_array, []

    def rows_of_array(self: Any, name: str, start: int, stop: int) -> Any:
        asked.append(name)
        if len(asked) == 6:
            for folder in tmp_path.glob("*.sealing"):
                folder.rename(tmp_path / "taken-over")
        return real(self, name, start, stop)

    monkeypatch.setattr(type(first), "_rows_of_array", rows_of_array)
    root = first.assemble()
    assert not (tmp_path / "taken-over" / "manifest.json").exists()
    assert len(asked) > 13 + 5, "from the start again"
    assert second.assemble() == root
    assert len(TeacherCache.open(root).load()) == sum(LENGTHS)


def test_a_claim_is_made_once_and_believed_while_it_is_fresh(tmp_path):
    path = tmp_path / "claim"
    assert take_claim(path, 60)
    assert take_claim(path, 60), "our own is ours"
    path.write_bytes(ELSEWHERE)
    assert not take_claim(path, 60)
    assert take_claim(path, -1), "a stale one is taken over"
    path.write_bytes(b"")
    assert not take_claim(path, 60), "just made by somebody"
    now = file_system_now(tmp_path)
    os.utime(path, (now, now - 10))
    assert take_claim(path, 60), "whoever made it never wrote it"
    path.write_bytes(ELSEWHERE)
    os.utime(path, (now, now - 10))
    assert not take_claim(path, 60)
    os.utime(path, (now, now - 61))
    assert take_claim(path, 60)


def test_the_claim_of_a_dead_process_of_this_host_is_stale_at_once(tmp_path):
    path = tmp_path / "claim"
    take_claim(path, 60)
    claim = json.loads(path.read_bytes())
    dead = subprocess.Popen(["true"])
    dead.wait()
    for pid, is_taken in ((os.getppid(), False), (dead.pid, True)):
        path.write_text(json.dumps({**claim, "pid": pid}))
        assert take_claim(path, 60) == is_taken
    for other in ({"host": "elsewhere"}, {"pids": "another container's"}):
        path.write_text(json.dumps({**claim, "pid": dead.pid, **other}))
        assert not take_claim(path, 60), "nobody here can tell whether that process runs"


def test_a_claim_is_dropped_when_the_work_ends_and_only_if_it_is_ours(tmp_path):
    path = tmp_path / "claim"
    take_claim(path, 60)
    with pytest.raises(KeyboardInterrupt), renewing(path, 60):
        raise KeyboardInterrupt
    assert not path.exists()
    path.write_bytes(ELSEWHERE)
    drop_claim(path)
    assert path.exists()


def test_a_hanging_maker_is_renewed_for_an_hour_at_most(tmp_path, monkeypatch):
    monkeypatch.setattr("viker.precompute.writing.claims._MOST_SECONDS", 0.3)
    path = tmp_path / "claim"
    take_claim(path, 60)
    with renewing(path, 0.6):
        time.sleep(0.5)
        renewed = path.stat().st_mtime_ns
        time.sleep(0.3)
        assert path.stat().st_mtime_ns == renewed


def modes(home: Path) -> dict[str, set[int]]:
    """The permissions of everything below a home, by kind."""
    paths = [home, *home.rglob("*")]
    found = {path: stat.S_IMODE(path.stat().st_mode) for path in paths}
    return {
        "folders": {mode for path, mode in found.items() if path.is_dir()},
        "files": {mode for path, mode in found.items() if path.is_file()},
    }


@pytest.mark.parametrize(
    ("home_mode", "file_mode"), [(0o2775, 0o664), (0o770, 0o660), (0o755, 0o644), (0o700, 0o600)], ids=oct
)
def test_permissions_are_the_home_s_whatever_the_umasks(home_mode, file_mode, makers, whole, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    home.chmod(home_mode)
    assert makers.run(home, "strict", umask=0o077, part=(0, 3)) == (0, "")
    assert {path.name for path in home.glob("*/*")} >= {"block-00000", "plan.json", "fingerprint.json", "clock"}
    assert modes(home) == {"folders": {home_mode}, "files": {file_mode}}
    stopped = makers.start(home, "stopped", umask=0o077, part=(1, 3), seconds=60)
    wait_until(lambda: ("stopped", 1) in computed(home))
    assert list(home.glob("*/block-00001.claim"))
    assert modes(home) == {"folders": {home_mode}, "files": {file_mode}}
    os.kill(stopped, signal.SIGKILL)
    assert makers.run(home, "lax", umask=0o000) == (0, "")
    assert modes(home) == {"folders": {home_mode}, "files": {file_mode}}
    assert tree_bytes(home) == whole


@pytest.mark.parametrize("home_mode", [0o2770, 0o770], ids=oct)
def test_two_users_of_one_group_make_and_read_one_cache(home_mode, makers, whole, tmp_path):
    """Really two users: neither is root, and all they have in common is the home's group."""
    if os.geteuid() != 0:
        pytest.skip("becoming another user needs root")
    home, group = tmp_path / "home", 65001
    home.mkdir()
    os.chown(home, -1, group)
    home.chmod(home_mode)
    first = {"user": [65002, 65002, group], "umask": 0o077}
    second = {"user": [65003, 65003, group], "umask": 0o022}
    assert makers.run(home, "first", part=(0, 2), **first) == (0, "")
    assert makers.run(home, "second", **second, timeout_s=5.0) == (0, "")
    assert {path.stat().st_uid for path in home.rglob("*")} == {65003}
    assert {path.stat().st_gid for path in home.rglob("*")} == {group}
    assert tree_bytes(home) == whole
    assert makers.run(home, "first", **first) == (0, ""), "and it may be read and swept by the other"
    assert makers.run(home, "stranger", user=[65004, 65004, 65004])[1].startswith("StorageError: ")


def test_what_the_home_gives_its_group_is_given_to_no_other_group(makers, whole, tmp_path):
    """A user who is let in as anybody, and is in other groups than the home's."""
    if os.geteuid() != 0:
        pytest.skip("becoming another user needs root")
    home = tmp_path / "home"
    home.mkdir()
    os.chown(home, -1, 65001)
    home.chmod(0o775 | 0o002)
    assert makers.run(home, user=[65004, 65004], umask=0o022) == (0, "")
    assert modes(home / next(iter(whole)).partition("/")[0]) == {"folders": {0o707}, "files": {0o606}}


RAY = """
import os, sys, time
from pathlib import Path

import ray
from viker.tests.cache_maker import share_work

home = Path(sys.argv[1])

@ray.remote(num_cpus=1, max_retries=1)
def work(name):
    def compute(block):
        with home.with_name("home.log").open("a") as log:
            log.write(f"{name} {block}\\n")
        time.sleep(0.1)
        if block > 3 and name == "worker-0" and not (home.parent / "died").exists():
            (home.parent / "died").touch()
            os.kill(os.getpid(), 9)

    share_work(home, compute)

ray.init(num_cpus=3, include_dashboard=False, object_store_memory=80 * 2**20, log_to_driver=False)
ray.get([work.remote(f"worker-{number}") for number in range(3)])
"""


@pytest.mark.slow
def test_ray_workers_share_a_cache_and_survive_one_of_them(whole, tmp_path):
    """Real Ray on this machine: three workers, one of which is killed and started again by Ray."""
    home = tmp_path / "home"
    home.mkdir()
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", RAY, str(home)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "died").exists()
    blocks = [block for _, block in computed(home)]
    assert len({name for name, _ in computed(home)}) == 3
    assert set(blocks) == set(range(NUM_BLOCKS))
    assert NUM_BLOCKS < len(blocks) <= NUM_BLOCKS + 2, "the block that the killed worker was at, the one it was writing"
    assert tree_bytes(home) == whole
