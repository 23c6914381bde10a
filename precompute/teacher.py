"""Find a cache, or compute it: what `viker precompute` does once it has decided to look.

Splitting this from the command keeps the decision to skip free of torch. Blocks are computed here, one after the other,
or by workers (`workers.py`); either way they are claimed and staged by this process. The teacher is loaded when the
first block asks for rows, so that a part with nothing left to compute loads none. What is asked for is `ask.py`'s,
how the teacher is loaded `open_teacher.py`'s.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from ..data.artefact import library_versions
from ..data.stopping import interrupted_by_sigterm
from ..models.load import pick_device
from .ask import Asked, ask
from .cache import CacheError, TeacherCache, cache_home
from .engines.rows import Pending, Probabilities, RowsOf
from .open_teacher import Teacher, device_name, open_teacher
from .run import compute_blocks, count_pairs, start_builder
from .same_bytes import as_agreed
from .sharing.addresses import open_store
from .sharing.lookup import look_up, require_open, take
from .sharing.pointer import record_making
from .sharing.staging import RemoteStaging
from .sharing.stores import Store
from .token_budget import TOKEN_BUDGET, Resizable, TokenBudget, keep_budget, probe_budget, settle_budget
from .workers import compute_on_workers
from .writing.derive import NOTHING_KNOWN, KnownRows
from .writing.hand_out import blocks_of_part
from .writing.schedule import EVERYTHING, Part
from .writing.store import CacheBuilder

# Options by which the source, the model and the pool are found again; never whom somebody wants forgotten.
_RECORDED = ("data", "data_revision", "ratio", "split", "revision", "processor", "pool")


class Staged(NamedTuple):
    """The blocks of a cache after this process computed some, and what that took."""

    builder: CacheBuilder
    num_pairs: int
    seconds: float
    facts: dict[str, Any]


def find_or_compute(
    options: Mapping[str, Any], *, named: frozenset[str], announce: Callable[[str], None]
) -> tuple[TeacherCache, dict[str, Any]] | None:
    """Return the cache asked for and facts for provenance; None under --dry-run, and after a part but the last."""
    asked = ask(options, announce)
    request = asked.request
    announce(f"precompute: key {request.key[:16]}, {len(request.works)} examples, {len(request.by_row_key)} distinct")
    store = _remote(request.key, options["push"], announce)
    found = look_up(cache_home(), store, request.key, request.fingerprint, named, request.by_row_key.keys(), announce)
    if options["dry_run"] and (found is None or found.cache is None):
        place = cache_home() / request.key[:16]
        announce(f"precompute: would {'compute it' if found is None else f'pull what was {found.how}'} into {place}")
        return None
    existing = None if found is None else take(found, cache_home(), store, announce)
    if existing is not None and found is not None:
        return existing, {
            **facts_of(asked, options), "how": f"{found.how}, nothing computed", "pairs": 0, "engine": None,
        }  # fmt: skip
    builder = start_builder(cache_home(), request, asked.intervention, _build(options, asked))
    remote = RemoteStaging(store, builder) if store is not None and options["stage_in_remote"] else None
    staged = _stage(options, asked, builder, NOTHING_KNOWN, options["part"], remote, announce)
    if _is_whole(builder, remote):
        return _seal(staged, NOTHING_KNOWN)
    cache = None if remote is None else remote.published()
    if cache is not None:
        return cache, {**staged.facts, "how": "sealed by another part", "pairs": staged.num_pairs}
    so_far, blocks = len(builder.complete_blocks()), len(builder.blocks)
    announce(f"precompute: {so_far} of {blocks} blocks staged; the part that finishes last seals")
    return None


def _is_whole(builder: CacheBuilder, remote: RemoteStaging | None) -> bool:
    """Whether every block is here, fetched where other machines staged it."""
    if remote is not None and not builder.sealed:
        remote.gather()
    return builder.sealed or len(builder.complete_blocks()) == len(builder.blocks)


def _remote(key: str, must_push: bool, announce: Callable[[str], None]) -> Store | None:
    """Return the remote, if one is named and can be read.

    Raises:
        CacheError: it cannot be read, or the key was purged there, and the rows are to be published.
    """
    address = os.environ.get("VIKER_CACHE_REMOTE")
    if not address:
        return None
    try:
        store = open_store(address)
        if must_push:
            require_open(store, key)
        return store
    except CacheError as error:
        if must_push:
            raise
        announce(f"precompute: WARNING: going on without the remote: {error}")
        return None


def facts_of(asked: Asked, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what provenance says of the inputs."""
    return {
        "model_commit": asked.checkpoint.commit,
        "data_commit": asked.source.commit,
        "device": pick_device(options["device"]),
    }


