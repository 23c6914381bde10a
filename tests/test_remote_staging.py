"""Parts that share an object store and no disk: real requests to a real server, real processes that are killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cache_samples import fill_block, make_builder, make_cache, tree_bytes
from command_line import call, succeed
from remote_server import BUCKET, DEADLINE_S, Server, serving
from viker.precompute.cache import TeacherCache
from viker.precompute.sharing.remote import open_store, push
from viker.precompute.sharing.staging import RemoteStaging, remove_staged

if TYPE_CHECKING:
    from collections.abc import Iterator

    from viker.precompute.sharing.stores import Store
    from viker.precompute.writing.store import CacheBuilder

LENGTHS = [3, 1, 4, 1, 5] * 10
NUM_BLOCKS = 25


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("s3") / "log") as server:
        yield server


@pytest.fixture(params=["s3", "folder"])
def remote(request, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder that is this test's alone, in the bucket or on a disk."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    url = f"s3://{BUCKET}/{uuid.uuid4().hex}"
    if request.param == "folder":
        (tmp_path / "remote").mkdir()
        url = str(tmp_path / "remote")
    monkeypatch.setenv("VIKER_CACHE_REMOTE", url)
    return url


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    home = tmp_path_factory.mktemp("whole")
    return tree_bytes(make_cache(home, LENGTHS))


def run_part(store: Store, home: Path, index: int, count: int) -> tuple[CacheBuilder, list[int]]:
    """What a part does, with numbers in place of a teacher's rows; return what it computed."""
    builder = make_builder(home, LENGTHS)
    staging, mine = RemoteStaging(store, builder), range(index, NUM_BLOCKS, count)
    staging.share(mine)
    computed = [block for block in mine if builder.claim(block)]
    for block in computed:
        fill_block(builder, block)
    return builder, computed


def finish(store: Store, builder: CacheBuilder) -> Path | None:
    """Seal and publish if everything is there, as `viker precompute` does at the end of a part."""
    staging = RemoteStaging(store, builder)
    if not staging.gather():
        cache = staging.published()
        return None if cache is None else cache.root
    root = builder.assemble()
    push(store, root)
    remove_staged(store, builder.key)
    return root


def staged(store: Store, builder: CacheBuilder) -> list[str]:
    return sorted(name.partition("/")[2] for name in store.files(builder.key[:16]) if name.startswith("blocks-"))


def test_parts_on_machines_of_their_own_make_the_cache_of_one(remote, whole, tmp_path):
    store = open_store(remote)
    for index in (2, 0):
        builder, computed = run_part(store, tmp_path / f"machine-{index}", index, 3)
        assert computed == list(range(index, NUM_BLOCKS, 3))
        assert finish(store, builder) is None
    assert len(staged(store, builder)) == 8 + 9
    builder, _ = run_part(store, tmp_path / "machine-1", 1, 3)
    root = finish(store, builder)
    assert root is not None
    assert tree_bytes(root) == whole
    assert {name.rpartition("/")[2] for name in store.files(builder.key[:16])} >= {"pointer.json", "manifest.json"}
    assert staged(store, builder) == []


def test_a_part_that_is_lost_with_its_machine_goes_on_from_what_it_sent(remote, whole, tmp_path):
    store = open_store(remote)
    builder = make_builder(tmp_path / "lost", LENGTHS)
    RemoteStaging(store, builder)
    for block in range(10):
        fill_block(builder, block)
    again, computed = run_part(store, tmp_path / "another", 0, 1)
    assert computed == list(range(10, NUM_BLOCKS))
    assert tree_bytes(finish(store, again)) == whole


def test_a_block_that_could_not_be_sent_is_sent_by_the_next_run(remote, whole, tmp_path):
    store = open_store(remote)
    offline = make_builder(tmp_path / "home", LENGTHS)
    for block in range(5):
        fill_block(offline, block)
    builder, computed = run_part(store, tmp_path / "home", 0, 1)
    assert computed == list(range(5, NUM_BLOCKS))
    assert len(staged(store, builder)) == NUM_BLOCKS
    assert tree_bytes(finish(store, builder)) == whole


def test_a_damaged_block_in_the_remote_is_computed_again(remote, whole, tmp_path, caplog):
    store = open_store(remote)
    builder, _ = run_part(store, tmp_path / "first", 0, 2)
    name = next(name for name in store.files(builder.key[:16]) if name.endswith("block-00004"))
    content = bytearray(store.read(f"{builder.key[:16]}/{name}", 1 << 20))
    content[-1] ^= 1
    store.replace(f"{builder.key[:16]}/{name}", bytes(content))
    other, _ = run_part(store, tmp_path / "second", 1, 2)
    assert finish(store, other) is None, "24 whole blocks are no cache"
    assert "block-00004 is damaged" in caplog.text
    again, computed = run_part(store, tmp_path / "third", 0, 2)
    assert computed == [4]
    assert tree_bytes(finish(store, again)) == whole


def test_two_parts_that_end_at_once_may_both_seal(remote, whole, tmp_path):
    store = open_store(remote)
    first, _ = run_part(store, tmp_path / "first", 0, 2)
    second, _ = run_part(store, tmp_path / "second", 1, 2)
    assert RemoteStaging(store, first).gather()
    assert RemoteStaging(store, second).gather()
    assert push(store, first.assemble()).outcome == "published"
    assert push(store, second.assemble()).outcome == "there"
    assert tree_bytes(first.root) == tree_bytes(second.root) == whole


