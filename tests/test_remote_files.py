"""Shared caches in a folder: permissions of the team, pointers that never tear, content that nobody has to trust."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from cache_samples import (
    fill_block,
    make_builder,
    make_cache,
    make_fingerprint,
    make_samples,
    other_making,
    tree_bytes,
)
from command_line import call, succeed
from viker.precompute.cache import CacheError, TeacherCache, lineage_of
from viker.precompute.reading.layout import ListedFile, manifest_bytes
from viker.precompute.reading.untrusted import read_manifest
from viker.precompute.sharing.pointer import POINTER_CAP, Tombstone, now, pointer_bytes, read_pointer
from viker.precompute.sharing.remote import expect_published, open_store, published, push, replace, tombstone
from viker.precompute.sharing.stores import FolderStore, RemoteError
from viker.precompute.sharing.transfer import pull

if TYPE_CHECKING:
    from pathlib import Path

KEY = "ab" * 32


@pytest.fixture
def cache(isolated_cache_home: Path) -> Path:
    return make_cache(isolated_cache_home, [3, 5, 2, 4])


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "shared caches"
    folder.mkdir()
    monkeypatch.setenv("VIKER_CACHE_REMOTE", str(folder))
    return folder


@pytest.fixture
def shared(cache: Path, remote: Path) -> Path:
    """The folder of the files of a published cache."""
    push(FolderStore(remote), cache)
    return remote / cache.name / TeacherCache.open(cache).root_digest[:16]


@pytest.fixture
def second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The caches of a second machine, which the commands use from here on."""
    home = tmp_path / "second"
    monkeypatch.setenv("VIKER_CACHE_DIR", str(home))
    return home


def file_mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_folder_is_a_remote(scheme: str, cache: Path, remote: Path, second: Path) -> None:
    push(open_store(f"{scheme}{remote}"), cache)
    succeed("cache", "pull", cache.name, "--from", f"{scheme}{remote}")
    assert tree_bytes(second / cache.name) == tree_bytes(cache)


@pytest.mark.parametrize("umask", [0o077, 0o002])
@pytest.mark.parametrize("mode", [0o2770, 0o755])
def test_what_is_pushed_has_the_permissions_of_the_remote_whatever_the_umask(
    mode: int, umask: int, cache: Path, remote: Path
) -> None:
    remote.chmod(mode)
    subprocess.run(
        [sys.executable, "-c", f"import os; os.umask({umask}); from viker.cli import main; main()",
         "cache", "push", str(cache)], check=True, capture_output=True,
    )  # fmt: skip
    for path in remote.rglob("*"):
        assert file_mode(path) == (mode if path.is_dir() else mode & 0o666), path
    assert len(list(remote.rglob("*"))) > len(tree_bytes(cache))


def test_what_is_pulled_has_the_permissions_of_the_cache_home(shared: Path, cache: Path, second: Path) -> None:
    second.mkdir()
    second.chmod(0o770)
    succeed("cache", "pull", cache.name)
    assert {file_mode(path) for path in (second / cache.name).rglob("*") if path.is_file()} == {0o660}
    assert {file_mode(path) for path in second.rglob("*") if path.is_dir()} == {0o770}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file another group")
def test_what_is_pushed_has_the_group_of_the_remote(cache: Path, remote: Path) -> None:
    os.chown(remote, -1, 12345)
    push(FolderStore(remote), cache)
    assert {path.stat().st_gid for path in remote.rglob("*")} == {12345}


def test_of_many_who_put_a_pointer_at_once_one_wins_and_it_is_whole(remote: Path) -> None:
    contents = [bytes([65 + number]) * 5000 for number in range(8)]
    for name in map(str, range(50)):
        put = partial(FolderStore(remote).put_if_absent, f"{name}/p")
        with ThreadPoolExecutor(len(contents)) as pool:
            won = list(pool.map(put, contents))
        assert sum(won) == 1
        assert (remote / name / "p").read_bytes() == contents[won.index(True)]
        assert [path.name for path in (remote / name).iterdir()] == ["p"]


