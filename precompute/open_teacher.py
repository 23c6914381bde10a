"""Load the teacher behind the engine asked for, checked against the oracle on one example before the first block.

Where a model family breaks the fast engine's assumption, the oracle takes over, loudly. What is computed with it, and
where it is stored, is `teacher.py`'s.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch

from ..data.example import DataError
from ..models.compiled import compile_text_layers
from ..models.encode import Encoder
from ..models.load import Checkpoint, load_model
from .engines.naive import naive_rows
from .engines.rows import Pending, RowsOf
from .engines.shared_prefix import SharedPrefixEngine, disagreement_with_naive
from .open_vllm import open_vllm
from .token_budget import TOKEN_BUDGET, MemoryShortage, Resizable, is_out_of_memory

SELF_CHECK_VARIATION = {"float32": 1e-4, "bfloat16": 0.05, "float16": 0.02, "quantized": 0.05}


class Teacher(NamedTuple):
    """The engine that computes rows, its name, and the device it runs on, as build.json names it."""

    engine: str
    rows_of: RowsOf
    device: str
    resizable: Resizable | None = None  # the engine itself, where its batches have a token budget


def open_teacher(
    options: Mapping[str, Any], checkpoint: Checkpoint, encoder: Encoder, first: Pending, device: str,
    announce: Callable[[str], None],
) -> Teacher:  # fmt: skip
    """Load the weights on a device and pick the engine; `first` is the example of the self-check."""
    if options["engine"] == "vllm":
        if options.get("quantization") is not None:
            raise DataError(
                f"--quantization {options['quantization']}: expected the engine shared-prefix or naive, found vllm. "
                "Name one of them, or leave the option out."
            )
        if options["teacher"] == "noise":
            raise DataError(
                "--teacher noise: expected the engine shared-prefix or naive, found vllm, which is handed pictures and "
                "never the tensors made of them. Name one of those engines."
            )
        engine, rows_of = open_vllm(options, checkpoint, encoder, first, announce)
        return Teacher(engine, rows_of, device_name(device))
    model = load_model(
        checkpoint, dtype=options["dtype"], device=device, attention=options["attention"],
        quantization=options.get("quantization"), trust_remote_code=options["trust_remote_code"],
    )  # fmt: skip
    shared = _shared_prefix(options, model, first, encoder.pad_id, announce)
    if shared is not None:
        return Teacher("shared-prefix", shared.rows, device_name(device), shared)
    return Teacher("naive", partial(naive_rows, model, pad_id=encoder.pad_id), device_name(device))


def device_name(device: str) -> str:
    """Return what build.json calls a device: the name of the GPU model, or `cpu`."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else "cpu"


def _shared_prefix(
    options: Mapping[str, Any], model: Any, first: Pending, pad_id: int, announce: Callable[[str], None]
) -> SharedPrefixEngine | None:
    """Return the default engine, or nothing where the oracle is asked for or needed: for a model it does not hold for.

    Raises:
        MemoryShortage: there is no room for one example, which no other engine would change.
    """
    if options["engine"] == "naive":
        return None
    if options.get("torch_compile"):
        compile_text_layers(model)
    shared = SharedPrefixEngine(model, token_budget=options["token_budget"] or TOKEN_BUDGET)
    try:
        variation = disagreement_with_naive(shared, model, first, pad_id)
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        if is_out_of_memory(error):
            raise MemoryShortage(
                f"precompute: expected memory for the model and one example under its images, found too little "
                f"({error}). Stop what else uses the device, use a larger one, or name a smaller --dtype."
            ) from error
        if options.get("torch_compile"):
            raise DataError(
                f"--torch-compile: expected layers that compile here, found: {error}. Leave it out."
            ) from error
        announce(
            f"precompute: WARNING: the shared-prefix engine cannot run this model ({error}); "
            "using naive, which is slower."
        )
        return None
    if variation > SELF_CHECK_VARIATION["quantized" if options.get("quantization") else options["dtype"]]:
        announce(
            f"precompute: WARNING: shared-prefix rows differ from naive ones by total variation {variation:.2g}; "
            "this model breaks the engine's assumption. Using naive, which is slower."
        )
        return None
    return shared
