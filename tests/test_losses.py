"""Every loss and divergence against a float64 reference of a few lines, and the identities that tie them to the papers.

References are written from the formulas, as loops over plain numbers. Gradients are held to finite differences through
logits (`dense_buckets`); those through hidden states are `test_student.py`'s.
"""

# M answer tokens, V vocabulary, K kept, C buckets, D hidden, B examples

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_cases import DIFFERENTIABLE, Case, D, M, V, exact_rows, merged, one_hot, random_case, scored, stored_rows
from torch import Tensor
from viker.train import divergences, losses, terms
from viker.train.rows import TeacherRows, answer_bucket, teacher_buckets
from viker.train.student import dense_buckets

if TYPE_CHECKING:
    from collections.abc import Callable

TOP_KS = [0, 1, 4, V - 1, V]
ANSWERS = ["random", "likeliest", "unlikely"]
CLOSE = {"atol": 1e-10, "rtol": 1e-10}
LENGTHS = (2, 1, 4)  # of three examples, seven tokens


def dense_kl(teacher_MV: Tensor, logits_MV: Tensor) -> Tensor:
    return (teacher_MV * (teacher_MV.log() - logits_MV.log_softmax(-1))).sum(-1)


def probabilities(case: Case) -> list[tuple[float, float]]:
    """What student and teacher give each answer token."""
    tokens = enumerate(case.answers_M.tolist())
    return [(float(case.student_MV[row, token]), float(case.teacher_MV[row, token])) for row, token in tokens]


def pairs_of(case: Case, row: int) -> list[tuple[float, float]]:
    """The probabilities of teacher and student in each bucket of a row."""
    named = case.named(row)
    return list(zip(merged(case.teacher_MV[row], named), merged(case.student_MV[row], named), strict=True))


def viker_loss(logits_MV: Tensor, rows: TeacherRows, lambda_: float | Tensor) -> Tensor:
    student_MC = dense_buckets(logits_MV, rows.kept_ids_MK, rows.answer_ids_M)
    teacher_MC = teacher_buckets(rows, logits_MV.shape[1])
    return (losses.ascent(student_MC[:, -2]) + lambda_ * divergences.forward_kl(teacher_MC, student_MC)).sum()


