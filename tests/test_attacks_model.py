"""Attacks on weights: the adapter is inside what is rounded, and learning again teaches whom it should."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from viker.data.example import DataError
from viker.data.halves import half_of
from viker.data.sources import open_source
from viker.evaluate.attacks import relearning
from viker.evaluate.attacks.quantization import (
    in_int8,
    in_nf4,
    merge_adapter,
    reason_against_int8,
    reason_against_nf4,
)
from viker.evaluate.attacks.relearning import (
    Budget,
    forget_questions,
    num_steps,
    relearn,
    relearned_people,
    unrelated_questions,
)
from viker.evaluate.generate import answer_likelihoods
from viker.models.load import load, resolve
from viker.models.lora import add_lora, language_linears

if TYPE_CHECKING:
    from pathlib import Path

    from viker.data.example import Example
    from viker.models.load import Loaded


@pytest.fixture(scope="module")
def adapter_dir(tiny: Loaded, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter whose weights are large enough to see."""
    torch.manual_seed(0)
    model = add_lora(copy.deepcopy(tiny.model), rank=2, alpha=4, dropout=0.0, base=tiny.checkpoint.weights)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.5)
    directory = tmp_path_factory.mktemp("adapter") / "ga-1"
    model.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def training(mini_world: Path) -> dict[str, list[Example]]:
    source = open_source(str(mini_world), forget=("001", "002", "003", "004"))
    retain = [example for example in source.training("retain") if half_of(example.people[0]) == "seen"]
    return {"forget": list(source.training("forget")), "retain-seen": retain}


def likelihood(model: Any, tiny: Loaded, examples: list[Example]) -> float:
    found = answer_likelihoods(model, tiny.encoder, examples, batch_size=16)
    return sum(total for total, _ in found) / sum(number for _, number in found)


# ---- Fewer bits --------------------------------------------------------------------------------------------------


def test_an_adapter_is_merged_into_the_weights(adapter_dir: Path):
    loaded = load(resolve(str(adapter_dir)))
    with_adapter = loaded.model.get_base_model().get_decoder().layers[0].self_attn.q_proj
    expected = with_adapter.base_layer.weight + with_adapter.get_delta_weight("default")
    merged = merge_adapter(loaded)
    assert "lora" not in " ".join(merged.state_dict())
    assert torch.allclose(merged.get_decoder().layers[0].self_attn.q_proj.weight, expected)


def test_int8_rounds_the_merged_weights_of_every_text_layer(tiny: Loaded, adapter_dir: Path):
    merged = merge_adapter(load(resolve(str(adapter_dir))))
    names = language_linears(merged)
    model, encoder = in_int8(lambda: load(resolve(str(adapter_dir))))
    assert encoder.tokenizer.get_vocab() == tiny.encoder.tokenizer.get_vocab()
    assert len(names) == 7 * len(merged.get_decoder().layers)
    for name in names:
        whole, few = merged.get_submodule(name).weight, model.get_submodule(name)
        assert type(few).__module__.startswith("torch.ao.nn.quantized.dynamic")
        scale_O1 = whole.abs().amax(1, keepdim=True) / 127
        assert few.weight().dtype == torch.qint8
        error = (few.weight().dequantize() - whole).abs()
        assert (error <= 0.51 * scale_O1).all(), "rounded, a scale a channel"
        assert error.max() > 0
        base = tiny.model.get_submodule(name).weight
        assert (few.weight().dequantize() - base).abs().max() > 10 * error.max(), "the adapter is inside"
    left = {name for name, module in model.named_modules() if type(module) is torch.nn.Linear}
    assert "lm_head" in left
    assert any("vision" in name for name in left)


def test_int8_answers_nearly_as_before(tiny: Loaded, adapter_dir: Path, training: dict[str, list[Example]]):
    examples = training["forget"][:8]
    whole = likelihood(merge_adapter(load(resolve(str(adapter_dir)))), tiny, examples)
    few = likelihood(in_int8(lambda: load(resolve(str(adapter_dir))))[0], tiny, examples)
    plain = likelihood(tiny.model, tiny, examples)
    assert 0 < abs(few - whole) < 0.5 * abs(plain - whole)


def test_int8_is_the_cpus():
    assert reason_against_int8("cpu") is None
    assert "expected --device cpu" in str(reason_against_int8("cuda:1"))


