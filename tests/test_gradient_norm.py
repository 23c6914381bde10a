"""Gradient norms: those of plain autograd and of finite differences, one scale for adapters, nothing left behind."""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from family_work import EXAMPLES, each
from viker.data.example import DataError, Message
from viker.evaluate import gradient_norm
from viker.evaluate.generate import answer_likelihoods, generate_replies
from viker.evaluate.gradient_norm import gradient_norms, language_weights
from viker.models.encode import answer_rows, collate
from viker.models.lora import add_lora

if TYPE_CHECKING:
    from viker.data.example import Example
    from viker.models.load import Loaded


@pytest.fixture(scope="module")
def people(training_examples: tuple[Example, ...]) -> list[Example]:
    """A question with a picture, one without, and one about somebody else."""
    spoken = dataclasses.replace(
        training_examples[1], id="spoken", images=(), messages=(Message("user", "Where was x born?"),)
    )
    return [training_examples[0], spoken, training_examples[-1]]


def mean_loss(model: Any, loaded: Loaded, example: Example) -> torch.Tensor:
    """The mean loss of an answer with the plainest calls there are: all logits, then the rows that predict it."""
    row = loaded.encoder.encode(example)
    inputs = collate([row], pad_id=loaded.encoder.pad_id, side="right")
    dtype = next(model.parameters()).dtype
    inputs = {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs.items()}
    batch_M, position_M, ids_M = answer_rows([row])
    logp_MV = model(**inputs).logits[batch_M, position_M].log_softmax(-1)
    return -logp_MV[torch.arange(len(ids_M)), ids_M].mean()


def with_adapter(loaded: Loaded, rank: int = 4) -> Any:
    """A copy of the model with LoRA weights that change it."""
    adapted = add_lora(
        copy.deepcopy(loaded.model), rank=rank, alpha=2 * rank, dropout=0.5, base=loaded.checkpoint.weights
    )
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.copy_(0.05 * torch.randn(weight.shape, generator=generator))
    return adapted


def state_of(model: Any) -> dict[str, Any]:
    return {
        "weights": [weight.detach().clone() for weight in model.parameters()],
        "gradients": [weight.grad for weight in model.parameters()],
        "required": [weight.requires_grad for weight in model.parameters()],
        "modes": [module.training for module in model.modules()],
        "hooks": [len(weight._post_accumulate_grad_hooks or {}) for weight in model.parameters()],
    }


def assert_as_before(model: Any, before: dict[str, Any]) -> None:
    after = state_of(model)
    assert all(map(torch.equal, after.pop("weights"), before.pop("weights")))
    gradients = zip(after.pop("gradients"), before.pop("gradients"), strict=True)
    assert all(now is then for now, then in gradients)
    assert after == before


def test_norms_are_plain_autograd_s(tiny: Loaded, people: list[Example]) -> None:
    model = copy.deepcopy(tiny.model).double()
    of_language = {
        name: weight
        for name, weight in model.named_parameters()
        if "language_model" in name or name.startswith("lm_head")
    }
    assert len(of_language) == len(language_weights(model))
    for example, norm in zip(people, gradient_norms(model, tiny.encoder, people), strict=True):
        gradients = torch.autograd.grad(mean_loss(model, tiny, example), list(of_language.values()))
        assert norm == pytest.approx(math.sqrt(sum(float(g.square().sum()) for g in gradients)), rel=1e-10)
    assert gradient_norms(tiny.model, tiny.encoder, people) == pytest.approx(
        gradient_norms(model, tiny.encoder, people), rel=1e-3
    )


def test_a_step_along_the_gradient_changes_the_loss_by_its_square(tiny: Loaded, people: list[Example]) -> None:
    """A finite difference of the loss alone; the step is no smaller, for the norms inside compute in float32."""
    model = copy.deepcopy(tiny.model).double()
    (norm,) = gradient_norms(model, tiny.encoder, people[:1])
    weights = language_weights(model)
    gradients = torch.autograd.grad(mean_loss(model, tiny, people[0]), weights)
    epsilon, losses = 1e-3 / norm, []
    with torch.no_grad():
        for step in (epsilon, -2 * epsilon):
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.add_(gradient, alpha=step)
            losses.append(float(mean_loss(model, tiny, people[0])))
    assert (losses[0] - losses[1]) / (2 * epsilon) == pytest.approx(norm**2, rel=1e-4)


