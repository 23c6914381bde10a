"""Which weights a record speaks of: the adapter, and the merged model that was made of it, each by digest.

Two digests of the same bytes are kept. That of the tensors (names, types, shapes, bytes) does not depend on how files
are cut, and is the one that provenance of training and exports holds, so it joins a merged model to the adapter and the
adapter to the model it unlearned from. That of each file is what `sha256sum` prints, for whoever has no viker. Both
come from one pass over the bytes, without torch: an auditor's machine need not be able to run the model.

A merged model is believed to be this adapter's where its provenance is this very adapter's, where adapter and base
have the digests it was merged from, and where its files are still what was exported. Anything else is an error.
"""

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ...data.artefact import CHECKPOINT_CONFIG, ArtefactMismatch, is_complete, read_config, read_json
from ...data.example import DataError, canonical_json
from ..report.run import Stage

REVERSIBLE = "reversible: adapter only: the base still knows"
MERGED = "merged: the adapter cannot be taken off"
EXPORT_SCHEMA = "viker/export/1"
_PATTERN = "*.safetensors"
_MAX_HEADER = 100_000_000  # safetensors' own limit
_CHUNK = 2**20
_SCALE = ("r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern")
_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2", "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8",
    "U16": "uint16", "U32": "uint32", "U64": "uint64", "BOOL": "bool",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Weights:
    """The weights of a directory: the digest of their tensors, and each file's name, size and sha256."""

    tensors: str
    files: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, slots=True)
class _Tensor:
    name: str
    kind: str
    begin: int
    end: int


def read_weights(directory: Path) -> Weights:
    """Digest every tensor and every file of a directory's safetensors, as `models/identity.py` digests them.

    Raises:
        DataError: there are none, or a file is damaged.
    """
    paths = sorted(directory.glob(_PATTERN))
    if not paths:
        raise DataError(f"{directory}: expected weights in safetensors files, found none. Name another directory.")
    entries: list[list[str]] = []
    files = []
    for path in paths:
        found, sha256 = _digest_file(path)
        entries += found
        files.append({"name": path.name, "bytes": path.stat().st_size, "sha256": sha256})
    return Weights(hashlib.sha256(canonical_json(sorted(entries))).hexdigest(), tuple(files))


def combined_digest(base: str, adapter: Path, tensors: str) -> str:
    """Return the digest of an adapter on its base, as provenance of exports names it (`models/identity.py`)."""
    settings = read_json(adapter / "adapter_config.json")
    scale = {name: settings.get(name) for name in _SCALE}
    content = {"base": base, "adapter": tensors, "scale": canonical_json(_strings(scale)).decode()}
    return hashlib.sha256(canonical_json(content)).hexdigest()


def find_merged(run: Path, adapter: Stage) -> Path | None:
    """Return the merged export of an adapter that lies in its run, None where there is none.

    Raises:
        DataError: there are several.
    """
    configs = [*run.glob(f"*/{CHECKPOINT_CONFIG}"), *run.glob(f"*/*/{CHECKPOINT_CONFIG}")]
    found = sorted(
        path.parent for path in configs if is_complete(path.parent) and _is_merged_from(path.parent, adapter)
    )
    if len(found) > 1:
        raise DataError(
            f"{run}: expected one merged export of {adapter.path.name}, found {', '.join(map(str, found))}. Name one "
            "with --merged."
        )
    return found[0] if found else None


