"""What makes one block come out with the same bytes whoever computes it, on a CPU and on GPUs of one model.

On a CPU the order of a sum depends on the number of threads, so every maker of a cache uses the number of the first. On
a GPU the libraries choose between kernels, some of which add up in any order; --deterministic forbids those, and TF32
with them, at a price in speed. Both are settled when the first maker begins and lie beside the blocks: half a cache of
one kind and half of another would be neither. What else decides a row's last bits is the token budget
(`token_budget.py`), and that batches are a function of it and the block, which is the engines' to keep.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.utils.deterministic

from .cache import CacheMismatch
from .writing.agreed import agree
from .writing.store import CacheBuilder

_FILE = "arithmetic"
_WORKSPACE = ":4096:8"  # cuBLAS: eight buffers of 4 MiB, with which its sums have one order
_SETTINGS: tuple[tuple[Any, str, bool], ...] = (
    (torch.backends.cuda.matmul, "allow_tf32", False),
    (torch.backends.cudnn, "allow_tf32", False),
    (torch.backends.cudnn, "benchmark", False),
    (torch.backends.cudnn, "deterministic", True),
    (torch.utils.deterministic, "fill_uninitialized_memory", False),  # costs time, and nothing here reads such memory
)


@contextmanager
def as_agreed(
    builder: CacheBuilder, deterministic: bool, device: str, announce: Callable[[str], None]
) -> Iterator[bool]:
    """Compute as the makers of a cache agreed to, and yield whether that is deterministically; told where it changes.

    Raises:
        CacheMismatch: deterministic rows are asked for, and the cache was begun without.
    """
    own = {"num_threads": torch.get_num_threads(), "deterministic": int(deterministic)}
    agreed = agree(builder, _FILE, lambda: own)
    if deterministic and not agreed["deterministic"]:
        raise CacheMismatch(
            f"{builder.staging}: expected blocks computed with --deterministic, found a cache begun without. Leave the "
            "option out to finish it, or remove the folder to start anew."
        )
    with ExitStack() as settings:
        if agreed["deterministic"]:
            settings.enter_context(one_order())
            if not deterministic:
                announce("precompute: this cache was begun with --deterministic: going on so")
        if device == "cpu" and agreed["num_threads"] != own["num_threads"]:
            settings.callback(torch.set_num_threads, own["num_threads"])
            torch.set_num_threads(agreed["num_threads"])
            announce(
                f"precompute: computing with {agreed['num_threads']} threads in place of {own['num_threads']}, as the "
                "maker that began this cache: its bytes depend on it"
            )
        builder.build.update(agreed, deterministic=bool(agreed["deterministic"]))
        yield bool(agreed["deterministic"])


@contextmanager
def one_order() -> Iterator[None]:
    """Allow only kernels that add up in one order, in full precision."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", _WORKSPACE)  # read when the first matrices are multiplied
    before = [getattr(place, name) for place, name, _ in _SETTINGS]
    strict, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    for place, name, value in _SETTINGS:
        setattr(place, name, value)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(strict, warn_only=warns)
        for (place, name, _), value in zip(_SETTINGS, before, strict=True):
            setattr(place, name, value)
