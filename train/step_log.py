"""What a step says of itself: its loss term by term, its gradient, and how likely key and normal tokens still are.

Every process adds up its own micro-batches; one exchange a step makes the sums of all of them, and carries whether any
process was asked to stop. So every process has the same log, and ends behind the same step. Writing logs down is
`journal.py`'s.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from .method import Method
from .steps import Phase, Sums

SCHEMA = "viker/step/2"


@dataclass(frozen=True, kw_only=True, slots=True)
class StepLog:
    """One line of training_log.jsonl; terms are unweighted means an example, log-probabilities means a token."""

    step: int
    epoch: int
    loss: float
    terms: Mapping[str, float]
    gradient_norm: float
    learning_rate: float
    key_logprob: float | None
    key_teacher_logprob: float | None
    normal_logprob: float | None


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over all processes: terms by name, how many were asked to stop, and log-probabilities by kind of token."""

    terms: Mapping[str, float]
    num_asked_to_stop: float
    num_key: float
    key_logprob: float
    key_teacher: float
    num_normal: float
    normal_logprob: float


def add_up(
    sums: Sequence[Sums], names: Sequence[str], key_entropy: float, *, asked_to_stop: bool, accelerator: Accelerator
) -> Totals:
    """Add up a step's micro-batches, of all processes.

    Args:
        sums: the micro-batches of this one.
        names: all terms of the step.
        key_entropy: nats above which a row is a key token's.
        asked_to_stop: whether this process was.
        accelerator: the processes.
    """
    terms = [sum(part.values.get(name, 0.0) for part in sums) for name in names]
    tokens = torch.zeros(5, dtype=torch.float64)
    for part in sums:
        tokens += _token_sums(part, key_entropy)
    mine = torch.cat([torch.tensor([*terms, float(asked_to_stop)], dtype=torch.float64), tokens])
    total: list[float] = accelerator.reduce(mine.to(accelerator.device), reduction="sum").tolist()
    return Totals(dict(zip(names, total, strict=False)), *total[len(names) :])


def _token_sums(part: Sums, key_entropy: float) -> Tensor:
    """Return number, log q(y) and log R(y) of key tokens, number and log q(y) of normal ones, of forget examples."""
    rows = [item.log_rows for item in part.items]
    if any(row is None for row in rows):
        return torch.zeros(5, dtype=torch.float64)
    known = [row for row in rows if row is not None]
    entropy_M = torch.cat([torch.from_numpy(row.entropy_N) for row in known])
    theirs_M = torch.cat([torch.from_numpy(row.answer_logprob_N) for row in known]).double()
    ours_M, is_key_M = part.logprob_M.double().cpu(), entropy_M > key_entropy
    found = (
        is_key_M.sum(),
        ours_M[is_key_M].sum(),
        theirs_M[is_key_M].sum(),
        (~is_key_M).sum(),
        ours_M[~is_key_M].sum(),
    )
    return torch.stack([value.double() for value in found])


def as_log(
    step: int, epoch: int, totals: Totals, counts: Mapping[str, int], phases: Sequence[Phase], method: Method,
    norm: float, rate: float,
) -> StepLog:  # fmt: skip
    """Return a step's log; `counts` are the examples that each term was summed over."""
    means = {name: total / counts[name] for name, total in totals.terms.items()}
    weights = {term.name: method.weight(term) for phase in phases for term in phase.terms}
    return StepLog(
        step=step, epoch=epoch, loss=sum(weights[name] * value for name, value in means.items()), terms=means,
        gradient_norm=norm, learning_rate=rate,
        key_logprob=totals.key_logprob / totals.num_key if totals.num_key else None,
        key_teacher_logprob=totals.key_teacher / totals.num_key if totals.num_key else None,
        normal_logprob=totals.normal_logprob / totals.num_normal if totals.num_normal else None,
    )  # fmt: skip


def as_line(log: StepLog) -> dict[str, Any]:
    """Return a step's log as plain values with its schema."""
    return {"schema": SCHEMA, **asdict(log)}


def from_line(line: Mapping[str, Any]) -> StepLog:
    """Return the step's log that a line holds."""
    return StepLog(**{name: value for name, value in line.items() if name != "schema"})
