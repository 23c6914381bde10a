"""The protocol of shared caches: who publishes under a key, what a key leads to, and what is left of a purged one.

    <remote>/<key16>/pointer.json              which bytes the key means, or a tombstone (`pointer.py`)
    <remote>/<key16>/<root16>/<the cache>      the files of one cache, its manifest written last

The key names what was asked, the root names bytes: two machines that make one key round differently, so their caches
may not mix. Each maker sends its files into the folder of its own root, and then puts the pointer *if there is none*.
The first stays for good; whoever comes second publishes nothing, and is told how far its rows are from the first's.
The pointer comes after the manifest and the manifest after all other files, so a reader who follows a pointer finds a
complete cache, and a push that was killed has published nothing and goes on where it was.

What is sent was verified in full, what is fetched is again (`transfer.py`); places are `stores.py`'s. Whoever can read
the remote can read the caches: access is the store's business, and every command that moves a cache says so.
"""

import logging
import shutil
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple

from ..cache import TeacherCache, cache_home
from ..reading.layout import CacheError, CacheMismatch, plain_files
from .addresses import open_store
from .pointer import (
    KEY16,
    Pointer,
    Tombstone,
    find_key,
    now,
    pointer_bytes,
    pointer_path,
    read_making,
    read_pointer,
)
from .stores import RemoteError, Store
from .transfer import CONNECTIONS, fetch, upload, verified

__all__ = [
    "Pointer", "Pushed", "RemoteError", "Store", "Tombstone", "expect_published", "find_key", "open_store", "published",
    "push", "read_pointer", "replace", "require_root", "tombstone",
]  # fmt: skip

logger = logging.getLogger(__name__)


class Pushed(NamedTuple):
    """How a push ended: what the key leads to now, how many files were sent, and for a second maker the distances."""

    outcome: Literal["published", "there", "second"]
    pointer: Pointer
    num_sent: int
    mean_distance: float | None = None
    largest_distance: float | None = None


def push(store: Store, path: Path) -> Pushed:
    """Publish a cache under its key, unless another was published there before.

    Raises:
        CacheError: when the cache is not sound, its key was purged, or the remote cannot be written.
    """
    pointer = _live(store, TeacherCache.open(path).key)  # before the long check: the remote may not answer
    cache = verified(path)
    if pointer is not None and pointer.root != cache.root_digest:
        return _second(store, cache, pointer, 0)
    ours = _pointer_to(cache)
    num_sent = upload(store, cache, ours.folder)
    if pointer is not None:
        store.settle()
        return Pushed("there", pointer, num_sent)
    won = store.put_if_absent(pointer_path(cache.key), pointer_bytes(ours))
    pointer = _after_putting(store, ours)
    if pointer.root == ours.root:
        return Pushed("published" if won else "there", pointer, num_sent)
    return _second(store, cache, pointer, num_sent)


def expect_published(store: Store, key: str) -> Pointer:
    """Return the pointer of a key, or of the one key that begins like this.

    Raises:
        CacheError: when it was never published, or was purged.
    """
    key16 = find_key(store, key)
    pointer = read_pointer(store, key if len(key) > len(key16) else key16)
    if isinstance(pointer, Tombstone):
        raise _purged(store, pointer)
    if pointer is None:
        raise CacheError(f"{store.url}: expected a cache published under {key}, found none. Push it first.")
    return pointer


def require_root(pointer: Pointer, root: str, url: str) -> None:
    """Check that a key leads to the bytes somebody expects.

    Raises:
        CacheMismatch: with both roots.
    """
    if not pointer.root.startswith(root):
        raise CacheMismatch(
            f"{url}: expected root {root} under key {pointer.key[:16]}, found root {pointer.root}. These are other "
            "bytes for the same request, made by another machine or another person."
        )


def published(store: Store) -> Iterator[Pointer | Tombstone]:
    """Yield what every key of a remote leads to; a pointer that is none is left out, with a warning."""
    keys = [name for name in store.folders() if KEY16.fullmatch(name)]
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        for pointer in pool.map(lambda key: _read_or_warn(store, key), keys):
            if pointer is not None:
                yield pointer


