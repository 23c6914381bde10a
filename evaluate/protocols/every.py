"""Every correction of every protocol by its name; where two benchmarks make the same mistake it has one name."""

from collections.abc import Mapping

from .clear_corrections import CORRECTIONS as OF_CLEAR
from .corrections import CORRECTIONS as OF_MLLMU
from .corrections import Correction

CORRECTIONS: Mapping[str, Correction] = {**OF_CLEAR, **OF_MLLMU}
