"""docs/scale.md: its table is what the formulas give, for the sizes that the model's classes have."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import viker
from viker.plan.scale import (
    ANSWER_TOKENS,
    LLAVA_7B,
    PAIRS_PER_SECOND,
    PREFIX_TOKENS,
    TOP_K,
    Case,
    as_table,
    hours_per_million,
    price,
)  # fmt: skip
from viker.plan.shape import shape_of_model

PAGE = Path(viker.__file__).parent / "docs" / "scale.md"


def test_the_page_holds_the_table_that_the_formulas_give():
    page = PAGE.read_text(encoding="utf-8")
    assert "\n".join(as_table()) in page
    assert f"{hours_per_million():.3f} GPU-hours" in page


def test_the_sizes_are_those_of_the_model_that_the_classes_build():
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    vision = CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=336,
        patch_size=14, projection_dim=768,
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=32064, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32
    )
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text, image_token_index=4))
    assert shape_of_model(model) == LLAVA_7B


def test_a_pair_takes_the_operations_that_the_measured_rate_implies():
    """The prototype that ran 702 pairs a second reported 556 TFLOP/s."""
    cost = price(Case(people=1000, questions=1000, references=8, pool=8))
    assert cost.operations / cost.pairs * PAIRS_PER_SECOND == pytest.approx(556e12, rel=0.01)


def test_rows_and_bytes_follow_from_the_format():
    cost = price(Case(people=10, questions=10, references=2, pool=4))
    assert (cost.pairs, cost.rows) == (200, 100 * ANSWER_TOKENS)
    a_row = TOP_K * (2 + 2) + 4 * 4 + 2
    a_sample = 8 + 16 + 16 + 8 + 2 * 2
    assert cost.raw_bytes == cost.rows * a_row + 100 * a_sample + 8 + 4 * 32
    assert PREFIX_TOKENS == 5 + 576
