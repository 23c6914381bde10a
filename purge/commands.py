"""`viker purge PERSON`: find every place that holds a person, take them out, and keep a record without names.

What is *about* the person goes: rows of caches, replies, reports. What is only *derived* from them is told and kept
unless its own option says otherwise: a model, because the adapter that unlearned somebody is what makes the model
forget them, and removing it brings the knowledge back; a shared cache, because others use it. Sources are the user's
own. Whatever could not be searched or done is named, and ends with exit code 1: docs/privacy.md.
"""

import json
import os
import sys
import unicodedata
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..data.artefact import cache_home
from ..data.example import DataError
from ..precompute.local import PRIVACY

if TYPE_CHECKING:
    from .find import Finding
    from .record import Record, Status
    from .search import Search

_EXIT_LEFT_OVER = 1
_ALWAYS = frozenset({"remnant", "report", "answers", "diagnosis", "stored key", "cache"})
_BY_OPTION = {
    "adapter": "include_adapters", "model": "include_models", "damaged cache": "include_damaged",
    "remote cache": "rewrite_remote", "record key": "include_record_keys",
}  # fmt: skip
_ACTIONS = {
    "remnant": "remove",
    "report": "remove (`viker report` makes it again)",
    "answers": "remove these replies and score again",
    "diagnosis": "remove the lines about them",
    "adapter": "remove",
    "model": "remove",
    "stored key": "name the rewritten cache, and unfinish the stage",
    "cache": "rewrite without them under a new key",
    "damaged cache": "remove",
    "remote cache": "publish without them, and bury the key",
    "record key": "show it once, and remove it",
}


@dataclass
class Result:
    """What is planned for a finding, and what became of it."""

    finding: "Finding"
    acts: bool
    status: "Status" = "planned"
    told: str = ""
    after: dict[str, str] = field(default_factory=dict)


