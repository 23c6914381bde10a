"""Jobs, batches and journals: batches are a function of the jobs, what was finished is kept, anything else is not."""

from __future__ import annotations

import dataclasses
import json
import random
import re
from typing import TYPE_CHECKING, Any

import pytest
from evaluation_jobs import BATCH_SIZE, jobs_about
from viker.evaluate import work
from viker.evaluate.generate import generate_replies, score_batch
from viker.evaluate.work import Batch, Job, Journal, in_order, plan, read_journals, run_jobs, run_jobs_here, stamp_of

if TYPE_CHECKING:
    from pathlib import Path

    from viker.models.load import Loaded

BATCHES = [Batch("reply", 4, (0, 2)), Batch("reply", 4, (4,)), Batch("score", 0, (1, 3))]
FOUND: dict[int, list[Any]] = {
    0: ["Paris\n\u2028", ""],
    1: ["\U0001f600 ä"],
    2: [((-0.1, -2.0000000000000004, 1e-320, 1), (-3.0, -1.0, 0.0, 0)), ((-1 / 3, -2.5, 0.5, 0),)],
}
STAMP = {"jobs": "a", "threads": "1"}


@pytest.fixture(scope="module")
def jobs(mini_world: Path) -> list[Job]:
    return jobs_about(mini_world)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[Batch]:
    """The batches that were computed since, in order."""
    seen: list[Batch] = []
    compute = work.compute

    def counted(batch: Batch, *rest: Any) -> list[Any]:
        seen.append(batch)
        return compute(batch, *rest)

    monkeypatch.setattr(work, "compute", counted)
    return seen


def keep(folder: Path, found: dict[int, list[Any]], stamp: dict[str, str] = STAMP) -> None:
    with Journal(folder, stamp) as journal:
        for number, results in found.items():
            journal.append(number, results)


