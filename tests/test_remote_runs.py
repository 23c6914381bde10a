"""Runs on two machines that share a remote: what one computed the other fetches, and trains from those very bytes."""

from __future__ import annotations

import json
import re
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from cache_samples import tree_bytes
from command_line import Outcome, call, succeed
from viker.data.example import canonical_json
from viker.precompute.cache import TeacherCache
from viker.precompute.reading.layout import manifest_bytes
from viker.precompute.sharing.pointer import read_making, read_pointer
from viker.precompute.sharing.remote import push, tombstone
from viker.precompute.sharing.stores import FolderStore
from viker.precompute.writing.blocks import list_files

if TYPE_CHECKING:
    from pathlib import Path

LIMIT = 6


@pytest.fixture(scope="module")
def asked(mini_world: Path, tiny_model_dir: Path, quiet_torch: None) -> list[object]:
    return ["--data", mini_world, "--model", tiny_model_dir, "--top-k", 16, "--limit", LIMIT]


@pytest.fixture(scope="module")
def pool(mini_world: Path) -> list[object]:
    return ["--pool", mini_world / "pools" / "pets", "--num-references", 2]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, asked: list[object], pool: list[object]) -> Path:
    """A cache of references of the forget people, made on some machine."""
    home = tmp_path_factory.mktemp("maker") / "caches"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VIKER_CACHE_DIR", str(home))
        succeed("precompute", *asked, *pool)
    (cache,) = home.glob("*/")
    return cache


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "remote"
    folder.mkdir()
    monkeypatch.setenv("VIKER_CACHE_REMOTE", str(folder))
    return folder


@pytest.fixture
def published(made: Path, remote: Path) -> FolderStore:
    store = FolderStore(remote)
    push(store, made)
    return store


@pytest.fixture
def other(made: Path, tmp_path: Path) -> Path:
    """The same rows made by another machine, which its build.json says: the same key, other bytes."""
    target = tmp_path / "other" / made.name
    shutil.copytree(made, target)
    (target / "manifest.json").unlink()
    build = json.loads((target / "build.json").read_text())
    (target / "build.json").write_bytes(canonical_json({**build, "num_threads": 99}))
    (target / "manifest.json").write_bytes(manifest_bytes(TeacherCache.open(made).key, list_files(target)))
    return target


def precompute(*options: object) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(succeed("precompute", *options, "--json").out)
    return told


def train(asked: list[object], *options: object) -> Outcome:
    return call("train", *asked, "--method", "viker", "--per-device-train-batch-size", 3, "--no-stop", *options)


# ---- precompute ------------------------------------------------------------------------------------------------------


def test_precompute_notes_what_a_cache_cost_beside_it(made: Path) -> None:
    making = read_making(TeacherCache.open(made))
    assert making.made is not None
    assert making.seconds is not None
    assert making.seconds > 0


