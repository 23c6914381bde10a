"""Damage: whatever a disk, a copy or an edit does to a cache is seen, and the file it was done to is named."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
import zarr
from click.testing import CliRunner
from viker.cli import viker
from viker.precompute.cache import CacheError, TeacherCache
from viker.precompute.reading.verify import verify
from viker.tests.cache_damage import exchange, flip, sign
from viker.tests.cache_samples import fill_block, make_builder, make_cache, make_fingerprint, make_rows, tree_bytes

if TYPE_CHECKING:
    from pathlib import Path

SHARDS_THAT_OTHERS_BOUND = [
    "kept_logprob/c/{}/0",
    "tail_logprob/c/{}",
    "entropy/c/{}",
    "sum_squares/c/{}",
    "answer_logprob/c/{}",
]
SMALL_FILES = [
    "manifest.json",
    "fingerprint.json",
    "build.json",
    "cache.zarr/zarr.json",
    "cache.zarr/token/zarr.json",
    "cache.zarr/token/kept_id/zarr.json",
    "cache.zarr/sample/key/zarr.json",
]
TOP_K = 48  # of 50: a small tail, as real rows have


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """Three samples; never changed."""
    return make_cache(tmp_path_factory.mktemp("small"), [3, 2, 4])


@pytest.fixture
def root(small, tmp_path) -> Path:
    return shutil.copytree(small, tmp_path / small.name)


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    """Two full shards of every token array; never changed."""
    builder = make_builder(tmp_path_factory.mktemp("sound"), [4096] * 16, make_fingerprint(TOP_K))
    for block in range(len(builder.blocks)):
        builder.write_block(block, make_rows(builder.num_rows(block), block, TOP_K))
    return builder.assemble()


@pytest.fixture
def large(sound, tmp_path) -> Path:
    return shutil.copytree(sound, tmp_path / sound.name)


def named(root: Path) -> set[str]:
    """The files that the full check names, relative to the cache."""
    return {problem.detail.split(":")[0] for problem in verify(root, "full")}


def assert_flips_are_seen(root: Path, name: str, places: list[tuple[int, int]]) -> None:
    for place, bit in places:
        flip(root / name, place, bit)
        with pytest.raises(CacheError, match=re.escape(name)):
            TeacherCache.open(root)
        flip(root / name, place, bit)


@pytest.mark.parametrize("name", SMALL_FILES)
def test_a_flipped_bit_in_any_byte_of_a_small_file_is_named_at_open(root, name):
    chance = random.Random(name)
    places = [(place, chance.randrange(8)) for place in range((root / name).stat().st_size)]
    assert_flips_are_seen(root, name, places if len(places) < 400 else chance.sample(places, 400))
    TeacherCache.open(root)


@pytest.mark.slow
def test_every_flipped_bit_of_every_small_file_is_named_at_open(root):
    for name in SMALL_FILES:
        assert_flips_are_seen(root, name, [(at, bit) for at in range((root / name).stat().st_size) for bit in range(8)])


def test_every_flipped_bit_of_a_shard_is_named_when_values_are_read(root):
    name = "cache.zarr/token/kept_logprob/c/0/0"
    for place in range((root / name).stat().st_size):
        for bit in range(8):
            flip(root / name, place, bit)
            with pytest.raises(CacheError, match=name):
                TeacherCache.open(root).load()
            flip(root / name, place, bit)
    TeacherCache.open(root).load()


@pytest.mark.parametrize("number", range(24))
def test_a_flipped_bit_of_any_file_is_named_by_the_full_check(large, number):
    chance = random.Random(number)
    name = chance.choice(sorted(tree_bytes(large)))
    flip(large / name, chance.randrange((large / name).stat().st_size), chance.randrange(8))
    assert named(large) == {name}


@pytest.mark.parametrize("name", ["token/entropy/c/1", "token/kept_id/c/0/0", "sample/person/c/0/0"])
def test_a_missing_shard_is_named_at_open_although_zarr_would_fill_it(large, name):
    (large / "cache.zarr" / name).unlink()
    assert np.asarray(zarr.open_array(large / "cache.zarr" / name.partition("/c/")[0], mode="r")[...]).size
    with pytest.raises(CacheError, match=rf"cache\.zarr/{name}: expected \d+ bytes, found no file"):
        TeacherCache.open(large)
    assert named(large) == {f"cache.zarr/{name}"}


def test_a_missing_shard_is_named_by_its_array_although_the_manifest_agrees(large):
    (large / "cache.zarr/token/entropy/c/1").unlink()
    sign(large)
    assert verify(large, "full")[0].detail.startswith("cache.zarr/token/entropy: expected 2 shards")


def test_all_missing_files_are_named_at_once(large):
    gone = {"build.json", "cache.zarr/token/entropy/zarr.json", "cache.zarr/token/entropy/c/0"}
    for name in gone:
        (large / name).unlink()
    assert named(large) == gone


@pytest.mark.parametrize("name", ["build.json", "cache.zarr/token/kept_id/c/0/0", "cache.zarr/token/zarr.json"])
@pytest.mark.parametrize("kept", [0, 1, -1])
def test_a_truncated_file_is_named_at_open(root, name, kept):
    (root / name).write_bytes((root / name).read_bytes()[:kept])
    with pytest.raises(CacheError, match=rf"{name}: expected \d+ bytes, found"):
        TeacherCache.open(root)
    assert named(root) == {name}


def test_a_file_with_bytes_appended_is_named_at_open(root):
    with (root / "cache.zarr/token/entropy/c/0").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(CacheError, match="entropy/c/0: expected"):
        TeacherCache.open(root)
    sign(root)
    with pytest.raises(CacheError, match=r"entropy/c/0: expected (at most|the index)"):
        TeacherCache.open(root).load()


def test_a_truncated_manifest_is_named_at_open(root):
    content = (root / "manifest.json").read_bytes()
    for kept in range(0, len(content), 37):
        (root / "manifest.json").write_bytes(content[:kept])
        with pytest.raises(CacheError, match=r"manifest\.json"):
            TeacherCache.open(root)


def test_a_folder_in_the_place_of_a_file_is_named_at_open(root):
    (root / "cache.zarr/token/entropy/c/0").unlink()
    (root / "cache.zarr/token/entropy/c/0").mkdir()
    with pytest.raises(CacheError, match=r"entropy/c/0: expected .* found no file"):
        TeacherCache.open(root)


def test_two_arrays_exchanged_are_seen_when_values_are_read_and_named_by_the_full_check(large):
    arrays = ("token/entropy", "token/sum_squares")
    exchange(*(large / "cache.zarr" / name for name in arrays))
    assert named(large) >= {f"cache.zarr/{name}/c/{shard}" for name in arrays for shard in range(2)}
    with pytest.raises(CacheError, match=r"cache\.zarr/token/"):
        TeacherCache.open(large).load()


def test_two_arrays_of_equal_sizes_exchanged_do_not_load(root):
    arrays = [root / "cache.zarr/token" / name for name in ("entropy", "sum_squares")]
    assert len({(path / "c/0").stat().st_size for path in arrays}) == 1  # so the quick check sees nothing
    exchange(*arrays)
    assert verify(root, "quick") == []
    with pytest.raises(CacheError, match="entropy/c/0: expected sha256"):
        TeacherCache.open(root).load()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("token/entropy", "token/sum_squares"),
        ("token/entropy", "token/tail_logprob"),
        ("token/tail_logprob", "token/answer_logprob"),
        ("token/answer_logprob", "token/sum_squares"),
        ("token/kept_id", "token/kept_logprob"),
        ("token/disagreement", "token/entropy"),
        ("sample/key", "sample/person"),
        ("sample/key", "sample/token_hash"),
    ],
)
def test_two_arrays_exchanged_under_a_new_signature_are_refused(large, first, second):
    exchange(large / "cache.zarr" / first, large / "cache.zarr" / second)
    sign(large)
    assert {problem.kind for problem in verify(large, "full")} <= {"directory", "values"}
    assert verify(large, "full")


@pytest.mark.parametrize("name", ["kept_id/c/{}/0", "kept_logprob/c/{}/0", "entropy/c/{}", "answer_logprob/c/{}"])
def test_two_shards_of_one_array_exchanged_are_named_and_do_not_load(large, name):
    shards = [large / "cache.zarr/token" / name.format(number) for number in range(2)]
    exchange(*shards)
    problems = verify(large, "full")
    assert {problem.detail.split(":")[0] for problem in problems} == {
        path.relative_to(large).as_posix() for path in shards
    }
    with pytest.raises(CacheError, match=shards[0].parent.as_posix()):
        TeacherCache.open(large).load()


@pytest.mark.parametrize("name", SHARDS_THAT_OTHERS_BOUND)
def test_two_shards_exchanged_under_a_new_signature_are_refused_by_the_other_arrays(large, name):
    exchange(*(large / "cache.zarr/token" / name.format(number) for number in range(2)))
    sign(large)
    assert verify(large, "quick") == []
    with pytest.raises(CacheError, match="rows that are distributions"):
        TeacherCache.open(large).load()
    assert [problem.kind for problem in verify(large, "full")] == ["values"]


def test_a_shard_of_another_cache_is_named(large, tmp_path):
    other = make_cache(tmp_path / "other", [4] * 3) / "cache.zarr/token/kept_id/c/0/0"
    shutil.copy(other, large / "cache.zarr/token/kept_id/c/0/0")
    assert named(large) == {"cache.zarr/token/kept_id/c/0/0"}


@pytest.mark.parametrize(
    "name",
    ["notes.txt", ".hidden", "deep/er/file", "cache.zarr/x", "cache.zarr/token/entropy/c/9", "cache.zarr/.zgroup"],
)
def test_an_extra_file_is_named_by_the_full_check(root, name):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(b"")
    assert named(root) == {name}


def test_an_extra_file_among_the_arrays_is_named_at_open(root):
    (root / "cache.zarr/token/entropy/c/0.partial").write_bytes(b"")
    with pytest.raises(CacheError, match=r"c/0\.partial: expected no file in the arrays"):
        TeacherCache.open(root)


@pytest.mark.parametrize("name", ["notes.txt", "cache.zarr/token/entropy/c/1", "cache.zarr/token/more/zarr.json"])
def test_an_extra_file_is_refused_although_the_manifest_lists_it(root, name):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(b"{}")
    sign(root)
    with pytest.raises(CacheError, match=rf"difference.*{name}|expected 1 shards"):
        TeacherCache.open(root)


def test_a_name_of_any_bytes_stays_on_one_line(root):
    (root / os.fsdecode(b"two\nlines\x1b[31m\xff")).write_bytes(b"")
    (problem,) = verify(root, "full")
    assert problem.detail.startswith(r"two\nlines\x1b[31m\udcff: expected only files")
    assert problem.detail.isprintable()


def test_the_command_prints_one_line_a_problem_with_kind_and_file_and_exits_1(large):
    flip(large / "cache.zarr/token/kept_id/c/1/0", 5)
    (large / "cache.zarr/token/entropy/c/0").unlink()
    (large / "more").write_bytes(b"")
    result = CliRunner().invoke(viker, ["cache", "verify", str(large), "--depth", "full"])
    assert result.exit_code == 1
    head, *lines = result.stdout.splitlines()
    assert head == f"cache verify: {large}: 3 problems (full)"
    assert [line.split(" expected")[0] for line in lines] == [
        "  file: cache.zarr/token/entropy/c/0:",
        "  checksum: cache.zarr/token/kept_id/c/1/0:",
        "  unlisted: more:",
    ]


def test_plain_zarr_reads_what_the_reader_reads(large):
    cache = TeacherCache.open(large)
    for name in cache.plans:
        stored = np.asarray(zarr.open_array(large / "cache.zarr" / name, mode="r", zarr_format=3)[...])
        np.testing.assert_array_equal(cache._decode(name).astype(stored.dtype), stored)


def test_a_file_that_may_not_be_read_is_an_error_that_says_so(large):
    for path in (large, *large.rglob("*")):
        path.chmod(0o755)
    (large / "cache.zarr/token/entropy/c/1").chmod(0)
    code = (
        "import os, sys\n"
        "from viker.precompute.cache import CacheError, TeacherCache\n"
        "os.chdir(sys.argv[1])\n"
        "if os.geteuid() == 0: os.seteuid(65534)\n"
        "try: TeacherCache.open('.').load()\n"
        "except CacheError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(large)], capture_output=True, text=True, check=True)
    assert done.stdout == (
        "cache.zarr/token/entropy/c/1: expected to read it, found: Permission denied. "
        "Check who may read it, and the disk.\n"
    )


def test_row_keys_other_than_those_the_fingerprint_names_are_found(tmp_path):
    whole = make_builder(tmp_path / "whole", [2] * 30)
    fewer = make_builder(tmp_path / "fewer", [], whole.fingerprint, whole.samples[:-1])
    for block in range(len(fewer.blocks)):
        fill_block(fewer, block)
    cache = TeacherCache.open(fewer.assemble())
    with pytest.raises(CacheError, match="row keys of digest"):
        _ = cache.row_keys
    assert ["row keys of digest" in problem.detail for problem in verify(cache.root, "full")] == [True]
