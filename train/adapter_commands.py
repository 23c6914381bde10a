"""`viker adapter list|inspect|export`: what adapters a run has, what one was made from, and how to hand it over.

An adapter is reversible: take it off and the base still knows. Handing it over as merged weights is a decision, so it
has its own flag, and what is known about the result travels with it: the digest of the merged weights, the caches the
adapter was trained from, and the evaluation that exists for it. Training adapters is `commands.py`'s work.
"""

import hashlib
import json
import shutil
import time
from pathlib import Path
from typing import Any

import click

from ..data.artefact import (
    CHECKPOINT_CONFIG,
    CONFIG,
    MARKER,
    begin,
    decide,
    finish,
    is_complete,
    read_config,
    read_json,
)
from ..data.example import DataError
from ..data.options import config_option, run_directory

REVERSIBLE = "reversible: the base still knows"
MERGED = "merged: the adapter cannot be taken off"
_SCHEMAS = ("viker/adapter/1", "viker/adapter/2")
_NOT_PEFT = frozenset({
    CONFIG, "provenance.json", MARKER, "training_log.jsonl", "trajectory.jsonl", "diagnose.jsonl",
})  # fmt: skip


@click.group()
def command() -> None:
    """List, inspect or export the adapters of a run."""


@command.command(name="list")
@click.option("--run", type=click.Path(path_type=Path), help="The run directory.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@config_option
def list_(run: Path | None, as_json: bool) -> None:
    """List the adapters of a run: method, steps, and what they still recall."""
    folder = run_directory(run, "adapter list") / "adapters"
    directories = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    rows = [_summary(directory) for directory in directories]
    if as_json:
        click.echo(json.dumps({"schema": "viker/adapters/1", "adapters": rows}, indent=2))
        return
    if not rows:
        click.echo(f"adapter list: none in {folder}. Train one with `viker train --run {run}`.")
    for row in rows:
        click.echo(_as_line(row))


@command.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def inspect(directory: Path, as_json: bool) -> None:
    """Show what an adapter was made with: options, inputs, caches with key and root."""
    config, provenance = read_adapter(directory)
    told = {
        "schema": "viker/adapter-inspect/1", "path": str(directory), "kind": REVERSIBLE, "config": config,
        "provenance": provenance, "caches": provenance.get("caches", {}), "evaluation": find_evaluation(directory),
    }  # fmt: skip
    if as_json:
        click.echo(json.dumps(told, indent=2, sort_keys=True))
        return
    click.echo(f"{directory}\n  {REVERSIBLE}")
    for title, values in (("options", config["options"]), ("inputs", config["inputs"]), ("provenance", provenance)):
        shown = {name: value for name, value in values.items() if name not in ("caches", "libraries", "schema")}
        click.echo("\n".join([f"  {title}", *(f"    {name:28} {value}" for name, value in shown.items())]))
    for kind, cache in told["caches"].items():
        click.echo(f"  cache {kind}: key {cache['key']} root {cache['root']}")
    click.echo(f"  evaluation: {told['evaluation']['path'] if told['evaluation'] else 'none'}")


@command.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--output", required=True, type=click.Path(path_type=Path), help="Where it goes.")
@click.option("--merge", is_flag=True, help="Merge into the base's weights, so that nothing can be taken off.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    help="--merge: of the weights (default: as trained).",
)
@click.option("--trust-remote-code", is_flag=True, help="Run code that comes with the model. Only if you read it.")
@click.option("--overwrite", is_flag=True, help="Replace an export of something else.")
def export(
    directory: Path, output: Path, merge: bool, dtype: str | None, trust_remote_code: bool, overwrite: bool
) -> None:
    """Hand an adapter over: its PEFT files, or with --merge an ordinary checkpoint."""
    trained, provenance = read_adapter(directory)
    if output.resolve() == directory.resolve():
        raise click.UsageError(
            "adapter export: expected --output to differ from the adapter's directory, found the same."
        )
    options = {"adapter": str(directory), "merge": merge, "dtype": _dtype(trained, dtype) if merge else None}
    config = {"schema": "viker/export/1", "options": options, "inputs": {str(directory): str(provenance["finished"])}}
    if decide(output, config, overwrite=overwrite, what="export") == "skip":
        click.echo(f"adapter export: complete, skipped: {output}")
        return
    started = time.time()
    known = {"adapter": {"config": trained, "provenance": provenance}, "caches": provenance.get("caches", {}),
             "evaluation": find_evaluation(directory), "kind": MERGED if merge else REVERSIBLE}  # fmt: skip
    if merge:
        known |= _write_merged(directory, output, config, trust_remote_code=trust_remote_code)
    else:
        _copy_peft(directory, output, config)
    finish(output, known, started=started)
    evaluated = "an evaluation of the adapter is recorded" if known["evaluation"] else "no evaluation exists for it"
    click.echo(f"adapter export: {known['kind']}; {evaluated} -> {output}")


def read_adapter(directory: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return an adapter's config and provenance.

    Raises:
        DataError: the directory is no finished adapter of `viker train`.
    """
    if not (directory / "adapter_config.json").is_file() or not is_complete(directory):
        found = "none that is finished" if directory.is_dir() else "no such directory"
        raise DataError(
            f"{directory}: expected a finished adapter of `viker train`, found {found}. "
            "`viker adapter list --run RUN` lists them."
        )
    config = read_config(directory)
    if config.get("schema") not in _SCHEMAS:
        raise DataError(
            f"{directory}: expected schema {' or '.join(_SCHEMAS)} in config.json, found {config.get('schema')!r}."
        )
    return config, read_json(directory / "provenance.json")


def find_evaluation(directory: Path) -> dict[str, Any] | None:
    """Return which evaluation the adapter's run holds of it: where, when, and the digest of its scores."""
    evaluation = directory.resolve().parent.parent / "evaluations" / directory.resolve().name
    if not is_complete(evaluation):
        return None
    digest = hashlib.sha256((evaluation / "scores.json").read_bytes()).hexdigest()
    finished = read_json(evaluation / "provenance.json").get("finished")
    return {
        "path": str(evaluation),
        "finished": finished,
        "scores_sha256": digest,
        "forget_recall": _recall(evaluation),
    }


def _summary(directory: Path) -> dict[str, Any]:
    if not is_complete(directory):
        return {"name": directory.name, "complete": False}
    config, provenance = read_adapter(directory)
    evaluation = find_evaluation(directory)
    return {
        "name": directory.name, "complete": True, "method": config["options"]["method"],
        "lambda": config["options"].get("lambda"), "retain": config["options"].get("retain"),
        "steps": provenance.get("steps"), "stopped": provenance.get("stopped"), "evaluated": evaluation is not None,
        "forget_recall": evaluation and evaluation["forget_recall"],
    }  # fmt: skip


def _as_line(row: dict[str, Any]) -> str:
    if not row["complete"]:
        return f"{row['name']:28} unfinished"
    recall = row["forget_recall"]
    told = f"forget recall {recall:.1%}" if recall is not None else "evaluated" if row["evaluated"] else "not evaluated"
    steps = f"{row['steps']} steps{', stopped early' if row['stopped'] else ''}"
    weights = "".join(f"{name} {row[name]}, " for name in ("lambda", "retain") if row[name] is not None)
    return f"{row['name']:28} {weights}{steps}, {told}"


def _recall(evaluation: Path) -> float | None:
    """Return the share of forget facts said about a picture, if the benchmark knows its facts."""
    wanted = {"split": "forget", "task": "generation", "modality": "image", "metric": "fact_recall"}
    for record in read_json(evaluation / "scores.json")["scores"]:
        if wanted.items() <= record.items():
            return float(record["value"])
    return None


def _dtype(trained: dict[str, Any], asked: str | None) -> str:
    return asked or ("bfloat16" if trained["options"].get("bf16") else str(trained["options"].get("dtype", "float32")))


def _write_merged(directory: Path, output: Path, config: dict[str, Any], *, trust_remote_code: bool) -> dict[str, Any]:
    """Load base and adapter, merge, and save an ordinary checkpoint with processor and rendering."""
    from ..models.identity import weights_digest
    from ..models.load import Checkpoint, load, resolve
    from ..models.render import write_rendering

    checkpoint = resolve(str(directory))
    loaded = load(checkpoint, dtype=config["options"]["dtype"], trust_remote_code=trust_remote_code)
    begin(output, config, config_name=CHECKPOINT_CONFIG)
    loaded.model.merge_and_unload().save_pretrained(output)
    loaded.encoder.processor.save_pretrained(output)
    write_rendering(output, loaded.rendering)
    return {
        "weights": weights_digest(Checkpoint(str(output), output, output)),
        "unmerged_weights": weights_digest(checkpoint),
        "base": str(checkpoint.weights),
    }


def _copy_peft(directory: Path, output: Path, config: dict[str, Any]) -> None:
    begin(output, config)
    for path in sorted(directory.iterdir()):
        if path.is_file() and path.name not in _NOT_PEFT:
            shutil.copy2(path, output / path.name)
