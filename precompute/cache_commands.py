"""`viker cache list|inspect|verify`: what teacher caches are on this machine, what one holds, and whether it is whole.

Caches live in one place, $VIKER_CACHE_DIR, and are named by their key; a path works as well, for one that was copied
from elsewhere. Listing opens every cache but decodes none. Every command says how private a cache is, on stderr, so
that JSON stays JSON. Checks are `verify.py`'s, numbers `summary.py`'s.
"""

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from ..data.example import DataError
from .commands import PRIVACY

if TYPE_CHECKING:
    from .cache import TeacherCache

_EXIT_PROBLEMS = 1


@click.group()
def command() -> None:
    """List, inspect or verify teacher caches."""


@command.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(as_json: bool) -> None:
    """List the caches of this machine, damaged ones too."""
    from .cache import cache_home

    rows = [_row(manifest.parent) for manifest in sorted(cache_home().glob("[0-9a-f]*/manifest.json"))
            if "." not in manifest.parent.name]  # fmt: skip
    if as_json:
        click.echo(json.dumps({"schema": "viker/caches/1", "home": str(cache_home()), "caches": rows}, indent=2))
    else:
        click.echo("\n".join([f"{len(rows)} caches in {cache_home()}", *map(_as_line, rows)]))
    click.echo(PRIVACY, err=True)


@command.command()
@click.argument("cache", metavar="KEY|PATH")
@click.option("--key-entropy", default=1.0, show_default=True, help="Nats above which a token counts as a key token.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def inspect(cache: str, key_entropy: float, as_json: bool) -> None:
    """Show what a cache holds: fingerprint, how it was made, sizes, key tokens and R(y)."""
    from .cache import TeacherCache
    from .summary import summarize

    opened = TeacherCache.open(find_path(cache))
    told: dict[str, Any] = {
        "schema": "viker/cache-inspect/1", "path": str(opened.root), "key": opened.key, "root": opened.root_digest,
        "bytes": _num_bytes(opened.root), "fingerprint": opened.fingerprint, "build": opened.build,
        "arrays": {name: list(plan.shape) for name, plan in sorted(opened.plans.items())},
        "summary": summarize(opened, key_entropy),
    }  # fmt: skip
    if as_json:
        click.echo(json.dumps(told, indent=2, sort_keys=True))
    else:
        click.echo(
            "\n".join([f"{told['path']}  ({told['bytes']} bytes)", f"  key   {told['key']}", f"  root  {told['root']}"])
        )
        for section in ("summary", "fingerprint", "build"):
            lines = [f"    {name:36} {_shortened(value)}" for name, value in sorted(told[section].items())]
            click.echo("\n".join([f"  {section}", *lines]))
    click.echo(PRIVACY, err=True)


@command.command()
@click.argument("cache", metavar="KEY|PATH")
@click.option(
    "--depth", type=click.Choice(["quick", "full"]), default="quick", show_default=True, help="full reads every byte."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def verify(cache: str, depth: Literal["quick", "full"], as_json: bool) -> None:
    """Say everything that is wrong with a cache; exit 1 if anything is."""
    from .verify import verify as find_problems

    path = find_path(cache)
    problems = find_problems(path, depth)
    if as_json:
        found = [{"kind": problem.kind, "detail": problem.detail} for problem in problems]
        click.echo(
            json.dumps(
                {"schema": "viker/cache-verify/1", "path": str(path), "depth": depth, "problems": found}, indent=2
            )
        )
    else:
        click.echo(f"cache verify: {path}: {f'{len(problems)} problems' if problems else 'nothing wrong'} ({depth})")
        for problem in problems:
            click.echo(f"  {problem.kind}: {problem.detail}")
    click.echo(PRIVACY, err=True)
    if problems:
        sys.exit(_EXIT_PROBLEMS)


def find_path(name: str) -> Path:
    """Return the directory of a cache named by a path, or by the beginning of its key.

    Raises:
        DataError: there is no such cache, or several keys begin like this.
    """
    from .cache import cache_home

    if name and Path(name).is_dir():
        return Path(name)
    is_key = re.fullmatch("[0-9a-f]{4,64}", name) is not None
    matches = (
        sorted(path for path in cache_home().glob(f"{name[:16]}*") if path.is_dir() and "." not in path.name)
        if is_key
        else []
    )
    if len(matches) != 1:
        found = ", ".join(path.name for path in matches) or "none"
        raise DataError(
            f"{name}: expected a cache directory, or the first 4 or more digits of one key in "
            f"{cache_home()}, found {found}. `viker cache list` names them."
        )
    return matches[0]


def _row(path: Path) -> dict[str, Any]:
    """Return one line of the list; a cache that does not open is listed with the reason."""
    from .cache import CacheError, TeacherCache

    try:
        cache = TeacherCache.open(path)
    except CacheError as error:
        return {"path": str(path), "key": path.name, "problem": str(error)}
    return _described(cache)


def _described(cache: "TeacherCache") -> dict[str, Any]:
    return {
        "path": str(cache.root), "key": cache.key, "root": cache.root_digest, "problem": None,
        "teacher": cache.fingerprint["intervention"]["kind"], "samples": cache.num_samples, "rows": cache.num_rows,
        "top_k": cache.top_k, "vocab_size": cache.vocab_size, "bytes": _num_bytes(cache.root),
        "model": cache.build.get("model"), "split": cache.build.get("split"),
    }  # fmt: skip


def _as_line(row: dict[str, Any]) -> str:
    if row["problem"] is not None:
        return f"  {row['key'][:16]}  damaged: {row['problem']}"
    made = f"{row['split']} of {row['model']}" if row["model"] else "unknown model"
    return (
        f"  {row['key'][:16]}  {row['teacher']:10} {row['samples']} samples, {row['rows']} rows, top {row['top_k']}, "
        f"{row['bytes'] / 1e6:.1f} MB, {made}"
    )


def _num_bytes(root: Path) -> int:
    return sum(file.stat().st_size for file in root.rglob("*") if file.is_file())


def _shortened(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return text if len(text) <= 160 else text[:157] + "..."
