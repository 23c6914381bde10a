"""How a sweep chooses settings, ranks them and shows them; trajectories are numbers here, nothing is trained."""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
from pathlib import Path

import pytest
from viker.data.example import DataError
from viker.evaluate.matched import first_crossing
from viker.sweep.choose import choose, summarize, summarize_ends
from viker.sweep.collect import SweptRun, Trained, read_points
from viker.sweep.page import BEGIN, END, as_table, means_table, put_into, render
from viker.sweep.pareto import FACTS, ROUGE, Place, axes_of, front, places
from viker.sweep.results import Result, read_result, write_result
from viker.train.methods import METHODS

ROOT = Path(__file__).parents[1]
BAR = 0.1
ASKED = {"methods": ["ga", "viker", "gd"], "seeds": [0], "study": None}


def point(step, forget, heldout):
    return {
        "step": step, "forget_fact": forget, "forget_rougeL": 0.5, "retain_heldout_fact": heldout,
        "retain_heldout_rougeL": 0.9, "retain_seen_fact": 0.6, "retain_seen_rougeL": 0.95,
    }  # fmt: skip


def trained(world, method, rate, heldout, *, role="development", seed=0, needs_retain=False):
    """A trajectory that crosses at step 8 with this held-out recall, or (None) forgets too little all the way."""
    points = (point(0, 1.0, 1.0), point(8, 0.4 if heldout is None else 0.05, 0.8 if heldout is None else heldout))
    return Trained(
        run=str(world), role=role, contender=method, needs_retain=needs_retain, method=method,
        values={"learning_rate": rate}, label=f"{method} lr={rate:g}", seed=seed, adapter=f"{method}-00000000",
        wall_seconds=1.0, points=points, crossing=first_crossing(points, BAR),
    )  # fmt: skip


def in_worlds(method, rate, *heldout, **more):
    return [trained(world, method, rate, value, **more) for world, value in enumerate(heldout, start=1)]


def swept_run(name, role="reported", **more):
    models = {"vanilla": point(0, 1.0, 1.0), "retain-only": point(0, 0.04, 0.9)}
    known = {"threshold": BAR, "reason": None, "models": models, "key_word_auroc": 1.0, "wall_seconds": {"base": 1.0}}
    return SweptRun(name=name, role=role, path=f"runs/world-{name}", **{**known, **more})


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
    page = render(result, None)
    assert "`slow` never crosses on a development world; the lowest forget fact recall" in page
    assert "`gd` crosses in every development world under no setting" in page
    assert "No intervals: trajectories hold means over people" in page
    failed = dataclasses.replace(result, failed=("npo lr=1 seed=0 in runs/world-1",))
    assert "Failed, and counted as not crossing:\n\n- `npo lr=1 seed=0 in runs/world-1`" in render(failed, None)


def test_a_run_without_a_bar_has_no_ranks_and_says_why(result):
    tried = [trained("own", "ga", rate, None, role="reported") for rate in (1e-3, 2e-3)]
    run = swept_run("own", threshold=None, reason="runs/own holds no evaluation of a retain-only model", models={})
    page = render(dataclasses.replace(result, runs=(run,), trained=tuple(tried)), None)
    assert "No comparison at matched forgetting: runs/own holds no evaluation of a retain-only model." in page
    assert "| `ga lr=0.001` | 0.40 |" in page
    assert "never crosses" not in page
    assert "best of many looks" in page


def test_everything_shown_can_be_made_again_from_the_results_file(tmp_path, result):
    write_result(tmp_path / "new" / "sweep.json", result)
    again = read_result(tmp_path / "new" / "sweep.json")
    assert again == result
    assert render(again, None) == render(result, None)
    known = json.loads((tmp_path / "new" / "sweep.json").read_text())
    assert known["schema"] == "viker/sweep/2"
    assert list(known["chosen"]) == ["ga", "viker", "slow", "gd"]
    assert {one["crossing"] for one in known["trained"]} == {8, None}


