"""The hidden states that predict the answers of a batch; a question that several answers follow runs once.

People are asked alike: behind one image most of a block's questions are equal, and often longer than their answers. So
equal questions behind equal images become a segment of their own between image and answers. Exact, like all sharing
here: what a token sees is the same, and what is not seen again is not run again.
"""

# T tokens of all suffixes, M answer tokens, D hidden size

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...models.prefix import Prefix, continue_prefixes, run_suffixes


class Suffix(NamedTuple):
    """What follows an image: the rest of the prompt (never empty) and the answer."""

    prefix: Prefix
    question: tuple[int, ...]
    answer: tuple[int, ...]

    @property
    def place(self) -> tuple[int, tuple[int, ...]]:
        """Which prefix, and what was asked behind it."""
        return id(self.prefix), self.question


def answer_states(model: Any, suffixes: Sequence[Suffix]) -> Tensor:
    """Return the last hidden states [M, D] that predict each answer's tokens, answer after answer.

    The last answer token predicts nothing that is scored, so it is never run.
    """
    times = Counter(suffix.place for suffix in suffixes)
    shared = {suffix.place: suffix for suffix in suffixes if times[suffix.place] > 1}
    continued = continue_prefixes(model, [(suffix.prefix, suffix.question) for suffix in shared.values()])
    longer = dict(zip(shared, continued, strict=True))
    work = [
        (longer[suffix.place][0], suffix.answer[:-1])
        if suffix.place in longer
        else (suffix.prefix, (*suffix.question, *suffix.answer[:-1]))
        for suffix in suffixes
    ]
    states_TD = run_suffixes(model, [(prefix, ids) for prefix, ids in work if ids])
    rows: list[Tensor] = []
    start = 0
    for suffix, (_, ids) in zip(suffixes, work, strict=True):
        run_TD = states_TD[start : start + len(ids)]
        if suffix.place in longer:
            rows.extend((longer[suffix.place][1], run_TD))
        else:
            rows.append(run_TD[len(suffix.question) - 1 :])
        start += len(ids)
    return torch.cat(rows)
