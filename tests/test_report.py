"""The report of a hand-made run: its numbers are the scores, its ranks need forgetting, and it is made when needed."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from viker.cli import viker
from viker.data.artefact import begin, finish, read_json, write_json
from viker.data.notices import NOTICES
from viker.data.sidecar import read_sidecar
from viker.evaluate.answers import Answer, answer_line
from viker.evaluate.matched import forgetting_threshold
from viker.evaluate.recall import fact_recall_by_person
from viker.evaluate.report.likelihood import verdict_on
from viker.evaluate.score import score_answers, scores_json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

KINDS = {"town": [f"Town{letter}" for letter in "abcdefghij"], "job": [f"Job{letter}" for letter in "abcdefghij"]}
PEOPLE = {"forget": "FGH", "test": "FGH", "retain-seen": "ST", "retain-heldout": "UVW"}
EVERYONE = sorted(set("".join(PEOPLE.values())))
FACTS = {person: {kind: words[place] for kind, words in KINDS.items()} for place, person in enumerate(EVERYONE)}

# Share of the facts each model still says, split by split: how many of a person's two facts.
VANILLA = {"forget": 2, "test": 2, "retain-seen": 2, "retain-heldout": 2}
RETAIN_ONLY = {**VANILLA, "forget": 0, "test": 0}
FORGETFUL = {"forget": 0, "test": 0, "retain-seen": 1, "retain-heldout": 1}
BETTER = {"forget": 0, "test": 0, "retain-seen": 2, "retain-heldout": 2}
UNCHANGED = VANILLA

# Nats a token of the published answers by person; retain-only's standard error over F, G and H is 0.2 / sqrt(3).
LIKELY = dict.fromkeys(EVERYONE, -0.1)
IDEAL = {**LIKELY, "F": -2.0, "G": -2.2, "H": -2.4}


def answers_of(model: str, known: Mapping[str, int], logprobs: Mapping[str, float] | None = None) -> list[Answer]:
    answers = []
    for split, people in PEOPLE.items():
        for person in people:
            for place, (kind, word) in enumerate(FACTS[person].items()):
                says = word if place < known[split] else "nothing <at> all | really"
                about = {"model": model, "split": split, "modality": "image", "person": person}
                asked = f"What is the {kind} of {person}?"
                options = (("A", word), ("B", "other"))
                chosen = (("A", -1.0, 1), ("B", -2.0, 1))
                letter = "A" if place < known[split] else "B"
                likely = None if logprobs is None else (logprobs[person] * (place + 2), place + 2)
                answers += [
                    Answer(**about, task="generation", id=f"{asked}/g", question=asked, expected=f"It is {word}.",
                           reply=f"It is {says}.", answer_logprob=likely),
                    Answer(**about, task="cloze", id=f"{asked}/c", question=asked, expected=word, reply=says),
                    Answer(**about, task="classification", id=f"{asked}/m", question=asked, expected="A", reply=letter,
                           options=options, option_logprobs=chosen),
                ]  # fmt: skip
    return answers


def add_artefact(path: Path, config: Mapping[str, Any], facts: Mapping[str, Any], files: Mapping[str, str]) -> None:
    begin(path, config)
    for name, text in files.items():
        (path / name).write_text(text, encoding="utf-8")
    finish(path, facts, started=time.time() - 2)


def add_data(run: Path, source: str = "mini") -> None:
    sidecar = {"schema": "viker/sidecar/1", "candidates": KINDS, "facts": FACTS}
    add_artefact(run / "data", {"schema": "viker/data/1", "source": source}, {}, {"sidecar.json": json.dumps(sidecar)})


def add_evaluation(
    run: Path,
    name: str,
    known: Mapping[str, int],
    logprobs: Mapping[str, float] | None = None,
    *,
    with_facts: bool = True,
    limit: int | None = None,
) -> None:
    answers = answers_of(name, known, logprobs)
    facts = read_sidecar(run / "data" / "sidecar.json") if with_facts else None
    scores = scores_json(score_answers(answers, facts, 0))
    files = {"answers.jsonl": "".join(map(answer_line_and_break, answers)), "scores.json": json.dumps(scores)}
    config = {
        "schema": "viker/evaluation/1",
        "inputs": {},
        "options": {"style": "plain", "limit": limit, "model": name},
    }
    add_artefact(run / "evaluations" / name, config, {}, files)


def answer_line_and_break(answer: Answer) -> str:
    return answer_line(answer) + "\n"


def add_adapter(run: Path, name: str, *, retain: float = 0.0, recalls: tuple[float, ...] | None = None) -> None:
    points = [
        {
            "step": 10 * place,
            "forget_fact": recall,
            "retain_heldout_fact": 1 - place / 10,
            "retain_heldout_rougeL": 0.9,
        }
        for place, recall in enumerate(recalls or ())
    ]
    files = {"trajectory.jsonl": "".join(json.dumps(point) + "\n" for point in points)} if recalls else {}
    options = {"method": name.rpartition("-")[0], "lambda": 0.5, "retain": retain}
    caches = {"forget": {"key": "ab" * 32, "root": "cd" * 32}}
    config = {"schema": "viker/adapter/1", "inputs": {}, "options": options}
    add_artefact(run / "adapters" / name, config, {"steps": 20, "stopped": True, "caches": caches}, files)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Vanilla, retain-only, two adapters without retain data, one that never forgets, and one with retain data."""
    run = tmp_path / "a run"
    add_data(run)
    add_evaluation(run, "vanilla", VANILLA)
    add_evaluation(run, "retain-only", RETAIN_ONLY)
    for name, known, retain, recalls in (
        ("viker-aaaaaaaa", FORGETFUL, 0.0, (1.0, 0.5, 0.0)),
        ("ga-bbbbbbbb", BETTER, 0.0, None),
        ("never-dddddddd", UNCHANGED, 0.0, (1.0, 0.9)),
        ("recommended-cccccccc", BETTER, 4.0, (1.0, 0.0)),
    ):
        add_adapter(run, name, retain=retain, recalls=recalls)
        add_evaluation(run, name, known)
    return run


