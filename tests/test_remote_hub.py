"""Shared caches in a hub repository: huggingface_hub's own client against a server that answers as the hub documents.

No hub is reachable from here, so this proves the requests that are made, and what they do to a repository that keeps
the hub's two promises: a commit holds all its files or none, and is refused when its parent is not the newest.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from cache_samples import make_cache, tree_bytes
from viker.precompute.cache import TeacherCache
from viker.precompute.sharing.addresses import open_store
from viker.precompute.sharing.pointer import Pointer, pointer_bytes
from viker.precompute.sharing.stores import RemoteError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

REPOSITORY = "team/caches"
ADDRESS = f"hf://datasets/{REPOSITORY}/shared"


class Repository:
    """One branch: its commits, and the files of the newest."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {".gitattributes": b""}
        self.commits: list[list[str]] = [[]]
        self.before_commit: list[dict[str, bytes]] = []  # what somebody else commits just before the next commit

    @property
    def head(self) -> str:
        return hashlib.sha1(str(len(self.commits)).encode()).hexdigest()

    def commit(self, added: dict[str, bytes], deleted: list[str] = []) -> None:  # noqa: B006
        for path in deleted:
            del self.files[path]
        self.files |= added
        self.commits.append(sorted([*added, *deleted]))


class Hub(BaseHTTPRequestHandler):
    """The requests of the hub's API that a dataset repository needs."""

    repository: Repository

    def log_message(self, *words: Any) -> None:
        """Keep quiet."""

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "X-Repo-Commit": self.repository.head, **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def answer_json(self, value: Any, status: int = 200) -> None:
        self.answer(status, json.dumps(value).encode(), Content_Type="application/json")

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        base = f"/api/datasets/{REPOSITORY}"
        if path == base or path.startswith(f"{base}/revision/"):
            self.answer_json({"id": REPOSITORY, "sha": self.repository.head, "siblings": []})
        elif path.startswith(f"{base}/tree/"):
            folder = path.removeprefix(f"{base}/tree/").partition("/")[2]
            found = self.tree(folder, "recursive=True" in self.path or "recursive=true" in self.path)
            if folder and not found:
                self.answer(404, b"{}", X_Error_Code="EntryNotFound")
            else:
                self.answer_json(found)
        elif path.startswith(f"/datasets/{REPOSITORY}/resolve/"):
            name = path.removeprefix(f"/datasets/{REPOSITORY}/resolve/").partition("/")[2]
            self.send_file(name)
        else:
            self.answer(404, b"", X_Error_Code="RepoNotFound")

    def do_POST(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))) or self.chunked()
        if "/preupload/" in path:
            files = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                     for file in json.loads(body)["files"]]  # fmt: skip
            self.answer_json({"files": files})
        elif "/paths-info/" in path:
            asked = parse_qs(body.decode())["paths"]
            self.answer_json([self.entry(name) for name in asked if name in self.repository.files])
        elif "/commit/" in path:
            self.commit([json.loads(line) for line in body.splitlines()])
        else:
            self.answer(404, b"")

    def chunked(self) -> bytes:
        body = b""
        while self.headers.get("Transfer-Encoding") == "chunked" and (size := int(self.rfile.readline(), 16)):
            body += self.rfile.read(size)
            self.rfile.readline()
        return body

    def commit(self, lines: list[dict[str, Any]]) -> None:
        repository = self.repository
        if repository.before_commit:
            repository.commit(repository.before_commit.pop())
        header = lines[0]["value"]
        if header.get("parentCommit") not in (None, repository.head):
            self.answer_json({"error": "A commit has happened since."}, 412)
            return
        added = {line["value"]["path"]: base64.b64decode(line["value"]["content"])
                 for line in lines if line["key"] == "file"}  # fmt: skip
        repository.commit(added, [line["value"]["path"] for line in lines if line["key"] == "deletedFile"])
        url = f"http://{self.headers['Host']}/datasets/{REPOSITORY}/commit/{repository.head}"
        self.answer_json({"commitOid": repository.head, "commitUrl": url})

    def entry(self, name: str) -> dict[str, Any]:
        content = self.repository.files[name]
        return {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}

    def tree(self, folder: str, recursive: bool) -> list[dict[str, Any]]:
        prefix = f"{folder}/" if folder else ""
        names = [name for name in sorted(self.repository.files) if name.startswith(prefix)]
        folders = {
            prefix + name.removeprefix(prefix).partition("/")[0] for name in names if "/" in name.removeprefix(prefix)
        }
        direct = [name for name in names if recursive or "/" not in name.removeprefix(prefix)]
        return [*({"type": "directory", "path": path, "size": 0, "oid": "0" * 40} for path in sorted(folders)),
                *map(self.entry, direct)]  # fmt: skip

    def send_file(self, name: str) -> None:
        if name not in self.repository.files:
            self.answer(404, b"", X_Error_Code="EntryNotFound")
            return
        content = self.repository.files[name]
        first, _, last = self.headers.get("Range", "").removeprefix("bytes=").partition("-")
        part = content[int(first) : int(last) + 1] if first else content
        self.answer(206 if first else 200, part, ETag=f'"{hashlib.sha1(content).hexdigest()}"')


