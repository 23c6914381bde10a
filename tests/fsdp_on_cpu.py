"""Run `viker ARGUMENTS` with FSDP2 on processes of the CPU, where torch shares weights and accelerate does not."""

from __future__ import annotations

from typing import Any

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from viker.cli import main

_initialize = AcceleratorState.__init__


def _initialize_sharing(self: AcceleratorState, *arguments: Any, **options: Any) -> None:
    """Do for processes of the CPU what accelerate does for those of GPUs when it is told to use FSDP."""
    _initialize(self, *arguments, **options)
    plugin = options.get("fsdp_plugin")
    if plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type = DistributedType.FSDP
        self.fsdp_plugin = plugin
        PartialState._shared_state["distributed_type"] = self.distributed_type


AcceleratorState.__init__ = _initialize_sharing

if __name__ == "__main__":
    main()
