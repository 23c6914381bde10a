"""`viker precompute`: run the frozen teacher once and store its rows, unless they are already there.

The order is: encode, name the cache (no weights loaded), look for it, look for one that serves, and only then load the
model. A run directory gets a small artefact a teacher kind that stores the cache's key and root, never rows.
"""

import json
import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..data.artefact import begin, cache_home, decide, finish, read_json
from ..data.inputs import input_stamps, stored_rows
from ..data.instructions import instruction_for
from ..data.kinds import ANSWERS, KINDS, rows_name
from ..data.options import chosen_options, config_option, model_options, named_options, source_options
from ..data.run_roots import register_run
from .local import PRIVACY
from .row_options import computing_options, instruction_option, split_option

if TYPE_CHECKING:
    from .cache import TeacherCache

# Which fingerprint fields an option names: what is asked for by name must be equal, the rest may come from a cache.
_NAMES = {
    "pool": "pool",
    "seed": "draw.seed",
    "num_references": "draw.num_references",
    "shared_references": "draw.policy",
    "store_logprobs": "storage",
    "quantization": "quantization",
}
# What changes neither the rows nor what the run stores about them.
_UNRECORDED = (
    "run", "overwrite", "push", "dry_run", "as_json", "device", "engine", "token_budget", "key_entropy", "part",
    "deterministic", "workers", "stage_in_remote", "torch_compile", "vllm_listed", "vllm_option",
)  # fmt: skip


def _read_part(_ctx: click.Context, _parameter: click.Parameter, value: str) -> tuple[int, int]:
    """Return i and N of `i/N`."""
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", value)
    index, count = map(int, match.groups()) if match else (0, 0)
    if index >= count:
        raise click.BadParameter(f"expected i/N with 0 <= i < N, parts are counted from 0; found {value!r}.")
    return index, count


