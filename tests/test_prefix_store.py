"""Prefixes stay on the device within a budget, spill to the host beyond it, the same bytes wherever they were."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from viker.models.prefix import Prefix
from viker.precompute.engines.prefix_store import PrefixStore, prefix_store_for

if TYPE_CHECKING:
    from torch import Tensor

LAYERS, TOKENS, SIZE = 3, 5, 4
BYTES = LAYERS * 2 * TOKENS * SIZE * 4  # of one prefix


def make_prefix(number: int) -> Prefix:
    generator = torch.Generator().manual_seed(number)
    shape = (1, 1, TOKENS, SIZE)
    pairs = [(torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)) for _ in range(LAYERS)]
    return Prefix(tuple(pairs), TOKENS)


class Bench:
    """A store whose two memories are both the CPU's, and what was computed and moved."""

    def __init__(self, on_device: float, on_host: float) -> None:
        self.computed: list[int] = []
        self.spilled_bytes = self.restored_bytes = 0
        self.store = PrefixStore(
            int(on_device * BYTES), int(on_host * BYTES), to_host=self._to_host, to_device=self._to_device
        )

    def _to_host(self, tensor: Tensor) -> Tensor:
        self.spilled_bytes += tensor.nbytes
        return tensor.clone()

    def _to_device(self, tensor: Tensor) -> Tensor:
        self.restored_bytes += tensor.nbytes
        return tensor.clone()

    def get(self, number: int) -> Prefix:
        def compute() -> Prefix:
            self.computed.append(number)
            return make_prefix(number)

        return self.store.get(number, compute)

    def scan(self, count: int, times: int = 1) -> None:
        for number in list(range(count)) * times:
            self.get(number)

    @property
    def counts(self) -> tuple[int, int, int]:
        return self.store.hits, self.store.restored, self.store.computed


def is_equal(first: Prefix, second: Prefix) -> bool:
    pairs = zip(first.layers, second.layers, strict=True)
    return first.length == second.length and all(
        torch.equal(one, other) for left, right in pairs for one, other in zip(left, right, strict=True)
    )


def test_what_fits_is_computed_once_and_never_moved():
    bench = Bench(4, 4)
    bench.scan(4, times=3)
    assert bench.computed == [0, 1, 2, 3]
    assert bench.counts == (8, 0, 4)
    assert bench.spilled_bytes == bench.restored_bytes == 0
    assert bench.store.bytes_on_device == 4 * BYTES


def test_what_does_not_fit_on_the_device_comes_back_from_the_host_as_it_was():
    bench = Bench(2, 10)
    bench.scan(6)
    again = [bench.get(number) for number in range(6)]
    assert bench.computed == list(range(6)), "nothing is run twice"
    assert all(is_equal(prefix, make_prefix(number)) for number, prefix in enumerate(again))
    assert bench.store.restored > 0


def test_what_comes_back_still_knows_the_positions_behind_it():
    store = PrefixStore(0, 1 << 30, to_host=torch.clone, to_device=torch.clone)
    store.get("shifted", lambda: replace(make_prefix(0), shift=-7))
    store.get("other", lambda: make_prefix(1))
    assert store.get("shifted", lambda: make_prefix(2)).shift == -7
    assert store.restored == 1


def test_a_prefix_is_copied_to_the_host_once_however_often_it_comes_and_goes():
    bench = Bench(2, 10)
    bench.scan(6, times=5)
    assert bench.spilled_bytes <= 6 * BYTES
    assert bench.restored_bytes == bench.store.restored * BYTES > 6 * BYTES
    assert bench.store.bytes_on_host == bench.spilled_bytes


def test_without_room_on_the_host_it_is_computed_again():
    bench = Bench(2, 0)
    bench.scan(6, times=2)
    assert bench.spilled_bytes == 0
    assert bench.store.computed > 6
    assert bench.store.restored == 0
    assert bench.store.bytes_on_host == 0


@pytest.mark.parametrize(("on_device", "on_host"), [(1, 0), (2, 1), (2.5, 3.5), (3, 100)])
def test_neither_budget_is_exceeded(on_device, on_host):
    bench = Bench(on_device, on_host)
    for number in [0, 3, 1, 4, 1, 5, 2, 6, 5, 3, 5, 0, 7, 1, 2] * 3:
        assert is_equal(bench.get(number), make_prefix(number))
        assert bench.store.bytes_on_device <= on_device * BYTES
        assert bench.store.bytes_on_host <= on_host * BYTES
    assert sum(bench.counts) == 45


def test_a_pool_larger_than_the_device_finds_its_share_there_block_after_block():
    """The least recently used one out first would find none: each is evicted just before it is asked for."""
    bench = Bench(6, 0)
    bench.scan(10)
    before = bench.store.hits
    bench.scan(10, times=4)
    assert bench.store.hits - before >= 4 * 5


def test_one_larger_than_the_budget_is_held_while_it_is_used():
    bench = Bench(0, 0)
    bench.get(0)
    bench.get(0)
    assert bench.computed == [0], "a batch that is cut in two asks for its prefix twice"
    bench.get(1)
    bench.get(0)
    assert bench.computed == [0, 1, 0]


def test_after_clearing_the_device_the_host_still_has_its_own():
    bench = Bench(2, 10)
    bench.scan(6)
    on_host = bench.store.bytes_on_host // BYTES
    bench.store.clear()
    assert bench.store.bytes_on_device == 0
    computed = len(bench.computed)
    bench.scan(6)
    assert len(bench.computed) - computed == 6 - on_host


def test_a_failed_computation_leaves_nothing_behind():
    bench = Bench(2, 2)

    def fail() -> Prefix:
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        bench.store.get("key", fail)
    assert bench.store.bytes_on_device == 0
    assert is_equal(bench.store.get("key", lambda: make_prefix(7)), make_prefix(7))


def test_on_a_cpu_nothing_is_spilled():
    store = prefix_store_for(torch.device("cpu"), 2 * BYTES, 10 * BYTES)
    for number in list(range(4)) * 2:
        assert is_equal(store.get(number, lambda number=number: make_prefix(number)), make_prefix(number))
    assert store.bytes_on_host == store.restored == 0
    assert store.computed > 4


@pytest.mark.gpu
def test_on_a_gpu_what_comes_back_from_pinned_memory_is_what_left():
    device = torch.device("cuda")
    store = prefix_store_for(device, 2 * BYTES, 10 * BYTES)

    def compute(number: int) -> Prefix:
        on_host = make_prefix(number)
        return Prefix(tuple((keys.to(device), values.to(device)) for keys, values in on_host.layers), TOKENS)

    for number in list(range(6)) * 3:
        prefix = store.get(number, lambda number=number: compute(number))
        assert prefix.layers[0][0].is_cuda
        assert is_equal(
            Prefix(tuple((keys.cpu(), values.cpu()) for keys, values in prefix.layers), TOKENS), make_prefix(number)
        )
    assert store.restored > 0
    assert store.computed == 6
    assert all(keys.is_pinned() for keys, _ in next(iter(store._on_host.values())).layers)
