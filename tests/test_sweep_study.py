"""Studies: parts and their grids, whose rate a pool takes, what people say beyond means, the page of several tables."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from statistics import fmean

import click
import pytest
from sweep_cases import OPTIONS, asked, swept_run, trained
from viker.sweep.asked import resolve
from viker.sweep.choose import choose, settings_to_report, summarize
from viker.sweep.collect import read_people
from viker.sweep.figure import draw_all
from viker.sweep.grid import Choice, Setting
from viker.sweep.page import render
from viker.sweep.people import differences, intervals, rates_by_person
from viker.sweep.prepare import Draw, world
from viker.sweep.results import Result, read_result, write_result
from viker.sweep.study import STUDIES

UNNAMED = dict.fromkeys(("methods", "learning_rates", "worlds", "dev", "num_train_epochs"))
HELDOUT = "retain_heldout_fact"


def study(name, **options):
    return asked(**{**UNNAMED, "study": name, **options})


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_is_jobs_that_train_takes_on_worlds_that_are_told_apart(name):
    found = study(name)
    assert len({setting.label for setting in found.settings}) == len(found.settings)
    developed, reported = ({run.name for run in found.under(role)} for role in ("development", "reported"))
    assert len(reported) >= 3
    assert not developed & reported
    assert bool(developed) == bool(found.tried)
    labels = {label for part in found.told["parts"] for label in part["labels"]}
    assert labels == {setting.label for setting in found.settings}
    assert {name for part in found.told["parts"] for name in part["names"]} <= {
        setting.variant for setting in found.settings
    }


def test_the_papers_study_has_its_methods_ablations_and_pools_each_trained_once():
    found = study("paper-mini")
    variants = {setting.variant for setting in found.settings}
    pools = {f"viker pool={pool}" for pool in ("people", "forget", "retain", "pets", "scenes", "patterns", "noise")}
    assert variants == {"viker", "ga", "npo", "idkpo", "viker ascent=none", "viker teacher=self", *pools}
    assert {setting.variant for setting in found.tried} == variants - pools
    assert set(found.follows.values()) == {"viker"}


def test_what_follows_another_is_reported_at_the_rate_that_one_was_chosen():
    found = study("paper-mini")
    tried = [
        trained(run, "viker", rate, {0.0014: 0.2, 0.0028: 0.6, 0.0056: None}[rate])
        for run in (1, 2)
        for rate in (0.0014, 0.0028, 0.0056)
    ]
    reported = settings_to_report(found.settings, found.follows, choose(tried, 2))
    assert [setting.variant for setting in reported if "pool" in setting.values] == [
        f"viker pool={pool}" for pool in ("people", "forget", "retain", "pets", "scenes", "patterns", "noise")
    ]
    assert {setting.values["learning_rate"] for setting in reported} == {0.0028}


def test_nothing_follows_a_contender_that_never_crossed():
    found = study("paper-mini")
    never = choose([trained(1, "viker", 0.0028, None)], 1)
    assert settings_to_report(found.settings, found.follows, never) == []


def test_an_axis_named_on_the_command_line_takes_the_place_of_the_studys():
    found = study("pools", pools="patterns,noise", worlds="21,22,23")
    assert {setting.variant for setting in found.settings if "pool" in setting.values} == {
        "viker pool=patterns", "viker pool=noise"
    }  # fmt: skip
    assert [run.name for run in found.under("reported")] == ["21", "22", "23"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"study": "paper-mini", "lambdas": "0.2"}, "--lambdas: expected an axis of the study"),
        ({"study": "paper-mini", "methods": "ga"}, "--methods: expected a study of one grid"),
        ({"study": None, "methods": "viker", "pools": "people,,pets"}, "--pools: expected words joined by commas"),
    ],
)
def test_what_a_study_cannot_be_given_is_refused(options, told):
    with pytest.raises(click.UsageError, match=told):
        asked(**{**UNNAMED, "worlds": "11", **options})


def test_a_study_on_a_run_of_ones_own_has_that_runs_rates_and_nothing_to_choose_on(tmp_path):
    found = study("pools", run=tmp_path, data="d", model="m", pool="patterns", pools="patterns,celebrities")
    assert [run.role for run in found.runs] == ["reported"]
    assert [setting.label for setting in found.settings] == ["viker", "viker pool=patterns", "viker pool=celebrities"]


def test_words_make_another_contender_and_numbers_another_setting_of_one():
    setting = Setting(
        "viker", (Choice("learning_rate", 2e-3, ()), Choice("ascent", "none", ()), Choice("lambda", 0.5, ()))
    )
    assert setting.label == "viker lr=0.002 ascent=none lambda=0.5"
    assert setting.variant == "viker ascent=none"


def test_each_pool_is_a_cache_and_a_worlds_own_people_go_by_name():
    run = world("7", Path("runs/sweep"), "reported")
    assert Draw("pets", None).images_of(run) == "runs/sweep/world-7/data/pools/pets"
    assert [Draw(pool, None).images_of(run) for pool in ("forget", "noise")] == ["forget", "noise"]
    assert Draw("my photos/of nobody", 4).folder == "pool-of nobody-references-4"
    assert Draw(None, 4).folder == "references-4"


def test_worlds_of_another_preset_begin_with_its_base():
    hard = resolve({**OPTIONS, **UNNAMED, "study": "matched"}, "mini-hard-200-small", [].append)
    base = next(step for step in hard.steps(hard.runs[0]) if step.words[:2] == ("finetune", "base"))
    assert base.words[base.words.index("--model") + 1] == "small"
    assert hard.recipe.opening == ["--preset", "mini-hard-200-small"]


def test_jobs_of_reported_worlds_are_diagnosed_where_gradients_are_a_question():
    found = study("gradient-weights")
    words = {role: found.jobs(role, found.settings)[0].words for role in ("development", "reported")}
    assert "--diagnose" in words["reported"]
    assert "--diagnose" not in words["development"]


def test_the_recall_of_every_person_is_read_where_the_trajectory_crossed(tmp_path):
    path = tmp_path / "trajectory.jsonl"
    path.write_text(
        '{"step": 0, "forget_fact": 1.0, "forget_fact_people": [[6, 6], [6, 6]]}\n'
        '{"step": 4, "forget_fact": 0.25, "forget_fact_people": [[0, 6], [3, 6]]}\n'
    )
    assert read_people(path, 4) == {"forget_fact": [0.0, 0.5]}


def test_trajectories_from_before_people_were_measured_say_nothing_of_them(tmp_path):
    path = tmp_path / "trajectory.jsonl"
    path.write_text('{"step": 4, "forget_fact": 0.25}\n')
    assert read_people(path, 4) == {}


def in_world(run, method, rates, **more):
    return dataclasses.replace(
        trained(run, method, 1e-3, fmean(rates), role="reported", **more), people={HELDOUT: rates}
    )


def test_intervals_are_over_the_people_of_all_worlds_and_none_is_given_for_few():
    draws = random.Random(1)
    worlds = [in_world(run, "viker", [draws.random() for _ in range(12)]) for run in (11, 12, 13)]
    low, high = intervals(worlds)[HELDOUT]
    mean = fmean(rate for one in worlds for rate in one.people[HELDOUT])
    assert low < mean < high
    assert high - low == pytest.approx(2 * 1.96 * 0.29 / 6, rel=0.4)  # a uniform number's deviation over root 36
    assert intervals(worlds[:1]) == {}
    assert summarize(worlds, 3)[0].ci == {HELDOUT: (low, high)}


def test_a_person_of_several_seeds_is_one_cluster():
    seeds = [in_world(11, "viker", [0.2, 0.4], seed=0), in_world(11, "viker", [0.4, 0.8], seed=1)]
    assert rates_by_person(seeds, HELDOUT) == {"11/0000": pytest.approx(0.3), "11/0001": pytest.approx(0.6)}


def test_differences_are_between_the_same_people_where_both_crossed():
    groups = {
        "viker": [in_world(11, "viker", [0.5, 0.7]), in_world(12, "viker", [0.6, 0.6])],
        "ga": [in_world(11, "ga", [0.1, 0.5])],
    }
    (difference,) = differences(groups, "viker")
    assert (difference.label, difference.people, difference.mean) == ("ga", 2, pytest.approx(-0.3))
    assert (difference.ci, difference.p) == (None, pytest.approx(0.5))
    assert (difference.worlds, difference.ahead, difference.p_worlds) == (1, 0, 1)
    assert differences({"ga": groups["ga"]}, "viker") == []


def test_people_of_one_world_are_no_independent_evidence():
    groups = {
        "viker": [in_world(run, "viker", [0.1] * 6) for run in (11, 12, 13)],
        "npo": [in_world(run, "npo", [0.1 + more] * 6) for run, more in ((11, 0.3), (12, 0.2), (13, -0.1))],
        "ga": [in_world(run, "ga", [0.2] * 6) for run in (11, 12, 13)],
    }
    npo, ga = differences(groups, "viker")
    assert npo.p < 0.02
    assert (npo.worlds, npo.ahead, npo.p_worlds) == (3, 2, pytest.approx(0.5))
    assert (ga.ahead, ga.p_worlds) == (3, pytest.approx(0.5)), "three worlds give 1/4 at least, and here are two tests"


@pytest.fixture
def result():
    told = study("paper-mini").told
    labels = {label for part in told["parts"] for label in part["labels"] if "lr=0.0028" in label}
    draws = random.Random(0)
    tried = []
    for label in sorted(labels):
        method, *more = label.replace(" lr=0.0028", "").split()
        for run in (11, 12, 13):
            one = in_world(run, method, [draws.random() for _ in range(12)])
            tried.append(dataclasses.replace(one, label=label, contender=" ".join([method, *more])))
    runs = [swept_run(name) for name in ("11", "12", "13")]
    analyses = {"thresholds": {"reason": "the run marks no facts"}}
    return Result(asked=told, runs=tuple(runs), trained=tuple(tried), failed=(), analyses=analyses)


def test_the_page_has_a_table_a_figure_and_differences_for_every_part(tmp_path, result):
    write_result(tmp_path / "study.json", result)
    again = read_result(tmp_path / "study.json")
    assert again == result
    figures = draw_all(tmp_path / "study.json", again)
    page = render(again, figures)
    for part in STUDIES["paper-mini"].parts:
        assert f"### {part.title}\n\n{part.question}" in page
        assert (tmp_path / figures[part.title]).is_file()
    assert "w/o Vis `viker lr=0.0028 teacher=self`" in page
    assert page.count("p (Holm)") == 3
    assert "### Thresholds\n\nNot made: the run marks no facts" in page


def test_figures_are_the_same_bytes_whenever_they_are_drawn(tmp_path, result):
    for place in ("once", "again"):
        (tmp_path / place).mkdir()
        draw_all(tmp_path / place / "study.json", result)
    drawn = sorted(path.name for path in (tmp_path / "once").iterdir())
    assert len(drawn) == 4
    for name in drawn:
        assert (tmp_path / "once" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
