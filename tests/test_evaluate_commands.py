"""`viker evaluate` on a tiny run: controls, attacks, a policy's verdict, comparisons, and what it refuses."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from command_line import call, cut_short, succeed
from viker.data.artefact import MARKER
from viker.evaluate import work
from viker.evaluate.answers import read_answers

if TYPE_CHECKING:
    from pathlib import Path

POLICY = """
schema = "viker/policy/1"
name = "test"
[[require]]
metric = "fact_recall"
split = "forget"
{bound}
"""


@pytest.fixture(scope="module")
def options(mini_world: Path) -> tuple[object, ...]:
    """What every call names: the data, its controls, and few questions."""
    return (
        "--data", mini_world, "--controls", mini_world / "controls", "--limit", 1, "--max-new-tokens", 4,
        "--task", "generation", "--task", "classification", "--style", "plain", "--gradient-norm",
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path, options: tuple[object, ...]) -> Path:
    """A run whose vanilla and retain-only are one untrained model, both evaluated."""
    place = tmp_path_factory.mktemp("run")
    for name in ("vanilla", "retain-only"):
        shutil.copytree(tiny_model_dir, place / name)
    (place / "retain-only" / MARKER).write_text("complete\n")
    (place / "retain-only" / "provenance.json").write_text('{"finished": "now"}')
    succeed("evaluate", "--run", place, *options)
    return place


def kept(run: Path, name: str = "retain-only") -> Path:
    return run / "evaluations" / name


def scores(evaluation: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((evaluation / "scores.json").read_text(encoding="utf-8"))
    return found


def test_every_answer_is_kept_with_what_scoring_needs(run: Path) -> None:
    answers = read_answers(kept(run) / "answers.jsonl")
    assert {answer.split for answer in answers} >= {"forget", "test", "controls"}
    open_ended = [answer for answer in answers if answer.task == "generation"]
    assert all(len(answer.answer_tokens) == answer.answer_logprob[1] for answer in open_ended if answer.answer_logprob)
    assert all(answer.fluency is not None for answer in open_ended if (answer.reply or "").strip())
    members = [answer for answer in open_ended if answer.split in ("forget", "controls")]
    assert members
    assert all(answer.gradient_norm is not None for answer in members)


def test_scores_are_kept_by_person_too_and_say_what_they_stand_against(run: Path) -> None:
    found = scores(kept(run, "vanilla"))
    assert {record["person"] for record in found["people"] if record["split"] == "controls"} == {"controls/2001"}
    assert found["label"] == "compared with retain-only and controls"


def test_nothing_of_the_work_is_left_and_a_complete_evaluation_is_skipped(
    run: Path, options: tuple[object, ...]
) -> None:
    assert not (kept(run) / "work").exists()
    again = succeed("evaluate", "--run", run, *options)
    assert again.out.count("complete, skipped") == 2


def test_an_evaluation_is_not_removed_for_a_model_that_cannot_be_loaded(
    run: Path, options: tuple[object, ...], tmp_path: Path
) -> None:
    output, model = tmp_path / "evaluation", tmp_path / "model"
    shutil.copytree(kept(run), output)
    shutil.copytree(run / "vanilla", model)
    cut_short(model / "model.safetensors")
    told = call("evaluate", "--model", model, "--output", output, "--overwrite", *options)
    assert told.code == 1
    assert "found damaged ones" in told.message
    assert (output / "answers.jsonl").read_bytes() == (kept(run) / "answers.jsonl").read_bytes()
    assert (output / MARKER).is_file()


def test_without_anything_to_compare_with_there_is_no_verdict(
    tiny_model_dir: Path, mini_world: Path, tmp_path: Path
) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text(POLICY.format(bound="at_most = 1.0"))
    words = (
        "evaluate", "--model", tiny_model_dir, "--data", mini_world, "--output", tmp_path / "evaluation", "--limit", 1,
        "--max-new-tokens", 2, "--task", "generation", "--style", "plain", "--policy", policy,
    )  # fmt: skip
    judged = call(*words)
    assert judged.code == 4
    assert "no retain-only, no controls: no verdict" in judged.out
    assert scores(tmp_path / "evaluation")["label"] == "no retain-only, no controls: no verdict"
    allowed = POLICY.format(bound="at_most = 1.0").replace(
        'name = "test"', 'name = "test"\nallow = ["no retain-only, no controls"]'
    )
    policy.write_text(allowed)
    assert call(*words).code == 3  # another policy is on record beside these answers
    (tmp_path / "evaluation" / "policy.json").unlink()
    passed = call(*words)
    assert passed.code == 0, passed.out
    assert "allowed by the policy" in passed.out


def test_a_policy_recorded_before_the_first_answer_is_fixed_before_the_run(
    tiny_model_dir: Path, mini_world: Path, tmp_path: Path
) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text(POLICY.format(bound="at_most = -1.0"))
    judged = call(
        "evaluate", "--model", tiny_model_dir, "--data", mini_world, "--controls", mini_world / "controls",
        "--output", tmp_path / "evaluation", "--limit", 1, "--max-new-tokens", 2, "--task", "generation",
        "--style", "plain", "--policy", policy,
    )  # fmt: skip
    assert judged.code == 4
    verdict = json.loads((tmp_path / "evaluation" / "verdict.json").read_text())
    assert verdict["passed"] is False
    assert verdict["policy"]["fixed_before_run"] is True
    assert [check["passed"] for check in verdict["checks"]] == [False]


def test_a_mistake_in_a_policy_costs_nothing(mini_world: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text(POLICY.format(bound="at_moast = 0.1"))
    refused = call(
        "evaluate", "--model", tiny_model_dir, "--data", mini_world, "--output", tmp_path / "e", "--policy", policy
    )
    assert refused.code == 1
    assert "at_moast" in refused.message
    assert not (tmp_path / "e").exists()


def test_attacks_keep_their_answers_and_what_came_back(run: Path, options: tuple[object, ...]) -> None:
    words = ("evaluate", "--run", run, *options, "--target", "retain-only", "--attacks", "flip", "--attack-people", 1)
    succeed(*words)
    attacks = kept(run) / "attacks"
    assert read_answers(attacks / "flip" / "answers.jsonl")
    rows = json.loads((attacks / "attacks.json").read_text())["rows"]
    assert {row["metric"] for row in rows} == {"fact_recall", "rougeL", "answer_logprob"}
    assert "complete, skipped" in succeed(*words).out


def test_an_attack_of_what_was_never_evaluated_is_refused(run: Path, options: tuple[object, ...]) -> None:
    refused = call("evaluate", "--run", run, *options, "--target", "vanilla", "--attacks", "flop")
    assert refused.code == 2


def test_a_model_compared_with_itself_does_not_differ(run: Path) -> None:
    told = json.loads(succeed("evaluate", "--run", run, "--compare", "vanilla", "retain-only", "--json").out)
    (comparison,) = told["comparisons"]
    assert comparison["tests"] == len(comparison["records"]) > 5
    assert {record["difference"] for record in comparison["records"]} == {0.0}
    assert {record["p_holm"] for record in comparison["records"]} == {1.0}
    assert "Holm" in succeed("evaluate", "--run", run, "--compare", "vanilla", "retain-only").out


def test_a_comparison_needs_evaluations_on_both_sides(run: Path) -> None:
    missing = call("evaluate", "--run", run, "--compare", "vanilla", "nobody")
    assert (missing.code, "expected a complete evaluation" in missing.message) == (1, True)
    uneven = call("evaluate", "--run", run, "--compare", "vanilla,retain-only", "vanilla")
    assert "expected as many worlds on both sides, found 2" in uneven.message


def test_lists_explain_attacks_and_corrections() -> None:
    told = json.loads(succeed("evaluate", "--list-attacks", "--list-corrections", "--json").out)["items"]
    assert {"relearn-forget", "cloze-words", "rouge-text-only"} <= set(told)
    assert "mirrored" in succeed("evaluate", "--list-attacks").out


def test_official_takes_every_step_as_published_and_writes_the_published_table(
    tiny_model_dir: Path, mini_world: Path, tmp_path: Path
) -> None:
    output = tmp_path / "official"
    succeed(
        "evaluate", "--model", tiny_model_dir, "--data", mini_world, "--output", output, "--limit", 1,
        "--task", "cloze", "--protocol", "official", "--few-shot", 0,
    )  # fmt: skip
    table = json.loads((output / "published.json").read_text())["values"]
    assert "Forget Set Results" in table
    refused = call(
        "evaluate", "--model", tiny_model_dir, "--data", mini_world, "--output", output, "--protocol", "official",
        "--as-published", "cloze-words",
    )  # fmt: skip
    assert "expected none beside --protocol official" in refused.message


def test_effects_of_corrections_are_read_from_evaluations(run: Path) -> None:
    told = succeed("evaluate", "--effects", f"fixed={kept(run)}", "--json").out
    variants = {row["variant"] for row in json.loads(told)["effects"]}
    assert {"fixed", "choice-letter", "rouge-scripts"} <= variants


def test_several_processes_give_the_same_answers(
    tiny_model_dir: Path, mini_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for number in (1, 2):
        succeed(
            "evaluate", "--model", tiny_model_dir, "--data", mini_world, "--output", tmp_path / str(number),
            "--limit", 1, "--max-new-tokens", 4, "--task", "generation", "--style", "plain", "--processes", number,
            "--batch-size", 4,
        )  # fmt: skip
    first, second = (read_answers(tmp_path / str(number) / "answers.jsonl") for number in (1, 2))
    assert [answer.reply for answer in first] == [answer.reply for answer in second]
    assert [answer.answer_tokens for answer in first] == [answer.answer_tokens for answer in second]


def test_an_interrupted_evaluation_goes_on_with_what_is_left(
    tiny_model_dir: Path, mini_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, computed = work.compute, []

    def interrupted(batch: Any, *rest: Any) -> Any:
        if len(computed) == 3:
            raise KeyboardInterrupt
        computed.append(batch.jobs)
        return real(batch, *rest)

    words = (
        "evaluate", "--model", tiny_model_dir, "--data", mini_world, "--output", tmp_path / "evaluation",
        "--limit", 1, "--max-new-tokens", 4, "--task", "generation", "--style", "plain", "--batch-size", 4,
    )  # fmt: skip
    monkeypatch.setattr(work, "compute", interrupted)
    assert call(*words).code == 75
    assert not (tmp_path / "evaluation" / MARKER).exists()

    def counting(batch: Any, *rest: Any) -> Any:
        computed.append(batch.jobs)
        return real(batch, *rest)

    monkeypatch.setattr(work, "compute", counting)
    succeed(*words)
    assert len(set(computed)) == len(computed) > 6, "no batch is computed twice"
    monkeypatch.setattr(work, "compute", real)
    whole = tmp_path / "whole"
    succeed(*words[:6], whole, *words[7:])
    assert (whole / "answers.jsonl").read_bytes() == (tmp_path / "evaluation" / "answers.jsonl").read_bytes()


def test_a_gibberish_detector_that_is_none_is_refused_before_it_is_asked(
    run: Path, mini_world: Path, tmp_path: Path
) -> None:
    refused = call(
        "evaluate", "--model", run / "vanilla", "--data", mini_world, "--output", tmp_path / "e", "--limit", 1,
        "--max-new-tokens", 2, "--task", "generation", "--style", "plain", "--gibberish", tmp_path / "nothing",
    )  # fmt: skip
    assert refused.code == 1
    assert "nothing" in refused.message
