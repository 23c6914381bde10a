"""Caches made from caches: a person taken out, samples added, rows copied bit for bit; and how far rows are apart."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from cache_samples import fill_block, make_builder, make_cache, make_fingerprint, make_rows, make_samples, tree_bytes
from viker.precompute.cache import CacheMismatch, Rows, TeacherCache, lineage_of, person_digest
from viker.precompute.reading.distance import cache_distances, row_distances
from viker.precompute.reading.identity import rows_digest
from viker.precompute.reading.rows import as_rows
from viker.precompute.reading.verify import verify
from viker.precompute.writing.derive import (
    KnownRows,
    copy_known_blocks,
    devices_of,
    finish_replacements,
    holds_person,
    samples_of,
    start_derived,
    without_person,
)
from viker.precompute.writing.store import Sample

if TYPE_CHECKING:
    from pathlib import Path

LENGTHS = [1 + index % 4 for index in range(45)]
BY_PERSON = {f"person-{index}": LENGTHS[index::3] for index in range(3)}
ROW_ARRAYS = [field.name for field in dataclasses.fields(Rows)]


def make_mixed(home: Path, lengths: list[int], **changes: Any) -> TeacherCache:
    """A cache of three people whose blocks all hold other rows, and the digest of rows that its samples imply."""
    fingerprint = make_fingerprint(**changes)
    samples = make_samples(lineage_of(fingerprint), lengths)
    return seal(home, {**fingerprint, "rows": rows_digest({sample.row_key for sample in samples})}, samples)


def seal(home: Path, fingerprint: dict[str, Any], samples: list[Sample]) -> TeacherCache:
    builder = make_builder(home, [], fingerprint, samples)
    for block in range(len(builder.blocks)):
        fill_block(builder, block)
    return TeacherCache.open(builder.assemble())


def share_all_rows(cache: TeacherCache, home: Path, person: str) -> TeacherCache:
    """The same rows with one more person, about whom every question is asked too."""
    digest = person_digest(cache.lineage, person)
    twins = [dataclasses.replace(sample, person=digest) for sample in samples_of(cache)]
    builder = start_derived(home, cache, sorted([*samples_of(cache), *twins]), {}, "extend")
    assert copy_known_blocks(builder, KnownRows(cache)) == []
    return TeacherCache.open(builder.assemble())


def bytes_of(rows: Rows) -> list[bytes]:
    return [getattr(rows, name).tobytes() for name in ROW_ARRAYS]


def test_samples_are_read_back_as_they_were_written(tmp_path):
    fingerprint = make_fingerprint()
    written = make_samples(lineage_of(fingerprint), LENGTHS)
    assert samples_of(TeacherCache.open(make_cache(tmp_path, LENGTHS))) == sorted(written)


def test_without_a_person_the_others_rows_are_the_same_bits(tmp_path):
    cache = make_mixed(tmp_path, LENGTHS)
    rest = without_person(cache, "person-1", tmp_path)
    assert rest is not None
    assert rest.root.parent == tmp_path
    assert rest.num_samples == 30
    assert rest.num_rows == sum(BY_PERSON["person-0"] + BY_PERSON["person-2"])
    assert [holds_person(rest, person) for person in BY_PERSON] == [True, False, True]
    for index, sample in enumerate(samples_of(rest)):
        before = cache.find_sample(sample.row_key, sample.person)
        assert bytes_of(rest.rows_of(index)) == bytes_of(cache.rows_of(before))
    assert verify(rest.root, "full") == []


def test_a_cache_that_lost_a_person_has_the_key_and_the_bytes_it_would_have_had_without_them(tmp_path):
    kept = [sample for sample in samples_of(make_mixed(tmp_path, LENGTHS)) if sample.row_key[0] % 2]
    fingerprint = make_fingerprint(rows=rows_digest({sample.row_key for sample in kept}))
    fresh = seal(tmp_path / "fresh", fingerprint, kept)
    whole = start_derived(tmp_path / "whole", fresh, [*kept, extra_sample(fresh, "person-x")], {}, "extend")
    assert len(copy_known_blocks(whole, KnownRows(fresh))) == 1
    for block in range(len(whole.blocks)):
        if whole.claim(block):
            known, keys = KnownRows(fresh), [sample.row_key for sample in whole.samples[slice(*whole.blocks[block])]]
            parts = [known.rows(key) if key in known else make_rows(2, 5) for key in keys]
            whole.write_block(block, {name: np.concatenate([part[name] for part in parts]) for name in parts[0]})
    rest = without_person(TeacherCache.open(whole.assemble()), "person-x", tmp_path / "rest")
    assert rest is not None
    assert rest.key == fresh.key
    before, after = tree_bytes(fresh.root), tree_bytes(rest.root)
    assert {name for name in before if before[name] != after[name]} == {"build.json", "manifest.json"}


def extra_sample(cache: TeacherCache, person: str) -> Sample:
    return Sample(b"\x07" * 16, person_digest(cache.lineage, person), 7, 2, (0, 1))


def test_nobody_left_is_no_cache(tmp_path):
    cache = make_mixed(tmp_path, LENGTHS)
    two = without_person(cache, "person-0", tmp_path)
    one = without_person(two, "person-1", tmp_path)
    assert without_person(one, "person-2", tmp_path) is None


def test_a_stranger_to_the_cache_leaves_it_as_it_is(tmp_path):
    cache = make_mixed(tmp_path, LENGTHS)
    before = tree_bytes(cache.root)
    assert not holds_person(cache, "somebody")
    assert without_person(cache, "somebody", tmp_path).root == cache.root
    assert tree_bytes(cache.root) == before


def test_the_parent_is_recorded_and_nobodys_name(tmp_path):
    cache = make_mixed(tmp_path, LENGTHS)
    rest = without_person(cache, "person-1", tmp_path)
    assert rest.build["parents"] == [{"key": cache.key, "root": cache.root_digest}]
    assert rest.build["derived"] == "purge"
    assert rest.build["source"] == "tests"
    assert rest.lineage == cache.lineage
    assert devices_of(rest.build) == {"cpu"}
    digest = person_digest(cache.lineage, "person-1")
    for content in tree_bytes(rest.root).values():
        assert b"person-1" not in content
        assert digest.hex().encode() not in content


def test_the_parent_stays_as_it_was(tmp_path):
    cache = make_mixed(tmp_path, LENGTHS)
    before = tree_bytes(cache.root)
    without_person(cache, "person-1", tmp_path)
    assert tree_bytes(cache.root) == before


def test_who_shares_all_rows_is_taken_out_under_the_same_key(tmp_path):
    cache = share_all_rows(make_mixed(tmp_path / "alone", LENGTHS), tmp_path, "twin")
    assert holds_person(cache, "twin")
    rest = without_person(cache, "twin", tmp_path)
    assert (rest.key, rest.root) == (cache.key, cache.root)
    assert not holds_person(rest, "twin")
    assert rest.num_samples == len(LENGTHS)
    assert verify(rest.root, "full") == []
    assert sorted(path.name for path in tmp_path.iterdir() if path.name not in ("alone", ".replacing")) == [
        cache.root.name
    ]


def test_a_replacement_that_crashed_in_the_middle_is_finished(tmp_path):
    cache = share_all_rows(make_mixed(tmp_path / "alone", LENGTHS), tmp_path / "home", "twin")
    home = cache.root.parent
    without_person(cache, "twin", tmp_path / "home")
    (home / ".replacing").mkdir(exist_ok=True)
    cache.root.rename(home / ".replacing" / cache.root.name)  # as after the first of two renames
    (home / f"{cache.root.name}.0123.removed").mkdir()
    finish_replacements(home)
    assert verify(cache.root, "full") == []
    assert not list(home.glob("*.removed"))


def test_blocks_that_no_parent_fills_are_reported_and_left(tmp_path):
    cache = make_mixed(tmp_path / "parent", LENGTHS)
    stranger = extra_sample(cache, "person-9")
    builder = start_derived(tmp_path, cache, [*samples_of(cache), stranger], {}, "extend")
    asked = copy_known_blocks(builder, KnownRows(cache))
    assert [builder.blocks[block] for block in asked] == [
        bounds for bounds in builder.blocks if stranger in builder.samples[slice(*bounds)]
    ]
    assert builder.complete_blocks() == sorted(set(range(len(builder.blocks))) - set(asked))
    assert stranger.row_key not in KnownRows(cache)


def test_devices_of_copied_and_computed_rows_are_both_named(tmp_path):
    known = KnownRows(make_mixed(tmp_path, LENGTHS))
    mine = samples_of(TeacherCache.open(next(tmp_path.iterdir())))[0].row_key
    assert known.device([mine], "cuda") == "cpu"
    assert known.device([mine, b"\0" * 16], "cuda") == "cpu + cuda"
    assert known.device([b"\0" * 16], "cuda") == "cuda"
    assert KnownRows().device([mine], "cuda") == "cuda"
    assert devices_of({"block_devices": ["cpu + cuda", "cpu"]}) == {"cpu", "cuda"}
    assert devices_of({}) == set()


KILLED = """
import os, signal, sys
from pathlib import Path
from viker.precompute.cache import TeacherCache
from viker.precompute.writing.derive import without_person
from viker.precompute.writing.store import CacheBuilder
write = CacheBuilder.write_block
def killed(builder, block, *rest):
    if block == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    write(builder, block, *rest)
