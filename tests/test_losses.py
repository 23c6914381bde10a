"""Every loss against a float64 reference of a few lines, and the identities that tie the losses to the paper."""

# M answer tokens, V vocabulary, K kept

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from viker.precompute.topk import rows_from_probabilities
from viker.train.losses import (
    TeacherRows,
    adaptive_ascent,
    answer_logprobs,
    ascent,
    bucket,
    forward_kl,
    gradient_weights,
)

M, V = 7, 23


def random_case(seed: int = 0, scale: float = 2.0) -> tuple[Tensor, Tensor, Tensor]:
    """Student logits [M, V], teacher probabilities [M, V] and answers [M], float64."""
    generator = torch.Generator().manual_seed(seed)
    logits_MV, teacher_MV = (scale * torch.randn(M, V, generator=generator, dtype=torch.float64) for _ in range(2))
    return logits_MV, teacher_MV.softmax(-1), torch.randint(V, (M,), generator=generator)


def cached(teacher_MV: Tensor, answer_ids_M: Tensor, top_k: int) -> TeacherRows:
    """The rows as the cache stores them, with float32 log-probabilities."""
    arrays = rows_from_probabilities(teacher_MV, torch.zeros(M), answer_ids_M, top_k, torch.float32)
    return TeacherRows(
        kept_ids_MK=arrays["kept_id"],
        kept_logprobs_MK=arrays["kept_logprob"],
        tail_logprob_M=arrays["tail_logprob"],
        answer_ids_M=answer_ids_M,
        answer_logprob_M=arrays["answer_logprob"],
        entropy_M=arrays["entropy"],
    )


def dense_kl(teacher_MV: Tensor, logits_MV: Tensor) -> Tensor:
    return (teacher_MV * (teacher_MV.log() - logits_MV.log_softmax(-1))).sum(-1)


def bucket_kl(teacher_V: Tensor, student_V: Tensor, named: set[int]) -> float:
    """KL of two distributions over the named tokens and one bucket for all others, in a plain loop."""
    total, teacher_rest, student_rest = 0.0, 1.0, 1.0
    for token in named:
        teacher, student = float(teacher_V[token]), float(student_V[token])
        total += teacher * math.log(teacher / student)
        teacher_rest, student_rest = teacher_rest - teacher, student_rest - student
    return total + teacher_rest * math.log(teacher_rest / student_rest)


def viker_loss(logits_MV: Tensor, rows: TeacherRows, lambda_: float) -> Tensor:
    return (ascent(logits_MV, rows.answer_ids_M) + lambda_ * forward_kl(bucket(logits_MV, rows))).sum()


def gradient_of_viker(logits_MV: Tensor, rows: TeacherRows, lambda_: float) -> Tensor:
    leaf_MV = logits_MV.clone().requires_grad_()
    (gradient_MV,) = torch.autograd.grad(viker_loss(leaf_MV, rows, lambda_), leaf_MV)
    return gradient_MV