def compute(
    options: Mapping[str, Any], asked: Asked, start: Callable[[Mapping[str, Any]], CacheBuilder], known: KnownRows,
    announce: Callable[[str], None],
) -> tuple[TeacherCache, dict[str, Any]]:  # fmt: skip
    """Load the teacher, compute the blocks of the builder that `start` returns for a build.json, and seal the cache."""
    return _seal(_stage(options, asked, start(_build(options, asked)), known, EVERYTHING, None, announce), known)


def _stage(
    options: Mapping[str, Any], asked: Asked, builder: CacheBuilder, known: KnownRows, part: Part,
    remote: RemoteStaging | None, announce: Callable[[str], None],
) -> Staged:  # fmt: skip
    facts, started = facts_of(asked, options), time.monotonic()
    agreed = as_agreed(builder, options["deterministic"], facts["device"], announce)
    with interrupted_by_sigterm(), agreed as deterministic:
        options = {**options, "deterministic": deterministic}
        if remote is not None:
            remote.share(blocks_of_part(builder, part))
        if options.get("workers") is not None:
            num_pairs = compute_on_workers(options["workers"], options, asked.request, builder, part, announce)
        else:
            teacher = _WhenNeeded(options, asked, facts["device"], builder, announce)
            num_pairs, spent = compute_blocks(
                builder, asked.request, asked.intervention, asked.encoder, teacher, device_name(facts["device"]), known,
                part, teacher.budget,
            )  # fmt: skip
            facts |= {"spent": spent.without(teacher.seconds)} if num_pairs else {}
    engine = builder.build.get("engine") if num_pairs else None
    return Staged(builder, num_pairs, time.monotonic() - started, {**facts, "engine": engine})


def _build(options: Mapping[str, Any], asked: Asked) -> dict[str, Any]:
    """Return build.json but for what only computing tells."""
    return {
        "schema": "viker/build/1",
        "model": asked.checkpoint.spec,
        "model_commit": asked.checkpoint.commit,
        **{name: options[name] for name in _RECORDED},
        "libraries": library_versions(),
    }


class _WhenNeeded:
    """The rows of a teacher that is loaded when rows are first asked for; the builder is told its engine.

    `budget` is its token budget once it is loaded, `seconds` what loading took.
    """

    def __init__(
        self, options: Mapping[str, Any], asked: Asked, device: str, builder: CacheBuilder,
        announce: Callable[[str], None],
    ) -> None:  # fmt: skip
        self._options, self._asked, self._device = options, asked, device
        self._builder, self._announce = builder, announce
        self._teacher: Teacher | None = None
        self.budget, self.seconds = TokenBudget(announce, partial(keep_budget, builder)), 0.0

    def __call__(self, pending: Sequence[Pending]) -> Iterator[Probabilities]:
        """Return the averaged distributions of each pending example, in order."""
        if not pending:
            return iter(())
        if self._teacher is None:
            started = time.monotonic()
            self._teacher = self._open(pending)
            self.seconds = time.monotonic() - started
        return self._teacher.rows_of(pending)

    def _open(self, pending: Sequence[Pending]) -> Teacher:
        asked, options = self._asked, self._options
        # The self-check takes what is at hand: the encoder belongs to the thread that reads the next block.
        teacher = open_teacher(options, asked.checkpoint, asked.encoder, pending[0], self._device, self._announce)
        self._builder.build["engine"] = teacher.engine
        if teacher.resizable is not None:
            is_constant = options["deterministic"] or self._device == "cpu"
            choose = partial(self._choose_budget, teacher.resizable, teacher.rows_of, pending)
            teacher.resizable.token_budget = settle_budget(
                self._builder, options["token_budget"], (lambda: TOKEN_BUDGET) if is_constant else choose,
                self._announce,
            )  # fmt: skip
            self.budget.engine = teacher.resizable
        return teacher

    def _choose_budget(self, engine: Resizable, rows_of: RowsOf, pending: Sequence[Pending]) -> int:
        num_pairs = count_pairs(self._builder.samples, NOTHING_KNOWN, self._builder.fingerprint)
        return probe_budget(engine, rows_of, pending, num_pairs, self._announce)


def _seal(staged: Staged, known: KnownRows) -> tuple[TeacherCache, dict[str, Any]]:
    builder, num_pairs = staged.builder, staged.num_pairs
    cache = TeacherCache.open(builder.assemble())
    if num_pairs:
        all_pairs = count_pairs(builder.samples, known, builder.fingerprint)  # other processes may have run some
        record_making(cache, round(staged.seconds * all_pairs / num_pairs, 1))
    return cache, {**staged.facts, "how": f"{num_pairs} pairs computed", "pairs": num_pairs}
