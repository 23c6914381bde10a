"""Sweeps that run: processes that fail or are interrupted, what is complete is not started, two phases, and a real one.

Where nothing is to be learned, a small program stands in for `viker`: it writes what a stage would write, and notes
that it was called.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from command_line import call, succeed
from viker.sweep import collect, commands, local
from viker.sweep.collect import Bar, SweptRun
from viker.sweep.local import Task, environment_of, run_tasks
from viker.sweep.results import read_result

if TYPE_CHECKING:
    from collections.abc import Sequence

STAND_IN = """
import contextlib, io, json, os, sys
from pathlib import Path

words = sys.argv[1:]
with open(os.environ["CALLS"], "a") as calls:
    calls.write(json.dumps(words) + "\\n")
said = dict(zip(words, words[1:]))
provenance = {"finished": "now", "wall_seconds": 1.0, "cache": {"key": "ab" * 32, "root": "cd" * 32}}

def finish(directory):
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "provenance.json").write_text(json.dumps(provenance))
    (directory / "COMPLETE").write_text("complete\\n")

def adapter():
    # what `viker train` decides about: a directory, and what names it
    from viker import cli
    from viker.train import commands as train

    decided = []
    train.decide = lambda output, config, **_: decided.append((output, config)) or "run"
    with contextlib.redirect_stdout(io.StringIO()):
        cli.viker.main([*words, "--dry-run"], standalone_mode=False)
    return decided[0]

if "train" in words:
    rate, world = float(said["--learning-rate"]), Path(said["--run"]).name
    if f"{said['--method']} {rate:g} {world}" in os.environ.get("FAILS", "").split(","):
        sys.exit("step 7: expected a finite loss, found inf.")
    heldout = {"ga": 0.2, "viker": 0.5}[said["--method"]] + 10 * rate
    directory, config = adapter()
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config))
    lines = [{"schema": "viker/trajectory/1", "step": step, "forget_fact": forget, "retain_heldout_fact": kept}
             for step, forget, kept in ((0, 1.0, 1.0), (4, 0.05, heldout))]
    (directory / "trajectory.jsonl").write_text("".join(json.dumps(line) + "\\n" for line in lines))
    finish(directory)
elif "precompute" in words:
    split = said.get("--split", "forget")
    finish(Path(said["--run"]) / "precompute" / f"{said['--teacher']}-{split}")
elif "evaluate" in words:
    for target in ("vanilla", "retain-only"):
        finish(Path(said["--run"]) / "evaluations" / target)
else:
    finish(Path(said["--output"] if "--output" in said else said["mini"]))
"""
SWEEP = ("sweep", "--methods", "ga,viker", "--learning-rates", "1e-3,2e-3", "--jobs", "2")


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder in which the program stands in for processes of `viker`, and runs have a bar of 0.1."""
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CALLS", str(tmp_path / "calls.jsonl"))
    monkeypatch.setattr(commands, "as_process", lambda words: [sys.executable, str(tmp_path / "stand_in.py"), *words])
    monkeypatch.setattr(commands, "read_bar", lambda run: Bar(0.1, None))
    monkeypatch.setattr(commands, "read_run", swept_run)
    return tmp_path


def swept_run(run):
    models = {name: {"forget_fact": 0.0, "retain_heldout_fact": 1.0} for name in ("vanilla", "retain-only")}
    return SweptRun(
        name=run.name, role=run.role, path=str(run.path), threshold=0.1, reason=None, models=models,
        key_word_auroc=None, wall_seconds={},
    )  # fmt: skip


def calls(workplace: Path, stage: str = "train") -> list[Sequence[str]]:
    """What the stand-in was called with since the last look."""
    path = workplace / "calls.jsonl"
    found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    path.write_text("")
    return [words for words in found if stage in words]


def trained_in(words):
    return Path(words[words.index("--run") + 1]).name


def test_settings_are_chosen_on_development_worlds_and_only_those_are_trained_on_unseen_ones(workplace):
    outcome = succeed(*SWEEP, "--dev", "1,2", "--worlds", "11")
    asked = calls(workplace)
    assert [trained_in(words) for words in asked].count("world-1") == 4
    assert [words[words.index("--learning-rate") + 1] for words in asked if trained_in(words) == "world-11"] == [
        "0.002"
    ] * 2
    result = read_result(workplace / "runs" / "sweep" / "sweep.json")
    assert {name: choice.label for name, choice in result.chosen.items()} == {
        "ga": "ga lr=0.002",
        "viker": "viker lr=0.002",
    }
    assert [row.label for row in result.rows] == ["viker lr=0.002", "ga lr=0.002"]
    assert "1. `viker lr=0.002` | 0.05 | 0.52 |" in outcome.out
    assert (workplace / "runs" / "sweep" / "sweep.md").is_file()


