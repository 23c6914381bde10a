"""Measured gradient weights against plain loops over the vocabulary, and predictions that must hold, and may fail."""

# M answer tokens, V vocabulary, K kept

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import pytest
import torch
from loss_cases import M, V, exact_rows, one_hot, random_case, stored_rows
from viker.train import token_weights as module
from viker.train.batches import no_rows
from viker.train.choose_method import choose_method
from viker.train.method import Method, Term
from viker.train.methods import METHODS
from viker.train.token_weights import BOUND, TokenWeights, reweighting_of, score_in_float64, token_weights

if TYPE_CHECKING:
    from torch import Tensor
    from viker.train.rows import TeacherRows

PREDICTED = {
    "viker": choose_method("viker", lambda_=0.5),
    "viker, lambda 1": choose_method("viker", lambda_=1.0),
    "viker, lambda 2": choose_method("viker", lambda_=2.0),
    "recommended": choose_method("recommended"),
    "lambda by entropy": choose_method("viker", token_lambda="entropy"),
    "without ascent": choose_method("viker", ascent="none"),
    "vgid": choose_method("vgid", retain=0.0),
}
MEASURED = ("ga", "wga", "satimp", "npo", "simnpo", "undial")


def weights_of(logits_MV: Tensor, rows: TeacherRows, method: Method, **others: object) -> TokenWeights:
    return token_weights(logits_MV, rows, method, logits_MV.shape[1], **others)


def pull_of(logits_MV: Tensor, teacher_MV: Tensor, answers_M: Tensor, lambda_: float) -> Tensor:
    """d / d logits of log q(y) + lambda KL(R || q) over the whole vocabulary, by autograd of the plain formula."""
    leaf_MV = logits_MV.clone().requires_grad_()
    logprobs_MV = leaf_MV.log_softmax(1)
    kl_M = (torch.special.xlogy(teacher_MV, teacher_MV) - teacher_MV * logprobs_MV).sum(1)
    (logprobs_MV.gather(1, answers_M[:, None])[:, 0] + lambda_ * kl_M).sum().backward()
    assert leaf_MV.grad is not None
    return leaf_MV.grad


# ---- what is measured ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lambda_", [0.05, 0.5, 2.0])
def test_measured_weights_are_those_of_the_plain_loss(lambda_):
    case = random_case(top_k=V)
    pull_MV = pull_of(case.logits_MV, case.teacher_MV, case.answers_M, lambda_)
    found = weights_of(case.logits_MV, case.rows, choose_method("viker", lambda_=lambda_))
    for row, answer in enumerate(case.answers_M.tolist()):
        q_V, others = case.student_MV[row], [token for token in range(V) if token != answer]
        others_w = [float(-pull_MV[row, token] / q_V[token]) for token in others]
        assert float(found.weight_M[row]) == pytest.approx(float(pull_MV[row, answer] / (1 - q_V[answer])), rel=1e-9)
        assert float(found.kept_mean_M[row]) == pytest.approx(sum(others_w) / len(others_w), rel=1e-9)
        assert float(found.kept_max_M[row]) == pytest.approx(max(others_w), rel=1e-9)
        assert float(found.kept_above_one_M[row]) == sum(weight > 1 for weight in others_w) / len(others_w)
        assert float(found.logprob_M[row]) == pytest.approx(math.log(q_V[answer]), rel=1e-9)


def test_kept_tokens_are_raised_harder_than_by_ascent_where_the_teacher_says_them_more_than_the_student():
    case = random_case(top_k=8, answers="unlikely")
    found = weights_of(case.logits_MV, case.rows, choose_method("viker", lambda_=0.3))
    kept_q_MK = case.student_MV.gather(1, case.rows.kept_ids_MK)
    expected_M = (case.rows.kept_logprobs_MK.exp() > kept_q_MK).double().mean(1)
    torch.testing.assert_close(found.kept_above_one_M, expected_M)


