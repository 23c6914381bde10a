"""`viker bench train`: every variant trains on the same loss, by the product's own steps, and does what it says."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from click.testing import CliRunner
from viker.bench import train_work
from viker.bench.commands import command
from viker.bench.precompute import SHAPES, Shape
from viker.bench.train import BEST, FIRST, RATIOS, VARIANTS, passes_over, race

if TYPE_CHECKING:
    from viker.bench.train_work import Prepared

NAMES = [
    f"{rows}-{questions}"
    for rows in ("online-naive", "online-shared-prefix", "cached")
    for questions in ("ungrouped", "grouped")
]
SMALL = Shape(28, (32, 2), (32, 48, 2, 4), 300, (3, 6), (2, 5))
BATCH = 4


@pytest.fixture
def prepared(quiet_torch: None) -> Prepared:
    return train_work.prepare_seeded(
        SMALL, device="cpu", dtype=torch.float32, num_examples=14, num_references=2, pool_size=3
    )


@pytest.fixture
def small_shapes(quiet_torch: None, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What runs the command on a model of no size, as the one with a long prefix."""
    monkeypatch.setitem(SHAPES, "long", SMALL)
    return ["train", "--shapes", "long", "--batch", "7", "--num-references", "2", "--rounds", "1"]


@pytest.fixture
def towers(prepared: Prepared) -> list[int]:
    """Pictures that the vision tower is shown, pass by pass through it."""
    shown: list[int] = []
    tower = prepared.model.get_base_model().model.vision_tower
    tower.register_forward_hook(lambda _module, inputs, kwargs, _output: shown.append(
        len(kwargs["pixel_values"] if "pixel_values" in kwargs else inputs[0])
    ), with_kwargs=True)  # fmt: skip
    return shown


def passes(prepared: Prepared, name: str, num_passes: int, cached: Any = ()) -> list[float]:
    return list(passes_over(prepared, VARIANTS[name], cached, batch_size=BATCH, num_passes=num_passes))


def test_the_command_compares_all_variants_on_the_embedded_benchmark(quiet_torch):
    asked = ["train", "--examples", "4", "--batch", "2", "--num-references", "2", "--rounds", "1", "--json"]
    told = json.loads(CliRunner().invoke(command, asked, catch_exceptions=False).stdout)
    assert told["schema"] == "viker/bench/1"
    assert told["samples"] == 4
    assert [variant["name"] for variant in told["variants"]] == NAMES
    assert told["loss"]["largest_difference"] < 1e-4
    assert 0 < told["loss"]["stored_difference"] < 1e-2 * abs(told["loss"]["mean"])
    for variant in told["variants"]:
        assert variant["ratio"] == pytest.approx(variant["rate"] / told["variants"][0]["rate"])
        assert 0 < variant["tflops"] == pytest.approx(variant["share_of_ceiling"] * told["ceiling"]["rate"])
        assert variant["includes"]
    assert (told["ratios"][0]["of"], told["ratios"][0]["against"]) == (BEST, "online-shared-prefix-grouped")
    assert [(one["of"], one["against"]) for one in told["ratios"]] == list(RATIOS)


def test_text_says_the_honest_ratio_first(small_shapes):
    _, first, *_ = CliRunner().invoke(command, small_shapes, catch_exceptions=False).stdout.splitlines()
    assert first.startswith("  cached-grouped / online-shared-prefix-grouped: ")


def test_variants_train_on_one_loss(prepared):
    raced = race(prepared, top_k=300, batch_size=BATCH, grouped_batch_size=7, num_rounds=1, passes_a_round=1)
    assert raced.loss_told()["largest_difference"] < 1e-4
    assert max(raced.losses.values()) - min(raced.losses.values()) < 1e-2  # cached rows are float16
    assert raced.losses[FIRST] != raced.losses[BEST]


def test_the_teacher_is_not_the_student(prepared):
    (own,) = passes(prepared, "cached-ungrouped", 1, train_work.with_rows(prepared, top_k=300, dtype=torch.float32))
    with torch.no_grad():
        for name, weight in prepared.model.named_parameters():
            if "lora_B" in name:
                weight.zero_()
    (fresh,) = passes(prepared, "online-naive-ungrouped", 1)
    assert abs(own - fresh) > 1e-3


def test_passes_leave_the_weights_as_they_are(prepared):
    before = {name: weight.clone() for name, weight in prepared.model.named_parameters()}
    first, second = passes(prepared, "online-shared-prefix-grouped", 2)
    assert first == pytest.approx(second, abs=1e-5)
    assert all(torch.equal(before[name], weight) for name, weight in prepared.model.named_parameters())


def test_the_first_variant_sees_every_picture_each_time(prepared, towers):
    passes(prepared, FIRST, 1)
    once = sum(towers)
    assert once == 14 * 2 + 14  # two references of each example, and its own image
    passes(prepared, FIRST, 2)
    assert sum(towers) == 3 * once
    assert not any(weight.requires_grad for weight in prepared.model.get_base_model().model.vision_tower.parameters())


def test_cached_variants_remember_what_they_saw(prepared, towers):
    cached = train_work.with_rows(prepared, top_k=8, dtype=torch.float16)
    towers.clear()
    running = passes_over(prepared, VARIANTS[BEST], cached, batch_size=7, num_passes=3)
    next(running), next(running)
    seen = len(towers)
    next(running)
    assert len(towers) == seen


def test_grouped_variants_run_fewer_products(prepared):
    raced = race(prepared, top_k=8, batch_size=7, grouped_batch_size=7, num_rounds=1, passes_a_round=1)
    amounts = {name: sum(rows * inner * columns * times for (rows, inner, columns), times in found.items())
               for name, found in raced.products.items()}  # fmt: skip
    assert amounts[BEST] < amounts["cached-ungrouped"] < amounts[FIRST]
    assert amounts[BEST] < amounts["online-shared-prefix-grouped"] < amounts["online-naive-grouped"]


def test_a_variant_without_room_is_told_and_has_no_rate(small_shapes, monkeypatch):
    def too_large(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setitem(VARIANTS, FIRST, VARIANTS[FIRST]._replace(passes=too_large))
    text = CliRunner().invoke(command, small_shapes, catch_exceptions=False).stdout
    assert f"{FIRST:30} out of memory" in text
    assert f"cached-grouped / {FIRST}: not known" in text
    told = json.loads(CliRunner().invoke(command, [*small_shapes, "--json"], catch_exceptions=False).stdout)
    assert told["variants"][0]["rate"] is told["variants"][1]["ratio"] is None
    assert told["variants"][1]["rate"] > 0


# transformers 5.23 renamed what switches checkpointing on.
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
def test_whole_passes_are_timed_and_grouped_variants_may_hold_more(small_shapes):
    asked = [*small_shapes, "--steps", "3", "--grouped-batch", "14", "--gradient-checkpointing", "--json"]
    told = json.loads(CliRunner().invoke(command, asked, catch_exceptions=False).stdout)
    assert (told["examples"], told["samples"]) == (14, 28)  # three steps of seven are two passes
    assert (told["batch"], told["grouped_batch"]) == (7, 14)
    assert told["loss"]["largest_difference"] < 1e-4


def test_more_than_the_embedded_benchmark_has_is_refused(quiet_torch):
    refused = CliRunner().invoke(command, ["train", "--examples", "73"])
    assert refused.exit_code == 2
    assert "expected at most 72 of mini" in refused.output


def test_sizes_that_need_a_gpu_are_refused_without_one():
    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    refused = CliRunner().invoke(command, ["train", "--shapes", "llava-7b"])
    assert refused.exit_code == 2
    assert "expected a GPU" in refused.output
