"""The teacher cache: what `precompute` writes once and everything that learns reads. THE SEAM.

Format `viker/teacher-cache/1`. A cache is one directory, immutable once `manifest.json` exists:

    <key16>/               first 16 hex digits of the key = sha256 of fingerprint.json
      manifest.json        written last: {schema, key, files: [{path, size, sha256}] by path, root_sha256}, where
                           root_sha256 is over the sorted lines "sha256  path"; canonical JSON and a newline
      fingerprint.json     what the rows mean: canonical JSON without floats, hashed into the key (`identity.py`)
      build.json           how they were made: sources, versions, and the device of each block; not hashed
      cache.zarr/          Zarr v3 group; its attributes repeat schema, key, top_k, vocab_size and the storage dtypes

A *row* is the teacher's distribution at one answer token; rows of all samples lie end to end on one flat axis.
n samples, N answer tokens, K kept, k references a sample, M images of the pool, V vocabulary:

    sample/offset          int64   [n+1]   sample i owns rows offset[i]:offset[i+1]; strictly increasing, 0 to N
    sample/key, person     uint8   [n,16]  row key, and keyed digest of the person; sorted by the pair, no pair twice
    sample/token_hash      uint64  [n]     keyed digest of the unexpanded ids: the alignment check
    sample/reference       uint16  [n,k]   the images averaged: indices into reference/sha256
    reference/sha256       uint8   [M,32]  of the encoded image bytes as stored in the pool
    token/kept_id          ids     [N,K]   uint16, or uint32 when V > 65535
    token/kept_logprob     logprobs[N,K]   float16 or float32; descending as stored, equal values by ascending id
    token/tail_logprob     float32 [N]     log of the mass outside kept: -inf when there is none (K = V), 0 when K = 0
    token/entropy          float32 [N]     of the whole row, over V
    token/answer_logprob   float32 [N]     log-probability of the answer's own token, kept or not
    token/sum_squares      float32 [N]     sum of squared probabilities
    token/disagreement     float16 [N]     H(mean) - mean H: Jensen-Shannon divergence of the references

An array with an empty dimension is left out: K = 0 keeps scalars only, and without a pool there is no `reference`.
Probabilities of zero are floored at the smallest normal float32 (log -87.3), so kept values are always finite. Arrays
are sharded: chunks of 1024 rows, shards of 32768 (fewer where rows are wide or few), blosc-zstd-bitshuffle and crc32c
inside, because neither Zarr nor blosc notices a flipped bit; fill values are NaN and the largest integer, so that a
hole cannot pass for data.

A flat axis with offsets because Zarr v3 has no settled ragged type; decoded once to memory because a random slice
costs 1 ms from Zarr and nothing from an array. A top-K and a tail bucket because KL on these K + 1 buckets is full KL
but for the tail's own shape, with an exact gradient at kept tokens. Kept ids reveal answers: a cache is as sensitive
as the forget set. Writing is `store.py`'s; checksums of the large files `verify.py`'s; layout and hostile input
`layout.py`'s; the values' own rules `rows.py`'s; keys and identity `identity.py`'s. The last three export through this
file, which imports neither torch nor transformers.
"""

# N answer tokens, K kept, n samples, k references, M pool images, V vocabulary

import hashlib
import logging
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import zarr
from numpy.typing import NDArray

from ..data.artefact import cache_home
from ..data.example import canonical_json
from .identity import (
    FIELD_RULES,
    FINGERPRINT_SCHEMA,
    Comparison,
    Fingerprint,
    Names,
    compare,
    fingerprint_key,
    is_fingerprint,
    make_fingerprint,
    person_digest,
    row_key,
    show_differences,
    token_hash,
)
from .layout import (
    JSON_CAP,
    MANIFEST_CAP,
    SCHEMA,
    ZARR,
    ArrayPlan,
    CacheError,
    CacheMismatch,
    RowsNotCovered,
    check_arrays,
    check_files,
    expect,
    parse_json,
    read_manifest,
)
from .rows import Rows, as_rows, row_problems

