"""Shared caches over the S3 protocol: real requests to a real server, real processes that race and are killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from cache_samples import make_cache, make_fingerprint, other_making, tree_bytes
from command_line import Outcome, call, succeed
from remote_server import BUCKET, DEADLINE_S, Server, serving
from viker.precompute.cache import TeacherCache
from viker.precompute.reading.verify import verify
from viker.precompute.sharing.remote import open_store, push

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PRIVACY = "keep it as you keep the forget set"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("s3") / "log") as server:
        yield server


@pytest.fixture
def remote(server: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder of the bucket that is this test's alone."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    url = f"s3://{BUCKET}/{uuid.uuid4().hex}"
    monkeypatch.setenv("VIKER_CACHE_REMOTE", url)
    return url


@pytest.fixture
def cache(isolated_cache_home: Path) -> Path:
    return make_cache(isolated_cache_home, [3, 5, 2, 4])


def objects(server: Server, url: str) -> dict[str, int]:
    import fsspec

    files = fsspec.filesystem("s3", skip_instance_cache=True, use_listings_cache=False).find(url, detail=True)
    return {name.removeprefix(url.removeprefix("s3://")).lstrip("/"): entry["size"] for name, entry in files.items()}


def pull(key: str, home: Path, monkeypatch: pytest.MonkeyPatch, *options: object) -> Outcome:
    monkeypatch.setenv("VIKER_CACHE_DIR", str(home))
    return call("cache", "pull", key, *options)


def test_a_pushed_cache_is_pulled_byte_for_byte(
    cache: Path, remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed = succeed("cache", "push", cache)
    assert f"published in {remote}" in pushed.out
    assert PRIVACY in pushed.err
    assert f"Whoever can read {remote} can read it" in pushed.err

    pulled = pull(cache.name[:6], tmp_path / "second", monkeypatch)
    assert pulled.code == 0, pulled.err
    assert PRIVACY in pulled.err
    copy = tmp_path / "second" / cache.name
    assert tree_bytes(copy) == tree_bytes(cache)
    assert verify(copy, "full") == []
    assert [path.name for path in (tmp_path / "second").glob("*/")] == [cache.name], "no leftovers"


def test_the_layout_of_a_remote(cache: Path, remote: str, server: Server) -> None:
    succeed("cache", "push", cache)
    opened = TeacherCache.open(cache)
    root = f"{cache.name}/{opened.root_digest[:16]}"
    assert objects(server, remote).keys() == {
        f"{cache.name}/pointer.json", *(f"{root}/{name}" for name in tree_bytes(cache))
    }  # fmt: skip
    listed = json.loads(succeed("cache", "list", "--remote", "--json").out)
    assert listed["schema"] == "viker/remote-caches/1"
    (pointer,) = listed["caches"]
    size = sum(map(len, tree_bytes(cache).values()))
    assert pointer == {
        "schema": "viker/cache-pointer/1", "key": opened.key, "root": opened.root_digest, "bytes": size,
        "made": None, "seconds": None,
    }  # fmt: skip
    uploads = [path for path in server.requests("PUT") if cache.name in path and remote.rpartition("/")[2] in path]
    names = [path.rpartition("/")[2].partition("?")[0] for path in uploads]
    assert names[-3:] == ["manifest.json", "pointer.json", "pointer.json"], "the second pointer is the store's test"


def test_pushing_again_sends_nothing(cache: Path, remote: str, server: Server) -> None:
    succeed("cache", "push", cache)
    before = len(server.requests("PUT"))
    again = succeed("cache", "push", cache.name)
    assert "already there" in again.out
    assert len(server.requests("PUT")) == before


def test_a_push_that_lacks_files_is_mended(cache: Path, remote: str) -> None:
    import fsspec

    succeed("cache", "push", cache)
    system = fsspec.filesystem("s3", skip_instance_cache=True)
    lost = next(name for name in system.find(remote) if name.endswith("entropy/c/0"))
    system.rm_file(lost)
    assert "1 missing files sent" in succeed("cache", "push", cache).out


def test_of_two_makers_the_first_stays_and_the_second_is_told_the_distance(
    cache: Path, remote: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = other_making(tmp_path / "other", cache)
    succeed("cache", "push", cache)
    before = objects(server, remote)
    second = succeed("cache", "push", other, "--json")
    told = json.loads(second.out)
    assert told["outcome"] == "second"
    assert told["root"] == TeacherCache.open(cache).root_digest
    assert 0 < told["mean_distance"] < 1e-3
    assert objects(server, remote) == before, "nothing of the second is published"
    assert [path.suffix for path in (tmp_path / "other").iterdir()] == [""]
    refused = pull(cache.name, tmp_path / "other", monkeypatch)
    assert refused.code == 3
    for root in map(TeacherCache.open, (cache, other)):
        assert root.root_digest in refused.message


def test_of_many_who_put_a_pointer_at_once_one_wins(
    remote: str, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    stores = [open_store(remote) for _ in range(4)]
    contents = [bytes([65 + number]) * 500 for number in range(len(stores))]
    for name in map(str, range(10)):
        with ThreadPoolExecutor(len(stores)) as pool:
            won = list(pool.map(lambda store, content, name=name: store.put_if_absent(name, content), stores, contents))
        assert sum(won) == 1
        assert stores[0].read(name, 1000) == contents[won.index(True)]
    assert caplog.text == ""


def test_a_server_that_ignores_the_condition_is_said(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(tmp_path / "log", "careless") as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        assert push(open_store(f"s3://{BUCKET}/x"), cache).outcome == "published"
    assert "ignores the condition of a conditional write" in caplog.text


def start_push(path: Path, server: Server) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "viker", "cache", "push", str(path), "--json"], text=True,
        env={**os.environ, **server.environment, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def expect_one_winner(outcomes: list[dict[str, Any]], caches: list[Path], server: Server, remote: str) -> str:
    roots = [TeacherCache.open(path).root_digest for path in caches]
    assert sorted(outcome["outcome"] for outcome in outcomes) == ["published", "second"]
    (winner,) = {outcome["root"] for outcome in outcomes}
    assert winner == roots[[outcome["outcome"] for outcome in outcomes].index("published")]
    folders = {name.split("/")[1] for name in objects(server, remote)}
    assert folders == {"pointer.json", winner[:16]}, "of the other, nothing is left"
    return winner


def finished(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, err
    told: dict[str, Any] = json.loads(out)
    return told


def race(caches: list[Path], server: Server, remote: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    outcomes = [finished(process) for process in [start_push(path, server) for path in caches]]
    winner = expect_one_winner(outcomes, caches, server, remote)
    shutil.rmtree(home, ignore_errors=True)
    assert pull(caches[0].name, home, monkeypatch).code == 0
    assert TeacherCache.open(home / caches[0].name).root_digest == winner
    return winner


def test_two_processes_that_push_one_key_at_once_do_not_mix_bytes(
    cache: Path, remote: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    race([cache, other_making(tmp_path / "other", cache)], server, remote, tmp_path / "third", monkeypatch)


@pytest.mark.slow
def test_two_processes_that_push_one_key_at_once_do_not_mix_bytes_in_many_rounds(
    cache: Path, remote: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    caches = [cache, other_making(tmp_path / "other", cache)]
    winners = set()
    for number in range(20):
        monkeypatch.setenv("VIKER_CACHE_REMOTE", f"{remote}/{number}")
        pair = caches if number % 2 else caches[::-1]
        winners.add(race(pair, server, f"{remote}/{number}", tmp_path / "third", monkeypatch))
    assert len(winners) == 2, "either may win"


@pytest.mark.parametrize(("how", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 75)])
def test_a_push_that_is_killed_or_interrupted_publishes_nothing_and_resumes(
    how: signal.Signals,
    code: int,
    remote: str,
    server: Server,
    isolated_cache_home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache = make_cache(isolated_cache_home, [2000] * 20, make_fingerprint(top_k=16))
    folder = remote.rpartition("/")[2]

    def sent() -> int:
        return sum(folder in path for path in server.requests("PUT"))

    process = start_push(cache, server)
    end = time.monotonic() + DEADLINE_S
    while sent() < 5:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
    process.send_signal(how)
    _, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == code, err
    assert "Traceback" not in err

    there = objects(server, remote)
    files = tree_bytes(cache)
    assert 0 < len(there) < len(files), "the test has to stop it in the middle"
    assert not any(name.endswith(("pointer.json", "manifest.json")) for name in there)
    assert json.loads(succeed("cache", "list", "--remote", "--json").out)["caches"] == []
    assert pull(cache.name, tmp_path / "second", monkeypatch).code == 1

    monkeypatch.setenv("VIKER_CACHE_DIR", str(isolated_cache_home))
    resumed = json.loads(succeed("cache", "push", cache.name, "--json").out)
    assert resumed["files_sent"] == len(files) - len(there)
    assert pull(cache.name, tmp_path / "second", monkeypatch).code == 0
    assert tree_bytes(tmp_path / "second" / cache.name) == files


def test_a_killed_pull_leaves_nothing_that_could_pass_for_a_cache_and_resumes(
    remote: str, server: Server, isolated_cache_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = make_cache(isolated_cache_home, [2000] * 20, make_fingerprint(top_k=16))
    succeed("cache", "push", cache)
    second = tmp_path / "second"

    def fetched() -> int:
        return sum(path.is_file() for path in second.glob("*.pulling/cache/**/*"))

    process = subprocess.Popen(
        [sys.executable, "-m", "viker", "cache", "pull", cache.name], text=True, stderr=subprocess.PIPE,
        env={**os.environ, **server.environment, "VIKER_CACHE_DIR": str(second), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    end = time.monotonic() + DEADLINE_S
    while fetched() < 6:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
    process.send_signal(signal.SIGKILL)
    assert process.wait(DEADLINE_S) == -signal.SIGKILL
    process.communicate()
    (left,) = second.iterdir()
    assert left.name.startswith(f"{cache.name}.")
    assert left.name.endswith(".pulling")
    kept = {path for path in left.glob("cache/**/*") if path.is_file()}
    assert len(kept) < len(tree_bytes(cache)), "the test has to stop it in the middle"

    torn = max(path for path in kept if path.name != "manifest.json")
    torn.write_bytes(bytes(torn.stat().st_size))
    before = len(server.requests("GET"))
    assert pull(cache.name, second, monkeypatch).code == 0
    asked = [path for path in server.requests("GET")[before:] if cache.name in path]
    again = [path for path in asked if any(path.endswith(f"/{one.relative_to(left / 'cache')}") for one in kept)]
    assert {path.rpartition("/")[2] for path in again} == {"manifest.json", torn.name}
    assert len(again) == 2
    assert tree_bytes(second / cache.name) == tree_bytes(cache)
    assert not left.exists()


def test_pulling_what_is_here_fetches_nothing(cache: Path, remote: str, server: Server) -> None:
    succeed("cache", "push", cache)
    before = len(server.requests("GET"))
    assert "already there" in succeed("cache", "pull", cache.name).out
    assert len(server.requests("GET")) == before + 1, "the pointer"


def test_a_root_that_is_not_the_expected_one_is_refused(
    cache: Path, remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    succeed("cache", "push", cache)
    root = TeacherCache.open(cache).root_digest
    refused = pull(cache.name, tmp_path / "second", monkeypatch, "--expect-root", "ab" * 32)
    assert refused.code == 3
    assert "ab" * 32 in refused.message
    assert root in refused.message
    assert not (tmp_path / "second").exists()
    assert pull(cache.name, tmp_path / "second", monkeypatch, "--expect-root", root[:12]).code == 0


# ---- what goes wrong -------------------------------------------------------------------------------------------------


def test_what_goes_wrong_is_one_line(cache: Path, remote: str, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def told(*arguments: object) -> str:
        result = call(*arguments)
        assert result.code == 1, result.err
        assert result.message.count("\n") == 1, result.message
        return result.message

    assert "bucket does not exist" in told("cache", "push", cache, "--to", "s3://no-such-bucket/x")
    assert "bucket does not exist" in told("cache", "pull", "abcd", "--from", "s3://no-such-bucket/x")
    assert "found no bucket" in told("cache", "push", cache, "--to", "s3://")
    assert "Protocol not known: s4" in told("cache", "push", cache, "--to", "s4://bucket/x")
    assert "expected the folder of a remote, found none" in told("cache", "push", cache, "--to", "/no/such/folder")
    assert "pip install 'viker[remote]'" in told("cache", "push", cache, "--to", "gs://bucket/x")
    assert "found none" in told("cache", "pull", "0123456789abcdef")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    assert "cannot be reached" in told("cache", "pull", "abcd")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.port}")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    assert "AWS_ACCESS_KEY_ID" in told("cache", "pull", "abcd")


def test_without_the_extra_the_command_that_installs_it_is_named(cache: Path, remote: str) -> None:
    code = "import sys; sys.modules['s3fs'] = None; from viker.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "cache", "push", str(cache)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("For S3: pip install 'viker[remote]'.")


def test_without_an_address_it_is_a_mistake_in_usage(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VIKER_CACHE_REMOTE", raising=False)
    for command in (["push", cache], ["pull", "abcd"], ["list", "--remote"]):
        assert call("cache", *command).code == 2