def gradient(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    leaf = at.clone().requires_grad_()
    (found,) = torch.autograd.grad(function(leaf).sum(), leaf)
    return found


def gradient_of_viker(logits_MV: Tensor, rows: TeacherRows, lambda_: float | Tensor) -> Tensor:
    return gradient(lambda leaf_MV: viker_loss(leaf_MV, rows, lambda_), logits_MV)


# ---- Buckets --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("top_k", TOP_KS)
@pytest.mark.parametrize("answers", ANSWERS)
def test_buckets_are_kept_tokens_the_answer_and_the_rest(top_k, answers):
    case = random_case(top_k=top_k, answers=answers)
    student_MC, teacher_MC = case.student_MC, case.teacher_MC
    for row in range(M):
        kept = case.rows.kept_ids_MK[row].tolist()
        assert student_MC[row, :-2].exp().tolist() == pytest.approx(merged(case.student_MV[row], kept)[: len(kept)])
        assert teacher_MC[row, :-2].exp().tolist() == pytest.approx(merged(case.teacher_MV[row], kept)[: len(kept)])
        assert float(student_MC[row, -2].exp()) == pytest.approx(probabilities(case)[row][0])
        others = [
            pair for token, pair in enumerate(zip(*all_of(case, row), strict=True)) if token not in case.named(row)
        ]
        rest = [math.fsum(side) for side in zip(*others, strict=True)] if others else [0.0, 1.0]
        assert [float(teacher_MC[row, -1].exp()), float(student_MC[row, -1].exp())] == pytest.approx(rest)


def all_of(case: Case, row: int) -> tuple[list[float], list[float]]:
    return case.teacher_MV[row].tolist(), case.student_MV[row].tolist()


@pytest.mark.parametrize("top_k", [0, 3, V])
def test_buckets_of_both_are_distributions(top_k):
    case = random_case(top_k=top_k)
    filled_MC = torch.isfinite(case.teacher_MC)
    torch.testing.assert_close(case.teacher_MC.exp().sum(1), torch.ones(M).double())
    torch.testing.assert_close(case.student_MC.exp().where(filled_MC, 0).sum(1), torch.ones(M).double())


def test_an_answer_that_is_not_kept_has_the_bucket_of_its_own_log_probability():
    case = random_case(answers="unlikely")
    assert answer_bucket(case.rows).tolist() == [4] * M
    torch.testing.assert_close(case.teacher_MC[:, 4], case.rows.answer_logprob_M)


def test_an_answer_that_is_kept_is_counted_once():
    case = random_case(answers="likeliest")
    assert answer_bucket(case.rows).tolist() == [0] * M
    assert torch.isinf(case.teacher_MC[:, 4]).all()


def test_without_kept_tokens_the_answer_has_the_first_bucket():
    case = random_case(top_k=0)
    assert answer_bucket(case.rows).tolist() == [0] * M
    torch.testing.assert_close(case.teacher_MC[:, 0], case.rows.answer_logprob_M)


def test_student_logits_in_half_precision_are_summed_in_float32():
    case = random_case()
    half_MV = case.logits_MV.bfloat16()
    exact_MC = dense_buckets(half_MV.double(), case.rows.kept_ids_MK, case.answers_M)
    found_MC = dense_buckets(half_MV, case.rows.kept_ids_MK, case.answers_M)
    assert found_MC.dtype == torch.float32
    torch.testing.assert_close(found_MC, exact_MC.float())


# ---- Ascents --------------------------------------------------------------------------------------------------------


def test_ascent_is_the_log_probability_of_the_answer():
    case = random_case()
    expected = [math.log(student) for student, _ in probabilities(case)]
    assert losses.ascent(case.student_MC[:, -2]).tolist() == pytest.approx(expected)


def test_adaptive_ascent_weighs_by_what_the_teacher_does_not_say_anyway():
    case = random_case()
    expected = [(1 - teacher) * math.log(student) for student, teacher in probabilities(case)]
    found_M = losses.adaptive_ascent(case.student_MC[:, -2], case.rows.answer_logprob_M)
    assert found_M.tolist() == pytest.approx(expected)


def test_adaptive_ascent_leaves_a_normal_token_alone():
    case = random_case()
    rows = stored_rows(one_hot(case.answers_M), case.answers_M, top_k=4)
    found_MV = gradient(
        lambda leaf_MV: losses.adaptive_ascent(
            dense_buckets(leaf_MV, rows.kept_ids_MK, case.answers_M)[:, -2], rows.answer_logprob_M
        ),
        case.logits_MV.float(),
    )
    assert found_MV.abs().max() == 0


def test_lambda_by_entropy_is_one_for_a_certain_teacher_and_small_for_an_open_one():
    entropy_M = torch.tensor([0.0, math.log(2), 5.0], dtype=torch.float64)
    assert losses.lambda_by_entropy(entropy_M).tolist() == pytest.approx([1, 0.5, math.exp(-5)])


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 3.0])
def test_wga_weighs_the_ascent_by_a_constant_power_of_the_probability(beta):
    case = random_case()
    weights = [student**beta for student, _ in probabilities(case)]
    expected = [weight * math.log(student) for weight, (student, _) in zip(weights, probabilities(case), strict=True)]
    answer_M = case.student_MC[:, -2]
    assert losses.confident_ascent(answer_M, beta).tolist() == pytest.approx(expected)
    found_M = gradient(lambda leaf_M: losses.confident_ascent(leaf_M, beta), answer_M)
    assert found_M.tolist() == pytest.approx(weights)


@pytest.mark.parametrize(("beta1", "beta2"), [(5.0, 1.0), (1.0, 0.1), (0.0, 0.0), (0.5, 2.0)])
def test_satimp_weighs_the_ascent_by_constant_saturation_and_importance(beta1, beta2):
    case = random_case()
    weights = [student**beta1 * (1 - student) ** beta2 for student, _ in probabilities(case)]
    expected = [weight * math.log(student) for weight, (student, _) in zip(weights, probabilities(case), strict=True)]
    answer_M = case.student_MC[:, -2]
    assert losses.saturated_ascent(answer_M, beta1, beta2).tolist() == pytest.approx(expected)
    found_M = gradient(lambda leaf_M: losses.saturated_ascent(leaf_M, beta1, beta2), answer_M)
    assert found_M.tolist() == pytest.approx(weights)


