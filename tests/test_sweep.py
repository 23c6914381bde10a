"""How a sweep chooses settings, ranks them and shows them; trajectories are numbers here, nothing is trained."""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
import runpy
from importlib.metadata import version
from pathlib import Path

import pytest
from sweep_cases import ASKED, in_worlds, point, swept_run, trained
from viker.data.example import DataError
from viker.sweep.choose import choose, summarize, summarize_ends
from viker.sweep.collect import read_points
from viker.sweep.figure import draw, draw_all, named_figures
from viker.sweep.page import BEGIN, END, as_table, means_table, put_into, render
from viker.sweep.pareto import FACTS, ROUGE, Place, axes_of, front, places
from viker.sweep.results import Result, read_result, write_result

ROOT = Path(__file__).parents[1]
WRITE = runpy.run_path(str(ROOT / "docs" / "write_results.py"))


def is_pinned(package):
    """Whether a package is of the version that constraints.txt names."""
    return f"{package}=={version(package)}" in (ROOT / "constraints.txt").read_text().splitlines()


@pytest.fixture
def result():
    """Chosen on worlds 1 and 2, reported on 11, 12 and 13: one method a kind, and one that never crosses."""
    developed = [
        *in_worlds("ga", 1e-3, 0.1, 0.2), *in_worlds("ga", 2e-3, 0.5, None), *in_worlds("viker", 1e-3, 0.4, 0.2),
        *in_worlds("slow", 1e-3, None, None), *in_worlds("gd", 1e-3, None, 0.9, needs_retain=True),
    ]  # fmt: skip
    reported = [
        trained(world, method, 1e-3, value, role="reported", needs_retain=method == "gd")
        for method, values in {"ga": (0.1, 0.1, 0.4), "viker": (0.3, 0.5, 0.4), "gd": (0.9, None, 0.7)}.items()
        for world, value in zip((11, 12, 13), values, strict=True)
    ]
    runs = [*(swept_run(name, "development") for name in "12"), *(swept_run(name) for name in ("11", "12", "13"))]
    return Result(asked=ASKED, runs=tuple(runs), trained=(*developed, *reported), failed=())


def test_the_setting_with_the_best_mean_heldout_recall_is_chosen():
    tried = [*in_worlds("viker", 1e-3, 0.2, 0.4), *in_worlds("viker", 2e-3, 0.3, 0.5)]
    choice = choose(tried, 2)["viker"]
    assert (choice.label, choice.heldout, choice.in_every) == ("viker lr=0.002", pytest.approx(0.4), True)


def test_a_setting_that_crosses_in_every_world_goes_before_a_better_one_that_does_not():
    tried = [*in_worlds("viker", 1e-3, 0.2, 0.2), *in_worlds("viker", 2e-3, 0.9, None)]
    assert choose(tried, 2)["viker"].label == "viker lr=0.001"


def test_where_none_crosses_in_every_world_the_one_that_crosses_most_often_is_chosen_and_said_so():
    tried = [*in_worlds("gd", 1e-3, 0.9, None, None), *in_worlds("gd", 2e-3, 0.1, 0.1, None)]
    choice = choose(tried, 3)["gd"]
    assert (choice.label, choice.crossed, choice.replicates, choice.in_every) == ("gd lr=0.002", 2, 3, False)


def test_a_method_that_never_crosses_is_chosen_no_setting_and_how_far_it_got_is_kept():
    choice = choose(in_worlds("vgid", 1e-3, None, None), 2)["vgid"]
    assert (choice.label, choice.heldout) == (None, None)
    assert (choice.lowest_forget_fact, choice.heldout_there) == (0.4, 0.8)


def test_a_world_whose_job_failed_counts_as_not_crossed():
    tried = [*in_worlds("ga", 1e-3, 0.9), *in_worlds("ga", 2e-3, 0.2, 0.2)]
    assert choose(tried, 2)["ga"].label == "ga lr=0.002"


def test_every_seed_of_every_world_counts():
    by_rate = {1e-3: (0.9, None), 2e-3: (0.2, 0.3)}
    tried = [trained(1, "ga", rate, by_rate[rate][seed], seed=seed) for rate in by_rate for seed in (0, 1)]
    assert choose(tried, 2)["ga"].label == "ga lr=0.002"


def test_a_row_is_mean_lowest_and_highest_over_the_worlds_that_crossed():
    (row,) = summarize(in_worlds("viker", 1e-3, 0.2, None, 0.6), 3)
    assert (row.crossed, row.replicates) == (2, 3)
    found = [values["retain_heldout_fact"] for values in (row.mean, row.low, row.high)]
    assert found == [pytest.approx(0.4), 0.2, 0.6]
    assert row.mean["step"] == 8


