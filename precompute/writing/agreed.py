"""What the makers of a cache agree on while they make it: small values beside the blocks, the first maker's for all.

The staging folder says by its plan what is computed; these files say how, where that is not the same for every maker by
itself: the token budget of a batch, the threads of a CPU. Finding a value may take a while (a budget is tried out), so
whoever does holds a claim, and the others wait. A file is there whole or not at all, like a block, and goes with the
folder when the cache is sealed. What the values mean is their makers' (`token_budget.py`, `same_bytes.py`).
"""

import time
from collections.abc import Callable
from pathlib import Path

from ...data.example import canonical_json
from ..cache import CacheError
from ..reading.untrusted import json_value
from .blocks import disk_trouble, write_durably
from .claims import CLAIM_SECONDS, renewing, take_claim
from .store import POLL_SECONDS, CacheBuilder

Value = dict[str, int]

_SCHEMA = "viker/agreed/1"
_MOST_BYTES = 1 << 12


def agree(builder: CacheBuilder, name: str, choose: Callable[[], Value], timeout_s: float = CLAIM_SECONDS) -> Value:
    """Return the value that a maker of this cache has stored; where there is none, choose one and store it.

    Args:
        builder: the cache in the making.
        name: what is agreed on.
        choose: finds the value, under a claim that is renewed meanwhile.
        timeout_s: how long a claim that is not renewed is believed.

    Raises:
        CacheError: what is stored is no such value.
        StorageError: the disk is full or failing.
    """
    path, claim = _path(builder, name), builder.staging / f"{name}.claim"
    with disk_trouble(builder.home, _MOST_BYTES):
        while not builder.sealed:
            if path.exists():
                return _read(path)
            try:
                if not take_claim(claim, timeout_s):
                    time.sleep(POLL_SECONDS)
                    continue
                with renewing(claim, timeout_s):
                    if not path.exists():
                        write_durably(path, canonical_json({"schema": _SCHEMA, "value": choose()}))
            except FileNotFoundError:  # another process sealed, and removed the folder
                if not builder.sealed:
                    raise
    return choose()


def change(builder: CacheBuilder, name: str, value: Value) -> None:
    """Store another value, for makers that have not read the old one yet.

    Raises:
        StorageError: the disk is full or failing.
    """
    with disk_trouble(builder.home, _MOST_BYTES):
        try:
            write_durably(_path(builder, name), canonical_json({"schema": _SCHEMA, "value": value}))
        except FileNotFoundError:
            if not builder.sealed:
                raise


def _path(builder: CacheBuilder, name: str) -> Path:
    return builder.staging / f"{name}.json"


def _read(path: Path) -> Value:
    with path.open("rb") as file:
        content = file.read(_MOST_BYTES)
    found = json_value(path, content)
    value = found.get("value") if isinstance(found, dict) and found.get("schema") == _SCHEMA else None
    if not isinstance(value, dict) or not all(type(number) is int for number in value.values()):
        raise CacheError(f"{path}: expected what the makers of a cache agreed on, found something else. Remove it.")
    return value
