"""Suffixes behind their prefixes as one run of tokens, in which suffixes of one prefix that begin alike share tokens.

People are asked alike and answered alike: behind one image the same questions return, and answers part only at the word
that somebody should forget. What a token sees decides its state, so equal beginnings have equal states, and a trie of
the suffixes of each prefix is as exact as running them one by one. How tokens find what they see is `two_part.py`'s.
"""

# T tokens of all tries

from collections.abc import Sequence
from typing import NamedTuple


class Forest(NamedTuple):
    """A trie for each prefix, end to end.

    `tokens` and `depths` [T]: the id of each token, and how many tokens of its suffix come before it. `bounds`: the
    (start, stop) of each trie. `paths`: for each suffix, in the order given, the place of each of its tokens.
    """

    tokens: list[int]
    depths: list[int]
    bounds: list[tuple[int, int]]
    paths: list[list[int]]


def plant(groups: Sequence[Sequence[Sequence[int]]]) -> Forest:
    """Merge suffixes into tries, group by group; every suffix has at least one token."""
    forest = Forest([], [], [], [])
    for suffixes in groups:
        start = len(forest.tokens)
        place_of: dict[tuple[int, int], int] = {}
        for suffix in suffixes:
            path: list[int] = []
            for depth, token in enumerate(suffix):
                branch = (path[-1] if path else -1, token)
                if branch not in place_of:
                    place_of[branch] = len(forest.tokens)
                    forest.tokens.append(token)
                    forest.depths.append(depth)
                path.append(place_of[branch])
            forest.paths.append(path)
        forest.bounds.append((start, len(forest.tokens)))
    return forest
