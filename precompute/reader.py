"""Open a teacher cache, and decode its arrays once, checked.

Opening costs milliseconds: files, sizes and metadata (`layout.py`). Values are decoded when first asked for, and pass
the rules of `rows.py` before anyone sees them. The format is the docstring of `cache.py`, which exports this class;
which cache serves a request is `serving.py`'s.
"""

# N answer tokens, K kept, n samples, k references, M pool images, V vocabulary

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import zarr
from numpy.typing import NDArray

from ..data.example import canonical_json
from .identity import FINGERPRINT_SCHEMA, Fingerprint, is_fingerprint, lineage_of
from .layout import (
    JSON_CAP,
    MANIFEST_CAP,
    ZARR,
    ArrayPlan,
    CacheError,
    check_arrays,
    check_files,
    expect,
    parse_json,
    read_manifest,
)
from .rows import Rows, as_rows, row_problems


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
    def lineage(self) -> str:
        """What keys the digests of persons and tokens: the fingerprint without its rows."""
        return lineage_of(self.fingerprint)

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