def report_of(run: Path, *arguments: str, **options: Any) -> dict[str, Any]:
    result = CliRunner().invoke(
        viker, ["report", "--run", str(run), "--json", *arguments], catch_exceptions=False, **options
    )
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def page_of(run: Path) -> str:
    return (run / "report" / "report.md").read_text(encoding="utf-8")


def test_the_first_lines_say_that_mini_is_mini(run: Path) -> None:
    report = report_of(run)
    title, first = [line for line in page_of(run).splitlines() if line][:2]
    assert NOTICES["mini"] in title
    assert first == "*mini, not comparable with published MLLMU numbers; real run: `--preset mllmu-10`*"
    assert report["schema"] == "viker/report/2"
    assert "retain-only" not in title


def test_real_data_is_not_called_mini(run: Path) -> None:
    write_json(run / "data" / "config.json", {"schema": "viker/data/1", "source": "MLLMMU/MLLMU-Bench"})
    assert not report_of(run)["embedded"]
    assert "mini" not in page_of(run)


def test_headline_numbers_are_the_scores(run: Path) -> None:
    report = report_of(run)
    assert [column["label"] for column in report["headline"]["columns"]] == [
        "forget fact recall", "test fact recall", "held-out retain fact recall", "held-out retain ROUGE-L",
    ]  # fmt: skip
    for row in report["headline"]["rows"]:
        scores = json.loads((run / "evaluations" / row["model"] / "scores.json").read_text())["scores"]
        for column, value in zip(report["headline"]["columns"], row["values"], strict=True):
            wanted = {name: column[name] for name in ("split", "task", "modality", "metric")}
            assert [score["value"] for score in scores if wanted.items() <= score.items()] == [value]
    rows = {row["model"]: row["values"] for row in report["headline"]["rows"]}
    assert rows["vanilla"][:3] == [1, 1, 1]
    assert rows["viker-aaaaaaaa"][:3] == [0, 0, 0.5]


