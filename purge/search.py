"""Look everywhere for a person: the caches of this machine, the runs that are known, and shared caches.

Runs are looked for in `runs`, in the folders that are named, and where the caches' home has them registered; a
registered run that is gone is told. Findings come in the order in which they must be acted upon: what is derived before
what it is derived from, and what names a cache before the cache, so that a purge that was cut off still finds the rest.
"""

import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import click

from ..data.artefact import cache_home
from ..data.example import DataError
from ..data.run_roots import RunRoot, registered_runs
from ..precompute.cache import CacheError
from .find import Finding, Kind, caches_elsewhere, find_artefacts, find_in_caches, find_mentions, find_record_keys
from .runs import find_in_artefacts, find_sources

ORDER: tuple[Kind, ...] = (
    "remnant", "report", "answers", "diagnosis", "adapter", "model", "stored key", "cache", "damaged cache",
    "remote cache", "record key", "unreadable", "mention", "source",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Search:
    """Where was looked, and what was found."""

    runs: tuple[Path, ...]
    gone: tuple[Path, ...]
    caches: tuple[Path, ...]
    remotes: tuple[str, ...]
    findings: tuple[Finding, ...]

    def places(self) -> dict[str, list[str]]:
        """Return where was looked, by name."""
        from ..precompute.sharing.stores import without_credentials

        remotes = map(without_credentials, self.remotes)
        found = {"runs": self.runs, "caches": self.caches, "remotes": [*remotes], "runs that are gone": self.gone}
        return {
            name: list(map(str, places)) for name, places in found.items() if places or name != "runs that are gone"
        }


def search_everywhere(person: str, named: Sequence[Path], remotes: Sequence[str]) -> Search:
    """Return everything found of a person on this machine and in some remotes."""
    home = cache_home()
    roots, gone, findings = _run_folders(named)
    artefacts, in_folders = find_artefacts(roots)
    elsewhere = caches_elsewhere(artefacts, home)
    in_caches, caches = find_in_caches(home, elsewhere, person)
    in_runs = find_in_artefacts(artefacts, person, caches)
    covered = {Path(found.place) for found in in_runs if found.kind == "report"}
    findings += [
        *in_folders, *in_caches, *in_runs, *find_sources(artefacts, person),
        *find_mentions(roots, artefacts, person, covered), *find_record_keys(roots, person),
    ]  # fmt: skip
    for url in remotes:
        findings += _in_remote(url, person)
    return Search(
        runs=tuple(roots), gone=tuple(gone), caches=(home, *elsewhere), remotes=tuple(remotes),
        findings=tuple(sorted(findings, key=lambda found: (ORDER.index(found.kind), str(found.place)))),
    )  # fmt: skip


def _run_folders(named: Sequence[Path]) -> tuple[list[Path], list[Path], list[Finding]]:
    """Return the folders to look for runs in (none inside another), the registered runs that are gone, and problems."""
    missing = [str(path) for path in named if not path.is_dir()]
    if missing:
        raise click.UsageError(f"purge --runs: expected folders, found none at {', '.join(missing)}.")
    try:
        registered, findings = registered_runs(), list[Finding]()
    except DataError as error:
        told = "which runs used these caches"
        registered, findings = [], [Finding(kind="unreadable", place=cache_home(), told=told, problem=str(error))]
    here = socket.gethostname()
    findings += [_elsewhere(run) for run in registered if run.host != here and not run.directory.is_dir()]
    known = [run.directory for run in registered if run.host == here or run.directory.is_dir()]
    folders = {path.resolve() for path in (Path("runs"), *named, *known) if path.is_dir()}
    roots = sorted(path for path in folders if not any(parent in folders for parent in path.parents))
    return roots, sorted(path for path in known if not path.is_dir()), findings


def _elsewhere(run: RunRoot) -> Finding:
    problem = f"{run.directory}: a run of the machine {run.host}, which cannot be seen from here. Purge there too."
    return Finding(kind="unreadable", place=run.directory, told="a run elsewhere", problem=problem)


def _in_remote(url: str, person: str) -> list[Finding]:
    from ..precompute.sharing.remote import open_store
    from ..precompute.sharing.stores import without_credentials
    from .remote import find_in_remote

    try:
        return [replace(found, remote=url) for found in find_in_remote(open_store(url), person)]
    except CacheError as error:
        place = without_credentials(url)
        return [Finding(kind="remote cache", place=place, told="shared caches", problem=str(error), remote=url)]
