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
    sample/key, person     uint8   [n,16]  row key, and digest of the person; sorted by the pair, no pair twice
    sample/token_hash      uint64  [n]     digest of the unexpanded ids: the alignment check
    sample/reference       uint16  [n,k]   the images averaged: indices into reference/sha256
    reference/sha256       uint8   [M,32]  of the encoded image bytes as stored in the pool
    token/kept_id          ids     [N,K]   uint16, or uint32 when V > 65535
    token/kept_logprob     logprobs[N,K]   float16 or float32; descending as stored, equal values by ascending id
    token/tail_logprob     float32 [N]     log of the mass outside kept: -inf when there is none (K = V), 0 when K = 0
    token/entropy          float32 [N]     of the whole row, over V
    token/answer_logprob   float32 [N]     log-probability of the answer's own token, kept or not
    token/sum_squares      float32 [N]     sum of squared probabilities
    token/disagreement     float16 [N]     H(mean) - mean H: Jensen-Shannon divergence of the references

Digests of persons and tokens are keyed by the *lineage*, the digest of the fingerprint without its rows: enough to
find and to align, not to read, and unchanged where rows are added (`extend`) or taken out (`purge`).
An array with an empty dimension is left out: K = 0 keeps scalars only, and without a pool there is no `reference`.
Probabilities of zero are floored at the smallest normal float32 (log -87.3), so kept values are always finite. Arrays
are sharded: chunks of 1024 rows (8192 where a row is one number), shards of 32768 (fewer where rows are wide or few),
all of whole rows. The codec chain is exactly this, and readers refuse any other: sharding_indexed with [bytes little,
blosc (zstd, bitshuffle, typesize the item's, clevel 0 to 9, blocksize at most 16 MiB), crc32c] inside, an index at the
end with [bytes little, crc32c], and the chunks end to end before it. The crc32c is there because neither Zarr nor blosc
notices a flipped bit; fill values are NaN and the largest integer, so that a hole cannot pass for data. A manifest has
at most 6 MiB, build.json 2, every other JSON file 1; a cache decodes to at most 24 MiB plus 100 times what is stored.

A flat axis with offsets because Zarr v3 has no settled ragged type; decoded once to memory because a random slice
costs 1 ms from Zarr and nothing from an array. A top-K and a tail bucket because KL on these K + 1 buckets is full KL
but for the tail's own shape, with an exact gradient at kept tokens. Kept ids reveal answers: a cache is as sensitive
as the forget set.

This file is the prose and the door: it exports what others may use and imports neither torch nor transformers. Reading
is `reader.py`'s, on what `untrusted.py`, `metadata.py` and `shards.py` let pass; layout `layout.py`'s; the values' own
rules `rows.py`'s; keys and identity `identity.py`'s; which cache serves whom `serving.py`'s; writing `store.py`'s;
saying all that is wrong `verify.py`'s.
"""

from ..data.artefact import cache_home
from .reading.identity import (
    FIELD_RULES,
    FINGERPRINT_SCHEMA,
    Comparison,
    Fingerprint,
    compare,
    fingerprint_key,
    lineage_of,
    make_fingerprint,
    person_digest,
    row_key,
    token_hash,
)
from .reading.layout import SCHEMA, CacheError, CacheMismatch, RowsNotCovered
from .reading.reader import TeacherCache
from .reading.rows import Rows, row_problems
from .reading.serving import find, require_serves, serving_caches

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
    "lineage_of",
    "make_fingerprint",
    "person_digest",
    "require_serves",
    "row_key",
    "row_problems",
    "serving_caches",
    "token_hash",
]
