"""`viker cache inspect`: what a cache holds, in numbers; with `--example`, the rows of one answer, token by token.

The numbers need nothing but the cache, and no torch. The rows are shown as text where the model's tokenizer is at hand
(no weights are loaded) and beside the answer's own tokens where the source is; else as ids.
"""

import json
from typing import TYPE_CHECKING, Any

import click

from ..data.options import encoder_options, named_options, source_options
from .local import PRIVACY, find_path

if TYPE_CHECKING:
    from .cache import TeacherCache
    from .example_rows import ExampleRows

SHOWN = "What is above shows an answer, and what the teacher says in its place: show it to nobody who may not see it."
_OF_THE_CACHE = {"cache", "example", "key_entropy", "as_json"}


@click.command()
@click.argument("cache", metavar="KEY|PATH")
@click.option(
    "--example", metavar="ID|INDEX",
    help="Show the rows of one answer: an example's id in the source, or the index of a sample in the cache.",
)  # fmt: skip
@click.option("--key-entropy", default=1.0, show_default=True, help="Nats above which a token counts as a key token.")
@source_options
@encoder_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def inspect(ctx: click.Context, /, cache: str, **options: Any) -> None:
    """Show what a cache holds: fingerprint, how it was made, sizes, key tokens and R(y); or one answer's rows."""
    from .cache import TeacherCache

    named = named_options(ctx)
    if options["example"] is None and (idle := sorted(named - _OF_THE_CACHE)):
        names = ", ".join(f"--{name.replace('_', '-')}" for name in idle)
        raise click.UsageError(f"cache inspect: expected --example with {names}, found none.")
    opened = TeacherCache.open(find_path(cache))
    _warn_of_mixed_devices(opened)
    if options["example"] is None:
        _show_cache(opened, options)
    else:
        _show_example(opened, options)
    click.echo(PRIVACY, err=True)


def _warn_of_mixed_devices(cache: "TeacherCache") -> None:
    from .writing.derive import devices_of

    devices = sorted(devices_of(cache.build))
    if len(devices) > 1:
        click.echo(
            f"inspect: WARNING: rows were computed on {len(devices)} kinds of device ({', '.join(devices)}): those of "
            "different ones agree only within total variation 0.02, and making the cache again gives other bytes.",
            err=True,
        )


def _show_cache(cache: "TeacherCache", options: dict[str, Any]) -> None:
    from .reading.summary import num_bytes, summarize
    from .writing.derive import devices_of

    told: dict[str, Any] = {
        "schema": "viker/cache-inspect/1", "path": str(cache.root), "key": cache.key, "root": cache.root_digest,
        "bytes": num_bytes(cache.root), "fingerprint": cache.fingerprint, "build": cache.build,
        "arrays": {name: list(plan.shape) for name, plan in sorted(cache.plans.items())},
        "devices": sorted(devices_of(cache.build)), "summary": summarize(cache, options["key_entropy"]),
    }  # fmt: skip
    if options["as_json"]:
        click.echo(json.dumps(told, indent=2, sort_keys=True))
        return
    click.echo(
        "\n".join([f"{told['path']}  ({told['bytes']} bytes)", f"  key   {told['key']}", f"  root  {told['root']}"])
    )
    for section in ("summary", "fingerprint", "build"):
        lines = [f"    {name:36} {_shortened(value)}" for name, value in sorted(told[section].items())]
        click.echo("\n".join([f"  {section}", *lines]))


def _show_example(cache: "TeacherCache", options: dict[str, Any]) -> None:
    from .example_rows import find_rows

    found = find_rows(cache, options["example"], options, lambda text: click.echo(f"inspect: {text}", err=True))
    if options["as_json"]:
        told = {"schema": "viker/cache-example/1", "path": str(cache.root), "key": cache.key, **found.told()}
        click.echo(json.dumps(told, indent=2, sort_keys=True, ensure_ascii=False))
    else:
        click.echo("\n".join(_as_lines(cache, found)))
    click.echo(SHOWN, err=True)


def _as_lines(cache: "TeacherCache", found: "ExampleRows") -> list[str]:
    whose = "an unknown example" if found.example is None else found.example
    lines = [
        f"sample {found.sample} of {cache.key[:16]}: {len(found.tokens)} rows of {whose}",
        "  row  answer            R(y)     entropy        disagreement  tail    likeliest",
    ]
    for token in found.tokens:
        kept = "  ".join(f"{one['token']} {one['probability']:.3f}" for one in token["candidates"]) or "(none kept)"
        kind = "key" if token["is_key"] else "normal"
        lines.append(
            f"  {token['position']:3}  {token['answer']!s:16}  {token['probability']:<8.2g} {token['entropy']:.3f} "
            f"{kind:6}  {token['disagreement']:.3f}         {token['tail']:.4f}  {kept}"
        )
    return lines


def _shortened(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return text if len(text) <= 160 else text[:157] + "..."
