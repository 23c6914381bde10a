"""Content digests of a model: what a teacher cache is named by, wherever the files came from.

Weights are digested tensor by tensor in name order, so sharding and file names play no part; tokenizer and image
processor by their canonical settings. Repositories, revisions and paths never enter a digest.

14 GB take a while to digest, so digests of weight files are memoised by path, inode, size, time of modification and
time of change. Modification times alone are copied along with files (`cp -p`, `rsync -t`, archives), and models of one
architecture all have one size; nobody can set the time of change. Clocks tick, so a file may change twice in one tick:
files that changed less than two seconds ago are digested every time.
"""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..data.artefact import cache_home, write_json
from ..data.example import DataError, canonical_json
from .encode import Encoder
from .load import Checkpoint
from .quantize import quantization_of
from .tensor_files import open_tensors

_MEMO_LIMIT = 512
_IMAGE_LENGTHS = ("image_seq_len", "image_seq_length")  # tokens a tile, in the families that fix it
SETTLED_S = 2.0  # the coarsest tick of a file system's clock


def teacher_identity(checkpoint: Checkpoint, encoder: Encoder, *, quantization: str | None = None) -> dict[str, Any]:
    """Return the model's part of a fingerprint: weights, the bits they are loaded in, tokenizer, processor, rendering.

    Raises:
        DataError: there are no weights, or few bits are asked for of weights that are stored in few.
    """
    return {
        "weights": weights_digest(checkpoint),
        "quantization": quantization_of(checkpoint.weights, quantization),
        "tokenizer": tokenizer_digest(encoder.tokenizer),
        "processor": processor_digest(encoder.processor),
        "rendering": encoder.rendering.identity(),
    }


def weights_digest(checkpoint: Checkpoint) -> str:
    """Return the hex digest of a checkpoint's weights; an adapter's is combined with its base's."""
    base = _directory_digest(checkpoint.weights)
    if checkpoint.adapter is None:
        return base
    settings = json.loads((checkpoint.adapter / "adapter_config.json").read_text(encoding="utf-8"))
    scale = {
        name: settings.get(name)
        for name in ("r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern")
    }
    content = {
        "base": base,
        "adapter": _directory_digest(checkpoint.adapter),
        "scale": canonical_json(_strings(scale)).decode(),
    }
    return hashlib.sha256(canonical_json(content)).hexdigest()


def tokenizer_digest(tokenizer: Any) -> str:
    """Return the hex digest of what a tokenizer does: its backend without padding or truncation, and special tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = {"vocabulary": tokenizer.get_vocab()} if backend is None else json.loads(backend.to_str())
    for setting in ("padding", "truncation"):
        content.pop(setting, None)
    special = {name: str(value) for name, value in tokenizer.special_tokens_map.items()}
    return hashlib.sha256(canonical_json(_strings({"backend": content, "special": special}))).hexdigest()


def processor_digest(processor: Any) -> str:
    """Return the hex digest of an image processor's class (PIL and torchvision backends differ) and settings."""
    images = processor.image_processor
    settings = {
        name: value
        for name, value in images.to_dict().items()
        if not name.startswith("_") and name != "processor_class"
    }
    layout = {
        name: getattr(processor, name, None)
        for name in ("patch_size", "vision_feature_select_strategy", "num_additional_image_tokens")
    }
    lengths = {name: value for name in _IMAGE_LENGTHS if (value := getattr(processor, name, None)) is not None}
    content = {"class": type(images).__name__, "settings": settings, "layout": {**layout, **lengths}}
    return hashlib.sha256(canonical_json(_strings(content))).hexdigest()


def _strings(value: Any) -> Any:
    """Replace floats and unknown objects by strings, so that canonical JSON never depends on float formatting."""
    if isinstance(value, dict):
        return {str(name): _strings(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strings(item) for item in value]
    return value if isinstance(value, str | int | bool | None) else repr(value)


def _directory_digest(directory: Path) -> str:
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise DataError(
            f"{directory}: expected weights in safetensors files, found none. Save the model as safetensors."
        )
    stamp, settled = _stamp(files)
    memo_path = cache_home().parent / "weight_digests.json"
    memo = _read_memo(memo_path)
    if stamp in memo:
        return memo[stamp]
    digest = _digest_tensors(files)
    if settled:
        _write_memo(memo_path, {**memo, stamp: digest})
    return digest


def _stamp(files: list[Path]) -> tuple[str, bool]:
    """Return what changes whenever one of the files does, and whether their clocks have ticked since they changed."""
    now, found = time.time(), [(file.resolve(), file.stat()) for file in files]
    lines = [[str(path), at.st_ino, at.st_size, at.st_mtime_ns, at.st_ctime_ns] for path, at in found]
    newest = max(max(at.st_mtime, at.st_ctime) for _, at in found)
    return canonical_json(lines).decode(), now - newest > SETTLED_S


def _digest_tensors(files: list[Path]) -> str:
    entries = sorted(entry for file in files for entry in _tensor_digests(file))
    return hashlib.sha256(canonical_json([list(entry) for entry in entries])).hexdigest()


def _tensor_digests(file: Path) -> Iterator[tuple[str, str, str]]:
    """Yield (name, dtype and shape, digest of the bytes) of every tensor, one in memory at a time."""
    import torch

    with open_tensors(file) as tensors:
        for name in tensors.keys():  # noqa: SIM118 - no mapping
            tensor = tensors.get_tensor(name).contiguous()
            data = tensor.view(torch.uint8) if tensor.dim() else tensor.reshape(1).view(torch.uint8)
            yield name, f"{tensor.dtype}{list(tensor.shape)}", hashlib.sha256(data.numpy()).hexdigest()


def _read_memo(path: Path) -> dict[str, str]:
    try:
        memo = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # a memo is only a shortcut: a missing or torn one is made again
    return memo if isinstance(memo, dict) else {}


def _write_memo(path: Path, memo: dict[str, str]) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}")  # other processes write theirs
    with contextlib.suppress(OSError):  # only a shortcut: a folder that cannot be written costs time, no more
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(partial, dict(list(memo.items())[-_MEMO_LIMIT:]))
        partial.replace(path)
