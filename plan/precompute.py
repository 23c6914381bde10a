"""Plan a precompute: ask as `viker precompute` asks, count, and measure a little of the work unless told not to.

The order is that of the stage, so that what it spends before its first block is spent, and timed, here as well: encode,
name the cache, look for it, load the weights behind the engine and check it. A cache that serves ends the plan there:
nothing will be computed.
"""

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..data.artefact import cache_home, peak_resident_bytes
from ..models.load import pick_device
from ..precompute.ask import Asked, ask
from ..precompute.cache import CacheError
from ..precompute.engines.shared_prefix import HOST_BYTES, PREFIX_BYTES, ROWS_AT_ONCE, SUM_BYTES
from ..precompute.open_teacher import Teacher, open_teacher
from ..precompute.run import first_pending
from ..precompute.same_bytes import one_order
from ..precompute.sharing.addresses import open_store
from ..precompute.sharing.lookup import look_up
from ..precompute.sharing.stores import Store
from .cost import TYPICAL_SHARE, Shape, peak_memory, raw_bytes, told, total_operations
from .forecast import forecast, times_computed
from .probe import Rates, measure
from .shape import shape_of
from .sharing import count_sharing
from .work import Planned, plan_work

SCHEMA = "viker/plan/1"
TOKEN_BUDGET = 4096  # what the engine takes on a CPU where nobody names another
ENOUGH_ROWS = 1024  # a chunk: fewer are compressed better or worse than many
_ELEMENT_SIZES = {"float32": 4, "bfloat16": 2, "float16": 2}
_QUANTIZED_SIZES = {"int8": 1.0, "nf4": 0.5}

Announce = Callable[[str], None]


class _Probed(NamedTuple):
    """What came of measuring: the engine, seconds to load it, the rates, and bytes before and at the peak."""

    teacher: Teacher
    load: float
    rates: Rates
    memory: dict[str, int]


def plan_precompute(
    options: Mapping[str, Any], named: frozenset[str], announce: Announce, started: float
) -> dict[str, Any]:
    """Return what a precompute with these options will cost, for `--json`; `started` is when the command began.

    Raises:
        DataError: model, data or pool are not there, as `viker precompute` would say.
    """
    asked = ask(options, announce)
    request = asked.request
    found = look_up(
        cache_home(), _remote(announce), request.key, request.fingerprint, named, request.by_row_key.keys(), announce
    )
    start = time.perf_counter() - started
    planned = plan_work(request, asked.intervention, asked.encoder)
    pictures = time.perf_counter() - started - start
    shape = shape_of(asked.checkpoint, trust_remote_code=options["trust_remote_code"])
    counted = {
        "schema": SCHEMA, "key": request.key, "found": None if found is None else found.how,
        **_counts(asked, planned), **_sizes(options, asked, planned, shape),
    }  # fmt: skip
    if found is not None:
        return {**counted, "probe": None, "seconds": {"start": start, "total": start}}
    if options["count_only"]:
        return {**counted, "probe": None, "seconds": None}
    probed = _probe(options, asked, planned, shape, announce)
    host_bytes = 0 if probed.teacher.device == "cpu" else HOST_BYTES
    times = times_computed(
        planned, shape, _ELEMENT_SIZES[options["dtype"]], device_bytes=PREFIX_BYTES, host_bytes=host_bytes
    )
    seconds = forecast(
        planned, shape, probed.teacher.engine, probed.rates, times, start=start, load=probed.load, pictures=pictures
    )
    return {**counted, **_measured(planned, shape, probed, counted), "seconds": told(seconds)}


def _remote(announce: Announce) -> Store | None:
    """Return the remote that `viker precompute` would look into, if one is named and can be read."""
    address = os.environ.get("VIKER_CACHE_REMOTE")
    if not address:
        return None
    try:
        return open_store(address)
    except CacheError as error:
        announce(f"plan: WARNING: going on without the remote: {error}")
        return None


