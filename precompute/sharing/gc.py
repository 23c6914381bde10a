"""What may be removed from a cache home or a remote: caches that no run refers to, and what interrupted commands left.

Nothing is guessed. Runs are known from their notes (`data/run_roots.py`) and from the folders the user names; what they
refer to is read from their records. What cannot be read is an error, not an absence. Something unfinished counts as
left behind when nobody has written to it for a day.
"""

import logging
import os
import re
import socket
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from ...data.example import DataError
from ...data.run_roots import RunRoot, keys_below, registered_runs
from ..reading.layout import CacheError
from ..writing.seal import remove
from .pointer import KEY16, Pointer, read_pointer
from .stores import PARTIAL, RemoteError, RemoteFile, Store

DAY_S = 86400.0
_UNFINISHED = {
    ".building": "blocks of an interrupted precompute",
    ".sealing": "left by an interrupted seal",
    ".pulling": "left by an interrupted pull",
}
_NAME = re.compile(r"([0-9a-f]{16})(\..+)?")

logger = logging.getLogger(__name__)


class Removable(NamedTuple):
    """Something that may go: where it is, its size, and why nobody needs it."""

    place: str
    num_bytes: int
    why: str


class Referenced(NamedTuple):
    """The caches that runs refer to, by the first 16 digits of their keys, and the runs that are gone."""

    runs_by_cache: dict[str, list[Path]]
    vanished: list[RunRoot]


def referenced(folders: Collection[Path] = ()) -> Referenced:
    """Return what registered runs, and artefacts below some folders, refer to.

    Raises:
        DataError: a folder does not exist, or a record is damaged.
    """
    found = Referenced({}, [])
    for folder in folders:
        if not folder.is_dir():
            raise DataError(f"--runs {folder}: expected a folder of runs, found none.")
        _add(found, folder, keys_below(folder))
    for root in registered_runs():
        keys = _keys_of(root)
        if keys is None:
            found.vanished.append(root)
        else:
            _add(found, root.directory, keys)
    return found


def removable(home: Path, needed: Collection[str], older_than_s: float) -> list[Removable]:
    """Return the caches of a home that are not needed, and what interrupted commands left there.

    Args:
        home: the folder of caches.
        needed: first 16 digits of the keys that runs refer to.
        older_than_s: caches that were complete less long ago are kept.
    """
    found = []
    for path in sorted(home.iterdir()) if home.is_dir() else ():
        match = _NAME.fullmatch(path.name)
        if match is None:
            continue
        why = _reason(path, match[1], match[2] or "", needed, older_than_s)
        if why is not None:
            found.append(Removable(path.name, _num_bytes(path), why))
    return found


def delete(home: Path, what: Removable) -> None:
    """Remove something from a home: first its name, so that nobody opens half of it."""
    path = home / what.place
    if path.is_dir():
        remove(path, home / what.place[:16])
        (home / f"{what.place}.made.json").unlink(missing_ok=True)
    else:
        path.unlink(missing_ok=True)


def remote_litter(store: Store, older_than_s: float) -> Iterator[Removable]:
    """Yield the folders and unfinished files of a remote that no pointer leads to, untouched for so long."""
    for key16 in filter(KEY16.fullmatch, store.folders()):
        try:
            pointer = read_pointer(store, key16)
        except RemoteError:
            raise
        except CacheError as error:
            logger.warning("left alone: %s", error)
            continue
        live = pointer.root[:16] if isinstance(pointer, Pointer) else None
        for name, files in _by_folder(store.files(key16), live).items():
            if _newest(files) <= time.time() - older_than_s:
                size = sum(file.size for file in files.values())
                yield Removable(f"{key16}/{name}", size, "no pointer leads to it")


def delete_remote(store: Store, what: Removable) -> None:
    """Remove a folder or file that no pointer leads to."""
    names = [f"{what.place}/{name}" for name in sorted(store.files(what.place))]
    store.remove(names or [what.place])


def _keys_of(root: RunRoot) -> Collection[str] | None:
    """Return what a run refers to, None where it is gone; of one that cannot be seen from here, what its note says."""
    try:
        if root.directory.is_dir():
            return keys_below(root.directory)
    except PermissionError:
        return root.caches
    return None if root.host == socket.gethostname() else root.caches


def _add(found: Referenced, directory: Path, keys: Collection[str]) -> None:
    for key in keys:
        found.runs_by_cache.setdefault(key[:16], []).append(directory)


def _reason(path: Path, key16: str, rest: str, needed: Collection[str], older_than_s: float) -> str | None:
    """Return why something in a home may go, None where it may not."""
    now = time.time()
    if rest == ".made.json":
        gone = not (path.parent / key16).exists() and path.stat().st_mtime < now - DAY_S
        return "the note of a cache that is gone" if gone else None
    if rest:
        what = _UNFINISHED.get(path.suffix, "left by an interrupted command")
        age_s = now - _last_written(path)
        return f"{what}, untouched for {age_s / DAY_S:.0f} days" if age_s > max(DAY_S, older_than_s) else None
    if key16 in needed:
        return None
    manifest = path / "manifest.json"
    complete = manifest.stat().st_mtime if manifest.is_file() else _last_written(path)
    return "no run refers to it" if complete <= now - older_than_s else None


def _last_written(path: Path) -> float:
    """Return when anything in a folder was last written."""
    newest = path.lstat().st_mtime
    for place, folders, names in os.walk(path):
        for name in (*folders, *names):
            newest = max(newest, Path(place, name).lstat().st_mtime)
    return newest


def _num_bytes(path: Path) -> int:
    if not path.is_dir():
        return path.lstat().st_size
    return sum(Path(place, name).lstat().st_size for place, _, names in os.walk(path) for name in names)


def _by_folder(files: Mapping[str, RemoteFile], live: str | None) -> dict[str, dict[str, RemoteFile]]:
    """Group the files under a key by their folder, without what its pointer leads to."""
    grouped: dict[str, dict[str, RemoteFile]] = {}
    for name, file in files.items():
        folder = name.partition("/")[0]
        if folder == live and name.endswith(PARTIAL):
            grouped[name] = {name: file}
        elif folder not in (live, "pointer.json"):
            grouped.setdefault(folder, {})[name] = file
    return grouped


def _newest(files: Mapping[str, RemoteFile]) -> float:
    """Return when any of some files was last written; where a store does not tell, that is just now."""
    return max(time.time() if file.modified is None else file.modified for file in files.values())
