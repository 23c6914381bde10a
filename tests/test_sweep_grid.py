"""What a sweep tries: axes, settings, the command line of every job, and what has to exist before it."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import click
import pytest
from sweep_cases import RECIPE, asked
from viker.data.example import DataError
from viker.sweep.adapters import NOWHERE, adapter_of
from viker.sweep.grid import draw_axis, expand, option_axis, setting_axis
from viker.sweep.jobs import Job, as_line
from viker.sweep.prepare import Draw, Run, rows_to_make, steps, world
from viker.sweep.study import STUDIES
from viker.train.commands import command as train_command
from viker.train.methods import METHODS


def labels(**options):
    return [setting.label for setting in asked(**options).settings]


def finish(directory):
    directory.mkdir(parents=True)
    (directory / "COMPLETE").write_text("complete\n")
    (directory / "provenance.json").write_text(
        json.dumps({"finished": "now", "cache": {"key": "ab" * 32, "root": "c"}})
    )


def options_of(words):
    """The options that `viker train` reads from words, as it reads them itself."""
    assert words[0] == "train"
    return train_command.make_context("train", list(words[1:])).params


def test_every_combination_of_what_a_method_reads_is_a_setting():
    assert labels(methods="ga,viker", lambdas="0.2,0.4") == [
        "ga lr=0.001", "ga lr=0.002", "viker lr=0.001 lambda=0.2", "viker lr=0.001 lambda=0.4",
        "viker lr=0.002 lambda=0.2", "viker lr=0.002 lambda=0.4",
    ]  # fmt: skip


def test_an_axis_that_makes_no_difference_to_a_method_is_said():
    announced = []
    asked(announced, methods="ga,viker", lambdas="0.2,0.4", top_ks="8,64", num_references="2,8")
    assert announced == [
        "sweep: --lambdas makes no difference to ga", "sweep: --top-ks makes no difference to ga",
        "sweep: --num-references makes no difference to ga",
    ]  # fmt: skip


def test_a_setting_of_some_methods_is_left_out_of_the_others_and_said():
    announced = []
    found = asked(announced, methods="ga,npo", learning_rates=None, hp=("beta=0.1,0.4",)).settings
    assert [setting.label for setting in found] == ["ga", "npo beta=0.1", "npo beta=0.4"]
    assert announced[0].startswith("sweep: --hp beta left out of ga: --hp beta: expected a setting of ga")


def test_a_setting_can_be_meant_for_one_method():
    found = labels(methods="npo,simnpo", learning_rates=None, hp=("npo:beta=0.3,0.4",))
    assert found == ["npo beta=0.3", "npo beta=0.4", "simnpo"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"methods": "ga,viker", "hp": ("beta=0.1",)}, "--hp beta: expected a method that takes it, found none"),
        ({"hp": ("npo:beta=0.1",)}, "expected one of --methods, found npo"),
        ({"lambdas": "-1,1"}, "--lambda"),
        ({"methods": "gaa"}, "expected one of recommended"),
    ],
)
def test_what_no_method_takes_is_refused(options, told):
    with pytest.raises(DataError, match=told):
        asked(**options)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"hp": ("retain=1",)}, "use --retains"),
        ({"hp": ("beta",)}, "expected NAME=a,b"),
        ({"learning_rates": "1e-3,fast"}, "expected numbers joined by commas"),
        ({"top_ks": "8.5"}, "expected numbers joined by commas"),
        ({"worlds": None}, "expected --run DIR, --worlds SEEDS or --study NAME"),
        ({"worlds": "1,2", "dev": "2,3"}, "found 2 in --dev too"),
        ({"run": Path("somewhere")}, "found both"),
        ({"data": "here"}, "expected it with --run alone"),
        ({"train_options": ("--bf16", "--learning-rate=1")}, "--learning-rate=1: expected options that no axis"),
    ],
)
def test_a_grid_that_cannot_be_is_refused(options, told):
    with pytest.raises(click.UsageError, match=told):
        asked(**options)


def test_references_are_an_axis_of_methods_whose_rows_come_from_them():
    methods = [(name, METHODS[name]) for name in ("npo", "viker")]
    found = expand(methods, [draw_axis("num_references", "2,4")], lambda words: "same", [].append)
    assert [setting.label for setting in found] == ["npo", "viker k=2", "viker k=4"]


def test_values_are_taken_once_and_written_as_training_reads_them():
    axis = option_axis("learning_rate", "1e-3,0.001,7e-4")
    assert [choice.words for choice in axis.choices] == [("--learning-rate", "0.001"), ("--learning-rate", "0.0007")]
    assert setting_axis("npo:beta=0.1").choices[0].words == ("--hp", "beta=0.1")


def test_a_method_is_ranked_apart_where_a_weight_brings_retain_data_in():
    from viker.sweep.asked import ranked_as

    ranked = [
        ranked_as(setting)
        for setting in asked(methods="viker,recommended", retains="0,4", learning_rates=None).settings
    ]
    assert ranked == [
        ("viker", False), ("viker with retain", True), ("recommended without retain", False), ("recommended", True)
    ]  # fmt: skip


def test_a_line_says_all_that_a_job_needs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VIKER_CACHE_DIR", "my caches")
    found = asked(methods="viker", learning_rates="1e-3", lambdas="0.2", train_options=("--bf16",))
    (job,) = found.jobs("development", found.settings)
    cd, export, run = [shlex.split(part) for part in as_line([job.words]).split(" && ")]
    assert cd == ["cd", str(tmp_path)]
    assert export == ["export", f"VIKER_CACHE_DIR={tmp_path / 'my caches'}"]
    assert run[:5] == [sys.executable, "-m", "viker", "--preset", "mini"]
    options = options_of(run[5:])
    assert options["method"] == ("viker",)
    assert (options["run"], options["data"]) == (Path("runs/sweep/world-1"), "runs/sweep/world-1/data")
    assert (options["learning_rate"], options["lambda_"], options["seed"]) == (1e-3, 0.2, 0)
    assert (options["num_train_epochs"], options["evaluate_every"], options["evaluate_people"]) == (10.0, 4, 12)
    assert (options["stop"], options["bf16"]) == (False, True)


@pytest.mark.parametrize("method", METHODS)
def test_every_job_of_the_methods_study_is_a_training(method):
    found = asked(study="methods", methods=method, learning_rates=None, worlds=None, dev=None)
    jobs = found.jobs("development", found.settings)
    rates = [float(rate) for rate in STUDIES["methods"].learning_rates.split(",")]
    assert sorted(options_of(job.words[2:])["learning_rate"] for job in jobs) == sorted(rates * 2)
    assert len({job.log for job in jobs}) == len(jobs)


def test_a_study_is_all_methods_on_worlds_that_are_told_apart():
    found = asked(**dict.fromkeys(("methods", "learning_rates", "worlds", "dev")), study="methods")
    assert {setting.method for setting in found.settings} == set(METHODS)
    assert [run.name for run in found.under("development")] == ["1", "2"]
    assert [run.name for run in found.under("reported")] == ["11", "12", "13"]


def test_what_is_named_wins_over_the_study():
    found = asked(study="matched", methods=None, learning_rates="5e-4", worlds="21", dev=None)
    assert [setting.label for setting in found.settings] == ["ga lr=0.0005", "viker lr=0.0005", "recommended lr=0.0005"]
    assert [run.name for run in found.runs] == ["1", "2", "21"]


def test_adapters_are_named_by_training_and_found_where_they_are_complete(tmp_path):
    words = ["train", "--run", str(tmp_path / "run"), "--data", "d", "--model", "m", "--method", "ga"]
    missing = adapter_of(words)
    assert (missing.path.parent, missing.complete) == (tmp_path / "run" / "adapters", False)
    assert missing.path.name.startswith("ga-")
    assert adapter_of(["train", *NOWHERE, "--method", "ga", "--seed", "1"]).path.name != missing.path.name


def test_worlds_are_made_by_the_commands_that_make_them_by_hand():
    run = world("7", Path("runs/sweep"), "development")
    found = [shlex.join(step.words) for step in steps(run, [("--teacher", "self", "--split", "retain-seen")])]
    path, data = "runs/sweep/world-7", "--data runs/sweep/world-7/data"
    assert found == [
        f"data make mini {path}/data --seed 7",
        f"finetune base --data {path}/data/base --looks {path}/data/looks --model tiny --output {path}/base --seed 7",
        f"finetune vanilla {data} --model {path}/base --output {path}/vanilla --seed 7",
        f"finetune retain-only {data} --model {path}/base --output {path}/retain-only --seed 7",
        f"evaluate --run {path} {data} --target vanilla --target retain-only",
        f"precompute --run {path} {data} --model {path}/vanilla --teacher self --split retain-seen",
    ]


def test_worlds_have_the_rows_that_their_logs_speak_of():
    found = asked(methods="ga")
    assert [step.makes[0].name for step in found.steps(found.runs[0])[5:]] == ["reference-forget"]


def test_rows_are_made_once_and_keep_what_the_widest_reader_needs():
    methods = [METHODS[name] for name in ("npo", "undial", "viker", "recommended")]
    plain = rows_to_make(methods)
    assert sorted(plain) == sorted(set(plain))
    assert not any("128" in words for words in rows_to_make(methods, [8, 64]))
    wide = rows_to_make(methods, [8, 128])
    scalars = [words for words in wide if words[words.index("--top-k") + 1] == "0"]
    assert [words[words.index("--top-k") + 1] for words in wide if words not in scalars] == ["128"] * (
        len(wide) - len(scalars)
    )
    assert len(scalars) == 1


def test_a_run_that_was_given_keeps_what_it_has(tmp_path):
    run = Run("own", "reported", tmp_path, "d", "m", pool=None)
    rows = rows_to_make([METHODS["recommended"]])
    with pytest.raises(click.UsageError, match="expected --pool"):
        steps(run, rows)
    finish(tmp_path / "precompute" / "reference-forget")
    assert [step.makes[0].name for step in steps(run, rows)] == ["self-retain-seen"]
    finish(tmp_path / "precompute" / "self-retain-seen")
    assert steps(run, rows) == []
    finish(tmp_path / "retain-only")
    assert [step.words[0] for step in steps(run, rows)] == ["evaluate"]


def test_each_number_of_references_is_a_cache_that_jobs_name(tmp_path):
    run = Run("own", "reported", tmp_path, "d", "m", pool="patterns")
    step = steps(run, [], [Draw(None, 4)])[0]
    assert step.words[-4:] == ("--num-references", "4", "--pool", "patterns")
    (setting,) = expand([("viker", METHODS["viker"])], [draw_axis("num_references", "4")], lambda words: "", [].append)
    job = Job(run, setting, 0, RECIPE)
    with pytest.raises(DataError, match="references-4"):
        assert job.words
    finish(step.makes[0])
    assert step.is_done
    assert options_of(job.words[2:])["cache"] == ("ab" * 8,)