@pytest.mark.parametrize("lambda_", [0.05, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("top_k", [1, 4, V])
def test_where_the_teacher_is_certain_every_weight_is_one_minus_lambda(lambda_, top_k):
    case = random_case()
    rows = exact_rows(one_hot(case.answers_M), case.answers_M, top_k)
    method = choose_method("viker", lambda_=lambda_)
    found = weights_of(case.logits_MV, rows, method)
    theory = reweighting_of(method)
    assert theory is not None
    assert theory.normal_limit == 1 - lambda_
    torch.testing.assert_close(found.weight_M, torch.full((M,), 1 - lambda_, dtype=torch.float64), atol=1e-12, rtol=0)
    if top_k > 1:
        torch.testing.assert_close(
            found.kept_max_M, torch.full((M,), 1 - lambda_, dtype=torch.float64), atol=1e-12, rtol=0
        )
    assert found.error_M.max() < BOUND


def test_gradient_ascent_weighs_every_token_alike_and_wga_by_its_probability():
    case, none = random_case(), no_rows([0] * M)
    rows = dataclasses.replace(none, answer_ids_M=case.answers_M)
    q_M = case.student_MV.gather(1, case.answers_M[:, None])[:, 0]
    torch.testing.assert_close(weights_of(case.logits_MV, rows, METHODS["ga"]).weight_M, torch.ones(M).double())
    wga = choose_method("wga", settings={"beta": 0.7})
    torch.testing.assert_close(weights_of(case.logits_MV, rows, wga).weight_M, q_M.pow(0.7))


def test_npo_weighs_a_whole_answer_by_its_ratio_to_the_reference():
    case = random_case(top_k=0)
    q = case.student_MV.gather(1, case.answers_M[:, None]).log().sum()
    p0 = case.rows.answer_logprob_M.sum()
    powers = [math.exp(0.1 * float(value - max(q, p0))) for value in (q, p0)]
    found = weights_of(case.logits_MV, case.rows, choose_method("npo", settings={"beta": 0.1}))
    torch.testing.assert_close(found.weight_M, torch.full((M,), 2 * powers[0] / sum(powers)).double())


def test_learning_refusals_pushes_no_token_of_the_answer():
    case, refusal = random_case(), random_case(1, top_k=0)
    scored = score_in_float64(refusal.logits_MV.float(), refusal.rows, V)
    assert scored.student_MC.dtype == torch.float64
    found = weights_of(case.logits_MV, case.rows, choose_method("po", retain=0.0), refusal=scored)
    assert found.weight_M.tolist() == [0.0] * M
    assert (weights_of(case.logits_MV, case.rows, METHODS["idkpo"], refusal=scored).weight_M > 0).all()


def test_a_loss_of_hidden_states_has_no_token_weights():
    case = random_case()
    found = weights_of(case.logits_MV, case.rows, METHODS["rmu"])
    assert found.weight_M.isnan().all()
    assert found.kept_mean_M.isnan().all()
    assert found.logprob_M.isfinite().all()


def test_rows_without_kept_tokens_have_nothing_to_say_of_them():
    case = random_case(top_k=0)
    found = weights_of(case.logits_MV, case.rows, METHODS["viker"])
    assert found.kept_mean_M.isnan().all()
    assert found.kept_max_M.isnan().all()
    assert found.kept_above_one_M.isnan().all()
    assert found.error_M.max() < BOUND


# ---- what is predicted -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PREDICTED)
@pytest.mark.parametrize("top_k", [0, 1, 4, V - 1, V])
@pytest.mark.parametrize("answers", ["random", "likeliest", "unlikely"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_predictions_hold(name, top_k, answers, dtype):
    case = random_case(top_k=top_k, answers=answers, scale=4.0)
    rows = stored_rows(case.teacher_MV, case.answers_M, top_k, torch.float16)
    found = weights_of(case.logits_MV.to(dtype), rows, PREDICTED[name])
    assert found.error_M.max() < 1e-11
    torch.testing.assert_close(found.predicted_M, found.weight_M, rtol=BOUND, atol=1e-9)


@pytest.mark.parametrize("gap", [10.0, 30.0, 60.0, 300.0, 900.0])
@pytest.mark.parametrize("answer_is_likely", [True, False])
def test_predictions_hold_for_a_student_that_is_sure(gap, answer_is_likely):
    case = random_case()
    sign = 1.0 if answer_is_likely else -1.0
    logits_MV = case.logits_MV + sign * gap * one_hot(case.answers_M)
    for method in PREDICTED.values():
        found = weights_of(logits_MV, case.rows, method)
        assert found.error_M.max() < BOUND
        measured_M = found.weight_M[found.weight_M.isfinite()]
        torch.testing.assert_close(found.predicted_M[found.weight_M.isfinite()], measured_M, rtol=BOUND, atol=1e-9)


@pytest.mark.parametrize("token", ["answer", "others"])
def test_a_prediction_that_is_a_little_wrong_does_not_hold(monkeypatch, token):
    case, right = random_case(), module.gradient_weights

    def wrong(student_MV, teacher_MV, answers_M, lambda_):
        weights_MV = right(student_MV, teacher_MV, answers_M, lambda_)
        is_answer_MV = one_hot(answers_M).bool()
        return torch.where(is_answer_MV if token == "answer" else ~is_answer_MV, weights_MV * (1 + 1e-4), weights_MV)

    monkeypatch.setattr(module, "gradient_weights", wrong)
    assert weights_of(case.logits_MV, case.rows, METHODS["viker"]).error_M.min() > BOUND


def test_a_loss_that_is_not_what_it_says_does_not_hold(monkeypatch):
    case, right = random_case(), module.term_function
    monkeypatch.setattr(
        module, "term_function", lambda term: lambda *given: right(term)(*given) * (1.001 if term.name == "kl" else 1)
    )
    assert weights_of(case.logits_MV, case.rows, METHODS["viker"]).error_M.min() > BOUND


@pytest.mark.parametrize("name", MEASURED)
def test_other_losses_are_measured_and_not_predicted(name):
    case = random_case()
    method = METHODS[name]
    found = weights_of(case.logits_MV, case.rows, method)
    assert reweighting_of(method) is None
    assert found.weight_M.isfinite().all()
    assert found.predicted_M.isnan().all()
    assert found.error_M.isnan().all()


def test_a_loss_of_ones_own_is_measured():
    def steeper(scored, settings):
        return 3 * settings["steep"] * scored.answer_logprob_M.sum()

    method = Method(
        name="steeper", summary="", paper="-", fidelity="ours", forget=(Term("climb", steeper, 0.5),),
        settings={"steep": 2.0},
    )  # fmt: skip
    case = random_case()
    assert reweighting_of(method) is None
    torch.testing.assert_close(weights_of(case.logits_MV, case.rows, method).weight_M, torch.full((M,), 3.0).double())


def test_tokens_may_be_taken_a_few_at_a_time(monkeypatch):
    case = random_case()
    whole = weights_of(case.logits_MV, case.rows, METHODS["recommended"])
    monkeypatch.setattr(module, "CHUNK_BYTES", 2 * 8 * V)
    for part in dataclasses.fields(TokenWeights):
        parts = getattr(weights_of(case.logits_MV, case.rows, METHODS["recommended"]), part.name)
        torch.testing.assert_close(parts, getattr(whole, part.name), rtol=1e-12, atol=1e-14)
