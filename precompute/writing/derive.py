"""A cache made from another by copying rows: with samples added (`viker cache extend`) or taken out (`viker purge`).

Caches are immutable, so a change is a new cache with a new key, which records its parent in build.json. Digests of
persons and tokens are keyed by the lineage, which the two share, so that samples move as they are: nobody needs the
names and the texts behind them. Rows are copied exactly, bit for bit, by row key; rows that no parent holds are the
teacher's (`run.py`). The new cache is made by `CacheBuilder`, hence resumable and whole or absent like any other.

One case has no new key: taking out a person all of whose rows belong to others too. The rows stay the same, and so the
key; the new directory then takes the place of the old one.
"""

# N answer tokens, K kept

import shutil
import uuid
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..cache import Fingerprint, TeacherCache, person_digest
from ..reading.identity import rows_digest
from .blocks import make_folder, sync
from .store import CacheBuilder, Sample

DEVICES = " + "  # between the devices of a block whose rows come from several
_REMOVED = ".removed"  # a name with a dot, which every search leaves out


class KnownRows:
    """The rows that need no teacher, because a cache holds them; none without a cache."""

    def __init__(self, cache: TeacherCache | None = None) -> None:
        """Know the rows of a cache."""
        self._cache = cache

    def __contains__(self, key: bytes) -> bool:
        """Whether the rows of a row key are known."""
        return self._cache is not None and self._cache.find_row(key) is not None

    def rows(self, key: bytes) -> dict[str, NDArray[Any]]:
        """Return the rows of a known row key exactly as they are stored, under the names `write_block` takes."""
        assert self._cache is not None
        index = self._cache.find_row(key)
        assert index is not None
        rows = self._cache.rows_of(index)
        return {
            "kept_id": rows.kept_ids_NK,
            "kept_logprob": rows.kept_logprobs_NK.astype(self._cache.fingerprint["storage"]["logprobs"]),
            "tail_logprob": rows.tail_logprob_N,
            "entropy": rows.entropy_N,
            "answer_logprob": rows.answer_logprob_N,
            "sum_squares": rows.sum_squares_N,
            "disagreement": rows.disagreement_N.astype(np.float16),
        }

    def device(self, keys: Collection[bytes], computed_on: str) -> str:
        """Return the devices behind a block of these row keys, where the unknown ones are computed on one."""
        known = sum(key in self for key in keys)
        devices = devices_of(self._cache.build) if self._cache is not None and known else set()
        return DEVICES.join(sorted(devices | ({computed_on} if known < len(set(keys)) else set())))


NOTHING_KNOWN = KnownRows()


def samples_of(cache: TeacherCache) -> list[Sample]:
    """Return the samples of a cache, in its order, as a builder takes them."""
    lengths, hashes = np.diff(cache.offset).tolist(), cache.token_hash.tolist()
    references = [tuple(images) for images in cache.reference.tolist()]
    return [
        Sample(pair[:16], pair[16:], hashes[index], lengths[index], references[index])
        for index, pair in enumerate(cache.sample_keys)
    ]


def holds_person(cache: TeacherCache, person: str) -> bool:
    """Tell whether a cache has a sample about somebody."""
    digest = person_digest(cache.lineage, person)
    return any(pair[16:] == digest for pair in cache.sample_keys)


def devices_of(build: Mapping[str, Any]) -> set[str]:
    """Return the devices that computed the rows of a cache, as its build.json records them."""
    return {device for block in build.get("block_devices", ()) for device in str(block).split(DEVICES)}


def fingerprint_of(parent: TeacherCache, samples: Sequence[Sample]) -> Fingerprint:
    """Return the fingerprint of a cache of the parent's lineage with these samples."""
    return {**parent.fingerprint, "rows": rows_digest({sample.row_key for sample in samples})}


def start_derived(
    home: Path, parent: TeacherCache, samples: Sequence[Sample], build: Mapping[str, Any], derived: str
) -> CacheBuilder:
    """Create or join the staging folder of a cache of the parent's lineage with these samples.

    Args:
        home: the folder of caches it goes to.
        parent: the cache it is derived from.
        samples: all its samples, the parent's and others.
        build: how the rows it adds are made, for build.json.
        derived: what it is derived for: `extend` or `purge`.

    Raises:
        CacheMismatch: when another run is making this key with other samples.
        StorageError: when the folder cannot be written.
    """
    of_blocks = ("block_devices", "block_token_budgets")
    made = {name: value for name, value in {**parent.build, **build}.items() if name not in of_blocks}
    recorded = {**made, "parents": [{"key": parent.key, "root": parent.root_digest}], "derived": derived}
    pool = [digest.tobytes() for digest in parent.reference_sha256]
    return CacheBuilder(home, fingerprint_of(parent, samples), recorded, samples, pool)


def copy_known_blocks(builder: CacheBuilder, known: KnownRows) -> list[int]:
    """Stage every block all of whose rows are known, and return the blocks that a teacher has to be asked for."""
    if builder.sealed:
        return []
    staged, asked = set(builder.complete_blocks()), []
    for block in sorted(set(range(len(builder.blocks))) - staged):
        keys = [sample.row_key for sample in builder.samples[slice(*builder.blocks[block])]]
        if all(key in known for key in keys):
            builder.write_block(block, join_rows([known.rows(key) for key in keys]), known.device(keys, ""))
        else:
            asked.append(block)
    return asked


def join_rows(rows: Sequence[Mapping[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """Return the rows of several samples end to end."""
    return {name: np.concatenate([one[name] for one in rows]) for name in rows[0]}


def without_person(cache: TeacherCache, person: str, home: Path) -> TeacherCache | None:
    """Return a sealed cache in `home` with all samples but those about a person; None when nobody else is left.

    Rows of a row key that others share stay for them. The cache it is made from stays where it is, for the caller to
    remove, unless it lies in `home` under the same key: then the new one replaces it.

    Raises:
        CacheMismatch: when another run is making this key with other samples.
        StorageError: when the folder cannot be written.
    """
    finish_replacements(home)
    cache = TeacherCache.open(cache.root)  # which may just have been replaced
    digest = person_digest(cache.lineage, person)
    samples = [sample for sample in samples_of(cache) if sample.person != digest]
    if not samples:
        return None
    builder = start_derived(home, cache, samples, {}, "purge")
    if not builder.sealed:
        return _copied(builder, cache)
    present = TeacherCache.open(builder.root)
    if not holds_person(present, person):
        return present
    others = [sample for sample in samples_of(present) if sample.person != digest]
    make_folder(_replacements(home))
    _copied(start_derived(_replacements(home), present, others, {}, "purge"), present)
    finish_replacements(home)
    return TeacherCache.open(present.root)


def finish_replacements(home: Path) -> None:
    """Put caches that replace one of the same key in its place, also after a crash in the middle of that."""
    for manifest in sorted(_replacements(home).glob("[0-9a-f]*/manifest.json")):
        new, old = manifest.parent, home / manifest.parent.name
        if old.exists():
            old.rename(home / f"{old.name}.{uuid.uuid4().hex}{_REMOVED}")
        new.rename(old)
        sync(home)
    for folder in home.glob(f"*{_REMOVED}"):
        shutil.rmtree(folder, ignore_errors=True)


def _replacements(home: Path) -> Path:
    return home / ".replacing"


def _copied(builder: CacheBuilder, parent: TeacherCache) -> TeacherCache:
    asked = copy_known_blocks(builder, KnownRows(parent))
    assert not asked, "a part of a cache has all its rows there"
    return TeacherCache.open(builder.assemble())
