"""Caches named by `train --cache`: a folder, the beginning of a key, or the address of a published one.

What an adapter is made from is part of its name, so a name is resolved to a key and a root before anything is decided,
by reading one small file. Fetching is not training's business: it gets a function that does (`cli.py`).
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from ..data.artefact import cache_home, read_json
from ..data.example import DataError

Announce = Callable[[str], None]


class Published(Protocol):
    """A cache in a remote: what its key leads to, and how it is fetched."""

    key: str
    root: str

    def pull(self, announce: Announce) -> None:
        """Fetch it into the caches of this machine, verified."""


def is_address(name: str) -> bool:
    """Tell whether a cache is named by an address; a folder on this machine is named by its path."""
    return "://" in name


def stamp(name: str, published_at: Callable[[str], Published]) -> str:
    """Return which bytes a name means: the beginnings of key and root.

    Raises:
        DataError: there is no such cache, or several.
    """
    if is_address(name):
        published = published_at(name)
        return f"{published.key[:16]}/{published.root[:16]}"
    manifest = path_of(name) / "manifest.json"
    value = read_json(manifest)
    try:
        return f"{value['key'][:16]}/{value['root_sha256'][:16]}"
    except (KeyError, TypeError) as error:
        raise DataError(f"{manifest}: expected the manifest of a teacher cache, found something else.") from error


def fetched(names: Sequence[str], published_at: Callable[[str], Published], announce: Announce) -> list[str]:
    """Return names of caches of this machine, after fetching those that are named by an address."""
    return [_fetch(published_at(name), announce) if is_address(name) else name for name in names]


def path_of(name: str) -> Path:
    """Return where a cache of this machine is.

    Raises:
        DataError: there is no such cache, or several keys begin like this.
    """
    if Path(name).is_dir():
        return Path(name)
    found = (path.parent for path in cache_home().glob(f"{name[:16]}*/manifest.json"))
    matches = sorted(path for path in found if "." not in path.name)
    if len(matches) != 1:
        raise DataError(
            f"--cache {name}: expected a cache directory or the beginning of one key in {cache_home()}, found "
            f"{len(matches)} matches. `viker cache pull` fetches one from a remote."
        )
    return matches[0]


def _fetch(published: Published, announce: Announce) -> str:
    published.pull(announce)
    return published.key