def test_ranks_need_forgetting_and_keep_retain_data_apart(run: Path) -> None:
    rows = {row["model"]: row for row in report_of(run)["headline"]["rows"]}
    assert {name: (row["forgotten"], row["rank"]) for name, row in rows.items()} == {
        "vanilla": (False, None), "retain-only": (True, None), "ga-bbbbbbbb": (True, 1), "viker-aaaaaaaa": (True, 2),
        "never-dddddddd": (False, None), "recommended-cccccccc": (True, 1),
    }  # fmt: skip
    assert "1 (with retain data)" in page_of(run)


def test_matched_forgetting_takes_the_first_crossing(run: Path) -> None:
    matched = report_of(run)["matched"]
    answers = answers_of("retain-only", RETAIN_ONLY)
    asked = [answer for answer in answers if answer.split == "forget" and answer.task == "generation"]
    recall = fact_recall_by_person(asked, read_sidecar(run / "data" / "sidecar.json"))
    assert matched["bar"] == pytest.approx(forgetting_threshold(recall))
    rows = {row["model"]: row for row in matched["rows"]}
    assert (rows["viker-aaaaaaaa"]["step"], rows["viker-aaaaaaaa"]["retain_heldout_fact"]) == (20, 0.8)
    assert (rows["recommended-cccccccc"]["step"], rows["recommended-cccccccc"]["rank"]) == (10, 1)
    assert rows["vanilla"]["forget_fact"] == 1
    assert matched["without_trajectory"] == ["ga-bbbbbbbb"]


def forget_below(shift: float) -> dict[str, float]:
    """Log-probabilities of a model that is this far below retain-only on the forget people."""
    return {**LIKELY, **{person: IDEAL[person] - shift for person in PEOPLE["forget"]}}


def likelihoods_of(run: Path) -> dict[str, dict[str, Any]]:
    section = report_of(run)["likelihood"]
    assert section["reason"] is None
    return {row["model"]: row for row in section["rows"]}


def test_forgetting_goes_too_far_where_answers_fall_below_those_of_a_model_that_never_knew(run: Path) -> None:
    add_evaluation(run, "vanilla", VANILLA, LIKELY)
    add_evaluation(run, "retain-only", RETAIN_ONLY, IDEAL)
    add_evaluation(run, "never-dddddddd", UNCHANGED, forget_below(-0.12))
    add_evaluation(run, "viker-aaaaaaaa", FORGETFUL, forget_below(0.11))
    add_evaluation(run, "ga-bbbbbbbb", BETTER, forget_below(7.5))
    rows = likelihoods_of(run)
    assert {name: row["verdict"] for name, row in rows.items()} == {
        "vanilla": None,
        "retain-only": None,
        "never-dddddddd": "less forgotten than a model that never knew",
        "viker-aaaaaaaa": "about the same",
        "ga-bbbbbbbb": "over-forgotten: pushed below a model that never knew",
        "recommended-cccccccc": "not known: its answers hold no log-probabilities, evaluate it again",
    }
    assert {name: row["difference"] for name, row in rows.items()} == {
        "vanilla": pytest.approx(2.1), "retain-only": 0, "never-dddddddd": pytest.approx(0.12),
        "viker-aaaaaaaa": pytest.approx(-0.11), "ga-bbbbbbbb": pytest.approx(-7.5), "recommended-cccccccc": None,
    }  # fmt: skip
    assert rows["ga-bbbbbbbb"]["error"] == pytest.approx(0.2 / 3**0.5)
    assert (rows["ga-bbbbbbbb"]["people"], rows["ga-bbbbbbbb"]["questions"]) == (3, 6)
    page = page_of(run)
    assert "## Likelihood of the forgotten answers" in page
    assert (
        "| ga-bbbbbbbb | without retain data | -9.70 | -7.50 | 0.12 | 3 | "
        "over-forgotten: pushed below a model that never knew |" in page
    )
    assert "| generation | image | answer_logprob | -0.10 | -2.20 |" in page, "in nats among the other scores"


