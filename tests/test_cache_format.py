"""The format: what is written is read back, and its bytes are those of the committed fixture."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from viker.data.example import canonical_json
from viker.precompute.cache import CacheError, TeacherCache, person_digest, row_key, token_hash
from viker.precompute.reading.layout import ArrayPlan, chunk_and_shard
from viker.precompute.reading.verify import verify
from viker.precompute.writing.store import CacheBuilder, Sample
from viker.tests.cache_samples import (
    POOL,
    fill_block,
    make_builder,
    make_cache,
    make_fingerprint,
    make_rows,
    tree_bytes,
)

GOLDEN = Path(__file__).parent / "golden" / "cache"


def test_rows_survive_the_round_trip(tmp_path):
    builder = make_builder(tmp_path, [3, 2, 4])
    written = [make_rows(builder.num_rows(block), block) for block in range(len(builder.blocks))]
    for block, rows in enumerate(written):
        builder.write_block(block, rows)
    cache = TeacherCache.open(builder.assemble())
    assert (cache.num_samples, cache.num_rows, cache.top_k, cache.vocab_size) == (3, 9, 4, 50)
    for index, rows in enumerate(written):  # three samples, three blocks
        read = cache.rows_of(index)
        np.testing.assert_array_equal(read.kept_ids_NK, rows["kept_id"])
        np.testing.assert_array_equal(read.kept_logprobs_NK, rows["kept_logprob"].astype(np.float32))
        np.testing.assert_array_equal(read.tail_logprob_N, rows["tail_logprob"])
        np.testing.assert_array_equal(read.entropy_N, rows["entropy"])
        np.testing.assert_array_equal(read.answer_logprob_N, rows["answer_logprob"])
        np.testing.assert_array_equal(read.sum_squares_N, rows["sum_squares"])
        np.testing.assert_array_equal(read.disagreement_N, rows["disagreement"].astype(np.float32))
    assert read.kept_ids_NK.dtype == np.uint16
    assert read.kept_logprobs_NK.dtype == np.float32
    assert cache.build == {"source": "tests", "block_devices": ["cpu"] * 3}
    assert verify(cache.root, "full") == []


def test_samples_are_found_by_row_key_and_person(tmp_path):
    builder = make_builder(tmp_path, [3, 2, 4, 1, 5])
    for block in range(len(builder.blocks)):
        fill_block(builder, block)
    cache = TeacherCache.open(builder.assemble())
    for index, sample in enumerate(builder.samples):
        assert cache.find_sample(sample.row_key, sample.person) == index
        assert cache.token_hash[index] == sample.token_hash
        assert cache.reference[index].tolist() == list(sample.references)
    assert cache.find_sample(sample.row_key, person_digest(cache.lineage, "a stranger")) is None
    assert cache.reference_sha256.tobytes() == b"".join(POOL)
    assert cache.row_keys == {sample.row_key for sample in builder.samples}


def test_people_who_share_a_row_share_a_block(tmp_path):
    pair = [Sample(b"k" * 16, bytes([who]) * 16, 5, 2, (0, 1)) for who in range(30)]
    others = [Sample(bytes([key]) * 16, b"p" * 16, key, 1, (0, 1)) for key in range(40)]
    builder = make_builder(tmp_path, [], samples=pair + others)
    assert sum(stop - start for start, stop in builder.blocks) == 70
    assert any(stop - start >= 30 for start, stop in builder.blocks)


@pytest.mark.parametrize(("top_k", "tail"), [(0, 0.0), (50, -np.inf)])
def test_nothing_kept_and_everything_kept(tmp_path, top_k, tail):
    root = make_cache(tmp_path, [3, 2, 4], make_fingerprint(top_k))
    rows = TeacherCache.open(root).load()
    assert rows.kept_ids_NK.shape == rows.kept_logprobs_NK.shape == (9, top_k)
    assert (rows.tail_logprob_N == tail).all()
    assert (root / "cache.zarr/token/kept_id").exists() == bool(top_k)
    assert verify(root, "full") == []


def test_a_teacher_without_references_stores_none(tmp_path):
    fingerprint = make_fingerprint(pool=None, draw={"policy": "none", "seed": 0, "num_references": 0})
    key = "00" * 32
    samples = [Sample(bytes([index]) * 16, person_digest(key, "a"), 7, 2) for index in range(3)]
    builder = make_builder(tmp_path, [], fingerprint, samples)
    for block in range(len(builder.blocks)):
        fill_block(builder, block)
    cache = TeacherCache.open(builder.assemble())
    assert cache.reference.shape == (3, 0)
    assert cache.reference_sha256.shape == (0, 32)
    assert not (cache.root / "cache.zarr/reference").exists()


def test_a_large_vocabulary_needs_wide_ids(tmp_path):
    wide = {"ids": "uint32", "logprobs": "float32"}
    fingerprint = make_fingerprint(vocab_size=70000, storage=wide)
    builder = make_builder(tmp_path, [2], fingerprint)
    rows = make_rows(2, 0)
    builder.write_block(
        0, {**rows, "kept_id": rows["kept_id"] + 69000, "kept_logprob": rows["kept_logprob"].astype(np.float32)}
    )
    cache = TeacherCache.open(builder.assemble())
    assert cache.load().kept_ids_NK.dtype == np.uint32
    assert cache.load().kept_ids_NK.min() >= 69000


def test_two_shards_and_a_ragged_end(tmp_path):
    builder = make_builder(tmp_path, [4000] * 10)
    for block in range(len(builder.blocks)):
        fill_block(builder, block)
    cache = TeacherCache.open(builder.assemble())
    assert len(list((cache.root / "cache.zarr/token/kept_id/c").iterdir())) == 2
    np.testing.assert_array_equal(cache.rows_of(9).kept_ids_NK, make_rows(4000, 9)["kept_id"])


def test_shards_are_whole_numbers_of_chunks():
    for rows in (1, 1023, 1024, 1025, 32768, 32769, 10**6):
        for dtype, width in (("uint16", 64), ("float32", 32064), ("uint8", 32)):
            chunk, shard = chunk_and_shard(ArrayPlan(dtype, (rows, width)))
            assert shard[0] % chunk[0] == 0
            assert chunk[0] <= 1024
            assert chunk[0] * width * np.dtype(dtype).itemsize <= 64 << 20
    assert chunk_and_shard(ArrayPlan("uint16", (10**6, 64))) == ((1024, 64), (32768, 64))


def test_key_and_root_digest_are_what_a_shell_would_compute(tmp_path):
    root = make_cache(tmp_path, [3, 2, 4])
    manifest = json.loads((root / "manifest.json").read_bytes())
    assert hashlib.sha256((root / "fingerprint.json").read_bytes()).hexdigest() == manifest["key"]
    assert root.name == manifest["key"][:16]
    files = {path: content for path, content in tree_bytes(root).items() if path != "manifest.json"}
    lines = [f"{hashlib.sha256(content).hexdigest()}  {path}\n" for path, content in files.items()]
    assert hashlib.sha256("".join(sorted(lines)).encode()).hexdigest() == manifest["root_sha256"]
    assert (root / "manifest.json").read_bytes() == canonical_json(manifest) + b"\n"


def test_digests_are_pinned():
    assert row_key([1, 2], [3], None).hex() == "834c0fd47d94258e9129417ea2fed5cb"
    assert row_key([1], [2, 3], None) != row_key([1, 2], [3], None) != row_key([1, 2], [3], "aa")
    assert person_digest("ab" * 32, "person").hex() == "57da5f0f0ff8529e097037788f4dbc23"
    assert person_digest("ab" * 32, "person") != person_digest("cd" * 32, "person")
    assert token_hash("ab" * 32, [1, 2], [3]) == 15849349957768314911


def test_bytes_of_the_fixture_have_not_changed(tmp_path):
    """Regenerate with VIKER_GOLDEN=1; another format needs another SCHEMA and a line in the changelog."""
    made = make_cache(tmp_path, [3, 2, 1])
    if os.environ.get("VIKER_GOLDEN"):
        shutil.rmtree(GOLDEN, ignore_errors=True)
        shutil.copytree(made.parent, GOLDEN)
    assert tree_bytes(made) == tree_bytes(GOLDEN / made.name)


def test_the_fixture_is_read_by_the_plain_reader():
    (root,) = GOLDEN.iterdir()
    cache = TeacherCache.open(root)
    assert verify(root, "full") == []
    assert cache.num_samples == 3
    assert np.diff(cache.offset).tolist() == [len(cache.rows_of(index)) for index in range(3)]


def test_empty_answers_are_refused(tmp_path):
    fingerprint = make_fingerprint()
    for samples in ([], [Sample(b"k" * 16, b"p" * 16, 5, 0, (0, 1))]):
        with pytest.raises(CacheError, match="at least one sample"):
            CacheBuilder(tmp_path, fingerprint, {}, samples, POOL)


@pytest.mark.parametrize("seed", [1, 2])
def test_the_order_in_which_rows_are_made_leaves_no_trace(tmp_path, seed):
    lengths = [3, 1, 4, 1, 5, 9, 2, 6] * 7
    sealed = [tmp_path / "sorted", tmp_path / "shuffled"]
    for home in sealed:
        builder = make_builder(home, lengths)
        if home == sealed[1]:
            samples = random.Random(seed).sample(builder.samples, len(lengths))
            shutil.rmtree(builder.staging)
            builder = CacheBuilder(home, builder.fingerprint, builder.build, samples, POOL)
        for block, (start, stop) in enumerate(builder.blocks):
            made = [make_rows(sample.num_rows, sample.token_hash % 1000) for sample in builder.samples[start:stop]]
            builder.write_block(block, {name: np.concatenate([rows[name] for rows in made]) for name in made[0]})
        builder.assemble()
    assert tree_bytes(sealed[0]) == tree_bytes(sealed[1])


def test_samples_of_one_row_key_must_lie_side_by_side(tmp_path):
    builder = make_builder(tmp_path, [3, 2])
    first, second = builder.samples
    again = dataclasses.replace(first, person=bytes(16))
    with pytest.raises(AssertionError, match="side by side"):
        CacheBuilder(tmp_path / "other", builder.fingerprint, {}, [first, second, again], POOL)
