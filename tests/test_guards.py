"""Stopping before collapse: what ends a run, which point is kept, and when a weight turns the loss around."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from viker.train.guards import TRADE_OFFS, Guards, best_step, forgotten_share, harmonic, kept_share, sign_warning
from viker.train.options import TRADE_OFFS as NAMED
from viker.train.rows import TeacherRows


def point(step: int, fact: float, kept: float, repetition: float = 0.0) -> dict[str, Any]:
    return {
        "step": step, "forget_fact": fact, "forget_rougeL": fact, "retain_heldout_rougeL": kept,
        "retain_heldout_repetition": repetition,
    }  # fmt: skip


FALLING = [point(0, 1.0, 0.8), point(4, 0.6, 0.76), point(8, 0.1, 0.6), point(12, 0.0, 0.1, 0.5)]


def rows(answer_probs: list[float], entropies: list[float]) -> TeacherRows:
    M = len(answer_probs)
    return TeacherRows(
        kept_ids_MK=torch.zeros((M, 0), dtype=torch.long), kept_logprobs_MK=torch.zeros((M, 0)),
        tail_logprob_M=torch.zeros(M), answer_ids_M=torch.zeros(M, dtype=torch.long),
        answer_logprob_M=torch.tensor(answer_probs).log(), entropy_M=torch.tensor(entropies),
        sum_squares_M=torch.ones(M),
    )  # fmt: skip


def test_without_bounds_nothing_ends_a_run():
    assert Guards().check(FALLING) is None


def test_the_floor_is_a_share_of_what_was_known_at_the_start():
    guards = Guards(min_retain=0.7)
    assert guards.check(FALLING[:3]) is None  # 0.6 of 0.8 is 0.75
    ended = guards.check(FALLING)
    assert ended is not None
    assert (ended.guard, ended.step) == ("min-retain", 8)
    assert "0.12" in ended.reason


def test_repetition_is_held_against_the_model_as_it_was():
    always = [point(0, 1.0, 0.8, 0.4), point(4, 0.5, 0.8, 0.45)]
    assert Guards(max_repetition=0.2).check(always) is None
    ended = Guards(max_repetition=0.2).check(FALLING)
    assert ended is not None
    assert (ended.guard, ended.step) == ("max-repetition", 8)


def test_a_run_that_breaks_a_bound_at_its_first_point_keeps_the_start():
    ended = Guards(min_retain=0.9).check([FALLING[0], FALLING[3]])
    assert ended is not None
    assert ended.step == 0


def test_shares_are_of_the_model_as_it_was():
    assert kept_share(FALLING[0], FALLING[2]) == pytest.approx(0.75)
    assert forgotten_share(FALLING[0], FALLING[2]) == pytest.approx(0.9)
    without_facts = [{name: value for name, value in one.items() if name != "forget_fact"} for one in FALLING]
    assert forgotten_share(without_facts[0], without_facts[1]) == pytest.approx(0.4)


def test_trade_offs_have_the_names_that_are_offered():
    assert tuple(TRADE_OFFS) == NAMED


@pytest.mark.parametrize("name", list(TRADE_OFFS))
def test_the_best_point_has_forgotten_and_kept(name):
    assert best_step(FALLING, name) == 8
    assert best_step([*FALLING, point(16, 0.1, 0.6)], name) == 8  # the earliest of equals


def test_nothing_forgotten_or_nothing_kept_is_worth_nothing():
    assert harmonic(FALLING[0], FALLING[0]) == 0.0
    assert harmonic(FALLING[0], point(4, 0.0, 0.0)) == 0.0
    assert harmonic(FALLING[0], point(4, 1.5, 0.8)) == 0.0  # more facts than before


@pytest.mark.parametrize("lambda_", [0.05, 0.95, 1.0])
def test_up_to_one_lambda_turns_nothing_around(lambda_):
    assert sign_warning(rows([0.99, 0.5, 0.02], [0.01, 0.6, 3.0]), lambda_, key_entropy=1.0) is None


def test_above_one_normal_tokens_that_the_teacher_says_are_taught():
    warning = sign_warning(rows([0.99, 0.5, 0.9], [0.01, 0.6, 3.0]), 1.5, key_entropy=1.0)
    assert warning is not None
    assert "on 50% of the normal tokens" in warning
    assert math.isclose(1.5 * 0.5, 0.75)  # the other normal token keeps its sign


def test_a_run_without_normal_tokens_has_nothing_to_warn_of():
    assert sign_warning(rows([0.99], [3.0]), 9.0, key_entropy=1.0) is None
