"""Training scores and gradients of each family whose questions share an image: grouped as apart, remembered as seen."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from family_work import asked, each_shared
from viker.models.lora import add_lora
from viker.models.vision_memo import VisionMemo
from viker.train.batches import read_items
from viker.train.steps import Scorer, cached_rows
from viker.train.student import Student

QUESTIONS = (
    asked(1), asked(1, "A baker.", "What does this person do?"), asked(2, "Yes, in Lisbon."),
    asked(2, "No.", "Is this person a baker?"), asked(3),
)  # fmt: skip


def scored(family: Any, model: Any, group_size: int, memo: VisionMemo | None) -> tuple[torch.Tensor, dict[str, Any]]:
    """Log q(y) of all answer tokens, and the gradient of a sum that weighs each of them differently."""
    scorer = Scorer(
        student=Student(model), encoder=family.encoder, rows_of=cached_rows(8), group_size=group_size,
        memo=memo, without_adapter=nullcontext,
    )  # fmt: skip
    items = read_items(family.encoder, QUESTIONS, None, "reference")
    logprob_M = scorer.score(items).answer_logprob_M
    model.zero_grad()
    (logprob_M * torch.linspace(0.5, 1.5, len(logprob_M))).sum().backward()
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    return logprob_M.detach(), gradients


@each_shared
def test_grouped_and_remembered_scores_are_those_of_questions_apart(family):
    torch.manual_seed(0)
    model = add_lora(copy.deepcopy(family.model), rank=4, alpha=8, dropout=0.0, base=Path("base"))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.02)
    expected_M, expected = scored(family, model, 1, None)
    assert any(float(gradient.abs().max()) > 1e-4 for gradient in expected.values())
    memo = VisionMemo(model)
    for group_size, remembered in ((4, None), (4, memo), (1, memo), (4, memo)):
        found_M, found = scored(family, model, group_size, remembered)
        torch.testing.assert_close(found_M, expected_M, atol=1e-4, rtol=1e-4)
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, atol=2e-4, rtol=2e-3, msg=name)
