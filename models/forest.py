"""Suffixes behind their prefixes as one run of tokens, in which suffixes of one prefix that begin alike share tokens.

People are asked alike and answered alike: behind one image the same questions return, and answers part only at the word
that somebody should forget. What a token sees decides its state, so equal beginnings have equal states, and a trie of
the suffixes of each prefix is as exact as running them one by one. How tokens find what they see is `two_part.py`'s.
"""

# T tokens of all tries

from collections.abc import Sequence
from typing import NamedTuple


class Forest(NamedTuple):
    """A trie for each prefix, end to end; tokens are numbered as suffixes bring them.

    `tokens` and `depths` [T]: the id of each token, and how many tokens of its suffix come before it. `bounds`: the
    (start, stop) of each trie. `paths`: for each suffix, in the order given, the place of each of its tokens.
    """

    tokens: list[int]
    depths: list[int]
    bounds: list[tuple[int, int]]
    paths: list[list[int]]


def plant(groups: Sequence[Sequence[tuple[int, ...]]]) -> Forest:
    """Merge suffixes into tries, group by group; those of a group are sorted, and every one has at least one token."""
    forest = Forest([], [], [], [])
    for suffixes in groups:
        start = len(forest.tokens)
        before = suffixes[0][:0]
        path: list[int] = []
        for suffix in suffixes:
            assert not suffix < before, "sorted: what begins alike lies side by side"
            shared, first = num_shared(before, suffix), len(forest.tokens)
            forest.tokens.extend(suffix[shared:])
            forest.depths.extend(range(shared, len(suffix)))
            path = [*path[:shared], *range(first, len(forest.tokens))]
            forest.paths.append(path)
            before = suffix
        forest.bounds.append((start, len(forest.tokens)))
    return forest


def num_shared(before: Sequence[int], suffix: Sequence[int]) -> int:
    """Return with how many tokens two suffixes begin alike."""
    for index, (one, other) in enumerate(zip(before, suffix, strict=False)):
        if one != other:
            return index
    return min(len(before), len(suffix))
