"""`viker doctor`: say what this machine can run, and what is missing.

Versions and extras are read from package metadata and import specs, so nothing is imported to be counted; torch alone
is loaded, because only it knows whether it can reach an accelerator. Missing libraries are an error with the command
that installs them; missing extras and little memory are only told.
"""

import importlib.util
import json
import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

import click

from .data.artefact import cache_home, library_versions

SCHEMA = "viker/doctor/1"
EXTRAS = {
    "vllm": ("vllm",),
    "distributed": ("ray",),
    "remote": ("fsspec", "s3fs"),
    "report": ("jinja2", "matplotlib"),
    "dev": ("pytest", "hypothesis", "pandas", "sklearn", "ruff", "mypy"),
}
_EXIT_MISSING = 1
_YES = frozenset({"1", "on", "yes", "true"})


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(as_json: bool) -> None:
    """Say what this machine can run, and what is missing."""
    found = examine()
    click.echo(json.dumps(found, indent=2, sort_keys=True) if as_json else _as_text(found))
    if found["missing"]:
        sys.exit(_EXIT_MISSING)


def examine() -> dict[str, Any]:
    """Return what is installed, what computes, and how much memory and disk is free."""
    libraries = library_versions()
    home = cache_home()
    return {
        "schema": SCHEMA,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "libraries": libraries,
        "missing": sorted(name for name, version in libraries.items() if version == "absent"),
        "device": _device() if libraries["torch"] != "absent" else None,
        "free_memory_bytes": _free_memory(),
        "disk": {name: _free_disk(path) for name, path in (("runs", Path("runs")), ("caches", home))},
        "extras": {extra: _absent(modules) for extra, modules in EXTRAS.items()},
        "hub_offline": any(
            os.environ.get(name, "").lower() in _YES for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
        ),
    }


def _device() -> str:
    """Return what models run on here; the only place that needs torch."""
    import torch

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        return f"cuda: {torch.cuda.get_device_name()}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free"
    return f"cpu: {torch.get_num_threads()} threads"


def _free_memory() -> int | None:
    """Return the memory that can be had without swapping, where the system tells."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    values = dict(line.split(":", 1) for line in lines)
    return int(values["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in values else None


def _free_disk(path: Path) -> dict[str, Any]:
    """Return the free space where a folder is, or will be made."""
    there = path.absolute()
    while not there.exists():
        there = there.parent
    return {"path": str(path.absolute()), "free_bytes": shutil.disk_usage(there).free}


def _absent(modules: tuple[str, ...]) -> list[str]:
    return [module for module in modules if importlib.util.find_spec(module) is None]


def _as_text(found: dict[str, Any]) -> str:
    memory = found["free_memory_bytes"]
    lines = [
        f"python     {found['python']} on {found['platform']}, {found['cpus']} CPUs",
        f"device     {found['device'] or 'unknown: torch is not installed'}",
        f"memory     {'unknown' if memory is None else f'{memory / 1e9:.1f} GB free'}",
        *(
            f"{name:10} {disk['free_bytes'] / 1e9:.1f} GB free at {disk['path']}"
            for name, disk in found["disk"].items()
        ),
        f"hub        {'offline (only what is already downloaded)' if found['hub_offline'] else 'online'}",
        f"libraries  {', '.join(f'{name} {version}' for name, version in found['libraries'].items())}",
    ]
    for extra, absent in found["extras"].items():
        told = f"missing {', '.join(absent)}: pip install 'viker[{extra}]'" if absent else "installed"
        lines.append(f"extra      {extra}: {told}")
    if found["missing"]:
        lines.append(f"Missing: {', '.join(found['missing'])}. Install them with `pip install viker`.")
    return "\n".join(lines)
