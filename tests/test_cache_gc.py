"""What may be removed: only what no run refers to, said before it is done; and what interrupted commands left."""

from __future__ import annotations

import json
import os
import shutil
import time
from typing import TYPE_CHECKING, Any

import pytest
from cache_samples import fill_block, make_builder, make_cache, make_fingerprint, tree_bytes
from command_line import call, succeed
from viker.data import run_roots
from viker.data.artefact import begin, finish, write_json
from viker.data.run_roots import register_run
from viker.precompute.cache import TeacherCache
from viker.precompute.sharing.pointer import record_making
from viker.precompute.sharing.remote import push, tombstone
from viker.precompute.sharing.stores import FolderStore

if TYPE_CHECKING:
    from pathlib import Path

DAY_S = 86400


@pytest.fixture
def home(isolated_cache_home: Path) -> Path:
    return isolated_cache_home


@pytest.fixture
def caches(home: Path) -> list[Path]:
    return [make_cache(home, [3, 4], make_fingerprint(top_k)) for top_k in (4, 5, 6)]


def precomputed(run: Path, cache: Path) -> Path:
    """What `precompute --run` leaves."""
    opened = TeacherCache.open(cache)
    artefact = run / "precompute" / "reference-forget"
    begin(artefact, {"schema": "viker/precompute/1"})
    finish(artefact, {"cache": {"key": opened.key, "root": opened.root_digest}}, started=0)
    register_run(run, opened.key)
    return artefact


def trained(output: Path, cache: Path, complete: bool = True) -> None:
    """What `train` leaves, finished or killed in the middle."""
    opened = TeacherCache.open(cache)
    stamp = f"{opened.key[:16]}/{opened.root_digest[:16]}"
    begin(output, {"schema": "viker/adapter/1", "options": {}, "inputs": {"cache 0": stamp}})
    if complete:
        finish(output, {"caches": {"forget": {"key": opened.key, "root": opened.root_digest}}}, started=0)


def make_old(path: Path, days: float) -> None:
    then = time.time() - days * DAY_S
    for one in (path, *path.rglob("*")):
        os.utime(one, (then, then))


def collect(*options: object) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(succeed("cache", "gc", *options, "--json").out)
    return told


def places(*options: object) -> set[str]:
    return {what["place"] for what in collect(*options)["removable"]}


def test_a_dry_run_says_what_would_go_and_removes_nothing(home: Path, caches: list[Path], tmp_path: Path) -> None:
    precomputed(tmp_path / "run", caches[0])
    before = tree_bytes(home)
    told = succeed("cache", "gc")
    assert tree_bytes(home) == before
    size = sum(len(content) for cache in caches[1:] for content in tree_bytes(cache).values())
    assert f"{size} bytes would be freed; --delete removes them" in told.out
    for cache in caches[1:]:
        assert f"{cache.name}  " in told.out
    assert caches[0].name not in told.out
    assert "keep it as you keep the forget set" in told.err


def test_only_what_no_run_refers_to_is_removed(home: Path, caches: list[Path], tmp_path: Path) -> None:
    precomputed(tmp_path / "run", caches[0])
    trained(tmp_path / "adapter", caches[1])
    register_run(tmp_path / "adapter", TeacherCache.open(caches[1]).key)
    record_making(TeacherCache.open(caches[2]), 1.0)
    kept = {path.name: tree_bytes(path) for path in caches[:2]}
    told = collect("--delete")
    assert told["deleted"] is True
    assert told["schema"] == "viker/cache-gc/1"
    assert {path.name: tree_bytes(path) for path in home.glob("[0-9a-f]*")} == kept


def test_an_adapter_in_a_run_protects_what_it_was_made_from(caches: list[Path], tmp_path: Path) -> None:
    precomputed(tmp_path / "run", caches[0])
    trained(tmp_path / "run" / "adapters" / "viker-0", caches[1])
    trained(tmp_path / "run" / "adapters" / "viker-1", caches[2], complete=False)
    assert places() == set()


def test_a_run_behind_a_link_protects_too(caches: list[Path], tmp_path: Path) -> None:
    precomputed(tmp_path / "run", caches[0])
    trained(tmp_path / "big disk" / "viker-0", caches[1])
    (tmp_path / "run" / "adapters").symlink_to(tmp_path / "big disk")
    (tmp_path / "big disk" / "loop").symlink_to(tmp_path / "run")
    assert places() == {caches[2].name}


def test_a_run_that_is_gone_is_said_and_counts_no_longer(home: Path, caches: list[Path], tmp_path: Path) -> None:
    precomputed(tmp_path / "run", caches[0])
    shutil.rmtree(tmp_path / "run")
    told = succeed("cache", "gc", "--delete")
    assert f"the run {tmp_path / 'run'} is gone" in told.err
    assert list(home.glob("[0-9a-f]*")) == []
    assert "is gone" not in succeed("cache", "gc").err, "its note is gone too"


