"""What two processes see of each other's errors: `torchrun one_fails.py CASE` prints what each of them raised."""

from __future__ import annotations

import sys

import torch
from viker.train.processes import agreed, from_all, on_main, open_accelerator, together

CASES = ("on the other", "on both", "on the main one", "on none")


def act(case: str) -> str:
    accelerator = open_accelerator("cpu")
    rank = accelerator.process_index
    if case == "on the main one":
        on_main(accelerator, lambda: 1 / 0)
    with together(accelerator):
        if case == "on both" or (case == "on the other" and rank == 1):
            raise ValueError(f"process {rank} has had enough")
    said = on_main(accelerator, lambda: {"tensor": torch.arange(3)})
    assert said["tensor"].tolist() == [0, 1, 2]
    assert agreed(rank, accelerator) == 0
    assert from_all(rank, accelerator) == [0, 1]
    return "nothing"


def main() -> None:
    try:
        raised = act(sys.argv[1])
    except Exception as error:
        raised = f"{type(error).__name__}: {error}"
    sys.stdout.write(f"{torch.distributed.get_rank()} raised {raised}\n")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
