"""Jobs about a small world, a program that computes them in several processes, and children that come to grief.

python evaluation_jobs.py WORLD MODEL FOLDER NUM_PROCESSES NUM_EXAMPLES
"""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from viker.data.example import DataError
from viker.data.sources import open_source
from viker.evaluate.processes import Compute, Loading, run_jobs_in_processes
from viker.evaluate.work import Job
from viker.models.load import resolve

BATCH_SIZE = 4


def jobs_about(world: Path, num_examples: int = 48) -> list[Job]:
    """Replies of two lengths and scores, about pictures and without, in no order that batches keep."""
    examples = list(open_source(str(world)).read("retain"))[:num_examples]
    replies = [Job("reply", example, 4 if index % 3 else 24) for index, example in enumerate(examples)]
    scores = [Job("score", example) for example in examples]
    return [job for pair in zip(replies, scores, strict=True) for job in pair]


def loading_of(model: Path) -> Loading:
    return Loading(checkpoint=resolve(str(model)), device="cpu")


@dataclass(frozen=True)
class Refusing:
    """A child that cannot go on, for a reason a user understands."""

    def open(self, process: int) -> Compute:
        raise DataError("expected a model, found none. Make one.")


@dataclass(frozen=True)
class Broken:
    """A child with a fault of ours."""

    def open(self, process: int) -> Compute:
        raise AssertionError("a fault of ours")


@dataclass(frozen=True)
class Dying:
    """Children that answer any question by its length, until one is killed at the batch of a number."""

    at: int

    def open(self, process: int) -> Compute:
        def answer(batch, jobs):
            if self.at in batch.jobs:
                os.kill(os.getpid(), signal.SIGKILL)
            return [str(len(jobs[index].example.question)) for index in batch.jobs]

        return answer


if __name__ == "__main__":
    world, model, folder = map(Path, sys.argv[1:4])
    try:
        run_jobs_in_processes(
            jobs_about(world, int(sys.argv[5])), loading_of(model), num_processes=int(sys.argv[4]), batch_size=1,
            folder=folder, desc="ask", num_threads=1,
        )  # fmt: skip
    except DataError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(75)