def test_satimp_of_a_certain_token_is_finite():
    certain_M = torch.tensor([0.0, 1e-9])  # rounding may put a log-probability above 0
    assert torch.isfinite(gradient(lambda leaf_M: losses.saturated_ascent(leaf_M, 5.0, 0.1), certain_M)).all()


def test_likelihood_is_minus_the_ascent():
    case = random_case()
    expected = -math.fsum(math.log(student) for student, _ in probabilities(case))
    assert float(terms.learn(scored(case, LENGTHS), {})) == pytest.approx(expected)


# ---- Preferences ----------------------------------------------------------------------------------------------------


def by_example(case: Case) -> list[tuple[float, float, int]]:
    """Log p and log p0 of each example's answer, and its length."""
    found, start = [], 0
    for length in LENGTHS:
        tokens = probabilities(case)[start : start + length]
        found.append((*(math.fsum(math.log(p[side]) for p in tokens) for side in (0, 1)), length))
        start += length
    return found


@pytest.mark.parametrize("beta", [0.1, 0.4, 2.0])
def test_npo_is_that_of_joint_probabilities(beta):
    case = random_case()
    expected = math.fsum(
        2 / beta * math.log1p((math.exp(ours - theirs)) ** beta) for ours, theirs, _ in by_example(case)
    )
    assert float(terms.prefer_anything(scored(case, LENGTHS), {"beta": beta})) == pytest.approx(expected)


def test_npo_with_a_small_beta_goes_to_gradient_ascent():
    small = gradient(lambda ratio_B: losses.npo(ratio_B, 1e-6), torch.tensor([0.3, -2.0], dtype=torch.float64))
    assert small.tolist() == pytest.approx([1, 1], rel=1e-5)


@pytest.mark.parametrize(("beta", "delta"), [(4.5, 0.0), (1.0, 0.5), (0.3, -1.0)])
def test_simnpo_is_that_of_mean_log_probabilities(beta, delta):
    case = random_case()
    margins = [-beta / length * ours - delta for ours, _, length in by_example(case)]
    expected = math.fsum(-2 / beta * math.log(1 / (1 + math.exp(-margin))) for margin in margins)
    settings = {"beta": beta, "delta": delta}
    assert float(terms.prefer_anything_simply(scored(case, LENGTHS), settings)) == pytest.approx(expected)


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_idkpo_prefers_the_refusal_by_both_ratios(beta):
    case, refused = random_case(0), random_case(1)
    both = zip(by_example(case), by_example(refused), strict=True)
    gaps = [(chosen[0] - chosen[1]) - (left[0] - left[1]) for left, chosen in both]
    expected = math.fsum(-2 / beta * math.log(1 / (1 + math.exp(-beta * gap))) for gap in gaps)
    given = scored(case, LENGTHS, refusal=scored(refused, LENGTHS))
    assert float(terms.prefer_refusals(given, {"beta": beta})) == pytest.approx(expected)


def test_po_is_the_likelihood_of_the_refusals_alone():
    case, refused = random_case(0), random_case(1)
    given = scored(case, LENGTHS, refusal=scored(refused, LENGTHS))
    expected = -math.fsum(math.log(student) for student, _ in probabilities(refused))
    assert float(terms.learn_refusals(given, {})) == pytest.approx(expected)


@pytest.mark.parametrize("log_ratio", [-1e4, 1e4])
def test_preferences_stay_finite_far_from_the_reference(log_ratio):
    ratio_B = torch.tensor([log_ratio])
    for loss in (
        lambda leaf_B: losses.npo(leaf_B, 0.1),
        lambda leaf_B: losses.idkpo(-leaf_B, leaf_B, 0.1),
        lambda leaf_B: losses.simnpo(leaf_B, torch.tensor([3]), 4.5, 0.0),
    ):
        assert torch.isfinite(loss(ratio_B)).all()
        assert torch.isfinite(gradient(loss, ratio_B)).all()


# ---- UNDIAL ---------------------------------------------------------------------------------------------------------


