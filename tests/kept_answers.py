"""The one kept answer that tests of scoring vary: a generated sentence about a picture of somebody to forget."""

from __future__ import annotations

from viker.evaluate.answers import Answer

ANSWER = Answer(
    model="m", split="forget", task="generation", modality="image", person="001", id="0", question="Where?",
    expected="Born in Lima long ago.", reply="Born in Lima long ago.",
)  # fmt: skip
