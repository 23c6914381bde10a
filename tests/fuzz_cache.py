"""Fuzz the reader of teacher caches: nothing but CacheError, no allocation past the cap, no hang, no crash.

    python tests/fuzz_cache.py --seconds 60 [--seed 0]         seeded: input i of seed s is always the same
    python tests/fuzz_cache.py --replay 0:12345                one of them again

An input is a small sound cache with one to three changes: fields of JSON, lines of the manifest, shards, their indices,
headers and payloads, values, whole files; also a block of a staging folder. What checksums guard is signed again, so
that the changes are not all stopped at the first one. Inputs run in a child process under a limited address space and a
limit of time an input; what ends a child is reported with its number. `fuzz_cache_guided.py` lets coverage choose.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import mmap
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import google_crc32c
import numcodecs.blosc
import numpy as np
from viker.data.example import canonical_json
from viker.precompute.cache import CacheError, TeacherCache
from viker.precompute.reading.layout import ArrayPlan, ListedFile, manifest_bytes
from viker.precompute.reading.shards import HEADER
from viker.precompute.reading.verify import verify
from viker.precompute.writing.blocks import pack_block, read_header

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Tree = dict[str, bytes]  # a cache: content by relative path

GOLDEN = Path(__file__).parent / "golden" / "cache"
MOST_EXTRA = 64 << 20  # bytes of address space
SECONDS = 10  # an input; a sound one takes 10 ms
NUMBERS = [
    -1,
    0,
    1,
    2,
    255,
    2**15,
    2**16,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**32,
    2**48,
    2**63 - 1,
    2**63,
    2**64 - 1,
    10**30,
]
WORDS = ["", "/", "..", "uint16", "object", "numcodecs.pickle", "zstd", "NaN", "sharding_indexed", "\ud800", "\0", "😀"]
LITERALS = [b"NaN", b"-Infinity", b"1e999", b"9" * 5000, b"[" * 2000, b'"\\ud800"', b"\xff", b"{}", b'{"a":1,"a":2}']


class Choices:
    """Decisions from a seed."""

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed)

    def number(self, least: int, most: int) -> int:
        return self._random.randint(least, most)

    def bytes(self, length: int) -> bytes:
        return self._random.randbytes(length)

    def among(self, options: Sequence[Any]) -> Any:
        return options[self.number(0, len(options) - 1)]


@functools.cache
def sound_cache() -> Tree:
    (root,) = GOLDEN.iterdir()
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


# ---- Changes -------------------------------------------------------------------------------------------------------


def changed(tree: Tree, choose: Choices) -> Tree:
    """A cache with one to three changes, signed again but for one time in eight."""
    tree = dict(tree)
    for _ in range(choose.number(1, 3)):
        choose.among(CHANGES)(tree, choose)
    return tree if choose.number(0, 7) == 0 else signed(tree)


def signed(tree: Tree) -> Tree:
    """The cache under a manifest that agrees with its files, unless its paths are no text."""
    key = hashlib.sha256(tree.get("fingerprint.json", b"")).hexdigest()
    files = {name: ListedFile(len(content), hashlib.sha256(content).hexdigest()) for name, content in tree.items()}
    files.pop("manifest.json", None)
    return {**tree, "manifest.json": manifest_bytes(key, files)}


def change_bytes(tree: Tree, choose: Choices) -> None:
    name = choose.among(sorted(tree))
    tree[name] = mangled(tree[name], choose)


def mangled(content: bytes, choose: Choices) -> bytes:
    """Content with bytes flipped, put in, taken out or repeated."""
    at = choose.number(0, len(content))
    length = choose.number(0, 8)
    replacement = choose.among([b"", choose.bytes(length), content[at : at + length] * 3, choose.among(LITERALS)])
    return content[:at] + replacement + content[at + choose.number(0, length) :]


def change_json(tree: Tree, choose: Choices) -> None:
    name = choose.among(sorted(name for name in tree if name.endswith(".json") and name != "manifest.json"))
    try:
        value = json.loads(tree[name])
    except (ValueError, RecursionError):
        return
    change_value(value, choose)
    text = json.dumps(value)
    tree[name] = canonical(value) if name == "fingerprint.json" else text.encode()
    if name == "fingerprint.json":
        repeat_in_group(tree, value)


def canonical(value: Any) -> bytes:
    try:
        return canonical_json(value)
    except (ValueError, RecursionError):
        return json.dumps(value).encode()


def repeat_in_group(tree: Tree, fingerprint: Any) -> None:
    """Let the group repeat what a changed fingerprint says, as a careful attacker would."""
    try:
        group = json.loads(tree["cache.zarr/zarr.json"])
        group["attributes"]["key"] = hashlib.sha256(tree["fingerprint.json"]).hexdigest()
        group["attributes"]["top_k"] = fingerprint["objective"]["top_k"]
        group["attributes"] |= {name: fingerprint[name] for name in ("vocab_size", "storage")}
    except (ValueError, KeyError, TypeError, RecursionError):
        return
    tree["cache.zarr/zarr.json"] = json.dumps(group).encode()


def change_value(value: Any, choose: Choices) -> None:
    """Change one place somewhere inside a value."""
    while isinstance(value, dict | list) and value:
        place = choose.among(sorted(value) if isinstance(value, dict) else range(len(value)))
        if isinstance(value[place], dict | list) and value[place] and choose.number(0, 3):
            value = value[place]
            continue
        match choose.number(0, 5):
            case 0:
                del value[place]
            case 1 if isinstance(value, list):
                value.append(value[place])
            case 1:
                value[choose.among(WORDS)] = value[place]
            case 2 if isinstance(value[place], int):
                value[place] += choose.number(-2, 2)
            case _:
                value[place] = anything(choose)
        return


def anything(choose: Choices) -> Any:
    options = [choose.among(NUMBERS), choose.among(WORDS), None, True, 0.5, float("nan"), [], {}, [1, [2]], {"a": {}}]
    return choose.among([*options, choose.number(0, 100), [choose.among(NUMBERS)], "x" * choose.number(0, 5000)])


def change_manifest(tree: Tree, choose: Choices) -> None:
    """Change the manifest's own lines; signing again undoes this, so it matters where nothing is signed again."""
    tree["manifest.json"] = mangled(tree.get("manifest.json", b""), choose)


