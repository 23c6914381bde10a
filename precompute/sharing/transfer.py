"""Moving a cache between a remote and this machine: what is missing is sent or fetched, and nothing is believed.

Fetching reads the manifest first, capped; then only the files it lists, each at most as large as listed, and only if
all together are below a limit and fit on the disk. Every file is compared with its digest before it has its name, and
the whole cache is decoded before anyone may open it. Both directions resume: a file that is whole is not moved again.
Which root a key leads to is `remote.py`'s.

    <key16>.<root16>.pulling/    beside the caches of this machine, until the cache is whole
      cache/                     complete files; renamed to <key16>/ when all are there and sound
      partial/                   files being fetched
"""

import hashlib
import shutil
import uuid
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from ..cache import CacheMismatch, TeacherCache
from ..reading.layout import CacheError, ListedFile, expect, root_digest
from ..reading.untrusted import MANIFEST_CAP, read_manifest
from ..reading.verify import verify
from ..writing.blocks import disk_trouble, make_folder, share, sync, write_durably
from ..writing.seal import publish
from .pointer import Pointer, record_making
from .stores import RemoteError, RemoteFile, Store

MANIFEST = "manifest.json"
MAX_BYTES = 64 * 10**9  # of one cache that is fetched, unless the user says more
CONNECTIONS = 8

Item = TypeVar("Item")


def verified(path: Path) -> TeacherCache:
    """Open a cache after reading every byte of it.

    Raises:
        CacheError: listing everything that is wrong.
    """
    problems = verify(path, "full")
    if problems:
        lines = "\n".join(f"  {problem.kind}: {problem.detail}" for problem in problems)
        raise CacheError(f"{path}: expected a sound cache, found {len(problems)} problems:\n{lines}")
    return TeacherCache.open(path)


def upload(store: Store, cache: TeacherCache, folder: str) -> int:
    """Send the files of a cache that a remote lacks, the manifest last; return how many were sent."""
    _, listed = read_manifest(cache.root)
    sizes = {name: file.size for name, file in listed.items()}
    sizes[MANIFEST] = (cache.root / MANIFEST).stat().st_size
    there = store.files(folder)
    missing = sorted(name for name, size in sizes.items() if not _is_there(there.get(name), size))
    with tqdm(total=sum(sizes[name] for name in missing), unit="B", unit_scale=True, desc="push") as bar:

        def send(name: str) -> None:
            store.upload(cache.root / name, f"{folder}/{name}")
            bar.update(sizes[name])

        _each(send, [name for name in missing if name != MANIFEST])
        _each(send, [name for name in missing if name == MANIFEST])
    return len(missing)


def pull(store: Store, pointer: Pointer, home: Path, max_bytes: int = MAX_BYTES) -> TeacherCache:
    """Fetch a published cache into the folder of caches, whole and verified or not at all.

    Raises:
        CacheMismatch: when another cache of this key is there.
        CacheError: when the remote holds something else than it says.
        StorageError: when the disk is full; what was fetched is kept.
    """
    target = home / pointer.key[:16]
    staging = home / f"{pointer.key[:16]}.{pointer.root[:16]}.pulling"
    if is_local(target, pointer):
        return TeacherCache.open(target)
    with disk_trouble(home, pointer.num_bytes):
        home.mkdir(parents=True, exist_ok=True)
        try:
            fetch(store, pointer, staging, max_bytes)
            _seal(staging / "cache", target)
        except (CacheError, OSError):
            if not is_local(target, pointer):  # otherwise another process has pulled it
                raise
        shutil.rmtree(staging, ignore_errors=True)
        cache = TeacherCache.open(target)
        if pointer.made is not None:
            record_making(cache, pointer.seconds, pointer.made)
    return cache


def is_local(target: Path, pointer: Pointer) -> bool:
    """Return whether a published cache is on this machine.

    Raises:
        CacheMismatch: when other bytes are there under its key.
    """
    if not (target / MANIFEST).is_file():
        return False
    root = TeacherCache.open(target).root_digest
    if root != pointer.root:
        raise CacheMismatch(
            f"{target}: expected root {pointer.root}, which is published under this key, found root {root}. Both may "
            "be sound: two machines round differently. Remove the local one to take the published one."
        )
    return True


def fetch(store: Store, pointer: Pointer, staging: Path, max_bytes: int = MAX_BYTES) -> TeacherCache:
    """Fetch what is missing of a published cache into `staging/cache` and verify all of it.

    Raises:
        CacheError: when it is larger than allowed, or the remote holds something else than it says.
    """
    folder = staging / "cache"
    make_folder(staging)
    files = fetch_manifest(store, pointer, staging)
    missing = {name: file for name, file in files.items() if not _is_whole(folder / name, file)}
    _expect_room(store, pointer, staging, files, missing, max_bytes)
    fetch_files(store, pointer, staging, missing)
    try:
        return verified(folder)
    except CacheError:
        shutil.rmtree(staging, ignore_errors=True)  # its digests are right, so the same bytes would come again
        raise