def lowered(teacher_V: Tensor, answer: int, gamma: float) -> Tensor:
    """The teacher with the answer's logit lowered: softmax(z0 - gamma 1[v = y])."""
    logits_V = teacher_V.log() + 1.7  # a constant of all logits changes nothing
    logits_V[answer] -= gamma
    return logits_V.softmax(0)


@pytest.mark.parametrize("gamma", [0.0, 3.0, 10.0])
@pytest.mark.parametrize("answers", ANSWERS)
def test_undial_with_everything_kept_is_the_dense_cross_entropy(gamma, answers):
    case = random_case(top_k=V, answers=answers)
    found_M = losses.undial(case.teacher_MC, case.student_MC, answer_bucket(case.rows), gamma)
    for row, answer in enumerate(case.answers_M.tolist()):
        target_V = lowered(case.teacher_MV[row], answer, gamma)
        expected = -float((target_V * case.logits_MV[row].log_softmax(0)).sum())
        assert float(found_M[row]) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("top_k", [0, 1, 4, V - 1])
@pytest.mark.parametrize("answers", ANSWERS)
def test_undial_in_buckets_is_the_cross_entropy_of_merged_tokens(top_k, answers):
    case = random_case(top_k=top_k, answers=answers)
    found_M = losses.undial(case.teacher_MC, case.student_MC, answer_bucket(case.rows), 10.0)
    for row, answer in enumerate(case.answers_M.tolist()):
        target = merged(lowered(case.teacher_MV[row], answer, 10.0), case.named(row))
        student = merged(case.student_MV[row], case.named(row))
        expected = -math.fsum(t * math.log(q) for t, q in zip(target, student, strict=True))
        assert float(found_M[row]) == pytest.approx(expected, rel=1e-9)


# ---- RMU ------------------------------------------------------------------------------------------------------------


def test_misdirection_is_the_mean_square_to_a_scaled_direction():
    states_MD = torch.randn(M, D, dtype=torch.float64)
    direction_D = torch.rand(D, dtype=torch.float64)
    expected = [
        sum((h - 2.5 * u) ** 2 for h, u in zip(row, direction_D.tolist(), strict=True)) / D
        for row in states_MD.tolist()
    ]
    assert losses.misdirection(states_MD, direction_D, 2.5).tolist() == pytest.approx(expected)


def test_state_distance_is_the_mean_square_and_moves_the_live_states_alone():
    states_MD, frozen_MD = torch.randn(2, M, D, dtype=torch.float64).requires_grad_().unbind()
    expected = [
        sum((h - h0) ** 2 for h, h0 in zip(*pair, strict=True)) / D
        for pair in zip(states_MD.tolist(), frozen_MD.tolist(), strict=True)
    ]
    found_M = losses.state_distance(states_MD, frozen_MD)
    assert found_M.tolist() == pytest.approx(expected)
    assert torch.autograd.grad(found_M.sum(), frozen_MD, allow_unused=True) == (None,)


def test_half_precision_states_are_compared_in_float32():
    states_MD, frozen_MD = torch.randn(2, M, 300).bfloat16().unbind()
    exact_M = (states_MD.double() - frozen_MD.double()).square().mean(1)
    torch.testing.assert_close(losses.state_distance(states_MD, frozen_MD), exact_M.float())
    towards_M = losses.misdirection(states_MD, torch.ones(300), 0.5)
    torch.testing.assert_close(towards_M, (states_MD.double() - 0.5).square().mean(1).float())


def test_the_direction_of_rmu_is_a_unit_vector_and_the_same_every_time():
    case = random_case()
    given = scored(case, LENGTHS, states_MD=torch.zeros(M, D))
    first, again = (terms.misdirect(given, {"coefficient": 3.0}) for _ in range(2))
    assert float(first) == pytest.approx(M * 9 / D)  # ||0 - c u||^2 / D a token
    assert torch.equal(first, again)
    moved = gradient(
        lambda leaf_MD: terms.misdirect(replace(given, states_MD=leaf_MD), {"coefficient": 3.0}), given.states_MD
    )
    assert torch.equal(moved, moved[:1].expand_as(moved))
    assert (moved < 0).all()  # towards the direction, whose numbers are all positive