__all__ = [
    "FIELD_RULES",
    "FINGERPRINT_SCHEMA",
    "SCHEMA",
    "CacheError",
    "CacheMismatch",
    "Comparison",
    "Fingerprint",
    "Rows",
    "RowsNotCovered",
    "TeacherCache",
    "cache_home",
    "compare",
    "find",
    "fingerprint_key",
    "make_fingerprint",
    "person_digest",
    "require_serves",
    "row_key",
    "row_problems",
    "serving_caches",
    "token_hash",
]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False, kw_only=True)
class TeacherCache:
    """A cache whose files, sizes and metadata were checked; values are decoded and checked when first read."""

    root: Path
    key: str
    fingerprint: Fingerprint
    build: dict[str, Any]
    num_samples: int
    num_rows: int
    top_k: int
    vocab_size: int
    plans: dict[str, ArrayPlan]

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Open a complete cache after the quick checks.

        Raises:
            CacheError: when it is incomplete, damaged in a way that sizes and small digests show, or hostile.
        """
        root = Path(path)
        key, files = read_manifest(root)
        check_files(root, files)
        raw, fingerprint = parse_json(root / "fingerprint.json", JSON_CAP)
        digest = hashlib.sha256(raw).hexdigest()
        expect(digest == key and raw == canonical_json(fingerprint), root / "fingerprint.json", f"sha256 {key}", digest)
        expect(is_fingerprint(fingerprint), root / "fingerprint.json", FINGERPRINT_SCHEMA, fingerprint)
        _, build = parse_json(root / "build.json", MANIFEST_CAP)
        expect(isinstance(build, dict), root / "build.json", "an object", type(build))
        plans = check_arrays(root, fingerprint, files)
        return cls(
            root=root,
            key=key,
            fingerprint=fingerprint,
            build=build,
            num_samples=plans["sample/key"].shape[0],
            num_rows=plans["token/entropy"].shape[0],
            top_k=fingerprint["objective"]["top_k"],
            vocab_size=fingerprint["vocab_size"],
            plans=plans,
        )

    @cached_property
    def offset(self) -> NDArray[np.int64]:
        """Bounds of each sample's rows, int64 [n+1]."""
        offset = self._decode("sample/offset")
        sound = offset[0] == 0 and offset[-1] == self.num_rows and bool((np.diff(offset) > 0).all())
        expect(sound, self.root, f"sample/offset increasing from 0 to {self.num_rows}", offset)
        return offset

    @cached_property
    def sample_keys(self) -> tuple[bytes, ...]:
        """The row key and person digest of each sample, 32 bytes, sorted."""
        raw = np.concatenate([self._decode("sample/key"), self._decode("sample/person")], axis=1).tobytes()
        pairs = [raw[start : start + 32] for start in range(0, len(raw), 32)]
        expect(pairs == sorted(set(pairs)), self.root, "samples sorted by key and person, none twice", "another order")
        return tuple(pairs)

    @cached_property
    def row_keys(self) -> frozenset[bytes]:
        """The distinct row keys."""
        return frozenset(pair[:16] for pair in self.sample_keys)

    @cached_property
    def token_hash(self) -> NDArray[np.uint64]:
        """Keyed digest of each sample's ids, uint64 [n]."""
        return self._decode("sample/token_hash")

    @cached_property
    def reference(self) -> NDArray[np.uint16]:
        """Pool images of each sample, uint16 [n,k]; [n,0] without a pool."""
        reference_nk = self._decode("sample/reference")
        pool_size = len(self.reference_sha256)
        expect(
            not (reference_nk >= pool_size).any(),
            self.root,
            f"references below {pool_size}",
            reference_nk.max(initial=0),
        )
        return reference_nk

    @cached_property
    def reference_sha256(self) -> NDArray[np.uint8]:
        """Digests of the pool's images, uint8 [M,32]; [0,32] without a pool."""
        return self._decode("reference/sha256")

    @cached_property
    def root_digest(self) -> str:
        """Digest over the digests of all files: what pins these very bytes."""
        return str(parse_json(self.root / "manifest.json", MANIFEST_CAP)[1]["root_sha256"])

    def find_sample(self, key: bytes, person: bytes) -> int | None:
        """Return the index of the sample with a row key and a person digest, or None."""
        return self._index.get(key + person)

    def find_row(self, key: bytes) -> int | None:
        """Return the index of a sample with a row key, whoever it is about, or None; equal keys have equal rows."""
        return self._row_index.get(key)

    def rows_of(self, sample_index: int) -> Rows:
        """Return views of one sample's rows; the first call decodes the whole cache."""
        start, stop = self.offset[sample_index : sample_index + 2]
        return self.load().slice(int(start), int(stop))

    def load(self) -> Rows:
        """Return all rows, decoded once and kept.

        Raises:
            CacheError: when an array does not decode, or its values break the format.
        """
        return self._rows

    @cached_property
    def _rows(self) -> Rows:
        rows = as_rows({name: self._decode(name) for name in self.plans if name.startswith("token/")})
        problems = row_problems(rows, self.vocab_size)
        expect(not problems, self.root, "rows that are distributions", "; ".join(problems))
        return rows

    @cached_property
    def _index(self) -> dict[bytes, int]:
        return {pair: index for index, pair in enumerate(self.sample_keys)}

    @cached_property
    def _row_index(self) -> dict[bytes, int]:
        return {pair[:16]: index for index, pair in enumerate(self.sample_keys)}

    def _decode(self, name: str) -> NDArray[Any]:
        """Return an array, or an empty one where the format leaves it out."""
        if name not in self.plans:
            rows = {"sample": self.num_samples, "token": self.num_rows, "reference": 0}[name.partition("/")[0]]
            return np.empty((rows, 32 if rows == 0 else 0), np.uint8 if rows == 0 else np.uint16)
        try:
            return np.asarray(zarr.open_array(store=str(self.root / ZARR / name), mode="r", zarr_format=3)[...])
        except Exception as error:  # hostile bytes fail in as many ways as there are codecs
            raise CacheError(
                f"{self.root}: expected {name} to decode, found {error}. The cache is damaged: fetch it again or "
                "rebuild it with `viker precompute`."
            ) from error