@click.command()
@click.argument("person")
@click.option(
    "--runs", type=click.Path(path_type=Path), multiple=True,
    help="A run, or a folder that holds runs, however deep (repeatable; default: runs, and every run that is known).",
)  # fmt: skip
@click.option(
    "--remote",
    multiple=True,
    metavar="URL",
    help="Shared caches to search (repeatable; default $VIKER_CACHE_REMOTE).",
)
@click.option(
    "--rewrite-remote", is_flag=True,
    help="Also publish shared caches without the person and bury their old keys; else they are only listed.",
)  # fmt: skip
@click.option(
    "--include-adapters", is_flag=True,
    help="Also remove adapters trained on the person. Those that unlearned them are what makes the model forget.",
)  # fmt: skip
@click.option("--include-models", is_flag=True, help="Also remove checkpoints that were taught about the person.")
@click.option(
    "--include-record-keys", is_flag=True,
    help="Also remove the keys of their deletion records, shown once: without a key nobody can say whose a record is.",
)  # fmt: skip
@click.option("--include-damaged", is_flag=True, help="Also remove caches that are damaged or unfinished, whosever.")
@click.option(
    "--record", type=click.Path(path_type=Path, file_okay=False), default=Path(), help="Folder for the record.",
    show_default="the current one",
)  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Only say what holds the person, and what would be done.")
@click.option("--yes", is_flag=True, help="Do not ask before acting.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(person: str, **options: Any) -> None:
    """Take PERSON, an id as in the source, out of caches, replies and reports; list what else holds them."""
    person = unicodedata.normalize("NFC", person.strip())
    if not person:
        raise click.UsageError("purge: expected the id of a person, found an empty one.")
    if not (options["dry_run"] or options["yes"] or sys.stdin.isatty()):
        raise click.UsageError("purge: expected --yes or --dry-run where nobody can be asked, found neither.")
    from .search import search_everywhere

    search = search_everywhere(person, options["runs"], options["remote"] or _remote_of_environment())
    included = _ALWAYS | {kind for kind, option in _BY_OPTION.items() if options[option]}
    results = [_plan(finding, included) for finding in search.findings]
    say: Callable[[str], object] = (lambda _: None) if options["as_json"] else click.echo
    say("\n".join(_as_lines(search, results)))
    record = None
    if results and not options["dry_run"]:
        if any(result.acts for result in results) and not options["yes"] and not click.confirm("Do this?"):
            click.echo("purge: nothing was done.")
            return
        record = _begin_record(options["record"], person, results)
        _act(person, results, record, say)
    _end(search, results, record, options)


def _remote_of_environment() -> tuple[str, ...]:
    remote = os.environ.get("VIKER_CACHE_REMOTE")
    return (remote,) if remote else ()


def _plan(finding: "Finding", included: Collection[str]) -> Result:
    """Decide about a finding: what could not be searched is left alone, but for damaged caches that are asked for."""
    acts = finding.kind in included and (finding.problem is None or finding.kind == "damaged cache")
    return Result(finding, acts, "planned" if acts else "kept" if finding.problem is None else "not searched")


def _begin_record(folder: Path, person: str, results: Sequence[Result]) -> "Record":
    from .record import Record

    record = Record(folder, person, [(result.finding, result.status) for result in results])
    click.echo(
        f"purge: record {record.path}\npurge: its key is {record.key.hex()}, shown once: it proves whom the record is "
        "about, and is not in it. Keep it elsewhere.",
        err=True,
    )
    return record


def _act(person: str, results: Sequence[Result], record: "Record", say: Callable[[str], object]) -> None:
    """Act on what is planned; what fails is told, and the rest goes on."""
    from ..precompute.cache import CacheError

    for index, result in enumerate(results):
        if result.acts:
            try:
                result.after, result.told = _act_on(result.finding, person)
                result.status = "done"
            except (CacheError, DataError, OSError) as error:
                result.status, result.told = "failed", str(error)
            say(f"  {result.status:6}  {result.finding.place}: {result.told}")
        record.note(index, result.status, result.after)
    for index, result in enumerate(results):
        if result.status == "not searched" and _is_gone(result.finding):
            result.status = "done"
            record.note(index, result.status, result.after)
    record.end()


def _act_on(finding: "Finding", person: str) -> tuple[dict[str, str], str]:
    if finding.kind == "remote cache":
        from ..precompute.sharing.remote import open_store
        from .remote import purge_key

        key16 = str(finding.place).rpartition("/")[2]
        return purge_key(open_store(finding.remote), key16, person, cache_home()), "taken out of the remote"
    from .act import act_on

    return act_on(finding, person)


def _is_gone(finding: "Finding") -> bool:
    """Whether what could not be searched is no more, such as what an interrupted purge left and this one finished."""
    if finding.kind != "remote cache":
        return finding.kind in ("damaged cache", "diagnosis") and not Path(finding.place).exists()
    from ..precompute.cache import CacheError
    from ..precompute.sharing.remote import open_store
    from .remote import is_searchable

    try:
        return is_searchable(open_store(finding.remote), str(finding.place).rpartition("/")[2])
    except CacheError:  # the remote as a whole
        return False


def _end(search: "Search", results: Sequence[Result], record: "Record | None", options: dict[str, Any]) -> None:
    """Print what became of everything, and exit with 1 where something is left over."""
    left = [result for result in results if result.status in ("failed", "not searched")]
    if options["as_json"]:
        click.echo(json.dumps(_as_json(search, results, record, options), indent=2))
    else:
        click.echo("\n".join(_summary(results, left, record)))
    click.echo(PRIVACY, err=True)
    if left:
        sys.exit(_EXIT_LEFT_OVER)


def _as_json(
    search: "Search", results: Sequence[Result], record: "Record | None", options: dict[str, Any]
) -> dict[str, Any]:
    findings = [
        {
            "kind": result.finding.kind, "place": str(result.finding.place), "told": result.finding.told,
            "problem": result.finding.problem, "acts": result.acts, "status": result.status, "done": result.told,
            "before": dict(result.finding.before), "after": result.after,
        }
        for result in results
    ]  # fmt: skip
    return {
        "schema": "viker/purge/1", "dry_run": options["dry_run"], "searched": search.places(), "findings": findings,
        "record": str(record.path) if record else None, "record_key": record.key.hex() if record else None,
    }  # fmt: skip


def _as_lines(search: "Search", results: Sequence[Result]) -> list[str]:
    """Return where was looked, and a line or two a finding with what is to become of it."""
    lines = [f"purge: searched {name}: {', '.join(places) or 'none'}" for name, places in search.places().items()]
    if not results:
        return [*lines, "purge: nothing holds this person."]
    for result in results:
        finding = result.finding
        lines.append(f"  {finding.kind:13} {finding.place}\n  {'':13} {finding.told} -> {_action(result)}")
        if finding.problem is not None:
            lines.append(f"  {'':13} {finding.problem}")
    return lines


def _action(result: Result) -> str:
    kind = result.finding.kind
    if result.acts:
        return _ACTIONS[kind]
    if result.finding.problem is not None and kind != "damaged cache":
        return "NOT SEARCHED"
    kept = "kept" if result.finding.problem is None else "NOT SEARCHED"
    option, does = _BY_OPTION.get(kind, "").replace("_", "-"), "rewrites" if kind == "remote cache" else "removes"
    return f"{kept} (--{option} {does} it)" if option else kept


def _summary(results: Sequence[Result], left: Sequence[Result], record: "Record | None") -> list[str]:
    counts = {status: sum(result.status == status for result in results) for status in ("done", "planned", "kept")}
    lines = [f"purge: {', '.join(f'{count} {status}' for status, count in counts.items() if count) or 'nothing to do'}"]
    if any(result.finding.kind == "source" for result in results):
        lines.append("purge: a source still holds the person: until it does not, any stage can bring all this back.")
    lines += [f"purge: LEFT OVER: {result.finding.place} ({result.status})" for result in left]
    return lines + ([f"purge: record {record.path}"] if record else [])
