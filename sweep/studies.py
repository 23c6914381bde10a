"""The comparisons that have a name: which methods, which grid, which worlds. What is said on the command line wins."""

from typing import NamedTuple

from ..train.methods import METHODS


class Study(NamedTuple):
    """Axes and worlds of a comparison; seeds of worlds are words, as they name directories."""

    methods: tuple[str, ...]
    dev: str
    worlds: str
    learning_rates: str
    num_train_epochs: float


STUDIES = {
    "matched": Study(("ga", "viker", "recommended"), "1,2", "11,12,13", "7e-4,1e-3,2e-3,3e-3", 10.0),
    "methods": Study(tuple(METHODS), "1,2", "11,12,13", "1.4e-3,2.8e-3,5.6e-3", 10.0),
}
