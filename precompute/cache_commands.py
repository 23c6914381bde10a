"""`viker cache`: the group of commands about teacher caches, and `list`, which says what is on this machine.

Caches live in one place, $VIKER_CACHE_DIR, and are named by their key; a path works as well, for one that was copied
from elsewhere. Listing opens every cache but decodes none. Every command says how private a cache is, on stderr, so
that JSON stays JSON. `inspect`, `verify`, `extend` and sharing have files of their own.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .extend_commands import extend
from .inspect_commands import inspect
from .local import PRIVACY
from .sharing_commands import gc, list_remote, pull, push
from .verify_commands import verify

if TYPE_CHECKING:
    from .cache import TeacherCache


@click.group()
def command() -> None:
    """List, check, extend, share or remove teacher caches."""


command.add_command(inspect)
command.add_command(extend)
for shared in (push, pull, gc):
    command.add_command(shared)
command.add_command(verify)


@command.command(name="list")
@click.option(
    "--remote", is_flag=False, flag_value="", metavar="[URL]", help="What is published there ($VIKER_CACHE_REMOTE)."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(remote: str | None, as_json: bool) -> None:
    """List the caches of this machine, damaged ones too; or those of a remote."""
    if remote is not None:
        list_remote(remote, as_json)
        return
    from .cache import cache_home

    rows = [_row(manifest.parent) for manifest in sorted(cache_home().glob("[0-9a-f]*/manifest.json"))
            if "." not in manifest.parent.name]  # fmt: skip
    if as_json:
        click.echo(json.dumps({"schema": "viker/caches/1", "home": str(cache_home()), "caches": rows}, indent=2))
    else:
        click.echo("\n".join([f"{len(rows)} caches in {cache_home()}", *map(_as_line, rows)]))
    click.echo(PRIVACY, err=True)


def _row(path: Path) -> dict[str, Any]:
    """Return one line of the list; a cache that does not open is listed with the reason."""
    from .cache import CacheError, TeacherCache

    try:
        cache = TeacherCache.open(path)
    except CacheError as error:
        return {"path": str(path), "key": path.name, "problem": str(error)}
    return _described(cache)


def _described(cache: "TeacherCache") -> dict[str, Any]:
    from .reading.summary import num_bytes

    return {
        "path": str(cache.root), "key": cache.key, "root": cache.root_digest, "problem": None,
        "teacher": cache.fingerprint["intervention"]["kind"],
        "answers": cache.fingerprint["intervention"].get("answers"),
        "samples": cache.num_samples, "rows": cache.num_rows,
        "top_k": cache.top_k, "vocab_size": cache.vocab_size, "bytes": num_bytes(cache.root),
        "model": cache.build.get("model"), "split": cache.build.get("split"),
    }  # fmt: skip


def _as_line(row: dict[str, Any]) -> str:
    if row["problem"] is not None:
        return f"  {row['key'][:16]}  damaged: {row['problem']}"
    made = f"{row['split']} of {row['model']}" if row["model"] else "unknown model"
    teacher = row["teacher"] if row["answers"] == "own" else f"{row['teacher']}, {row['answers']}"
    return (
        f"  {row['key'][:16]}  {teacher:10} {row['samples']} samples, {row['rows']} rows, top {row['top_k']}, "
        f"{row['bytes'] / 1e6:.1f} MB, {made}"
    )
