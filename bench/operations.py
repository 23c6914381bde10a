"""Operations of a model's matrix products as they run, and how fast this device does the same products alone.

Every product is seen where torch dispatches it, with its sizes, padding included, forward and backward, whoever asks
for it. So what a variant achieves can be put beside two ceilings: one big square product, and the very products that
ran, whose sizes a device may like less. With N weights in its linear layers a token costs 2N operations forward, and
2N more backward where the gradient of activations is wanted, as it is of frozen layers under LoRA: 4N, and not the 6N
of training all of them (LoRA's own products are counted too, and are few). Attention's own products are left out: they
are a few per cent, and no two kernels count them alike.
"""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

Product = tuple[int, int, int]  # [rows, inner] times [inner, columns]

SQUARE = {"cuda": 8192, "cpu": 2048}
MEASURED_SHARE = 0.95  # of the operations: the many small products that remain would take longer to measure


@contextmanager
def counting() -> Iterator[Counter[Product]]:
    """Count the products of two matrices that run in the block, those of its backward passes too."""
    with _Counting() as mode:
        yield mode.found


class _Counting(TorchDispatchMode):
    """Adds up products as they are dispatched; what runs in the backward pass inherits the mode."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[Product] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        product = _product(func, args)
        if product is not None:
            self.found[product] += 1
        return func(*args, **(kwargs or {}))


def _product(func: Any, args: Any) -> Product | None:
    aten = torch.ops.aten
    if func is aten.linear.default:  # dispatched whole where gradients are never asked for
        states, weight = args[:2]
        return states.numel() // weight.shape[1], weight.shape[1], weight.shape[0]
    if func in (aten.mm.default, aten.addmm.default):
        left, right = args[-2:]
        return left.shape[0], left.shape[1], right.shape[1]
    return None


def operations(products: Counter[Product]) -> int:
    """Return how many operations products are, a multiplication and its addition counted as two."""
    return sum(2 * rows * inner * columns * times for (rows, inner, columns), times in products.items())


def square_rate(device: str, dtype: torch.dtype) -> tuple[int, float]:
    """Return the size of a big square product, and the operations a second this device does in it."""
    size = SQUARE[device]
    return size, 2 * size**3 / _seconds((size, size, size), device, dtype)


def product_rate(products: Counter[Product], device: str, dtype: torch.dtype) -> float:
    """Return the operations a second this device does in products alone, each as often as it was counted."""
    ordered = sorted(products, key=lambda product: operations(Counter({product: products[product]})), reverse=True)
    whole, measured = operations(products), Counter[Product]()
    seconds = 0.0
    for product in ordered:
        if operations(measured) >= MEASURED_SHARE * whole:
            break
        measured[product] = products[product]
        seconds += products[product] * _seconds(product, device, dtype)
    return operations(measured) / seconds


def _seconds(product: Product, device: str, dtype: torch.dtype) -> float:
    """Return the seconds of one product, the best of some repetitions after a first."""
    rows, inner, columns = product
    left, right = (torch.randn(size, inner, device=device, dtype=dtype) for size in (rows, columns))
    times = [_once(left, right) for _ in range(6)]
    return min(times[1:])


def _once(left: torch.Tensor, right: torch.Tensor) -> float:
    _wait(left)
    started = time.perf_counter()
    nn.functional.linear(left, right)
    _wait(left)
    return time.perf_counter() - started


def _wait(tensor: torch.Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize()
