"""From the address of a remote to the store behind it: a folder, the hub, or whatever fsspec knows.

Drivers are imported when their scheme is asked for, since most people need none.
"""

from pathlib import Path

from .stores import FolderStore, RemoteError, Store


def open_store(url: str) -> Store:
    """Return the store of a URL; a path or `file://` is a folder.

    Raises:
        RemoteError: when nothing can be stored there, or a library is missing.
    """
    if not url:
        raise RemoteError("Expected the address of a remote, found none. Name it, or set $VIKER_CACHE_REMOTE.")
    if "://" not in url or url.startswith("file://"):
        return FolderStore(Path(url.removeprefix("file://")).expanduser())
    if url.startswith("hf://"):
        from .hub_store import HubStore

        return HubStore(url)
    from .object_store import ObjectStore

    return ObjectStore(url)