def test_precompute_publishes_and_another_machine_pulls_instead_of_computing(
    asked: list[object], pool: list[object], remote: Path, isolated_cache_home: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    pushed = succeed("precompute", *asked, *pool, "--push", "--json")
    first = json.loads(pushed.out)
    assert first["pairs"] > 0
    assert f"published in {remote}" in pushed.err
    assert f"Whoever can read {remote} can read it" in pushed.err

    monkeypatch.setenv("VIKER_CACHE_DIR", str(tmp_path / "second"))
    result = succeed("precompute", *asked, *pool, "--run", tmp_path / "run", "--json")
    second = json.loads(result.out)
    assert (second["pairs"], second["how"]) == (0, f"found in {remote}, nothing computed")
    assert re.search(
        rf"found in {remote}: {first['key'][:16]}, made \d+ (s|min) ago, about \d+ (s|min) saved", result.err
    )
    assert tree_bytes(tmp_path / "second" / first["key"][:16]) == tree_bytes(isolated_cache_home / first["key"][:16])
    stored = json.loads((tmp_path / "run/precompute/reference-forget/provenance.json").read_text())["cache"]
    assert stored == {"key": first["key"], "root": read_pointer(FolderStore(remote), first["key"]).root}

    shutil.rmtree(tmp_path / "second")
    again = succeed("precompute", *asked, *pool, "--run", tmp_path / "run")
    assert f"found in {remote}, nothing computed" in again.out


def test_what_is_found_here_is_published_too(
    asked: list[object], pool: list[object], made: Path, remote: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("VIKER_CACHE_DIR", str(made.parent))
    run = ["--run", tmp_path / "run"]
    assert "published in" in succeed("precompute", *asked, *pool, *run, "--push").err
    skipped = succeed("precompute", *asked, *pool, *run, "--push")
    assert "complete, skipped" in skipped.out
    assert "already there" in skipped.err


def test_a_cache_in_the_remote_that_serves_is_pulled(
    mini_world: Path, tiny_model_dir: Path, pool: list[object], published: FolderStore, made: Path
) -> None:
    fewer = ["--data", mini_world, "--model", tiny_model_dir, "--top-k", 8, "--limit", LIMIT - 2]
    told = precompute(*fewer, *pool)
    assert (told["pairs"], told["how"]) == (0, f"found one that serves in {published.url}, nothing computed")
    assert told["key"][:16] == made.name


def test_a_cache_in_the_remote_that_lacks_rows_is_not_pulled(
    mini_world: Path, tiny_model_dir: Path, pool: list[object], published: FolderStore, made: Path,
    isolated_cache_home: Path,
) -> None:  # fmt: skip
    more = ["--data", mini_world, "--model", tiny_model_dir, "--top-k", 8, "--limit", LIMIT + 1]
    assert precompute(*more, *pool)["pairs"] > 0
    assert not (isolated_cache_home / made.name).exists()


def test_for_a_dry_run_nothing_is_fetched(
    asked: list[object], pool: list[object], published: FolderStore, isolated_cache_home: Path
) -> None:
    told = succeed("precompute", *asked, *pool, "--dry-run")
    assert f"would pull what was found in {published.url}" in told.err
    assert list(isolated_cache_home.glob("*/")) == []


@pytest.mark.parametrize("trouble", ["unreachable", "not mounted", "damaged"])
def test_a_remote_that_fails_is_warned_of_once_and_the_rows_are_computed(
    trouble: str, asked: list[object], pool: list[object], published: FolderStore, made: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if trouble == "unreachable":
        monkeypatch.setenv("VIKER_CACHE_REMOTE", "s3://bucket/caches")
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "tests")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "tests")
    elif trouble == "not mounted":
        monkeypatch.setenv("VIKER_CACHE_REMOTE", "/not/mounted")
    else:
        next(published.root.glob("*/*/cache.zarr/token/entropy/c/0")).write_bytes(b"short")
    told = succeed("precompute", *asked, *pool, "--json")
    assert json.loads(told.out)["pairs"] > 0
    assert told.err.count("WARNING: going on without the remote") == 1


def test_a_remote_that_fails_ends_a_precompute_that_is_to_publish_before_it_computes(
    asked: list[object], pool: list[object], isolated_cache_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIKER_CACHE_REMOTE", "/not/mounted")
    result = call("precompute", *asked, *pool, "--push")
    assert result.code == 1
    assert "expected the folder of a remote, found none" in result.message
    assert not isolated_cache_home.exists()
    monkeypatch.delenv("VIKER_CACHE_REMOTE")
    assert call("precompute", *asked, *pool, "--push").code == 2


def test_a_purged_key_is_computed_and_not_published(
    asked: list[object], pool: list[object], published: FolderStore, made: Path, isolated_cache_home: Path
) -> None:
    tombstone(published, TeacherCache.open(made).key, None)
    told = succeed("precompute", *asked, *pool, "--json")
    assert json.loads(told.out)["pairs"] > 0
    assert f"key {made.name} was purged on" in told.err
    shutil.rmtree(isolated_cache_home)
    result = call("precompute", *asked, *pool, "--push")
    assert result.code == 1
    assert "was purged on" in result.message
    assert not isolated_cache_home.exists(), "nothing was computed for it"


# ---- train -----------------------------------------------------------------------------------------------------------


def test_an_address_is_fetched_and_trained_from(
    asked: list[object], published: FolderStore, made: Path, isolated_cache_home: Path, tmp_path: Path
) -> None:
    address = f"file://{published.root}/{made.name[:8]}"
    assert (
        f"would train viker into {tmp_path / 'a'}"
        in train(asked, "--cache", address, "--output", tmp_path / "a", "--dry-run").out
    )
    assert not isolated_cache_home.exists(), "nothing is fetched for a dry run"
    result = train(asked, "--cache", address, "--output", tmp_path / "a")
    assert result.code == 0, result.err
    opened = TeacherCache.open(made)
    provenance = json.loads((tmp_path / "a" / "provenance.json").read_text())
    assert provenance["caches"]["forget"] == {"key": opened.key, "root": opened.root_digest}
    inputs = json.loads((tmp_path / "a" / "config.json").read_text())["inputs"]
    assert inputs["cache 0"] == f"{made.name}/{opened.root_digest[:16]}"
    for name in (made.name, made, isolated_cache_home / made.name):
        skipped = train(asked, "--cache", name, "--output", tmp_path / "a")
        assert "complete, skipped" in skipped.out, "however it is named, these are the same bytes"
    assert json.loads(succeed("cache", "gc", "--json").out)["removable"] == [], "the adapter refers to it"


def test_an_address_that_leads_nowhere_is_said(asked: list[object], remote: Path, tmp_path: Path) -> None:
    for address, told in ((f"file://{remote}/0123abcd", "found none"), ("file:///x/y", "found no key at its end")):
        result = train(asked, "--cache", address, "--output", tmp_path / "a")
        assert result.code == 1
        assert told in result.message
    assert not (tmp_path / "a").exists()


@pytest.fixture
def run(asked: list[object], pool: list[object], made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that was told the cache, on a machine that has nothing any more."""
    with monkeypatch.context() as maker:
        maker.setenv("VIKER_CACHE_DIR", str(made.parent))
        maker.delenv("VIKER_CACHE_REMOTE", raising=False)
        succeed("precompute", *asked, *pool, "--run", tmp_path / "run")
    return tmp_path / "run"


def test_a_cache_that_the_run_stores_and_that_is_gone_is_fetched(
    asked: list[object], run: Path, published: FolderStore, made: Path, isolated_cache_home: Path
) -> None:
    result = train(asked, "--run", run)
    assert result.code == 0, result.err
    assert "the cache this run stores is not on this machine; fetching it" in result.err
    assert tree_bytes(isolated_cache_home / made.name) == tree_bytes(made)


def test_a_run_takes_no_other_bytes_under_its_key_from_a_remote(
    asked: list[object], run: Path, other: Path, made: Path, remote: Path
) -> None:
    push(FolderStore(remote), other)
    refused = train(asked, "--run", run)
    assert refused.code == 3
    for cache in (made, other):
        assert TeacherCache.open(cache).root_digest in refused.message


def test_a_run_takes_no_other_bytes_under_its_key_from_this_machine(
    asked: list[object], run: Path, other: Path, made: Path, isolated_cache_home: Path
) -> None:
    shutil.copytree(other, isolated_cache_home / made.name)
    for named in ([], ["--cache", made.name]):
        refused = train(asked, "--run", run, *named)
        assert refused.code == 3
        for cache in (made, other):
            assert TeacherCache.open(cache).root_digest in refused.message
        assert list((run / "adapters").iterdir()) == []
    assert train(asked, "--run", run, "--cache", isolated_cache_home / made.name).code == 0, "a folder is what is in it"


def test_without_the_remote_a_run_whose_cache_is_gone_says_so(
    asked: list[object], run: Path, published: FolderStore, made: Path
) -> None:
    tombstone(published, TeacherCache.open(made).key, None)
    result = train(asked, "--run", run)
    assert result.code == 3
    assert f"the cache this run stores, {made.name}, could not be fetched" in result.err
    assert "was purged on" in result.err
