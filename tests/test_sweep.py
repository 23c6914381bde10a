"""How a sweep chooses settings and what it reports; worlds are made elsewhere, here they are numbers."""

import json
from pathlib import Path

from viker.sweep import METHODS, as_table, choose_rates, summarize

NUMBERS = {
    "forget_fact": 0.0,
    "forget_rougeL": 0.5,
    "retain_heldout_fact": 0.5,
    "retain_heldout_rougeL": 0.9,
    "retain_seen_fact": 0.6,
    "retain_seen_rougeL": 0.9,
    "step": 12,
}


def world(**heldout_by_rate):
    """A world in which every method crosses at the given rates with this held-out fact recall (None: never)."""
    points = {
        repr(float(rate)): None if value is None else NUMBERS | {"retain_heldout_fact": value}
        for rate, value in heldout_by_rate.items()
    }
    models = {name: dict(NUMBERS) for name in ("vanilla", "retain-only")}
    return {"crossings": dict.fromkeys(METHODS, points), "models": models}


def worlds(*values):
    return [world(**{"1e-3": first, "2e-3": second}) for first, second in values]


def test_the_rate_with_the_best_mean_heldout_recall_is_chosen():
    assert choose_rates(worlds((0.2, 0.3), (0.4, 0.5)), [1e-3, 2e-3])["viker"] == 2e-3


def test_a_rate_that_fails_to_cross_in_one_world_is_no_choice():
    assert choose_rates(worlds((0.2, 0.9), (0.2, None)), [1e-3, 2e-3])["viker"] == 1e-3


def test_a_method_that_never_crosses_everywhere_has_no_rate_and_is_listed_as_such():
    made = worlds((None, None))
    chosen = choose_rates(made, [1e-3, 2e-3])
    assert chosen == dict.fromkeys(METHODS)
    assert summarize(made, chosen)["ga"] == {"learning_rate": None, "crossed": 0, "worlds": 1}


def test_the_summary_is_the_mean_over_the_worlds_that_crossed():
    summary = summarize(worlds((0.2, None), (0.4, None), (None, None)), dict.fromkeys(METHODS, 1e-3))
    assert summary["ga"]["retain_heldout_fact"] == 0.3
    assert (summary["ga"]["crossed"], summary["ga"]["worlds"]) == (2, 3)


def test_the_table_has_vanilla_and_retain_only_beside_the_methods():
    made = worlds((0.2, None))
    result = {"summary": summarize(made, dict.fromkeys(METHODS, 1e-3)), "unseen": {"11": made[0]}}
    table = as_table(result)
    assert [line.split("|")[1].strip().strip("`") for line in table.splitlines()[2:]] == [
        "vanilla",
        "retain-only",
        *METHODS,
    ]


def test_readme_and_results_show_the_stored_numbers():
    root = Path(__file__).parent.parent
    table = as_table(json.loads((root / "docs" / "results" / "mini.json").read_text()))
    assert table in (root / "README.md").read_text()
    assert table in (root / "docs" / "results" / "mini.md").read_text()