def one_hot(answer_ids_M: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(answer_ids_M, V).double()


def test_ascent_is_the_log_probability_of_the_answer():
    logits_MV, _, answers_M = random_case()
    expected = [math.log(float(row.softmax(-1)[token])) for row, token in zip(logits_MV, answers_M, strict=True)]
    assert ascent(logits_MV, answers_M).tolist() == pytest.approx(expected, abs=1e-5)
    assert answer_logprobs(logits_MV, answers_M).tolist() == pytest.approx(expected, abs=1e-5)


def test_adaptive_ascent_weighs_by_what_the_teacher_does_not_say_anyway():
    logits_MV, teacher_MV, answers_M = random_case()
    weights = [1 - float(row[token]) for row, token in zip(teacher_MV, answers_M, strict=True)]
    expected = [w * float(value) for w, value in zip(weights, ascent(logits_MV, answers_M), strict=True)]
    rows = cached(teacher_MV, answers_M, top_k=4)
    assert adaptive_ascent(logits_MV, rows).tolist() == pytest.approx(expected, abs=1e-5)


def test_adaptive_ascent_leaves_a_normal_token_alone():
    logits_MV, _, answers_M = random_case()
    leaf_MV = logits_MV.float().requires_grad_()
    certain = cached(one_hot(answers_M), answers_M, top_k=4)
    (gradient_MV,) = torch.autograd.grad(adaptive_ascent(leaf_MV, certain).sum(), leaf_MV)
    assert gradient_MV.abs().max() == 0


@pytest.mark.parametrize("seed", range(4))
def test_kl_with_everything_kept_is_the_dense_kl(seed):
    logits_MV, teacher_MV, answers_M = random_case(seed)
    rows = cached(teacher_MV, answers_M, top_k=V)
    torch.testing.assert_close(
        forward_kl(bucket(logits_MV, rows)).double(), dense_kl(teacher_MV, logits_MV), atol=2e-6, rtol=1e-5
    )


@pytest.mark.parametrize("top_k", [0, 1, 4, V - 1])
def test_kl_is_that_of_kept_tokens_the_answer_and_one_tail(top_k):
    logits_MV, teacher_MV, answers_M = random_case()
    rows = cached(teacher_MV, answers_M, top_k)
    student_MV = logits_MV.softmax(-1)
    for row, value in enumerate(forward_kl(bucket(logits_MV, rows)).tolist()):
        named = {int(token) for token in (*rows.kept_ids_MK[row], answers_M[row])}
        if len(named) == V:
            assert value == pytest.approx(float(dense_kl(teacher_MV, logits_MV)[row]), abs=1e-5)
        else:
            assert value == pytest.approx(bucket_kl(teacher_MV[row], student_MV[row], named), abs=1e-5)


@pytest.mark.parametrize("top_k", [0, 3, V])
def test_buckets_of_both_are_distributions(top_k):
    logits_MV, teacher_MV, answers_M = random_case()
    buckets = bucket(logits_MV, cached(teacher_MV, answers_M, top_k))
    filled_MC = torch.isfinite(buckets.teacher_MC)
    torch.testing.assert_close(buckets.teacher_MC.exp().sum(1), torch.ones(M))
    torch.testing.assert_close(buckets.student_MC.exp().where(filled_MC, 0).sum(1), torch.ones(M).double())


def test_an_answer_that_is_not_kept_has_the_bucket_of_its_own_log_probability():
    logits_MV, teacher_MV, _ = random_case()
    answers_M = teacher_MV.argmin(-1)
    rows = cached(teacher_MV, answers_M, top_k=4)
    buckets = bucket(logits_MV, rows)
    torch.testing.assert_close(buckets.teacher_MC[:, 4], rows.answer_logprob_M, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(buckets.student_MC[:, 4], answer_logprobs(logits_MV, answers_M))


def test_an_answer_that_is_kept_is_counted_once():
    logits_MV, teacher_MV, _ = random_case()
    rows = cached(teacher_MV, teacher_MV.argmax(-1), top_k=4)
    assert torch.isinf(bucket(logits_MV, rows).teacher_MC[:, 4]).all()


@pytest.mark.parametrize("top_k", [0, 3, V - 1, V])
def test_empty_buckets_give_finite_losses_and_gradients(top_k):
    logits_MV, _, answers_M = random_case()
    rows = cached(one_hot(answers_M), answers_M, top_k)
    loss = viker_loss(logits_MV.float(), rows, 0.5)
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient_of_viker(logits_MV.float(), rows, 0.5)).all()


def test_a_tail_stored_as_minus_infinity_adds_nothing():
    logits_MV, teacher_MV, _ = random_case()
    answers_M = teacher_MV.argmax(-1)
    part = cached(teacher_MV, answers_M, top_k=4)
    kept_MK = part.kept_logprobs_MK.log_softmax(-1)
    rows = TeacherRows(part.kept_ids_MK, kept_MK, torch.full((M,), -math.inf), answers_M, kept_MK[:, 0], part.entropy_M)
    inside_MK = logits_MV.log_softmax(-1).gather(1, part.kept_ids_MK)
    expected_M = (kept_MK.exp() * (kept_MK - inside_MK)).sum(1)
    torch.testing.assert_close(forward_kl(bucket(logits_MV, rows)).double(), expected_M, atol=1e-5, rtol=1e-5)
    assert torch.isfinite(gradient_of_viker(logits_MV.float(), rows, 1.0)).all()


@pytest.mark.parametrize("top_k", [0, 4, V])
def test_autograd_agrees_with_finite_differences(top_k):
    logits_MV, teacher_MV, answers_M = random_case()
    rows = cached(teacher_MV, answers_M, top_k)
    leaf_MV = logits_MV.requires_grad_()
    assert torch.autograd.gradcheck(lambda value_MV: viker_loss(value_MV, rows, 0.5), leaf_MV)
    assert torch.autograd.gradcheck(lambda value_MV: adaptive_ascent(value_MV, rows), leaf_MV)


@pytest.mark.parametrize("lambda_", [0.05, 0.5, 1.0, 2.0])
def test_the_gradient_is_the_papers_reweighted_ascent(lambda_):
    logits_MV, teacher_MV, answers_M = random_case()
    student_MV = logits_MV.softmax(-1)
    weights_MV = gradient_weights(student_MV, teacher_MV, answers_M, lambda_)
    expected_MV = weights_MV * (one_hot(answers_M) - student_MV)
    found_MV = gradient_of_viker(logits_MV, cached(teacher_MV, answers_M, V), lambda_)
    torch.testing.assert_close(found_MV, expected_MV, atol=1e-6, rtol=1e-5)


def test_tail_tokens_are_reweighted_by_the_ratio_of_the_tails():
    logits_MV, teacher_MV, answers_M = random_case()
    rows, student_MV = cached(teacher_MV, answers_M, 4), logits_MV.softmax(-1)
    bucketed_MV = teacher_MV.clone()
    for row in range(M):
        tail = [token for token in range(V) if token not in rows.kept_ids_MK[row] and token != answers_M[row]]
        ratio = teacher_MV[row, tail].sum() / student_MV[row, tail].sum()
        bucketed_MV[row, tail] = ratio * student_MV[row, tail]
    weights_MV = gradient_weights(student_MV, bucketed_MV, answers_M, 0.5)
    expected_MV = weights_MV * (one_hot(answers_M) - student_MV)
    torch.testing.assert_close(gradient_of_viker(logits_MV, rows, 0.5), expected_MV, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("top_k", [1, 4, V])
@pytest.mark.parametrize("lambda_", [0.05, 0.5, 1.0])
def test_a_normal_token_feels_ascent_times_one_minus_lambda(top_k, lambda_):
    logits_MV, _, answers_M = random_case()
    rows = cached(one_hot(answers_M), answers_M, top_k)
    ascent_MV = one_hot(answers_M) - logits_MV.softmax(-1)
    torch.testing.assert_close(
        gradient_of_viker(logits_MV, rows, lambda_), (1 - lambda_) * ascent_MV, atol=1e-6, rtol=1e-5
    )


def test_without_a_regularizer_it_is_gradient_ascent():
    logits_MV, teacher_MV, answers_M = random_case()
    ascent_MV = one_hot(answers_M) - logits_MV.softmax(-1)
    found_MV = gradient_of_viker(logits_MV, cached(teacher_MV, answers_M, 4), 0.0)
    torch.testing.assert_close(found_MV, ascent_MV, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("top_k", [0, 4, V])
def test_the_regularizer_alone_is_least_where_student_is_teacher(top_k):
    logits_MV, teacher_MV, answers_M = random_case()
    rows = cached(teacher_MV, answers_M, top_k)
    leaf_MV = teacher_MV.log().requires_grad_()
    least_M = forward_kl(bucket(leaf_MV, rows))
    (gradient_MV,) = torch.autograd.grad(least_M.sum(), leaf_MV)
    assert least_M.abs().max() < 1e-5
    assert gradient_MV.abs().max() < 1e-5
    assert (forward_kl(bucket(logits_MV, rows)) > least_M).all()


def test_the_gradient_flows_through_the_student_only():
    logits_MV, teacher_MV, answers_M = random_case()
    rows = cached(teacher_MV, answers_M, 4)
    rows.kept_logprobs_MK.requires_grad_()
    loss = forward_kl(bucket(logits_MV.requires_grad_(), rows)).sum()
    loss.backward()
    assert logits_MV.grad is not None
    assert rows.kept_logprobs_MK.grad is None


def test_the_tail_keeps_its_gradient_where_one_minus_the_sum_would_be_zero():
    logits_MV, teacher_MV, answers_M = random_case()
    rows = cached(teacher_MV, answers_M, top_k=4)
    extreme_MV = torch.full_like(logits_MV, -60.0).scatter(1, rows.kept_ids_MK, 60.0)
    leaf_MV = extreme_MV.float().requires_grad_()
    forward_kl(bucket(leaf_MV, rows)).sum().backward()
    outside_MV = torch.ones(M, V, dtype=torch.bool).scatter(1, rows.kept_ids_MK, False)
    pulled_M = -(leaf_MV.grad.where(outside_MV, 0)).sum(1)
    torch.testing.assert_close(pulled_M, rows.tail_logprob_M.exp(), atol=1e-3, rtol=1e-3)


def test_student_logits_in_half_precision_are_summed_in_float32():
    logits_MV, teacher_MV, answers_M = random_case()
    rows = cached(teacher_MV, answers_M, 4)
    half_MV = logits_MV.bfloat16()
    assert forward_kl(bucket(half_MV, rows)).dtype == torch.float32
    exact_M = forward_kl(bucket(half_MV.double(), rows)).float()
    torch.testing.assert_close(forward_kl(bucket(half_MV, rows)), exact_M)
