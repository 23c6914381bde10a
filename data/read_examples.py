"""Read the training questions of a source in one call, for those who need no more than examples."""

from collections.abc import Sequence

from .example import Example
from .halves import training_questions
from .sources import open_source


def read_examples(
    data: str,
    split: str = "forget",
    *,
    ratio: str | None = None,
    forget: Sequence[str] = (),
    revision: str | None = None,
) -> list[Example]:
    """Return the training questions of a source.

    Args:
        data: a data folder, a published layout, a folder with examples.jsonl, or a hub id.
        split: forget, retain, retain-seen (the half that a retain term may use) or all.
        ratio: which published forget split.
        forget: forget these people instead.
        revision: branch, tag or commit of a hub dataset.

    Raises:
        DataError: there is nothing, or it cannot be read.
    """
    return training_questions(open_source(data, ratio=ratio, forget=forget, revision=revision), split)