def tombstone(store: Store, key: str, replaced_by: str | None) -> bool:
    """Take a key out of a remote for good: a tombstone for its pointer, then no file of any cache under it.

    A key that was never published there gets a tombstone too, so that nobody who still has it publishes it. Whoever
    is interrupted runs it again.

    Args:
        store: the remote.
        key: the full key.
        replaced_by: key of the cache that holds the remaining rows, if there is one.

    Returns:
        Whether there was anything of this key before.
    """
    there = read_pointer(store, key)
    if not (isinstance(there, Tombstone) and there.replaced_by == replaced_by):
        grave = Tombstone(key, there.root if there else None, replaced_by, now())
        store.replace(pointer_path(key), pointer_bytes(grave))
    files = _remove_files(store, key[:16], keep=())
    return there is not None or bool(files)


def replace(store: Store, path: Path) -> Pointer:
    """Publish a cache in the place of the one that its key leads to, and remove the files of that one.

    Only for a cache that lost a person and kept its key, because all of that person's rows are others' too: everybody
    else must not change what a key leads to.

    Raises:
        CacheError: when the cache is not sound, its key was purged, or the remote cannot be written.
    """
    cache = verified(path)
    _live(store, cache.key)
    ours = _pointer_to(cache)
    upload(store, cache, ours.folder)
    store.replace(pointer_path(cache.key), pointer_bytes(ours))
    _remove_files(store, cache.key[:16], keep=(ours.root[:16],))
    return ours


def _live(store: Store, key: str) -> Pointer | None:
    pointer = read_pointer(store, key)
    if isinstance(pointer, Tombstone):
        raise _purged(store, pointer)
    return pointer


def _purged(store: Store, grave: Tombstone) -> CacheError:
    instead = (
        f"Use {grave.replaced_by}, which holds the remaining rows." if grave.replaced_by else "Nothing replaces it."
    )
    return CacheError(
        f"{store.url}: expected a cache under key {grave.key}, found that it was purged on {grave.made}: it held a "
        f"person who must be forgotten, and may not be shared again. {instead}"
    )


def _pointer_to(cache: TeacherCache) -> Pointer:
    made, seconds = read_making(cache)
    return Pointer(cache.key, cache.root_digest, made, seconds, sum(plain_files(cache.root).values()))


def _after_putting(store: Store, ours: Pointer) -> Pointer:
    """Return what the key leads to now; files of ours that it does not lead to are removed again."""
    try:
        pointer = _live(store, ours.key)
    except CacheError:
        _remove_root(store, ours)
        raise
    if pointer is None:
        raise RemoteError(f"{store.url}: expected the pointer just written, found none. Push again.")
    if pointer.root != ours.root:
        _remove_root(store, ours)
    return pointer


def _second(store: Store, cache: TeacherCache, pointer: Pointer, num_sent: int) -> Pushed:
    """Return how far a cache is from the one published before under its key."""
    from ..reading.distance import cache_distances

    staging = cache_home() / f"{cache.key[:16]}.{uuid.uuid4().hex}.pulling"
    staging.parent.mkdir(parents=True, exist_ok=True)
    try:
        distances = cache_distances(cache, fetch(store, pointer, staging))
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return Pushed("second", pointer, num_sent, float(distances.mean()), float(distances.max()))


def _remove_root(store: Store, pointer: Pointer) -> None:
    names = sorted(store.files(pointer.folder))
    store.remove([f"{pointer.folder}/{name}" for name in names])


def _remove_files(store: Store, key16: str, keep: tuple[str, ...]) -> list[str]:
    """Remove the files under a key but for its pointer and some roots; manifests first, so that nothing looks whole."""
    names = [name for name in store.files(key16) if name != "pointer.json" and name.partition("/")[0] not in keep]
    names.sort(key=lambda name: (not name.endswith("/manifest.json"), name))
    store.remove([f"{key16}/{name}" for name in names])
    return names


def _read_or_warn(store: Store, key16: str) -> Pointer | Tombstone | None:
    try:
        return read_pointer(store, key16)
    except RemoteError:
        raise
    except CacheError as error:
        logger.warning("left out: %s", error)
        return None