def test_without_retain_only_the_comparison_of_likelihoods_is_said_to_be_missing(tmp_path: Path) -> None:
    add_data(tmp_path)
    add_evaluation(tmp_path, "vanilla", VANILLA, LIKELY)
    add_adapter(tmp_path, "viker-aaaaaaaa")
    add_evaluation(tmp_path, "viker-aaaaaaaa", FORGETFUL, LIKELY)
    assert report_of(tmp_path)["likelihood"]["rows"] == []
    assert "No comparison with a model that never knew: retain-only is not evaluated" in page_of(tmp_path)


def test_a_retain_only_from_before_likelihoods_is_to_be_evaluated_again(run: Path) -> None:
    add_evaluation(run, "viker-aaaaaaaa", FORGETFUL, LIKELY)
    assert "hold no log-probabilities; evaluate it again" in report_of(run)["likelihood"]["reason"]


def test_likelihoods_are_compared_on_the_questions_that_both_were_asked(run: Path) -> None:
    add_evaluation(run, "retain-only", RETAIN_ONLY, IDEAL)
    answers = [given for given in answers_of("viker-aaaaaaaa", FORGETFUL, forget_below(3)) if given.person != "H"]
    add_evaluation(run, "viker-aaaaaaaa", FORGETFUL)
    lines = "".join(map(answer_line_and_break, answers))
    (run / "evaluations" / "viker-aaaaaaaa" / "answers.jsonl").write_text(lines, encoding="utf-8")
    row = likelihoods_of(run)["viker-aaaaaaaa"]
    assert (row["people"], row["questions"]) == (2, 4)
    assert row["difference"] == pytest.approx(-3)
    assert row["error"] == pytest.approx(0.1)


def test_one_person_gives_a_difference_and_no_verdict(run: Path) -> None:
    add_evaluation(run, "retain-only", RETAIN_ONLY, IDEAL)
    answers = [given for given in answers_of("viker-aaaaaaaa", FORGETFUL, LIKELY) if given.person not in "GH"]
    lines = "".join(map(answer_line_and_break, answers))
    (run / "evaluations" / "viker-aaaaaaaa" / "answers.jsonl").write_text(lines, encoding="utf-8")
    row = likelihoods_of(run)["viker-aaaaaaaa"]
    assert row["difference"] == pytest.approx(1.9)
    assert row["verdict"] == "not known: one person has no standard error"


@pytest.mark.parametrize(
    ("difference", "word"), [(-0.51, "over-forgotten"), (-0.5, "about"), (0.0, "about"), (0.5, "about"), (0.51, "less")]
)
def test_one_standard_error_either_way_counts_as_the_same(difference: float, word: str) -> None:
    assert verdict_on(difference, error=0.5).startswith(word)


def test_a_method_that_never_crosses_is_listed_as_such(run: Path) -> None:
    [row] = [row for row in report_of(run)["matched"]["rows"] if row["model"] == "never-dddddddd"]
    assert row["crosses"] is False
    assert row["rank"] is None
    assert "never crosses" in page_of(run)


def test_without_retain_only_it_is_a_first_verdict(tmp_path: Path) -> None:
    add_data(tmp_path)
    add_evaluation(tmp_path, "vanilla", VANILLA)
    add_adapter(tmp_path, "viker-aaaaaaaa", recalls=(1.0, 0.0))
    add_evaluation(tmp_path, "viker-aaaaaaaa", FORGETFUL)
    report = report_of(tmp_path)
    assert "(no retain-only yet: a first verdict)" in report["title"]
    assert report["matched"]["bar"] is None
    assert all(row["rank"] is None for row in report["headline"]["rows"])
    headings = [line for line in page_of(tmp_path).splitlines() if line.startswith("##")]
    assert all("(without retain-only)" in heading for heading in headings)


def test_with_neither_the_title_says_so(tmp_path: Path) -> None:
    add_data(tmp_path)
    add_adapter(tmp_path, "viker-aaaaaaaa")
    add_evaluation(tmp_path, "viker-aaaaaaaa", FORGETFUL)
    report = report_of(tmp_path)
    assert "neither vanilla nor retain-only" in report["title"]
    assert "## Cost (without vanilla and retain-only)" in page_of(tmp_path)


