"""Where shared caches lie: a folder on a shared disk, or an object store; the few operations the protocol needs.

`remote.py` says what is written in which order and `transfer.py` what is believed; here are only places. A folder is
handled without fsspec, because what matters there (no torn file, no pointer replaced, the group's permissions) is what
a general file system layer leaves out. Object stores are `object_store.py`'s, the Hugging Face Hub `hub_store.py`'s.

Paths are relative to the remote, with slashes. A file that is not there is a FileNotFoundError, which callers expect;
everything else that goes wrong is one RemoteError with one line.

    CacheError
      RemoteError             a remote that cannot be reached, read or written as asked
"""

import contextlib
import logging
import os
import re
import shutil
import stat
import threading
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

from ..reading.layout import CacheError
from ..writing.blocks import make_folder, share, sync, write_durably

logger = logging.getLogger(__name__)

_FOLDERS = threading.RLock()
CHUNK = 8 << 20  # bytes read at once
PARTIAL = ".partial"
EXTRA = "pip install 'viker[remote]'"


class RemoteError(CacheError):
    """A remote that cannot be reached, read or written as asked."""


class RemoteFile(NamedTuple):
    """What a listing says of a file; the time is None where a store does not tell it."""

    size: int
    modified: float | None


class Store(Protocol):
    """A place for shared caches."""

    url: str  # without credentials, as messages show it

    def read(self, path: str, cap: int) -> bytes:
        """Return a small file.

        Raises:
            FileNotFoundError: when it is not there.
            RemoteError: when it is larger than the cap, which is known before it is in memory.
        """

    def chunks(self, path: str, size: int) -> Iterator[bytes]:
        """Yield a file of a known size piece by piece, and never more than that size."""

    def folders(self) -> list[str]:
        """Return the names of the folders directly below the remote."""

    def files(self, folder: str) -> dict[str, RemoteFile]:
        """Return what is below a folder, by path relative to that folder; nothing where it does not exist."""

    def upload(self, source: Path, path: str) -> None:
        """Store a file whole or not at all."""

    def settle(self) -> None:
        """Make sure that what was uploaded is stored, where a store waits for the pointer."""

    def put_if_absent(self, path: str, content: bytes) -> bool:
        """Store a small file unless one is there, atomically where the store can; return whether ours was stored."""

    def replace(self, path: str, content: bytes) -> None:
        """Store a small file, whatever is there."""

    def remove(self, paths: Sequence[str]) -> None:
        """Remove files; those that are gone already are no error."""


def without_credentials(url: str) -> str:
    """Return a URL as it may be printed: without a user name and a password."""
    return re.sub(r"//[^/@]*@", "//", url)


def too_large(where: str, cap: int) -> RemoteError:
    """Return the error for a small file that is not small."""
    return RemoteError(
        f"{where}: expected at most {cap} bytes, found more. It was not written by viker: ask whoever keeps the remote."
    )


def make_shared_folders(folder: Path, top: Path) -> None:
    """Make a folder and those above it up to one that exists, each with the permissions of the one it lies in.

    Each appears with its permissions already set: whoever sees it, another thread or user, may write there. One thread
    at a time: renaming onto a folder that is still empty replaces it, under the hands of whoever is about to write.
    """
    with _FOLDERS:
        if folder == top or folder.is_dir():
            return
        make_shared_folders(folder.parent, top)
        fresh = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}{PARTIAL}")
        make_folder(fresh)
        try:
            fresh.rename(folder)
        except OSError:  # another process made it first, and has files in it
            fresh.rmdir()
            if not folder.is_dir():
                raise


