"""Evaluation as a list of jobs, cut into batches that anyone may compute and keep, so that a kill costs little.

A job is one reply to generate or one answer to score. How jobs are cut into batches is a function of the jobs and the
batch size alone, and on one kind of device what a batch gives is a function of the batch; so results do not depend on
how many processes compute, or on how often they were killed. Each process appends what it finished to a journal of its
own; a line that a kill tore is left out and computed again. A journal says what it was made for (jobs, batches, model,
encoder, libraries, threads on a CPU): one made for anything else is thrown away, and it is said.

What a batch costs and how it is computed is `generate.py`'s; several processes are `processes.py`'s, vLLM is
`vllm_replies.py`'s. Journals hold replies: who asks removes the folder once the answers are written.
"""

import hashlib
import json
import math
import os
import secrets
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from tqdm import tqdm

from ..data.artefact import library_versions
from ..data.example import DataError, Example, canonical_json
from ..models.encode import Encoded, Encoder
from ..models.expand import Picture
from ..models.identity import processor_digest, tokenizer_digest, weights_digest
from ..models.load import Loaded
from .generate import TokenScores, reply_batch, reply_batches, score_batch, score_batches
from .protocols.spacing import encode_published

SCHEMA = "viker/evaluation-journal/1"
SYNC_SECONDS = 1.0
Kind = Literal["reply", "score"]
Result = str | TokenScores


@dataclass(frozen=True, slots=True)
class Job:
    """One question to put to a model: its `reply`, of at most `max_new_tokens`, or the `score` of its answer.

    `text` is the whole prompt of a reply as published, where the model's own template would space it otherwise.
    """

    kind: Kind
    example: Example
    max_new_tokens: int = 0
    text: str | None = None


class Batch(NamedTuple):
    """Jobs of one kind that are computed together, as places in the list of jobs."""

    kind: Kind
    max_new_tokens: int
    jobs: tuple[int, ...]


def encode_job(encoder: Encoder, job: Job) -> Encoded:
    """Return what the model reads for a job."""
    if job.text is not None:
        return encode_published(encoder, job.example, job.text)
    return encoder.encode_prompt(job.example) if job.kind == "reply" else encoder.encode(job.example)


def plan(jobs: Sequence[Job], encoder: Encoder, batch_size: int) -> list[Batch]:
    """Cut jobs into batches: each job in one of them, those of one kind and length of reply together.

    Raises:
        DataError: a job cannot be encoded.
    """
    groups: dict[tuple[Kind, int], list[int]] = {}
    for index, job in enumerate(jobs):
        groups.setdefault((job.kind, job.max_new_tokens if job.kind == "reply" else 0), []).append(index)
    outlines: dict[str, Picture] = {}
    batches = []
    for (kind, longest), indices in sorted(groups.items()):
        rows = [_outlined(encode_job(encoder, jobs[index]), jobs[index], outlines) for index in indices]
        cut = reply_batches(rows, batch_size) if kind == "reply" else score_batches(rows, batch_size)
        batches += [Batch(kind, longest, tuple(indices[place] for place in places)) for places in cut]
    return batches


def _outlined(row: Encoded, job: Job, outlines: dict[str, Picture]) -> Encoded:
    """Return a row without the pixels of its pictures, which are one object for one image.

    Thousands of pictures do not fit in memory, and an encoder that forgot one makes another object of it.
    """
    images = job.example.images
    for image, picture in zip(images, row.pictures, strict=True):
        outlines.setdefault(image.sha256, replace(picture, tensors={}))
    return replace(row, pictures=tuple(outlines[image.sha256] for image in images), token_inputs={})


def compute(batch: Batch, jobs: Sequence[Job], model: Any, encoder: Encoder) -> list[Result]:
    """Return the results of a batch's jobs, in its order, by a loaded model."""
    chosen = [jobs[index] for index in batch.jobs]
    rows = [encode_job(encoder, job) for job in chosen]
    if batch.kind == "reply":
        return list(reply_batch(model, encoder, rows, batch.max_new_tokens))
    return list(score_batch(model, encoder, rows, [job.example.id for job in chosen]))