def fetch_manifest(store: Store, pointer: Pointer, staging: Path) -> dict[str, ListedFile]:
    """Fetch the manifest of a published cache into `staging/cache` and return the files it lists.

    Raises:
        CacheError: when it is not that of this key and root, or lists a file outside its folder.
    """
    where, path = f"{store.url}/{pointer.folder}/{MANIFEST}", staging / "cache" / MANIFEST
    try:
        content = store.read(f"{pointer.folder}/{MANIFEST}", MANIFEST_CAP)
    except FileNotFoundError:
        raise RemoteError(f"{where}: expected this file of a published cache, found none. Push it again.") from None
    for folder in (path.parent, staging / "partial"):
        _make_folders(folder, staging)
    partial = staging / "partial" / uuid.uuid4().hex  # another process may be verifying that folder right now
    write_durably(partial, content)
    partial.replace(path)
    try:
        key, files = read_manifest(path.parent)
        found = (key, root_digest(files))
        expect(found == (pointer.key, pointer.root), where, f"key {pointer.key} and root {pointer.root}", found)
    except CacheError as error:
        path.unlink()
        raise CacheError(f"{where}: expected the manifest of a published cache, found: {error}") from error
    return files


def fetch_files(store: Store, pointer: Pointer, staging: Path, files: Mapping[str, ListedFile]) -> None:
    """Fetch listed files of a published cache into `staging/cache`, each compared with its digest.

    Raises:
        CacheError: when one is missing, or is something else.
    """
    for folder in {staging / "partial", *((staging / "cache" / name).parent for name in files)}:
        _make_folders(folder, staging)  # before any thread begins: a new folder has its permissions a moment later
    with tqdm(total=sum(file.size for file in files.values()), unit="B", unit_scale=True, desc="pull") as bar:

        def fetch_one(name: str) -> None:
            _fetch_file(store, f"{pointer.folder}/{name}", files[name], staging, staging / "cache" / name)
            bar.update(files[name].size)

        _each(fetch_one, sorted(files))


def _fetch_file(store: Store, path: str, file: ListedFile, staging: Path, target: Path) -> None:
    """Fetch one file under a temporary name, and give it its own once size and digest are those listed."""
    partial = staging / "partial" / uuid.uuid4().hex
    try:
        found = _download(store, path, file, partial)
        expect(found == file, f"{store.url}/{path}", f"{file.size} bytes of sha256 {file.sha256}", tuple(found))
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _download(store: Store, path: str, file: ListedFile, partial: Path) -> ListedFile:
    """Write what a remote sends, and return its size and digest."""
    digest, size = hashlib.sha256(), 0
    with partial.open("xb") as stream:
        share(stream.fileno(), partial.parent)
        chunks = store.chunks(path, file.size)
        try:
            for chunk in chunks:
                stream.write(chunk)
                digest.update(chunk)
                size += len(chunk)
        except FileNotFoundError:
            raise RemoteError(
                f"{store.url}/{path}: expected this file of a published cache, found none. Push it again."
            ) from None
    return ListedFile(size, digest.hexdigest())


def _make_folders(folder: Path, top: Path) -> None:
    """Make a folder and those above it up to one that exists, each with the permissions of the one it lies in."""
    if folder != top:
        _make_folders(folder.parent, top)
        make_folder(folder)


def _expect_room(
    store: Store, pointer: Pointer, staging: Path, files: Mapping[str, ListedFile], missing: Mapping[str, ListedFile],
    max_bytes: int,
) -> None:  # fmt: skip
    """Raise RemoteError where a cache is larger than the user allows, or than the disk holds."""
    total, needed = (sum(file.size for file in some.values()) for some in (files, missing))
    free = shutil.disk_usage(staging).free
    where = f"{store.url}/{pointer.folder}"
    if total > max_bytes:
        raise RemoteError(f"{where}: expected at most {max_bytes} bytes, found {total}. Allow more by --max-bytes.")
    if needed > free:
        raise RemoteError(
            f"{where}: expected room for {needed} bytes in {staging.parent}, found {free} free. Make room, or point "
            "VIKER_CACHE_DIR elsewhere."
        )


def _seal(folder: Path, target: Path) -> None:
    """Make a complete cache appear at its place, after it is on the disk."""
    for path in (*folder.rglob("*"), folder):
        sync(path)
    publish(folder, target)


def _is_there(found: RemoteFile | None, size: int) -> bool:
    return found is not None and found.size == size


def _is_whole(path: Path, file: ListedFile) -> bool:
    """Whether a file that an interrupted pull left is the one listed."""
    if not path.is_file() or path.stat().st_size != file.size:
        return False
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() == file.sha256


def _each(act: Callable[[Item], None], items: Iterable[Item]) -> None:
    """Do something for every item over several connections; the first failure ends it, and drops what has not begun."""
    pool = ThreadPoolExecutor(CONNECTIONS)
    try:
        for future in [pool.submit(act, item) for item in items]:
            future.result()
    finally:
        pool.shutdown(cancel_futures=True)
