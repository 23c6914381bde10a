"""How well one order predicts another: Spearman's rho and Kendall's tau-b, with exact permutation p-values in blocks.

Inside a block (a world) every arrangement of the outcomes over the items is as likely as any other if the order
predicts nothing, so all of them are counted: n! of a block, and of several blocks their sums, whose distribution is
the convolution of the blocks'. So p is exact, with ties too, and cannot be below what the number of items allows,
which is returned beside it. Statistics of blocks are averaged, a block a vote.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import combinations, permutations
from math import factorial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

LEAST_ITEMS, MOST_ITEMS = 3, 9  # below, no order is surprising; beyond, arrangements are too many to count
_DIGITS = 9  # sums of the same numbers in another order count as equal

Floats = NDArray[np.float64]
Statistic = Callable[[Floats, Floats], Floats]  # values [n] and arrangements of others [D, n] -> statistics [D]


class Association(NamedTuple):
    """The mean statistic of some blocks, its exact two-sided p, the smallest p that so many items allow."""

    value: float
    p: float
    least_p: float
    items: int
    blocks: int

    def told(self) -> dict[str, Any]:
        """Return it for JSON."""
        return self._asdict()


def spearman(values_n: Floats, others_Dn: Floats) -> Floats:
    """Return Spearman's rho of values with each arrangement: the correlation of ranks, ties at their mean rank."""
    x_n = _centred(np.asarray(rankdata(values_n)))
    y_Dn = _centred(np.asarray(rankdata(others_Dn, axis=1)))
    return np.asarray(y_Dn @ x_n / np.sqrt((x_n**2).sum() * (y_Dn**2).sum(axis=1)))


def kendall(values_n: Floats, others_Dn: Floats) -> Floats:
    """Return Kendall's tau-b of values with each arrangement: pairs in the same order minus those in the other."""
    first, second = np.array(list(combinations(range(len(values_n)), 2))).T
    x_p = np.sign(values_n[first] - values_n[second])
    y_Dp = np.sign(others_Dn[:, first] - others_Dn[:, second])
    return np.asarray(y_Dp @ x_p / np.sqrt((x_p**2).sum() * (y_Dp**2).sum(axis=1)))


def association(blocks: Sequence[tuple[Sequence[float], Sequence[float]]], statistic: Statistic) -> Association | None:
    """Return how blocks of (values, outcomes) go together.

    Blocks with fewer than three items, or where either side is the same throughout, have no order and are left out;
    None if none is left.

    Raises:
        ValueError: a block has more than nine items, or sides of different lengths.
    """
    known = [(np.asarray(x, np.float64), np.asarray(y, np.float64)) for x, y in blocks]
    for x_n, y_n in known:
        if len(x_n) != len(y_n) or len(x_n) > MOST_ITEMS:
            raise ValueError(f"expected as many values as outcomes, up to {MOST_ITEMS}, found {len(x_n)}, {len(y_n)}.")
    ordered = [block for block in known if has_order(*block)]
    if not ordered:
        return None
    total, arrangements = Counter({0.0: 1}), 1
    for x_n, y_n in ordered:
        total = _sums(total, Counter(np.round(statistic(x_n, _arranged(y_n)), _DIGITS).tolist()))
        arrangements *= factorial(len(x_n))
    value = sum(float(statistic(x_n, y_n[None])[0]) for x_n, y_n in ordered)
    most, bar = max(map(abs, total)), abs(value) - 10**-_DIGITS * len(ordered) * 2
    return Association(
        value=value / len(ordered), p=_reached(total, bar) / arrangements,
        least_p=_reached(total, most - 10**-_DIGITS) / arrangements, items=sum(len(x_n) for x_n, _ in ordered),
        blocks=len(ordered),
    )  # fmt: skip


def has_order(x_n: Floats, y_n: Floats) -> bool:
    """Tell whether both sides have an order at all, over three items or more."""
    return len(x_n) >= LEAST_ITEMS and len(set(x_n.tolist())) > 1 and len(set(y_n.tolist())) > 1


def _arranged(values_n: Floats) -> Floats:
    return np.asarray(values_n[_orders(len(values_n))])


@lru_cache(maxsize=MOST_ITEMS)
def _orders(number: int) -> NDArray[np.int64]:
    return np.array(list(permutations(range(number))))


def _sums(one: Counter[float], other: Counter[float]) -> Counter[float]:
    """Return how often each sum of two statistics comes about."""
    total: Counter[float] = Counter()
    for x, times in one.items():
        for y, more in other.items():
            total[round(x + y, _DIGITS)] += times * more
    return total


def _reached(total: Counter[float], bar: float) -> int:
    return sum(times for value, times in total.items() if abs(value) >= bar)


def _centred(ranks: Floats) -> Floats:
    return np.asarray(ranks - ranks.mean(axis=-1, keepdims=True))
