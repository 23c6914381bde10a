"""Shared caches in a dataset repository of the Hugging Face Hub: `hf://datasets/ORGANIZATION/NAME[@REVISION][/FOLDER]`.

A repository has what an object store lacks: one commit holds many files, and may demand that nothing was committed
since a given one. So a cache is published as one commit of all its files with the pointer, on top of the commit in
which there was no pointer; if somebody else was faster, the hub refuses, and the pointer is looked for again. Nothing
of a push that failed is ever in the repository. What was committed stays in its history: deleting files, as a tombstone
does, does not delete them from there (the hub's settings do).
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .object_store import CONFLICTS, ObjectStore
from .stores import RemoteError, RemoteFile

_ADDRESS = re.compile(r"hf://datasets/(?P<repo>[^/@]+/[^/@]+)(@(?P<revision>[^/]+))?(/(?P<folder>.+?))?/*")
_CHANGED_SINCE = 412  # HTTP: the parent commit is not the newest any more


class HubStore(ObjectStore):
    """A dataset repository of the hub; what is uploaded is committed together with what is put next."""

    def __init__(self, url: str) -> None:
        match = _ADDRESS.fullmatch(url)
        if match is None:
            raise RemoteError(f"{url}: expected an address like hf://datasets/ORGANIZATION/NAME/FOLDER, found another.")
        super().__init__(url)
        from huggingface_hub import HfApi

        self._api: Any = HfApi()
        self._where = {"repo_id": match["repo"], "repo_type": "dataset", "revision": match["revision"] or "main"}
        self._folder = f"{match['folder']}/" if match["folder"] else ""
        self._uploads: list[tuple[Path, str]] = []

    def read(self, path: str, cap: int) -> bytes:
        """Return a small file; see `Store`."""
        self._system.invalidate_cache()
        return super().read(path, cap)

    def folders(self) -> list[str]:
        """Return the names of the folders directly below; see `Store`."""
        self._system.invalidate_cache()
        return super().folders()

    def files(self, folder: str) -> dict[str, RemoteFile]:
        """Return what is below a folder; see `Store`."""
        self._system.invalidate_cache()
        return super().files(folder)

    def upload(self, source: Path, path: str) -> None:
        """Note a file for the next commit; see `Store`."""
        self._uploads.append((source, path))

    def settle(self) -> None:
        """Commit what was uploaded; see `Store`."""
        if self._uploads:
            self._commit("Add the missing files of a teacher cache", [])

    def put_if_absent(self, path: str, content: bytes) -> bool:
        """Commit what was uploaded and a small file, unless one is there; see `Store`."""
        for attempt in range(CONFLICTS):
            with self._told(f"look for {path}", missing_is_ours=True):
                head = self._api.repo_info(**self._where).sha
                there = self._api.get_paths_info(**{**self._where, "revision": head}, paths=[self._folder + path])
            if there:
                self._uploads.clear()
                return False
            try:
                self._commit("Add a teacher cache", [(content, path)], parent=head)
                return True
            except RemoteError as error:
                status = getattr(getattr(error.__cause__, "response", None), "status_code", None)
                if status != _CHANGED_SINCE or attempt == CONFLICTS - 1:
                    raise
        raise AssertionError("the last attempt returns or raises")

    def replace(self, path: str, content: bytes) -> None:
        """Commit what was uploaded and a small file, whatever is there; see `Store`."""
        self._commit("Replace a pointer to a teacher cache", [(content, path)])

    def remove(self, paths: Sequence[str]) -> None:
        """Remove files by one commit; see `Store`."""
        from huggingface_hub import CommitOperationDelete

        if paths:
            operations = [CommitOperationDelete(self._folder + path, is_folder=False) for path in paths]
            with self._told("remove files", missing_is_ours=True):
                self._api.create_commit(**self._where, operations=operations, commit_message="Remove teacher caches")

    def _commit(self, message: str, contents: Sequence[tuple[bytes, str]], parent: str | None = None) -> None:
        """Commit what was uploaded and some contents, if the newest commit is still the parent."""
        from huggingface_hub import CommitOperationAdd

        added: list[tuple[Path | bytes, str]] = [*self._uploads, *contents]
        operations = [CommitOperationAdd(self._folder + path, what) for what, path in added]
        with self._told("commit", missing_is_ours=True):
            self._api.create_commit(**self._where, operations=operations, commit_message=message, parent_commit=parent)
        self._uploads.clear()
