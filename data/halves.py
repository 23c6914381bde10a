"""Divide retain people by hash: those a retain term may train on, and those it never sees.

A retain score on people the loss trained on says little (reference figures: 0.98 against 0.89 on the others), so the
headline is always the held-out half. The division is a function of the person's id alone.
"""

import hashlib
from typing import Literal

Half = Literal["seen", "held-out"]


def half_of(person: str) -> Half:
    """Return which half of the retain people a person belongs to."""
    return "seen" if hashlib.sha256(f"viker/half/{person}".encode()).digest()[0] % 2 else "held-out"