def test_rows_are_ranked_with_and_without_retain_data_apart_and_those_that_cross_less_often_below():
    tried = [
        *in_worlds("gd", 1e-3, 0.9, 0.9, needs_retain=True), *in_worlds("po", 1e-3, 0.95, 0.95, needs_retain=True),
        *in_worlds("ga", 1e-3, 0.1, 0.1), *in_worlds("npo", 1e-3, 0.99, None), *in_worlds("viker", 1e-3, 0.4, 0.4),
    ]  # fmt: skip
    assert [row.contender for row in summarize(tried, 2)] == ["viker", "ga", "npo", "po", "gd"]


def test_without_a_bar_rows_are_where_training_ended():
    (row,) = summarize_ends(in_worlds("ga", 1e-3, None, None), 2)
    assert (row.mean["forget_fact"], row.crossed) == (0.4, 2)


def test_the_table_shows_models_groups_ranks_spread_and_who_never_crosses(result):
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in as_table(result).splitlines()[2:]]
    assert [row[0] for row in rows] == [
        "vanilla", "retain-only", "**without retain data**", "1. `viker lr=0.001`", "2. `ga lr=0.001`", "`slow`",
        "**with retain data**", "1. `gd lr=0.001`",
    ]  # fmt: skip
    by_name = {row[0]: row[1:] for row in rows}
    assert by_name["1. `viker lr=0.001`"][1:2] + by_name["1. `viker lr=0.001`"][-2:] == [
        "0.40 (0.30-0.50)",
        "3 of 3",
        "8",
    ]
    assert by_name["1. `gd lr=0.001`"][-2] == "2 of 3"
    assert by_name["`slow`"][0] == "never crosses"
    assert by_name["retain-only"][:2] == ["0.04", "0.90"]


def test_the_page_says_what_it_does_not_know(result):
    page = render(result, {})
    assert "`slow` never crosses on a development world; the lowest forget fact recall" in page
    assert "`gd` crosses in every development world under no setting" in page
    assert "No intervals: trajectories hold means over people" in page
    failed = dataclasses.replace(result, failed=("npo lr=1 seed=0 in runs/world-1",))
    assert "Failed, and counted as not crossing:\n\n- `npo lr=1 seed=0 in runs/world-1`" in render(failed, {})


def test_a_run_without_a_bar_has_no_ranks_and_says_why(result):
    tried = [trained("own", "ga", rate, None, role="reported") for rate in (1e-3, 2e-3)]
    run = swept_run("own", threshold=None, reason="runs/own holds no evaluation of a retain-only model", models={})
    page = render(dataclasses.replace(result, runs=(run,), trained=tuple(tried)), {})
    assert "No comparison at matched forgetting: runs/own holds no evaluation of a retain-only model." in page
    assert "| `ga lr=0.001` | 0.40 |" in page
    assert "never crosses" not in page
    assert "best of many looks" in page


def test_everything_shown_can_be_made_again_from_the_results_file(tmp_path, result):
    write_result(tmp_path / "new" / "sweep.json", result)
    again = read_result(tmp_path / "new" / "sweep.json")
    assert again == result
    assert render(again, {}) == render(result, {})
    known = json.loads((tmp_path / "new" / "sweep.json").read_text())
    assert known["schema"] == "viker/sweep/2"
    assert list(known["chosen"]) == ["ga", "viker", "slow", "gd"]
    assert {one["crossing"] for one in known["trained"]} == {8, None}


def test_another_schema_is_refused(tmp_path):
    (tmp_path / "old.json").write_text('{"schema": "viker/sweep/1"}')
    with pytest.raises(DataError, match=r"expected viker/sweep/2, found viker/sweep/1"):
        read_result(tmp_path / "old.json")


def test_the_front_is_what_no_other_point_beats():
    rng = random.Random(0)
    for _ in range(50):
        drawn = [(rng.randint(0, 6) / 6, rng.randint(0, 6) / 6) for _ in range(30)]
        found = front(
            Place(contender="a", label=str(index), step=1, forgotten=forgotten, kept=kept)
            for index, (forgotten, kept) in enumerate(drawn)
        )
        unbeaten = {
            (forgotten, kept)
            for forgotten, kept in drawn
            if not any(f <= forgotten and k >= kept and (f, k) != (forgotten, kept) for f, k in drawn)
        }
        assert {(place.forgotten, place.kept) for place in found} == unbeaten
        assert len(found) == len(unbeaten)
        assert all(drawn.index((place.forgotten, place.kept)) == int(place.label) for place in found)


