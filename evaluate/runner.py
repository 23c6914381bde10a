"""Where the jobs of one model are computed: in this process, in several, or replies by vLLM and likelihoods here.

A model is loaded when it is first needed, so that an evaluation whose batches are all kept loads none. What a batch is
and what is kept of it is `work.py`'s.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..models.load import Checkpoint, Loaded, pick_device, resolve
from .processes import Loading, run_jobs_in_processes
from .work import Job, Result, run_jobs


def loading_of(options: Mapping[str, Any], checkpoint: Checkpoint) -> Loading:
    """Return how a model is loaded, as the options say."""
    return Loading(
        checkpoint=checkpoint, device=pick_device(options["device"]), dtype=options["dtype"],
        attention=options["attention"], trust_remote_code=options["trust_remote_code"],
        chat_template=options["chat_template"], system_prompt=options["system_prompt"],
        score_end_token=options["score_end_token"],
    )  # fmt: skip


def checkpoint_of(options: Mapping[str, Any], spec: str) -> Checkpoint:
    """Return a target's checkpoint."""
    return resolve(spec, revision=options["revision"], processor=options["processor"])


class Once:
    """A model that is loaded when it is first asked for, and kept until it is forgotten."""

    def __init__(self, load: Callable[[], Loaded]) -> None:
        self._load = load
        self._loaded: Loaded | None = None

    def __call__(self) -> Loaded:
        """Return it, loaded now or before."""
        if self._loaded is None:
            self._loaded = self._load()
        return self._loaded

    def forget(self) -> None:
        """Let its memory go."""
        self._loaded = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


class Runner(NamedTuple):
    """Where jobs of one model are computed: here, in several processes, or replies by vLLM and scores here."""

    options: Mapping[str, Any]
    loading: Loading
    model: Once
    folder: Path

    def __call__(self, jobs: Sequence[Job], desc: str) -> list[Result]:
        """Return the results of jobs, in order; finished batches are kept in the folder."""
        if self.options["engine"] == "vllm":
            return self._replies_by_vllm(jobs, desc)
        return self._run(jobs, desc)

    def require_loadable(self) -> None:
        """Load the model, and keep it only where nobody else computes beside this process."""
        self.model()
        if self.options["engine"] == "vllm" or self.options["processes"] > 1:
            self.model.forget()

    def _run(self, jobs: Sequence[Job], desc: str) -> list[Result]:
        batch_size, processes = self.options["batch_size"], self.options["processes"]
        if processes > 1:
            return run_jobs_in_processes(
                jobs, self.loading, num_processes=processes, batch_size=batch_size, folder=self.folder, desc=desc
            )
        return run_jobs(jobs, self.model(), batch_size=batch_size, folder=self.folder, desc=desc)

    def _replies_by_vllm(self, jobs: Sequence[Job], desc: str) -> list[Result]:
        from .vllm_replies import run_jobs_with_vllm

        is_reply = [job.kind == "reply" for job in jobs]
        replies = iter(
            run_jobs_with_vllm(
                [job for job in jobs if job.kind == "reply"], self.loading, options=self.options["vllm_options"],
                folder=self.folder / "vllm", desc=desc,
            )
        )  # fmt: skip
        scores = iter(self._run([job for job in jobs if job.kind != "reply"], f"{desc}, likelihoods"))
        return [next(replies) if reply else next(scores) for reply in is_reply]
