"""Artefact directories: what every stage leaves on disk, and how anyone knows it is whole.

A directory holds `config.json` (the resolved options), `provenance.json` (what made it) and a payload; it is complete
only when the marker `COMPLETE`, written last and fsynced, exists. In a checkpoint `config.json` is transformers' own,
so its options are in `viker_config.json`. A stage asks `decide` before it loads anything heavy:
the answer is to run, to skip, or an error that names every differing option. An unfinished directory is started again.
"""

import json
import os
import platform
import resource
import shlex
import shutil
import sys
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from .example import DataError

MARKER = "COMPLETE"
CONFIG = "config.json"
CHECKPOINT_CONFIG = "viker_config.json"
_LIBRARIES = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "tokenizers",
    "numpy",
    "pyarrow",
    "zarr",
    "numcodecs",
    "pillow",
)


def cache_home() -> Path:
    """Return the folder of all teacher caches: $VIKER_CACHE_DIR, else ~/.cache/viker/caches."""
    return Path(os.environ.get("VIKER_CACHE_DIR") or "~/.cache/viker/caches").expanduser()


class ArtefactMismatch(DataError):
    """A complete directory was made with other options than those asked for."""


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file durably: a temporary name, fsync, then an atomic rename."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as stream:
        json.dump(value, stream, indent=2, sort_keys=True, ensure_ascii=False)
        stream.write("\n")
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object, or say which file is not one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: expected a JSON file, found none ({error.strerror}).") from error
    except ValueError as error:
        raise DataError(
            f"{path}: expected JSON, found something else ({error}). Remove it and make it again."
        ) from error
    if not isinstance(value, dict):
        raise DataError(f"{path}: expected a JSON object, found {type(value).__name__}.")
    return value


def is_complete(directory: Path) -> bool:
    """Tell whether a stage finished writing this directory."""
    return (directory / MARKER).is_file()


def read_config(directory: Path) -> dict[str, Any]:
    """Return the options an artefact was made with."""
    own = directory / CHECKPOINT_CONFIG
    return read_json(own if own.is_file() else directory / CONFIG)


def differences(found: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """Return one line for every option that differs, with both values."""
    names = sorted(set(found) | set(asked))
    return [
        f"  {name:28} there {found.get(name)!r}   asked {asked.get(name)!r}"
        for name in names
        if found.get(name) != asked.get(name)
    ]


def decide(directory: Path, config: Mapping[str, Any], *, overwrite: bool, what: str) -> Literal["run", "skip"]:
    """Return whether a stage has to run; raise `ArtefactMismatch` where a complete directory holds something else."""
    if overwrite or not is_complete(directory):
        return "run"
    lines = differences(_flat(read_config(directory)), _flat(json.loads(json.dumps(config))))
    if not lines:
        return "skip"
    raise ArtefactMismatch(
        f"{directory}: a complete {what} made with other options is there.\n" + "\n".join(lines) +
        "\nUse another run name (--run NAME) to keep both, or --overwrite to replace it."
    )  # fmt: skip


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config with its options beside the rest, so that a difference names the option."""
    flat = {name: value for name, value in config.items() if name not in ("options", "inputs")}
    inputs = {f"inputs: {name}": value for name, value in config.get("inputs", {}).items()}
    return {**flat, **config.get("options", {}), **inputs}


def begin(directory: Path, config: Mapping[str, Any], *, config_name: str = CONFIG) -> None:
    """Start an artefact afresh: whatever an interrupted or replaced stage left there is removed."""
    if directory.exists() and any(directory.iterdir()) and not is_ours(directory):
        raise DataError(
            f"{directory}: expected an empty or new directory, found files that no viker stage wrote. Name another."
        )
    if directory.exists():
        shutil.rmtree(directory)
    directory.mkdir(parents=True)
    write_json(directory / config_name, dict(config))


def resumable(directory: Path, config: Mapping[str, Any]) -> bool:
    """Tell whether an interrupted stage with these very options left something in a directory to go on from."""
    if is_complete(directory) or not is_stage_config(directory / CONFIG):
        return False
    return not differences(_flat(read_config(directory)), _flat(json.loads(json.dumps(config))))


def is_ours(directory: Path) -> bool:
    """Tell whether a stage made a directory, finished or not."""
    return (directory / CHECKPOINT_CONFIG).is_file() or is_stage_config(directory / CONFIG)


def is_stage_config(path: Path) -> bool:
    """Tell whether a stage of ours wrote a config.json; any model folder has one too, so its schema must be ours."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and str(config.get("schema", "")).startswith("viker/")


def finish(directory: Path, provenance: Mapping[str, Any], *, started: float, device: str = "cpu") -> None:
    """Write what made the artefact, then the marker; `started` is `time.time()` at the beginning of the work."""
    facts = {
        "schema": "viker/provenance/1",
        "command": shlex.join(["viker", *sys.argv[1:]]),
        "code_version": _code_version(),
        "libraries": library_versions(),
        "python": platform.python_version(),
        "device": device,
        "wall_seconds": round(time.time() - started, 2),
        "peak_resident_bytes": peak_resident_bytes(),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **provenance,
    }
    write_json(directory / "provenance.json", facts)
    with (directory / MARKER).open("w") as stream:
        stream.write("complete\n")
        stream.flush()
        os.fsync(stream.fileno())
    descriptor = os.open(directory, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def peak_resident_bytes() -> int:
    """Return this process's peak resident memory so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def library_versions() -> dict[str, str]:
    """Return the installed version of each library that can change a number."""
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def _code_version() -> str:
    try:
        return version("viker")
    except PackageNotFoundError:
        return "uninstalled"