# ---- Divergences ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_kl_with_everything_kept_is_the_dense_kl(seed):
    case = random_case(seed, top_k=V)
    torch.testing.assert_close(
        divergences.forward_kl(case.teacher_MC, case.student_MC), dense_kl(case.teacher_MV, case.logits_MV), **CLOSE
    )


@pytest.mark.parametrize("top_k", TOP_KS)
@pytest.mark.parametrize("answers", ANSWERS)
def test_kl_is_that_of_kept_tokens_the_answer_and_one_tail(top_k, answers):
    case = random_case(top_k=top_k, answers=answers)
    found_M = divergences.forward_kl(case.teacher_MC, case.student_MC)
    for row, value in enumerate(found_M.tolist()):
        expected = math.fsum(r * math.log(r / q) for r, q in pairs_of(case, row))
        assert value == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("top_k", TOP_KS)
def test_kl_of_stored_rows_is_close_to_that_of_exact_ones(top_k):
    case = random_case(top_k=top_k)
    stored = case._replace(rows=stored_rows(case.teacher_MV, case.answers_M, top_k))
    torch.testing.assert_close(
        divergences.forward_kl(stored.teacher_MC, stored.student_MC),
        divergences.forward_kl(case.teacher_MC, case.student_MC),
        atol=2e-6, rtol=1e-5,
    )  # fmt: skip


@pytest.mark.parametrize("top_k", TOP_KS)
@pytest.mark.parametrize("answers", ANSWERS)
def test_jensen_shannon_is_that_of_kept_tokens_the_answer_and_one_tail(top_k, answers):
    case = random_case(top_k=top_k, answers=answers)
    found_M = divergences.jensen_shannon(case.teacher_MC, case.student_MC)
    for row, value in enumerate(found_M.tolist()):
        halves = [(r * math.log(2 * r / (r + q)), q * math.log(2 * q / (r + q))) for r, q in pairs_of(case, row)]
        assert value == pytest.approx(math.fsum(map(math.fsum, halves)) / 2, rel=1e-9)


@pytest.mark.parametrize("top_k", [0, 1, 4, V])
def test_jensen_shannon_counts_what_the_student_says_where_a_certain_teacher_says_nothing(top_k):
    case = random_case(top_k=top_k)
    certain = case._replace(rows=exact_rows(one_hot(case.answers_M), case.answers_M, top_k))
    found_M = divergences.jensen_shannon(certain.teacher_MC, certain.student_MC)
    for value, (q, _) in zip(found_M.tolist(), probabilities(case), strict=True):
        expected = math.log(2 / (1 + q)) + q * math.log(2 * q / (1 + q)) + (1 - q) * math.log(2)
        assert value == pytest.approx(expected / 2, rel=1e-9)


@given(st.integers(0, 2**31), st.integers(0, 12), st.floats(0.01, 30))
@settings(max_examples=60, deadline=None)
def test_jensen_shannon_is_between_zero_and_log_two_and_below_the_dense_one(seed, top_k, scale):
    case = random_case(seed, top_k=top_k, scale=scale, vocab_size=12)
    found_M = divergences.jensen_shannon(case.teacher_MC, case.student_MC)
    mixture_MV = (case.teacher_MV + case.student_MV) / 2
    sides = [torch.xlogy(p_MV, p_MV) - torch.xlogy(p_MV, mixture_MV) for p_MV in (case.teacher_MV, case.student_MV)]
    dense_M = (sides[0] + sides[1]).sum(1) / 2
    assert (found_M >= -1e-12).all()
    assert (found_M <= math.log(2) + 1e-12).all()
    assert (found_M <= dense_M + 1e-12).all()


@pytest.mark.parametrize("top_k", [1, 4, V])
def test_kept_cosine_is_that_of_probabilities_at_kept_tokens(top_k):
    case = random_case(top_k=top_k)
    found_M = divergences.kept_cosine_distance(case.teacher_MC, case.student_MC)
    for row, value in enumerate(found_M.tolist()):
        kept = case.rows.kept_ids_MK[row].tolist()
        r, q = case.teacher_MV[row, kept].tolist(), case.student_MV[row, kept].tolist()
        dot = sum(a * b for a, b in zip(r, q, strict=True))
        assert value == pytest.approx(1 - dot / math.hypot(*r) / math.hypot(*q), abs=1e-12)


