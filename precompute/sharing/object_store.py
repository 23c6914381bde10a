"""Shared caches in an object store, through fsspec: S3 and what speaks its protocol, Google's, Azure's, any other.

The one thing that must not race is the pointer. S3 and Google store a file "if there is none" in one request; whether
a server honors that is tried, not believed, since some that speak S3 ignore the condition. Other stores are written
and read again, which is said. Retries and timeouts are the library's. Reading is by ranges of known size, so that a
file that grew, or is larger than promised, never fills the memory.
"""

import contextlib
import datetime
import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .stores import CHUNK, EXTRA, RemoteError, RemoteFile, too_large, without_credentials

logger = logging.getLogger(__name__)

CONDITIONAL = frozenset({"s3", "s3a", "gs", "gcs"})  # whose fsspec driver sends the condition to the server
CONFLICTS = 5  # tries where the server answers that somebody else is writing the same file right now
NO_CREDENTIALS = frozenset({"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"})
NO_CONNECTION = frozenset(
    {"EndpointConnectionError", "ConnectTimeoutError", "ConnectionError", "HTTPClientError", "ClientConnectorError"}
)


class ObjectStore:
    """A store that fsspec reaches by a URL."""

    def __init__(self, url: str) -> None:
        self.url = without_credentials(url.rstrip("/"))
        self._scheme = url.partition("://")[0]
        try:
            import fsspec

            # Each store has a file system of its own: those that fsspec shares remember listings and credentials.
            self._system, root = fsspec.core.url_to_fs(url, skip_instance_cache=True, use_listings_cache=False)
        except ImportError as error:
            raise RemoteError(
                f"{self.url}: expected the library for {self._scheme}://, found none ({_first_line(error)}). "
                f"For S3: {EXTRA}."
            ) from error
        except Exception as error:  # each driver refuses an address in its own way
            raise RemoteError(f"{self.url}: expected an address like s3://BUCKET/FOLDER, found {error}.") from error
        self._root = str(root).rstrip("/")
        if not self._root.strip("/"):
            raise RemoteError(f"{self.url}: expected an address like s3://BUCKET/FOLDER, found no bucket.")

    def read(self, path: str, cap: int) -> bytes:
        """Return a small file; see `Store`."""
        content = self._range(path, 0, cap + 1)
        if len(content) > cap:
            raise too_large(f"{self.url}/{path}", cap)
        return content

    def chunks(self, path: str, size: int) -> Iterator[bytes]:
        """Yield a file piece by piece; see `Store`."""
        for start in range(0, size, CHUNK):
            yield self._range(path, start, min(start + CHUNK, size))

    def folders(self) -> list[str]:
        """Return the names of the folders directly below; see `Store`."""
        try:
            with self._told("list"):
                found = self._system.ls(self._root, detail=True)
        except FileNotFoundError:
            return []
        return sorted(entry["name"].rstrip("/").rpartition("/")[2] for entry in found if entry["type"] == "directory")

    def files(self, folder: str) -> dict[str, RemoteFile]:
        """Return what is below a folder; see `Store`."""
        top = f"{self._root}/{folder}/"
        try:
            with self._told(f"list {folder}"):
                found = self._system.find(top, detail=True)
        except FileNotFoundError:
            return {}
        entries = {name.lstrip("/").removeprefix(top.lstrip("/")): entry for name, entry in found.items()}
        return {name: RemoteFile(int(entry["size"] or 0), _modified(entry)) for name, entry in entries.items()}

    def upload(self, source: Path, path: str) -> None:
        """Store a file whole or not at all; see `Store`."""
        with self._told(f"write {path}", missing_is_ours=True):
            self._system.put_file(str(source), f"{self._root}/{path}")

    def settle(self) -> None:
        """Do nothing: every file is stored at once."""

    def put_if_absent(self, path: str, content: bytes) -> bool:
        """Store a small file unless one is there; see `Store`."""
        if self._scheme not in CONDITIONAL:
            return self._put_and_hope(path, content)
        if not self._create(path, content):
            return False
        if self._create(path, content):  # ours is there: the same request must be refused now
            self._warn("ignores the condition of a conditional write")
        return True

    def replace(self, path: str, content: bytes) -> None:
        """Store a small file, whatever is there; see `Store`."""
        with self._told(f"write {path}", missing_is_ours=True):
            self._system.pipe_file(f"{self._root}/{path}", content)

    def remove(self, paths: Sequence[str]) -> None:
        """Remove files; see `Store`."""
        for path in paths:
            with contextlib.suppress(FileNotFoundError), self._told(f"remove {path}"):
                self._system.rm_file(f"{self._root}/{path}")

    def _create(self, path: str, content: bytes) -> bool:
        """Store a file by a conditional request; return False when the server says that one is there."""
        for attempt in range(CONFLICTS):
            try:
                with self._told(f"write {path}", missing_is_ours=True):
                    self._system.pipe_file(f"{self._root}/{path}", content, mode="create")
                return True
            except FileExistsError:
                return False
            except RemoteError as error:
                if _code(error.__cause__) != "ConditionalRequestConflict" or attempt == CONFLICTS - 1:
                    raise
                time.sleep(0.2 * 2**attempt)
        raise AssertionError("the last attempt returns or raises")

    def _put_and_hope(self, path: str, content: bytes) -> bool:
        self._warn("has no conditional write that viker knows")
        with self._told(f"write {path}", missing_is_ours=True):
            if self._system.exists(f"{self._root}/{path}"):
                return False
        self.replace(path, content)
        return True

    def _warn(self, why: str) -> None:
        logger.warning(
            "WARNING: %s %s, so two people who push the same key at the same moment may replace one another's "
            "pointer; it is read again afterwards.", self.url, why,
        )  # fmt: skip

    def _range(self, path: str, start: int, stop: int) -> bytes:
        """Return the bytes of a file between two places, fewer where it ends before."""
        try:
            with self._told(f"read {path}"):
                content = self._system.cat_file(f"{self._root}/{path}", start=start, end=stop)
        except RemoteError as error:
            if start == 0 and _code(error.__cause__) == "InvalidRange":  # S3 has no first byte of an empty file
                return b""
            raise
        if len(content) > stop - start:
            raise RemoteError(f"{self.url}/{path}: expected {stop - start} bytes as asked, found {len(content)}.")
        return bytes(content)

    @contextlib.contextmanager
    def _told(self, doing: str, *, missing_is_ours: bool = False) -> Iterator[None]:
        """Turn what a driver raises into one line; a file that is not there, or is there already, passes."""
        try:
            yield
        except FileExistsError:
            raise
        except FileNotFoundError as error:
            if _code(error) != "NoSuchBucket" and not missing_is_ours:
                raise
            raise RemoteError(
                f"{self.url}: could not {doing}: {_first_line(error)}. Create it, or name another remote."
            ) from error
        except Exception as error:  # drivers fail in as many ways as there are libraries
            raise RemoteError(f"{self.url}: could not {doing}: {_first_line(error)}. {_advice(error)}") from error