CacheBuilder.write_block = killed
without_person(TeacherCache.open(Path(sys.argv[1])), "person-1", Path(sys.argv[1]).parent)
"""


def test_killed_in_the_middle_it_resumes_to_the_same_bytes(tmp_path):
    cache = make_mixed(tmp_path, LENGTHS)
    whole = tree_bytes(without_person(cache, "person-1", tmp_path / "whole").root)
    status = subprocess.run([sys.executable, "-c", KILLED, str(cache.root)], env={**os.environ}, check=False)
    assert status.returncode == -signal.SIGKILL
    (staging,) = tmp_path.glob("*.building")
    assert len([path for path in staging.glob("block-*") if not path.suffix]) == 7
    assert tree_bytes(without_person(cache, "person-1", tmp_path).root) == whole
    assert not list(tmp_path.glob("*.building"))


# How far rows are apart.


def loop(ours: Rows, theirs: Rows, row: int) -> float:
    """The definition, one row at a time."""
    p, q = bucketed(ours, row), bucketed(theirs, row)
    both = (p.keys() & q.keys()) - {"tail"}
    answer = abs(np.exp(float(ours.answer_logprob_N[row])) - np.exp(float(theirs.answer_logprob_N[row])))
    return max(answer, excess(p, q, both), excess(q, p, both))


def bucketed(rows: Rows, row: int) -> dict[int | str, float]:
    kept = zip(rows.kept_ids_NK[row].tolist(), np.exp(rows.kept_logprobs_NK[row].astype(float)), strict=True)
    return {**dict(kept), "tail": np.exp(float(rows.tail_logprob_N[row]))}


def excess(p: dict[int | str, float], q: dict[int | str, float], both: set[int | str]) -> float:
    alone = sum(max(p[id_] - min(q.values()), 0) for id_ in p.keys() - both - {"tail"})
    rest = sum(p.values()) - sum(q.values()) - sum(p[id_] - q[id_] for id_ in both)
    return sum(max(p[id_] - q[id_], 0) for id_ in both) + max(alone, rest)


def some_rows(num_rows: int, seed: int, top_k: int) -> Rows:
    return as_rows({f"token/{name}": array for name, array in make_rows(num_rows, seed, top_k).items()})


@pytest.mark.parametrize(("top_k", "other"), [(4, 4), (4, 9), (50, 50), (1, 50), (0, 4), (0, 0)])
def test_distances_are_those_of_a_plain_loop(top_k, other):
    ours, theirs = some_rows(40, 1, top_k), some_rows(40, 2, other)
    expected = [loop(ours, theirs, row) for row in range(40)]
    np.testing.assert_allclose(row_distances(ours, theirs), expected, rtol=1e-12, atol=1e-15)
    assert min(expected) >= 0
    assert max(expected) > 0.01


def replaced(rows: Rows, kept_ids: list[int], kept: list[float], tail: float) -> Rows:
    changes = {"kept_ids_NK": [kept_ids], "kept_logprobs_NK": np.log([kept]), "tail_logprob_N": np.log([tail])}
    typed = {name: np.array(value, getattr(rows, name).dtype) for name, value in changes.items()}
    return dataclasses.replace(rows, **typed)


def test_rows_are_no_distance_from_themselves_and_as_far_there_as_back():
    ours, theirs = some_rows(40, 1, 4), some_rows(40, 2, 4)
    assert row_distances(ours, ours).max() < 1e-12
    np.testing.assert_allclose(row_distances(ours, theirs), row_distances(theirs, ours), atol=1e-15)


def test_the_distance_of_what_is_kept_never_exceeds_that_of_the_whole_distribution():
    whole = row_distances(some_rows(200, 1, 50), some_rows(200, 2, 50))
    kept = row_distances(some_rows(200, 1, 4), some_rows(200, 2, 6))
    assert (kept <= whole + 1e-3).all()
    assert kept.max() > 0.01


def test_rows_that_are_sure_of_different_tokens_are_far_apart():
    sure = {id_: replaced(some_rows(1, 1, 2), kept_ids=[id_, id_ + 1], kept=[0.9, 0.06], tail=0.04) for id_ in (3, 30)}
    assert row_distances(sure[3], sure[30])[0] == pytest.approx((0.9 - 0.04) + (0.06 - 0.04), abs=1e-6)


def test_slices_play_no_part(monkeypatch):
    ours, theirs = some_rows(40, 1, 4), some_rows(40, 2, 6)
    whole = row_distances(ours, theirs)
    monkeypatch.setattr("viker.precompute.reading.distance.ROWS_AT_ONCE", 7)
    assert (row_distances(ours, theirs) == whole).all()


def test_no_rows_have_no_distances():
    assert row_distances(some_rows(0, 1, 4), some_rows(0, 1, 4)).shape == (0,)


def test_two_makers_of_one_key_are_compared_by_row_key(tmp_path, monkeypatch):
    one = make_mixed(tmp_path / "one", LENGTHS)
    builder = make_builder(tmp_path / "two", [], one.fingerprint, samples_of(one))
    for block in range(len(builder.blocks)):
        builder.write_block(block, make_rows(builder.num_rows(block), 1000 + block))
    two = TeacherCache.open(builder.assemble())
    shared = share_all_rows(two, tmp_path / "shared", "twin")
    assert cache_distances(one, one).max() < 1e-12
    distances = cache_distances(one, two)
    assert distances.shape == (one.num_rows,)
    np.testing.assert_allclose(distances, row_distances(one.load(), two.load()), atol=1e-15)
    assert (cache_distances(one, shared) == distances).all()
    monkeypatch.setattr("viker.precompute.reading.distance.KEYS_AT_ONCE", 2)
    assert (cache_distances(one, two) == distances).all()


def test_one_row_key_of_two_lengths_is_an_error(tmp_path):
    one = make_mixed(tmp_path / "one", LENGTHS)
    first, *others = samples_of(one)
    longer = [dataclasses.replace(first, num_rows=first.num_rows + 1), *others]
    with pytest.raises(CacheMismatch, match=f"expected {first.num_rows} rows for the row key"):
        cache_distances(one, seal(tmp_path / "two", one.fingerprint, longer))


def test_caches_without_a_common_row_have_no_distances(tmp_path):
    one = make_mixed(tmp_path / "one", [1, 2])
    sample = extra_sample(one, "person-0")
    other = seal(tmp_path / "two", make_fingerprint(rows=rows_digest({sample.row_key})), [sample])
    assert cache_distances(one, other).shape == (0,)