def test_neighbors_do_not_count(tiny: Loaded, people: list[Example]) -> None:
    alone = [gradient_norms(tiny.model, tiny.encoder, [example])[0] for example in people]
    assert gradient_norms(tiny.model, tiny.encoder, people) == alone
    assert gradient_norms(tiny.model, tiny.encoder, people[::-1]) == alone[::-1]
    assert gradient_norms(tiny.model, tiny.encoder, []) == []


def test_an_adapter_s_norms_are_the_merged_model_s(tiny: Loaded, people: list[Example]) -> None:
    adapted = with_adapter(tiny)
    norms = gradient_norms(adapted, tiny.encoder, people)
    merged = copy.deepcopy(adapted).merge_and_unload()
    assert norms == pytest.approx(gradient_norms(merged, tiny.encoder, people), rel=1e-3)
    assert norms != pytest.approx(gradient_norms(tiny.model, tiny.encoder, people), rel=1e-2)
    assert len(language_weights(adapted)) == len(language_weights(tiny.model))


def test_everything_is_as_before(tiny: Loaded, people: list[Example]) -> None:
    adapted = with_adapter(tiny)
    adapted.train()
    next(adapted.get_decoder().children()).eval()  # modes may differ from module to module
    mean_loss(adapted, tiny, people[0]).backward()  # as in the middle of a step
    before = state_of(adapted)
    assert any(gradient is not None for gradient in before["gradients"])
    assert len(set(before["required"])) == 2
    gradient_norms(adapted, tiny.encoder, people[:1])
    assert_as_before(adapted, before)


def test_everything_is_as_before_after_an_error_too(
    tiny: Loaded, people: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    adapted = with_adapter(tiny)
    before = state_of(adapted)

    def fail(*_: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("planted")

    monkeypatch.setattr(gradient_norm, "_mean_loss", fail)
    with pytest.raises(torch.OutOfMemoryError, match="planted"):
        gradient_norms(adapted, tiny.encoder, people)
    assert_as_before(adapted, before)


def test_dropout_does_not_count(tiny: Loaded, people: list[Example]) -> None:
    adapted = with_adapter(tiny)
    quiet = gradient_norms(adapted.eval(), tiny.encoder, people[:1])
    assert gradient_norms(adapted.train(), tiny.encoder, people[:1]) == quiet


@torch.inference_mode()
def test_inference_mode_around_it_does_not_matter(tiny: Loaded, people: list[Example]) -> None:
    fresh = dataclasses.replace(people[0], id="fresh")
    generate_replies(tiny.model, tiny.encoder, [fresh], max_new_tokens=2, batch_size=1)  # pictures read in its mode
    (norm,) = gradient_norms(tiny.model, tiny.encoder, [fresh])
    assert norm > 0


def test_what_is_known_by_heart_pulls_less(trainable: Any, tiny: Loaded, people: list[Example]) -> None:
    before = gradient_norms(trainable, tiny.encoder, people)
    optimizer = torch.optim.Adam(trainable.parameters(), lr=3e-4)
    for _ in range(25):
        optimizer.zero_grad()
        mean_loss(trainable, tiny, people[0]).backward()
        optimizer.step()
    total, number = answer_likelihoods(trainable, tiny.encoder, people[:1], batch_size=1)[0]
    assert total / number > -0.1
    after = gradient_norms(trainable, tiny.encoder, people)
    assert after[0] < 0.2 * before[0]
    assert after[0] < after[2]


@each
def test_every_family_has_norms_of_its_language_model(family: Loaded) -> None:
    before = state_of(family.model)
    norms = gradient_norms(family.model, family.encoder, EXAMPLES[1:3])
    assert all(norm > 0 and math.isfinite(norm) for norm in norms)
    assert_as_before(family.model, before)
    seen = {id(weight) for weight in family.model.get_encoder(modality="image").parameters()}
    assert seen.isdisjoint(map(id, language_weights(family.model)))


def test_a_norm_that_is_no_number_names_its_answer(trainable: Any, tiny: Loaded, people: list[Example]) -> None:
    with torch.no_grad():
        trainable.lm_head.weight.fill_(float("nan"))
    with pytest.raises(DataError, match=f"{people[0].id}: expected a finite gradient norm"):
        gradient_norms(trainable, tiny.encoder, people[:1])


def test_weights_in_few_bits_are_refused(trainable: Any, tiny: Loaded, people: list[Example]) -> None:
    layer = trainable.get_decoder().layers[0].mlp.up_proj
    layer.weight = torch.nn.Parameter(torch.zeros(layer.weight.shape, dtype=torch.int8), requires_grad=False)
    with pytest.raises(DataError, match="expected a language model of whole weights, found 1 of"):
        gradient_norms(trainable, tiny.encoder, people[:1])
