"""Several processes as one run: what they agree on, what the main one does for all, and how one's error ends them all.

Devices, gradients and launching are accelerate's. A process that fails where others wait for it would leave them
waiting: so whatever may fail on one alone runs in `together`, and whoever did not fail says nothing and ends too.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedType,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    broadcast_object_list,
    gather_object,
)
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from ..data.example import DataError

T = TypeVar("T")
PATIENCE = timedelta(hours=2)  # the main process may measure for long; a launcher ends the others of one that died
_LOST = ("closed by peer", "reset by peer", "Broken pipe", "NCCL", "recvBytes failed", "sendBytes failed")


class ProcessLost(RuntimeError):
    """Another process of the run ended; it has said why."""


def open_accelerator(device: str | None, **options: Any) -> Accelerator:
    """Return the accelerator of this process, on the device that is asked for, else the best there is.

    Raises:
        DataError: there is no such device, or one by its number is asked for by several processes.
    """
    kind = _kind_of(device)
    if device is not None and device.startswith("cuda:") and kind == "cuda" and torch.cuda.is_available():
        torch.cuda.set_device(device)
    accelerator = Accelerator(
        cpu=kind == "cpu" or (kind is None and not torch.accelerator.is_available()),
        # A launcher's own settings would scale the loss, or compute in other numbers than config.json says.
        mixed_precision="no",
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
        **options,
    )
    if kind is not None and accelerator.device.type != kind:
        raise DataError(f"--device {device}: expected a device of this machine, found {accelerator.device}. Name it.")
    return accelerator


def _kind_of(device: str | None) -> str | None:
    """Return the kind of device that is asked for."""
    num_processes = int(os.environ.get("WORLD_SIZE", "1"))
    if device is None:
        return None
    try:
        named = torch.device(device)
    except RuntimeError as error:
        raise DataError(f"--device {device}: expected cpu, cuda, cuda:1 ..., found no device of that name.") from error
    if num_processes > 1 and named.index is not None:
        raise DataError(
            f"--device {device}: expected a kind of device for {num_processes} processes, found the number of one. "
            "Leave it out: every process takes its own."
        )
    return named.type


def share(accelerator: Accelerator, module: Any, optimizer: torch.optim.Optimizer) -> tuple[Any, Any]:
    """Return a module and its optimizer as all processes train them."""
    if is_sharded(accelerator):  # weights are gathered a layer at a time, by the names of the layers' classes
        module._no_split_modules = _layer_classes(module.model.get_decoder())
    module, optimizer = accelerator.prepare(module, optimizer)
    if isinstance(module, DistributedDataParallel):
        # No buffer is trained, and an exchange of them in place between two forward passes breaks their backward pass.
        module.broadcast_buffers = False
    return module, optimizer


def _layer_classes(decoder: torch.nn.Module) -> list[str]:
    """Return the names of the classes that transformers keeps in one piece, of those that a text decoder is made of.

    Not of a vision tower: it is not run for examples without a picture, and all processes have to gather alike.
    """
    parts = list(decoder.modules())
    whole_ones = {name for part in parts for name in getattr(part, "_no_split_modules", None) or ()}
    return sorted(whole_ones & {type(part).__name__ for part in parts})


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether each process holds only a part of the weights."""
    return bool(accelerator.distributed_type == DistributedType.FSDP)


def require_known_sharing(accelerator: Accelerator) -> None:
    """Raise `DataError` where a launcher shares weights in a way that this training was not made for."""
    kind = accelerator.distributed_type
    if kind in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM) or (
        kind == DistributedType.FSDP and not accelerator.is_fsdp2
    ):
        name = "FSDP1" if kind == DistributedType.FSDP else kind.value
        raise DataError(
            f"expected processes that hold whole weights (DDP) or share them by FSDP2, found {name}. Set "
            "fsdp_version: 2 (FSDP_VERSION=2), or launch without it."
        )


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor in one piece; where processes hold parts of it, all of them have to ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shared_like(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return a whole tensor as another is kept: on its device, or in parts over the processes."""
    value = value.to(like.device)
    return distribute_tensor(value, like.device_mesh, like.placements) if isinstance(like, DTensor) else value


def agreed(value: T, accelerator: Accelerator) -> T:
    """Return what the main process says, on every process."""
    if accelerator.num_processes == 1:
        return value
    return broadcast_object_list([value])[0]  # type: ignore[no-any-return]


def from_all(value: T, accelerator: Accelerator) -> list[T]:
    """Return what each process says, in their order."""
    return [value] if accelerator.num_processes == 1 else gather_object([value])  # type: ignore[no-any-return]


@contextmanager
def together(accelerator: Accelerator) -> Iterator[None]:
    """Run a block, without any exchange in it, on every process: where it fails on one, all of them end.

    Raises:
        ProcessLost: it failed on a process before this one, which says why.
    """
    error: Exception | None = None
    try:
        yield
    except Exception as found:
        error = found
    failed = [index for index, is_bad in enumerate(from_all(error is not None, accelerator)) if is_bad]
    if error is not None and failed[0] == accelerator.process_index:
        raise error
    if failed:
        raise ProcessLost(f"process {failed[0]} ended with an error") from error


def on_main(accelerator: Accelerator, work: Callable[[], T]) -> T:
    """Return what the main process alone does, on every process; its error ends all of them."""
    done: T | None = None
    with together(accelerator):
        if accelerator.is_main_process:
            done = work()
    return agreed(done, accelerator)  # type: ignore[return-value]


def is_lost(error: BaseException) -> bool:
    """Whether an error of an exchange says that another process is no more."""
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _LOST)
