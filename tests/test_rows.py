"""Cached rows in buckets, and rows cut to fewer kept tokens, against the rows that precompute makes."""

# M answer tokens, V vocabulary, K kept

from __future__ import annotations

import math
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_cases import M, V, one_hot, random_case, stored_rows
from viker.train.batches import no_rows
from viker.train.rows import cut_rows, has_tail, teacher_buckets


def mass_of(rows) -> torch.Tensor:
    return rows.kept_logprobs_MK.exp().sum(1) + rows.tail_logprob_M.exp()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize(("stored_k", "top_k"), [(V, V - 1), (V, 4), (V, 0), (8, 4), (8, 1), (8, 0)])
def test_cut_rows_are_those_precomputed_with_fewer_tokens(stored_k, top_k, dtype):
    case = random_case()
    cut = cut_rows(stored_rows(case.teacher_MV, case.answers_M, stored_k, dtype), top_k)
    expected = stored_rows(case.teacher_MV, case.answers_M, top_k, dtype)
    close = 2e-3 if dtype == torch.float16 else 1e-5  # what was kept in half precision goes into the tail as it is
    for part in fields(cut):
        torch.testing.assert_close(getattr(cut, part.name), getattr(expected, part.name), atol=close, rtol=close)
    assert torch.equal(cut.kept_ids_MK, expected.kept_ids_MK)
    assert torch.equal(cut.kept_logprobs_MK, expected.kept_logprobs_MK)


@given(st.integers(0, 2**31), st.integers(0, 20), st.integers(0, 20), st.floats(0.01, 20))
@settings(max_examples=60, deadline=None)
def test_cutting_keeps_the_mass(seed, stored_k, top_k, scale):
    case = random_case(seed, scale=scale)
    rows = stored_rows(case.teacher_MV, case.answers_M, stored_k)
    torch.testing.assert_close(mass_of(cut_rows(rows, top_k)), mass_of(rows), atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("top_k", [4, 5, 1 << 30])
def test_rows_with_no_more_tokens_stay_as_they_are(top_k):
    rows = random_case(top_k=4).rows
    assert cut_rows(rows, top_k) is rows


def test_an_answer_that_is_cut_off_gets_its_own_bucket():
    case = random_case(answers="likeliest")
    cut = cut_rows(case.rows, 0)
    teacher_MC = teacher_buckets(cut, V)
    torch.testing.assert_close(teacher_MC[:, 0], case.rows.answer_logprob_M)
    torch.testing.assert_close(teacher_MC.exp().sum(1), torch.ones(M).double())


@pytest.mark.parametrize("top_k", [0, 1, 8, V - 1, V])
@pytest.mark.parametrize("answers", ["random", "likeliest", "unlikely"])
def test_the_teacher_is_normalized_against_rounding_in_storage(top_k, answers):
    case = random_case(answers=answers)
    rows = stored_rows(case.teacher_MV, case.answers_M, top_k, torch.float16)
    teacher_MC = teacher_buckets(rows, V)
    torch.testing.assert_close(teacher_MC.exp().sum(1), torch.ones(M))
    assert not torch.isnan(teacher_MC).any()
    torch.testing.assert_close(teacher_MC[:, :-2].exp(), rows.kept_logprobs_MK.exp(), atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize(("top_k", "answers"), [(V, "random"), (V - 1, "unlikely")])
def test_where_every_token_has_a_bucket_there_is_no_tail(top_k, answers):
    case = random_case(answers=answers)
    rows = stored_rows(case.teacher_MV, case.answers_M, top_k)
    assert teacher_buckets(rows, V)[:, -1].tolist() == [-math.inf] * M
    assert not has_tail(top_k, rows.answer_is_kept_M, V).any()


def test_a_tail_of_rounding_is_empty_where_no_token_is_left_for_it():
    case = random_case(top_k=V)
    rows = replace(case.rows, tail_logprob_M=torch.full((M,), -12.0).double())
    assert teacher_buckets(rows, V)[:, -1].tolist() == [-math.inf] * M
    assert torch.isfinite(teacher_buckets(rows, V + 1)[:, -1]).all()


def test_an_answer_that_is_all_of_the_tail_leaves_none():
    rows = stored_rows(one_hot(torch.arange(M)), torch.arange(M), top_k=0)
    assert teacher_buckets(rows, V).tolist() == [[0.0, -math.inf]] * M


def test_rows_move_whole():
    rows = random_case().rows
    moved = rows.to(torch.device("cpu"))
    assert all(torch.equal(getattr(moved, part.name), getattr(rows, part.name)) for part in fields(rows))


def test_of_no_rows_nothing_is_known():
    rows = no_rows([3, 1, 4])
    assert rows.answer_ids_M.tolist() == [3, 1, 4]
    assert rows.kept_ids_MK.shape == (3, 0)
    assert torch.isnan(torch.stack([rows.answer_logprob_M, rows.entropy_M, rows.sum_squares_M])).all()
