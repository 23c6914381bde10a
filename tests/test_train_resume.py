"""Runs that are broken off: killed, interrupted, out of numbers or of memory; what the same command makes of them."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import signal
from typing import TYPE_CHECKING, Any

import pytest
import torch
from command_line import call, copy_model, succeed
from safetensors.torch import load_file, save_file
from training_run import NUM_STEPS, Killed, after_step, checkpoints, kill, line, measure_weights, results, send
from viker.data.artefact import is_complete, read_json
from viker.data.example import canonical_json
from viker.train.checkpoint import DamagedCheckpoint, read_checkpoint, save_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

EVERY = ("--save-steps", 2, "--evaluate-every", 3)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, quiet_torch: None) -> None:
    run_quickly(monkeypatch)


def run_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("viker.cli._measure", measure_weights)
    monkeypatch.setattr("viker.train.saliency.MOST_EXAMPLES", 4)


@pytest.fixture(scope="module")
def whole(mini_world: Path, tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory, quiet_torch: None) -> Path:
    """The adapter of a run that nothing disturbed."""
    output = tmp_path_factory.mktemp("whole") / "adapter"
    with pytest.MonkeyPatch.context() as patch:
        run_quickly(patch)
        succeed(*line(mini_world, tiny_model_dir, output, *EVERY))
    return output


@pytest.fixture(scope="module")
def killed(mini_world: Path, tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory, quiet_torch: None) -> Path:
    """What is left of a run that was killed behind its fifth step."""
    output = tmp_path_factory.mktemp("killed") / "adapter"
    with pytest.MonkeyPatch.context() as patch:
        run_quickly(patch)
        broken_off(line(mini_world, tiny_model_dir, output, *EVERY), patch, 5)
    return output


@pytest.fixture
def left(killed: Path, tmp_path: Path) -> Path:
    """The same, to be gone on from by `command`."""
    shutil.copytree(killed, tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.fixture
def command(mini_world: Path, tiny_model_dir: Path, tmp_path: Path) -> list[object]:
    return line(mini_world, tiny_model_dir, tmp_path / "adapter", *EVERY)


def broken_off(
    command: list[object], monkeypatch: pytest.MonkeyPatch, step: int, act: Callable[[], None] = kill
) -> None:
    """Run a command that is killed once the line of a step is written."""
    with monkeypatch.context() as patch:
        after_step(patch, step, act)
        with pytest.raises(Killed):
            call(*command)


def test_an_undisturbed_run_leaves_no_checkpoint(whole):
    assert is_complete(whole)
    assert checkpoints(whole) == []
    assert len((whole / "training_log.jsonl").read_text().splitlines()) == NUM_STEPS
    assert [json.loads(point)["step"] for point in (whole / "trajectory.jsonl").read_text().splitlines()] == [0, 3, 6]
    assert read_json(whole / "provenance.json")["resumed_at"] == []


@pytest.mark.parametrize(("step", "saved"), [(1, []), (3, ["step-00002"]), (4, ["step-00002"]), (6, ["step-00004"])])
def test_a_killed_run_goes_on_from_its_checkpoint_to_the_same_bytes(command, whole, tmp_path, monkeypatch, step, saved):
    adapter = tmp_path / "adapter"
    broken_off(command, monkeypatch, step)
    assert not is_complete(adapter)
    assert checkpoints(adapter) == saved
    again = succeed(*command)
    assert results(adapter) == results(whole)
    assert checkpoints(adapter) == []
    at = [int(name[-5:]) for name in saved]
    assert read_json(adapter / "provenance.json")["resumed_at"] == at
    assert ("goes on from step" in again.err) == bool(saved)
    assert read_json(adapter / "config.json") == read_json(whole / "config.json")


def test_a_run_may_be_killed_again_and_again(command, whole, tmp_path, monkeypatch):
    for step in (3, 3, 5, 6):
        broken_off(command, monkeypatch, step)
    succeed(*command)
    assert results(tmp_path / "adapter") == results(whole)
    assert read_json(tmp_path / "adapter" / "provenance.json")["resumed_at"] == [2, 4]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_behind_the_step_and_the_same_command_goes_on(command, whole, tmp_path, monkeypatch, number):
    adapter = tmp_path / "adapter"
    with monkeypatch.context() as patch:
        after_step(patch, 1, send(number))
        outcome = call(*command)
    assert outcome.code == 75
    assert f"interrupted at step 2 of 6, saved in {adapter / 'checkpoint' / 'step-00002'}" in outcome.err
    assert "The same command goes on from there." in outcome.err
    assert checkpoints(adapter) == ["step-00002"]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    succeed(*command)
    assert results(adapter) == results(whole)


def test_without_a_step_count_a_run_is_saved_where_it_is_interrupted(command, whole, tmp_path, monkeypatch):
    command = [*command, "--save-steps", 0]
    with monkeypatch.context() as patch:
        after_step(patch, 3, send(signal.SIGTERM))  # which is measured before it is saved
        assert call(*command).code == 75
    assert checkpoints(tmp_path / "adapter") == ["step-00003"]
    succeed(*command)
    assert results(tmp_path / "adapter") == results(whole)


def test_a_second_ctrl_c_ends_at_once(command, tmp_path, monkeypatch):
    def twice() -> None:
        send(signal.SIGINT)()
        send(signal.SIGINT)()

    with monkeypatch.context() as patch:
        after_step(patch, 1, twice)
        outcome = call(*command)
    assert outcome.code == 75
    assert "Run the same command again" in outcome.err
    assert checkpoints(tmp_path / "adapter") == []


def test_a_signal_behind_the_last_step_changes_nothing(command, whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        after_step(patch, NUM_STEPS, send(signal.SIGTERM))
        assert call(*command).code == 0
    assert results(tmp_path / "adapter") == results(whole)


# ---- checkpoints that are not what they should be --------------------------------------------------------------------


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "a bit of the tensors": lambda saved: flip(saved / "tensors.safetensors"),
    "half of the tensors": lambda saved: cut(saved / "tensors.safetensors"),
    "no tensors": lambda saved: (saved / "tensors.safetensors").unlink(),
    "a digit of the state": lambda saved: (saved / "state.json").write_bytes(
        (saved / "state.json").read_bytes().replace(b'"step":4', b'"step":2')
    ),
    "half of the state": lambda saved: cut(saved / "state.json"),
    "no state": lambda saved: (saved / "state.json").unlink(),
    "a list": lambda saved: (saved / "state.json").write_bytes(b"[]"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_checkpoint_is_not_read(left, what):
    whole = read_checkpoint(left)
    assert whole is not None
    assert whole.state.step == 4
    DAMAGE[what](left / "checkpoint" / "step-00004")
    with pytest.raises(DamagedCheckpoint, match="expected the bytes that were written, as their digest has it, found"):
        read_checkpoint(left)


def test_a_checkpoint_holds_no_pickle_and_is_read_as_it_was_written(left, tmp_path):
    held = read_checkpoint(left)
    assert held is not None
    assert {path.name for path in held.path.iterdir()} == {"state.json", "tensors.safetensors"}
    again = read_checkpoint(
        save_checkpoint(tmp_path, held.state, made_from=held.made_from, lines={}, resumed=held.resumed).parent.parent
    )
    assert again is not None
    assert again.state.tensors.keys() == held.state.tensors.keys()
    assert all(torch.equal(again.state.tensors[name], value) for name, value in held.state.tensors.items())
    assert (again.state.random, again.state.recent, again.made_from) == (
        held.state.random, held.state.recent, held.made_from,
    )  # fmt: skip
    assert {name.split("/")[0] for name in held.state.tensors} == {"weight", "optimizer", "mask"}


def test_a_checkpoint_of_a_later_version_is_not_read(left):
    state = left / "checkpoint" / "step-00004" / "state.json"
    told = json.loads(state.read_bytes())
    del told["digest"]
    told["schema"] = "viker/checkpoint/2"
    digest = hashlib.sha256(canonical_json(told)).hexdigest()
    state.write_bytes(canonical_json({**told, "digest": digest}))
    with pytest.raises(DamagedCheckpoint, match="found those of viker/checkpoint/2"):
        read_checkpoint(left)


def test_a_damaged_checkpoint_is_left_out_with_a_warning(command, whole, left):
    flip(left / "checkpoint" / "step-00004" / "tensors.safetensors")
    again = succeed(*command)
    assert "train: WARNING:" in again.err
    assert "the run begins again" in again.err
    assert results(left) == results(whole)


def test_a_checkpoint_that_was_being_written_is_none(command, whole, left):
    folder = left / "checkpoint"
    shutil.copytree(folder / "step-00004", folder / "step-00005.writing")
    cut(folder / "step-00005.writing" / "tensors.safetensors")
    assert "goes on from step 4" in succeed(*command).err
    assert results(left) == results(whole)


def test_of_two_checkpoints_the_newer_one_counts(left):
    folder = left / "checkpoint"
    shutil.copytree(folder / "step-00004", folder / "step-00002")  # a kill before the older one was removed
    held = read_checkpoint(left)
    assert held is not None
    assert held.path == folder / "step-00004"


@pytest.mark.parametrize("name", ["training_log.jsonl", "trajectory.jsonl"])
def test_lines_that_are_missing_are_a_reason_to_begin_again(command, whole, left, name):
    cut(left / name)
    again = succeed(*command)
    assert "expected the lines that" in again.err
    assert results(left) == results(whole)


def test_half_a_line_behind_the_checkpoint_is_written_again(command, whole, left):
    with (left / "training_log.jsonl").open("a") as log:
        log.write('{"schema": "viker/step/2", "st')
    succeed(*command)
    assert results(left) == results(whole)


# ---- another command -------------------------------------------------------------------------------------------------


def test_an_interrupted_run_of_other_options_is_not_thrown_away(command, left):
    refused = call(*command, "--learning-rate", 2e-3, "--lora-r", 4)
    assert refused.code == 3
    assert "an interrupted run with other options is there" in refused.message
    assert "learning_rate" in refused.message
    assert "lora_r" in refused.message
    assert checkpoints(left) == ["step-00004"]
    succeed(*command, "--learning-rate", 2e-3, "--lora-r", 4, "--overwrite")
    assert read_json(left / "provenance.json")["resumed_at"] == []


def test_a_run_begins_again_where_that_is_asked_for(command, whole, left):
    again = succeed(*command, "--no-resume")
    assert "goes on" not in again.err
    assert results(left) == results(whole)
    assert read_json(left / "provenance.json")["resumed_at"] == []


def test_overwriting_is_resumed_too(command, whole, tmp_path, monkeypatch):
    succeed(*command)
    broken_off([*command, "--overwrite"], monkeypatch, 5)
    assert "goes on from step 4" in succeed(*command, "--overwrite").err
    assert results(tmp_path / "adapter") == results(whole)


def test_a_checkpoint_of_other_weights_is_refused(mini_world, tiny_model_dir, tmp_path, monkeypatch):
    model = copy_model(tiny_model_dir, tmp_path / "model")
    command = line(mini_world, model, tmp_path / "adapter", *EVERY)
    broken_off(command, monkeypatch, 3)
    weights = load_file(model / "model.safetensors")
    weights[next(name for name in weights if "language_model" in name)] *= 1.01
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    refused = call(*command)
    assert refused.code == 3
    assert "expected a checkpoint of this run, found one that was made from something else" in refused.message
    assert "student weights" in refused.message
    assert "--no-resume" in refused.message
    assert checkpoints(tmp_path / "adapter") == ["step-00002"], "nothing is thrown away"
    succeed(*command, "--no-resume")


def test_a_mistake_before_the_first_step_leaves_nothing(command, tmp_path):
    command = ["recommended" if word == "mmunlearner" else word for word in command]
    refused = call(*command)
    assert refused.code == 3
    assert not (tmp_path / "adapter").exists()


# ---- numbers and memory ----------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_names_the_good_weights_before_it(command, tmp_path, monkeypatch):
    adapter, before = tmp_path / "adapter", []
    losses: list[float] = []

    def poisoned(scored: Any, settings: Any) -> torch.Tensor:
        losses.append(0.0)
        return scored.answer_logprob_M.sum() * (math.nan if len(losses) == 4 else 1.0)

    monkeypatch.setattr("viker.train.terms.climb", poisoned)
    after_step(monkeypatch, 3, lambda: before.append((adapter / "training_log.jsonl").read_bytes()))
    outcome = call(*command)
    assert outcome.code == 1
    assert "step 4: expected a finite loss and gradient, found loss nan (ascent nan, retain" in outcome.message
    assert "of examples " in outcome.message
    assert "and of retain examples " in outcome.message
    assert "Lower --learning-rate, or train in float32." in outcome.message
    saved, snapshot = adapter / "checkpoint" / "step-00003", adapter / "snapshots" / "step-00003"
    assert f"kept: {saved}, and as an adapter in {snapshot}." in outcome.message
    assert [(adapter / "training_log.jsonl").read_bytes()] == before
    weights = load_file(snapshot / "adapter_model.safetensors")
    kept = load_file(saved / "tensors.safetensors")
    assert weights
    for name, weight in weights.items():
        assert torch.isfinite(weight).all()
        full = name.replace(".weight", ".default.weight")
        assert torch.equal(kept[f"weight/{full}"], weight)


def test_after_a_bad_step_the_same_command_goes_on_as_if_it_had_not_been(command, whole, tmp_path, monkeypatch):
    from viker.train import terms

    climb, steps = terms.climb, []

    def poisoned(scored: Any, settings: Any) -> torch.Tensor:
        steps.append(0)
        return climb(scored, settings) * (math.nan if len(steps) == 4 else 1.0)

    monkeypatch.setattr("viker.train.terms.climb", poisoned)
    assert call(*command).code == 1
    assert "goes on from step 3" in succeed(*command).err
    assert results(tmp_path / "adapter") == results(whole)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:114] . DefaultCPUAllocator: can't allocate memory: you tried ..."),
        MemoryError(),
    ],
    ids=["gpu", "cpu", "python"],
)
def test_out_of_memory_names_the_options_that_fit_common_cards(command, monkeypatch, error):
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr("viker.train.loop.run_step", fail)
    outcome = call(*command)
    assert outcome.code == 1
    assert "expected memory for a step, found none left" in outcome.message
    for card in (24, 40, 48):
        assert f"a card of {card} GiB: as asked (about " in outcome.message


def test_memory_may_run_out_while_the_model_is_loaded(command, tmp_path, monkeypatch):
    def fail(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr("viker.train.open_student.load", fail)
    outcome = call(*command)
    assert outcome.code == 1
    assert "expected memory for loading the model" in outcome.message
    assert "a card of 24 GiB" in outcome.message
    assert not (tmp_path / "adapter").exists()


def test_other_runtime_errors_are_ours_and_keep_their_traceback(command, monkeypatch):
    def fail(*_: Any) -> None:
        raise RuntimeError("expected scalar type Float")

    monkeypatch.setattr("viker.train.loop.run_step", fail)
    with pytest.raises(RuntimeError, match="expected scalar type"):
        call(*command)
