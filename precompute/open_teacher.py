"""Load the teacher behind the engine asked for, checked against the oracle on one example before the first block.

Where a model family breaks the fast engine's assumption, the oracle takes over, loudly. What is computed with it, and
where it is stored, is `teacher.py`'s.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from ..models.encode import Encoder
from ..models.load import Checkpoint, load_model
from .engines.naive import naive_rows
from .engines.rows import Pending
from .engines.shared_prefix import SharedPrefixEngine, disagreement_with_naive
from .run import RowsOf

SELF_CHECK_VARIATION = {"float32": 1e-4, "bfloat16": 0.05, "float16": 0.02}


class Teacher(NamedTuple):
    """The engine that computes rows, its name, and the device it runs on, as build.json names it."""

    engine: str
    rows_of: RowsOf
    device: str


def open_teacher(
    options: Mapping[str, Any], checkpoint: Checkpoint, encoder: Encoder, first: Pending, device: str,
    announce: Callable[[str], None],
) -> Teacher:  # fmt: skip
    """Load the weights on a device and pick the engine; `first` is the example of the self-check."""
    model = load_model(
        checkpoint, dtype=options["dtype"], device=device, attention=options["attention"],
        trust_remote_code=options["trust_remote_code"],
    )  # fmt: skip
    engine, rows_of = _engine(options, model, first, encoder.pad_id, announce)
    return Teacher(engine, rows_of, torch.cuda.get_device_name() if device.startswith("cuda") else "cpu")


def _engine(
    options: Mapping[str, Any], model: Any, first: Pending, pad_id: int, announce: Callable[[str], None]
) -> tuple[str, RowsOf]:
    """Return the engine asked for, or the oracle where the shared prefix does not hold for this model."""

    def oracle(pending: Any) -> Any:
        return naive_rows(model, pending, pad_id)

    if options["engine"] == "naive":
        return "naive", oracle
    shared = SharedPrefixEngine(model, token_budget=options["token_budget"])
    try:
        variation = disagreement_with_naive(shared, model, first, pad_id)
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        announce(
            f"precompute: WARNING: the shared-prefix engine cannot run this model ({error}); "
            "using naive, which is slower."
        )
        return "naive", oracle
    if variation > SELF_CHECK_VARIATION[options["dtype"]]:
        announce(
            f"precompute: WARNING: shared-prefix rows differ from naive ones by total variation {variation:.2g}; "
            "this model breaks the engine's assumption. Using naive, which is slower."
        )
        return "naive", oracle
    return "shared-prefix", shared.rows
