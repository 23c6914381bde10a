"""Operations of a model's matrix products as they run, and how fast this device does the same products alone.

Hooks on the linear layers see every product with its sizes, padding included, whoever drives the model. So what a
variant achieves can be put beside two ceilings: one big square product, and the very products of the model, whose
sizes a device may like less. Attention's own products are left out: they are a few per cent, and no two kernels count
them alike.
"""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

Product = tuple[int, int, int]  # rows, inputs, outputs of a linear layer

SQUARE = {"cuda": 8192, "cpu": 2048}
MEASURED_SHARE = 0.95  # of the operations: the many small products that remain would take longer to measure


@contextmanager
def counting(model: Any) -> Iterator[Counter[Product]]:
    """Count the products of a model's linear layers while the block runs."""
    found: Counter[Product] = Counter()

    def count(layer: Any, inputs: Any, _output: Any) -> None:
        found[inputs[0].numel() // layer.in_features, layer.in_features, layer.out_features] += 1

    hooks = [layer.register_forward_hook(count) for layer in model.modules() if isinstance(layer, nn.Linear)]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def operations(products: Counter[Product]) -> int:
    """Return how many operations products are, a multiplication and its addition counted as two."""
    return sum(2 * rows * inputs * outputs * times for (rows, inputs, outputs), times in products.items())


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
    rows, inputs, outputs = product
    left, right = (torch.randn(size, inputs, device=device, dtype=dtype) for size in (rows, outputs))
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
