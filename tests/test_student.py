"""What a loss sees of the student: the output layer in chunks equals the plain one, and many logits are not kept.

The plain form is `dense_buckets` of a linear layer under autograd.
"""

# M answer tokens, V vocabulary, K kept, C buckets, D hidden

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import pytest
import torch
from loss_cases import DIFFERENTIABLE, Case, D, M, V, random_case
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from viker.models.encode import answer_rows, collate
from viker.models.forward import answer_logits
from viker.train import student
from viker.train.student import Student, buckets_from_states, dense_buckets, logits_gradient

EXACT = {"atol": 1e-12, "rtol": 1e-12}
ROW_BYTES = 4 * V  # of one row's logits, as the budgets count them
TOP_KS = [0, 1, 4, V - 1, V]
ANSWERS = ["random", "likeliest", "unlikely"]


class Layer(NamedTuple):
    """Hidden states and an output layer."""

    states_MD: Tensor
    weight_VD: Tensor
    bias_V: Tensor | None

    @property
    def logits_MV(self) -> Tensor:
        """The logits, all of them."""
        return nn.functional.linear(self.states_MD, self.weight_VD, self.bias_V)


def random_layer(num_tokens: int = M, *, dtype: torch.dtype = torch.float64, has_bias: bool = True) -> Layer:
    generator = torch.Generator().manual_seed(3)
    states_MD, weight_VD, bias_V = (
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        for shape in ((num_tokens, D), (V, D), (V,))
    )
    return Layer(states_MD.requires_grad_(), weight_VD.requires_grad_(), bias_V.requires_grad_() if has_bias else None)


def of_states(layer: Layer, case: Case) -> Tensor:
    return buckets_from_states(*layer, case.rows.kept_ids_MK, case.answers_M)


def of_logits(layer: Layer, case: Case) -> Tensor:
    return dense_buckets(layer.logits_MV, case.rows.kept_ids_MK, case.answers_M)


def gradient(buckets_MC: Tensor, layer: Layer) -> Tensor:
    """The gradient of the states from a different gradient for every bucket."""
    weights_MC = torch.linspace(-1, 2, buckets_MC.numel(), dtype=buckets_MC.dtype).view(buckets_MC.shape)
    (found_MD,) = torch.autograd.grad((buckets_MC * weights_MC).sum(), layer.states_MD)
    return found_MD


