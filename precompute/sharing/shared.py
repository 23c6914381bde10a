"""What training is handed of shared caches, which it may not import: one by its address, or one that a run stores.

`cli.py` passes these functions on. Both fetch into the caches of this machine, verified, and both hold to a root: the
one the remote names, or the one the run was told.
"""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass

from ..cache import CacheError, CacheMismatch, cache_home
from .pointer import Pointer, told_age
from .remote import expect_published, open_store, require_root
from .stores import RemoteError, Store
from .transfer import pull

Announce = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class SharedCache:
    """A published cache."""

    store: Store
    pointer: Pointer

    @property
    def key(self) -> str:
        """Its key."""
        return self.pointer.key

    @property
    def root(self) -> str:
        """The digest of its bytes."""
        return self.pointer.root

    def pull(self, announce: Announce) -> None:
        """Fetch it into the caches of this machine, unless it is there.

        Raises:
            CacheMismatch: when other bytes are there under its key.
            CacheError: when the remote holds something else than it says.
        """
        announce(f"{self.store.url}: {self.key[:16]}, root {self.root[:16]}, made {told_age(self.pointer.made)}")
        pull(self.store, self.pointer, cache_home())


def published_at(address: str) -> SharedCache:
    """Return the cache at `<remote>/<beginning of its key>`.

    Raises:
        CacheError: when it was never published, was purged, or the remote cannot be read.
    """
    remote, _, key = address.rstrip("/").rpartition("/")
    if not re.fullmatch("[0-9a-f]{4,64}", key):
        raise RemoteError(f"{address}: expected an address like s3://BUCKET/FOLDER/KEY, found no key at its end.")
    store = open_store(remote)
    return SharedCache(store, expect_published(store, key))


def fetch_stored(key: str, root: str, announce: Announce) -> bool:
    """Fetch the cache that a run stores from $VIKER_CACHE_REMOTE; return whether it is here now.

    Raises:
        CacheMismatch: when the remote has other bytes under its key.
    """
    address = os.environ.get("VIKER_CACHE_REMOTE")
    if not address:
        return False
    try:
        store = open_store(address)
        shared = SharedCache(store, expect_published(store, key))
        require_root(shared.pointer, root, store.url)
        announce("train: the cache this run stores is not on this machine; fetching it")
        shared.pull(announce)
    except CacheMismatch:
        raise
    except CacheError as error:
        announce(f"train: WARNING: the cache this run stores, {key[:16]}, could not be fetched: {error}")
        return False
    return True
