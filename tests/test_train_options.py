"""Options of `viker train` that change how a run is computed, kept or shown, and what they must leave as it is."""

from __future__ import annotations

import copy
import importlib.util
import json
import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from accelerate import Accelerator
from command_line import call, succeed
from safetensors.torch import load_file
from torch.optim.optimizer import register_optimizer_step_pre_hook
from training_run import checkpoints, line, measure_weights
from viker.data.artefact import read_json
from viker.models.lora import add_lora
from viker.train.batches import read_items
from viker.train.loop import Optimization, unlearn
from viker.train.methods import METHODS
from viker.train.open_student import checkpoint_layers

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from viker.data.example import Example
    from viker.models.load import Loaded
    from viker.train.step_log import StepLog


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, quiet_torch: None) -> None:
    monkeypatch.setattr("viker.cli._measure", measure_weights)
    monkeypatch.setattr("viker.train.saliency.MOST_EXAMPLES", 4)


@pytest.fixture
def command(mini_world: Path, tiny_model_dir: Path, tmp_path: Path) -> list[object]:
    return [*line(mini_world, tiny_model_dir, tmp_path / "adapter"), "--num-train-epochs", 1]


# ---- how it is computed ----------------------------------------------------------------------------------------------


def one_step(
    tiny: Loaded, base: Path, examples: Sequence[Example], method: str, *, checkpointing: bool, group_by_image: bool
) -> tuple[StepLog, dict[str, torch.Tensor]]:
    """A step's log, and the gradients of its weights."""
    torch.manual_seed(0)
    model = add_lora(copy.deepcopy(tiny.model), rank=4, alpha=8, dropout=0.0, base=base)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.02)  # so that A has a gradient too
    if checkpointing:
        checkpoint_layers(model)
    items = read_items(tiny.encoder, examples, None, "reference")
    optimization = Optimization(
        num_train_epochs=1, per_device_train_batch_size=2, gradient_accumulation_steps=2, learning_rate=0.0,
        weight_decay=0.0, warmup_ratio=0.0, max_grad_norm=1e9, seed=0, group_by_image=group_by_image,
    )  # fmt: skip
    gradients: dict[str, torch.Tensor] = {}

    def record(*_: Any) -> None:
        gradients.update({n: w.grad.clone() for n, w in model.named_parameters() if w.grad is not None})

    handle = register_optimizer_step_pre_hook(record)
    (log,) = unlearn(
        model, tiny.encoder, items[:4], items[4:], METHODS[method], optimization, key_entropy=1.0,
        stop_at_teacher=False, accelerator=Accelerator(cpu=True),
    )  # fmt: skip
    handle.remove()
    return log, gradients


@pytest.mark.parametrize("group_by_image", [False, True])
@pytest.mark.parametrize("method", ["gd", "rmu"])
def test_gradient_checkpointing_changes_no_gradient(tiny, tiny_model_dir, training_examples, method, group_by_image):
    examples = training_examples[:8]
    plain, expected = one_step(
        tiny, tiny_model_dir, examples, method, checkpointing=False, group_by_image=group_by_image
    )
    frugal, found = one_step(tiny, tiny_model_dir, examples, method, checkpointing=True, group_by_image=group_by_image)
    assert frugal.loss == pytest.approx(plain.loss, rel=1e-6)
    assert found.keys() == expected.keys()
    assert len(found) == 2 * 28
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-4)
    assert max(float(gradient.abs().max()) for gradient in expected.values()) > 1e-3


def test_gradient_checkpointing_is_an_option(command, tmp_path):
    plain = [*command, "--lora-dropout", 0.0]
    succeed(*plain)
    logs = [log_of(tmp_path / "adapter")]
    succeed(*plain, "--gradient-checkpointing", "--overwrite")
    logs.append(log_of(tmp_path / "adapter"))
    assert [step["loss"] for step in logs[0]] == pytest.approx([step["loss"] for step in logs[1]], rel=1e-5)


def test_bfloat16_is_an_option(command, tmp_path):
    succeed(*command, "--bf16")
    steps = log_of(tmp_path / "adapter")
    assert len(steps) == 3
    assert all(math.isfinite(step["loss"]) and step["gradient_norm"] > 0 for step in steps)
    weights = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}, "the adapter stays in full"
    assert read_json(tmp_path / "adapter" / "config.json")["options"]["bf16"] is True


def log_of(adapter: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (adapter / "training_log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("device", "says"),
    [("gpu", "expected cpu, cuda, cuda:1 ..., found no device of that name"), ("cuda", "found cpu")],
)
def test_a_device_that_is_not_there_is_one_clear_error(command, device, says):
    if torch.cuda.is_available() and device == "cuda":
        pytest.skip("there is one")
    outcome = call(*command, "--device", device)
    assert outcome.code == 1
    assert f"--device {device}: expected" in outcome.message
    assert says in outcome.message


def test_a_device_by_its_number_is_not_for_several_processes(command, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    outcome = call(*command, "--device", "cuda:0")
    assert outcome.code == 1
    assert "expected a kind of device for 2 processes, found the number of one" in outcome.message


# ---- how it is kept --------------------------------------------------------------------------------------------------


def test_how_a_run_is_kept_and_shown_does_not_name_its_adapter(command, tmp_path):
    succeed(*command)
    again = succeed(*command, "--save-steps", 1, "--no-resume", "--report-to", "none")
    assert "complete, skipped" in again.out


def test_what_a_kill_left_beside_a_complete_adapter_is_removed(command, tmp_path):
    succeed(*command)
    (tmp_path / "adapter" / "checkpoint" / "step-00002").mkdir(parents=True)
    assert "complete, skipped" in succeed(*command).out
    assert checkpoints(tmp_path / "adapter") == []


# ---- how it is shown -------------------------------------------------------------------------------------------------


def without(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: name not in packages and found(name, *rest))


@pytest.mark.parametrize(
    ("tracker", "packages"), [("tensorboard", ("tensorboard", "tensorboardX")), ("wandb", ("wandb",))]
)
def test_a_tracker_that_is_not_installed_is_one_clear_error(command, tmp_path, monkeypatch, tracker, packages):
    without(monkeypatch, *packages)
    outcome = call(*command, "--report-to", tracker)
    assert outcome.code == 1
    assert f"--report-to {tracker}: expected the package {tracker}, found none" in outcome.message
    assert f"pip install {tracker}" in outcome.message
    assert not (tmp_path / "adapter").exists(), "it is said before anything is made"


def test_tensorboard_shows_what_the_log_says(command, tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    adapter = tmp_path / "adapter"
    succeed(*command, "--report-to", "tensorboard", "--evaluate-every", 2)
    shown = events.EventAccumulator(str(adapter / "tracking" / "viker"))
    shown.Reload()
    steps = log_of(adapter)

    def values(name: str) -> list[float]:
        return [event.value for event in shown.Scalars(name)]

    assert [event.step for event in shown.Scalars("loss")] == [1, 2, 3]
    for name in ("loss", "gradient_norm", "learning_rate"):
        assert values(name) == pytest.approx([step[name] for step in steps], rel=1e-6)
    for term in steps[0]["terms"]:
        assert values(f"term/{term}") == pytest.approx([step["terms"][term] for step in steps], rel=1e-6)
    points = [json.loads(point) for point in (adapter / "trajectory.jsonl").read_text().splitlines()]
    assert [event.step for event in shown.Scalars("point/weights")] == [0, 2]
    assert values("point/weights") == pytest.approx([point["weights"] for point in points], rel=1e-6)