class FolderStore:
    """A folder, perhaps on a disk that a team shares.

    What is written takes its permissions and its group from the remote's own folder (`share`), not from the umask of
    whoever writes: otherwise one careless umask makes a cache that the team can see and not read.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.url = root, str(root)
        if not root.is_dir():
            raise RemoteError(
                f"{root}: expected the folder of a remote, found none. Mount it, or create it: what is pushed takes "
                "its permissions from that folder."
            )

    def read(self, path: str, cap: int) -> bytes:
        """Return a small file; see `Store`."""
        with self._opened(path) as file:
            content = file.read(cap + 1)
        if len(content) > cap:
            raise too_large(f"{self.root / path}", cap)
        return content

    def chunks(self, path: str, size: int) -> Iterator[bytes]:
        """Yield a file piece by piece; see `Store`."""
        with self._opened(path) as file:
            while size > 0 and (chunk := file.read(min(CHUNK, size))):
                size -= len(chunk)
                yield chunk

    def folders(self) -> list[str]:
        """Return the names of the folders directly below; see `Store`."""
        with self._told("list"):
            return sorted(entry.name for entry in os.scandir(self.root) if entry.is_dir(follow_symlinks=False))

    def files(self, folder: str) -> dict[str, RemoteFile]:
        """Return what is below a folder; see `Store`."""
        top, found = self.root / folder, {}
        with self._told(f"list {folder}"):
            self._refuse_links(top)
            for place, _, names in os.walk(top):
                for path in (Path(place, name) for name in names):
                    with contextlib.suppress(FileNotFoundError):  # renamed or removed meanwhile
                        status = path.lstat()
                        found[path.relative_to(top).as_posix()] = RemoteFile(status.st_size, status.st_mtime)
        return found

    def upload(self, source: Path, path: str) -> None:
        """Store a file whole or not at all; see `Store`."""
        with self._told(f"write {path}"), source.open("rb") as content, self._staged(path) as partial:
            with partial.open("xb") as target:
                share(target.fileno(), partial.parent)
                shutil.copyfileobj(content, target, CHUNK)
            sync(partial)
            partial.replace(self.root / path)
            sync(partial.parent)

    def settle(self) -> None:
        """Do nothing: every file is stored at once."""

    def put_if_absent(self, path: str, content: bytes) -> bool:
        """Store a small file unless one is there: a hard link to a complete file fails where the name is taken."""
        with self._told(f"write {path}"), self._staged(path) as partial:
            write_durably(partial, content)
            try:
                os.link(partial, self.root / path)
            except FileExistsError:
                return False
            except OSError as error:
                return self._put_without_links(partial, self.root / path, error)
            sync(partial.parent)
            return True

    def replace(self, path: str, content: bytes) -> None:
        """Store a small file, whatever is there; see `Store`."""
        with self._told(f"write {path}"), self._staged(path):
            write_durably(self.root / path, content)

    def remove(self, paths: Sequence[str]) -> None:
        """Remove files, and the folders that are empty then; see `Store`."""
        for path in paths:
            with self._told(f"remove {path}"):
                self._refuse_links((self.root / path).parent)
                (self.root / path).unlink(missing_ok=True)
                self._remove_empty((self.root / path).parent)

    @contextlib.contextmanager
    def _opened(self, path: str) -> Iterator[BinaryIO]:
        """Open a plain file; a link, or a pipe that would block for ever, is refused."""
        with self._told(f"read {path}"):
            descriptor = os.open(self.root / path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                os.close(descriptor)
                raise RemoteError(f"{self.root / path}: expected a plain file, found a special one.")
            with os.fdopen(descriptor, "rb") as file:
                yield file

    @contextlib.contextmanager
    def _staged(self, path: str) -> Iterator[Path]:
        """Make the folders of a path, and give a temporary name beside it that is gone afterwards."""
        target = self.root / path
        self._refuse_links(target.parent)
        make_shared_folders(target.parent, self.root)
        partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}{PARTIAL}")
        try:
            yield partial
        finally:
            partial.unlink(missing_ok=True)

    def _put_without_links(self, partial: Path, target: Path, error: OSError) -> bool:
        logger.warning(
            "WARNING: %s has no hard links (%s), so two people who push the same key at the same moment may replace "
            "one another's pointer; it is read again afterwards.", self.root, error.strerror,
        )  # fmt: skip
        if target.exists():
            return False
        partial.replace(target)
        return True

    def _refuse_links(self, path: Path) -> None:
        """Raise RemoteError where a folder below the remote is a link: it could lead anywhere."""
        while path != self.root:
            if path.is_symlink():
                raise RemoteError(f"{path}: expected a folder of the remote, found a link. Remove it.")
            path = path.parent

    def _remove_empty(self, folder: Path) -> None:
        while folder != self.root:
            try:
                folder.rmdir()
            except OSError:  # not empty, or gone
                return
            folder = folder.parent

    @contextlib.contextmanager
    def _told(self, doing: str) -> Iterator[None]:
        """Turn what a file system says into one line; a file that is not there passes."""
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            raise RemoteError(f"{self.root}: could not {doing}: {error.strerror or error}.") from error