def test_several_who_pull_one_cache_at_once_all_have_it(
    shared: Path, cache: Path, remote: Path, tmp_path: Path
) -> None:
    pointer = expect_published(FolderStore(remote), cache.name)
    for round_ in range(5):
        home = tmp_path / f"home {round_}"
        home.mkdir()
        with ThreadPoolExecutor(4) as pool:
            pulled = list(pool.map(lambda _, home=home: pull(FolderStore(remote), pointer, home), range(4)))
        assert {one.root for one in pulled} == {home / cache.name}
        assert tree_bytes(home / cache.name) == tree_bytes(cache)
        assert list(home.glob("*/")) == [home / cache.name]


def test_a_folder_without_hard_links_is_said(
    cache: Path, remote: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    assert push(FolderStore(remote), cache).outcome == "published"
    assert "has no hard links" in caplog.text
    assert push(FolderStore(remote), cache).outcome == "there"


def test_a_store_without_a_conditional_write_is_said(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    import fsspec

    store = open_store("memory://tests-of-viker/caches")
    try:
        assert push(store, cache).outcome == "published"
        assert "has no conditional write that viker knows" in caplog.text
        assert push(store, cache).outcome == "there"
        assert [pointer.key for pointer in published(store)] == [TeacherCache.open(cache).key]
    finally:
        fsspec.filesystem("memory").rm("/tests-of-viker", recursive=True)


def test_a_damaged_cache_is_not_pushed(cache: Path, remote: Path) -> None:
    path = cache / "cache.zarr/token/entropy/c/0"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    result = call("cache", "push", cache)
    assert result.code == 1
    assert "checksum: cache.zarr/token/entropy/c/0" in result.message
    assert list(remote.iterdir()) == []


@pytest.mark.parametrize(("top_k", "warned"), [(4, True), (0, False)])
def test_rows_under_the_own_image_that_keep_tokens_are_warned_of(
    top_k: int, warned: bool, isolated_cache_home: Path, remote: Path
) -> None:
    own = make_fingerprint(
        top_k, intervention={"kind": "self", "answers": "own"}, pool=None,
        draw={"policy": None, "seed": None, "num_references": 0},
    )  # fmt: skip
    samples = [dataclasses.replace(sample, references=()) for sample in make_samples(lineage_of(own), [3, 4])]
    builder = make_builder(isolated_cache_home, [], own, samples)
    for block in range(len(builder.blocks)):
        fill_block(builder, block)
    told = succeed("cache", "push", builder.assemble())
    assert ("such a row is the answer" in told.err) is warned


# ---- tombstones ------------------------------------------------------------------------------------------------------


def test_a_purged_key_is_neither_pulled_nor_pushed(shared: Path, cache: Path, remote: Path, second: Path) -> None:
    opened = TeacherCache.open(cache)
    assert tombstone(FolderStore(remote), opened.key, KEY) is True
    assert [path.name for path in (remote / cache.name).iterdir()] == ["pointer.json"], "no row is left"
    for command in (["pull", cache.name], ["push", cache]):
        result = call("cache", *command)
        assert result.code == 1
        assert "was purged on" in result.message
        assert f"Use {KEY}" in result.message
    assert [path.name for path in (remote / cache.name).iterdir()] == ["pointer.json"]
    told = succeed("cache", "list", "--remote")
    assert f"{cache.name}  purged on" in told.out
    listed = json.loads(succeed("cache", "list", "--remote", "--json").out)["caches"]
    assert [(one["root"], one["replaced_by"]) for one in listed] == [(opened.root_digest, KEY)]


def test_an_interrupted_tombstone_is_finished_by_the_same_call(shared: Path, cache: Path, remote: Path) -> None:
    key = TeacherCache.open(cache).key
    (remote / cache.name / "pointer.json").write_bytes(pointer_bytes(Tombstone(key, None, None, now())))
    assert tombstone(FolderStore(remote), key, None) is True
    assert [path.name for path in (remote / cache.name).iterdir()] == ["pointer.json"]


def test_a_key_that_was_never_published_gets_a_tombstone_too(cache: Path, remote: Path) -> None:
    assert tombstone(FolderStore(remote), TeacherCache.open(cache).key, None) is False
    assert "Nothing replaces it" in call("cache", "push", cache).message


def test_a_tombstone_that_comes_during_a_push_wins(cache: Path, remote: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, key = FolderStore(remote), TeacherCache.open(cache).key
    put = store.put_if_absent
    monkeypatch.setattr(store, "put_if_absent", lambda *words: tombstone(store, key, None) or put(*words))
    with pytest.raises(CacheError, match="was purged"):
        push(store, cache)
    assert [path.name for path in (remote / cache.name).iterdir()] == ["pointer.json"]


def test_whoever_is_overtaken_while_uploading_takes_its_files_back(
    cache: Path, remote: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = other_making(tmp_path / "other", cache)
    store = FolderStore(remote)
    put = store.put_if_absent
    monkeypatch.setattr(store, "put_if_absent", lambda *words: push(FolderStore(remote), other) and put(*words))
    pushed = push(store, cache)
    first = TeacherCache.open(other).root_digest
    assert (pushed.outcome, pushed.pointer.root) == ("second", first)
    assert {path.name for path in (remote / cache.name).iterdir()} == {"pointer.json", first[:16]}


def test_a_cache_that_lost_a_person_and_kept_its_key_takes_the_place_of_the_old_one(
    shared: Path, cache: Path, remote: Path, tmp_path: Path
) -> None:
    other = other_making(tmp_path / "other", cache)
    pointer = replace(FolderStore(remote), other)
    assert read_pointer(FolderStore(remote), cache.name) == pointer
    assert {path.name for path in (remote / cache.name).iterdir()} == {"pointer.json", pointer.root[:16]}
    assert pull(FolderStore(remote), pointer, tmp_path / "third").root_digest == TeacherCache.open(other).root_digest


# ---- content that somebody else wrote --------------------------------------------------------------------------------


def refusal(cache: Path, *options: object) -> str:
    result = call("cache", "pull", cache.name, *options)
    assert result.code == 1, result.err
    return result.message


def rewrite_manifest(shared: Path, files: dict[str, ListedFile]) -> None:
    """List other files in a remote's manifest, and let the pointer lead there: digests are right, content is not."""
    pointer = shared.parent / "pointer.json"
    value = json.loads(pointer.read_bytes())
    content = manifest_bytes(value["key"], files)
    root = json.loads(content)["root_sha256"]
    (shared / "manifest.json").write_bytes(content)
    shared.rename(shared.with_name(root[:16]))
    pointer.write_text(json.dumps({**value, "root": root}))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"not JSON", "expected a pointer"),
        (b"[" * 20000, "expected a pointer"),
        (b'{"schema": "viker/cache-pointer/2"}', "expected a pointer"),
        (b'{"schema": "viker/cache-pointer/1", "key": "../..", "root": ""}', "expected a pointer"),
        (b"", "expected a pointer"),
    ],
)
def test_a_pointer_that_is_none_is_refused(content: bytes, told: str, shared: Path, cache: Path, second: Path) -> None:
    (shared.parent / "pointer.json").write_bytes(content)
    assert told in refusal(cache)
    assert json.loads(succeed("cache", "list", "--remote", "--json").out)["caches"] == []


@pytest.mark.parametrize(
    "change",
    [
        {"bytes": -1}, {"bytes": True}, {"seconds": "much"}, {"seconds": -1}, {"seconds": 10**400},
        {"made": "yesterday"}, {"root": "ab" * 31}, {"key": KEY},
    ],
)  # fmt: skip
def test_a_pointer_with_a_field_that_is_none_is_refused(
    change: dict[str, Any], shared: Path, cache: Path, second: Path
) -> None:
    pointer = shared.parent / "pointer.json"
    pointer.write_text(json.dumps({**json.loads(pointer.read_text()), **change}))
    assert "pointer.json: expected" in refusal(cache)


def test_a_manifest_that_is_not_the_one_the_pointer_names_is_refused(shared: Path, cache: Path, second: Path) -> None:
    pointer = shared.parent / "pointer.json"
    value = json.loads(pointer.read_text())
    pointer.write_text(json.dumps({**value, "root": value["root"][:16] + "0" * 48}))
    assert value["root"] in refusal(cache)


def test_a_pointer_of_a_gigabyte_is_not_read(shared: Path, cache: Path, second: Path) -> None:
    with (shared.parent / "pointer.json").open("wb") as file:
        file.truncate(10**9)
    assert f"at most {POINTER_CAP} bytes" in refusal(cache)


def test_a_pointer_that_is_a_pipe_does_not_block(shared: Path, cache: Path, second: Path) -> None:
    pointer = shared.parent / "pointer.json"
    pointer.unlink()
    os.mkfifo(pointer)
    assert "expected a plain file" in refusal(cache)


def test_a_file_that_is_a_link_is_not_followed(shared: Path, cache: Path, second: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes((shared / "fingerprint.json").read_bytes())
    (shared / "fingerprint.json").unlink()
    (shared / "fingerprint.json").symlink_to(tmp_path / "elsewhere")
    assert "could not read" in refusal(cache)


def test_a_key_that_is_a_link_is_not_written_through(cache: Path, remote: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (remote / cache.name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RemoteError, match="found a link"):
        push(FolderStore(remote), cache)
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize("name", ["../../escaped", "/tmp/escaped", "cache.zarr/../../../escaped", "a\\b", ""])
def test_a_manifest_that_leads_outside_is_refused(
    name: str, shared: Path, cache: Path, second: Path, tmp_path: Path
) -> None:
    _, files = read_manifest(shared)
    escaped = ListedFile(1, hashlib.sha256(b"x").hexdigest())
    rewrite_manifest(shared, {**files, name: escaped})
    assert "expected the manifest of a published cache" in refusal(cache)
    assert [path for path in second.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("size", [10**15, -1])
def test_a_manifest_that_lists_an_absurd_size_is_refused(size: int, shared: Path, cache: Path, second: Path) -> None:
    _, files = read_manifest(shared)
    rewrite_manifest(shared, {**files, "build.json": files["build.json"]._replace(size=size)})
    assert ("expected at most 64000000000 bytes" if size > 0 else "expected the manifest of") in refusal(cache)


def test_a_cache_larger_than_allowed_or_than_the_disk_is_refused(shared: Path, cache: Path, second: Path) -> None:
    assert "--max-bytes" in refusal(cache, "--max-bytes", 1000)
    _, files = read_manifest(shared)
    rewrite_manifest(shared, {**files, "build.json": files["build.json"]._replace(size=10**15)})
    assert "expected room for" in refusal(cache, "--max-bytes", 10**16)


def test_a_file_that_grew_is_read_no_further_than_listed(shared: Path, cache: Path, second: Path) -> None:
    with (shared / "build.json").open("ab") as file:
        file.write(b" ")
    succeed("cache", "pull", cache.name)
    assert tree_bytes(second / cache.name) == tree_bytes(cache)


@pytest.mark.parametrize("name", ["build.json", "cache.zarr/token/entropy/c/0"])
def test_a_file_that_was_changed_is_refused_and_fetched_again_later(
    name: str, shared: Path, cache: Path, second: Path
) -> None:
    sound = (shared / name).read_bytes()
    (shared / name).write_bytes(bytes([sound[0] ^ 1]) + sound[1:])
    assert name in refusal(cache)
    assert not (second / cache.name).exists()
    assert list(second.glob("*.pulling/cache/manifest.json")), "what is sound is kept for the next attempt"
    (shared / name).unlink()
    assert "found none. Push it again." in refusal(cache)
    (shared / name).write_bytes(sound)
    succeed("cache", "pull", cache.name)


def test_rows_that_are_no_distributions_are_refused_though_every_digest_is_right(
    shared: Path, cache: Path, second: Path
) -> None:
    array = "cache.zarr/token/tail_logprob/c/0"
    content = (shared / "cache.zarr/token/entropy/c/0").read_bytes()  # the same type and shape, other values
    (shared / array).write_bytes(content)
    _, files = read_manifest(shared)
    files[array] = ListedFile(len(content), hashlib.sha256(content).hexdigest())
    rewrite_manifest(shared, files)
    assert "values:" in refusal(cache)
    assert [path for path in second.rglob("*") if path.is_file()] == [], "the same bytes would only come again"


def test_an_unknown_or_ambiguous_key_is_said(shared: Path, remote: Path, cache: Path, second: Path) -> None:
    assert "found none" in call("cache", "pull", "0000").message
    (remote / f"{cache.name[:4]}{'0' * 12}").mkdir()
    assert f"{cache.name[:4]}000000000000, {cache.name}" in call("cache", "pull", cache.name[:4]).message
    with pytest.raises(CacheError, match="found none"):
        expect_published(FolderStore(remote), KEY)
    assert call("cache", "pull", "not hex").code == 2
