"""Damaged and hostile caches: each is refused with a CacheError, at open where possible, else when values are read."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numcodecs.blosc
import numpy as np
import pytest
import zarr
from viker.precompute.cache import CacheError, TeacherCache
from viker.precompute.reading.layout import manifest_bytes
from viker.precompute.reading.rows import Rows, row_problems
from viker.precompute.reading.verify import verify
from viker.precompute.writing.blocks import list_files
from viker.tests.cache_damage import change_metadata, change_values, flip, sign
from viker.tests.cache_samples import make_cache

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SHARD = "cache.zarr/token/kept_logprob/c/0/0"


@pytest.fixture
def root(tmp_path) -> Path:
    return make_cache(tmp_path, [3, 2, 4])


def test_signing_again_changes_nothing(root):
    before = (root / "manifest.json").read_bytes()
    sign(root)
    assert (root / "manifest.json").read_bytes() == before


def test_no_flipped_bit_of_any_file_goes_unseen_by_the_full_check(root):
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        for place in {0, path.stat().st_size // 2, path.stat().st_size - 1}:
            flip(path, place)
            assert verify(root, "full"), f"{path} byte {place}"
            flip(path, place)
    assert verify(root, "full") == []


def test_a_flipped_bit_in_json_is_seen_at_open(root):
    for path in sorted(root.rglob("*.json")):
        flip(path, path.stat().st_size // 2)
        with pytest.raises(CacheError):
            TeacherCache.open(path if path.is_dir() else root)
        flip(path, path.stat().st_size // 2)


def test_a_flipped_bit_in_a_shard_does_not_decode(root):
    size = (root / SHARD).stat().st_size
    for place in range(0, size, 7):
        flip(root / SHARD, place)
        with pytest.raises(CacheError, match=r"kept_logprob/c/0/0: expected (chunk|the index)"):
            TeacherCache.open(root).load()
        flip(root / SHARD, place)


def test_truncation(root):
    content = (root / SHARD).read_bytes()
    (root / SHARD).write_bytes(content[:-5])
    with pytest.raises(CacheError, match=f"expected {len(content)} bytes, found {len(content) - 5}"):
        TeacherCache.open(root)
    sign(root)
    with pytest.raises(CacheError, match=r"kept_logprob/c/0/0: expected the index of its chunks with crc32c"):
        TeacherCache.open(root).load()


def test_a_missing_shard(root):
    (root / SHARD).unlink()
    with pytest.raises(CacheError, match="no file"):
        TeacherCache.open(root)
    sign(root)
    with pytest.raises(CacheError, match="1 shards"):
        TeacherCache.open(root)


def test_an_incomplete_cache(root):
    (root / "manifest.json").unlink()
    with pytest.raises(CacheError, match=r"manifest\.json: expected this file"):
        TeacherCache.open(root)


def test_extra_files(root):
    (root / "notes.txt").write_text("mine")
    TeacherCache.open(root)
    assert [(problem.kind, problem.detail[:9]) for problem in verify(root, "full")] == [("unlisted", "notes.txt")]
    (root / "notes.txt").unlink()
    (root / "cache.zarr/token/kept_logprob/c/0/1").write_bytes(b"more")
    with pytest.raises(CacheError, match=r"kept_logprob/c/0/1: expected no file .* does not list"):
        TeacherCache.open(root)


def test_a_listed_extra_array(root):
    shutil.copytree(root / "cache.zarr/token/entropy", root / "cache.zarr/token/extra")
    sign(root)
    with pytest.raises(CacheError, match="files that its arrays imply"):
        TeacherCache.open(root)


def test_symbolic_links(root, tmp_path):
    secret = tmp_path / "secret"
    shutil.move(root / SHARD, secret)
    (root / SHARD).symlink_to(secret)
    with pytest.raises(CacheError, match="a link or a special file"):
        TeacherCache.open(root)


def test_linked_folders(root, tmp_path):
    shutil.move(root / "cache.zarr/token", tmp_path / "token")
    (root / "cache.zarr/token").symlink_to(tmp_path / "token")
    with pytest.raises(CacheError, match="a link or a special file"):
        TeacherCache.open(root)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "cache.zarr/../../secret", "a//b", "a\\b", "./a", ""])
def test_paths_that_leave_the_directory(root, name):
    key = json.loads((root / "manifest.json").read_bytes())["key"]
    (root / "manifest.json").write_bytes(manifest_bytes(key, {**list_files(root), name: list_files(root)[SHARD]}))
    with pytest.raises(CacheError, match=r"relative paths|canonical bytes"):
        TeacherCache.open(root)


def test_a_manifest_that_is_not_canonical(root):
    value = json.loads((root / "manifest.json").read_bytes())
    (root / "manifest.json").write_text(json.dumps(value))
    with pytest.raises(CacheError, match="canonical bytes"):
        TeacherCache.open(root)
    (root / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(CacheError, match="canonical bytes of a manifest"):
        TeacherCache.open(root)
    (root / "manifest.json").write_text("[]")
    with pytest.raises(CacheError, match="canonical bytes of a manifest"):
        TeacherCache.open(root)


def test_a_fingerprint_of_another_key(root):
    fingerprint = json.loads((root / "fingerprint.json").read_bytes())
    (root / "fingerprint.json").write_text(json.dumps({**fingerprint, "weights": "other"}))
    sign(root)
    with pytest.raises(CacheError, match=r"fingerprint\.json: expected sha256"):
        TeacherCache.open(root)


def test_a_zarr_v2_store(root):
    folder = root / "cache.zarr/token/entropy"
    shutil.rmtree(folder)
    zarr.create_array(store=str(folder), shape=(9,), dtype="float32", chunks=(9,), zarr_format=2)[...] = 1
    sign(root)
    with pytest.raises(CacheError, match=r"zarr\.json"):
        TeacherCache.open(root)


HOSTILE: list[tuple[str, Callable[[dict[str, Any]], object]]] = [
    ("huge shape", lambda value: value.update(shape=[10**15, 4])),
    ("text for a shape", lambda value: value.update(shape="9")),
    ("negative shape", lambda value: value.update(shape=[-9, 4])),
    ("more dimensions", lambda value: value.update(shape=[9, 4, 1])),
    ("another dtype", lambda value: value.update(data_type="float64")),
    ("pickle as a codec", lambda value: value["codecs"].insert(0, {"name": "numcodecs.pickle"})),
    (
        "pickle inside a shard",
        lambda value: value["codecs"][0]["configuration"]["codecs"].append({"name": "numcodecs.pickle"}),
    ),
    (
        "pickle in the index",
        lambda value: value["codecs"][0]["configuration"]["index_codecs"].append({"name": "numcodecs.pickle"}),
    ),
    ("no codecs", lambda value: value.update(codecs=[])),
    ("zarr_format 2", lambda value: value.update(zarr_format=2)),
    ("a group", lambda value: value.update(node_type="group")),
    ("a transformer", lambda value: value.update(storage_transformers=[{"name": "x"}])),
    ("other chunk names", lambda value: value.update(chunk_key_encoding={"name": "v2"})),
    ("huge chunk", lambda value: value["codecs"][0]["configuration"].update(chunk_shape=[10**12, 4])),
    ("huge shard", lambda value: value["chunk_grid"]["configuration"].update(chunk_shape=[9 * 10**12, 4])),
]


@pytest.mark.parametrize(("name", "change"), HOSTILE, ids=[name for name, _ in HOSTILE])
def test_hostile_metadata_is_refused_before_anything_is_decoded(root, name, change, monkeypatch):
    monkeypatch.setattr(numcodecs.blosc, "decompress", lambda _: pytest.fail("blosc was asked"))
    change_metadata(root, "token/kept_logprob", change)
    with pytest.raises(CacheError, match=r"kept_logprob/zarr\.json"):
        TeacherCache.open(root).load()


def test_a_huge_axis_of_all_arrays(root):
    for name in ("token/entropy", "token/sum_squares", "token/answer_logprob", "token/tail_logprob"):
        change_metadata(root, name, lambda value: value.update(shape=[10**14]))
    with pytest.raises(CacheError):
        TeacherCache.open(root)


def test_metadata_without_end(root):
    (root / "cache.zarr/token/entropy/zarr.json").write_bytes(b" " * (2 << 20) + b"{}")
    sign(root)
    with pytest.raises(CacheError, match="at most 1048576 bytes"):
        TeacherCache.open(root)


VALUES: list[tuple[str, str, Any, Any]] = [
    ("kept id is not below 50", "token/kept_id", (3, 2), 50),
    ("kept id occurs twice", "token/kept_id", (3, slice(0, 2)), 7),
    ("kept log-probability is not finite", "token/kept_logprob", (3, 3), np.nan),
    ("kept log-probability is not finite", "token/kept_logprob", (3, 3), -np.inf),
    ("kept log-probability is above 0", "token/kept_logprob", (3, 0), 0.5),
    ("not ordered", "token/kept_logprob", (3, 3), -1.0),
    ("mass is not 1", "token/tail_logprob", 3, -5.0),
    ("mass is not 1", "token/tail_logprob", 3, np.nan),
    ("tail log-probability", "token/tail_logprob", 3, np.inf),
    ("entropy", "token/entropy", 3, np.nan),
    ("entropy", "token/entropy", 3, 4.5),
    ("answer log-probability", "token/answer_logprob", 3, 0.5),
    ("answer log-probability", "token/answer_logprob", 3, -np.inf),
    ("answer log-probability is neither a kept one", "token/answer_logprob", 3, -1.0),
    ("sum of squares", "token/sum_squares", 3, 0.0),
    ("disagreement", "token/disagreement", 3, np.nan),
]


@pytest.mark.parametrize(("problem", "name", "index", "value"), VALUES)
def test_values_that_are_no_distribution(root, problem, name, index, value):
    change_values(root, name, index, value)
    with pytest.raises(CacheError, match=rf"{problem}.*first at row 3"):
        TeacherCache.open(root).load()
    assert [found.kind for found in verify(root, "full")] == ["values"]
    assert verify(root, "quick") == []


def test_equal_values_are_ordered_by_id():
    rows = dict.fromkeys(("sum_squares_N", "disagreement_N"), np.full(1, 0.5, np.float32))
    half = np.log(np.full((1, 2), 0.5, np.float32))
    rows |= {"kept_logprobs_NK": half, "answer_logprob_N": half[:, 0], "tail_logprob_N": np.full(1, -np.inf)}
    rows |= {"entropy_N": -half[:, 0]}
    assert row_problems(Rows(kept_ids_NK=np.array([[1, 2]], np.uint16), **rows), 3) == []
    (problem,) = row_problems(Rows(kept_ids_NK=np.array([[2, 1]], np.uint16), **rows), 3)
    assert "ordered by value, then id" in problem


@pytest.mark.parametrize("offset", [[0, 3, 3, 9], [0, 5, 3, 9], [1, 3, 5, 9], [0, 3, 5, 8]])
def test_offsets_that_do_not_cut_the_rows(root, offset):
    change_values(root, "sample/offset", ..., np.array(offset))
    with pytest.raises(CacheError, match="sample/offset increasing from 0 to 9"):
        TeacherCache.open(root).rows_of(0)


def test_samples_out_of_order_and_references_out_of_the_pool(root):
    change_values(root, "sample/reference", (0, 0), 3)
    change_values(root, "sample/key", 0, 255)
    cache = TeacherCache.open(root)
    with pytest.raises(CacheError, match="samples sorted"):
        cache.find_sample(b"", b"")
    with pytest.raises(CacheError, match="references below 3, found 3"):
        _ = cache.reference
    assert [problem.kind for problem in verify(root, "full")] == ["values", "values"]


def test_an_unknown_depth_is_an_error(root):
    with pytest.raises(ValueError, match="quick or full"):
        verify(root, "semantic")  # type: ignore[arg-type]
