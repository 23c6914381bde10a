"""Where `precompute` looks before it computes: here and in the remote, for the very cache, then for one that serves.

The order is: the exact key here; the exact key in the remote; a cache here that serves by the rules of identity; one
in the remote that does. An exact cache comes before one that serves, since it holds what was asked and nothing is left
to report. Of a remote, pointers and fingerprints are read first (a few kilobytes a cache); row keys only of those
caches whose fingerprints fit; rows only of the one that is taken. What a stranger may have written is checked before
it decides anything: a fingerprint by the key, row keys by the root.
"""

import hashlib
import re
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

from ..cache import CacheError, Fingerprint, TeacherCache, compare, serving_caches
from ..reading.identity import FINGERPRINT_SCHEMA, Names, is_fingerprint
from ..reading.layout import SHARD_CAP, ListedFile, expect
from ..reading.metadata import check_arrays
from ..reading.shards import read_array
from ..reading.untrusted import JSON_CAP, json_value, parse_json
from ..writing.store import sweep
from .pointer import Pointer, Tombstone, read_pointer, told_age, told_duration
from .remote import published
from .stores import Store
from .transfer import fetch_files, fetch_manifest, pull

Announce = Callable[[str], None]
Result = TypeVar("Result")
_METADATA = re.compile("fingerprint.json|cache.zarr/(.*/)?zarr.json")
_ROW_KEYS = re.compile("cache.zarr/sample/key/c/.*")


class Found(NamedTuple):
    """A cache of this machine, or the pointer to one in the remote; and how it was found."""

    how: str
    cache: TeacherCache | None = None
    pointer: Pointer | None = None


def look_up(
    home: Path, store: Store | None, key: str, wanted: Fingerprint, named: Names, row_keys: Collection[bytes],
    announce: Announce,
) -> Found | None:  # fmt: skip
    """Return the cache of a key, else one whose rows serve, here or in a remote; None where there is none.

    Args:
        home: the caches of this machine.
        store: the remote, if there is one.
        key: the key of what is wanted.
        wanted: its fingerprint.
        named: fields the user named.
        row_keys: the rows that must be there.
        announce: told what was found, and what could not be read.
    """
    exact = home / key[:16]
    if (exact / "manifest.json").is_file():
        sweep(exact)
        return Found("found", TeacherCache.open(exact))
    remote = _Remote(store, announce)
    pointer = remote.ask(lambda store: _exact_pointer(store, key, announce))
    if pointer is not None:
        return Found(f"found in {remote.url}", pointer=pointer)
    for cache in serving_caches(home, wanted, named, row_keys):
        return Found("found one that serves", cache)
    pointer = remote.ask(lambda store: next(_serving(store, wanted, named, row_keys, announce), None))
    if pointer is not None:
        return Found(f"found one that serves in {remote.url}", pointer=pointer)
    return None


def take(found: Found, home: Path, store: Store | None, announce: Announce) -> TeacherCache | None:
    """Return what was found, pulled where it is in a remote; None where that fails, which is said."""
    if found.cache is not None:
        return found.cache
    assert found.pointer is not None
    pointer = found.pointer
    saved = "" if pointer.seconds is None else f", about {told_duration(pointer.seconds)} saved"
    announce(f"precompute: {found.how}: {pointer.key[:16]}, made {told_age(pointer.made)}{saved}")
    return _Remote(store, announce).ask(lambda store: pull(store, pointer, home))


def require_open(store: Store, key: str) -> None:
    """Check that a remote can be read and takes a key, before anything is computed for it.

    Raises:
        CacheError: when it cannot be reached, or the key was purged there.
    """
    pointer = read_pointer(store, key)
    if isinstance(pointer, Tombstone):
        raise CacheError(f"{store.url}: expected a key that may be published, found that {_grave(pointer)}")


class _Remote:
    """A remote that is asked no more once it has failed, which is said once."""

    def __init__(self, store: Store | None, announce: Announce) -> None:
        self._store, self._announce = store, announce
        self.url = "" if store is None else store.url

    def ask(self, act: Callable[[Store], Result | None]) -> Result | None:
        """Return what is found in the remote; None where there is nothing, or no remote that answers."""
        if self._store is None:
            return None
        try:
            return act(self._store)
        except CacheError as error:
            self._announce(f"precompute: WARNING: going on without the remote: {error}")
            self._store = None
            return None


def _exact_pointer(store: Store, key: str, announce: Announce) -> Pointer | None:
    pointer = read_pointer(store, key)
    if isinstance(pointer, Tombstone):
        announce(f"precompute: {store.url}: {_grave(pointer)}")
        return None
    return pointer


def _grave(grave: Tombstone) -> str:
    instead = f"{grave.replaced_by} holds the remaining rows" if grave.replaced_by else "nothing replaces it"
    return f"key {grave.key[:16]} was purged on {grave.made} ({instead}): it is not pulled, and cannot be pushed."


def _serving(
    store: Store, wanted: Fingerprint, named: Names, row_keys: Collection[bytes], announce: Announce
) -> Iterator[Pointer]:
    """Yield what is published in a remote and serves."""
    for pointer in published(store):
        if isinstance(pointer, Tombstone):
            continue
        try:
            fingerprint = _fingerprint(store, pointer)
            if compare(fingerprint, wanted, named).mismatches or not set(row_keys) <= _row_keys(store, pointer):
                continue
        except CacheError as error:
            announce(f"precompute: WARNING: left out of the search: {error}")
            continue
        yield pointer


def _fingerprint(store: Store, pointer: Pointer) -> Fingerprint:
    """Return the fingerprint of a published cache, once it is that of its key."""
    path = f"{pointer.folder}/fingerprint.json"
    try:
        content = store.read(path, JSON_CAP)
    except FileNotFoundError:
        raise CacheError(f"{store.url}/{path}: expected this file of a published cache, found none.") from None
    digest = hashlib.sha256(content).hexdigest()
    expect(digest == pointer.key, f"{store.url}/{path}", f"sha256 {pointer.key}", digest)
    fingerprint: Fingerprint = json_value(Path(path), content)
    expect(is_fingerprint(fingerprint), f"{store.url}/{path}", FINGERPRINT_SCHEMA, fingerprint)
    return fingerprint


def _row_keys(store: Store, pointer: Pointer) -> frozenset[bytes]:
    """Return the row keys of a published cache; of its arrays, only their metadata and this one are fetched."""
    with tempfile.TemporaryDirectory(prefix="viker-") as name:
        folder = Path(name) / "cache"
        files = fetch_manifest(store, pointer, Path(name))
        _fetch_some(store, pointer, files, Path(name), _METADATA, JSON_CAP)
        _, fingerprint = parse_json(folder / "fingerprint.json", JSON_CAP)
        plans = check_arrays(folder, fingerprint, files)
        _fetch_some(store, pointer, files, Path(name), _ROW_KEYS, SHARD_CAP)
        return frozenset(map(bytes, read_array(folder, "sample/key", plans["sample/key"], files, "uint8")))


def _fetch_some(
    store: Store, pointer: Pointer, files: Mapping[str, ListedFile], staging: Path, names: re.Pattern[str], cap: int
) -> None:
    """Fetch the files of a published cache whose names fit, none of them larger than a cap."""
    some = {path: file for path, file in files.items() if names.fullmatch(path)}
    largest = max((file.size for file in some.values()), default=0)
    expect(largest <= cap, f"{store.url}/{pointer.folder}", f"files of at most {cap} bytes", largest)
    fetch_files(store, pointer, staging, some)
