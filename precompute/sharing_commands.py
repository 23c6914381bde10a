"""`viker cache push|pull|gc` and `list --remote`: share teacher caches, and remove those that no run refers to.

A remote is a folder or any fsspec URL, named by an option or by $VIKER_CACHE_REMOTE. Every command says how private a
cache is, on stderr, so that JSON stays JSON. The protocol is `remote.py`'s, what may be removed `gc.py`'s.
"""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..data.kinds import SHOWS_OWN_IMAGE
from .local import PRIVACY, find_path

if TYPE_CHECKING:
    from .cache import TeacherCache
    from .sharing.gc import Removable
    from .sharing.pointer import Pointer, Tombstone
    from .sharing.remote import Pushed

_DAY_S = 86400.0


def default_remote() -> str | None:
    """Return the address in $VIKER_CACHE_REMOTE, None where there is none."""
    return os.environ.get("VIKER_CACHE_REMOTE") or None


@click.command()
@click.argument("cache", metavar="KEY|PATH")
@click.option("--to", metavar="URL", help="A folder or fsspec URL (default $VIKER_CACHE_REMOTE).")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def push(cache: str, to: str | None, as_json: bool) -> None:
    """Publish a cache, after verifying it in full; run it again where it was interrupted."""
    told: list[str] = []
    pushed = publish(_address(to, "--to"), find_path(cache), told.append)
    _tell({"schema": "viker/cache-push/1", **_as_json(pushed)}, "\n".join(told), as_json)


def publish(url: str, path: Path, tell: Callable[[str], None]) -> "Pushed":
    """Publish a cache; say how it ended and who can read it.

    Raises:
        CacheError: when the cache is not sound, its key was purged, or the remote cannot be written.
    """
    from .cache import TeacherCache
    from .sharing.remote import open_store
    from .sharing.remote import push as send

    store = open_store(url)
    _warn_of_answers(TeacherCache.open(path))
    pushed = send(store, path)
    tell(_as_text(store.url, pushed))
    click.echo(f"{PRIVACY} Whoever can read {store.url} can read it.", err=True)
    return pushed


