"""The Ray that workers run on: started on this machine and ended with the command, or a cluster that is there already.

How many workers there may be is asked again and again, for nodes come and go. On GPUs a worker takes one GPU; on CPU it
takes as many cores as this process uses threads, since blocks have the same bytes only under the same number of them.
"""

import contextlib
import logging
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch

from ..data.example import DataError
from ..models.load import pick_device

MOST_SHOWN = 160  # characters of another library's message
_OBJECT_STORE_BYTES = 256 << 20  # rows on their way: a block has a few megabytes


@dataclass(frozen=True, slots=True)
class Cluster:
    """A Ray that is connected to: what a worker takes of a node, and how many there may be now."""

    ray: Any
    device: Literal["cpu", "cuda"]
    num_cpus: int
    most: Callable[[], int]

    @property
    def needs(self) -> str:
        """What a node has to have, in words."""
        return f"{self.num_cpus} CPU core(s){' and a GPU' if self.device == 'cuda' else ''}"


@contextlib.contextmanager
def connected(asked: int | str, device: str | None, threads: int, announce: Callable[[str], None]) -> Iterator[Cluster]:
    """Start Ray on this machine, or connect to a cluster; leave it at the end."""
    if device not in (None, "cpu", "cuda"):
        raise DataError(
            f"--device {device}: expected cpu or cuda with --workers, for each worker has a GPU of its own. Name "
            "those to use by CUDA_VISIBLE_DEVICES."
        )
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise DataError(
            f"--workers: expected ray, found none ({error}). Run: pip install 'viker[distributed]'"
        ) from error
    try:
        if isinstance(asked, int):
            cluster = _on_this_machine(ray, asked, pick_device(device), threads, announce)
            num_gpus = asked if cluster.device == "cuda" else 0
            ray.init(
                address="local", num_cpus=asked * cluster.num_cpus, num_gpus=num_gpus,
                object_store_memory=_OBJECT_STORE_BYTES, include_dashboard=False, log_to_driver=False,
                logging_level=logging.WARNING,
            )  # fmt: skip
        else:
            _knock(asked)
            ray.init(address=asked, log_to_driver=False, logging_level=logging.WARNING)
            cluster = _on_cluster(ray, device, threads)
    except (OSError, ImportError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"--workers {asked}: expected a Ray cluster that answers, found none ({first_line(error)}). Check the "
            "address, that the cluster runs the same versions of Ray and Python, and for ray:// that "
            "pip install 'viker[distributed]' was run here."
        ) from error
    try:
        yield cluster
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Raise `ConnectionError` or `TimeoutError` where nothing listens at an address, which Ray tries for minutes."""
    host, _, port = address.removeprefix("ray://").partition(":")
    if port:
        with socket.create_connection((host, int(port)), timeout=10):
            return


def _on_this_machine(ray: Any, workers: int, device: str, threads: int, announce: Callable[[str], None]) -> Cluster:
    if device == "cuda":
        if workers > torch.cuda.device_count():
            raise DataError(
                f"--workers {workers}: expected a GPU each, found {torch.cuda.device_count()} on this machine."
            )
        return Cluster(ray, "cuda", 1, lambda: workers)
    cores = os.cpu_count() or 1
    if workers * threads > cores:
        announce(
            f"precompute: {workers} workers of {threads} threads each share {cores} cores. OMP_NUM_THREADS sets the "
            "threads of one; rows are the same bytes where it is the same."
        )
    return Cluster(ray, "cpu", threads, lambda: workers)


def _on_cluster(ray: Any, device: str | None, threads: int) -> Cluster:
    has_gpus = ray.cluster_resources().get("GPU", 0) >= 1
    on_gpu = device == "cuda" or (device is None and has_gpus)
    num_cpus, num_gpus = (1, 1) if on_gpu else (threads, 0)

    def most() -> int:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        rooms = [int(node.get("CPU", 0) // num_cpus) for node in nodes]
        gpus = [int(node.get("GPU", 0)) if num_gpus else room for node, room in zip(nodes, rooms, strict=True)]
        return sum(map(min, rooms, gpus))

    return Cluster(ray, "cuda" if on_gpu else "cpu", num_cpus, most)


def first_line(error: BaseException) -> str:
    """Return the beginning of what an error says: its first line, and not all of a long one."""
    line = (str(error).splitlines() or [type(error).__name__])[0].strip().rstrip(".")
    return line if len(line) <= MOST_SHOWN else f"{line[:MOST_SHOWN]} ..."
