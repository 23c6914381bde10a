"""Open a teacher cache, and decode its arrays once, checked.

Opening costs milliseconds: the manifest, all sizes, and the small files with their digests (`untrusted.py`,
`metadata.py`). Arrays are decoded when first asked for, against their digests too (`shards.py`), and pass the rules of
`rows.py` before anyone sees them. Whatever is wrong is a CacheError. The format is the docstring of `cache.py`, which
exports this class; which cache serves a request is `serving.py`'s.
"""

# N answer tokens, K kept, n samples, k references, M pool images, V vocabulary

import hashlib
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ...data.example import canonical_json
from .identity import FINGERPRINT_SCHEMA, Fingerprint, is_fingerprint, lineage_of, rows_digest
from .layout import FILE_CAP, ZARR, CacheError, ListedFile, expect, plain_files, refusal, root_digest
from .metadata import StoredArray, check_arrays
from .rows import Rows, as_rows, row_problems
from .shards import read_array
from .untrusted import BUILD_CAP, JSON_CAP, json_value, read_listed, read_manifest

WIDENED = {"token/kept_logprob": "float32", "token/disagreement": "float32"}  # once, so that training need not


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
    plans: dict[str, StoredArray]
    files: dict[str, ListedFile]

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Open a complete cache after the quick checks.

        Raises:
            CacheError: when it is incomplete, damaged in a way that sizes and small digests show, or hostile.
        """
        root = Path(path)
        key, files = read_manifest(root)
        first = next(file_problems(root, files), None)
        if first is not None:
            raise first
        fingerprint = _read_fingerprint(root, key, files)
        build = json_value(root / "build.json", read_listed(root, "build.json", files, BUILD_CAP))
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
            files=files,
        )

    @cached_property
    def lineage(self) -> str:
        """What keys the digests of persons and tokens: the fingerprint without its rows."""
        return lineage_of(self.fingerprint)

    @cached_property
    def offset(self) -> NDArray[np.int64]:
        """Bounds of each sample's rows, int64 [n+1]."""
        offset = self._decode("sample/offset")
        sound = offset[0] == 0 and offset[-1] == self.num_rows and bool((offset[1:] > offset[:-1]).all())
        expect(sound, self.root, f"sample/offset increasing from 0 to {self.num_rows}", offset)
        return offset

    @cached_property
    def sample_keys(self) -> tuple[bytes, ...]:
        """The row key and person digest of each sample, 32 bytes, sorted."""
        raw = np.concatenate([self._decode("sample/key"), self._decode("sample/person")], axis=1).tobytes()
        pairs = [raw[start : start + 32] for start in range(0, len(raw), 32)]
        ascending = all(pair < after for pair, after in itertools.pairwise(pairs))
        expect(ascending, self.root, "samples sorted by key and person, none twice", "another order")
        return tuple(pairs)

    @cached_property
    def row_keys(self) -> frozenset[bytes]:
        """The distinct row keys, which are those the fingerprint names."""
        keys = frozenset(pair[:16] for pair in self.sample_keys)
        digest, wanted = rows_digest(keys), self.fingerprint["rows"]
        expect(digest == wanted, self.root, f"row keys of digest {wanted} in sample/key", digest)
        return keys

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
        return root_digest(self.files)

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
        dtype = WIDENED.get(name, self.plans[name].dtype)
        return read_array(self.root, name, self.plans[name], self.files, dtype)


def file_problems(root: Path, files: Mapping[str, ListedFile]) -> Iterator[CacheError]:
    """Yield an error for each file that is missing, of another size, too large, or in the arrays and not listed.

    Raises:
        CacheError: when the directory holds a link or a special file, or cannot be listed.
    """
    found = plain_files(root)
    for name, file in files.items():
        size = found.get(name)
        if file.size > most_bytes(name):
            yield refusal(root / name, f"at most {most_bytes(name)} bytes", file.size)
        elif size != file.size:
            found_bytes = "no file" if size is None else f"{size} bytes"
            yield refusal(root / name, f"{file.size} bytes", f"{found_bytes} (manifest.json lists {file.size})")
    for name in sorted(found.keys() - files.keys()):
        if name.startswith(f"{ZARR}/"):
            yield refusal(root / name, "no file in the arrays that the manifest does not list", "this one")


def most_bytes(name: str) -> int:
    """Return how large a file of a cache may be, by what its name says it is."""
    if name == "build.json":
        return BUILD_CAP
    return JSON_CAP if name.endswith(".json") else FILE_CAP


def _read_fingerprint(root: Path, key: str, files: Mapping[str, ListedFile]) -> Fingerprint:
    path = root / "fingerprint.json"
    content = read_listed(root, "fingerprint.json", files, JSON_CAP)
    digest = hashlib.sha256(content).hexdigest()
    expect(digest == key, path, f"sha256 {key}, which is the key in manifest.json", digest)
    fingerprint: Fingerprint = json_value(path, content)
    expect(is_fingerprint(fingerprint), path, FINGERPRINT_SCHEMA, fingerprint)
    expect(content == canonical_json(fingerprint), path, "canonical JSON", "other bytes for the same values")
    return fingerprint
