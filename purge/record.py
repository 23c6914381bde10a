"""The record of a purge: what was found and done, by digests, without a name or a path in it.

A record is kept to show that a request was honored, so it must not become the last place that names the person. Whom
it is about, and where things were, stand in it as blake2b digests under a random key that is given to the user once and
is not in it: who has the key can show that this record is about this person, nobody else can even test a guess. Keys,
roots and file digests are plain, for they have to be compared with copies that may turn up elsewhere.

It is written before the first act and again after each, so an interrupted purge has its record too.
"""

import hashlib
import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from .. import __version__
from ..data.artefact import write_json
from .find import Finding

SCHEMA = "viker/purge-record/1"
Status = Literal["planned", "done", "kept", "failed", "not searched"]


class Record:
    """One purge, kept on disk as it goes."""

    def __init__(self, folder: Path, person: str, planned: Sequence[tuple[Finding, Status]]) -> None:
        """Write the record with everything that was found and is planned.

        Raises:
            OSError: it cannot be written there; nothing was done yet.
        """
        self.key = secrets.token_bytes(32)
        digest, date = self._digest(person), time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        self.path = folder / f"purge-{date}-{digest[:8]}.json"
        self._content: dict[str, Any] = {
            "schema": SCHEMA, "version": __version__, "began": date, "ended": None, "person": digest,
            "findings": [self._entry(finding, status) for finding, status in planned],
        }  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        write_json(self.path, self._content)

    def note(self, index: int, status: Status, after: Mapping[str, str]) -> None:
        """Write what became of the finding with an index, and the digests of what is there now."""
        self._content["findings"][index] |= {"status": status, "after": dict(after)}
        write_json(self.path, self._content)

    def end(self) -> None:
        """Write that the purge came to its end."""
        self._content["ended"] = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        write_json(self.path, self._content)

    def _entry(self, finding: Finding, status: Status) -> dict[str, Any]:
        place = self._digest(str(finding.place))
        return {
            "kind": finding.kind, "place": place, "status": status, "before": dict(finding.before), "after": {},
        }  # fmt: skip

    def _digest(self, text: str) -> str:
        return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16, key=self.key).hexdigest()
