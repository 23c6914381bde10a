"""The vLLM variant of `viker bench precompute`, where vLLM is installed: the embedded benchmark's pairs.

vLLM binds this process's threads to cores when it starts, which slows and speeds others, so its rounds come after
theirs. Starting it is not part of its time, as loading weights is not of the others'. Shapes with seeded ids have no
pictures and no processor, which vLLM needs, so they have no such variant.
"""

from pathlib import Path

from ..data.example import DataError
from ..models.encode import Encoder
from ..models.load import resolve
from ..models.vllm_start import require_vllm
from ..precompute.engines.rows import Pending, RowsOf
from ..precompute.open_vllm import open_vllm
from .precompute import TOP_K


def vllm_rows(model: Path, encoder: Encoder, first: Pending, *, dtype: str) -> RowsOf | None:
    """Return the rows of a started vLLM over a model directory; None where it is not installed."""
    try:
        require_vllm()
    except DataError:
        return None
    options = {
        "dtype": dtype, "trust_remote_code": False, "vllm_option": (), "vllm_listed": None, "top_k": TOP_K,
        "store_logprobs": "float16",
    }  # fmt: skip
    return open_vllm(options, resolve(str(model)), encoder, first, lambda _: None)[1]