@pytest.fixture
def hub() -> Iterator[tuple[Repository, str]]:
    repository = Repository()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OneHub", (Hub,), {"repository": repository}))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield repository, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def cache(isolated_cache_home: Path) -> Path:
    return make_cache(isolated_cache_home, [3, 5, 2, 4])


def viker(endpoint: str, *arguments: object, home: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own: the endpoint is read when huggingface_hub is imported."""
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "VIKER_CACHE_REMOTE": ADDRESS, "HF_HUB_DISABLE_XET": "1"}
    environment |= {"VIKER_CACHE_DIR": str(home)} if home else {}
    words = [sys.executable, "-m", "viker", "cache", *map(str, arguments)]
    return subprocess.run(words, env=environment, capture_output=True, text=True, check=False)


def test_a_cache_is_published_as_one_commit_and_pulled_again(
    hub: tuple[Repository, str], cache: Path, tmp_path: Path
) -> None:
    repository, endpoint = hub
    pushed = viker(endpoint, "push", cache)
    assert pushed.returncode == 0, pushed.stderr
    assert len(repository.commits) == 2
    root = TeacherCache.open(cache).root_digest[:16]
    assert repository.commits[1] == sorted(
        [f"shared/{cache.name}/pointer.json", *(f"shared/{cache.name}/{root}/{name}" for name in tree_bytes(cache))]
    )
    again = viker(endpoint, "push", cache)
    assert "already there" in again.stdout, again.stderr
    assert len(repository.commits) == 2
    pulled = viker(endpoint, "pull", cache.name[:8], home=tmp_path / "second")
    assert pulled.returncode == 0, pulled.stderr
    assert tree_bytes(tmp_path / "second" / cache.name) == tree_bytes(cache)
    assert cache.name in viker(endpoint, "list", "--remote").stdout


def test_whoever_commits_second_publishes_nothing(hub: tuple[Repository, str], cache: Path) -> None:
    repository, endpoint = hub
    unrelated = {"README.md": b"# Caches"}
    opened = TeacherCache.open(cache)
    first = Pointer(opened.key, "ab" * 32, None, None, 1)
    repository.before_commit = [{f"shared/{cache.name}/pointer.json": pointer_bytes(first)}, unrelated]
    second = viker(endpoint, "push", cache)
    assert second.returncode == 1, "the first's files are not there to be compared with"
    assert f"shared/{cache.name}/{'ab' * 8}" in second.stderr
    assert repository.commits == [[], ["README.md"], [f"shared/{cache.name}/pointer.json"]]


def test_files_that_are_missing_are_committed(hub: tuple[Repository, str], cache: Path) -> None:
    repository, endpoint = hub
    viker(endpoint, "push", cache)
    lost = next(name for name in repository.files if name.endswith("build.json"))
    content = repository.files.pop(lost)
    mended = viker(endpoint, "push", cache)
    assert "1 missing files sent" in mended.stdout, mended.stderr
    assert repository.files[lost] == content


def test_a_purged_cache_is_deleted_from_the_newest_commit(hub: tuple[Repository, str], cache: Path) -> None:
    repository, endpoint = hub
    viker(endpoint, "push", cache)
    code = (
        "from viker.precompute.sharing.remote import open_store, tombstone\n"
        f"tombstone(open_store({ADDRESS!r}), {TeacherCache.open(cache).key!r}, None)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "HF_ENDPOINT": endpoint}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert set(repository.files) == {".gitattributes", f"shared/{cache.name}/pointer.json"}
    refused = viker(endpoint, "push", cache)
    assert refused.returncode == 1
    assert "was purged on" in refused.stderr


def test_a_repository_that_is_not_there_is_one_line(hub: tuple[Repository, str], cache: Path) -> None:
    _, endpoint = hub
    result = viker(endpoint, "push", cache, "--to", "hf://datasets/team/other")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    with pytest.raises(RemoteError, match="hf://datasets/ORGANIZATION/NAME"):
        open_store("hf://team/model")
