"""Hostile caches: each is refused with one line that says why, in at most 64 MiB, whatever it claims or hides.

Everything is read in a process whose address space is limited (`cache_sandbox.py`), so that an allocation that is too
large fails for real. Where an attacker would, the manifest is signed again; nothing here is stopped by a checksum that
whoever wrote the cache could have made right.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
from typing import TYPE_CHECKING, Any

import numcodecs.blosc
import numpy as np
import pytest
import zarr
from viker.precompute.cache import CacheError, TeacherCache
from viker.precompute.reading import layout, shards
from viker.precompute.reading.layout import ListedFile, manifest_bytes
from viker.precompute.writing.blocks import list_files
from viker.tests.cache_damage import (
    blosc_header,
    change_metadata,
    change_values,
    first_chunk,
    one_chunk_shard,
    sign,
    sign_as,
    with_crc,
)
from viker.tests.cache_samples import make_cache, make_fingerprint
from viker.tests.cache_sandbox import MOST_EXTRA, Outcome, Sandbox

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

Change = tuple[str, str, "Callable[[Any], object]"]
ENTROPY = "cache.zarr/token/entropy"
KEPT = "cache.zarr/token/kept_id"


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """Three samples; never changed."""
    return make_cache(tmp_path_factory.mktemp("small"), [3, 2, 4])


@pytest.fixture
def root(small, tmp_path) -> Path:
    return shutil.copytree(small, tmp_path / small.name)


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    sandbox = Sandbox()
    yield sandbox
    sandbox.close()


def refusal(sandbox: Sandbox, root: Path) -> str:
    """The one line that refuses a cache, once memory was within bounds and the full check said so too."""
    outcome = sandbox.read(root)
    assert_refused(outcome)
    return outcome.message


def assert_refused(outcome: Outcome) -> None:
    assert outcome.error == "CacheError", outcome
    assert outcome.message.isprintable()
    assert ": expected " in outcome.message
    assert len(outcome.message) < 5000
    assert outcome.problems
    assert all(problem.isprintable() for problem in outcome.problems)
    assert outcome.extra_bytes < MOST_EXTRA


def cases(changes: list[Change]) -> Any:
    return pytest.mark.parametrize(("found", "change"), [(found, change) for _, found, change in changes],
                                   ids=[name for name, _, _ in changes])  # fmt: skip


def test_a_sound_cache_passes_the_same_sandbox(sandbox, root):
    outcome = sandbox.read(root)
    assert (outcome.error, outcome.problems) == ("", [])
    assert outcome.extra_bytes < 8 << 20


def test_the_sandbox_stops_what_takes_more(sandbox, root, tmp_path):
    """Otherwise every test here would pass; the files are as large as they say, so that nothing is wrong with them."""
    large = make_cache(tmp_path / "large", [4096] * 4, make_fingerprint(1000, 1024))
    assert sandbox.read(large).error == "CacheError"
    assert "memory for" in sandbox.read(large).message


# ---- Files that are not what they seem -----------------------------------------------------------------------------


def sparse(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)


def listed_as(root: Path, name: str, size: int) -> None:
    """Sign a file with a size, without reading it."""
    key = json.loads((root / "manifest.json").read_bytes())["key"]
    files = {**list_files_but(root, name), name: ListedFile(size, "00" * 32)}
    (root / "manifest.json").write_bytes(manifest_bytes(key, files))


def list_files_but(root: Path, name: str) -> dict[str, ListedFile]:
    listed = json.loads((root / "manifest.json").read_bytes())["files"]
    return {file["path"]: ListedFile(file["size"], file["sha256"]) for file in listed if file["path"] != name}


@pytest.mark.parametrize("name", [f"{ENTROPY}/zarr.json", "cache.zarr/zarr.json", "fingerprint.json", "build.json"])
def test_a_gigabyte_of_json(sandbox, root, name):
    sparse(root / name, 1 << 30)
    listed_as(root, name, 1 << 30)
    assert f"{name}: expected at most " in refusal(sandbox, root)


def test_a_gigabyte_of_manifest(sandbox, root):
    sparse(root / "manifest.json", 1 << 30)
    assert "manifest.json: expected at most 6291456 bytes, found 1073741824" in refusal(sandbox, root)


def test_a_manifest_of_a_million_files(sandbox, root):
    line = '{"path":"cache.zarr/token/entropy/c/%07d","sha256":"' + "0" * 64 + '","size":1}'
    content = '{"files":[' + ",".join(line % number for number in range(10**6)) + "]}"
    (root / "manifest.json").write_text(content)
    assert len(content) > 120 << 20
    assert "manifest.json: expected at most" in refusal(sandbox, root)


def test_the_longest_manifest_that_is_parsed(sandbox, root):
    files = {f"{number:06}": ListedFile(1, "0" * 64) for number in range(61_000)}
    (root / "manifest.json").write_bytes(manifest_bytes("0" * 64, files))
    assert (root / "manifest.json").stat().st_size > 5.9 * 2**20
    outcome = sandbox.read(root)
    assert_refused(outcome)
    assert "000000: expected 1 bytes, found no file" in outcome.message
    assert len(outcome.problems) == 1001
    assert "expected at most 1000 problems, found more; these are the first" in outcome.problems[-1]


def test_a_sparse_shard_of_a_terabyte(sandbox, root):
    sparse(root / f"{ENTROPY}/c/0", 1 << 40)
    listed_as(root, f"{ENTROPY}/c/0", 1 << 40)
    assert f"{ENTROPY}/c/0: expected at most 1077936128 bytes, found 1099511627776" in refusal(sandbox, root)


def test_a_sparse_shard_of_a_hundred_megabytes(sandbox, root):
    sparse(root / f"{ENTROPY}/c/0", 100 << 20)
    sign(root)
    assert f"{ENTROPY}/c/0: expected at most 76 bytes in this shard" in refusal(sandbox, root)


PLACES = ["manifest.json", "fingerprint.json", f"{ENTROPY}/zarr.json", f"{ENTROPY}/c/0", "unlisted"]


@pytest.mark.parametrize("name", PLACES)
def test_a_pipe_without_a_writer(sandbox, root, name):
    (root / name).unlink(missing_ok=True)
    os.mkfifo(root / name)
    plain = "a plain file" if name == "manifest.json" else "plain files and folders only"
    assert f"{name}: expected {plain}" in refusal(sandbox, root)


@pytest.mark.parametrize("name", PLACES)
def test_a_link_to_a_secret(sandbox, root, name, tmp_path):
    shutil.copy(root / name if (root / name).exists() else root / "build.json", tmp_path / "secret")
    (root / name).unlink(missing_ok=True)
    (root / name).symlink_to(tmp_path / "secret")
    assert f"{name}: expected" in refusal(sandbox, root)


@pytest.mark.parametrize("name", PLACES)
def test_a_link_to_itself(sandbox, root, name):
    (root / name).unlink(missing_ok=True)
    (root / name).symlink_to(name.rpartition("/")[2])
    assert f"{name}: expected" in refusal(sandbox, root)


@pytest.mark.parametrize("name", PLACES)
def test_a_link_to_nothing(sandbox, root, name):
    (root / name).unlink(missing_ok=True)
    (root / name).symlink_to("nowhere")
    assert f"{name}: expected" in refusal(sandbox, root)


@pytest.mark.parametrize("name", ["cache.zarr", "cache.zarr/token", ENTROPY])
def test_a_linked_folder(sandbox, root, name, tmp_path):
    shutil.move(root / name, tmp_path / "elsewhere")
    (root / name).symlink_to(tmp_path / "elsewhere")
    assert f"{name}: expected plain files and folders only" in refusal(sandbox, root)


def test_a_socket(sandbox, root, monkeypatch):
    monkeypatch.chdir(root)  # the path of a socket has at most 107 bytes
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("build.sock")
        assert "build.sock: expected plain files and folders only" in refusal(sandbox, root)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes device files")
@pytest.mark.parametrize("name", ["manifest.json", f"{ENTROPY}/c/0"])
def test_a_device_that_never_ends(sandbox, root, name):
    (root / name).unlink()
    os.mknod(root / name, 0o20666, os.makedev(1, 5))
    assert f"{name}: expected" in refusal(sandbox, root)


def test_folders_without_end(sandbox, root):
    folder = root
    for _ in range(40):
        folder = folder / ("d" * 200)
        if len(str(folder)) < 4000:
            folder.mkdir()
    assert "expected at most 16 nested folders" in refusal(sandbox, root)


def test_more_files_than_any_cache_has(root, monkeypatch):
    monkeypatch.setattr(layout, "MOST_FILES", 60)
    for number in range(100):
        (root / f"file-{number}").touch()
    with pytest.raises(CacheError, match="expected at most 60 files"):
        TeacherCache.open(root)


@pytest.mark.parametrize("name", ["", "build.json", "nowhere", "loop", "nul\0", "long" * 100])
def test_a_path_that_is_no_folder_of_a_cache(sandbox, tmp_path, name):
    (tmp_path / "build.json").write_text("{}")
    (tmp_path / "loop").symlink_to("loop")
    assert_refused(sandbox.read(tmp_path / name))


# ---- JSON ----------------------------------------------------------------------------------------------------------

BYTES: list[tuple[str, str, bytes]] = [
    ("nothing", "expected JSON", b""),
    ("another encoding", "expected JSON", '{"a":1}'.encode("utf-16")),
    ("a byte order mark", "expected JSON", b'\xef\xbb\xbf{"a":1}'),
    ("bytes that are no text", "expected JSON", b'{"a":"\xff"}'),
    ("half a surrogate pair", "expected JSON", rb'{"a":"\ud800"}'),
    ("a name twice", "a name that occurs twice", b'{"a":1,"b":{"c":1,"c":2}}'),
    ("NaN", "NaN, which is not JSON", b'{"a":NaN}'),
    ("infinity", "-Infinity, which is not JSON", b'{"a":-Infinity}'),
    ("a number beyond floats", "a number that no float holds", b'{"a":1e999}'),
    ("an integer of a million digits", "an integer of 1000000 digits", b'{"a":' + b"9" * 10**6 + b"}"),
    ("a float of a million digits", "a number that no float holds", b'{"a":0.' + b"9" * 10**6 + b"}"),
    ("nested a hundred deep", "at most 32 levels", b'{"a":' + b"[" * 100 + b"]" * 100 + b"}"),
    ("nested nine thousand deep", "expected JSON", b'{"a":' + b"[" * 9000 + b"]" * 9000 + b"}"),
    ("nested without end", "at most 10000 arrays", b"[" * 10**6),
    ("many small objects", "at most 10000 arrays", b"[" + b"{}," * 300_000 + b"{}]"),
    ("many numbers", "at most 200000 values", b"[" + b"1," * 500_000 + b"1]"),
    ("text in wide characters", "", '{"a":"😀'.encode() + b"a" * 10**6 + b'"}'),
    ("something else", "", b"[]"),
]


@pytest.mark.parametrize(("found", "content"), [case[1:] for case in BYTES], ids=[case[0] for case in BYTES])
@pytest.mark.parametrize("name", ["fingerprint.json", "build.json", "cache.zarr/zarr.json", f"{ENTROPY}/zarr.json"])
def test_json_that_is_none_of_ours(sandbox, root, name, found, content):
    (root / name).write_bytes(content)
    sign(root)
    if name == "fingerprint.json":
        key = hashlib.sha256(content).hexdigest()
        (root / "manifest.json").write_bytes(manifest_bytes(key, list_files_but(root, "")))
    outcome = sandbox.read(root)
    if name == "build.json" and json_is_fine(content):
        assert outcome.error == ""
        return
    assert_refused(outcome)
    assert f"{name}: expected" in outcome.message
    assert found in outcome.message


def json_is_fine(content: bytes) -> bool:
    """Whether build.json may hold this: any object that is strict JSON."""
    return content.startswith(b'{"a":"\xf0')


FILE_OF_MANIFEST = rb'"path":"([^"]*)","sha256":"([0-9a-f]{64})"'
MANIFESTS: list[tuple[str, bytes, bytes]] = [
    ("a space", b'"key":', b'"key": '),
    ("no newline at the end", b"}\n", b"}"),
    ("two newlines", b"}\n", b"}\n\n"),
    ("another schema", b"teacher-cache/1", b"teacher-cache/2"),
    ("another root", b'"root_sha256":"', b'"root_sha256":"0'),
    ("a size of a million digits", b'"size":5', b'"size":' + b"5" * 10**6),
    ("a negative size", b'"size":5', b'"size":-5'),
    ("a fraction of a byte", b'"size":5', b'"size":5.5'),
    ("a size with a leading zero", b'"size":5', b'"size":05'),
    ("no comma", b"},{", b"}{"),
    ("two commas", b"},{", b"},,{"),
    ("a comma at the end", b"}],", b"},],"),
    ("paths out of order", b'"path":"build.json"', b'"path":"z"'),
    ("a path twice", b'"path":"fingerprint.json"', b'"path":"cache.zarr/zarr.json"'),
    ("a path above", b'"path":"build.json"', b'"path":"../build.json"'),
    ("a path above inside", b'"path":"build.json"', b'"path":"a/../build.json"'),
    ("an absolute path", b'"path":"build.json"', b'"path":"/etc/passwd"'),
    ("a backslash", b'"path":"build.json"', rb'"path":"a\\build.json"'),
    ("an escape", b'"path":"build.json"', rb'"path":"\u002e\u002e/build.json"'),
    ("a NUL", b'"path":"build.json"', rb'"path":"build.json\u0000"'),
    ("a raw NUL", b'"path":"build.json"', b'"path":"build.json\0"'),
    ("a drive", b'"path":"build.json"', b'"path":"C:/build.json"'),
    ("a path of two thousand bytes", b'"path":"build.json"', b'"path":"' + b"b" * 2000 + b'"'),
    ("a path that is a number", b'"path":"build.json"', b'"path":7'),
    ("an empty path", b'"path":"build.json"', b'"path":""'),
    ("letters beyond ASCII", b'"path":"build.json"', '"path":"büild.json"'.encode()),
    ("a key more", b'{"files"', b'{"a":1,"files"'),
    ("no files", b'{"files":[{', b'{"files":[],"more":[{'),
]


@pytest.mark.parametrize(("old", "new"), [case[1:] for case in MANIFESTS], ids=[case[0] for case in MANIFESTS])
def test_a_manifest_that_is_not_canonical(sandbox, root, old, new):
    content = (root / "manifest.json").read_bytes()
    assert old in content
    (root / "manifest.json").write_bytes(with_root(content.replace(old, new, 1)))
    assert "manifest.json: expected" in refusal(sandbox, root)


def with_root(content: bytes) -> bytes:
    """A manifest whose root digest is that of the files it lists, if it has the place for one."""
    lines = sorted(b"%s  %s\n" % (sha256, path) for path, sha256 in re.findall(FILE_OF_MANIFEST, content))
    root = hashlib.sha256(b"".join(lines)).hexdigest().encode()
    return re.sub(b'"root_sha256":"[0-9a-f]{64}"', b'"root_sha256":"' + root + b'"', content)


def test_a_manifest_in_another_order_under_the_right_root(sandbox, root):
    head, *files, tail = re.split(rb"(?<=\[)|,(?={)|(?=\])", (root / "manifest.json").read_bytes())
    (root / "manifest.json").write_bytes(with_root(head + b",".join(files) + tail))
    assert sandbox.read(root).error == ""
    (root / "manifest.json").write_bytes(with_root(head + b",".join(reversed(files)) + tail))
    assert "manifest.json: expected the canonical bytes" in refusal(sandbox, root)
    (root / "manifest.json").write_bytes(with_root(head + b",".join([files[0], *files]) + tail))
    assert "paths in order, none twice, found build.json after build.json" in refusal(sandbox, root)


# ---- What is claimed about the arrays ------------------------------------------------------------------------------


def deep(value: Any, path: str) -> tuple[Any, str | int]:
    *steps, last = (int(step) if step.isdigit() else step for step in path.split("."))
    for step in steps:
        value = value[step]
    return value, last


def put(path: str, new: object) -> Callable[[Any], object]:
    """Set a field of zarr.json, named by a dotted path."""

    def change(value: Any) -> None:
        place, last = deep(value, path)
        place[last] = new

    return change


def drop(path: str) -> Callable[[Any], object]:
    """Remove a field of zarr.json, named by a dotted path."""

    def change(value: Any) -> None:
        place, last = deep(value, path)
        del place[last]

    return change


INSIDE = "codecs.0.configuration"
PICKLE = {"name": "numcodecs.pickle", "configuration": {"protocol": 5}}
METADATA: list[Change] = [
    ("pickle as a filter", "bounded", put(f"{INSIDE}.codecs", [PICKLE])),
    ("pickle before the others", "bounded", lambda value: deep(value, f"{INSIDE}.codecs.0")[0].insert(0, PICKLE)),
    ("pickle after the others", "codecs", lambda value: deep(value, f"{INSIDE}.codecs.0")[0].append(PICKLE)),
    ("pickle in the index", "codecs", lambda value: deep(value, f"{INSIDE}.index_codecs.0")[0].append(PICKLE)),
    ("pickle instead of shards", "bounded", put("codecs", [PICKLE])),
    ("objects", "data_type", put("data_type", "object")),
    ("text of any length", "data_type", put("data_type", "variable_length_bytes")),
    ("raw bytes", "data_type", put("data_type", {"name": "r99999999999"})),
    ("an unknown codec", "bounded", put(f"{INSIDE}.codecs.1", {"name": "zfpy"})),
    ("gzip", "bounded", put(f"{INSIDE}.codecs.1", {"name": "gzip", "configuration": {"level": 5}})),
    ("another compressor", "codecs", put(f"{INSIDE}.codecs.1.configuration.cname", "lz4")),
    ("no shuffle", "codecs", put(f"{INSIDE}.codecs.1.configuration.shuffle", "noshuffle")),
    ("another type size", "codecs", put(f"{INSIDE}.codecs.1.configuration.typesize", 8)),
    ("a level beyond nine", "bounded", put(f"{INSIDE}.codecs.1.configuration.clevel", 10)),
    ("a level that is true", "bounded", put(f"{INSIDE}.codecs.1.configuration.clevel", True)),
    ("blocks of a terabyte", "bounded", put(f"{INSIDE}.codecs.1.configuration.blocksize", 1 << 40)),
    ("big-endian bytes", "codecs", put(f"{INSIDE}.codecs.0.configuration.endian", "big")),
    ("bytes without an order", "codecs", drop(f"{INSIDE}.codecs.0.configuration")),
    ("no checksums", "codecs", drop(f"{INSIDE}.codecs.2")),
    ("no checksum of the index", "codecs", drop(f"{INSIDE}.index_codecs.1")),
    ("an index at the start", "codecs", put(f"{INSIDE}.index_location", "start")),
    ("shards in shards", "bounded", put(f"{INSIDE}.codecs", [{"name": "sharding_indexed", "configuration": {}}])),
    ("a codec more", "codecs", lambda value: value["codecs"].append({"name": "crc32c"})),
    ("no codecs", "bounded", put("codecs", [])),
    ("codecs that are text", "bounded", put("codecs", "blosc")),
    ("another fill value", "fill_value", put("fill_value", 0)),
    ("other chunk names", "chunk_key_encoding", put("chunk_key_encoding", {"name": "v2"})),
    ("a separator", "chunk_key_encoding", put("chunk_key_encoding.configuration.separator", ".")),
    ("a transformer", "storage_transformers", put("storage_transformers", [{"name": "x"}])),
    ("attributes", "attributes", put("attributes", {"a": 1})),
    ("names of dimensions", "dimension_names", put("dimension_names", ["a", "b"])),
    ("an unknown field", "must_understand", put("must_understand", {"a": 1})),
    ("format 2", "zarr_format", put("zarr_format", 2)),
    ("format 3.0", "zarr_format", put("zarr_format", 3.0)),
    ("a group", "node_type", put("node_type", "group")),
    ("another shape", "shape", put("shape", [9, 5])),
    ("a shape of one dimension", "shape", put("shape", [36])),
    ("a petabyte", "shape", put("shape", [10**15, 4])),
    ("chunks of a petabyte", "bounded", put(f"{INSIDE}.chunk_shape", [10**15, 4])),
    ("chunks of part of a row", "codecs", put(f"{INSIDE}.chunk_shape", [9, 2])),
    ("chunks of nothing", "bounded", put(f"{INSIDE}.chunk_shape", [0, 4])),
    ("chunks of text", "bounded", put(f"{INSIDE}.chunk_shape", "94")),
    ("shards of a petabyte", "bounded", put("chunk_grid.configuration.chunk_shape", [9 * 10**15, 4])),
    ("shards of part of a row", "chunk_grid", put("chunk_grid.configuration.chunk_shape", [9, 2])),
    ("shards of half a chunk", "bounded", put("chunk_grid.configuration.chunk_shape", [14, 4])),
    ("shards of a million chunks", "bounded", put("chunk_grid.configuration.chunk_shape", [9 << 20, 4])),
    ("rectilinear chunks", "chunk_grid", put("chunk_grid.name", "rectilinear")),
]  # fmt: skip


@cases(METADATA)
def test_metadata_that_no_writer_writes(sandbox, root, found, change):
    change_metadata(root, "token/kept_id", change)
    message = refusal(sandbox, root)
    assert f"{KEPT}/zarr.json: expected" in message
    assert found in message


def test_chunks_beyond_the_cap_with_shards_to_match(sandbox, root):
    def larger(value: Any) -> None:
        put(f"{INSIDE}.chunk_shape", [1 << 22, 4])(value)
        put("chunk_grid.configuration.chunk_shape", [1 << 22, 4])(value)

    change_metadata(root, "token/kept_id", larger)
    assert "expected chunks of at most 16777216 bytes, found 33554432" in refusal(sandbox, root)


def test_shards_beyond_the_cap_with_chunks_within(sandbox, root):
    def larger(value: Any) -> None:
        put(f"{INSIDE}.chunk_shape", [1 << 20, 4])(value)
        put("chunk_grid.configuration.chunk_shape", [1 << 28, 4])(value)

    change_metadata(root, "token/kept_id", larger)
    assert "expected shards of at most 1073741824 bytes" in refusal(sandbox, root)


GROUPS: list[Change] = [
    ("consolidated metadata", "", put("consolidated_metadata", {"metadata": {}})),
    ("another key", "", put("attributes.key", "00" * 32)),
    ("another K", "", put("attributes.top_k", 5)),
    ("a K of 4.0", "", put("attributes.top_k", 4.0)),
    ("attributes more", "", put("attributes.more", 1)),
    ("no attributes", "", drop("attributes")),
    ("an array", "", put("node_type", "array")),
    ("format 2", "", put("zarr_format", 2)),
]


@cases(GROUPS)
def test_a_group_that_says_something_else(sandbox, root, found, change):
    change_metadata(root, "", change)
    assert "cache.zarr/zarr.json: expected a Zarr v3 group" in refusal(sandbox, root) + found


def test_all_arrays_claim_a_petabyte(sandbox, root):
    for name in ("entropy", "sum_squares", "answer_logprob", "tail_logprob", "disagreement"):
        change_metadata(root, f"token/{name}", put("shape", [10**14]))
    for name in ("kept_id", "kept_logprob"):
        change_metadata(root, f"token/{name}", put("shape", [10**14, 4]))
    assert "shards for shape [100000000000000" in refusal(sandbox, root)


def test_a_zarr_v2_store(sandbox, root):
    folder = root / ENTROPY
    shutil.rmtree(folder)
    zarr.create_array(store=str(folder), shape=(9,), dtype="float32", chunks=(9,), zarr_format=2)[...] = 1
    sign(root)
    assert "zarr.json among its files, found a manifest without it" in refusal(sandbox, root)
    (folder / "zarr.json").write_bytes((folder / ".zarray").read_bytes())
    sign(root)
    assert "expected an array with a shape" in refusal(sandbox, root) or "sharded Zarr v3" in refusal(sandbox, root)


FINGERPRINTS: list[Change] = [
    ("a vocabulary of 10^19", "", put("vocab_size", 10**19)),
    ("a negative vocabulary", "", put("vocab_size", -1)),
    ("a K beyond the vocabulary", "", put("objective.top_k", 51)),
    ("a K of four billion", "", lambda value: value.update(vocab_size=2**32 - 1, objective={"top_k": 2**32 - 1})),
    ("a K that is true", "", put("objective.top_k", True)),
    ("a K that is text", "", put("objective.top_k", "4")),
    ("an unknown dtype", "", put("storage.ids", "object")),
    ("a dtype that is a list", "", put("storage.ids", ["uint16"])),
    ("dtypes more", "", put("storage.more", "uint16")),
    ("too many references", "", put("draw.num_references", 2**40)),
    ("a pool that is a number", "", put("pool", 7)),
    ("no pool", "", put("pool", None)),
    ("no objective", "", drop("objective")),
    ("storage that is text", "", put("storage", "uint16")),
    ("no rows", "", drop("rows")),
    ("rows that are a number", "", put("rows", 7)),
    ("no weights", "", drop("weights")),
    ("no intervention", "", drop("intervention")),
    ("an intervention of no kind", "", put("intervention", {})),
    ("a rendering that is a list", "", put("rendering", [])),
]


@cases(FINGERPRINTS)
def test_a_fingerprint_that_implies_the_absurd(sandbox, root, found, change):
    fingerprint = json.loads((root / "fingerprint.json").read_bytes())
    change(fingerprint)
    sign_as(root, fingerprint)
    assert "expected" in refusal(sandbox, root) + found


# ---- What the shards hold ------------------------------------------------------------------------------------------

HEADERS: list[tuple[str, str, dict[str, int]]] = [
    ("two gigabytes from nothing", "to decode to 36 bytes", {"decoded": 2**31 - 1}),
    ("nothing", "to decode to 36 bytes", {"decoded": 0}),
    ("less than there should be", "to decode to 36 bytes", {"decoded": 32}),
    ("more stored than there is", "to decode to 36 bytes", {"stored": 10**6}),
    ("four gigabytes stored", "to decode to 36 bytes", {"stored": 2**32 - 1}),
    ("less stored than there is", "to decode to 36 bytes", {"stored": 17}),
    ("blocks of nothing", "in blocks of at most", {"block": 0}),
    ("blocks of four gigabytes", "in blocks of at most", {"block": 2**32 - 1}),
    ("items of nothing", "blosc-zstd-bitshuffle", {"typesize": 0}),
    ("items of another size", "blosc-zstd-bitshuffle", {"typesize": 8}),
    ("a version to come", "blosc-zstd-bitshuffle", {"version": 5}),
    ("another zstd", "blosc-zstd-bitshuffle", {"compressor": 9}),
    ("lz4", "blosc-zstd-bitshuffle", {"flags": 0x24}),
    ("byte shuffle", "blosc-zstd-bitshuffle", {"flags": 0x81}),
    ("a delta filter", "blosc-zstd-bitshuffle", {"flags": 0x8C}),
    ("compressed where it was copied", "to decode to 36 bytes", {"flags": 0x94}),
]


@pytest.mark.parametrize(("found", "changes"), [case[1:] for case in HEADERS], ids=[case[0] for case in HEADERS])
def test_a_chunk_that_lies_about_itself(sandbox, root, found, changes):
    path = root / f"{ENTROPY}/c/0"
    path.write_bytes(one_chunk_shard(blosc_header(first_chunk(path.read_bytes()), **changes)))
    sign(root)
    message = refusal(sandbox, root)
    assert f"{ENTROPY}/c/0: expected chunk 0" in message
    assert found in message


def test_all_headers_of_an_array_are_checked_before_anything_is_decoded(tmp_path, monkeypatch):
    root = make_cache(tmp_path, [700] * 3)
    path = root / f"{KEPT}/c/0/0"
    content = path.read_bytes()
    (start, length) = np.frombuffer(content[-(3 * 16 + 4) : -4], "<u8").reshape(-1, 2)[2].tolist()
    last = with_crc(blosc_header(content[start : start + length - 4], decoded=2**31 - 1))
    path.write_bytes(content[:start] + last + content[start + length :])
    sign(root)
    monkeypatch.setattr(numcodecs.blosc, "decompress", lambda _: pytest.fail("blosc was asked"))
    monkeypatch.setattr(np, "empty", lambda *_: pytest.fail("memory was taken"))
    with pytest.raises(CacheError, match=rf"{KEPT}/c/0/0: expected chunk 2 to decode to 8192 bytes"):
        TeacherCache.open(root).load()


def test_a_shard_exchanged_between_the_check_and_the_decoding_is_checked_again(root, monkeypatch):
    path = root / f"{KEPT}/c/0/0"
    liar = one_chunk_shard(blosc_header(first_chunk(path.read_bytes()), decoded=2**31 - 1))
    check = shards._check_headers

    def check_then_exchange(checked: Path, *arguments: Any) -> None:
        check(checked, *arguments)
        path.write_bytes(liar)

    monkeypatch.setattr(shards, "_check_headers", check_then_exchange)
    monkeypatch.setattr(numcodecs.blosc, "decompress", lambda _: pytest.fail("blosc was asked"))
    with pytest.raises(CacheError, match=rf"{KEPT}/c/0/0: expected chunk 0 to decode to 72 bytes"):
        TeacherCache.open(root).load()


def test_a_zstd_bomb_inside_blosc(sandbox, root):
    """A block that decompresses to a hundred megabytes, under a header that says 36 bytes."""
    bomb = numcodecs.blosc.compress(bytes(100 << 20), b"zstd", 3, 2, 0, 4)
    size = 16 + 200
    path = root / f"{ENTROPY}/c/0"
    path.write_bytes(one_chunk_shard(blosc_header(bomb[:size], decoded=36, block=36, stored=size, typesize=4)))
    sign(root)
    assert f"{ENTROPY}/c/0: expected" in refusal(sandbox, root)


def shards_of_zeros(root: Path, name: str, rows: int, width: int, itemsize: int) -> None:
    """Let an array claim many rows, all of them zero, as one chunk that is stored again and again."""
    chunk_rows = 1024
    stored = with_crc(numcodecs.blosc.compress(bytes(chunk_rows * width * itemsize), b"zstd", 3, 2, 0, itemsize))
    chunks, row = -(-rows // chunk_rows), [width] * (width > 1)
    index = b"".join(
        (at * len(stored)).to_bytes(8, "little") + len(stored).to_bytes(8, "little") for at in range(chunks)
    )
    shard = root / "cache.zarr" / name / "/".join(["c", *"0" * (1 + len(row))])
    shard.write_bytes(stored * chunks + with_crc(index))

    def claim(value: Any) -> None:
        put("shape", [rows, *row])(value)
        put(f"{INSIDE}.chunk_shape", [chunk_rows, *row])(value)
        put("chunk_grid.configuration.chunk_shape", [chunks * chunk_rows, *row])(value)

    change_metadata(root, name, claim)


def zeros_everywhere(root: Path, rows: int, width: int) -> None:
    for name in ("entropy", "sum_squares", "answer_logprob", "tail_logprob"):
        shards_of_zeros(root, f"token/{name}", rows, 1, 4)
    shards_of_zeros(root, "token/disagreement", rows, 1, 2)
    for name in ("kept_id", "kept_logprob"):
        shards_of_zeros(root, f"token/{name}", rows, width, 2)


def test_a_thousandfold_inflation_that_looks_right(sandbox, tmp_path):
    root = make_cache(tmp_path, [3, 2, 4], make_fingerprint(40))
    zeros_everywhere(root, 1 << 20, 40)
    stored = sum((root / name).stat().st_size for name in list_files(root) if "/c/" in name)
    assert stored < 1 << 20
    assert "decoded bytes from" in refusal(sandbox, root)


def test_an_inflation_within_bounds_is_refused_for_its_values_within_bounds(sandbox, tmp_path):
    root = make_cache(tmp_path, [3, 2, 4], make_fingerprint(40))
    zeros_everywhere(root, 1 << 17, 40)
    change_values(root, "sample/offset", 3, 1 << 17)
    assert "rows that are distributions, found kept id occurs twice" in refusal(sandbox, root)


def index_of(*entries: tuple[int, int]) -> bytes:
    return with_crc(b"".join(offset.to_bytes(8, "little") + length.to_bytes(8, "little") for offset, length in entries))


@pytest.mark.parametrize(
    "entry",
    [(0, 10**9), (10**9, 56), (2**64 - 56, 56), (2**64 - 1, 2**64 - 1), (2**63, 2**63), (1, 55), (0, 55), (0, 0)],
)
def test_an_index_that_points_elsewhere(sandbox, root, entry):
    path = root / f"{ENTROPY}/c/0"
    stored = with_crc(first_chunk(path.read_bytes()))
    assert len(stored) == 56
    path.write_bytes(stored + index_of(entry))
    sign(root)
    assert f"{ENTROPY}/c/0: expected" in refusal(sandbox, root)


@pytest.mark.parametrize(
    ("entries", "found"),
    [
        ([(0, 0), (0, 0)], "end to end"),  # the same bytes twice
        ([(0, 0), (0, 1)], "end to end"),  # they overlap
        ([(0, 0), (1, 1)], "end to end"),  # a gap before the second
        ([(0, 0), (2**64, 2**64)], "one missing"),  # the second is missing
    ],
)
def test_chunks_that_overlap_or_leave_gaps(sandbox, tmp_path, entries, found):
    root = make_cache(tmp_path, [700] * 3)
    path = root / f"{KEPT}/c/0/0"
    content = path.read_bytes()
    index = np.frombuffer(content[-(3 * 16 + 4) : -4], "<u8").reshape(-1, 2)
    (start, length), (second, _) = index[0].tolist(), index[1].tolist()
    moved = [(start, length), {0: (start, length), 1: (second - 1, length)}.get(entries[1][0], (second + 1, length))]
    if entries[1] == (0, 1):
        moved[1] = (second - 1, int(index[1][1]) + 1)
    if entries[1][0] == 2**64:
        moved[1] = (2**64 - 1, 2**64 - 1)
    path.write_bytes(content[: -(3 * 16 + 4)] + index_of(*moved, tuple(index[2].tolist())))
    sign(root)
    message = refusal(sandbox, root)
    assert f"{KEPT}/c/0/0: expected" in message
    assert found in message


@pytest.mark.parametrize("content", [b"", b"\0" * 20, b"\xff" * 20, b"\0" * 4, index_of((0, 0))])
def test_a_shard_without_chunks(sandbox, root, content):
    (root / f"{ENTROPY}/c/0").write_bytes(content)
    sign(root)
    assert f"{ENTROPY}/c/0: expected" in refusal(sandbox, root)


# ---- Values --------------------------------------------------------------------------------------------------------

VALUES: list[tuple[str, str, str, Any, Any]] = [
    ("ids beyond the vocabulary", "kept id is not below 50", "token/kept_id", (3, 2), 60000),
    ("NaN", "not finite", "token/kept_logprob", (3, 3), np.nan),
    ("NaN for an entropy", "entropy", "token/entropy", 3, np.nan),
    ("offsets that fall", "sample/offset increasing", "sample/offset", ..., [0, 5, 3, 9]),
    ("offsets that wrap around", "sample/offset increasing", "sample/offset", ..., [0, 2**63 - 1, -(2**62), 9]),
    ("offsets beyond the rows", "sample/offset increasing", "sample/offset", ..., [0, 3, 5, 10**12]),
    ("references beyond the pool", "references below 3", "sample/reference", (0, 0), 65535),
    ("samples out of order", "samples sorted", "sample/key", 0, 255),
]


@pytest.mark.parametrize(("found", "name", "index", "value"), [case[1:] for case in VALUES], ids=[c[0] for c in VALUES])
def test_values_that_lead_astray(sandbox, root, found, name, index, value):
    change_values(root, name, index, np.array(value))
    assert found in refusal(sandbox, root)


def test_offsets_that_wrap_around_and_come_back(sandbox, tmp_path):
    """Every difference is positive in 64 bits, and they add up; the offsets point outside all the same."""
    root = make_cache(tmp_path, [1] * 6)
    change_values(root, "sample/offset", ..., np.array([0, 2**62, 2**63 - 1, -(2**63), -(2**62), -1, 6]))
    assert "sample/offset increasing from 0 to 6" in refusal(sandbox, root)