def require_serves(
    cache: TeacherCache, wanted: Fingerprint, named: Names, row_keys: Collection[bytes], overridden: Names = ()
) -> Comparison:
    """Return how a cache differs from what is wanted once it is known to serve.

    Raises:
        CacheMismatch: listing every field whose rule (`FIELD_RULES`) forbids the difference.
        RowsNotCovered: when rows are missing.
    """
    refusal = _refusal(cache, wanted, named, row_keys, overridden)
    if refusal is not None:
        raise refusal
    return compare(cache.fingerprint, wanted, named, overridden)


def serving_caches(
    home: Path, wanted: Fingerprint, named: Names, row_keys: Collection[bytes], overridden: Names = ()
) -> list[TeacherCache]:
    """Return every complete cache in a folder that serves by the rules; an exact one comes first."""
    caches = _open_all(home)
    serving = [cache for cache in caches if _refusal(cache, wanted, named, row_keys, overridden) is None]
    return sorted(serving, key=lambda cache: cache.fingerprint != wanted)


def find(
    home: Path, wanted: Fingerprint, named: Names, row_keys: Collection[bytes], overridden: Names = ()
) -> TeacherCache:
    """Return the one cache in a folder that serves: the exact one, else the only one.

    Raises:
        CacheMismatch: when none serves, or several do and none is exact.
        RowsNotCovered: when caches of the right thing lack rows.
    """
    serving = serving_caches(home, wanted, named, row_keys, overridden)
    if len(serving) == 1 or (serving and serving[0].fingerprint == wanted):
        return serving[0]
    if serving:
        places = "\n".join(f"  {cache.root}" for cache in serving)
        raise CacheMismatch(f"Expected one teacher cache that serves, found several. Name one by `--cache`:\n{places}")
    refusals = [_refusal(cache, wanted, named, row_keys, overridden) for cache in _open_all(home)]
    uncovered = [str(refusal) for refusal in refusals if isinstance(refusal, RowsNotCovered)]
    if uncovered:
        raise RowsNotCovered("\n".join(uncovered))
    reasons = "\n".join(map(str, refusals)) or "It holds no complete cache: make one with `viker precompute`."
    raise CacheMismatch(f"Expected a teacher cache that serves in {home}, found none.\n{reasons}")


def _open_all(home: Path) -> list[TeacherCache]:
    """Open every complete cache in a folder; a damaged one is left out, with a warning."""
    caches = []
    for manifest in sorted(home.glob("[0-9a-f]*/manifest.json")):
        if "." in manifest.parent.name:  # being sealed, or being removed
            continue
        try:
            caches.append(TeacherCache.open(manifest.parent))
        except CacheError as error:
            logger.warning("left out of the search: %s", error)
    return caches


def _refusal(
    cache: TeacherCache, wanted: Fingerprint, named: Names, row_keys: Collection[bytes], overridden: Names
) -> CacheError | None:
    """Return why a cache does not serve, if it does not."""
    mismatches = compare(cache.fingerprint, wanted, named, overridden).mismatches
    if mismatches:
        return CacheMismatch(
            f"{cache.root} was made for something else:\n{show_differences(mismatches)}\n"
            "Ask for what it holds, or make a cache of what you ask with `viker precompute`."
        )
    missing = len(set(row_keys) - cache.row_keys)
    if missing:
        return RowsNotCovered(
            f"{cache.root}: expected all {len(set(row_keys))} row keys asked for, found {missing} of them missing. "
            "Run `viker precompute` for all of them: it makes another cache."
        )
    return None
