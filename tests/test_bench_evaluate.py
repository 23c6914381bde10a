"""`viker bench evaluate`: both sides are asked the same, answers are compared, and what is printed was measured."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from click.testing import CliRunner
from viker.bench import evaluate as sides
from viker.bench import evaluate_commands, mini_world
from viker.bench.commands import command
from viker.bench.evaluate_commands import Clock
from viker.bench.rounds import Measured
from viker.evaluate.ask import LETTER_TOKENS
from viker.evaluate.generate import generate_replies

if TYPE_CHECKING:
    from pathlib import Path

VARIANT = {"name", "rate", "unit", "ratio", "seconds", "peak_memory", "processor_seconds", "processor_ratio"}


@pytest.fixture(scope="module")
def asked(tiny_model_dir: Path, mini_world: Path) -> sides.Asked:
    return sides.open_run(str(tiny_model_dir), str(mini_world), people=1, device="cpu", dtype="float32")


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> int:
    """Replies are cut after a few tokens: an untrained model never ends one."""
    monkeypatch.setattr(sides, "OFFICIAL_TOKENS", 8)
    return 8


def told_of(*options: str) -> dict[str, Any]:
    result = CliRunner().invoke(command, ["evaluate", *options, "--json"], catch_exceptions=False)
    told: dict[str, Any] = json.loads(result.stdout)
    return told


def test_questions_are_those_of_all_tasks_about_forget_and_retain_people(asked: sides.Asked) -> None:
    kinds = {(example.task, example.modality) for example in asked.questions}
    assert kinds == {(task, modality) for task in sides.TASKS for modality in ("image", "text")}
    assert len({example.people[0] for example in asked.questions}) == 2
    assert all("ONE letter" in p.question for p in asked.prompts if p.task == "classification")


def test_the_published_loop_says_what_the_encoder_and_one_question_a_time_say(asked: sides.Asked, brief: int) -> None:
    """Its prompts go through the processor as text and pictures, and never through the encoder."""
    chosen = asked.prompts[::7]
    ours = [
        generate_replies(asked.model, asked.encoder, [one], max_new_tokens=brief, batch_size=1)[0] for one in chosen
    ]
    said = sides.official(asked, chosen)
    assert [one.reply for one in said] == ours
    assert {one.num_tokens for one in said} == {brief}
    assert len(set(ours)) > 3


def test_letters_are_compared_as_they_are_parsed_and_replies_as_they_are_written(asked: sides.Asked) -> None:
    first = ["A house"] * len(asked.questions)
    second = [" a" if example.options else "A house" for example in asked.questions]
    choices = sum(bool(example.options) for example in asked.questions)
    same = sides.compare(asked, first, second)
    assert same == (choices, choices, len(first) - choices, len(first) - choices, [])
    place = next(index for index, example in enumerate(asked.questions) if not example.options)
    second[place] = "a house"
    assert sides.compare(asked, first, second).others == [asked.questions[place].id]
    second = ["B" if example.options else "A house" for example in asked.questions]
    assert sides.compare(asked, first, second)[:2] == (0, choices)


def test_both_sides_give_the_same_answers_letters_cut_short(
    asked: sides.Asked, brief: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = []
    real = sides.run_jobs_here

    def seeing(given: Any, *rest: Any, **options: Any) -> Any:
        jobs.extend(given)
        return real(given, *rest, **options)

    monkeypatch.setattr(sides, "run_jobs_here", seeing)
    same = sides.compare(asked, [one.reply for one in sides.official(asked, asked.prompts)], sides.viker(asked, 16))
    assert same.others == []
    assert same.letters + same.replies == len(asked.questions) == len(jobs)
    longest = {job.example.task: job.max_new_tokens for job in jobs}
    assert longest == {"classification": LETTER_TOKENS, "cloze": brief, "generation": brief}


def test_the_command_compares_a_run_and_prints_what_was_measured(
    tiny_model_dir: Path, mini_world: Path, brief: int
) -> None:
    told = told_of("--model", str(tiny_model_dir), "--data", str(mini_world), "--people", "1", "--rounds", "2")
    assert (told["schema"], told["what"], told["questions"]) == ("viker/bench/1", "evaluate", 72)
    assert told["identical"]["answers"] == told["identical"]["of"] == 72
    assert told["identical"]["of_letters"] == 24
    assert [variant["name"] for variant in told["variants"]] == ["official", "viker"]
    first = told["variants"][0]
    for variant in told["variants"]:
        assert variant.keys() == VARIANT
        assert variant["rate"] == pytest.approx(72 / variant["seconds"])
        assert variant["ratio"] == pytest.approx(first["seconds"] / variant["seconds"])
        assert variant["processor_ratio"] == pytest.approx(first["processor_seconds"] / variant["processor_seconds"])
        assert variant["rate"] < told["ceiling"]["rate"]
    assert told["likelihoods"]["answers"] == 24 * 4 + 24
    assert told["likelihoods"]["seconds"] > 0
    assert told["reply_tokens"] == told["max_new_tokens"] == brief


def test_answers_that_differ_are_counted_and_named(
    tiny_model_dir: Path, mini_world: Path, brief: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = sides.viker

    def misheard(asked: sides.Asked, batch_size: int) -> list[str]:
        place = next(index for index, example in enumerate(asked.questions) if not example.options)
        return [reply + "!" if index == place else reply for index, reply in enumerate(real(asked, batch_size))]

    monkeypatch.setattr(sides, "viker", misheard)
    options = ["--model", str(tiny_model_dir), "--data", str(mini_world), "--people", "1", "--rounds", "1"]
    text = CliRunner().invoke(command, ["evaluate", *options], catch_exceptions=False).stdout
    assert "identical answers: 71 of 72 (not forget_10/" in text


@pytest.mark.slow
def test_without_a_run_a_model_is_taught_whose_replies_end(monkeypatch: pytest.MonkeyPatch, quiet_torch: None) -> None:
    monkeypatch.setattr(mini_world, "NUM_PEOPLE", 20)
    told = told_of("--people", "1", "--rounds", "1")
    assert told["model"] == "quickly taught"
    assert told["reply_tokens"] < 30
    assert told["identical"]["answers"] == told["identical"]["of"] == 72


def test_a_model_without_its_data_is_a_usage_error(tiny_model_dir: Path) -> None:
    result = CliRunner().invoke(command, ["evaluate", "--model", str(tiny_model_dir)])
    assert result.exit_code == 2
    assert "expected --model and --data together" in result.output


def test_a_rounds_parts_are_one_measurement_and_the_product_goes_before_each(
    asked: sides.Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns: list[tuple[str, int]] = []
    monkeypatch.setattr(sides, "viker", lambda asked, size: turns.append(("viker", len(asked.prompts))))
    monkeypatch.setattr(
        sides, "official", lambda asked, part: turns.append(("official", len(part))) or [one.id for one in part]
    )
    clock = Clock()
    replies = evaluate_commands._round(asked, 16, clock)
    assert replies == [prompt.id for prompt in asked.prompts]
    assert turns == [("viker", 72), ("official", 18)] * 4
    assert {name: len(rounds) for name, rounds in clock.table.items()} == {"viker": 4, "official": 1}


def test_measurements_are_joined_by_their_sum() -> None:
    clock = Clock()
    clock.table["x"] = [Measured(9.0, 9), Measured(1.0, 3), Measured(2.0, 5)]
    clock.processor["x"] = [8.0, 0.5, 1.5]
    clock.join("x", 2)
    assert clock.table["x"] == [Measured(9.0, 9), Measured(3.0, 5)]
    assert clock.processor["x"] == [8.0, 2.0]


def test_the_clock_returns_what_was_done_and_lets_errors_through() -> None:
    clock = Clock()
    assert clock.time("x", lambda: 7) == 7
    assert clock.table["x"][0].seconds >= 0
    with pytest.raises(torch.OutOfMemoryError):
        clock.time("y", full)


def full() -> None:
    raise torch.OutOfMemoryError
