"""Lay a checkpoint out as vLLM reads it: one directory with weights, configuration and processor.

Most checkpoints are that already and are used where they are. Otherwise a temporary directory links to the files and
holds what has to differ: an adapter merged into its base (vLLM would skip LoRA weights on the vision tower), a
processor from another place, and names of weights. Names differ for CLIP and SigLIP towers: transformers 5 writes
`vision_tower.embeddings`, vLLM reads `vision_tower.vision_model.embeddings`. Values never change, so the fingerprint,
made from the checkpoint itself, stays true.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path

from safetensors.torch import save_file

from .load import Checkpoint, load_model
from .tensor_files import open_tensors

_NESTED_TOWERS = ("clip_vision_model", "siglip_vision_model")
_FLAT_TOWER = re.compile(r"^((?:model\.)?vision_tower\.)(?!vision_model\.)")
_INDEX = "model.safetensors.index.json"
_OF_THE_WEIGHTS = ("config.json", "generation_config.json", _INDEX)
_OF_AN_ADAPTER = "adapter_config.json"  # whose weights are merged, or asked for beside


def lay_out(checkpoint: Checkpoint, scratch: Path, *, dtype: str, trust_remote_code: bool) -> Path:
    """Return a directory that vLLM can load, `scratch` (empty) where the checkpoint's own is not."""
    weights = checkpoint.weights
    if checkpoint.adapter is not None:
        weights = scratch / "merged"
        merged = load_model(checkpoint, dtype=dtype, trust_remote_code=trust_remote_code).merge_and_unload()
        merged.save_pretrained(weights)
    shards = sorted(weights.glob("*.safetensors"))
    renamed = {shard: names for shard in shards if (names := new_names(weights, _names(shard)))}
    if not renamed and checkpoint.adapter is None and checkpoint.processor == weights:
        return weights
    target = scratch / "model"
    target.mkdir()
    changed = {*renamed, weights / _INDEX} if renamed else set()
    for path in weights.iterdir():
        if path not in changed and (path.name in _OF_THE_WEIGHTS or path.suffix == ".safetensors"):
            _link(target, path)
    for path in checkpoint.processor.iterdir():
        is_weights = path.suffix == ".safetensors" or path.name in (*_OF_THE_WEIGHTS, _OF_AN_ADAPTER)
        if path.is_file() and not is_weights:
            _link(target, path)
    for shard, names in renamed.items():
        _write_renamed(shard, target / shard.name, names)
    if renamed and (weights / _INDEX).is_file():
        _write_index(weights, target, renamed.values())
    return target


def new_names(weights: Path, names: Iterable[str]) -> dict[str, str]:
    """Return the names of tensors that vLLM knows by others, with these."""
    config = json.loads((weights / "config.json").read_text(encoding="utf-8"))
    if (config.get("vision_config") or {}).get("model_type") not in _NESTED_TOWERS:
        return {}
    return {name: _FLAT_TOWER.sub(r"\1vision_model.", name) for name in names if _FLAT_TOWER.match(name)}


def _names(shard: Path) -> list[str]:
    with open_tensors(shard) as tensors:
        return list(tensors.keys())


def _link(target: Path, path: Path) -> None:
    (target / path.name).symlink_to(path.resolve())


def _write_renamed(shard: Path, target: Path, names: dict[str, str]) -> None:
    with open_tensors(shard) as tensors:
        content = {names.get(name, name): tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118 - no mapping
    save_file(content, target, metadata={"format": "pt"})


def _write_index(weights: Path, target: Path, renamed: Iterable[dict[str, str]]) -> None:
    names = {old: new for shard in renamed for old, new in shard.items()}
    index = json.loads((weights / _INDEX).read_text(encoding="utf-8"))
    index["weight_map"] = {names.get(name, name): shard for name, shard in index["weight_map"].items()}
    (target / _INDEX).write_text(json.dumps(index), encoding="utf-8")