@click.command()
@click.argument("key", metavar="KEY")
@click.option("--from", "source", metavar="URL", help="A folder or fsspec URL (default $VIKER_CACHE_REMOTE).")
@click.option("--expect-root", metavar="ROOT", help="Refuse other bytes: the root digest, or its first digits.")
@click.option("--max-bytes", default=64 * 10**9, show_default=True, help="Refuse a cache that is larger.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def pull(key: str, source: str | None, expect_root: str | None, max_bytes: int, as_json: bool) -> None:
    """Fetch a published cache by the beginning of its key, and verify it in full before it can be read."""
    from .cache import cache_home
    from .sharing.remote import expect_published, open_store, require_root
    from .sharing.transfer import is_local
    from .sharing.transfer import pull as fetch

    _expect_digits("KEY", key)
    store = open_store(_address(source, "--from"))
    pointer = expect_published(store, key)
    if expect_root is not None:
        _expect_digits("--expect-root", expect_root)
        require_root(pointer, expect_root, store.url)
    there = is_local(cache_home() / pointer.key[:16], pointer)
    cache = fetch(store, pointer, cache_home(), max_bytes)
    told = {"schema": "viker/cache-pull/1", "key": cache.key, "root": pointer.root, "path": str(cache.root),
            "remote": store.url, "fetched": not there, "bytes": pointer.num_bytes}  # fmt: skip
    text = "already there" if there else f"{_megabytes(pointer.num_bytes)} from {store.url}, verified"
    _tell(told, f"cache pull: {cache.key[:16]}, root {pointer.root[:16]}: {text} -> {cache.root}", as_json)
    click.echo(PRIVACY, err=True)


@click.command()
@click.option("--delete", is_flag=True, help="Remove it; without this, only say what would be.")
@click.option("--runs", multiple=True, type=click.Path(path_type=Path), help="A folder of more runs (repeatable).")
@click.option("--older-than", default=0.0, show_default=True, metavar="DAYS", help="Keep caches that are younger.")
@click.option("--remote", metavar="URL", help="Instead: what no pointer of a remote leads to, older than a day.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def gc(delete: bool, runs: tuple[Path, ...], older_than: float, remote: str | None, as_json: bool) -> None:
    """Remove caches that no run refers to, and what interrupted commands left; a dry run without --delete."""
    if remote is not None:
        _gc_remote(remote, older_than, delete, as_json)
        return
    from .cache import cache_home
    from .sharing import gc as collector

    known = collector.referenced(runs)
    found = collector.removable(cache_home(), known.runs_by_cache, older_than * _DAY_S)
    for root in known.vanished:
        click.echo(f"cache gc: the run {root.directory} is gone: it counts no longer", err=True)
    if delete:
        for what in found:
            collector.delete(cache_home(), what)
        for root in known.vanished:
            root.note.unlink(missing_ok=True)
    kept = f"{len(known.runs_by_cache)} caches are referred to by runs"
    _tell_removable(str(cache_home()), found, delete, kept, as_json)


def list_remote(url: str | None, as_json: bool) -> None:
    """Print what is published in a remote, tombstones too."""
    from .sharing.remote import open_store, published

    store = open_store(_address(url, "--remote"))
    found = list(published(store))
    told = {"schema": "viker/remote-caches/1", "remote": store.url, "caches": [one.as_json() for one in found]}
    _tell(told, "\n".join([f"{len(found)} keys in {store.url}", *map(_as_line, found)]), as_json)
    click.echo(PRIVACY, err=True)


def _gc_remote(url: str, older_than: float, delete: bool, as_json: bool) -> None:
    from .sharing.gc import delete_remote, remote_litter
    from .sharing.remote import open_store

    store = open_store(url)
    found = list(remote_litter(store, max(older_than, 1.0) * _DAY_S))
    if delete:
        for what in found:
            delete_remote(store, what)
    _tell_removable(store.url, found, delete, "what pointers lead to stays", as_json)


def _address(url: str | None, option: str) -> str:
    address = url or default_remote()
    if address is None:
        raise click.UsageError(f"cache: expected {option} URL or $VIKER_CACHE_REMOTE, found neither.")
    return address


def _expect_digits(what: str, text: str) -> None:
    if not re.fullmatch("[0-9a-f]{4,64}", text):
        raise click.UsageError(f"cache pull: expected {what} as 4 to 64 hexadecimal digits, found {text!r}.")


def _warn_of_answers(cache: "TeacherCache") -> None:
    if cache.fingerprint["intervention"]["kind"] in SHOWS_OWN_IMAGE and cache.top_k:
        click.echo(
            f"cache push: WARNING: {cache.key[:16]} keeps tokens of rows under people's own images: where the model "
            "memorized an answer, such a row is the answer.", err=True,
        )  # fmt: skip


def _as_json(pushed: "Pushed") -> dict[str, Any]:
    return {
        "outcome": pushed.outcome, "key": pushed.pointer.key,
        "root": pushed.pointer.root, "files_sent": pushed.num_sent, "mean_distance": pushed.mean_distance,
        "largest_distance": pushed.largest_distance,
    }  # fmt: skip


def _as_text(url: str, pushed: "Pushed") -> str:
    pointer = pushed.pointer
    name = f"cache push: {pointer.key[:16]}, root {pointer.root[:16]}"
    if pushed.outcome == "published":
        return f"{name}: published in {url}, {pushed.num_sent} files sent"
    if pushed.outcome == "there":
        mended = f", {pushed.num_sent} missing files sent" if pushed.num_sent else ""
        return f"{name}: already there in {url}{mended}"
    return (
        f"{name} was published in {url} before, from another making: it stays, and ours is not published. Mean "
        f"distance of the rows {pushed.mean_distance:.2g}, largest {pushed.largest_distance:.2g} (total variation)."
    )


def _as_line(one: "Pointer | Tombstone") -> str:
    from .sharing.pointer import Tombstone, told_age, told_duration

    if isinstance(one, Tombstone):
        return f"  {one.key[:16]}  purged on {one.made}, replaced by {(one.replaced_by or 'nothing')[:16]}"
    cost = "" if one.seconds is None else f", cost {told_duration(one.seconds)}"
    return f"  {one.key[:16]}  root {one.root[:16]}, {_megabytes(one.num_bytes)}, made {told_age(one.made)}{cost}"


def _tell_removable(place: str, found: "list[Removable]", delete: bool, kept: str, as_json: bool) -> None:
    total = sum(what.num_bytes for what in found)
    told = {
        "schema": "viker/cache-gc/1", "place": place, "deleted": delete, "bytes": total,
        "removable": [what._asdict() for what in found],
    }  # fmt: skip
    lines = [f"  {what.place}  {_megabytes(what.num_bytes)}: {what.why}" for what in found]
    end = "freed" if delete else "would be freed; --delete removes them"
    head = f"cache gc: {place}: {len(found)} to remove, {kept}"
    _tell(told, "\n".join([head, *lines, f"cache gc: {total} bytes {end}"]), as_json)
    click.echo(PRIVACY, err=True)


def _tell(told: dict[str, Any], text: str, as_json: bool) -> None:
    click.echo(json.dumps(told, indent=2, sort_keys=True) if as_json else text)


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.1f} MB"