def _read_workers(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> int | str | None:
    """Return how many workers to start here, or the address of a cluster."""
    if value is None or value == "auto" or re.fullmatch(r"(ray://)?[^\s:/]+:\d{1,5}", value):
        return value
    if not re.fullmatch(r"[1-9]\d{0,3}", value):
        raise click.BadParameter(
            "expected how many workers to start here, or a Ray cluster's address: ray://HOST:PORT, HOST:PORT of its "
            f"head, or auto on one of its nodes; found {value!r}."
        )
    return int(value)


@click.command()
@click.option("--run", type=click.Path(path_type=Path), help="The run directory; stores the cache's key.")
@source_options
@model_options
@split_option
@click.option(
    "--teacher",
    type=click.Choice(KINDS),
    default="reference",
    show_default=True,
    help="What the frozen model is shown: irrelevant images, the example's own, uniform noise in place of its pixels, "
    "its own behind an instruction, or no image.",
)
@click.option(
    "--answers",
    type=click.Choice(ANSWERS),
    default="own",
    show_default=True,
    help="Whose rows: of the examples' own answers, or of a refusal in place of each.",
)
@instruction_option
@click.option(
    "--pool",
    metavar="DIR|NAME",
    help="reference: a folder of irrelevant images, or patterns, noise, celebrities (for "
    "ablations: forget, retain, the people themselves).",
)
@click.option(
    "--num-references",
    type=click.IntRange(1, 65535),
    help="reference, noise: images averaged an answer (default 8 references, 1 noise).",
)
@click.option("--shared-references", is_flag=True, help="One set of references, or of noises, for every example.")
@click.option(
    "--top-k",
    type=int,
    help="Tokens kept a row (default 64; 0, scalars only, for `self` rows of forget people and for refusals).",
)
@click.option(
    "--store-logprobs",
    type=click.Choice(["float16", "float32"]),
    default="float16",
    show_default=True,
    help="Storage of kept log-probabilities.",
)
@computing_options
@click.option(
    "--quantization",
    type=click.Choice(["int8", "nf4"]),
    help="Load the teacher's linear layers in 8 or 4 bits (bitsandbytes); recorded, since rows differ.",
)
@click.option("--seed", default=0, show_default=True, help="Seed of the draw of references, or of noises.")
@click.option(
    "--part",
    metavar="i/N",
    callback=_read_part,
    default="0/1",
    show_default=True,
    help="Compute only every N-th block from the i-th (from 0 to N-1), as one of an array of jobs that share "
    "$VIKER_CACHE_DIR; the part that finishes last seals the cache.",
)
@click.option(
    "--workers",
    metavar="N|ray://HOST:PORT",
    callback=_read_workers,
    help="Compute blocks in N processes here (one a GPU), or wherever a Ray cluster has room; on CPU the same bytes.",
)
@click.option(
    "--stage-in-remote",
    is_flag=True,
    help="Parts without a disk in common: stage blocks in $VIKER_CACHE_REMOTE too; the part that finds all of them "
    "there seals and publishes (implies --push).",
)
@click.option("--overwrite", is_flag=True, help="Replace what the run stores about this teacher.")
@click.option("--push", is_flag=True, help="Publish the cache in $VIKER_CACHE_REMOTE when it is there.")
@click.option("--dry-run", is_flag=True, help="Print the key and what is already there.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
@config_option
@click.pass_context
def command(ctx: click.Context, /, **options: Any) -> None:
    """Run the frozen teacher once and store its rows in a cache."""
    settle(options, "precompute")
    options["push"] = options["push"] or options["stage_in_remote"]
    if options["push"] and not os.environ.get("VIKER_CACHE_REMOTE"):
        raise click.UsageError("precompute --push: expected an address in $VIKER_CACHE_REMOTE, found none.")
    if options["stage_in_remote"] and os.environ["VIKER_CACHE_REMOTE"].startswith("hf://"):
        raise click.UsageError(
            "precompute --stage-in-remote: expected an object store or a folder, found "
            f"{os.environ['VIKER_CACHE_REMOTE']}: a repository keeps every block in its history. Use --push with it."
        )
    name = rows_name(*(options[name] for name in ("teacher", "split", "answers", "top_k")))
    artefact = stored_rows(options["run"], name)
    config = {
        "schema": "viker/precompute/1",
        "inputs": input_stamps(options["data"], options["model"]),
        "options": {
            **chosen_options(ctx, without=_UNRECORDED if options["answers"] != "own" else (*_UNRECORDED, "answers")),
            **{name: options[name] for name in ("top_k", "num_references", "instruction")},
        },
    }
    if artefact is not None and _is_there(artefact, config, options["overwrite"]):
        click.echo(f"precompute: complete, skipped: {artefact}")
        _note_and_push(options, str(read_json(artefact / "provenance.json")["cache"]["key"]))
        return
    started = time.time()
    from .teacher import find_or_compute

    found = find_or_compute(
        options, named=named_fields(named_options(ctx)), announce=lambda text: click.echo(text, err=True)
    )
    if found is None:
        return
    cache, facts = found
    if artefact is not None:
        begin(artefact, config)
        finish(
            artefact,
            {"cache": {"key": cache.key, "root": cache.root_digest}, **facts},
            started=started,
            device=facts["device"],
        )
    _show(cache, facts, options, time.time() - started)
    _note_and_push(options, cache.key)


def settle(options: dict[str, Any], what: str) -> None:
    """Check that model, data and pool are named, and fill in defaults that depend on the teacher.

    These are: how many images are averaged, how many tokens a row keeps, and the instruction, as text.

    Raises:
        click.UsageError: one of them is not named.
        DataError: the instruction is not usable.
    """
    for name in ("data", "model"):
        if options[name] is None:
            raise click.UsageError(f"{what}: expected --{name}, found none.")
    if options["teacher"] == "reference" and options["pool"] is None:
        raise click.UsageError(
            f"{what}: expected --pool, a folder of irrelevant images or patterns, noise, celebrities, found none. "
            "The embedded benchmark's folders are in DATA/pools; a pool never holds people to forget or retain."
        )
    options["top_k"] = _default_top_k(options)
    options["num_references"] = options["num_references"] or (1 if options["teacher"] == "noise" else 8)
    options["instruction"] = instruction_for(options["teacher"], options["instruction"])


def _note_and_push(options: dict[str, Any], key: str) -> None:
    """Note that the run refers to a cache, and publish it where that is asked for."""
    if options["run"] is not None and not options["dry_run"]:
        register_run(options["run"], key)
    if options["push"] and not options["dry_run"]:
        from .sharing_commands import publish

        publish(os.environ["VIKER_CACHE_REMOTE"], cache_home() / key[:16], lambda text: click.echo(text, err=True))
    if options["stage_in_remote"] and not options["dry_run"]:
        from .sharing.addresses import open_store
        from .sharing.staging import remove_staged

        remove_staged(open_store(os.environ["VIKER_CACHE_REMOTE"]), key)


def _default_top_k(options: dict[str, Any]) -> int:
    if options["top_k"] is not None:
        return int(options["top_k"])
    is_forgotten = options["teacher"] == "self" and options["split"] in ("forget", "all")
    return 0 if is_forgotten or options["answers"] == "refusal" else 64


def _is_there(artefact: Path, config: dict[str, Any], overwrite: bool) -> bool:
    """Whether the run's stored key was made with these options and its cache still exists."""
    if decide(artefact, config, overwrite=overwrite, what="precompute") == "run":
        return False
    key = str(read_json(artefact / "provenance.json")["cache"]["key"])
    return (cache_home() / key[:16] / "manifest.json").is_file()


def named_fields(named: frozenset[str]) -> frozenset[str]:
    """Return the fingerprint fields that named options fix."""
    return frozenset(field for option, field in _NAMES.items() if option in named)


def _show(cache: "TeacherCache", facts: dict[str, Any], options: dict[str, Any], seconds: float) -> None:
    from .reading.summary import summarize

    summary = {
        "schema": "viker/precompute-summary/1",
        "key": cache.key,
        "path": str(cache.root),
        **facts,
        **summarize(cache, options["key_entropy"]),
    }
    if options["as_json"]:
        click.echo(json.dumps(summary, indent=2, sort_keys=True))
        return
    busy = f", engine busy {facts['spent']['busy']:.0%}" if "spent" in facts else ""
    rows = f"{options['teacher']} rows of {'refusals to ' if options['answers'] == 'refusal' else ''}{options['split']}"
    click.echo(f"precompute: {rows}: {summary['how']} in {seconds:.1f} s{busy} -> {cache.root}")
    click.echo(
        f"  {summary['rows']} rows of {summary['samples']} samples, {summary['bytes_per_row']} bytes a row, "
        f"kept mass 5/50/95 %: {summary['kept_mass_quantiles']}"
    )
    click.echo(
        f"  {summary['key_tokens']} key and {summary['normal_tokens']} normal tokens; mean R(y) at key tokens "
        f"{summary['answer_probability_at_key_tokens']}, at normal {summary['answer_probability_at_normal_tokens']}"
    )
    leak = summary["answer_probability_at_key_tokens"]
    if options["teacher"] == "reference" and leak is not None and leak > 0.3:
        click.echo(
            "  Warning: the references leak answers: the teacher says them under irrelevant images too. "
            "Name another --pool.",
            err=True,
        )
    click.echo(f"  {PRIVACY}")
