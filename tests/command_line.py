"""Call `viker` as a shell would, inside this process: the same exit codes, what it printed, and no second torch."""

from __future__ import annotations

import contextlib
import io
import re
import shutil
import sys
from typing import TYPE_CHECKING, NamedTuple
from unittest import mock

from viker import cli

if TYPE_CHECKING:
    from pathlib import Path


class Outcome(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def message(self) -> str:
        """The error it ended with; anything but one clear message is a failed test."""
        assert "Traceback" not in self.err
        _, *messages = re.split(r"(?<!\w)Error: ", self.err)
        assert len(messages) == 1, self.err
        return messages[0]


def call(*arguments: object) -> Outcome:
    """Run `viker ARGUMENTS`; an error that is nobody's mistake but ours is raised, as it would be shown."""
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["viker", *map(str, arguments)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            cli.main()
        except SystemExit as end:
            code = end.code
    assert isinstance(code, int)
    return Outcome(code, out.getvalue(), err.getvalue())


def succeed(*arguments: object) -> Outcome:
    """Run a command that has to succeed."""
    outcome = call(*arguments)
    assert outcome.code == 0, outcome.err
    return outcome


def copy_model(model: Path, target: Path) -> Path:
    """Copy a model directory, to be changed."""
    shutil.copytree(model, target)
    return target


def cut_short(file: Path) -> None:
    """Leave what a full disk or a broken download leaves of a file."""
    file.write_bytes(file.read_bytes()[:1000])