def change_name(tree: Tree, choose: Choices) -> None:
    """Remove a file, or let it be elsewhere, or twice; folders are made on the way."""
    name, other = choose.among(sorted(tree)), choose.among(sorted(tree))
    new = choose.among(
        [other, f"{name}x", f"cache.zarr/token/c/{choose.number(0, 99)}", f"extra/{choose.number(0, 9)}"]
    )
    content = tree[name] if choose.number(0, 1) else tree.pop(name)
    if choose.number(0, 3) and not any(path.startswith(f"{new}/") or new.startswith(f"{path}/") for path in tree):
        tree[new] = content


def shards(tree: Tree) -> list[str]:
    return sorted(name for name, content in tree.items() if "/c/" in name and len(content) > 36)


def change_shard(tree: Tree, choose: Choices) -> None:
    """Change the chunk or the index of a shard, and make their checksums right again."""
    if not shards(tree):
        return
    name = choose.among(shards(tree))
    chunk, entry = tree[name][:-24], struct.unpack("<2Q", tree[name][-20:-4])
    match choose.number(0, 4):
        case 0:
            chunk = chunk[: HEADER.size] + mangled(chunk[HEADER.size :], choose)
        case 1:
            chunk = changed_header(chunk, choose)
        case 2:
            entry = (entry[0] + choose.among(NUMBERS), entry[1])
        case 3:
            entry = (entry[0], entry[1] + choose.among(NUMBERS))
        case _:
            chunk = consistent(mangled(chunk, choose))
    if choose.number(0, 2):
        entry = (0, len(chunk) + 4)
    index = struct.pack("<2Q", *(number % 2**64 for number in entry)) * choose.among([1, 1, 1, 2])
    tree[name] = with_crc(chunk) + with_crc(index)