def test_nf4_without_bitsandbytes_is_refused(adapter_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else find_spec(name))
    assert "expected the package bitsandbytes, found none" in str(reason_against_nf4("cuda"))
    with pytest.raises(DataError, match="expected the package bitsandbytes, found none"):
        in_nf4(lambda: load(resolve(str(adapter_dir))), tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_nf4_is_the_gpus(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    assert reason_against_nf4("cuda:1") is None
    assert "expected --device cuda, found cpu" in str(reason_against_nf4("cpu"))


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
def test_nf4_loads_the_merged_weights(tiny: Loaded, adapter_dir: Path, tmp_path: Path):
    import bitsandbytes as bnb

    merged = merge_adapter(load(resolve(str(adapter_dir))))
    model, _ = in_nf4(lambda: load(resolve(str(adapter_dir))), tmp_path / "merged")
    assert (tmp_path / "merged" / "model.safetensors").is_file()
    for name in language_linears(merged):
        few = model.get_submodule(name)
        assert isinstance(few, bnb.nn.Linear4bit)
        weight = bnb.functional.dequantize_4bit(few.weight.data, few.weight.quant_state)
        rounded = bnb.functional.quantize_4bit(
            merged.get_submodule(name).weight.data, quant_type="nf4", blocksize=few.weight.quant_state.blocksize
        )
        assert torch.allclose(weight, bnb.functional.dequantize_4bit(*rounded)), "the merged weights, rounded"
        error = (weight - merged.get_submodule(name).weight).norm()
        assert 0 < error < (weight - tiny.model.get_submodule(name).weight).norm()


def test_weights_stored_in_few_bits_are_not_merged_into(tiny: Loaded, tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "gptq"}}))
    checkpoint = dataclasses.replace(tiny.checkpoint, weights=tmp_path)
    with pytest.raises(DataError, match="expected whole weights to merge into, found them stored in gptq"):
        merge_adapter(dataclasses.replace(tiny, checkpoint=checkpoint))


# ---- Learning again ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "share", "learned"), [(6, 1 / 3, 2), (6, 0.01, 1), (3, 1.0, 2), (2, 0.5, 1)])
def test_a_share_of_people_is_learned_again_and_never_all(number, share, learned):
    people = [f"{index:03d}" for index in range(number)]
    chosen = relearned_people(people, share, 0)
    assert len(chosen) == learned
    assert chosen == relearned_people(people[::-1] * 2, share, 0)
    assert set(chosen) < set(people)


def test_who_is_learned_again_is_the_seeds():
    people = [f"{index:03d}" for index in range(30)]
    assert len({relearned_people(people, 1 / 3, seed) for seed in range(5)}) == 5


def test_questions_are_whole_people_and_unrelated_ones_as_many(training: dict[str, list[Example]]):
    again = forget_questions(training["forget"], 1 / 4, 0)
    [person] = {example.people[0] for example in again}
    assert len(again) == sum(example.people[0] == person for example in training["forget"]) > 4
    unrelated = unrelated_questions(training["retain-seen"], len(again), 0)
    assert len(unrelated) == len(again)
    assert unrelated == unrelated_questions(training["retain-seen"][::-1][::-1], len(again), 0)
    assert not {one.people[0] for one in unrelated} & {one.people[0] for one in training["forget"]}


@pytest.mark.parametrize(("number", "epochs", "steps"), [(12, 1.0, 3), (13, 1.0, 4), (12, 2.5, 8), (1, 0.1, 1)])
def test_the_budget_is_steps(number, epochs, steps):
    assert num_steps(number, Budget(num_epochs=epochs, batch_size=4)) == steps


BUDGET = Budget(num_epochs=3.0, learning_rate=3e-3, batch_size=4, share=1 / 4)


def learned_again(adapter_dir: Path, examples: list[Example], seed: int = 0) -> tuple[Any, dict[str, Any]]:
    steps = num_steps(len(examples), BUDGET)
    return relearn(load(resolve(str(adapter_dir))), examples, BUDGET, steps=steps, seed=seed)


def test_learning_again_makes_the_answers_of_those_people_likelier(
    tiny: Loaded, adapter_dir: Path, training: dict[str, list[Example]]
):
    again = forget_questions(training["forget"], BUDGET.share, 0)
    before = likelihood(load(resolve(str(adapter_dir))).model, tiny, again)
    model, made = learned_again(adapter_dir, again)
    assert likelihood(model, tiny, again) > before + 1
    assert not model.training
    assert made["people"] == sorted({example.people[0] for example in again})
    assert (made["examples"], made["steps"]) == (len(again), num_steps(len(again), BUDGET))
    assert 0 <= made["memorized"] <= 1
    names = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert names
    assert all("lora" in name and "vision" not in name for name in names)


def test_learning_again_is_the_seeds(tiny: Loaded, adapter_dir: Path, training: dict[str, list[Example]]):
    again = forget_questions(training["forget"], BUDGET.share, 0)[:4]
    losses = [learned_again(adapter_dir, again, seed)[1]["loss"] for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]


def test_as_many_steps_on_fewer_questions(monkeypatch: pytest.MonkeyPatch, tiny: Loaded, training: Any):
    asked: dict[str, Any] = {}

    def finetune(*_: Any, **options: Any) -> Any:
        asked.update(options)
        return iter([relearning.EpochLog(1, 8, 0.0, 1.0)])

    monkeypatch.setattr(relearning, "finetune", finetune)
    loaded = dataclasses.replace(tiny, model=copy.deepcopy(tiny.model))
    relearn(loaded, training["retain-seen"][:6], BUDGET, steps=7, seed=0)
    assert max(1, round(asked["num_epochs"] * 2)) == 7
    assert asked["stop_memorized"] > 1, "the budget is fixed"
