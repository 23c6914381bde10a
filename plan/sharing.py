"""How many suffix tokens are run under each way of sharing, counted exactly.

Behind one prefix, equal tokens with equal tokens before them have equal states, so the least that can be run is a node
each of the trie of all suffixes. The trie is counted without being built: in sorted order, a suffix adds the tokens
that it does not have in common with the one before it. A batch that cuts a block runs a few tokens more than counted.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ..models.forest import num_shared
from .work import Block, Ids, Planned, Prefix, Suffix


class Run(NamedTuple):
    """Tokens that are run, how many tokens all of them see, and states that go through the output layer."""

    tokens: int
    seen: int
    states: int


class Sharing(NamedTuple):
    """Suffix tokens that are run: sharing nothing, whole questions of a block, and all that begins alike.

    `beginnings` shares inside a block, as the engine does; `beginnings_of_all` would keep every block's states.
    """

    nothing: int
    questions: int
    beginnings: int
    beginnings_of_all: int

    @property
    def trie_saves(self) -> float:
        """By what factor a trie divides the tokens that are run when only whole questions are shared."""
        return self.questions / self.beginnings


def count_sharing(planned: Planned) -> Sharing:
    """Count the suffix tokens of all blocks under each way of sharing."""
    groups: dict[Prefix, list[Suffix]] = {}
    for block in planned.blocks:
        for prefix, suffixes in block.suffixes.items():
            groups.setdefault(prefix, []).extend(suffixes)
    return Sharing(
        nothing=sum(len(suffix.run) for block in planned.blocks for _, suffix in block.pairs),
        questions=sum(_with_questions_shared(group) for block in planned.blocks for group in block.suffixes.values()),
        beginnings=sum(run_shared(block).tokens for block in planned.blocks),
        beginnings_of_all=sum(run_behind(0, group).tokens for group in groups.values()),
    )


def run_shared(block: Block) -> Run:
    """Return what the shared-prefix engine runs of a block behind its prefixes."""
    runs = [run_behind(prefix.length, group) for prefix, group in block.suffixes.items()]
    return Run(*map(sum, zip(*runs, strict=True)))


def run_behind(length: int, suffixes: Iterable[Suffix]) -> Run:
    """Return what is run behind one prefix of some length when suffixes share what they begin with."""
    tokens = seen = states = 0
    before: Ids = ()
    for suffix in sorted(suffixes, key=lambda suffix: suffix.run):
        run = suffix.run
        shared = num_shared(before, run)
        tokens += len(run) - shared
        seen += _sum_to(length + len(run)) - _sum_to(length + shared)
        states += len(run) - max(shared, len(suffix.question) - 1)
        before = run
    return Run(tokens, seen, states)


def _with_questions_shared(suffixes: Sequence[Suffix]) -> int:
    questions = {suffix.question for suffix in suffixes}
    return sum(map(len, questions)) + sum(len(suffix.answer) - 1 for suffix in suffixes)


def _sum_to(count: int) -> int:
    return count * (count + 1) // 2