@pytest.fixture(params=["kept", "recomputed", "recomputed in chunks", "kept in chunks"])
def budgets(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every way through the budgets: logits that are kept or not, a chunk of all rows or of two."""
    monkeypatch.setattr(student, "CHUNK_BYTES", 2 * ROW_BYTES if "chunks" in request.param else 1 << 30)
    monkeypatch.setattr(student, "KEPT_BYTES", 0 if "recomputed" in request.param else 1 << 30)


@pytest.mark.usefixtures("budgets")
@pytest.mark.parametrize("top_k", TOP_KS)
@pytest.mark.parametrize("answers", ANSWERS)
def test_buckets_and_their_gradient_are_those_of_the_plain_form(top_k, answers):
    layer, case = random_layer(), random_case(top_k=top_k, answers=answers)
    found_MC, expected_MC = of_states(layer, case), of_logits(layer, case)
    torch.testing.assert_close(found_MC, expected_MC, **EXACT)
    torch.testing.assert_close(gradient(found_MC, layer), gradient(expected_MC, layer), **EXACT)


@pytest.mark.usefixtures("budgets")
@pytest.mark.parametrize("num_tokens", [0, 1, 2, 5])
@pytest.mark.parametrize("top_k", [0, 4, V])
def test_any_number_of_rows_will_do(num_tokens, top_k):
    layer, case = random_layer(num_tokens), random_case(top_k=top_k, num_tokens=num_tokens)
    found_MC = of_states(layer, case)
    assert found_MC.shape == (num_tokens, top_k + 2)
    torch.testing.assert_close(found_MC, of_logits(layer, case), **EXACT)
    torch.testing.assert_close(gradient(found_MC, layer), gradient(of_logits(layer, case), layer), **EXACT)


@pytest.mark.usefixtures("budgets")
def test_a_layer_without_bias_will_do():
    layer, case = random_layer(has_bias=False), random_case()
    torch.testing.assert_close(of_states(layer, case), of_logits(layer, case), **EXACT)
    torch.testing.assert_close(
        gradient(of_states(layer, case), layer), gradient(of_logits(layer, case), layer), **EXACT
    )


@pytest.mark.parametrize("top_k", TOP_KS)
@pytest.mark.parametrize("answers", ANSWERS)
def test_the_gradient_of_logits_is_that_of_autograd(top_k, answers):
    case = random_case(top_k=top_k, answers=answers)
    leaf_MV = case.logits_MV.clone().requires_grad_()
    buckets_MC = dense_buckets(leaf_MV, case.rows.kept_ids_MK, case.answers_M)
    weights_MC = torch.randn(buckets_MC.shape, dtype=torch.float64)
    (expected_MV,) = torch.autograd.grad(buckets_MC, leaf_MV, weights_MC)
    found_MV = logits_gradient(case.logits_MV, case.rows.kept_ids_MK, case.answers_M, weights_MC)
    torch.testing.assert_close(found_MV, expected_MV, **EXACT)


@pytest.mark.parametrize(
    ("name", "top_k"), [(name, top_k) for name in DIFFERENTIABLE for top_k in (0, 4) if (name, top_k) != ("cosine", 0)]
)
def test_every_loss_agrees_with_finite_differences_of_the_states(monkeypatch, name, top_k):
    monkeypatch.setattr(student, "CHUNK_BYTES", 2 * ROW_BYTES)
    monkeypatch.setattr(student, "KEPT_BYTES", 0)
    layer, case = random_layer(), random_case(top_k=top_k)

    def loss(states_MD: Tensor) -> Tensor:
        return DIFFERENTIABLE[name](of_states(layer._replace(states_MD=states_MD), case), case)

    assert torch.autograd.gradcheck(loss, layer.states_MD)


def test_the_output_layer_gets_no_gradient():
    layer, case = random_layer(), random_case()
    of_states(layer, case).sum().backward()
    assert layer.states_MD.grad is not None
    assert layer.weight_VD.grad is None
    assert layer.bias_V.grad is None


def test_a_second_backward_pass_is_like_the_first():
    layer, case = random_layer(), random_case()
    total = of_states(layer, case).sum()
    first, second = (torch.autograd.grad(total, layer.states_MD, retain_graph=True)[0] for _ in range(2))
    torch.testing.assert_close(first, second, **EXACT)


def test_a_gradient_of_the_gradient_is_refused():
    layer, case = random_layer(), random_case()
    (first_MD,) = torch.autograd.grad(of_states(layer, case).square().sum(), layer.states_MD, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        first_MD.sum().backward()


# ---- Precision ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("budgets")
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
def test_lower_precision_is_close_to_float64(dtype, close):
    layer, case = random_layer(dtype=dtype), random_case()
    exact = Layer(*(part.detach().double().requires_grad_() for part in layer))
    found_MC = of_states(layer, case)
    assert found_MC.dtype == torch.float32
    torch.testing.assert_close(found_MC.double(), of_logits(exact, case), atol=close, rtol=close)
    found_MD = gradient(found_MC, layer)
    assert found_MD.dtype == dtype
    torch.testing.assert_close(found_MD.double(), gradient(of_logits(exact, case), exact), atol=close, rtol=close)


def test_half_precision_logits_are_summed_in_float32():
    layer, case = random_layer(dtype=torch.bfloat16), random_case()
    torch.testing.assert_close(of_states(layer, case), of_logits(layer, case))


def test_the_tail_keeps_its_gradient_where_one_minus_the_sum_would_be_zero():
    case = random_case(answers="likeliest")
    extreme_MV = torch.full((M, V), -60.0).scatter(1, case.rows.kept_ids_MK, 60.0)
    of_tail_MC = torch.zeros(M, 6).index_fill(1, torch.tensor([5]), 1.0)
    found_MV = logits_gradient(extreme_MV, case.rows.kept_ids_MK, case.answers_M, of_tail_MC)
    outside_MV = torch.ones(M, V, dtype=torch.bool).scatter(1, case.rows.kept_ids_MK, False)
    torch.testing.assert_close(found_MV.where(outside_MV, 0).sum(1), torch.ones(M))


# ---- Memory ---------------------------------------------------------------------------------------------------------


class Largest(TorchDispatchMode):
    """Notes the most numbers that any tensor has that an operation makes."""

    numbers = 0

    def __torch_dispatch__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        for part in made if isinstance(made, tuple | list) else (made,):
            if isinstance(part, Tensor):
                self.numbers = max(self.numbers, part.numel())
        return made


def test_no_tensor_is_larger_than_a_chunk_of_logits(monkeypatch):
    monkeypatch.setattr(student, "CHUNK_BYTES", 15 * ROW_BYTES + 7)
    monkeypatch.setattr(student, "KEPT_BYTES", 0)
    layer, case = random_layer(40), random_case(num_tokens=40)
    with Largest() as largest:
        gradient(of_states(layer, case), layer)
    assert largest.numbers == 15 * V  # more than the buckets of all rows, 40 * 6
    with Largest() as plain:
        gradient(of_logits(layer, case), layer)
    assert plain.numbers == 40 * V


def test_logits_above_the_budget_are_not_kept_for_the_backward_pass(monkeypatch):
    layer, case = random_layer(), random_case()
    monkeypatch.setattr(student, "KEPT_BYTES", M * ROW_BYTES)
    assert sum(part.numel() for part in of_states(layer, case).grad_fn.logits) == M * V
    monkeypatch.setattr(student, "KEPT_BYTES", M * ROW_BYTES - 1)
    made = of_states(layer, case).grad_fn
    assert made.logits is None
    assert max(part.numel() for part in made.saved_tensors) == V * D  # the output layer's own weight


def test_logits_that_were_kept_are_let_go_after_the_backward_pass():
    layer, case = random_layer(), random_case()
    found_MC = of_states(layer, case)
    made = found_MC.grad_fn
    found_MC.sum().backward()
    assert made.logits is None


def test_without_gradients_nothing_is_kept():
    layer, case = random_layer(), random_case()
    with torch.no_grad():
        assert of_states(layer, case).grad_fn is None
    frozen = layer._replace(states_MD=layer.states_MD.detach())
    assert of_states(frozen, case).grad_fn is None or of_states(frozen, case).grad_fn.logits is None


# ---- The model ------------------------------------------------------------------------------------------------------


def batch_of_tiny(tiny: Any, examples: Any) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor]:
    rows = [tiny.encoder.encode(example) for example in examples]
    return collate(rows, pad_id=tiny.encoder.pad_id, side="right"), *answer_rows(rows)


def kept_of(logits_MV: Tensor) -> Tensor:
    return logits_MV.topk(5, dim=1).indices.roll(1, dims=0)


def test_a_student_gives_the_buckets_of_the_models_logits(tiny, training_examples):
    inputs, batch_M, position_M, answers_M = batch_of_tiny(tiny, training_examples[:3])
    with torch.no_grad():
        logits_MV = answer_logits(tiny.model, inputs, batch_M, position_M)
        seen = Student(tiny.model)(inputs, batch_M, position_M, answers_M, kept_of(logits_MV))
    torch.testing.assert_close(seen.student_MC, dense_buckets(logits_MV, kept_of(logits_MV), answers_M))
    assert seen.states_MD is None


@pytest.mark.parametrize("layer", [None, 1])
def test_gradients_reach_the_models_weights_as_through_its_logits(tiny, trainable, training_examples, layer):
    model = trainable.requires_grad_(False)
    weights = list(model.get_decoder().requires_grad_(True).parameters())
    inputs, batch_M, position_M, answers_M = batch_of_tiny(tiny, training_examples[:3])
    logits_MV = answer_logits(model, inputs, batch_M, position_M)
    kept_MK = kept_of(logits_MV.detach())
    plain = dense_buckets(logits_MV, kept_MK, answers_M)
    expected = torch.autograd.grad((plain * plain.detach().exp()).sum(), weights, allow_unused=True)
    seen = Student(model)(inputs, batch_M, position_M, answers_M, kept_MK, layer)
    found = torch.autograd.grad(
        (seen.student_MC * plain.detach().exp()).sum(), weights, allow_unused=True, retain_graph=True
    )
    for theirs, ours in zip(expected, found, strict=True):
        assert (theirs is None) == (ours is None)
        if theirs is not None:
            torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=2e-4)
    if layer is not None:
        assert seen.states_MD.shape == (len(answers_M), model.config.get_text_config().hidden_size)
        of_layer = torch.autograd.grad(seen.states_MD.sum(), weights, allow_unused=True)
        assert 0 < sum(part is not None for part in of_layer) < len(weights)  # the layers above it have no part in it


def test_a_student_is_the_model_to_whoever_saves_or_trains_it(tiny):
    model = copy.deepcopy(tiny.model)
    wrapped = Student(model)
    assert {name.removeprefix("model.") for name, _ in wrapped.named_parameters()} >= {"lm_head.weight"}
    assert sum(weight.numel() for weight in wrapped.parameters()) == sum(w.numel() for w in model.parameters())
