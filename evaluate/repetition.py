"""Has a model lost its speech? How much of a reply is loops, and how many replies are empty: without a model.

Repetition is seq-rep-n of Welleck et al. 2019 (arXiv 1908.04319): 1 - distinct n-grams / all n-grams of one reply,
averaged over replies. There n is 4 and counts tokens of long continuations; here n is 3 and counts words, because
replies are sentences and a measure over words is the same for every tokenizer. A word is a run of letters and digits,
or any other mark by itself. A run too long for a word is read letter by letter: loops without spaces ("nessnessness")
and scripts without spaces become visible so. A reply shorter than n words has no n-gram and counts as 0, an empty one
too, which is why the share of blank replies stands beside it: a model may fall silent or fall into a loop.
What counts as too much is for whoever trains to decide; an honest sentence scores 0 or close to it.
"""

import re
from collections.abc import Collection
from statistics import fmean

NGRAM_WORDS = 3
LONGEST_WORD = 24

_WORD = re.compile(r"\w+|[^\w\s]")


def repetition(reply: str) -> float:
    """Return the share of a reply's word n-grams that it has said before, in [0, 1)."""
    words = _words(reply)
    ngrams = [tuple(words[start : start + NGRAM_WORDS]) for start in range(len(words) - NGRAM_WORDS + 1)]
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def mean_repetition(replies: Collection[str]) -> float:
    """Return the mean repetition of at least one reply."""
    return fmean(map(repetition, replies))


def blank_share(replies: Collection[str]) -> float:
    """Return the share of replies that say nothing: empty, or white space alone."""
    return fmean(not reply.strip() for reply in replies)


def _words(reply: str) -> list[str]:
    found: list[str] = []
    for word in _WORD.findall(reply):
        found.extend([word] if len(word) <= LONGEST_WORD else word)
    return found