def run_jobs_here(jobs: Sequence[Job], model: Any, encoder: Encoder, *, batch_size: int, desc: str) -> list[Result]:
    """Compute jobs in this process and return their results in order, keeping nothing: for models made on the way.

    Raises:
        DataError: a job cannot be encoded, or the model gives no finite number for one.
    """
    batches = plan(jobs, encoder, batch_size)
    done = {}
    with progress(desc, batches, ()) as bar:
        for number, batch in enumerate(batches):
            done[number] = compute(batch, jobs, model, encoder)
            bar.update(len(batch.jobs))
    return in_order(batches, done)


def run_jobs(jobs: Sequence[Job], loaded: Loaded, *, batch_size: int, folder: Path, desc: str) -> list[Result]:
    """Compute jobs in this process and return their results in order: a text a reply, token scores a score.

    Args:
        jobs: what to ask.
        loaded: the model, with the weights of its checkpoint.
        batch_size: most jobs a batch.
        folder: where journals are, of this and of earlier runs.
        desc: name of the progress bar.

    Raises:
        DataError: a job cannot be encoded, or the model gives no finite number for one.
    """
    batches = plan(jobs, loaded.encoder, batch_size)
    stamp = stamp_of(jobs, batches, loaded.encoder, _model_stamp(loaded))
    done = read_journals(folder, stamp, batches)
    if len(done) == len(batches):
        return in_order(batches, done)
    with progress(desc, batches, done) as bar, Journal(folder, stamp) as journal:
        for number, batch in enumerate(batches):
            if number not in done:
                done[number] = compute(batch, jobs, loaded.model, loaded.encoder)
                journal.append(number, done[number])
                bar.update(len(batch.jobs))
    return in_order(batches, done)


def _model_stamp(loaded: Loaded) -> dict[str, str]:
    weights = next(loaded.model.parameters())
    return {
        "weights": weights_digest(loaded.checkpoint),
        "dtype": str(weights.dtype).removeprefix("torch."),
        "attention": str(loaded.model.config._attn_implementation),
        **device_stamp(str(loaded.device), torch.get_num_threads()),
    }


def device_stamp(device: str, num_threads: int) -> dict[str, str]:
    """Return what of a device decides last bits: its kind, and on a CPU the number of threads."""
    kind = torch.device(device).type
    return {"device": kind, "threads": str(num_threads) if kind == "cpu" else "any"}


def in_order(batches: Sequence[Batch], done: Mapping[int, Sequence[Result]]) -> list[Result]:
    """Return the results of all jobs in the order of the jobs.

    Raises:
        DataError: a batch is missing.
    """
    missing = [number for number in range(len(batches)) if number not in done]
    if missing:
        raise DataError(
            f"evaluate: expected the results of {len(batches)} batches, found none of {len(missing)} of them. Another "
            "evaluation may have used the same folder: run the same command again, alone."
        )
    found = {
        index: value
        for number, batch in enumerate(batches)
        for index, value in zip(batch.jobs, done[number], strict=True)
    }
    return [found[index] for index in range(len(found))]


def progress(desc: str, batches: Sequence[Batch], done: Iterable[int]) -> Any:
    """Return the bar of an evaluation, which counts jobs, at what is done."""
    total = sum(len(batch.jobs) for batch in batches)
    finished = sum(len(batches[number].jobs) for number in done)
    return tqdm(total=total, initial=finished, desc=desc, unit="question", leave=False)


def say(text: str) -> None:
    """Say something beside a progress bar."""
    tqdm.write(text, file=sys.stderr)


# ---- Journals --------------------------------------------------------------------------------------------------------