def test_a_run_that_was_told_other_rows_since_protects_only_those(caches: list[Path], tmp_path: Path) -> None:
    precomputed(tmp_path / "run", caches[0])
    precomputed(tmp_path / "run", caches[1])
    assert places() == {caches[0].name, caches[2].name}


def test_a_run_of_another_machine_protects_what_its_note_says(
    caches: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as there:
        there.setattr(run_roots.socket, "gethostname", lambda: "another machine")
        register_run(tmp_path / "not mounted here", TeacherCache.open(caches[0]).key)
        register_run(tmp_path / "not mounted here", TeacherCache.open(caches[1]).key)
    assert places() == {caches[2].name}


def test_runs_that_are_not_noted_are_named_by_hand(caches: list[Path], tmp_path: Path) -> None:
    trained(tmp_path / "moved here" / "runs" / "x" / "adapters" / "a", caches[0])
    assert places("--runs", tmp_path / "moved here") == {cache.name for cache in caches[1:]}
    missing = call("cache", "gc", "--runs", tmp_path / "missing")
    assert missing.code == 1
    assert "expected a folder of runs, found none" in missing.message


@pytest.mark.parametrize("damaged", ["provenance.json", "note"])
def test_what_cannot_be_read_is_an_error_and_nothing_goes(
    damaged: str, home: Path, caches: list[Path], tmp_path: Path
) -> None:
    artefact = precomputed(tmp_path / "run", caches[0])
    path = artefact / damaged if damaged != "note" else next((home / ".runs").iterdir())
    path.write_text('{"torn')
    before = tree_bytes(home)
    result = call("cache", "gc", "--delete")
    assert result.code == 1
    assert str(path) in result.message
    assert tree_bytes(home) == before


def test_young_caches_can_be_kept(caches: list[Path]) -> None:
    make_old(caches[0], days=3)
    assert places("--older-than", 2) == {caches[0].name}
    assert places("--older-than", 4) == set()


def test_what_interrupted_commands_left_goes_after_a_day(home: Path, caches: list[Path], tmp_path: Path) -> None:
    precomputed(tmp_path / "run", caches[0])
    for cache in caches[1:]:
        shutil.rmtree(cache)
    builder = make_builder(home, [3, 4], make_fingerprint(7))
    fill_block(builder, 0)
    pulling = home / f"{caches[1].name}.0123456789abcdef.pulling"
    (pulling / "cache").mkdir(parents=True)
    (pulling / "cache" / "build.json").write_text("{}")
    (home / f"{caches[0].name}.00ff.sealing").mkdir()
    note = home / f"{caches[2].name}.made.json"
    write_json(note, {})
    write_json(home / f"{caches[0].name}.made.json", {})
    (home / "notes of mine").mkdir()
    left = {builder.staging.name, pulling.name, f"{caches[0].name}.00ff.sealing", note.name}
    assert places() == set()
    for name in left:
        make_old(home / name, days=2)
    make_old(home / "notes of mine", days=2)
    make_old(home / f"{caches[0].name}.made.json", days=2)
    assert places() == left
    os.utime(builder.staging / "plan.json")
    assert places() == left - {builder.staging.name}, "somebody is at it"
    succeed("cache", "gc", "--delete")
    assert {path.name for path in home.iterdir()} == {
        caches[0].name, f"{caches[0].name}.made.json", builder.staging.name, "notes of mine", ".runs",
    }  # fmt: skip


def test_of_a_remote_only_what_no_pointer_leads_to_goes(caches: list[Path], tmp_path: Path) -> None:
    remote = tmp_path / "remote"
    remote.mkdir()
    for cache in caches[:2]:
        push(FolderStore(remote), cache)
    tombstone(FolderStore(remote), TeacherCache.open(caches[1]).key, None)
    abandoned = {f"{caches[0].name}/{'0' * 16}", f"{caches[1].name}/{'1' * 16}", f"{'2' * 16}/{'3' * 16}"}
    for name in abandoned:
        (remote / name / "cache.zarr").mkdir(parents=True)
        (remote / name / "cache.zarr" / "zarr.json").write_text("{}")
    live = remote / caches[0].name / TeacherCache.open(caches[0]).root_digest[:16]
    torn = live / ".zarr.json.00ff.partial"
    torn.write_text("{")
    assert places("--remote", remote) == set(), "a push may be under way"
    before = tree_bytes(caches[0])
    make_old(remote, days=2)
    assert places("--remote", remote) == {*abandoned, str(torn.relative_to(remote))}
    succeed("cache", "gc", "--remote", remote, "--delete")
    assert tree_bytes(live) == before
    assert {path.name for path in remote.rglob("*") if path.is_file()} == {"pointer.json", *(
        name.rpartition("/")[2] for name in before)}  # fmt: skip


def test_a_home_that_does_not_exist_holds_nothing(home: Path) -> None:
    assert collect()["removable"] == []
    assert not home.exists()
