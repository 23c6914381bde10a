"""Hidden states at answer tokens are those the logits are made of, through every wrapper and in every family."""

from __future__ import annotations

import copy
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch
from family_work import EXAMPLES, each
from torch import nn
from viker.data.example import DataError
from viker.models.encode import answer_rows, collate
from viker.models.forward import answer_logits, answer_states, answer_states_at, head_of
from viker.models.lora import add_lora
from viker.models.pack import pack_for
from viker.models.positions import backbone

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor
    from viker.models.load import Loaded


class Wrapped(nn.Module):
    """As wrappers for parallel training are: the model is its `module`, run through its own forward pass."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.num_runs = 0

    def forward(self, **inputs: Any) -> Any:
        self.num_runs += 1
        return self.module(**inputs)


def batch_of(loaded: Loaded, group_size: int) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    rows = [loaded.encoder.encode(example) for example in EXAMPLES[:5]]
    batch = pack_for(loaded.model, rows, pad_id=loaded.encoder.pad_id, group_size=group_size)
    return batch.inputs, batch.batch_M, batch.position_M


def adapted(loaded: Loaded) -> Any:
    """A copy with LoRA whose two halves both move the model."""
    model = add_lora(copy.deepcopy(loaded.model), rank=2, alpha=4, dropout=0.0, base=loaded.checkpoint.weights)
    torch.manual_seed(0)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.05)
    return model


def checkpointing(model: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # renamed in transformers 5.23
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def gradients(model: Any, logits_MV: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    (logits_MV.log_softmax(-1)[:, 7] * torch.linspace(0.5, 2.0, len(logits_MV))).sum().backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def through_states(model: Any, *batch: Any) -> Tensor:
    logits_MV: Tensor = head_of(model)(answer_states(model, *batch))
    return logits_MV


@each
@torch.no_grad()
def test_the_head_makes_the_answer_logits_of_them(family):
    group_size = 1 if family.model_type in ("gemma3", "mllama") else 3
    batch = batch_of(family, group_size)
    assert torch.equal(through_states(family.model, *batch), answer_logits(family.model, *batch))


@each
@pytest.mark.parametrize("wrap", [lambda model: model, Wrapped], ids=["bare", "wrapped"])
def test_gradients_of_an_adapter_are_those_through_the_answer_logits(family, wrap: Callable[[Any], Any]):
    batch = batch_of(family, 1)
    model = wrap(adapted(family))
    expected = gradients(model, answer_logits(model, *batch))
    found = gradients(model, through_states(model, *batch))
    assert any("lora_A" in name for name in expected)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, msg=name)


def test_wrappers_see_one_forward_pass(tiny):
    model = Wrapped(tiny.model)
    answer_states(model, *batch_of_tiny(tiny))
    assert model.num_runs == 1


def test_the_head_runs_for_one_position_a_row(tiny):
    seen = []
    hook = tiny.model.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[:2]))
    answer_states(tiny.model, *batch_of_tiny(tiny))
    hook.remove()
    assert seen == [(3, 1)]


def batch_of_tiny(tiny: Loaded) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    rows = [tiny.encoder.encode(example) for example in EXAMPLES[:3]]
    batch_M, position_M, _ = answer_rows(rows)
    return collate(rows, pad_id=tiny.encoder.pad_id, side="right"), batch_M, position_M


@each
@pytest.mark.parametrize("layer", [0, 1, 2])
@torch.no_grad()
def test_states_of_a_layer_are_those_the_model_can_output(family, layer):
    inputs, batch_M, position_M = batch_of(family, 1)
    found = answer_states_at(family.model, inputs, batch_M, position_M, layer=layer)
    assert torch.equal(found.last_MD, answer_states(family.model, inputs, batch_M, position_M))
    all_BTD = backbone(family.model)(**inputs, output_hidden_states=True, use_cache=False).hidden_states
    if layer + 2 < len(all_BTD):  # the last of them is behind the norm
        assert torch.equal(found.layer_MD, all_BTD[layer + 1][batch_M, position_M])
    else:
        assert torch.equal(backbone(family.model).get_decoder().norm(found.layer_MD), found.last_MD)


@pytest.mark.parametrize("prepare", [lambda model: model, checkpointing], ids=["plain", "checkpointing"])
def test_a_loss_of_a_layer_reaches_the_weights_up_to_it(tiny, prepare):
    model = prepare(adapted(tiny).train())
    answer_states_at(model, *batch_of_tiny(tiny), layer=1).layer_MD.square().sum().backward()
    reached = {name.split(".layers.")[1][0] for name, weight in model.named_parameters() if weight.grad is not None}
    assert reached == {"0", "1"}


def test_states_under_gradient_checkpointing_have_the_same_gradients(tiny):
    model, batch = adapted(tiny).train(), batch_of_tiny(tiny)
    expected = gradients(model, through_states(model, *batch))
    found = gradients(checkpointing(model), through_states(model, *batch))
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, msg=name)


def test_no_hook_stays_behind(tiny):
    before = [list(module._forward_hooks) for module in tiny.model.modules()]  # transformers may have some of its own
    answer_states_at(tiny.model, *batch_of_tiny(tiny), layer=1)
    with pytest.raises(ValueError, match="input_ids"):
        answer_states(tiny.model, {"no_such_input": torch.zeros(1)}, torch.tensor([0]), torch.tensor([0]))
    assert [list(module._forward_hooks) for module in tiny.model.modules()] == before


def test_a_layer_that_is_not_there(tiny):
    with pytest.raises(DataError, match="layer: expected one of 0 to 3, found 4"):
        answer_states_at(tiny.model, *batch_of_tiny(tiny), layer=4)
    with pytest.raises(DataError, match="found -1"):
        answer_states_at(tiny.model, *batch_of_tiny(tiny), layer=-1)
