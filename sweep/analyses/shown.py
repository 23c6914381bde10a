"""How the pages of analyses show numbers: what does not exist is a dash, and no digits that mean nothing."""

from collections.abc import Sequence


def number(value: float | None, digits: int) -> str:
    """Return a number with so many decimals."""
    return "-" if value is None else f"{value:.{digits}f}"


def percent(value: float | None) -> str:
    """Return a share in percent."""
    return "-" if value is None else f"{100 * value:.1f} %"


def bounds(ci: Sequence[float] | None, digits: int = 4) -> str:
    """Return the two ends of an interval."""
    return "-" if ci is None else f"{ci[0]:.{digits}f} to {ci[1]:.{digits}f}"


def interval(ci: Sequence[float] | None, clusters: int, needed: int, digits: int = 4) -> str:
    """Return an interval over people in brackets, or why there is none."""
    if ci is not None:
        return f"(95 % interval {bounds(ci, digits)}, resampling people)"
    if clusters < needed:
        return f"(no interval: {clusters} people are fewer than {needed})"
    return "(no interval)"


def plural(count: int, word: str) -> str:
    """Return a count with its word, in the plural where it is not one."""
    return f"{count} {word}" if count == 1 else f"{count} {word}s"