def _modified(entry: dict[str, Any]) -> float | None:
    """Return when a file was last written, from whatever its driver calls that."""
    for name in ("LastModified", "mtime", "last_modified", "updated", "created"):
        value = entry.get(name)
        if isinstance(value, int | float):
            return float(value)
        if isinstance(value, str):
            with contextlib.suppress(ValueError):
                value = datetime.datetime.fromisoformat(value)
        if isinstance(value, datetime.datetime):
            return value.timestamp()
    return None


def _code(error: BaseException | None) -> str | None:
    """Return the code of an S3 answer, which drivers keep as the cause of what they raise."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code"))
        error = error.__cause__
    return None


def _first_line(error: BaseException) -> str:
    text = str(error.strerror if isinstance(error, OSError) and error.strerror else error)
    return (text.splitlines() or [type(error).__name__])[0].rstrip(".")


def _advice(error: BaseException) -> str:
    names = {type_.__name__ for type_ in type(error).__mro__}
    if names & NO_CREDENTIALS:
        return "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a profile by AWS_PROFILE."
    if isinstance(error, PermissionError):
        return "Permission denied: the credentials must allow to list, read and (for push) write."
    if names & NO_CONNECTION or isinstance(error, TimeoutError | ConnectionError):
        return "It cannot be reached: check the network and AWS_ENDPOINT_URL."
    return "Check the address and the credentials."