def describe_merged(directory: Path, adapter: Stage, adapter_weights: Weights) -> dict[str, Any]:
    """Return what a record says of a merged model, after checking that it is this adapter's on this base.

    Raises:
        DataError: the directory is no finished merged export, or its files are damaged.
        ArtefactMismatch: it was merged from another adapter or base, or changed since.
    """
    if not is_complete(directory) or read_config(directory).get("schema") != EXPORT_SCHEMA:
        raise DataError(
            f"--merged {directory}: expected a finished export of `viker adapter export --merge`, found none. Make it."
        )
    options, provenance = read_config(directory)["options"], read_json(directory / "provenance.json")
    if not options["merge"]:
        raise DataError(
            f"--merged {directory}: expected a merged model, found an exported adapter, which can be taken off. Export "
            "with --merge, or leave --merged out."
        )
    if not _is_merged_from(directory, adapter):
        made = provenance.get("adapter", {}).get("provenance", {})
        raise ArtefactMismatch(
            f"--merged {directory}: expected the adapter {adapter.path.name} of {adapter.provenance.get('finished')}, "
            f"found one merged from {Path(str(options['adapter'])).name} of {made.get('finished')}. Export this one."
        )
    base = str(adapter.provenance.get("student_weights"))
    expected = combined_digest(base, adapter.path, adapter_weights.tensors)
    if provenance.get("unmerged_weights") != expected:
        raise ArtefactMismatch(
            f"--merged {directory}: expected adapter and base of digest {expected[:16]} (base {base[:16]}), found one "
            f"merged from {str(provenance.get('unmerged_weights'))[:16]}. Export the adapter again."
        )
    weights = read_weights(directory)
    if weights.tensors != provenance.get("weights"):
        raise ArtefactMismatch(
            f"--merged {directory}: expected the weights that were exported ({str(provenance.get('weights'))[:16]}), "
            f"found others ({weights.tensors[:16]}). Export the adapter again."
        )
    return {
        "weights": weights.tensors, "dtype": options["dtype"], "exported": provenance.get("finished"),
        "merged_from": expected, "files": list(weights.files),
    }  # fmt: skip


def _is_merged_from(directory: Path, adapter: Stage) -> bool:
    """Tell whether an export says that it was merged from this very adapter."""
    config = read_config(directory)
    if config.get("schema") != EXPORT_SCHEMA or not config["options"]["merge"]:
        return False
    known = read_json(directory / "provenance.json").get("adapter", {})
    return bool(known == {"config": adapter.config, "provenance": adapter.provenance})


def _digest_file(path: Path) -> tuple[list[list[str]], str]:
    """Return (name, type and shape, sha256) of each tensor of a file, and the sha256 of the file."""
    whole = hashlib.sha256()
    with path.open("rb") as stream:
        tensors = _read_header(path, stream, whole)
        entries = []
        for tensor in tensors:
            digest = hashlib.sha256()
            for chunk in _chunks(stream, tensor.end - tensor.begin):
                digest.update(chunk)
                whole.update(chunk)
            entries.append([tensor.name, tensor.kind, digest.hexdigest()])
    return entries, whole.hexdigest()


def _read_header(path: Path, stream: BinaryIO, whole: Any) -> Sequence[_Tensor]:
    """Return a file's tensors in the order of their bytes, which must follow each other to the file's end."""
    size = path.stat().st_size
    length = stream.read(8)
    number = struct.unpack("<Q", length)[0] if len(length) == 8 else size
    if number > min(_MAX_HEADER, size - 8):
        raise _damaged(path, f"a header of {number} bytes in a file of {size}")
    text = stream.read(number)
    whole.update(length + text)
    try:
        named = {name: about for name, about in json.loads(text).items() if name != "__metadata__"}
        tensors = [
            _Tensor(name, f"torch.{_DTYPES[about['dtype']]}{list(map(int, about['shape']))}", *about["data_offsets"])
            for name, about in named.items()
        ]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(path, f"another header ({error!r})") from error
    tensors.sort(key=lambda tensor: (tensor.begin, tensor.end))
    ends = [0, *(tensor.end for tensor in tensors)]
    if [tensor.begin for tensor in tensors] != ends[:-1] or ends[-1] != size - 8 - number:
        raise _damaged(path, "tensors that do not fill it")
    return tensors


def _chunks(stream: BinaryIO, length: int) -> Iterator[bytes]:
    while length > 0 and (chunk := stream.read(min(_CHUNK, length))):
        length -= len(chunk)
        yield chunk


def _damaged(path: Path, found: str) -> DataError:
    return DataError(f"{path}: expected a safetensors file, found {found}. Restore it, or make it again.")


def _strings(value: Any) -> Any:
    """Replace floats by strings, as `models/identity.py` does before it digests settings."""
    if isinstance(value, dict):
        return {str(name): _strings(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_strings(item) for item in value]
    return value if isinstance(value, str | int | bool | None) else repr(value)
