"""What build.json remembers of how a cache was asked for, as options: so that a later command need not be told again.

A recorded path is what somebody typed on some machine: a default, said aloud when it is used, and never part of what a
cache means. Whom somebody wants forgotten is not recorded: a forget split by name has to be named again.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ..data.example import DataError

# Options that are found together: naming the first means that the others are not the recorded ones either.
_TOGETHER = (("data", "data_revision"), ("model", "revision", "processor"), ("pool",))


def recorded_defaults(options: Mapping[str, Any], build: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return options with data, model and pool from a build.json where they are not named, and what was taken."""
    filled, taken = dict(options), []
    for names in _TOGETHER:
        if options.get(names[0]) is not None:
            continue
        for name in names:
            if build.get(name) is not None and options.get(name) is None:
                filled[name] = build[name]
                taken.append(f"--{name.replace('_', '-')} {build[name]}")
    return filled, taken


def with_recorded(options: Mapping[str, Any], build: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return `recorded_defaults`, for a command that cannot do without data and model.

    Raises:
        DataError: neither the options nor build.json name them.
    """
    filled, taken = recorded_defaults(options, build)
    for name in ("data", "model"):
        if filled.get(name) is None:
            raise DataError(f"expected --{name}, found none, and the cache's build.json records none. Name it.")
    return filled, taken


def asked_of(build: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the splits and ratios that a cache was made and extended for, oldest first."""
    first = {"split": build.get("split") or "all", "ratio": build.get("ratio")}
    return [dict(asked) for asked in build.get("asked") or [first]]


def asked_again(build: Mapping[str, Any], split: str, ratio: str | None) -> dict[str, Any]:
    """Return the fields of build.json for a cache that is extended by a split: what was asked for, and its summary."""
    asked = asked_of(build)
    new = {"split": split, "ratio": ratio}
    asked = asked if new in asked else [*asked, new]
    return {"asked": asked, "split": _joined([one["split"] for one in asked])}


def _joined(names: Sequence[str]) -> str:
    return "+".join(dict.fromkeys(names))
