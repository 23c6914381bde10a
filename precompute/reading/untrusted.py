"""Read the small files of a cache, which a stranger may have written: plain, capped, digested, and strict JSON.

A directory from elsewhere may hold a link to a secret, a pipe that never ends, a gigabyte of JSON, an integer of a
million digits, or a key twice. So a file is opened without following or waiting, its size is known before it is read,
and what a parse may cost is bounded before parsing. The manifest needs no JSON parser: it is canonical, hence a plain
grammar, and is read by it, 6 MiB of it in less than 64 of memory.
"""

import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .layout import SCHEMA, CacheError, ListedFile, expect, printable, readable, root_digest

MANIFEST_CAP = 6 << 20  # bytes: 10^8 rows have 22 000 files in 3.2 MiB
BUILD_CAP = 2 << 20  # bytes of build.json: 10^8 rows have 25 000 blocks, each with its device
JSON_CAP = 1 << 20  # bytes of fingerprint.json and of one zarr.json
MOST_CONTAINERS = 10_000  # arrays and objects of one JSON file; a Python one takes 60 to 240 bytes
MOST_VALUES = 200_000  # values and names of one JSON file
MOST_DIGITS = 20  # of an integer: enough for 64 bits
DEEPEST_JSON = 32  # levels; zarr.json has 7

_DIGEST = rb"[0-9a-f]{64}"
_FILE = re.compile(
    rb'\{"path":"(?P<path>[^"\\\x00-\x1f\x7f-\xff]*)","sha256":"(?P<sha256>' + _DIGEST + rb')",'
    rb'"size":(?P<size>0|[1-9][0-9]{0,15})\}'
)
_HEAD = b'{"files":['
_TAIL = re.compile(
    rb'\],"key":"(?P<key>' + _DIGEST + rb')","root_sha256":"(?P<root>' + _DIGEST + rb')",'
    rb'"schema":"(?P<schema>[\x20-\x21\x23-\x5b\x5d-\x7e]*)"\}\n'
)
_PATH = re.compile(r"(?!\.{1,2}(/|$))[\w.-]+(/(?!\.{1,2}(/|$))[\w.-]+)*", re.ASCII)


def read_plain(path: Path, cap: int) -> bytes:
    """Return the bytes of a plain file of at most `cap` bytes, without following a link or waiting for a pipe.

    Raises:
        CacheError: when it is missing, unreadable, not a plain file, or larger.
    """
    with readable(path):
        _expect_small_plain_file(path, path.lstat(), cap)
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:  # it may have been exchanged in between
            status = os.fstat(descriptor)
            _expect_small_plain_file(path, status, cap)
            content = file.read(status.st_size + 1)
    expect(len(content) == status.st_size, path, f"a file of {status.st_size} bytes", "one that changes while read")
    return content


def _expect_small_plain_file(path: Path, status: os.stat_result, cap: int) -> None:
    expect(stat.S_ISREG(status.st_mode), path, "a plain file", "a link, a folder or a special file")
    expect(status.st_size <= cap, path, f"at most {cap} bytes", f"{status.st_size}")


def read_listed(root: Path, name: str, files: Mapping[str, ListedFile], cap: int) -> bytes:
    """Return the bytes of a file that the manifest lists, with the listed size and digest.

    Raises:
        CacheError: when the manifest lacks it, or it is not what is listed.
    """
    expect(name in files, root / "manifest.json", f"{name} among its files", "a manifest without it")
    content = read_plain(root / name, cap)
    digest = hashlib.sha256(content).hexdigest()
    expect(digest == files[name].sha256, root / name, f"sha256 {files[name].sha256}", digest)
    return content


def parse_json(path: Path, cap: int) -> tuple[bytes, Any]:
    """Return the bytes of a plain file of strict JSON, and their value.

    Raises:
        CacheError: when it is missing, unreadable, not a plain file, larger than the cap, or not strict JSON.
    """
    content = read_plain(path, cap)
    return content, json_value(path, content)


def json_value(path: Path | str, content: bytes) -> Any:
    """Return the value of strict JSON in UTF-8: no name twice, no NaN, no endless number, no bottomless nesting.

    Raises:
        CacheError: naming the file it is from; what the parse may cost is bounded first.
    """
    containers = content.count(b"{") + content.count(b"[")
    values = content.count(b",") + content.count(b":") + containers
    expect(containers <= MOST_CONTAINERS, path, f"JSON of at most {MOST_CONTAINERS} arrays and objects", containers)
    expect(values <= MOST_VALUES, path, f"JSON of at most {MOST_VALUES} values", values)
    try:
        value = _STRICT.decode(content.decode())
        json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is text that no file can hold
    except (ValueError, RecursionError) as error:
        raise CacheError(f"{printable(path)}: expected JSON, found {printable(error)[:200]}.") from None
    expect(_levels(value) <= DEEPEST_JSON, path, f"JSON of at most {DEEPEST_JSON} levels", "more")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name that occurs twice in one object")
    return found


def _integer(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"an integer of {len(digits)} digits")
    return int(digits)


def _number(text: str) -> float:
    if len(text) > 32 or not math.isfinite(float(text)):
        raise ValueError("a number that no float holds")
    return float(text)


def _constant(name: str) -> None:
    raise ValueError(f"{name}, which is not JSON")


_STRICT = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer, parse_float=_number, parse_constant=_constant)


def _levels(value: Any) -> int:
    """Return how deep a value is nested, without recursion; at most one more than allowed is counted."""
    level, depth = [value], 0
    while level and depth <= DEEPEST_JSON:
        level = [
            item
            for found in level
            if isinstance(found, dict | list)
            for item in (found.values() if isinstance(found, dict) else found)
        ]
        depth += 1
    return depth


def read_manifest(root: Path) -> tuple[str, dict[str, ListedFile]]:
    """Return the key of a cache and the files its manifest lists, all inside its directory.

    Raises:
        CacheError: when the manifest is missing, or is not byte for byte what its own content implies.
    """
    path = root / "manifest.json"
    content = read_plain(path, MANIFEST_CAP)
    files, end = _listed_files(path, content)
    tail = _TAIL.fullmatch(content, end)
    expect(tail is not None, path, f"the canonical bytes of a manifest of {SCHEMA}", content[end : end + 80])
    assert tail is not None
    expect(tail["schema"].decode() == SCHEMA, path, f"schema {SCHEMA}", tail["schema"].decode())
    implied, found = root_digest(files), tail["root"].decode()
    expect(found == implied, path, f"root_sha256 {implied}, which its files imply", found)
    return tail["key"].decode(), files


def _listed_files(path: Path, content: bytes) -> tuple[dict[str, ListedFile], int]:
    """Return the files of a manifest, whose paths ascend, and where their list ends."""
    files: dict[str, ListedFile] = {}
    expected = f"the canonical bytes of a manifest of {SCHEMA}"
    expect(content.startswith(_HEAD), path, expected, content[:80])
    end, before = len(_HEAD), ""
    while content[end : end + 1] != b"]":
        comma = b"," if files else b""
        entry = _FILE.match(content, end + len(comma)) if content.startswith(comma, end) else None
        expect(entry is not None, path, expected, content[end : end + 80])
        assert entry is not None
        name = entry["path"].decode()
        plain = len(name) <= 255 and _PATH.fullmatch(name) is not None
        expect(plain, path, "relative paths of plain names without `..`", repr(name))
        expect(name > before, path, f"{expected}: paths in order, none twice", f"{name} after {before}")
        files[name] = ListedFile(int(entry["size"]), entry["sha256"].decode())
        end, before = entry.end(), name
    return files, end