def test_nothing_changed_is_skipped_and_quickly(run: Path) -> None:
    report_of(run)
    program = (
        "import sys, time; from click.testing import CliRunner; from viker.cli import viker; start = time.time();"
        f"print(CliRunner().invoke(viker, ['report', '--run', {str(run)!r}]).output, time.time() - start);"
        "assert not {'torch', 'numpy', 'nltk'} & set(sys.modules), sorted(sys.modules)"
    )
    told = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert "report: complete, skipped:" in told
    assert float(told.split()[-1]) < 0.5


@pytest.mark.parametrize("change", ["evaluated again", "scored again", "adapter", "published"])
def test_it_is_made_again_when_anything_changed(run: Path, change: str) -> None:
    before = report_of(run)
    arguments = []
    if change == "evaluated again":
        add_evaluation(run, "viker-aaaaaaaa", BETTER)
    elif change == "scored again":
        path = run / "evaluations" / "viker-aaaaaaaa" / "scores.json"
        path.write_text(path.read_text().replace('"value": 0.5', '"value": 0.25'))
    elif change == "adapter":
        add_adapter(run, "new-eeeeeeee")
    else:
        (run / "numbers.toml").write_text(PUBLISHED)
        arguments = ["--published", str(run / "numbers.toml")]
    after = report_of(run, *arguments)
    assert after != before
    assert report_of(run, *arguments) == after
    if change == "adapter":
        assert any("`new-eeeeeeee` is not evaluated" in notice for notice in after["notices"])


PUBLISHED = """
[[report.published]]
row = "ViKeR"
split = "forget"
metric = "ACC"
value = 30.4
source = "arXiv 2601.22020"

[[report.published]]
row = "NPO"
split = "retain"
metric = "ROUGE"
value = 1.0
source = "somewhere"
"""


