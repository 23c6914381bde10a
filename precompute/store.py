"""Writing a teacher cache: blocks by anyone, in any order, any number of times; then one atomic seal.

    <key16>.building/            staging, shared by every process that makes this key
      fingerprint.json plan.json what is being made, and of which blocks: the same for all of them, or an error
      block-00007                the rows of one block, with a checksum
      block-00007.claim          who computes it: advice that saves work, and is never believed for long
    <key16>.<uuid>.sealing/      the cache while it is assembled; renamed to <key16>/ when its manifest is on disk

Nothing here locks. A block is written under a temporary name, fsynced and renamed, so that it is whole or absent, and
its checksum is verified before use: a torn or flipped one is computed again. Two processes that write the same block
write the same content; of two that seal, the first rename wins and the other drops its copy. So a kill at any moment
costs at most the blocks in flight, and resume, Ray workers, a Slurm array and an impatient teammate need no agreement
beyond this folder. The same blocks give byte-identical Zarr files: one chunk rule, blosc without threads.

Block files and claims are `blocks.py`'s, computing rows the engines', scheduling `run.py`'s, the format `cache.py`'s.
"""

# N answer tokens, K kept, n samples, k references, M pool images

import hashlib
import itertools
import logging
import math
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numcodecs.blosc
import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec

from ..data.example import canonical_json
from .blocks import (
    BlockHeader,
    StorageError,
    disk_trouble,
    list_files,
    pack_block,
    read_header,
    sync,
    sync_tree,
    take_claim,
    write_durably,
)
from .cache import SCHEMA, CacheError, CacheMismatch, Fingerprint, TeacherCache, fingerprint_key, row_problems
from .layout import ZARR, ArrayPlan, array_plans, chunk_and_shard, manifest_bytes
from .rows import as_rows

__all__ = ["CacheBuilder", "Sample", "StorageError", "plan_blocks"]

logger = logging.getLogger(__name__)

ROWS_PER_BLOCK = 4096
LEAST_BLOCKS = 20  # of a cache with that many samples: a kill costs at most a twentieth
CLAIM_SECONDS = 3600.0


@dataclass(frozen=True, order=True, slots=True)
class Sample:
    """One sample of a cache, before its rows are known: identity, length, and the pool images it averages."""

    row_key: bytes
    person: bytes
    token_hash: int
    num_rows: int
    references: tuple[int, ...] = ()