def test_another_schema_is_refused(tmp_path):
    (tmp_path / "old.json").write_text('{"schema": "viker/sweep/1"}')
    with pytest.raises(DataError, match=r"expected viker/sweep/2, found viker/sweep/1"):
        read_result(tmp_path / "old.json")
    with pytest.raises(DataError, match="found nothing"):
        means_table({"schema": "nothing"})


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


def test_readme_and_results_show_the_stored_numbers():
    table = means_table(json.loads((ROOT / "docs" / "results" / "mini.json").read_text()))
    assert table in (ROOT / "README.md").read_text()
    assert table in (ROOT / "docs" / "results" / "mini.md").read_text()


def test_the_page_of_all_methods_shows_the_stored_numbers():
    results = ROOT / "docs" / "results"
    page = render(read_result(results / "mini-methods.json"), None)
    text = (results / "mini-methods.md").read_text()
    assert page.strip() in text
    assert all(f"`{name}" in page for name in METHODS)


def test_the_rule_makes_of_the_stored_worlds_what_was_stored():
    known = json.loads((ROOT / "docs" / "results" / "mini.json").read_text())
    chosen = choose(stored_worlds(known["development"], "development"), len(known["development"]))
    assert {name: choice.label for name, choice in chosen.items()} == {
        method: f"{method} lr={rate}" for method, rate in known["chosen"].items()
    }
    rows = summarize(stored_worlds(known["unseen"], "reported"), len(known["unseen"]))
    assert [row.label for row in rows] == ["viker lr=0.002", "ga lr=0.002", "recommended lr=0.002"]
    for row in rows:
        stored = known["summary"][row.contender]
        assert {name: round(row.mean[name], 4) for name in point(0, 0, 0)} == {
            name: stored[name] for name in point(0, 0, 0)
        }
        assert row.crossed == stored["crossed"]


def stored_worlds(worlds, role):
    """The trajectories of a file of the first schema: what is kept of them is their crossings."""
    found = []
    for world, stored in worlds.items():
        for method, by_rate in stored["crossings"].items():
            for rate, crossing in by_rate.items():
                one = trained(world, method, float(rate), None, role=role, needs_retain=method == "recommended")
                numbers = crossing and {name: crossing[name] for name in point(0, 0, 0)}
                found.append(dataclasses.replace(one, crossing=numbers))
    return found


def test_the_means_table_of_a_new_results_file_looks_the_same(tmp_path, result):
    write_result(tmp_path / "sweep.json", result)
    table = means_table(json.loads((tmp_path / "sweep.json").read_text()))
    old = means_table(json.loads((ROOT / "docs" / "results" / "mini.json").read_text()))
    assert table.splitlines()[:2] == old.splitlines()[:2]
    rows = {line.split("|")[1].strip(): line for line in table.splitlines()[2:]}
    assert list(rows) == ["vanilla", "retain-only", "`ga`", "`viker`", "`slow`", "`gd`"]
    assert rows["`viker`"] == "| `viker` | 0.05 | 0.40 | 0.90 | 0.60 | 0.95 | 3 of 3 | 0.001 |"
    assert rows["`slow`"].count("never crosses") == 5


def test_a_figure_is_drawn_where_matplotlib_is_installed(tmp_path, result):
    pytest.importorskip("matplotlib", reason="the extra `report` is not installed")
    from viker.sweep.figure import draw

    draw(tmp_path / "sweep.svg", result, "reported")
    assert all(name in (tmp_path / "sweep.svg").read_text() for name in ("<svg", "viker", "held-out retain fact"))


def test_ties_are_told_apart_by_the_order_of_the_grid():
    same = [in_worlds("ga", rate, 0.3) for rate in (2e-3, 1e-3)]
    for order in itertools.permutations(same):
        assert choose([one for group in order for one in group], 1)["ga"].label == order[0][0].label
