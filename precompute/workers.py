"""Blocks computed by several processes, here or on a Ray cluster: `viker precompute --workers N | ray://HOST:PORT`.

This process claims and stages every block (`writing/hand_out.py`); Ray actors, each with a teacher of its own
(`worker.py`), compute them and send the rows back. So nodes need the inputs and no disk in common with this one, and a
kill anywhere loses the blocks in flight, no others.

Who dies is replaced here rather than by Ray: a new worker is started wherever a node has room for one (`cluster.py`),
also on one that joins late, and gets a block once its teacher is loaded; the blocks of the dead go to whoever is free.
A block under which three workers died on nodes that live is not tried again, for it would kill the next one too. On CPU
all workers use as many threads as this process would, and blocks have the same bytes whoever computes them.
"""

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..data.artefact import library_versions
from ..data.example import DataError
from ..data.stopping import interrupted_by_sigterm
from .cache import CacheMismatch
from .cluster import Cluster, connected, first_line
from .run import Request, count_pairs, samples_of_block
from .token_budget import TOKEN_BUDGET, keep_budget, settle_budget
from .worker import Opened, Refused, Rows, Worker
from .writing.derive import NOTHING_KNOWN
from .writing.hand_out import Computed, blocks_of_part, hand_out_blocks
from .writing.schedule import Part
from .writing.store import CacheBuilder

AHEAD = 2  # blocks a worker has at once: it reads the second while it computes the first
MOST_DEATHS = 3
NO_NODE_SECONDS = 120.0
_PATHS = ("data", "model", "processor", "pool", "chat_template")

Announce = Callable[[str], None]


def compute_on_workers(
    asked: int | str,
    options: Mapping[str, Any],
    request: Request,
    builder: CacheBuilder,
    part: Part,
    announce: Announce,
) -> int:
    """Have workers compute every block of a part that nobody has staged; return the pairs run.

    Args:
        asked: how many workers to start here, or the address of a Ray cluster, all of which is used.
        options: of `viker precompute`, which every worker follows on its node.
        request: what is asked; a worker whose inputs name other rows is refused.
        builder: the cache in the making.
        part: (i, N): only blocks whose number leaves i when divided by N.
        announce: told of workers that come and go, and of what they warn of.

    Raises:
        DataError: Ray is not installed, the cluster cannot be reached, no node has room for a worker, a node lacks the
            inputs, or workers keep dying.
        CacheMismatch: a node has other inputs.
    """
    if builder.sealed or set(blocks_of_part(builder, part)) <= set(builder.complete_blocks()):
        return 0

    threads = torch.get_num_threads()
    with connected(asked, options["device"], threads, announce) as cluster:
        arguments = (worker_options(options), request.fingerprint, threads, cluster.device)
        constant = TOKEN_BUDGET if options["deterministic"] or cluster.device == "cpu" else None
        workers = RayWorkers(cluster, arguments, builder, options["token_budget"], constant, announce)
        with contextlib.closing(workers), interrupted_by_sigterm():  # once more: Ray has a handler of its own
            return hand_out_blocks(builder, workers, lambda block: _num_pairs(builder, block), part=part)


def _num_pairs(builder: CacheBuilder, block: int) -> int:
    return count_pairs(samples_of_block(builder, block), NOTHING_KNOWN, builder.fingerprint)