def changed_header(chunk: bytes, choose: Choices) -> bytes:
    if len(chunk) < HEADER.size:
        return chunk
    fields = list(HEADER.unpack_from(chunk))
    place = choose.number(0, 6)
    fields[place] = choose.among([*NUMBERS, fields[place] ^ (1 << choose.number(0, 7))]) % (256 if place < 4 else 2**32)
    return HEADER.pack(*fields) + chunk[HEADER.size :]


def consistent(chunk: bytes) -> bytes:
    """A blosc buffer whose header states the length it has."""
    return chunk[:12] + struct.pack("<I", len(chunk)) + chunk[16:] if len(chunk) >= HEADER.size else chunk


def with_crc(content: bytes) -> bytes:
    return content + google_crc32c.value(content).to_bytes(4, "little")


def change_values(tree: Tree, choose: Choices) -> None:
    """Change numbers of an array, compressed and signed like any others."""
    sound = sound_cache()
    name = choose.among(shards(sound))
    itemsize = HEADER.unpack_from(sound[name])[3]
    values = np.frombuffer(numcodecs.blosc.decompress(sound[name][:-24]), f"V{itemsize}").copy()
    for _ in range(choose.number(1, 4)):
        raw = struct.pack("<Q", choose.among(NUMBERS) % 2**64) if choose.number(0, 1) else choose.bytes(8)
        values[choose.number(0, len(values) - 1)] = raw.ljust(8, b"\0")[: values.itemsize]
    chunk = numcodecs.blosc.compress(values.tobytes(), b"zstd", choose.number(0, 9), 2, 0, values.itemsize)
    tree[name] = with_crc(chunk) + with_crc(struct.pack("<2Q", 0, len(chunk) + 4))


CHANGES: list[Callable[[Tree, Choices], None]] = [
    change_bytes,
    change_json,
    change_json,
    change_manifest,
    change_name,
    change_shard,
    change_shard,
    change_values,
]

# ---- What is asked -------------------------------------------------------------------------------------------------


def in_memory() -> str | None:
    """Where a folder is in memory, if there is such a place."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


class Folder:
    """A directory that holds one input after another; only what differs from the sound cache is written."""

    def __init__(self, place: Path | None = None) -> None:
        self.sound = sound_cache()
        self._home = Path(tempfile.mkdtemp(prefix="viker-fuzz-", dir=place or in_memory()))
        self.root = self._home / "cache"
        self.block = self._home / "block-00000"
        self._write(self.sound)

    def put(self, tree: Tree) -> None:
        if tree.keys() != self.sound.keys():
            shutil.rmtree(self.root)
            self._write(tree)
        else:
            self._write({name: content for name, content in tree.items() if content != self.sound[name]})

    def restore(self, tree: Tree) -> None:
        if tree.keys() != self.sound.keys():
            shutil.rmtree(self.root)
            self._write(self.sound)
        else:
            self._write({name: self.sound[name] for name, content in tree.items() if content != self.sound[name]})

    def remove(self) -> None:
        shutil.rmtree(self._home)

    def _write(self, tree: Tree) -> None:
        for name, content in tree.items():
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            (self.root / name).write_bytes(content)


def ask(folder: Folder, choose: Choices) -> str:
    """Let the reader face one input; return how that ended. Anything but CacheError is the caller's to see."""
    if choose.number(0, 9) == 0:
        return ask_block(folder.block, choose)
    tree = changed(folder.sound, choose)
    folder.put(tree)
    try:
        return read(folder.root)
    finally:
        folder.restore(tree)


