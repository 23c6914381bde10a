"""What training takes of a device's memory: the formula against what autograd keeps, and the options it names."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import pytest
import torch
from viker.models.encode import answer_rows, collate
from viker.models.forward import to_device
from viker.models.lora import add_lora
from viker.train.fit import (
    Setting,
    Sizes,
    advice,
    flags,
    is_out_of_memory,
    kept_bytes,
    lora_weights,
    settings_from,
    sizes_of,
    sizes_of_model,
    training_bytes,
)
from viker.train.student import Student

if TYPE_CHECKING:
    from viker.models.load import Loaded

GIB = 1024**3
LLAVA_7B = Sizes(
    parameters=7_063_427_072, linear=6_800_000_000, layers=32, hidden=4096, intermediate=11008, width=4096,
    key_value_width=4096,
)  # fmt: skip
ASKED = Setting(4, None, gradient_checkpointing=False, batch_size=4, accumulation=2, lora_r=8)


def kept_by_autograd(model: torch.nn.Module, tiny: Loaded, examples: list) -> tuple[int, int]:
    """Bytes that a forward pass keeps for its backward pass beside weights, and the tokens of its batch."""
    rows = [tiny.encoder.encode(example) for example in examples]
    inputs = collate(rows, pad_id=tiny.encoder.pad_id, side="right")
    batch_M, position_M, answer_ids_M = answer_rows(rows)
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    dtype = next(model.parameters()).dtype
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        seen = Student(model)(
            to_device(inputs, torch.device("cpu"), dtype), batch_M, position_M, answer_ids_M, answer_ids_M[:, None]
        )
    assert seen.student_MC.requires_grad
    return sum(kept.values()), inputs["input_ids"].numel()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_formula_is_near_what_autograd_keeps(tiny, tiny_model_dir, training_examples, dtype):
    model = add_lora(copy.deepcopy(tiny.model).to(dtype), rank=4, alpha=8, dropout=0.0, base=tiny_model_dir).train()
    short, long = (kept_by_autograd(model, tiny, list(training_examples[:count])) for count in (2, 8))
    measured = (long[0] - short[0]) / (long[1] - short[1])  # a token more: without what a pass keeps once
    sizes = sizes_of_model(tiny.model)
    assert kept_bytes(sizes, dtype.itemsize) * sizes.layers == pytest.approx(measured, rel=0.1)


def test_sizes_are_read_off_the_configuration_alone(tiny):
    assert sizes_of(tiny.checkpoint, trust_remote_code=False) == sizes_of_model(tiny.model)


def test_lora_weights_are_counted(tiny, tiny_model_dir):
    model = add_lora(copy.deepcopy(tiny.model), rank=4, alpha=8, dropout=0.0, base=tiny_model_dir)
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    assert lora_weights(sizes_of_model(tiny.model), 4) == trained


def test_llava_7b_fits_24_gib_with_gradient_checkpointing():
    paper = Setting(2, None, gradient_checkpointing=True, batch_size=2, accumulation=1, lora_r=8)
    assert 14 * GIB < training_bytes(LLAVA_7B, paper, 700) < 24 * GIB
    assert training_bytes(LLAVA_7B, paper._replace(gradient_checkpointing=False), 700) > 24 * GIB
    assert training_bytes(LLAVA_7B, paper._replace(quantization="nf4"), 700) < 8 * GIB


def test_what_is_tried_takes_less_and_keeps_the_size_of_a_step():
    tried = list(settings_from(ASKED))
    assert tried[0] == ASKED
    assert all(one.batch_size * one.accumulation == 8 for one in tried)
    assert {one.batch_size for one in tried} == {4, 2, 1}
    assert {one.quantization for one in tried} == {None, "nf4"}
    sizes = [training_bytes(LLAVA_7B, one, 700) for one in tried]
    assert min(sizes) == sizes[-1]


def test_options_are_named_as_the_command_line_has_them():
    assert flags(ASKED, ASKED) == "as asked"
    least = list(settings_from(ASKED))[-1]
    assert flags(ASKED, least) == (
        "--bf16 --gradient-checkpointing --per-device-train-batch-size 1 --gradient-accumulation-steps 8 "
        "--quantization nf4 (and rows made with it)"
    )


def test_every_card_has_a_line():
    told = advice(LLAVA_7B, ASKED, 700)
    assert "By formula, with examples of up to 700 tokens" in told
    for card, says in ((24, "--bf16 --gradient-checkpointing"), (40, "--gradient-checkpointing"), (48, "--")):
        (line,) = [line for line in told.splitlines() if f"a card of {card} GiB" in line]
        assert f"a card of {card} GiB: {says}" in line
    huge = LLAVA_7B._replace(parameters=10**12, linear=9 * 10**11)
    assert "a card of 24 GiB: no setting of these options" in advice(huge, ASKED, 700)


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."), True),
        (MemoryError(), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_which_errors_say_that_memory_ran_out(error, is_one):
    assert is_out_of_memory(error) == is_one
