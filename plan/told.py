"""A plan in words: what will be run, what it takes, what it leaves, and what the time is made of."""

from collections.abc import Mapping
from typing import Any

from ..precompute.local import PRIVACY

_UNITS = ("", "k", "M", "G", "T", "P", "E")


def as_text(plan: Mapping[str, Any]) -> str:
    """Return a plan for people to read."""
    lines = [*_work(plan), *_sizes(plan), *_time(plan), f"  {PRIVACY}"]
    return "\n".join(lines)


def _work(plan: Mapping[str, Any]) -> list[str]:
    suffix = plan["suffix_tokens"]
    return [
        f"plan: precompute {plan['key'][:16]}: {plan['examples']} examples, {plan['distinct_examples']} distinct, "
        f"{plan['images']} images",
        f"  {plan['pairs']} pairs of an example and what it is shown, {plan['rows']} rows (answer tokens), "
        f"{plan['blocks']} blocks",
        f"  {plan['prefixes']} prefixes of together {plan['prefix_tokens']} tokens; behind them {suffix['beginnings']} "
        f"tokens run instead of {suffix['nothing']}",
        f"  a shared-question trie saves {suffix['trie_saves']:.2f}x of the {suffix['questions']} suffix tokens that "
        f"sharing whole questions leaves; over all blocks it would run {suffix['beginnings_of_all']}",
    ]


def _sizes(plan: Mapping[str, Any]) -> list[str]:
    size, operations, memory = plan["bytes"], plan["operations"], plan["memory"]
    origin = "compressed as in the probe" if size["measured"] else "as rows of trained models are compressed"
    peak = f"{scaled(memory['total'])}B of memory: weights {scaled(memory['weights'])}B, prefixes " + (
        f"{scaled(memory['prefixes'])}B, averages {scaled(memory['averages'])}B, logits {scaled(memory['logits'])}B, "
        f"activations {scaled(memory['activations'])}B"
    )
    beside = (
        "; Python and its libraries are not counted"
        if memory["libraries"] is None
        else (f", libraries {scaled(memory['libraries'])}B; the probe reached {scaled(memory['probe_peak'])}B")
    )
    return [
        f"  {scaled(size['expected'])}B of cache {origin}, at most {scaled(size['raw'])}B",
        f"  {scaled(operations['total'])}FLOP: vision {scaled(operations['vision'])}, prefixes "
        f"{scaled(operations['prefix'])}, suffixes {scaled(operations['suffix'])}, output layer "
        f"{scaled(operations['head'])}",
        f"  {peak}{beside}",
    ]


def _time(plan: Mapping[str, Any]) -> list[str]:
    seconds, probe = plan["seconds"], plan["probe"]
    if plan["found"] is not None:
        return [f"  rows are there ({plan['found']}): nothing will be computed"]
    if seconds is None:
        return ["  time: not measured (--count-only)"]
    parts = ", ".join(f"{name} {_duration(value)}" for name, value in seconds.items() if name != "total")
    return [
        f"  {_duration(seconds['total'])} expected: {parts} (reading and staging go on beside computing)",
        f"  measured on {probe['pairs']} of {plan['pairs']} pairs: {probe['engine']} on {probe['device']}, "
        f"{scaled(probe['gflops'] * 1e9)}FLOP/s behind prefixes",
    ]


def scaled(value: float) -> str:
    """Return a number with three digits and a decimal prefix."""
    power = 0
    while value >= 1000 and power < len(_UNITS) - 1:
        value, power = value / 1000, power + 1
    return f"{value:.3g} {_UNITS[power]}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