@pytest.mark.parametrize("likely", [0, 1], ids=["all", "all but one"])
def test_kept_cosine_has_a_direction_where_kept_tokens_are_nearly_impossible(likely):
    case = random_case()
    extreme_MV = (case.logits_MV - 200 * one_hot(case.rows.kept_ids_MK[:, likely:]).sum(1)).float()
    found_MV = gradient(
        lambda leaf_MV: divergences.kept_cosine_distance(
            case.teacher_MC.float(), dense_buckets(leaf_MV, case.rows.kept_ids_MK, case.answers_M)
        ),
        extreme_MV,
    )
    assert torch.isfinite(found_MV).all()
    assert likely or found_MV.abs().max() > 1e-3


@given(st.integers(0, 2**31), st.integers(1, 12), st.floats(0.01, 30))
@settings(max_examples=100, deadline=None)
def test_the_cosine_over_the_vocabulary_is_within_the_bound(seed, top_k, scale):
    case = random_case(seed, top_k=top_k, scale=scale, vocab_size=12)
    kept_M = divergences.kept_cosine_distance(case.teacher_MC, case.student_MC)
    dense_M = 1 - torch.nn.functional.cosine_similarity(case.teacher_MV, case.student_MV, dim=1)
    bound_M = divergences.cosine_bound(case.teacher_MC, case.student_MC, case.rows.sum_squares_M)
    assert ((kept_M - dense_M).abs() <= bound_M + 1e-9).all()
    if top_k == 12:
        assert bound_M.abs().max() < 1e-7


def test_the_bound_of_the_cosine_is_reached():
    """Alike over the two kept tokens, and all else of each on a token of its own."""
    teacher_MV = torch.tensor([[0.4, 0.3, 0.299, 0.001]], dtype=torch.float64)
    student_MV = torch.tensor([[0.4, 0.3, 0.0, 0.3]], dtype=torch.float64).clamp_min(1e-300)
    answers_M = torch.tensor([0])
    case = Case(student_MV.log(), teacher_MV, answers_M, exact_rows(teacher_MV, answers_M, 2))
    bound_M = divergences.cosine_bound(case.teacher_MC, case.student_MC, case.rows.sum_squares_M)
    dense_M = 1 - torch.nn.functional.cosine_similarity(teacher_MV, student_MV, dim=1)
    assert divergences.kept_cosine_distance(case.teacher_MC, case.student_MC).tolist() == pytest.approx([0], abs=1e-12)
    assert dense_M.tolist() == pytest.approx(bound_M.tolist(), rel=5e-3)


def test_kl_min_is_the_mean_over_each_examples_tokens():
    case = random_case()
    tokens = divergences.forward_kl(case.teacher_MC, case.student_MC).tolist()
    expected = sum(tokens[:2]) / 2 + tokens[2] + sum(tokens[3:]) / 4
    assert float(terms.follow_on_average(scored(case, LENGTHS), {})) == pytest.approx(expected)


def test_entropy_weighs_each_tokens_regularizer():
    case = random_case()
    tokens = divergences.forward_kl(case.teacher_MC, case.student_MC).tolist()
    entropies = [-math.fsum(p * math.log(p) for p in row) for row in case.teacher_MV.tolist()]
    expected = math.fsum(math.exp(-h) * kl for h, kl in zip(entropies, tokens, strict=True))
    assert float(terms.follow_by_entropy(scored(case, LENGTHS), {})) == pytest.approx(expected)


# ---- Edges ----------------------------------------------------------------------------------------------------------

COMPARED: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "kl": lambda teacher_MC, student_MC, _: divergences.forward_kl(teacher_MC, student_MC),
    "jsd": lambda teacher_MC, student_MC, _: divergences.jensen_shannon(teacher_MC, student_MC),
    "undial": lambda teacher_MC, student_MC, column_M: losses.undial(teacher_MC, student_MC, column_M, 10.0),
}


@pytest.mark.parametrize("top_k", [0, 3, V - 1, V])
@pytest.mark.parametrize("compare", COMPARED.values(), ids=COMPARED)
def test_empty_buckets_give_finite_losses_and_gradients(top_k, compare):
    case = random_case()
    rows = stored_rows(one_hot(case.answers_M), case.answers_M, top_k)
    teacher_MC, column_M = teacher_buckets(rows, V), answer_bucket(rows)

    def loss(logits_MV: Tensor) -> Tensor:
        return compare(teacher_MC, dense_buckets(logits_MV, rows.kept_ids_MK, case.answers_M), column_M)

    assert torch.isfinite(loss(case.logits_MV.float())).all()
    assert torch.isfinite(gradient(loss, case.logits_MV.float())).all()


