"""The reader under generated damage: a fixed budget of seeded inputs, structured ones, and every finding by name."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from viker.precompute.cache import CacheError, TeacherCache
from viker.precompute.reading.layout import ArrayPlan
from viker.precompute.writing.blocks import pack_block, read_header
from viker.tests.cache_damage import change_metadata, sign_as
from viker.tests.cache_samples import make_cache, make_fingerprint
from viker.tests.fuzz_cache import Folder, canonical, read, repeat_in_group, shards, signed, sound_cache, with_crc

if TYPE_CHECKING:
    from collections.abc import Iterator

SCRIPT = Path(__file__).parent / "fuzz_cache.py"
JSON_FILES = sorted(name for name in sound_cache() if name.endswith(".json") and name != "manifest.json")

structured = settings(
    max_examples=80, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def folder() -> Iterator[Folder]:
    folder = Folder()
    yield folder
    folder.remove()


def outcome(folder: Folder, tree: dict[str, bytes]) -> str:
    folder.put(tree)
    try:
        return read(folder.root)
    finally:
        folder.restore(tree)


def fuzz(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=False)


# ---- Budgets -------------------------------------------------------------------------------------------------------


def test_three_hundred_seeded_inputs_end_in_nothing_but_cache_errors():
    done = fuzz("--inputs", "300", "--seconds", "300", "--seed", "0")
    assert (done.returncode, done.stdout) == (0, "300 inputs of seed 0, 0 crashes \n"), done.stderr


@pytest.mark.slow
def test_a_minute_of_seeded_inputs_ends_in_nothing_but_cache_errors():
    done = fuzz("--seconds", "60", "--seed", "20261120")
    assert done.returncode == 0, done.stdout + done.stderr


FAULTS = {
    "another exception": "viker.precompute.reading.reader.is_fingerprint = lambda value: True",
    "an allocation past the cap": (
        "viker.precompute.reading.reader.is_fingerprint = lambda value: bytearray(128 << 20) and False"
    ),
    "a hang": "fuzz_cache.SECONDS = 1; viker.precompute.reading.reader.is_fingerprint = lambda value: time.sleep(9)",
    "the end of the process": "viker.precompute.reading.reader.is_fingerprint = lambda value: os.abort()",
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_the_fuzzer_finds_a_planted_fault(fault):
    code = (
        "import os, sys, time, viker.precompute.reading.reader\n"
        "from viker.tests import fuzz_cache\n"
        "folder = fuzz_cache.Folder\n"
        f"def planted():\n    {fault}\n"
        "limit = fuzz_cache._limit_memory\n"
        "fuzz_cache._limit_memory = lambda: (limit(), planted())\n"
        "done, crashes = fuzz_cache.run(0, 60, 2000, most_crashes=1)\n"
        "sys.exit(0 if crashes else 7)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, fault], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# ---- Structured inputs ---------------------------------------------------------------------------------------------


def places_of(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values within a value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for name, item in items for place in places_of(item, (*path, name)))]


@structured
@given(data=st.data(), name=st.sampled_from(JSON_FILES), new=json_values)
def test_any_value_in_any_place_of_any_json(folder, data, name, new):
    tree = dict(sound_cache())
    value = {"whole": json.loads(tree[name])}
    *path, last = data.draw(st.sampled_from(places_of(value)[1:]))
    place: Any = value
    for step in path:
        place = place[step]
    place[last] = new
    tree[name] = canonical(value["whole"])
    if name == "fingerprint.json":
        repeat_in_group(tree, value["whole"])
    assert outcome(folder, signed(tree)) in ("refused", "read")


@structured
@given(name=st.sampled_from(shards(sound_cache())), chunk=st.binary(min_size=16, max_size=200), data=st.data())
def test_any_bytes_in_a_chunk_whose_sizes_and_checksums_are_right(folder, name, chunk, data):
    tree = dict(sound_cache())
    sound = tree[name]
    kept = data.draw(st.integers(0, 16))
    chunk = sound[:kept] + chunk[kept:]
    chunk = chunk[:12] + len(chunk).to_bytes(4, "little") + chunk[16:]
    tree[name] = with_crc(chunk) + with_crc(bytes(8) + (len(chunk) + 4).to_bytes(8, "little"))
    assert outcome(folder, signed(tree)) in ("refused", "read")


@structured
@given(name=st.sampled_from(shards(sound_cache())), offset=st.integers(0, 2**64 - 1), length=st.integers(0, 2**64 - 1))
def test_any_entry_in_the_index_of_a_shard(folder, name, offset, length):
    tree = dict(sound_cache())
    tree[name] = tree[name][:-20] + with_crc(offset.to_bytes(8, "little") + length.to_bytes(8, "little"))
    assert outcome(folder, signed(tree)) in ("refused", "read")


@structured
@given(content=st.binary(max_size=300))
def test_any_bytes_as_a_manifest(folder, content):
    assert outcome(folder, {**sound_cache(), "manifest.json": content}) == "refused"


# ---- Staged blocks -------------------------------------------------------------------------------------------------

PLANS = {"token/entropy": ArrayPlan("float32", (3,)), "token/kept_id": ArrayPlan("uint16", (3, 2))}
KEY = "ab" * 32


def block_of(header: bytes, values: bytes) -> bytes:
    body = header + b"\n" + values
    return b"viker/block/2 " + hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def sound_block() -> tuple[dict[str, Any], bytes]:
    arrays = {name: np.zeros(plan.shape, plan.dtype) for name, plan in PLANS.items()}
    header, _, values = pack_block(KEY, 7, arrays, "cpu").partition(b"\n")[2].partition(b"\n")
    return json.loads(header), values


def read_block(path: Path, content: bytes) -> Any:
    path.write_bytes(content)
    return read_header(path, KEY, 7, PLANS)


def test_a_sound_block_is_read(tmp_path):
    header, values = sound_block()
    found = read_block(tmp_path / "block", block_of(json.dumps(header).encode(), values))
    assert found.device == "cpu"
    assert found.starts["token/kept_id"] - found.starts["token/entropy"] == 12


@structured
@given(data=st.data(), new=json_values)
def test_any_value_in_any_place_of_the_header_of_a_block(tmp_path, data, new):
    header, values = sound_block()
    whole = {"whole": header}
    *path, last = data.draw(st.sampled_from(places_of(whole)[1:]))
    place: Any = whole
    for step in path:
        place = place[step]
    place[last] = new
    try:
        found = read_block(tmp_path / "block", block_of(json.dumps(whole["whole"]).encode(), values))
    except ValueError:
        return
    assert isinstance(found.device, str)


@pytest.mark.parametrize("header", [b"", b"[]", b"7", b"{}", b"[" * 9000, b'{"key":1,"key":2}', b"9" * 10**4, b"\xff"])
def test_a_block_whose_header_is_no_header(tmp_path, header):
    with pytest.raises(ValueError, match=r"JSON|computed|block"):
        read_block(tmp_path / "block", block_of(header, sound_block()[1]))


@pytest.mark.parametrize("missing", [1, 12, 24, -1])
def test_a_block_with_other_rows_than_it_says(tmp_path, missing):
    header, values = sound_block()
    values = values[:-missing] if missing > 0 else values + b"\0"
    with pytest.raises(ValueError, match=rf"it has {len(values)} bytes of rows, not 24"):
        read_block(tmp_path / "block", block_of(json.dumps(header).encode(), values))


def test_a_block_without_end(tmp_path):
    with (tmp_path / "block").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ValueError, match="no plain file of at most"):
        read_header(tmp_path / "block", KEY, 7, PLANS)


def test_a_block_that_is_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "block")
    with pytest.raises(ValueError, match="no plain file of at most"):
        read_header(tmp_path / "block", KEY, 7, PLANS)


# ---- Findings ------------------------------------------------------------------------------------------------------


def test_a_fingerprint_with_a_float_is_refused_and_trips_no_assertion(tmp_path):
    root = make_cache(tmp_path, [3, 2, 4])
    sign_as(root, {**make_fingerprint(), "weights": 0.5})
    with pytest.raises(CacheError, match=r"fingerprint\.json: expected viker/fingerprint/1"):
        TeacherCache.open(root)


def test_a_fingerprint_without_rows_is_refused_and_misses_no_key(tmp_path):
    root = make_cache(tmp_path, [3, 2, 4])
    fingerprint = json.loads((root / "fingerprint.json").read_bytes())
    del fingerprint["rows"]
    sign_as(root, fingerprint)
    with pytest.raises(CacheError, match=r"fingerprint\.json: expected viker/fingerprint/1"):
        _ = TeacherCache.open(root).row_keys


def test_a_field_of_metadata_whose_name_breaks_lines_leaves_the_message_on_one(tmp_path):
    root = make_cache(tmp_path, [3, 2, 4])
    change_metadata(root, "token/entropy", lambda value: value.update({"a\nb\x1b[31m": 1}))
    with pytest.raises(CacheError, match=re.escape(r"a\nb\x1b[31m")) as refused:
        TeacherCache.open(root)
    assert str(refused.value).isprintable()
