"""The unlearning methods as small records: which rows a method reads, which terms its loss has, and where it is from.

A loss is `ascent + lambda * KL(forget rows) + retain * KL(retain rows)`, each term a sum over answer tokens divided by
the number of examples. What differs between methods is data, so that all of them run in one loop on the same caches.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from ..data.example import DataError

Ascent = Literal["none", "uniform", "adaptive"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """One method: its terms, their default weights, its source, and how closely it follows it."""

    name: str
    ascent: Ascent
    lambda_: float
    retain: float
    paper: str
    fidelity: Literal["official", "paper", "ours"]
    summary: str

    @property
    def reads_forget_rows(self) -> bool:
        """Whether its loss needs rows of the forget people (beyond those the stop rule and the log read)."""
        return self.lambda_ > 0 or self.ascent == "adaptive"

    @property
    def reads_retain_rows(self) -> bool:
        """Whether its loss needs rows of retain people."""
        return self.retain > 0

    def describe(self) -> dict[str, Any]:
        """Return the record as plain values."""
        return asdict(self)


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            name="viker", ascent="uniform", lambda_=0.5, retain=0.0, paper="arXiv 2601.22020", fidelity="paper",
            summary="gradient ascent regularized towards answers under irrelevant images",
        ),
        Method(
            name="ga", ascent="uniform", lambda_=0.0, retain=0.0, paper="arXiv 2310.10683", fidelity="paper",
            summary="gradient ascent on the answers",
        ),
        Method(
            name="recommended", ascent="adaptive", lambda_=1.0, retain=4.0, paper="-", fidelity="ours",
            summary="ascent weighted by 1 - R(y), and a retain term from cached rows of the vanilla model",
        ),
    )
}  # fmt: skip


def choose_method(
    name: str, *, lambda_: float | None, retain: float | None, ascent: bool = True, regularizer: bool = True
) -> Method:
    """Return a method with the user's weights; `ascent` and `regularizer` switch off its terms (ablations).

    Raises:
        DataError: an unknown name, or nothing left of the loss.
    """
    if name not in METHODS:
        raise DataError(f"--method: expected one of {', '.join(METHODS)}, found {name!r}.")
    method = METHODS[name]
    method = replace(
        method,
        lambda_=0.0 if not regularizer else method.lambda_ if lambda_ is None or name == "ga" else lambda_,
        retain=method.retain if retain is None else retain,
        ascent=method.ascent if ascent else "none",
    )
    if method.ascent == "none" and method.lambda_ == 0 and method.retain == 0:
        raise DataError("--no-ascent --no-regularizer: expected at least one term in the loss, found none. Keep one.")
    return method
