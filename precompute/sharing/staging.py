"""Blocks staged in a remote: how parts of a cache share it where machines have an object store and no disk in common.

    <remote>/<key16>/blocks-<plan16>/block-00007       the files of the staging folder (`writing/store.py`), as they are
                                     token-budget.json

A part computes its own blocks on its own disk, and sends each as soon as it is staged; what it finds there of its own
it does not compute again. Blocks need no claims, since no two parts have one in common, and no order: a file appears in
a store whole or not at all, and carries its checksum. Whoever ends a part lists the folder; whoever finds all blocks
fetches them, seals and publishes. A store lists what was written before, so of two parts that end at once at least one
finds all; should both, they seal the same blocks, and the pointer goes to one of them as ever (`remote.py`). The folder
is removed after the pointer is there, so a part that misses blocks looks for the pointer before it says that blocks are
missing. What is left by parts that never ended is litter, which `viker cache gc --remote` removes.
"""

import contextlib
import hashlib
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ..cache import TeacherCache
from ..writing.blocks import disk_trouble, write_durably
from ..writing.samples import plan_bytes
from ..writing.store import CacheBuilder, sweep
from .pointer import Pointer, read_pointer
from .stores import Store
from .transfer import CONNECTIONS, pull

_FOLDER = "blocks-"
_PLANNED = frozenset({"plan.json", "fingerprint.json"})
_MOST_AGREED = 1 << 12  # bytes of a file that says what makers agreed on


class RemoteStaging:
    """The staging folder of one cache in a remote, beside the one on this machine."""

    def __init__(self, store: Store, builder: CacheBuilder) -> None:
        """Join the folder: from now on, every block staged here is sent there."""
        self._store, self._builder = store, builder
        plan = plan_bytes(builder.key, builder.blocks, builder.samples, builder.pool_sha256)
        self._folder = f"{builder.key[:16]}/{_FOLDER}{hashlib.sha256(plan).hexdigest()[:16]}"
        self._has_sent_agreed = False
        self._fetch_agreed()
        builder.on_staged = self.send

    def send(self, block: int, path: Path) -> None:
        """Send a block that is staged here.

        Raises:
            RemoteError: the remote cannot be written; the block stays here, and is sent when the part runs again.
        """
        if not self._has_sent_agreed:
            self._send_agreed()
        self._store.upload(path, f"{self._folder}/{self._name(block)}")
        self._store.settle()

    def share(self, part: Collection[int]) -> None:
        """Fetch the blocks of a part that only the remote has, and send those that only this machine has."""
        there = self._there()
        self.fetch(block for block in part if block in there)
        for block in self._builder.complete_blocks():
            if block not in there:
                self.send(block, self._builder.block_path(block))

    def gather(self) -> bool:
        """Fetch all blocks if all are there, and return whether they are here now and whole."""
        everything = range(len(self._builder.blocks))
        if not self._there().issuperset(everything):
            return False
        self.fetch(everything)
        return len(self._builder.complete_blocks()) == len(everything)

    def published(self) -> TeacherCache | None:
        """Fetch the cache that another part has sealed and published by now, if one has."""
        pointer = read_pointer(self._store, self._builder.key)
        if not isinstance(pointer, Pointer):
            return None
        cache = pull(self._store, pointer, self._builder.home)
        sweep(cache.root)
        return cache

    def fetch(self, blocks: Iterable[int]) -> None:
        """Fetch blocks that are not here; those that are damaged, or vanish meanwhile, count as not there."""
        staged = self._builder.complete_blocks()
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            list(pool.map(self._fetch, sorted(set(blocks).difference(staged))))
        self._builder.complete_blocks()

    def _fetch(self, block: int) -> None:
        most = self._builder.most_bytes(block)
        with contextlib.suppress(FileNotFoundError):  # another part sealed, and removed the folder
            content = self._store.read(f"{self._folder}/{self._name(block)}", most)
            with disk_trouble(self._builder.home, len(content)):
                write_durably(self._builder.block_path(block), content)

    def _there(self) -> set[int]:
        names = {self._name(block): block for block in range(len(self._builder.blocks))}
        return {names[name] for name in self._store.files(self._folder) if name in names}

    def _name(self, block: int) -> str:
        return self._builder.block_path(block).name

    def _fetch_agreed(self) -> None:
        """Fetch what earlier parts agreed on, where this machine knows nothing of it yet."""
        for name in self._store.files(self._folder):
            path = self._builder.staging / name
            if "/" not in name and name.endswith(".json") and name not in _PLANNED and not path.exists():
                with contextlib.suppress(FileNotFoundError):
                    write_durably(path, self._store.read(f"{self._folder}/{name}", _MOST_AGREED))

    def _send_agreed(self) -> None:
        for path in self._builder.staging.glob("*.json"):
            if path.name not in _PLANNED:
                self._store.put_if_absent(f"{self._folder}/{path.name}", path.read_bytes())
        self._has_sent_agreed = True


def remove_staged(store: Store, key: str) -> None:
    """Remove the blocks of a key from a remote in which its cache is published."""
    names = [name for name in store.files(key[:16]) if name.startswith(_FOLDER)]
    store.remove([f"{key[:16]}/{name}" for name in names])
