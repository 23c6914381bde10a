"""Where `viker train` would write, and whether it has: asked of `viker train --dry-run` itself, in this process.

What names an adapter (the options its method reads, and its inputs) is training's to know. Its command decides without
torch, in milliseconds, so a sweep asks it about every job before it starts any process.
"""

import contextlib
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

# A run that does not exist: adapters are then named by their options alone.
NOWHERE = ("--run", "no-run", "--data", "no-data", "--model", "no-model")
_COMPLETE = re.compile(r"^train: .*: complete, skipped: (?P<path>.+)$", re.MULTILINE)
_MISSING = re.compile(r"^train: would train .* into (?P<path>.+)$", re.MULTILINE)


class Adapter(NamedTuple):
    """An adapter that a job writes."""

    path: Path
    complete: bool


def adapter_of(words: Sequence[str]) -> Adapter:
    """Return the adapter that `viker WORDS` writes, where the words are those of one training.

    Raises:
        DataError, click.UsageError: what `viker train` says is wrong with them.
    """
    from ..cli import viker

    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        viker.main([*words, "--dry-run"], prog_name="viker", standalone_mode=False)
    complete, missing = _COMPLETE.search(said.getvalue()), _MISSING.search(said.getvalue())
    found = complete or missing
    assert found is not None, f"viker train --dry-run says where it writes: {said.getvalue()!r}"
    return Adapter(Path(found["path"]), complete is not None)