def worker_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a run as its workers follow them: paths do not depend on the folder one is in."""
    absolute = {name: _absolute(options[name]) for name in _PATHS}
    return {**options, **absolute, "forget": tuple(map(_absolute, options["forget"])), "run": None}


def _absolute(value: Any) -> Any:
    return type(value)(Path(value).absolute()) if value is not None and Path(value).expanduser().exists() else value


@dataclass(slots=True)
class _Hand:
    """One worker as this process sees it: where it is, what it is doing, and the blocks it has by their calls."""

    actor: Any
    call: Any  # to place or open it; None once it is open
    host: str = "a node"
    node_id: str = ""
    device: str = ""
    is_open: bool = False
    blocks: dict[Any, int] = field(default_factory=dict)


class RayWorkers:
    """Workers that are Ray actors, replaced when they die."""

    def __init__(
        self, cluster: Cluster, arguments: tuple[Any, ...], builder: CacheBuilder, named_budget: int | None,
        constant_budget: int | None, announce: Announce,
    ) -> None:  # fmt: skip
        """Start as many workers as there may be.

        Args:
            cluster: where.
            arguments: of each `Worker`.
            builder: the cache in the making; is told the engine of the first worker that opens.
            named_budget: the token budget that the user names, if any.
            constant_budget: the one to use else; None to have the first worker try some.
            announce: told of workers that come and go.
        """
        self._cluster, self._ray, self._builder, self._announce = cluster, cluster.ray, builder, announce
        self._named_budget, self._constant_budget = named_budget, constant_budget
        self._token_budget: int | None = None
        num_gpus = 1 if cluster.device == "cuda" else 0
        remote = self._ray.remote(num_cpus=cluster.num_cpus, num_gpus=num_gpus, max_restarts=0, max_concurrency=AHEAD)(
            Worker
        )
        self._start = lambda: remote.remote(*arguments)
        self._hands: list[_Hand] = []
        self._again: list[int] = []
        self._deaths: Counter[str] = Counter()
        self._last_placed = time.monotonic()
        self._top_up()

    def room(self) -> int:
        """Return how many more blocks can be begun now; see `Workers`."""
        return max(0, self._free() - len(self._again))

    def begin(self, block: int) -> None:
        """Have a block computed by whoever has least to do; see `Workers`."""
        hand = min((hand for hand in self._hands if hand.is_open), key=lambda hand: len(hand.blocks))
        samples = samples_of_block(self._builder, block)
        hand.blocks[hand.actor.rows.remote(samples, self._token_budget)] = block

    def finished(self, timeout_s: float) -> list[Computed]:
        """Return the blocks computed since the last call, and mend what broke; see `Workers`."""
        self._top_up()
        while self._again and self._free():
            self.begin(self._again.pop())
        calls = [call for hand in self._hands for call in (hand.call, *hand.blocks) if call is not None]
        if not calls:
            time.sleep(timeout_s)
            return []
        with self._still_connected():
            ready, _ = self._ray.wait(calls, num_returns=1, timeout=timeout_s)
            ready, _ = self._ray.wait(calls, num_returns=len(calls), timeout=0) if ready else ([], calls)
        computed = [self._ended(call) for call in ready]
        return [one for one in computed if one is not None]

    def _free(self) -> int:
        return sum(AHEAD - len(hand.blocks) for hand in self._hands if hand.is_open)

    def close(self) -> None:
        """End all workers, whatever they are at."""
        for hand in self._hands:
            with contextlib.suppress(Exception):  # the cluster may be gone, and its workers with it
                self._ray.kill(hand.actor, no_restart=True)
        self._hands.clear()

    def _ended(self, call: Any) -> Computed | None:
        """Take what a call returned, and return the block it computed, if it was one."""
        hand = next((hand for hand in self._hands if call == hand.call or call in hand.blocks), None)
        if hand is None:  # of a worker that was found dead a moment ago
            return None
        try:
            with self._still_connected():
                value = self._ray.get(call, timeout=60)
        except self._ray.exceptions.RayTaskError:  # a fault of ours
            raise
        except self._ray.exceptions.RayError as error:
            self._lost(hand, error)
            return None
        if isinstance(value, Refused):
            raise _refusal(value, hand.host)
        if isinstance(value, Rows):
            return self._computed(hand, hand.blocks.pop(call), value)
        if isinstance(value, Opened):
            self._opened(hand, value)
        else:
            hand.host, hand.node_id = value
            hand.call = hand.actor.open.remote()
        return None

    def _computed(self, hand: _Hand, block: int, rows: Rows) -> Computed:
        self._told(hand, rows.warnings)
        if rows.token_budget is not None and self._token_budget is not None and rows.token_budget < self._token_budget:
            self._token_budget = rows.token_budget  # memory ran out there
            keep_budget(self._builder, rows.token_budget)
        return Computed(block, rows.arrays, hand.device, rows.token_budget)

    def _opened(self, hand: _Hand, opened: Opened) -> None:
        self._told(hand, opened.warnings)
        self._deaths.pop("loading the teacher", None)
        if opened.has_budget and self._token_budget is None:
            try:
                self._token_budget = self._settle_budget(hand)
            except self._ray.exceptions.RayError as error:
                self._lost(hand, error)
                return
        self._builder.build.setdefault("engine", opened.engine)
        hand.device = recorded_device(opened, self._builder.build["engine"])
        hand.is_open, hand.call = True, None
        self._announce(f"precompute: worker on {hand.host}: {hand.device}, {opened.engine}")

    def _settle_budget(self, hand: _Hand) -> int:
        """Return the token budget of this cache, tried out by a worker where nobody has settled one."""

        def choose() -> int:
            if self._constant_budget is not None:
                return self._constant_budget
            num_pairs = count_pairs(self._builder.samples, NOTHING_KNOWN, self._builder.fingerprint)
            found = self._ray.get(hand.actor.probe.remote(samples_of_block(self._builder, 0), num_pairs))
            if isinstance(found, Refused):
                raise _refusal(found, hand.host)
            return int(found)

        return settle_budget(self._builder, self._named_budget, choose, self._announce)

    def _told(self, hand: _Hand, warnings: Sequence[str]) -> None:
        for line in warnings:
            self._announce(f"{line} (on {hand.host})")

    def _lost(self, hand: _Hand, error: Exception) -> None:
        """Take leave of a dead worker; its blocks are begun again."""
        self._hands.remove(hand)
        self._ray.kill(hand.actor, no_restart=True)
        if getattr(error, "actor_init_failed", False):
            raise DataError(
                f"--workers: expected a node where a worker starts, found one where it does not: {_last_line(error)}. "
                "Install the same viker on every node."
            ) from error
        self._announce(f"precompute: WARNING: lost the worker on {hand.host} ({first_line(error)})")
        self._again.extend(hand.blocks.values())
        if any(node["NodeID"] == hand.node_id and node["Alive"] for node in self._ray.nodes()):
            tried = [f"computing block {block}" for block in hand.blocks.values()] or ["loading the teacher"]
            self._deaths.update(tried)
            worst = max(tried, key=self._deaths.__getitem__)
            if self._deaths[worst] >= MOST_DEATHS:
                raise DataError(
                    f"--workers: expected workers that live, found {MOST_DEATHS} that died while {worst}, the last on "
                    f"{hand.host} ({first_line(error)}). If memory ran out, use fewer workers a node or a smaller "
                    "--token-budget; what was staged is kept."
                ) from error

    def _top_up(self) -> None:
        """Start workers where nodes have room, and give up where none has had any for long."""
        with self._still_connected():
            for _ in range(self._cluster.most() - len(self._hands)):
                actor = self._start()
                self._hands.append(_Hand(actor, actor.place.remote()))
        now = time.monotonic()
        if any(hand.node_id for hand in self._hands):
            self._last_placed = now
        if now - self._last_placed > NO_NODE_SECONDS:
            raise DataError(
                f"--workers: expected a node with {self._cluster.needs} free, found none for {NO_NODE_SECONDS:.0f} s. "
                "What was staged is kept: run the same command when there is one."
            )

    @contextlib.contextmanager
    def _still_connected(self) -> Iterator[None]:
        try:
            yield
        except (ConnectionError, self._ray.exceptions.LocalRayletDiedError) as error:
            raise DataError(
                f"--workers: expected the Ray cluster, found the connection to it lost ({first_line(error)}). What "
                "was staged is kept: run the same command again."
            ) from error


def recorded_device(opened: Opened, engine: str) -> str:
    """Return what build.json says computed a worker's blocks: its device, and what else differs from this process."""
    ours = {**library_versions(), "engine": engine}
    theirs = {**opened.libraries, "engine": opened.engine}
    return ", ".join(
        [opened.device, *(f"{name} {theirs[name]}" for name in sorted(theirs) if theirs[name] != ours.get(name))]
    )


def _refusal(refused: Refused, host: str) -> Exception:
    if refused.differs:
        return CacheMismatch(
            f"--workers: the worker on {host} is refused: expected the model, data and pool of this run, found others "
            f"there:\n{refused.why}\nGive every node the same files."
        )
    return DataError(
        f"--workers: the worker on {host} cannot go on: {refused.why} Every node needs the model, the data and the "
        "pool under the same path (a disk they share), or by hub id."
    )


def _last_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip().rstrip(".")