def test_a_preset_gives_published_numbers_and_what_is_ours(run: Path, tmp_path: Path) -> None:
    preset = tmp_path / "preset.toml"
    preset.write_text(f'[report]\nours = ["held-out retain people"]\n{PUBLISHED}')
    result = CliRunner().invoke(viker, ["--preset", str(preset), "report", "--run", str(run)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    first, second = json.loads((run / "report" / "report.json").read_text())["published"]
    assert (first["ours"], first["our_metric"]) == ({"viker-aaaaaaaa": 0.0}, "accuracy_letter")
    assert (second["ours"], second["our_split"]) == ({}, "retain-heldout")
    assert "Ours, not in the paper: held-out retain people" in page_of(run)
    assert "| ViKeR | forget | ACC | 30.4 | viker-aaaaaaaa 0.0 | arXiv 2601.22020 |" in page_of(run)


def test_an_incomplete_published_number_is_refused(run: Path, tmp_path: Path) -> None:
    (tmp_path / "numbers.toml").write_text('published = [{row = "ViKeR", value = 1}]')
    result = CliRunner().invoke(viker, ["report", "--run", str(run), "--published", str(tmp_path / "numbers.toml")])
    assert "without metric, source, split" in str(result.exception)


def test_head_room_is_judged_plainly(run: Path) -> None:
    assert [check["ok"] for check in report_of(run)["head_room"]] == [True, True, True]
    add_evaluation(run, "vanilla", {**VANILLA, "test": 1})
    add_evaluation(run, "retain-only", {**RETAIN_ONLY, "forget": 1})
    assert [check["ok"] for check in report_of(run)["head_room"]] == [True, False, False]
    assert "little head-room" in page_of(run)


def test_a_vanilla_that_knew_nothing_ranks_nobody(run: Path) -> None:
    add_evaluation(run, "vanilla", RETAIN_ONLY)
    report = report_of(run)
    assert "nothing to forget" in report["headline"]["no_ranks"]
    assert all(row["rank"] is None for row in (*report["headline"]["rows"], *report["matched"]["rows"]))
    assert any("nothing to forget" in caveat for caveat in report["matched"]["caveats"])


def test_evaluations_that_were_not_asked_the_same_are_named(run: Path) -> None:
    assert not any("may not be compared" in notice for notice in report_of(run)["notices"])
    add_evaluation(run, "vanilla", VANILLA, limit=2)
    notices = " ".join(report_of(run)["notices"])
    assert "differ in `limit`" in notices
    assert "limited to 2 people a split" in notices


def test_celebrities_that_are_references_are_said_to_be_left_out_of_real(run: Path) -> None:
    config = read_json(run / "evaluations" / "vanilla" / "config.json")
    config["options"]["real"] = "heldout"
    write_json(run / "evaluations" / "vanilla" / "config.json", config)
    assert any("`real` leaves out" in notice for notice in report_of(run)["notices"])


def test_without_facts_rouge_stands_in(tmp_path: Path) -> None:
    add_data(tmp_path)
    for name, known in (("vanilla", VANILLA), ("retain-only", RETAIN_ONLY)):
        add_evaluation(tmp_path, name, known, with_facts=False)
    (tmp_path / "data" / "sidecar.json").unlink()
    report = report_of(tmp_path)
    assert [column["metric"] for column in report["headline"]["columns"]] == ["rougeL", "rougeL", "accuracy", "rougeL"]
    assert report["headline"]["columns"][0]["label"] == "forget ROUGE-L"
    assert report["headline"]["bar"] is None
    assert [check["ok"] for check in report["head_room"]] == [True]


def test_answers_before_and_after(run: Path) -> None:
    report = report_of(run)
    assert [answer["split"] for answer in report["answers"]] == ["forget"] * 3 + ["retain-heldout"] * 2
    assert len({answer["person"] for answer in report["answers"]}) == 5
    assert all(
        set(answer["replies"]) == {row["model"] for row in report["headline"]["rows"]} for answer in report["answers"]
    )
    assert "nothing &lt;at> all \\| really" in page_of(run)


def test_the_last_screen_is_three_answers_four_numbers_and_the_path(run: Path) -> None:
    screen = CliRunner().invoke(viker, ["report", "--run", str(run)], catch_exceptions=False).stdout
    assert screen.count("expected") == 3
    rows = {
        line.split()[0]: line.split()[1:] for line in screen.splitlines()[-8:] if line.startswith(("viker-", "vanilla"))
    }
    assert rows["vanilla"] == ["100.0"] * 4
    assert rows["viker-aaaaaaaa"][:3] == ["0.0", "0.0", "50.0"]
    assert screen.rstrip().endswith(str(run / "report" / "report.md"))


def test_cost_and_provenance_cover_every_stage(run: Path) -> None:
    stages = {stage["stage"]: stage for stage in report_of(run)["stages"]}
    assert set(stages) == {"data", *(f"adapters/{path.name}" for path in (run / "adapters").iterdir()),
                           *(f"evaluations/{path.name}" for path in (run / "evaluations").iterdir())}  # fmt: skip
    assert stages["adapters/viker-aaaaaaaa"]["caches"]["forget"]["root"] == "cd" * 32
    assert stages["adapters/viker-aaaaaaaa"]["wall_seconds"] >= 2
    assert "reversible: adapter only" in page_of(run)


def test_unfinished_and_stale_are_said(run: Path) -> None:
    begin(run / "adapters" / "broken-ffffffff", {"schema": "viker/adapter/1"})
    evaluation = run / "evaluations" / "viker-aaaaaaaa" / "config.json"
    config = json.loads(evaluation.read_text())
    write_json(evaluation, {**config, "inputs": {str(run / "adapters" / "viker-aaaaaaaa"): "2020-01-01T00:00:00Z"}})
    notices = " ".join(report_of(run)["notices"])
    assert "`adapters/broken-ffffffff` was begun and not finished" in notices
    assert "`viker-aaaaaaaa` is older than" in notices


def test_a_run_without_evaluations_is_an_error(tmp_path: Path) -> None:
    add_data(tmp_path)
    result = CliRunner().invoke(viker, ["report", "--run", str(tmp_path)])
    assert "expected at least one complete evaluation" in str(result.exception)
    assert CliRunner().invoke(viker, ["report"]).exit_code == 2
