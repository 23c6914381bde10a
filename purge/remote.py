"""Find a person in shared caches, and take them out of there: the purged cache is pushed, the old key gets a tombstone.

Searching fetches metadata and the digests of persons, never rows. Taking somebody out of a remote fetches the whole
cache, derives one without the person, publishes it, and only then takes the old key out for good; cut off anywhere, the
same command goes on. What lies under a key and belongs to no published cache (a push that was interrupted) does not say
whose it is: that is a finding with a problem. What else a store keeps of deleted files (versions of a bucket, the
history of a repository) is beyond its protocol: docs/privacy.md.
"""

import hashlib
import tempfile
from pathlib import Path

from ..precompute.cache import CacheError, TeacherCache, person_digest
from ..precompute.reading.identity import is_fingerprint
from ..precompute.reading.layout import ZARR, expect
from ..precompute.reading.metadata import check_arrays
from ..precompute.reading.untrusted import JSON_CAP, parse_json, read_manifest
from ..precompute.sharing.pointer import KEY16, Pointer, Tombstone, read_pointer, record_making
from ..precompute.sharing.remote import Store, push, replace, tombstone
from ..precompute.sharing.transfer import fetch, fetch_files, fetch_manifest
from ..precompute.writing.derive import holds_person, without_person
from .find import PURGED, Finding

_NEEDED = (f"{ZARR}/sample/key/", f"{ZARR}/sample/person/")


def find_in_remote(store: Store, person: str) -> list[Finding]:
    """Return the published caches that hold a person, and whatever under a key could not be searched.

    Raises:
        RemoteError: the remote cannot be listed.
    """
    findings = []
    for key16 in (name for name in store.folders() if KEY16.fullmatch(name)):
        place = f"{store.url}/{key16}"
        try:
            findings += _in_key(store, key16, person)
        except (CacheError, OSError) as error:
            findings.append(Finding(kind="remote cache", place=place, told="a shared cache", problem=str(error)))
    return findings


def purge_key(store: Store, key16: str, person: str, home: Path) -> dict[str, str]:
    """Publish what is left of a shared cache and take its key out; return the key and root of what replaces it.

    Args:
        store: the remote.
        key16: the first 16 digits of the key.
        person: who is taken out.
        home: a folder of caches, beside which the shared one is fetched and rewritten.

    Raises:
        CacheError: it is damaged, or the remote cannot be written.
    """
    pointer = read_pointer(store, key16)
    if isinstance(pointer, Tombstone):  # the files that an interrupted purge left under it
        tombstone(store, pointer.key, pointer.replaced_by)
        return {}
    if pointer is None:
        raise CacheError(f"{store.url}/{key16}: expected a published cache, found none.")
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home, prefix=f"{key16}.", suffix=PURGED) as folder:
        cache = fetch(store, pointer, Path(folder, "all"))
        rest = without_person(cache, person, Path(folder, "rest"))
        if rest is not None and pointer.made is not None:
            record_making(rest, pointer.seconds, pointer.made)
        return _publish(store, pointer, rest)


def is_searchable(store: Store, key16: str) -> bool:
    """Tell whether every file under a key belongs to a published cache; False where that cannot be found out."""
    try:
        return not any(finding.problem for finding in _strays(store, key16, read_pointer(store, key16)))
    except (CacheError, OSError):
        return False


def _publish(store: Store, pointer: Pointer, rest: TeacherCache | None) -> dict[str, str]:
    if rest is None:
        tombstone(store, pointer.key, None)
        return {}
    if rest.key == pointer.key:  # every row of theirs belongs to others too
        return {"key": rest.key, "root": replace(store, rest.root).root}
    pushed = push(store, rest.root)
    tombstone(store, pointer.key, rest.key)
    return {"key": rest.key, "root": pushed.pointer.root}


def _in_key(store: Store, key16: str, person: str) -> list[Finding]:
    """Return what lies under one key of a remote and holds a person, or does not say whose it is."""
    place = f"{store.url}/{key16}"
    pointer = read_pointer(store, key16)
    if isinstance(pointer, Tombstone):
        told, before = "files that an interrupted purge left", {"key": pointer.key}
        left = _folders(store, key16)
        return [Finding(kind="remote cache", place=place, told=told, before=before)] if left else []
    found = _in_published(store, pointer, person) if pointer else None
    return _strays(store, key16, pointer) + ([found] if found else [])


def _strays(store: Store, key16: str, pointer: Pointer | Tombstone | None) -> list[Finding]:
    """Return the finding for files under a key that belong to no published cache."""
    known = {pointer.root[:16]} if isinstance(pointer, Pointer) else set[str]()
    place, strays = f"{store.url}/{key16}", sorted(_folders(store, key16) - known)
    if not strays:
        return []
    problem = (
        f"{place}: expected one published cache, found files of {', '.join(strays)} too, which a push that was "
        "interrupted left. They do not say whose they are: push that cache again, or remove them."
    )
    return [Finding(kind="remote cache", place=place, told="unpublished files", problem=problem)]


def _folders(store: Store, key16: str) -> set[str]:
    return {name.partition("/")[0] for name in store.files(key16) if "/" in name}


def _in_published(store: Store, pointer: Pointer, person: str) -> Finding | None:
    """Fetch what says whose the samples of a shared cache are, and look."""
    with tempfile.TemporaryDirectory() as folder:
        files = fetch_manifest(store, pointer, Path(folder))
        needed = {name: file for name, file in files.items() if name.endswith(".json") or name.startswith(_NEEDED)}
        fetch_files(store, pointer, Path(folder), needed)
        cache = _open_metadata(Path(folder, "cache"))
        if not holds_person(cache, person):
            return None
        digest = person_digest(cache.lineage, person)
        held = sum(pair[16:] == digest for pair in cache.sample_keys)
    return Finding(
        kind="remote cache", place=f"{store.url}/{pointer.key[:16]}",
        told=f"{held} of {cache.num_samples} samples are about them",
        before={"key": pointer.key, "root": pointer.root},
    )  # fmt: skip


def _open_metadata(root: Path) -> TeacherCache:
    """Open a cache of which only the metadata and the samples' digests are here, after the checks of the rest."""
    key, files = read_manifest(root)
    raw, fingerprint = parse_json(root / "fingerprint.json", JSON_CAP)
    digest = hashlib.sha256(raw).hexdigest()
    expect(digest == key and is_fingerprint(fingerprint), root / "fingerprint.json", f"sha256 {key}", digest)
    plans = check_arrays(root, fingerprint, files)
    return TeacherCache(
        root=root, key=key, fingerprint=fingerprint, build={}, num_samples=plans["sample/key"].shape[0],
        num_rows=plans["token/entropy"].shape[0], top_k=fingerprint["objective"]["top_k"],
        vocab_size=fingerprint["vocab_size"], plans=plans, files=files,
    )  # fmt: skip