def _counts(asked: Asked, planned: Planned) -> dict[str, Any]:
    sharing = count_sharing(planned)
    return {
        "examples": len(asked.request.works),
        "distinct_examples": len(asked.request.by_row_key),
        "images": planned.num_images,
        "prefixes": len(planned.prefixes),
        "prefix_tokens": sum(prefix.length for prefix in planned.prefixes),
        "pairs": planned.num_pairs,
        "rows": planned.stored_rows,
        "blocks": len(planned.blocks),
        "suffix_tokens": {**sharing._asdict(), "trie_saves": round(sharing.trie_saves, 3)},
    }


def _sizes(options: Mapping[str, Any], asked: Asked, planned: Planned, shape: Shape) -> dict[str, Any]:
    num_samples = sum(len(block.samples) for block in planned.blocks)
    pool_size = 0 if asked.intervention.pool is None else len(asked.intervention.pool.images)
    raw = raw_bytes(asked.request.fingerprint, num_samples, planned.stored_rows, pool_size)
    element_size = _ELEMENT_SIZES[options["dtype"]]
    memory = peak_memory(
        shape, planned, element_size, token_budget=options["token_budget"] or TOKEN_BUDGET,
        prefix_budget=PREFIX_BYTES, sum_budget=SUM_BYTES, rows_at_once=ROWS_AT_ONCE,
        bytes_a_weight=_QUANTIZED_SIZES.get(options["quantization"], element_size),
    )  # fmt: skip
    return {
        "bytes": {"raw": raw, "expected": round(raw * TYPICAL_SHARE), "measured": False},
        "operations": told(total_operations(shape, planned, options["engine"])),
        "memory": {**told(memory), "libraries": None, "probe_peak": None},
    }


def _probe(options: Mapping[str, Any], asked: Asked, planned: Planned, shape: Shape, announce: Announce) -> _Probed:
    device = pick_device(options["device"])
    before, started = peak_resident_bytes(), time.perf_counter()
    first = first_pending(asked.request, asked.intervention, asked.encoder)
    teacher = open_teacher(options, asked.checkpoint, asked.encoder, first, device, announce)
    load = time.perf_counter() - started
    home = cache_home()
    home.mkdir(parents=True, exist_ok=True)
    order = one_order() if options["deterministic"] else contextlib.nullcontext()
    with tempfile.TemporaryDirectory(dir=home, prefix=".plan-") as scratch, order:  # on the disk that caches will be on
        rates = measure(planned, asked, teacher, shape, Path(scratch), options["probe_seconds"])
    return _Probed(teacher, load, rates, {"libraries": before, "probe_peak": _peak_bytes(device)})


def _measured(planned: Planned, shape: Shape, probed: _Probed, counted: Mapping[str, Any]) -> dict[str, Any]:
    rates, memory = probed.rates, {**counted["memory"], **probed.memory}
    if probed.teacher.device == "cpu":
        memory["total"] += probed.memory["libraries"]
    memory["total"] = max(memory["total"], probed.memory["probe_peak"])
    size, storing = counted["bytes"], rates.storing
    if storing.num_rows >= min(ENOUGH_ROWS, planned.stored_rows):
        size = {**size, "expected": round(storing.bytes + storing.bytes_row * planned.stored_rows), "measured": True}
    return {
        "bytes": size,
        "operations": told(total_operations(shape, planned, probed.teacher.engine)),
        "memory": memory,
        "probe": {
            "engine": probed.teacher.engine, "device": probed.teacher.device, "pairs": rates.num_pairs,
            "share": round(rates.num_pairs / planned.num_pairs, 4),
            "gflops": round(1e-9 / rates.suffix, 3) if rates.suffix else None,
            "rows": storing.num_rows,
        },
    }  # fmt: skip


def _peak_bytes(device: str) -> int:
    """Return the peak of this process: of the device's memory, on a CPU of resident memory."""
    return torch.cuda.max_memory_allocated(device) if device.startswith("cuda") else peak_resident_bytes()
