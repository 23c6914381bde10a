"""Prefixes that outlive their block: on the device within a budget of bytes, beyond it in pinned host memory.

A block asks for its prefixes in the order of their images' digests, and the next block for nearly the same ones in the
same order. Under such a scan the least recently used prefix is the very one that is needed next, so that evicting it
would keep none of a pool that is larger than the budget. Evicted is therefore the one used last: those that came first
stay, and as large a share of every block finds its prefix there as the budget is of the pool.

A prefix that leaves the device is copied to the host while the host's budget lasts, and stays there when it comes back,
since it never changes; copying one back is cheaper than running the image again. What is asked for is the same bytes,
wherever it was, so budgets change no row. How a prefix is computed is the caller's, which also keeps those of its batch
alive while it uses them.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import replace
from itertools import islice

import torch
from torch import Tensor

from ...models.prefix import Prefix

Move = Callable[[Tensor], Tensor]


class PrefixStore:
    """Prefixes by key, computed when they are in neither memory; counts where each request was met.

    `hits` were on the device, `restored` came back from the host, `computed` were run: again, where they had been
    before and fitted nowhere.
    """

    def __init__(self, device_bytes: int, host_bytes: int, *, to_host: Move, to_device: Move) -> None:
        self._device_bytes, self._host_bytes = device_bytes, host_bytes
        self._to_host, self._to_device = to_host, to_device
        self._on_device: OrderedDict[Hashable, Prefix] = OrderedDict()
        self._on_host: dict[Hashable, Prefix] = {}
        self.bytes_on_device = self.bytes_on_host = 0
        self.hits = self.restored = self.computed = 0

    def get(self, key: Hashable, compute: Callable[[], Prefix]) -> Prefix:
        """Return the prefix of a key on the device; it stays there at least until another is asked for."""
        if key in self._on_device:
            self.hits += 1
            self._on_device.move_to_end(key)
            return self._on_device[key]
        if key in self._on_host:
            self.restored += 1
            prefix = _moved(self._on_host[key], self._to_device)
        else:
            self.computed += 1
            prefix = compute()
        self._on_device[key] = prefix
        self.bytes_on_device += prefix.num_bytes
        while self.bytes_on_device > self._device_bytes and len(self._on_device) > 1:
            self._evict(next(islice(reversed(self._on_device), 1, None)))
        return prefix

    def clear(self) -> None:
        """Forget what is on the device, for whoever ran out of its memory; what is on the host stays."""
        self._on_device.clear()
        self.bytes_on_device = 0

    def _evict(self, key: Hashable) -> None:
        """Take a prefix from the device, after copying it to the host if it is not there and there is room."""
        prefix = self._on_device.pop(key)
        self.bytes_on_device -= prefix.num_bytes
        if key not in self._on_host and self.bytes_on_host + prefix.num_bytes <= self._host_bytes:
            self._on_host[key] = _moved(prefix, self._to_host)
            self.bytes_on_host += prefix.num_bytes


def prefix_store_for(device: torch.device, device_bytes: int, host_bytes: int) -> PrefixStore:
    """Return a store for prefixes on a device; on a CPU there is no other memory to spill to, and they are dropped."""
    if device.type != "cuda":
        return PrefixStore(device_bytes, 0, to_host=_stay, to_device=_stay)

    def to_device(tensor: Tensor) -> Tensor:
        return tensor.to(device, non_blocking=True)

    return PrefixStore(device_bytes, host_bytes, to_host=_to_pinned, to_device=to_device)


def _to_pinned(tensor: Tensor) -> Tensor:
    """Copy a tensor to pinned memory without waiting.

    Copies to and fro are queued on the stream that computes, so they run in order with it, and the device's memory is
    not used for anything else before it was read.
    """
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return pinned.copy_(tensor, non_blocking=True)


def _stay(tensor: Tensor) -> Tensor:
    return tensor


def _moved(prefix: Prefix, move: Move) -> Prefix:
    return replace(prefix, layers=tuple((move(keys), move(values)) for keys, values in prefix.layers))
