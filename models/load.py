"""Load any vision-language model: a directory, a PEFT directory (base + adapter), or a hub id.

Weights are read from safetensors only, code from a repository never runs unless asked for by name, and what a hub id
resolved to (its commit) is kept for provenance. The Auto classes choose the model class; nothing here knows a family.
"""

import contextlib
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor
from transformers.utils import logging

from ..data.example import DataError, Example
from .encode import Encoded, Encoder, find_context_length
from .quantize import loading_settings
from .render import Rendering, choose_rendering
from .tensor_files import damaged

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_PATTERNS = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where a model is on disk: `weights` holds the base weights, `adapter` the LoRA weights on top, if any."""

    spec: str
    weights: Path
    processor: Path
    adapter: Path | None = None
    commit: str | None = None


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model ready to run, with its encoder and where both came from."""

    model: Any
    encoder: Encoder
    checkpoint: Checkpoint
    model_type: str

    @property
    def rendering(self) -> Rendering:
        """The rendering its encoder uses."""
        return self.encoder.rendering

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        device: torch.device = next(self.model.parameters()).device
        return device


def resolve(spec: str, *, revision: str | None = None, processor: str | None = None) -> Checkpoint:
    """Find a model on disk, fetching a hub id; `processor` names another place for tokenizer and image processor.

    Raises:
        DataError: there is no such directory or hub id, or an adapter names a base that cannot be found.
    """
    directory, commit = _directory_of(spec, revision)
    adapter_config = directory / "adapter_config.json"
    if not adapter_config.is_file():
        where = directory if processor is None else _directory_of(processor, None)[0]
        return Checkpoint(spec, directory, where, commit=commit)
    if not (directory / "adapter_model.safetensors").is_file():
        raise DataError(
            f"{directory}: expected adapter_model.safetensors beside adapter_config.json, found none. "
            "Save it as safetensors."
        )
    base = json.loads(adapter_config.read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not isinstance(base, str):
        raise DataError(
            f"{adapter_config}: expected base_model_name_or_path, found {base!r}. Name the base model there."
        )
    base_directory = _directory_of(_relative_base(directory, base), None)[0]
    has_processor = (directory / "tokenizer_config.json").is_file()
    where = directory if has_processor else base_directory
    where = where if processor is None else _directory_of(processor, None)[0]
    return Checkpoint(spec, base_directory, where, adapter=directory, commit=commit)


def load_model(
    checkpoint: Checkpoint,
    *,
    dtype: str = "float32",
    device: str = "cpu",
    attention: str = "sdpa",
    quantization: str | None = None,
    trust_remote_code: bool = False,
) -> Any:
    """Load a checkpoint's weights (base, then adapter on top), in evaluation mode.

    Raises:
        DataError: they cannot be loaded, or not in so few bits on this device.
    """
    few_bits = loading_settings(checkpoint.weights, quantization, dtype=DTYPES[dtype], device=device)
    model = _from_pretrained(
        checkpoint, dtype=DTYPES[dtype], attn_implementation=attention, trust_remote_code=trust_remote_code, **few_bits
    )
    if checkpoint.adapter is not None:
        model = _with_adapter(model, checkpoint.adapter)
    return model.eval() if few_bits else model.to(device).eval()


def load(
    checkpoint: Checkpoint,
    *,
    dtype: str = "float32",
    device: str = "cpu",
    attention: str = "sdpa",
    quantization: str | None = None,
    trust_remote_code: bool = False,
    chat_template: Path | None = None,
    system_prompt: str | None = None,
    score_end_token: bool | None = None,
) -> Loaded:
    """Load a model with the encoder that fits it."""
    encoder = load_encoder(
        checkpoint, trust_remote_code=trust_remote_code, chat_template=chat_template, system_prompt=system_prompt,
        score_end_token=score_end_token,
    )  # fmt: skip
    model = load_model(
        checkpoint, dtype=dtype, device=device, attention=attention, quantization=quantization,
        trust_remote_code=trust_remote_code,
    )  # fmt: skip
    return Loaded(model, encoder, checkpoint, model.config.model_type)


def load_encoder(
    checkpoint: Checkpoint,
    *,
    trust_remote_code: bool = False,
    chat_template: Path | None = None,
    system_prompt: str | None = None,
    score_end_token: bool | None = None,
) -> Encoder:
    """Load tokenizer, image processor and rendering without any weights.

    Raises:
        DataError: the directory holds no processor, no chat template where one is needed, or no image token.
    """
    try:
        config = AutoConfig.from_pretrained(checkpoint.weights, trust_remote_code=trust_remote_code)
        processor = _load_processor(checkpoint.processor, trust_remote_code)
    except (ImportError, RuntimeError) as error:
        raise DataError(
            f"{checkpoint.processor}: expected the packages that this model's processor is made of, found one missing "
            f"({' '.join(str(error).split())[:200]}). Install it; `pip install viker[families]` has what common "
            "families need."
        ) from error
    except (OSError, ValueError) as error:
        raise DataError(
            f"{checkpoint.processor}: expected a model with its processor, found none usable ({_first_line(error)})."
        ) from error
    if not hasattr(processor, "tokenizer"):
        raise DataError(
            f"{checkpoint.processor}: expected a processor with an image token (a multimodal model), found only "
            f"{type(processor).__name__}. Name a vision-language model, or its processor with --processor."
        )
    rendering = choose_rendering(
        checkpoint.adapter or checkpoint.processor, model_type=config.model_type,
        own_chat_template=getattr(processor, "chat_template", None), chat_template=chat_template,
        system_prompt=system_prompt, score_end_token=score_end_token,
    )  # fmt: skip
    return Encoder(
        processor, rendering, context_length=find_context_length(config),
        vocab_size=config.get_text_config().vocab_size, where=checkpoint.processor,
    )  # fmt: skip


def encode(example: Example, model: str | Encoder) -> Encoded:
    """Return an example in tokens, as a model reads it: prompt and answer ids, and its pictures.

    Args:
        example: the example.
        model: a directory or hub id, of which only tokenizer, image processor and rendering are read, or an encoder.
    """
    encoder = model if isinstance(model, Encoder) else _encoder_of(model)
    return encoder.encode(example)


@lru_cache(maxsize=4)
def _encoder_of(model: str) -> Encoder:
    return load_encoder(resolve(model))


def _load_processor(directory: Path, trust_remote_code: bool) -> Any:
    """Return a model's processor, with the image processor that computes in PIL wherever the family has one.

    Backends differ in pixels by more than rounding, and the one transformers prefers depends on what is installed.
    """
    processor = AutoProcessor.from_pretrained(directory, trust_remote_code=trust_remote_code)
    if hasattr(processor, "image_processor") and not type(processor.image_processor).__name__.endswith("Pil"):
        with contextlib.suppress(ImportError):
            processor.image_processor = AutoImageProcessor.from_pretrained(
                directory, trust_remote_code=trust_remote_code, backend="pil"
            )
    return processor


def pick_device(asked: str | None) -> str:
    """Return the device asked for, else CUDA where there is one, else the CPU."""
    if asked is not None:
        return asked
    return "cuda" if torch.cuda.is_available() else "cpu"


def _from_pretrained(checkpoint: Checkpoint, **settings: Any) -> Any:
    logging.disable_progress_bar()  # a stage shows one bar, its own
    try:
        return AutoModelForImageTextToText.from_pretrained(checkpoint.weights, use_safetensors=True, **settings)
    except SafetensorError as error:
        raise damaged(checkpoint.weights, error) from error
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        if not _is_about_weights(error):
            raise
        raise DataError(
            f"{checkpoint.spec}: expected a vision-language model that transformers can load from safetensors, found "
            f"none usable ({_first_line(error)})."
        ) from error


def _with_adapter(model: Any, adapter: Path) -> Any:
    from peft import PeftModel

    try:
        return PeftModel.from_pretrained(model, adapter)
    except SafetensorError as error:
        raise damaged(adapter, error) from error
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        if not _is_about_weights(error):
            raise
        raise DataError(
            f"{adapter}: expected a LoRA adapter that fits its base model, found one that cannot be put on it "
            f"({' '.join(str(error).split())[:200]}). Name the base it was trained on, or train it again."
        ) from error


def _is_about_weights(error: Exception) -> bool:
    """Tell whether weights are at fault; of torch's own errors (memory, mostly) only those about shapes are."""
    return not isinstance(error, RuntimeError) or "mismatch" in str(error)


def _directory_of(spec: str, revision: str | None) -> tuple[Path, str | None]:
    path = Path(spec).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file() and not (path / "adapter_config.json").is_file():
            raise DataError(
                f"{spec}: expected a model directory with config.json, found none. Finish the stage that makes it."
            )
        return path, None
    if spec.count("/") != 1 or spec.startswith((".", "/", "~")):
        raise DataError(f"{spec}: expected a model directory or a hub id (org/name), found neither. Check the path.")
    try:
        snapshot = Path(snapshot_download(spec, revision=revision, allow_patterns=_PATTERNS))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        raise DataError(
            f"{spec}: expected a hub model or a local directory, found neither ({_first_line(error)}). Check the id, "
            "the network, HF_HUB_OFFLINE, and your access to a gated repository."
        ) from error
    return snapshot, snapshot.name


def _relative_base(adapter: Path, base: str) -> str:
    """Return an adapter's base: as it is where it exists, else seen from the adapter, so that a run can be moved."""
    if Path(base).is_dir():
        return base
    beside = adapter / base
    return str(beside) if beside.is_dir() else base


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0][:200]