def test_points_of_a_front_are_means_over_worlds_and_those_of_fewer_worlds_are_left_out():
    tried = in_worlds("viker", 1e-3, 0.2, 0.6)
    longer = dataclasses.replace(tried[0], points=(*tried[0].points, point(12, 0.0, 1.0)))
    found = {place.step: place.kept for place in places([longer, tried[1]], FACTS, 2)}
    assert found == {0: 1.0, 8: pytest.approx(0.4)}


def test_sources_without_facts_are_compared_by_rouge():
    tried = in_worlds("ga", 1e-3, 0.2)
    points = tuple({name: one[name] for name in one if "fact" not in name} for one in tried[0].points)
    assert axes_of(tried) == FACTS
    assert axes_of([*tried, dataclasses.replace(tried[0], points=points)]) == ROUGE


def test_points_are_read_by_step_and_numbers_alone(tmp_path):
    path = tmp_path / "trajectory.jsonl"
    path.write_text(
        "\n".join(json.dumps({"schema": "viker/trajectory/1", "step": step, "x": 1 / 3}) for step in (4, 0))
    )
    assert [one["step"] for one in read_points(path)] == [0, 4]
    assert set(read_points(path)[0]) == {"step", "x"}
    path.write_text("{}")
    with pytest.raises(DataError, match="expected points with a step"):
        read_points(path)


def test_a_page_goes_between_its_markers_and_nowhere_else(tmp_path):
    page = tmp_path / "docs" / "page.md"
    assert put_into(page, "one\n", "Title")
    page.write_text(page.read_text().replace("# Title", "# Mine\n\nWords."))
    assert put_into(page, "two\n", "Title")
    assert page.read_text() == f"# Mine\n\nWords.\n\n{BEGIN}\ntwo\n{END}\n"
    page.write_text("No markers.\n")
    assert not put_into(page, "three\n", "Title")
    assert page.read_text() == "No markers.\n"


def test_the_readme_shows_the_stored_numbers():
    readme = (ROOT / "README.md").read_text()
    assert WRITE["readme_with_table"](readme) == readme, "README.md is old: run `make docs`"


@pytest.mark.parametrize("path", WRITE["stored"](), ids=lambda path: path.stem)
def test_pages_of_results_show_the_stored_numbers(path):
    result = read_result(path)
    figures = {what: name for what, name in named_figures(path, result).items() if (path.parent / name).is_file()}
    assert render(result, figures).strip() in path.with_suffix(".md").read_text(), f"{path.stem}.md: run `make docs`"


@pytest.mark.skipif(not is_pinned("matplotlib"), reason="another matplotlib draws other bytes")
@pytest.mark.parametrize("path", WRITE["stored"](), ids=lambda path: path.stem)
def test_figures_of_results_are_drawn_from_the_stored_numbers(path, tmp_path):
    drawn = draw_all(tmp_path / path.name, read_result(path))
    assert drawn
    for name in drawn.values():
        assert (tmp_path / name).read_bytes() == (path.parent / name).read_bytes(), f"{name} is old: run `make docs`"


def test_the_means_table_takes_every_contender_from_the_first_result_that_reports_it(result):
    other = dataclasses.replace(result, trained=tuple(one for one in result.trained if one.method == "gd"))
    rows = [line.split(" | ") for line in means_table([result, other], {"viker": "ViKeR", "gd": "GD"}).splitlines()]
    assert [row[0].strip("| ") for row in rows[2:]] == ["vanilla", "retain-only", "ViKeR", "GD"]
    assert rows[4][2] == "0.40 (0.30-0.50)"
    with pytest.raises(DataError, match="expected results of nobody"):
        means_table([result], {"nobody": "Nobody"})
    elsewhere = dataclasses.replace(result, runs=tuple(swept_run(name) for name in ("21", "22")))
    with pytest.raises(DataError, match="same worlds"):
        means_table([result, elsewhere], {"viker": "ViKeR"})


def test_a_figure_shows_who_it_is_about(tmp_path, result):
    draw(tmp_path / "sweep.svg", result, "reported")
    assert all(name in (tmp_path / "sweep.svg").read_text() for name in ("<svg", "viker", "held-out retain fact"))


def test_ties_are_told_apart_by_the_order_of_the_grid():
    same = [in_worlds("ga", rate, 0.3) for rate in (2e-3, 1e-3)]
    for order in itertools.permutations(same):
        assert choose([one for group in order for one in group], 1)["ga"].label == order[0][0].label