def test_what_is_complete_is_not_started_again(workplace):
    succeed(*SWEEP, "--worlds", "11")
    assert len(calls(workplace)) == 4
    outcome = succeed(*SWEEP, "--worlds", "11", "--seeds", "0,1")
    assert [words[words.index("--seed") + 1] for words in calls(workplace)] == ["1"] * 4
    assert "8 jobs, 4 of them complete" in outcome.err


def test_lines_are_printed_phase_by_phase_and_do_what_the_sweep_does(workplace, monkeypatch):
    sweep = (*SWEEP, "--dev", "1", "--worlds", "11")
    (workplace / "python").write_text(f'#!/bin/sh\nshift 2\nexec "{sys.executable}" "{workplace}/stand_in.py" "$@"\n')
    (workplace / "python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(workplace / "python"))
    unprepared = succeed(*sweep, "--dry-run")
    assert (
        len(unprepared.out.splitlines()),
        "run the lines of `--dry-run=prepare` first: 1, 11" in unprepared.err,
    ) == (4, True)
    printed = {"prepare": [2, 0], "jobs": [4, 2, 0]}
    for mode, lengths in printed.items():
        for length in lengths:
            lines = succeed(*sweep, f"--dry-run={mode}").out.splitlines()
            assert len(lines) == length
            for line in lines:
                subprocess.run(["bash", "-c", line], check=True, cwd="/")
    calls(workplace)
    assert "without --dry-run the results are written" in succeed(*sweep, "--dry-run").err
    succeed(*sweep)
    assert calls(workplace) == []


def test_a_failed_job_stops_no_other_and_is_named_with_its_last_lines(workplace, monkeypatch):
    monkeypatch.setenv("FAILS", "ga 0.002 world-1")
    outcome = call(*SWEEP, "--dev", "1", "--worlds", "11")
    assert outcome.code == 1
    assert "found 1 of 6 that did not; the others are kept" in outcome.message
    assert (
        "ga lr=0.002 seed=0 in runs/sweep/world-1: exit 1, runs/sweep/world-1/logs/ga_lr=0.002_seed=0.log"
        in outcome.err
    )
    assert "    step 7: expected a finite loss, found inf." in outcome.err
    result = read_result(workplace / "runs" / "sweep" / "sweep.json")
    assert result.chosen["ga"].label == "ga lr=0.001"
    assert result.failed == ("ga lr=0.002 seed=0 in runs/sweep/world-1",)
    lines = succeed(*SWEEP, "--dev", "1", "--worlds", "11", "--dry-run").out.splitlines()
    assert ["--learning-rate 0.002" in line for line in lines] == [True]
    assert succeed(*SWEEP, "--dev", "1", "--worlds", "11", "--dry-run=unseen").out == ""
    monkeypatch.delenv("FAILS")
    succeed(*SWEEP, "--dev", "1", "--worlds", "11")
    assert read_result(workplace / "runs" / "sweep" / "sweep.json").failed == ()


def test_where_everything_fails_nothing_is_written(workplace, monkeypatch):
    monkeypatch.setenv("FAILS", "ga 0.002 world-11")
    outcome = call("sweep", "--methods", "ga", "--learning-rates", "2e-3", "--worlds", "11", "--jobs", "1")
    assert (outcome.code, (workplace / "runs" / "sweep" / "sweep.json").exists()) == (1, False)


def test_a_run_that_was_given_is_swept_where_it_is(workplace):
    run = workplace / "mine"
    for name in ("data", "vanilla"):
        (run / name).mkdir(parents=True)
    outcome = succeed(*SWEEP, "--run", "mine", "--data", "mine/data", "--model", "mine/vanilla", "--pool", "patterns")
    assert (run / "sweep.json").is_file()
    assert "best of many looks" in outcome.out
    assert len(list((run / "adapters").iterdir())) == 4
    assert len(list((run / "logs").glob("viker_*.log"))) == 2


def test_the_bar_of_a_run_is_retain_onlys_and_a_run_without_facts_has_none(tmp_path):
    from viker.sweep.prepare import Run

    run = Run("own", "reported", tmp_path, "d", "m")
    assert "holds no evaluation of a retain-only model" in collect.read_bar(run).reason
    (tmp_path / "evaluations" / "retain-only").mkdir(parents=True)
    (tmp_path / "evaluations" / "retain-only" / "COMPLETE").write_text("complete\n")
    assert "marks no facts" in collect.read_bar(run).reason


def shell(name: str, *scripts: str, folder: Path) -> Task:
    return Task(name, tuple(("sh", "-c", script) for script in scripts), folder / f"{name}.log")


def test_commands_of_a_task_follow_each_other_and_end_with_the_first_that_fails(tmp_path):
    told = shell("chain", "echo one", "echo two; exit 3", "echo three", folder=tmp_path)
    (failure,) = run_tasks([told, shell("well", "true", folder=tmp_path)], 2, "tests")
    assert (failure.task, failure.code, failure.tail[-1]) == (told, 3, "two")
    assert "three" not in told.log.read_text()


def test_no_more_run_at_a_time_than_asked_and_several_share_the_cores(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.chdir(tmp_path)
    script = "mkdir $$; ls | grep -c '^[0-9]*$'; sleep 0.2; rmdir $$; echo $OMP_NUM_THREADS"
    tasks = [shell(f"task-{letter}", script, folder=tmp_path) for letter in "abcdef"]
    assert run_tasks(tasks, 2, "tests") == []
    printed = [task.log.read_text().splitlines()[1:] for task in tasks]
    assert max(int(at_a_time) for at_a_time, _ in printed) == 2
    assert {threads for _, threads in printed} == {"1"}
    assert "OMP_NUM_THREADS" not in environment_of(1)
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert environment_of(2)["OMP_NUM_THREADS"] == "4"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_ends_every_process_and_resumes(tmp_path, number):
    sweep = """
import sys
from pathlib import Path
from viker import cli
from viker.sweep.local import Task, run_tasks
import click

@click.command()
def command():
    script = "trap 'echo saved; exit 75' TERM; echo begun; sleep 60 & wait"
    run_tasks([Task(name, (("sh", "-c", script),), Path(name)) for name in ("a.log", "b.log", "c.log")], 2, "tests")

cli.import_module = lambda *_: type("module", (), {"command": command})
sys.argv = ["viker", "sweep"]
cli.main()
"""
    process = subprocess.Popen([sys.executable, "-c", sweep], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 60
    logs = [tmp_path / name for name in ("a.log", "b.log")]
    while not all(log.exists() and log.read_text().endswith("begun\n") for log in logs):
        assert time.monotonic() < until
        time.sleep(0.02)
    process.send_signal(number)
    _, told = process.communicate(timeout=30)
    assert (process.returncode, "Interrupted. Run the same command again" in told) == (75, True)
    assert [log.read_text().splitlines()[-1] for log in logs] == ["saved", "saved"]
    assert not (tmp_path / "c.log").exists()


def test_what_does_not_end_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "_GRACE_SECONDS", 0.2)
    stubborn = shell("stubborn", "trap '' TERM; echo $$; sleep 60; sleep 60", folder=tmp_path)
    killer = shell("killer", f"sleep 0.3; kill -INT {os.getpid()}; sleep 60", folder=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run_tasks([stubborn, killer], 2, "tests")
    with pytest.raises(ProcessLookupError):
        os.kill(int(stubborn.log.read_text().splitlines()[-1]), 0)


PROBE = """
import sys
from viker.train import see
see.NUM_STEPS = 10  # 1200 steps of learning to see take half a minute
from viker.cli import main
main()
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)  # ten processes, each of which loads torch, on a machine with other work
def test_a_real_sweep_of_two_jobs_on_a_world_of_twenty_people(tmp_path, monkeypatch):
    (tmp_path / "probe.py").write_text(PROBE)
    mini = (Path(commands.__file__).parents[1] / "presets" / "mini.toml").read_text()
    for many, few in (("people = 60", "people = 20"), ("epochs = 6", "epochs = 1"), ("epochs = 40", "epochs = 2"),
                      ("num-references = 8", "num-references = 2")):  # fmt: skip
        assert many in mini
        mini = mini.replace(many, few)
    (tmp_path / "small.toml").write_text(mini)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(commands, "as_process", lambda words: [sys.executable, str(tmp_path / "probe.py"), *words])
    sweep = (
        "--preset", "small.toml", "sweep", "--worlds", "3", "--methods", "ga,recommended", "--learning-rates", "2e-3",
        "--num-train-epochs", "2", "--evaluate-people", "1", "--jobs", "2",
    )  # fmt: skip
    outcome = succeed(*sweep)
    result = read_result(tmp_path / "runs" / "sweep" / "sweep.json")
    assert {one.contender: one.needs_retain for one in result.trained} == {"ga": False, "recommended": True}
    assert all([point["step"] for point in one.points] == [0, 4] for one in result.trained)
    assert result.runs[0].threshold > 0
    assert result.runs[0].key_word_auroc is not None
    assert "`recommended lr=0.002`" in outcome.out
    assert "2 jobs, 2 of them complete" in succeed(*sweep).err