def only_file(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


# ---- Batches ---------------------------------------------------------------------------------------------------------


def test_every_job_is_in_one_batch_of_its_kind_and_length(jobs, tiny):
    batches = plan(jobs, tiny.encoder, BATCH_SIZE)
    assert sorted(index for batch in batches for index in batch.jobs) == list(range(len(jobs)))
    for batch in batches:
        chosen = [jobs[index] for index in batch.jobs]
        assert {(job.kind, job.max_new_tokens) for job in chosen} == {(batch.kind, batch.max_new_tokens)}
        assert len(chosen) <= BATCH_SIZE


def test_batches_depend_on_the_jobs_alone_even_where_an_encoder_forgot_its_pictures(jobs, tiny, monkeypatch):
    expected = plan(jobs, tiny.encoder, BATCH_SIZE)
    monkeypatch.setattr("viker.models.expand._PICTURE_BYTES", 0)
    assert plan(jobs, tiny.encoder, BATCH_SIZE) == expected


def test_replies_and_scores_are_those_of_the_functions_that_make_them(jobs, tiny):
    few = jobs[:12]
    results = run_jobs_here(few, tiny.model, tiny.encoder, batch_size=BATCH_SIZE, desc="ask")
    for job, result in zip(few, results, strict=True):
        if job.kind == "reply":
            alone = generate_replies(
                tiny.model, tiny.encoder, [job.example], max_new_tokens=job.max_new_tokens, batch_size=1
            )
            assert [result] == alone
        else:
            (tokens,) = score_batch(tiny.model, tiny.encoder, [tiny.encoder.encode(job.example)], [job.example.id])
            assert [token[3] for token in result] == [token[3] for token in tokens]
            assert [token[0] for token in result] == pytest.approx([token[0] for token in tokens], abs=1e-4)
    assert len({result for result in results if isinstance(result, str)}) > 1


# ---- Journals --------------------------------------------------------------------------------------------------------


def test_what_journals_hold_is_what_was_given_them_bit_for_bit(tmp_path):
    keep(tmp_path, {0: FOUND[0]})
    keep(tmp_path, {2: FOUND[2], 1: FOUND[1]})
    assert read_journals(tmp_path, STAMP, BATCHES) == FOUND


def test_numbers_survive_exactly(tmp_path):
    draw = random.Random(0)
    tokens = tuple((-draw.expovariate(1), -draw.random() * 10 ** draw.randint(-300, 2), draw.random(), 1)
                   for _ in range(1000))  # fmt: skip
    keep(tmp_path, {1: [tokens]})
    assert read_journals(tmp_path, STAMP, [Batch("reply", 4, (0,)), Batch("score", 0, (1,))]) == {1: [tokens]}


@pytest.mark.parametrize("cut", [1, 2, 10, 60])
def test_a_torn_line_is_left_out_and_said(tmp_path, cut, capsys):
    keep(tmp_path, FOUND)
    path = only_file(tmp_path)
    path.write_bytes(path.read_bytes()[:-cut])
    assert read_journals(tmp_path, STAMP, BATCHES) == {0: FOUND[0], 1: FOUND[1]}
    assert "1 batch(es) were being written when a run ended, and are computed again" in capsys.readouterr().err


@pytest.mark.parametrize(
    "line",
    [
        "", "[]", "nothing", '{"batch": 9, "results": ["a"]}', '{"batch": true, "results": ["a"]}',
        '{"batch": 1, "results": []}', '{"batch": 1, "results": [1]}', '{"batch": 2, "results": ["a", "b"]}',
        '{"batch": 2, "results": [[[-1.0, -1.0, 1.0, 0]], []]}', '{"batch": 2, "results": [[[-1.0, -1.0, 0]], [[1]]]}',
    ],
)  # fmt: skip
def test_a_line_that_is_no_batch_is_computed_again(tmp_path, line):
    keep(tmp_path, {0: FOUND[0]})
    with only_file(tmp_path).open("a") as stream:
        stream.write(f"{line}\n")
    assert read_journals(tmp_path, STAMP, BATCHES) == {0: FOUND[0]}


@pytest.mark.parametrize(
    ("first", "named"),
    [
        (json.dumps({"schema": work.SCHEMA, "stamp": {**STAMP, "threads": "2"}}), "threads"),
        (json.dumps({"schema": work.SCHEMA, "stamp": {**STAMP, "jobs": "b", "more": ""}}), "jobs, more"),
        (json.dumps({"schema": "viker/evaluation-journal/0", "stamp": STAMP}), "format"),
        ('{"schema', "format"),
        ("", "format"),
    ],
)
def test_a_journal_of_something_else_is_thrown_away_and_said(tmp_path, first, named, capsys):
    keep(tmp_path, FOUND)
    path = only_file(tmp_path)
    path.write_text("\n".join([first, *path.read_text().split("\n")[1:]]))
    keep(tmp_path, {0: FOUND[0]})
    assert read_journals(tmp_path, STAMP, BATCHES) == {0: FOUND[0]}
    assert f"thrown away: made for other {named}\n" in capsys.readouterr().err
    assert len(list(tmp_path.iterdir())) == 1


def test_results_come_in_the_order_of_the_jobs_and_none_may_be_missing():
    assert in_order(BATCHES, FOUND) == [FOUND[0][0], FOUND[2][0], FOUND[0][1], FOUND[2][1], FOUND[1][0]]
    with pytest.raises(ValueError, match=r"expected the results of 3 batches, found none of 1 of them"):
        in_order(BATCHES, {0: FOUND[0], 1: FOUND[1]})


def test_journals_are_synced_now_and_then_and_at_the_end(tmp_path, monkeypatch):
    clock, synced = [0.0], []
    monkeypatch.setattr(work.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(work.os, "fsync", lambda descriptor: synced.append(clock[0]))
    with Journal(tmp_path, STAMP) as journal:
        for _ in range(30):
            clock[0] += 0.1
            journal.append(0, FOUND[0])
            assert only_file(tmp_path).read_bytes().endswith(b"]}\n"), "what is given is with the system at once"
    assert len(synced) == 4
    assert synced[0] == 0.0
    assert synced[-1] == clock[0]


# ---- Running again ---------------------------------------------------------------------------------------------------


def test_an_interrupted_run_goes_on_where_it_was(jobs, tiny, tmp_path, computed, monkeypatch):
    jobs = jobs[:32]
    whole = run_jobs(jobs, tiny, batch_size=BATCH_SIZE, folder=tmp_path / "whole", desc="ask")
    num_batches = len(computed)
    append = Journal.append

    def interrupted(journal: Journal, number: int, results: Any) -> None:
        append(journal, number, results)
        if number == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "append", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_jobs(jobs, tiny, batch_size=BATCH_SIZE, folder=tmp_path / "broken", desc="ask")
    monkeypatch.setattr(Journal, "append", append)
    computed.clear()
    assert run_jobs(jobs, tiny, batch_size=BATCH_SIZE, folder=tmp_path / "broken", desc="ask") == whole
    assert len(computed) == num_batches - 4
    computed.clear()
    assert run_jobs(jobs, tiny, batch_size=BATCH_SIZE, folder=tmp_path / "broken", desc="ask") == whole
    assert computed == []


def other_rendering(loaded: Loaded, mark: str) -> Loaded:
    """The same model, asked behind a system turn."""
    from viker.models.encode import Encoder

    encoder, rendering = loaded.encoder, dataclasses.replace(loaded.rendering, system_prompt=mark)
    changed = Encoder(
        encoder.processor, rendering, context_length=encoder.context_length, vocab_size=encoder.vocab_size,
        where=loaded.checkpoint.processor,
    )  # fmt: skip
    return dataclasses.replace(loaded, encoder=changed)


@pytest.mark.parametrize("named", ["batches", "jobs", "encoder"])
def test_what_decides_a_result_is_in_the_stamp(jobs, tiny, tmp_path, capsys, computed, named):
    few = jobs[:4]
    run_jobs(few, tiny, batch_size=2, folder=tmp_path, desc="ask")
    computed.clear()
    other = dataclasses.replace(few[0], max_new_tokens=few[0].max_new_tokens + 1)
    changed: dict[str, tuple[list[Job], Loaded, int]] = {
        "batches": (few, tiny, 1), "jobs": ([other, *few[1:]], tiny, 2),
        "encoder": (few, other_rendering(tiny, "Be brief."), 2),
    }  # fmt: skip
    asked, loaded, batch_size = changed[named]
    run_jobs(asked, loaded, batch_size=batch_size, folder=tmp_path, desc="ask")
    assert sum(len(batch.jobs) for batch in computed) == len(few)
    assert re.search(rf"thrown away: made for other .*\b{named}\b", capsys.readouterr().err)


def test_another_number_of_threads_is_another_run_on_a_cpu_alone():
    assert work.device_stamp("cpu", 1) != work.device_stamp("cpu", 2)
    assert work.device_stamp("cuda:1", 1) == work.device_stamp("cuda", 2)


def test_a_stamp_names_the_weights(jobs, tiny):
    stamp = stamp_of(jobs[:2], [], tiny.encoder, work._model_stamp(tiny))
    assert {"weights", "dtype", "attention", "device", "threads", "libraries"} < set(stamp)
    assert stamp["threads"] == "1"


def test_a_bar_counts_questions_from_where_a_run_goes_on():
    bar = work.progress("ask", BATCHES, [0])
    assert (bar.n, bar.total) == (2, 5)
    bar.close()