def test_a_part_that_comes_after_the_seal_gets_the_published_cache(remote, whole, tmp_path):
    store = open_store(remote)
    late, _ = run_part(store, tmp_path / "late", 1, 2)
    last, _ = run_part(store, tmp_path / "last", 0, 2)
    finish(store, last)
    assert tree_bytes(finish(store, late)) == whole
    assert [path.name for path in (tmp_path / "late").glob("*/")] == [late.root.name]


def test_what_the_first_part_agreed_on_is_there_for_the_next(remote, tmp_path):
    store = open_store(remote)
    first = make_builder(tmp_path / "first", LENGTHS)
    RemoteStaging(store, first)
    (first.staging / "token-budget.json").write_bytes(b'{"schema":"viker/agreed/1","value":2048}')
    fill_block(first, 0)
    second = make_builder(tmp_path / "second", LENGTHS)
    RemoteStaging(store, second)
    assert (second.staging / "token-budget.json").read_bytes() == (first.staging / "token-budget.json").read_bytes()


PART = """
import sys
from pathlib import Path
from viker.precompute.sharing.remote import open_store
from viker.tests.cache_samples import make_builder
from viker.tests.test_remote_staging import finish, run_part
store = open_store(sys.argv[1])
builder, _ = run_part(store, Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
finish(store, builder)
"""


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_parts_killed_at_any_moment_and_run_again_on_fresh_machines(seed, server, whole, tmp_path, monkeypatch):
    """Three parts, each on a disk of its own that is gone with it; every second run is killed after a random time."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    url, rng = f"s3://{BUCKET}/{uuid.uuid4().hex}", random.Random(seed)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
    }
    for round_ in range(4):
        started = [
            subprocess.Popen(
                [sys.executable, "-c", PART, url, str(tmp_path / f"{round_}-{index}"), str(index), "3"], env=environment
            )
            for index in range(3)
        ]
        for process in started:
            if round_ < 3:
                time.sleep(rng.uniform(0.1, 1.5))
                process.send_signal(signal.SIGKILL)
            assert process.wait(DEADLINE_S) in (0, -signal.SIGKILL)
    store = open_store(url)
    builder, _ = run_part(store, tmp_path / "end", 0, 1)
    root = finish(store, builder)
    assert root is not None
    assert tree_bytes(root) == whole


# ---- The command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def precompute(mini_world: Path, tiny_model_dir: Path, quiet_torch: None) -> list[str]:
    pool = mini_world / "pools" / "pets"
    return [
        "precompute", "--data", str(mini_world), "--model", str(tiny_model_dir), "--pool", str(pool), "--split", "all",
        "--num-references", "1", "--top-k", "8", "--limit", "40",
    ]  # fmt: skip


def test_the_parts_of_an_array_share_a_bucket_and_no_disk(precompute, remote, tmp_path, monkeypatch):
    monkeypatch.setenv("VIKER_CACHE_DIR", str(tmp_path / "one"))
    expected = json.loads(succeed(*precompute, "--json").out)
    store = open_store(remote)
    for index in range(2):
        monkeypatch.setenv("VIKER_CACHE_DIR", str(tmp_path / f"node-{index}"))
        outcome = succeed(*precompute, "--part", f"{index}/3", "--stage-in-remote")
        assert "blocks staged; the part that finishes last seals" in outcome.err
        assert list((tmp_path / f"node-{index}").glob("*/manifest.json")) == []
    monkeypatch.setenv("VIKER_CACHE_DIR", str(tmp_path / "node-2"))
    last = succeed(*precompute, "--part", "2/3", "--stage-in-remote", "--json")
    summary = json.loads(last.out[last.out.index("{") :].partition("\n}")[0] + "\n}")
    assert summary["key"] == expected["key"]
    assert 0 < summary["pairs"] < expected["pairs"]
    assert tree_bytes(Path(summary["path"])) == tree_bytes(Path(expected["path"]))
    assert not [name for name in store.files(expected["key"][:16]) if name.startswith("blocks-")]
    monkeypatch.setenv("VIKER_CACHE_DIR", str(tmp_path / "node-0"))
    again = json.loads(succeed(*precompute, "--part", "0/3", "--json").out)
    assert (again["pairs"], again["key"]) == (0, expected["key"])
    assert TeacherCache.open(again["path"]).root_digest == TeacherCache.open(expected["path"]).root_digest


def test_without_an_address_staging_in_a_remote_is_a_usage_error(precompute, monkeypatch):
    monkeypatch.delenv("VIKER_CACHE_REMOTE", raising=False)
    outcome = call(*precompute, "--stage-in-remote")
    assert outcome.code == 2
    assert "expected an address in $VIKER_CACHE_REMOTE, found none" in outcome.message


def test_a_repository_of_the_hub_is_no_place_to_stage_in(precompute, monkeypatch):
    monkeypatch.setenv("VIKER_CACHE_REMOTE", "hf://datasets/team/caches")
    outcome = call(*precompute, "--stage-in-remote")
    assert outcome.code == 2
    assert "expected an object store or a folder, found hf://datasets/team/caches" in outcome.message