def test_a_tail_stored_as_minus_infinity_adds_nothing():
    case = random_case(answers="likeliest")
    kept_MK = case.rows.kept_logprobs_MK.log_softmax(-1)
    rows = replace(
        case.rows, kept_logprobs_MK=kept_MK, tail_logprob_M=torch.full((M,), -math.inf), answer_logprob_M=kept_MK[:, 0]
    )
    inside_MK = case.logits_MV.log_softmax(-1).gather(1, rows.kept_ids_MK)
    expected_M = (kept_MK.exp() * (kept_MK - inside_MK)).sum(1)
    torch.testing.assert_close(divergences.forward_kl(teacher_buckets(rows, V), case.student_MC), expected_M, **CLOSE)
    assert torch.isfinite(gradient_of_viker(case.logits_MV, rows, 1.0)).all()


def test_the_tail_keeps_its_gradient_where_one_minus_the_sum_would_be_zero():
    case = random_case(answers="likeliest")
    rows = stored_rows(case.teacher_MV, case.answers_M, top_k=4)
    extreme_MV = torch.full_like(case.logits_MV, -60.0).scatter(1, rows.kept_ids_MK, 60.0).float()
    found_MV = gradient(
        lambda leaf_MV: divergences.forward_kl(
            teacher_buckets(rows, V), dense_buckets(leaf_MV, rows.kept_ids_MK, case.answers_M)
        ),
        extreme_MV,
    )
    outside_MV = torch.ones(M, V, dtype=torch.bool).scatter(1, rows.kept_ids_MK, False)
    torch.testing.assert_close(-found_MV.where(outside_MV, 0).sum(1), rows.tail_logprob_M.exp(), atol=1e-3, rtol=1e-3)


def test_the_gradient_flows_through_the_student_only():
    case = random_case()
    teacher_MC, student_MC = (part_MC.clone().requires_grad_() for part_MC in (case.teacher_MC, case.student_MC))
    column_M = answer_bucket(case.rows)
    for compare in (*COMPARED.values(), lambda r_MC, q_MC, _: divergences.kept_cosine_distance(r_MC, q_MC)):
        loss = compare(teacher_MC, student_MC, column_M).sum()
        of_teacher, of_student = torch.autograd.grad(loss, (teacher_MC, student_MC), allow_unused=True)
        assert of_teacher is None
        assert of_student.abs().max() > 0


@pytest.mark.parametrize("top_k", [0, 4, V])
def test_the_regularizer_alone_is_least_where_student_is_teacher(top_k):
    case = random_case(top_k=top_k)

    def kl(logits_MV: Tensor) -> Tensor:
        return divergences.forward_kl(case.teacher_MC, dense_buckets(logits_MV, case.rows.kept_ids_MK, case.answers_M))

    least_M = kl(case.teacher_MV.log())
    assert least_M.abs().max() < 1e-12
    assert gradient(kl, case.teacher_MV.log()).abs().max() < 1e-12
    assert (kl(case.logits_MV) > least_M).all()


@pytest.mark.parametrize("divergence", [divergences.jensen_shannon, divergences.kept_cosine_distance])
def test_other_regularizers_are_zero_where_student_is_teacher(divergence):
    case = random_case()
    same = case._replace(logits_MV=case.teacher_MV.log())
    assert divergence(same.teacher_MC, same.student_MC).abs().max() < 1e-12
    assert (divergence(case.teacher_MC, case.student_MC) > 1e-3).all()


# ---- Gradients ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "top_k"),
    [(name, top_k) for name in DIFFERENTIABLE for top_k in (0, 4, V) if (name, top_k) != ("cosine", 0)],
)
def test_autograd_agrees_with_finite_differences(name, top_k):
    case = random_case(top_k=top_k)

    def loss(logits_MV: Tensor) -> Tensor:
        return DIFFERENTIABLE[name](dense_buckets(logits_MV, case.rows.kept_ids_MK, case.answers_M), case)

    assert torch.autograd.gradcheck(loss, case.logits_MV.clone().requires_grad_())


