"""Making a teacher cache: blocks by anyone, in any order, any number of times; then one atomic seal.

    <key16>.building/            staging, shared by every process that makes this key
      fingerprint.json plan.json what is being made, and of which blocks: the same for all of them, or an error
      block-00007                the rows of one block, with a checksum
      block-00007.claim          who computes it: advice that saves work, and is never believed for long
      seal.claim                 who assembles the cache from all blocks
      token-budget.json ...      what makers agree on besides (`agreed.py`)
      clock                      touched to learn what time it is here
    <key16>.<uuid>.sealing/      the cache while it is assembled; renamed to <key16>/ when its manifest is on disk

Nothing here locks. A block is written under a temporary name, fsynced and renamed, so that it is whole or absent, and
its checksum is verified before use: a torn or flipped one is computed again. Two processes that write the same block
write the same content; of two that seal, the first rename wins and the other drops its copy. So a kill at any moment
costs at most the blocks in flight, and resume, Ray workers, a Slurm array and an impatient teammate need no agreement
beyond this folder. The same blocks give byte-identical Zarr files: one chunk rule, blosc without threads. What a kill
leaves at which moment, and what the next run makes of it, is the table of `docs/reliability.md`.

Block files are `blocks.py`'s, claims `claims.py`'s, the sealed folder `seal.py`'s, which blocks to compute
`schedule.py`'s, computing rows the engines', the format `cache.py`'s.
"""

# N answer tokens, R of a range of them, n samples, K kept

import contextlib
import errno
import itertools
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...data.example import canonical_json
from ..cache import CacheError, CacheMismatch, Fingerprint, fingerprint_key, row_problems
from ..reading.layout import ArrayPlan, array_plans
from ..reading.rows import as_rows
from .blocks import (
    MOST_HEADER,
    BlockHeader,
    StorageError,
    as_stored,
    disk_trouble,
    make_folder,
    makers,
    pack_block,
    read_header,
    sync,
    write_durably,
)
from .claims import CLAIM_SECONDS, drop_claim, file_system_now, renewer, renewing, take_claim
from .samples import Sample, blocks_of, check_samples, plan_blocks, plan_bytes, sample_arrays
from .seal import new_sealing_folder, publish, remove, staging_folder, sweep, write_cache

__all__ = ["CacheBuilder", "Sample", "StorageError", "plan_blocks", "sweep"]

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.2  # between two looks at what another process is doing