def plan_blocks(lengths_n: Sequence[int]) -> list[tuple[int, int]]:
    """Cut samples into blocks of whole samples and return their (start, stop).

    A block has at most 4096 rows, unless one sample alone has more, and at most a twentieth of the samples.
    """
    most_samples = max(1, len(lengths_n) // LEAST_BLOCKS)
    blocks, start, rows = [], 0, 0
    for index, length in enumerate(lengths_n):
        if index > start and (rows + length > ROWS_PER_BLOCK or index - start == most_samples):
            blocks.append((start, index))
            start, rows = index, 0
        rows += length
    return [*blocks, (start, len(lengths_n))] if lengths_n else []


class CacheBuilder:
    """The staging folder of one cache: what to compute, what is there, and the seal.

    `samples` are sorted; block i is `samples[slice(*blocks[i])]`, with the rows of its samples end to end. Samples of
    one row key share a block, so that the teacher runs once for them.
    """

    def __init__(
        self,
        home: Path,
        fingerprint: Fingerprint,
        build: Mapping[str, Any],
        samples: Sequence[Sample],
        pool_sha256: Sequence[bytes] = (),
    ) -> None:
        """Create or join the staging folder of a cache.

        Raises:
            CacheMismatch: when the folder is in use for the same fingerprint and other samples.
            StorageError: when it cannot be written.
        """
        self.home, self.fingerprint, self.build = home, fingerprint, dict(build)
        self.samples, self.pool_sha256 = sorted(samples), tuple(pool_sha256)
        self.key = fingerprint_key(fingerprint)
        self.root, self.staging = home / self.key[:16], home / f"{self.key[:16]}.building"
        self._check_samples()
        groups = [list(group) for _, group in itertools.groupby(self.samples, key=lambda sample: sample.row_key)]
        bounds = [0, *itertools.accumulate(map(len, groups))]
        lengths = [sum(sample.num_rows for sample in group) for group in groups]
        self.blocks = [(bounds[start], bounds[stop]) for start, stop in plan_blocks(lengths)]
        self._rows_before = [0, *itertools.accumulate(sample.num_rows for sample in self.samples)]
        num_rows = self._rows_before[-1]
        self.plans = array_plans(fingerprint, len(self.samples), num_rows, len(self.pool_sha256))
        self._headers: dict[int, BlockHeader] = {}
        if not self.sealed:
            self._join_staging()

    @property
    def sealed(self) -> bool:
        """Whether the cache is complete, made by this process or another."""
        return (self.root / "manifest.json").exists()

    def num_rows(self, block: int) -> int:
        """Return how many rows a block has."""
        start, stop = self.blocks[block]
        return self._rows_before[stop] - self._rows_before[start]

    def claim(self, block: int, timeout_s: float = CLAIM_SECONDS) -> bool:
        """Return whether this process should compute a block: nobody has staged it or is at it.

        A claim of a dead process of this host, or one older than the timeout, is taken over.
        """
        if self._block_path(block).exists() or self.sealed:
            return False
        return take_claim(self.staging / f"block-{block:05d}.claim", timeout_s)

    def write_block(self, block: int, arrays: Mapping[str, NDArray[Any]], device: str = "cpu") -> None:
        """Check the rows of a block and stage them, whole or not at all.

        Args:
            block: index into `blocks`.
            arrays: by name in the cache without `token/`: kept_id [N,K] of any integer type, kept_logprob [N,K] in the
                storage type, and tail_logprob, entropy, answer_logprob, sum_squares, disagreement [N].
            device: what computed them, for build.json.

        Raises:
            CacheError: when the rows are not distributions in the format's order.
            StorageError: when the disk is full or failing.
        """
        plans = self._block_plans(block)
        stored = {name: _as_stored(name, arrays[name.removeprefix("token/")], plan) for name, plan in plans.items()}
        problems = row_problems(as_rows(stored), self.fingerprint["vocab_size"])
        if problems:
            raise CacheError(
                f"Block {block}: expected rows that are distributions, found: {'; '.join(problems)}. If the teacher "
                "yields NaN, compute it in float32; if rounding is at fault, store log-probabilities as float32."
            )
        content = pack_block(self.key, block, stored, device)
        try:
            with disk_trouble(self.home, len(content)):
                write_durably(self._block_path(block), content)
        except FileNotFoundError:
            if not self.sealed:  # otherwise another process had all blocks, and removed the folder
                raise

    def complete_blocks(self) -> list[int]:
        """Return the blocks that are staged and whole; a damaged one is removed with a warning, to be made again."""
        for block in range(len(self.blocks)):
            path = self._block_path(block)
            if block in self._headers or not path.exists():
                continue
            try:
                self._headers[block] = read_header(path, self.key, block, self._block_plans(block))
            except (ValueError, KeyError, TypeError) as error:
                logger.warning("%s is damaged (%s): it will be computed again", path, error)
                path.unlink(missing_ok=True)
        return sorted(self._headers)

    def assemble(self) -> Path:
        """Seal the cache from its complete blocks and return its folder; when it is sealed already, only clean up.

        Raises:
            CacheError: when blocks are missing.
            StorageError: when the disk is full or failing; the blocks stay.
        """
        if not self.sealed:
            missing = sorted(set(range(len(self.blocks))) - set(self.complete_blocks()))
            if missing:
                raise CacheError(
                    f"{self.staging}: expected all {len(self.blocks)} blocks, found {len(missing)} missing "
                    f"(first {missing[0]}). Run the same `viker precompute` again: it computes only those."
                )
            self._seal()
        self._remove_staging()
        return self.root

    def _seal(self) -> None:
        folder = self.home / f"{self.key[:16]}.{uuid.uuid4().hex}.sealing"
        raw_bytes = sum(math.prod(plan.shape) * np.dtype(plan.dtype).itemsize for plan in self.plans.values())
        try:
            with disk_trouble(self.home, raw_bytes):
                self._write_zarr(folder / ZARR)
                devices = [self._headers[block].device for block in range(len(self.blocks))]
                (folder / "build.json").write_bytes(canonical_json({**self.build, "block_devices": devices}))
                (folder / "fingerprint.json").write_bytes(canonical_json(self.fingerprint))
                sync_tree(folder)
                write_durably(folder / "manifest.json", manifest_bytes(self.key, list_files(folder)))
                folder.rename(self.root)
                sync(self.home)
        except Exception:
            shutil.rmtree(folder, ignore_errors=True)
            if not self.sealed:
                raise
            TeacherCache.open(self.root)  # another process was first; ours would have been the same rows

    def _write_zarr(self, path: Path) -> None:
        storage, objective = self.fingerprint["storage"], self.fingerprint["objective"]
        attributes = {
            "schema": SCHEMA,
            "key": self.key,
            "top_k": objective["top_k"],
            "vocab_size": self.fingerprint["vocab_size"],
            "storage": dict(storage),
        }
        zarr.create_group(store=str(path), zarr_format=3, attributes=attributes)
        for folder in sorted({name.partition("/")[0] for name in self.plans}):
            zarr.create_group(store=str(path), path=folder, zarr_format=3)
        for name, values in self._sample_arrays().items():
            _write_array(path, name, self.plans[name], values)
        for name in self.plans:
            if name.startswith("token/"):
                _write_array(path, name, self.plans[name], self._gather(name))

    def _sample_arrays(self) -> dict[str, NDArray[Any]]:
        samples = self.samples
        arrays: dict[str, NDArray[Any]] = {
            "sample/offset": np.array(self._rows_before, np.int64),
            "sample/key": _bytes_to_array([sample.row_key for sample in samples]),
            "sample/person": _bytes_to_array([sample.person for sample in samples]),
            "sample/token_hash": np.array([sample.token_hash for sample in samples], np.uint64),
        }
        if self.pool_sha256:
            arrays["sample/reference"] = np.array([sample.references for sample in samples], np.uint16)
            arrays["reference/sha256"] = _bytes_to_array(self.pool_sha256)
        return arrays

    def _gather(self, name: str) -> NDArray[Any]:
        """Read one array of all blocks into memory."""
        plan = self.plans[name]
        whole = np.empty(plan.shape, plan.dtype)
        for block, (start, stop) in enumerate(self.blocks):
            part = whole[self._rows_before[start] : self._rows_before[stop]]
            at = self._headers[block].starts[name]
            part[:] = np.fromfile(self._block_path(block), plan.dtype, part.size, offset=at).reshape(part.shape)
        return whole

    def _check_samples(self) -> None:
        pairs = {(sample.row_key, sample.person) for sample in self.samples}
        if not self.samples or min(sample.num_rows for sample in self.samples) < 1:
            raise CacheError("Expected at least one sample, each with an answer token; found none, or an empty answer.")
        assert len(pairs) == len(self.samples), "one sample a row key and person"
        assert all(len(key) == len(person) == 16 for key, person in pairs)
        assert bool(self.pool_sha256) == (self.fingerprint["pool"] is not None)
        k = self.fingerprint["draw"]["num_references"] if self.pool_sha256 else 0
        assert all(len(sample.references) == k for sample in self.samples)

    def _join_staging(self) -> None:
        samples = hashlib.sha256(repr([astuple(sample) for sample in self.samples]).encode()).hexdigest()
        pool = hashlib.sha256(b"".join(self.pool_sha256)).hexdigest()
        blocks = [list(block) for block in self.blocks]
        plan = canonical_json({"key": self.key, "blocks": blocks, "samples_sha256": samples, "pool_sha256": pool})
        with disk_trouble(self.home, len(plan)):
            self.staging.mkdir(parents=True, exist_ok=True)
            path = self.staging / "plan.json"
            if not path.exists():
                write_durably(self.staging / "fingerprint.json", canonical_json(self.fingerprint))
                write_durably(path, plan)
        if path.read_bytes() != plan:
            raise CacheMismatch(
                f"{self.staging}: expected the plan of this run, found one of the same rows for other people, lengths "
                "or references. Let that run finish, or remove the folder to start anew."
            )

    def _remove_staging(self) -> None:
        """Remove the staging folder and what interrupted seals left; other processes see it vanish at once."""
        trash = self.home / f"{self.key[:16]}.{uuid.uuid4().hex}.sealing"
        if self.staging.exists():
            self.staging.rename(trash)
        for folder in self.home.glob(f"{self.key[:16]}.*.sealing"):
            shutil.rmtree(folder, ignore_errors=True)

    def _block_plans(self, block: int) -> dict[str, ArrayPlan]:
        plans = array_plans(self.fingerprint, 1, self.num_rows(block), 0)
        return {name: plan for name, plan in plans.items() if name.startswith("token/")}

    def _block_path(self, block: int) -> Path:
        return self.staging / f"block-{block:05d}"


def _as_stored(name: str, array: NDArray[Any], plan: ArrayPlan) -> NDArray[Any]:
    """Return an array in its storage type, without changing a value that the order or the range depends on."""
    assert array.shape == plan.shape, f"{name}: {array.shape} is not {plan.shape}"
    if name == "token/kept_id":
        assert not array.size or 0 <= array.min() <= array.max() <= np.iinfo(plan.dtype).max, "ids of the vocabulary"
    assert name != "token/kept_logprob" or array.dtype == plan.dtype, "rows are ordered by stored value: cast first"
    return array.astype(plan.dtype, copy=False)


def _write_array(path: Path, name: str, plan: ArrayPlan, values: NDArray[Any]) -> None:
    """Write one array of the group whole, so that no shard is ever read back to be changed."""
    assert values.shape == plan.shape, f"{name}: {values.shape} is not {plan.shape}"
    dtype = np.dtype(plan.dtype)
    chunks, shards = chunk_and_shard(plan)
    numcodecs.blosc.use_threads = False  # threaded blosc output is not deterministic
    array = zarr.create_array(
        store=str(path),
        name=name,
        shape=plan.shape,
        dtype=dtype,
        chunks=chunks,
        shards=shards,
        filters=None,
        compressors=[BloscCodec(typesize=dtype.itemsize, cname="zstd", clevel=3, shuffle="bitshuffle"), Crc32cCodec()],
        fill_value=np.nan if dtype.kind == "f" else np.iinfo(dtype).max,
        zarr_format=3,
        config={"write_empty_chunks": True},
    )
    array[...] = values


def _bytes_to_array(digests: Sequence[bytes]) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(digests), np.uint8).reshape(len(digests), -1)