def stamp_of(
    jobs: Sequence[Job], batches: Sequence[Batch], encoder: Encoder, model: Mapping[str, str]
) -> dict[str, str]:
    """Return what decides the results of batches, by name: two runs with equal stamps may share what they finished."""
    asked = [[job.kind, job.example.id, job.example.digest(), job.max_new_tokens] for job in jobs]
    reading = [tokenizer_digest(encoder.tokenizer), processor_digest(encoder.processor), encoder.rendering.identity()]
    return {
        "jobs": _digest(asked),
        "batches": _digest([[batch.kind, batch.max_new_tokens, list(batch.jobs)] for batch in batches]),
        "encoder": _digest(reading),
        "libraries": _digest(library_versions()),
        **model,
    }


class Journal:
    """Appends finished batches to a file of its own, from construction on; a kill loses what it has not been given."""

    def __init__(self, folder: Path, stamp: Mapping[str, str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        name = f"batches-{os.getpid()}-{secrets.token_hex(4)}.jsonl"
        self._stream = (folder / name).open("x", encoding="utf-8")
        self._synced = -math.inf
        self._write({"schema": SCHEMA, "stamp": dict(stamp)})

    def append(self, number: int, results: Sequence[Result]) -> None:
        """Keep the results of a batch."""
        self._write({"batch": number, "results": list(results)})

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        with self._stream:
            os.fsync(self._stream.fileno())

    def _write(self, line: Mapping[str, Any]) -> None:
        self._stream.write(json.dumps(line, allow_nan=False) + "\n")
        self._stream.flush()  # outlives this process; to outlive the machine costs more, so not for every batch
        if time.monotonic() - self._synced > SYNC_SECONDS:
            os.fsync(self._stream.fileno())
            self._synced = time.monotonic()


def read_journals(folder: Path, stamp: Mapping[str, str], batches: Sequence[Batch]) -> dict[int, list[Result]]:
    """Return what the journals of a folder hold, by number of the batch; those of another stamp are thrown away."""
    done: dict[int, list[Result]] = {}
    num_torn, others = 0, dict[str, None]()
    for path in sorted(folder.glob("batches-*.jsonl")):
        lines = path.read_bytes().split(b"\n")
        differing = _differing(lines[0], stamp)
        if differing:
            path.unlink()
            others |= dict.fromkeys(differing)
            continue
        read = [_batch(line, batches) for line in lines[1:-1]]
        num_torn += read.count(None) + bool(lines[-1])
        done |= dict(one for one in read if one is not None)
    if others:
        say(f"evaluate: {folder}: what an earlier run finished was thrown away: made for other {', '.join(others)}")
    if num_torn:
        say(f"evaluate: {folder}: {num_torn} batch(es) were being written when a run ended, and are computed again")
    return done


def _differing(line: bytes, stamp: Mapping[str, str]) -> list[str]:
    """Return the names under which the first line of a journal differs from a stamp."""
    header = _parse(line)
    found = header.get("stamp") if header.get("schema") == SCHEMA else None
    if not isinstance(found, dict):
        return ["format"]
    return sorted(name for name in {*found, *stamp} if found.get(name) != stamp.get(name))


def _batch(line: bytes, batches: Sequence[Batch]) -> tuple[int, list[Result]] | None:
    """Return the number and the results that a line holds, or None where it does not hold those of a batch."""
    record = _parse(line)
    number, values = record.get("batch"), record.get("results")
    if type(number) is not int or not 0 <= number < len(batches) or not isinstance(values, list):
        return None
    batch = batches[number]
    is_valid = _is_reply if batch.kind == "reply" else _is_score
    if len(values) != len(batch.jobs) or not all(map(is_valid, values)):
        return None
    return number, [value if isinstance(value, str) else tuple(map(tuple, value)) for value in values]


def _parse(line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def _is_reply(value: Any) -> bool:
    return isinstance(value, str)


def _is_score(value: Any) -> bool:
    """Tell whether these are token scores: three numbers and a yes or no for each token of an answer."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(token, list) and list(map(type, token)) == [float, float, float, int] for token in value)
    )


def _digest(value: Any) -> str:
    return hashlib.sha256(canonical_json(value)).hexdigest()