def test_autograd_of_states_agrees_with_finite_differences():
    states_MD, frozen_MD = torch.randn(2, M, D, dtype=torch.float64).unbind()
    leaf_MD = states_MD.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda at_MD: losses.misdirection(at_MD, frozen_MD[0], 2.0), leaf_MD)
    assert torch.autograd.gradcheck(lambda at_MD: losses.state_distance(at_MD, frozen_MD), leaf_MD)


@pytest.mark.parametrize("lambda_", [0.05, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("answers", ANSWERS)
def test_the_gradient_is_the_papers_reweighted_ascent(lambda_, answers):
    case = random_case(top_k=V, answers=answers)
    weights_MV = losses.gradient_weights(case.student_MV, case.teacher_MV, case.answers_M, lambda_)
    expected_MV = weights_MV * (one_hot(case.answers_M) - case.student_MV)
    found_MV = gradient_of_viker(case.logits_MV, case.rows, lambda_)
    torch.testing.assert_close(found_MV, expected_MV, atol=1e-14, rtol=1e-6)


def test_the_weights_are_those_of_the_formula():
    case = random_case(top_k=V)
    weights_MV = losses.gradient_weights(case.student_MV, case.teacher_MV, case.answers_M, 0.7)
    for row, answer in enumerate(case.answers_M.tolist()):
        for token, (r, q) in enumerate(zip(*all_of(case, row), strict=True)):
            expected = 1 + 0.7 * (q - r) / (1 - q) if token == answer else 1 - 0.7 + 0.7 * r / q
            assert float(weights_MV[row, token]) == pytest.approx(expected, rel=1e-12)


def test_a_lambda_of_each_tokens_own_reweighs_each_token():
    case = random_case(top_k=V)
    lambda_M = losses.lambda_by_entropy(case.rows.entropy_M)
    weights_MV = losses.gradient_weights(case.student_MV, case.teacher_MV, case.answers_M, lambda_M[:, None])
    expected_MV = weights_MV * (one_hot(case.answers_M) - case.student_MV)
    found_MV = gradient_of_viker(case.logits_MV, case.rows, lambda_M)
    torch.testing.assert_close(found_MV, expected_MV, atol=1e-14, rtol=1e-6)


@pytest.mark.parametrize("answers", ANSWERS)
def test_tail_tokens_are_reweighted_by_the_ratio_of_the_tails(answers):
    case = random_case(answers=answers)
    bucketed_MV = case.teacher_MV.clone()
    for row in range(M):
        tail = [token for token in range(V) if token not in case.named(row)]
        ratio = case.teacher_MV[row, tail].sum() / case.student_MV[row, tail].sum()
        bucketed_MV[row, tail] = ratio * case.student_MV[row, tail]
    weights_MV = losses.gradient_weights(case.student_MV, bucketed_MV, case.answers_M, 0.5)
    expected_MV = weights_MV * (one_hot(case.answers_M) - case.student_MV)
    found_MV = gradient_of_viker(case.logits_MV, case.rows, 0.5)
    torch.testing.assert_close(found_MV, expected_MV, atol=1e-14, rtol=1e-6)


@pytest.mark.parametrize("top_k", [0, 1, 4, V])
@pytest.mark.parametrize("lambda_", [0.05, 0.5, 1.0])
def test_a_normal_token_feels_ascent_times_one_minus_lambda(top_k, lambda_):
    case = random_case()
    rows = exact_rows(one_hot(case.answers_M), case.answers_M, top_k)
    ascent_MV = one_hot(case.answers_M) - case.student_MV
    found_MV = gradient_of_viker(case.logits_MV, rows, lambda_)
    torch.testing.assert_close(found_MV, (1 - lambda_) * ascent_MV, atol=1e-14, rtol=1e-6)


def test_without_a_regularizer_it_is_gradient_ascent():
    case = random_case()
    found_MV = gradient_of_viker(case.logits_MV, case.rows, 0.0)
    torch.testing.assert_close(found_MV, one_hot(case.answers_M) - case.student_MV, atol=1e-14, rtol=1e-6)