class CacheBuilder:
    """The staging folder of one cache: what to compute, what is there, and the seal.

    `samples` are sorted; block i is `samples[slice(*blocks[i])]`, with the rows of its samples end to end. Samples of
    one row key share a block, so that the teacher runs once for them. `build["engine"]`, once somebody has set it, is
    recorded with each block. `on_staged` is told each block written here, and its file.
    """

    def __init__(
        self, home: Path, fingerprint: Fingerprint, build: Mapping[str, Any], samples: Sequence[Sample],
        pool_sha256: Sequence[bytes] = (),
    ) -> None:  # fmt: skip
        """Create or join the staging folder of a cache.

        Raises:
            CacheMismatch: when the folder is in use for the same fingerprint and other samples.
            CacheError: when the cache's place is taken by something without a manifest.
            StorageError: when it cannot be written.
        """
        self.home, self.fingerprint, self.build = home, fingerprint, dict(build)
        self.samples, self.pool_sha256 = tuple(samples), tuple(pool_sha256)
        self.key = fingerprint_key(fingerprint)
        self.root = home / self.key[:16]
        self.staging = staging_folder(self.root)
        check_samples(self.samples, self.pool_sha256, fingerprint)
        self.blocks = blocks_of(self.samples)
        self._rows_before = [0, *itertools.accumulate(sample.num_rows for sample in self.samples)]
        num_rows = self._rows_before[-1]
        self.plans = array_plans(fingerprint, len(self.samples), num_rows, len(self.pool_sha256))
        self._first_rows = [self._rows_before[start] for start, _ in self.blocks]
        self._headers: dict[int, BlockHeader] = {}
        self.on_staged: Callable[[int, Path], object] = lambda _block, _path: None
        with disk_trouble(home, 0):
            self._refuse_half_a_cache()
            if not self.sealed:
                with self._vanishing_staging():
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

        A claim of a dead process of this host, or one not renewed for `timeout_s`, is taken over. Compute under
        `holding`, which renews the claim.

        Raises:
            StorageError: when the disk is full or failing.
        """
        path = self.block_path(block)
        if path.exists() or not self._take(self._claim_path(block), timeout_s):
            return False
        if path.exists():  # staged between the two
            drop_claim(self._claim_path(block))
            return False
        return True

    def holding(self, block: int, timeout_s: float = CLAIM_SECONDS) -> contextlib.AbstractContextManager[None]:
        """Renew the claim on a block while it is computed and staged, and drop it at the end, however that comes."""
        return renewing(self._claim_path(block), timeout_s)

    def write_block(
        self, block: int, arrays: Mapping[str, NDArray[Any]], device: str = "cpu", token_budget: int | None = None
    ) -> None:
        """Check the rows of a block and stage them, whole or not at all.

        Args:
            block: index into `blocks`.
            arrays: by name in the cache without `token/`: kept_id [N,K] of any integer type, kept_logprob [N,K] in the
                storage type, and tail_logprob, entropy, answer_logprob, sum_squares, disagreement [N].
            device: what computed them, for build.json.
            token_budget: in batches of how many tokens, for build.json; None where that plays no part.

        Raises:
            CacheError: when the rows are not distributions in the format's order.
            StorageError: when the disk is full or failing.
        """
        plans = self._block_plans(block)
        stored = {name: as_stored(name, arrays[name.removeprefix("token/")], plan) for name, plan in plans.items()}
        problems = row_problems(as_rows(stored), self.fingerprint["vocab_size"])
        if problems:
            raise CacheError(
                f"Block {block}: expected rows that are distributions, found: {'; '.join(problems)}. If the teacher "
                "yields NaN, compute it in float32; if rounding is at fault, store log-probabilities as float32."
            )
        content = pack_block(self.key, block, stored, device, str(self.build.get("engine", "")), token_budget)
        with disk_trouble(self.home, len(content)):
            self._stage(self.block_path(block), content)
        self.on_staged(block, self.block_path(block))

    def complete_blocks(self) -> list[int]:
        """Return the blocks that are staged and whole; a damaged one is removed with a warning, to be made again."""
        with disk_trouble(self.home, 0):
            for block in sorted(set(range(len(self.blocks))) - self._headers.keys()):
                if self.block_path(block).exists():
                    self._verify_block(block)
        return sorted(self._headers)

    def assemble(self, timeout_s: float = CLAIM_SECONDS) -> Path:
        """Seal the cache from its complete blocks and return its folder; when it is sealed already, only clean up.

        While another process is sealing it, this one waits; for `timeout_s` at most where that one has stopped.

        Raises:
            CacheError: when blocks are missing.
            StorageError: when the disk is full or failing; the blocks stay.
        """
        while not self.sealed:
            missing = sorted(set(range(len(self.blocks))) - set(self.complete_blocks()))
            if missing and not self.sealed:
                raise CacheError(
                    f"{self.staging}: expected all {len(self.blocks)} blocks, found {len(missing)} missing "
                    f"(first {missing[0]}). Run the same `viker precompute` again: it computes only those."
                )
            if not self._take(self._seal_claim, timeout_s):
                time.sleep(POLL_SECONDS)
                continue
            try:
                self._seal(renewer(self._seal_claim, timeout_s))
            finally:
                drop_claim(self._seal_claim)
        sweep(self.root)
        return self.root

    def _seal(self, renew: Callable[[], None]) -> None:
        raw_bytes = sum(math.prod(plan.shape) * np.dtype(plan.dtype).itemsize for plan in self.plans.values())
        build = {**self.build, **makers([self._headers[block] for block in range(len(self.blocks))])}
        with disk_trouble(self.home, raw_bytes):
            folder = new_sealing_folder(self.root)
            try:
                write_cache(folder, self.key, self.fingerprint, build, self.plans, self._rows_of_array, renew)
                publish(folder, self.root)
            except BaseException as error:
                remove(folder, self.root)
                if not self._was_overtaken(error):
                    raise

    def _was_overtaken(self, error: BaseException) -> bool:
        """Whether a seal failed because another process sealed, or took over after this one was stopped.

        A cache that is there is no such sign by itself: it may be ours, its name not yet fsynced.
        """
        if isinstance(error, FileNotFoundError):  # its folder was moved away, or blocks were: look again
            self._headers.clear()
            return True
        if isinstance(error, OSError) and error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            self._refuse_half_a_cache()
            return self.sealed
        return False

    @cached_property
    def _sample_arrays(self) -> dict[str, NDArray[Any]]:
        return sample_arrays(sorted(self.samples), self.pool_sha256)

    @cached_property
    def _source_rows(self) -> NDArray[np.int64]:
        """Where each row of the sealed cache lies among the rows of all blocks."""
        order = sorted(range(len(self.samples)), key=self.samples.__getitem__)
        length_n = np.array([self.samples[index].num_rows for index in order])
        first_n = np.array(self._rows_before)[order]
        return np.repeat(first_n - (length_n.cumsum() - length_n), length_n) + np.arange(length_n.sum())

    def _rows_of_array(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Return rows start:stop of one array; those of tokens are read from the blocks that hold them."""
        if not name.startswith("token/"):
            return self._sample_arrays[name][start:stop]
        source_R = self._source_rows[start:stop]
        rows = np.empty((len(source_R), *self.plans[name].shape[1:]), self.plans[name].dtype)
        block_R = np.searchsorted(self._first_rows, source_R, "right") - 1
        for block in np.unique(block_R).tolist():
            inside_R = block_R == block
            rows[inside_R] = self._block_array(block, name)[source_R[inside_R] - self._first_rows[block]]
        return rows

    def _block_array(self, block: int, name: str) -> NDArray[Any]:
        """Return one array of a staged block, mapped."""
        plan, path = self.plans[name], self.block_path(block)
        shape = (self.num_rows(block), *plan.shape[1:])
        try:
            return np.memmap(path, plan.dtype, "r", self._headers[block].starts[name], shape)
        except ValueError as error:
            del self._headers[block]
            raise CacheError(
                f"{path}: expected {math.prod(shape)} values of {name}, found fewer: it changed after it was checked. "
                "Run the same command again: it computes that block."
            ) from error

    def _refuse_half_a_cache(self) -> None:
        if self.root.exists() and not self.sealed:  # in this order: it may be sealed between the two
            raise CacheError(
                f"{self.root}: expected a complete cache or nothing, found a folder without manifest.json, which no "
                "viker leaves. Remove it, and run the same command again."
            )

    @contextlib.contextmanager
    def _vanishing_staging(self) -> Iterator[None]:
        """Take it for no error that the staging folder is gone, where another process sealed the cache just now."""
        try:
            yield
        except FileNotFoundError:
            if not self.sealed:
                raise

    def _join_staging(self) -> None:
        plan = plan_bytes(self.key, self.blocks, self.samples, self.pool_sha256)
        self.home.mkdir(parents=True, exist_ok=True)
        make_folder(self.staging)
        sync(self.home)
        path = self.staging / "plan.json"
        if not path.exists():
            self._stage(self.staging / "fingerprint.json", canonical_json(self.fingerprint))
            self._stage(path, plan)
        if path.exists() and path.read_bytes() != plan:
            raise CacheMismatch(
                f"{self.staging}: expected the plan of this run, found one of the same rows for other people, lengths, "
                "references or in another order. Let that run finish, or remove the folder to start anew."
            )
        self._remove_partial_files()

    def _remove_partial_files(self) -> None:
        """Remove what killed processes were writing; what one may be writing now is younger."""
        now = file_system_now(self.staging)
        for partial in self.staging.glob("*.partial"):
            with contextlib.suppress(FileNotFoundError):
                if now - partial.stat().st_mtime > CLAIM_SECONDS:
                    partial.unlink()

    def _stage(self, path: Path, content: bytes) -> None:
        """Write a file into the staging folder; it is no error when another process sealed and removed that."""
        try:
            write_durably(path, content)
        except FileNotFoundError:
            if not self.sealed:  # stopped for so long that another process took the unfinished file for a dead one's
                write_durably(path, content)

    def _take(self, claim: Path, timeout_s: float) -> bool:
        with self._vanishing_staging(), disk_trouble(self.home, 0):
            return not self.sealed and take_claim(claim, timeout_s)
        return False

    def _verify_block(self, block: int) -> None:
        path = self.block_path(block)
        try:
            self._headers[block] = read_header(path, self.key, block, self._block_plans(block))
        except FileNotFoundError:  # another process sealed, and removed the folder
            return
        except (OSError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, OSError) and error.errno != errno.EIO:
                raise
            logger.warning("%s is damaged (%s): it will be computed again", path, error)
            path.unlink(missing_ok=True)

    def _block_plans(self, block: int) -> dict[str, ArrayPlan]:
        plans = array_plans(self.fingerprint, 1, self.num_rows(block), 0)
        return {name: plan for name, plan in plans.items() if name.startswith("token/")}

    def most_bytes(self, block: int) -> int:
        """Return how large the file of a block can be."""
        sizes = (math.prod(plan.shape) * np.dtype(plan.dtype).itemsize for plan in self._block_plans(block).values())
        return sum(sizes) + MOST_HEADER

    def block_path(self, block: int) -> Path:
        """Return where the file of a block is, or will be."""
        return self.staging / f"block-{block:05d}"

    def _claim_path(self, block: int) -> Path:
        return self.staging / f"block-{block:05d}.claim"

    @property
    def _seal_claim(self) -> Path:
        return self.staging / "seal.claim"
