"""Rows from distributions, against a float64 loop, and at the edges where logarithms and ties go wrong."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from viker.precompute.reading.rows import as_rows, row_problems
from viker.precompute.topk import rows_from_probabilities


def averaged(num_rows: int, vocab_size: int, seed: int = 0, k: int = 4, scale: float = 4) -> tuple[torch.Tensor, ...]:
    """Mean probabilities of k seeded teachers, the mean of their entropies, and answers."""
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(k, num_rows, vocab_size, generator=generator)
    probs = logits.softmax(-1)
    entropy = -(probs * logits.log_softmax(-1)).sum(-1)
    return probs.mean(0), entropy.mean(0), torch.randint(vocab_size, (num_rows,), generator=generator)


def naive_row(probs: list[float], answer: int, top_k: int, dtype: type) -> dict[str, object]:
    stored = [float(dtype(np.float32(math.log(p)))) for p in probs]  # torch rounds float64 to half by way of float32
    kept = sorted(range(len(probs)), key=lambda token: (-stored[token], token))[:top_k]
    tail = math.fsum(p for token, p in enumerate(probs) if token not in kept)
    return {
        "kept_id": kept,
        "kept_logprob": [stored[token] for token in kept],
        "tail_logprob": math.log(tail) if tail else -math.inf,
        "entropy": -math.fsum(p * math.log(p) for p in probs),
        "answer_logprob": math.log(probs[answer]),
        "sum_squares": math.fsum(p * p for p in probs),
    }


def problems(rows: dict[str, torch.Tensor], vocab_size: int) -> list[str]:
    arrays = {f"token/{name}": tensor.numpy() for name, tensor in rows.items()}
    return row_problems(as_rows(arrays), vocab_size)


@pytest.mark.parametrize("top_k", [1, 8, 64, 299, 300])
def test_rows_equal_a_float64_loop(top_k):
    mean_probs, mean_entropy, answers = averaged(20, 300)
    mean_probs = mean_probs.double()  # so that both sides round the same logarithms to float16
    rows = rows_from_probabilities(mean_probs, mean_entropy, answers, top_k)
    for row in range(20):
        expected = naive_row(mean_probs[row].tolist(), int(answers[row]), top_k, np.float16)
        assert rows["kept_id"][row].tolist() == expected["kept_id"]
        assert rows["kept_logprob"][row].tolist() == expected["kept_logprob"]
        for name in ("tail_logprob", "entropy", "answer_logprob", "sum_squares"):
            assert rows[name][row].item() == pytest.approx(expected[name], rel=1e-6)
        jensen_shannon = expected["entropy"] - mean_entropy[row].item()
        assert rows["disagreement"][row].item() == pytest.approx(jensen_shannon, rel=1e-3, abs=1e-6)
    assert problems(rows, 300) == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_float32_input_agrees_and_has_the_storage_types(dtype):
    mean_probs, mean_entropy, answers = averaged(50, 32064)
    rows = rows_from_probabilities(mean_probs, mean_entropy, answers, 64, dtype)
    wide = rows_from_probabilities(mean_probs.double(), mean_entropy, answers, 64, dtype)
    for name in ("tail_logprob", "entropy", "answer_logprob", "sum_squares"):
        torch.testing.assert_close(rows[name], wide[name], rtol=1e-5, atol=1e-6)
        assert rows[name].dtype == torch.float32
    assert rows["kept_id"].dtype == torch.int64
    assert rows["kept_logprob"].dtype == dtype
    assert rows["disagreement"].dtype == torch.float16
    assert problems(rows, 32064) == []


def test_ties_go_to_the_lower_id_also_at_the_cut():
    probs = torch.tensor([[0.1, 0.3, 0.1, 0.1, 0.3, 0.1]])
    rows = rows_from_probabilities(probs, torch.zeros(1), torch.tensor([5]), 4)
    assert rows["kept_id"].tolist() == [[1, 4, 0, 2]]
    assert rows["tail_logprob"].item() == pytest.approx(math.log(0.2))


def test_order_is_of_stored_values_not_of_exact_ones():
    """Two probabilities that float16 cannot tell apart are ordered by id, though the second is larger."""
    probs = torch.tensor([[0.25, 0.250001, 0.499999]])
    rows = rows_from_probabilities(probs, torch.zeros(1), torch.tensor([0]), 3)
    assert rows["kept_id"].tolist() == [[2, 0, 1]]
    exact = rows_from_probabilities(probs, torch.zeros(1), torch.tensor([0]), 3, torch.float32)
    assert exact["kept_id"].tolist() == [[2, 1, 0]]


def test_nothing_kept():
    mean_probs, mean_entropy, answers = averaged(5, 100)
    rows = rows_from_probabilities(mean_probs, mean_entropy, answers, 0)
    assert rows["kept_id"].shape == rows["kept_logprob"].shape == (5, 0)
    assert rows["tail_logprob"].tolist() == [0.0] * 5
    assert problems(rows, 100) == []


def test_everything_kept_has_no_tail():
    rows = rows_from_probabilities(*averaged(5, 100), 100)
    assert rows["tail_logprob"].tolist() == [-math.inf] * 5
    assert problems(rows, 100) == []


def test_a_certain_teacher_stays_finite():
    probs = torch.zeros(2, 50)
    probs[:, 3] = 1
    rows = rows_from_probabilities(probs, torch.zeros(2), torch.tensor([3, 4]), 8)
    assert rows["kept_id"][0].tolist() == [3, 0, 1, 2, 4, 5, 6, 7]
    assert rows["answer_logprob"].tolist() == pytest.approx([0, -87.3365], abs=1e-3)
    assert rows["entropy"].tolist() == rows["disagreement"].tolist() == [0, 0]
    assert problems(rows, 50) == []


def test_the_tail_keeps_its_digits_where_one_minus_the_sum_has_none():
    probs = torch.full((1, 1001), 1e-12)
    probs[0, 0] = 1
    rows = rows_from_probabilities(probs, torch.zeros(1), torch.tensor([0]), 1)
    assert rows["tail_logprob"].item() == pytest.approx(math.log(1e-9), rel=1e-6)


def test_agreeing_references_disagree_by_nothing_below_zero():
    mean_probs, mean_entropy, answers = averaged(200, 500, k=1)
    disagreement = rows_from_probabilities(mean_probs, mean_entropy, answers, 4)["disagreement"]
    assert (disagreement >= 0).all()
    assert disagreement.max() < 1e-5


@given(st.integers(0, 2**31), st.integers(1, 40), st.floats(0.01, 30))
@settings(max_examples=60, deadline=None)
def test_any_average_gives_rows_that_the_reader_accepts(seed, top_k, scale):
    mean_probs, mean_entropy, answers = averaged(6, 40, seed, 3, scale)
    for dtype in (torch.float16, torch.float32):
        assert problems(rows_from_probabilities(mean_probs, mean_entropy, answers, top_k, dtype), 40) == []


@pytest.mark.parametrize("top_k", [-1, 101])
def test_an_impossible_top_k_is_an_error(top_k):
    with pytest.raises(ValueError, match=f"between 0 and the vocabulary's 100 tokens, found {top_k}"):
        rows_from_probabilities(*averaged(1, 100), top_k)