def read(root: Path) -> str:
    """Ask a cache for everything, and the full check for its opinion, which has to be the same."""
    problems = verify(root, "full")
    assert all(problem.detail.isprintable() for problem in problems)
    try:
        cache = TeacherCache.open(root)
        _ = cache.offset, cache.sample_keys, cache.row_keys, cache.token_hash, cache.reference, cache.reference_sha256
        _ = cache.load(), [cache.rows_of(index) for index in range(cache.num_samples)], cache.lineage, cache.root_digest
    except CacheError as error:
        refusal = error
    else:
        assert all(problem.kind == "unlisted" for problem in problems)
        return "read"
    assert problems
    assert str(refusal).isprintable()
    return "refused"


def ask_block(path: Path, choose: Choices) -> str:
    """Let the reader of staged blocks face one that a teammate's process might have left."""
    plans = {"token/entropy": ArrayPlan("float32", (3,)), "token/kept_id": ArrayPlan("uint16", (3, 2))}
    content = pack_block("ab" * 32, 7, {name: np.zeros(plan.shape, plan.dtype) for name, plan in plans.items()}, "cpu")
    title, _, body = content.partition(b"\n")
    header, _, values = body.partition(b"\n")
    told = json.loads(header)
    if choose.number(0, 1):
        change_value(told, choose)
        header = json.dumps(told).encode()
    if choose.number(0, 1):
        header = mangled(header, choose)
    if choose.number(0, 1):
        values = mangled(values, choose)
    body = header + b"\n" + values
    title = b"viker/block/2 " + hashlib.sha256(body).hexdigest().encode() if choose.number(0, 7) else title
    path.write_bytes(title + b"\n" + body)
    try:
        found = read_header(path, "ab" * 32, 7, plans)
    except ValueError:
        return "refused"
    assert isinstance(found.device, str)
    assert found.starts["token/entropy"] + 12 + 12 == path.stat().st_size
    return "read"


# ---- Runs ----------------------------------------------------------------------------------------------------------


def run(seed: int, seconds: float, inputs: int, most_crashes: int = 20) -> tuple[int, list[str]]:
    """Ask about inputs until time, inputs or patience are over; return how many there were, and what went wrong."""
    crashes: list[str] = []
    until, number = time.monotonic() + seconds, 0
    last, place = mmap.mmap(-1, 8), Path(tempfile.mkdtemp(prefix="viker-fuzz-", dir=in_memory()))
    while time.monotonic() < until and number < inputs and len(crashes) < most_crashes:
        child = os.fork()
        if child == 0:
            _run_child(seed, number, until, inputs, last, place)
        _, status = os.waitpid(child, 0)
        (number,) = struct.unpack("<q", last[:8])
        if status:
            crashes.append(f"{seed}:{number}")
            sys.stderr.write(
                f"input {seed}:{number} ended with status {status:#x}; --replay {seed}:{number} repeats it\n"
            )
        number += 1
    shutil.rmtree(place)
    return number, crashes


def _run_child(seed: int, number: int, until: float, end: int, last: mmap.mmap, place: Path) -> None:
    """Ask about one input after the other; leave with status 0 where time or inputs are over."""
    status = 1
    try:
        folder = Folder(place)
        ask(folder, Choices("warm"))
        _limit_memory()
        for number in range(number, end):  # noqa: B020 - goes on from the first
            last[:8] = struct.pack("<q", number)
            signal.alarm(SECONDS)
            ask(folder, Choices(f"{seed}:{number}"))
            if time.monotonic() > until:
                break
        status = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(status)


def _limit_memory() -> None:
    (size,) = [line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if "VmSize" in line]
    limit = int(size) * 1024 + MOST_EXTRA
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--inputs", type=int, default=10**12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--replay", metavar="SEED:NUMBER")
    asked = parser.parse_args()
    if asked.replay:
        folder = Folder()
        sys.stdout.write(f"{ask(folder, Choices(asked.replay))}\n")
        folder.remove()
        return
    done, crashes = run(asked.seed, asked.seconds, asked.inputs)
    sys.stdout.write(f"{done} inputs of seed {asked.seed}, {len(crashes)} crashes {' '.join(crashes)}\n")
    sys.exit(bool(crashes))


if __name__ == "__main__":
    main()
