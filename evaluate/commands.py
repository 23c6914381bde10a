"""`viker evaluate`: ask models the whole protocol, keep every reply, score them; attack, compare and judge them.

Several models can be asked by one call, so that questions are read once: with `--run`, vanilla, retain-only and every
complete adapter of the run. Replies are kept; `--rescore` computes scores again without a model. Attacks and the
verdict of a policy are made of evaluations that are complete, in the same call or a later one. How one target is
evaluated is `evaluation.py`'s, how it is attacked `attacks/`', what a policy demands `policy.py`'s.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from ..data.artefact import decide, is_complete, read_json
from ..data.example import DataError
from ..data.inputs import input_stamps
from ..data.options import chosen_options
from .attacks.attacks import ATTACKS
from .options import NOT_PROTOCOL, evaluate_options
from .protocols.corrections import as_published
from .protocols.every import CORRECTIONS

SCHEMA = "viker/evaluation/2"
EXIT_VERDICT = 4


@click.command()
@evaluate_options
@click.pass_context
def command(ctx: click.Context, /, **options: Any) -> None:
    """Say what was forgotten, what survived, and whether it can be attacked."""
    if options["list_attacks"] or options["list_corrections"]:
        _list(options)
        return
    if options["compare"]:
        _compare(options)
        return
    if options["effects"]:
        _effects(options)
        return
    if options["data"] is None:
        raise click.UsageError("evaluate: expected --data, found none.")
    as_published(options["protocol"], options["as_published"], CORRECTIONS)  # a contradiction is said before anything
    targets = find_targets(options)
    policy = _policy(options)
    _evaluate(ctx, options, targets, policy)
    if options["dry_run"]:
        return
    if options["attacks"]:
        from .attack_targets import attack_targets

        attack_targets(options, targets)
    if policy is not None:
        from .judge import judge_targets

        if not judge_targets(options, targets, policy):
            ctx.exit(EXIT_VERDICT)


def _policy(options: Mapping[str, Any]) -> Any:
    """Read the policy before anything is computed, so that its mistakes cost nothing."""
    if options["policy"] is None:
        return None
    from .policy import read_policy

    return read_policy(options["policy"], {"attack": list(ATTACKS)})


def _evaluate(
    ctx: click.Context, options: dict[str, Any], targets: Mapping[str, tuple[str, Path]], policy: Any
) -> None:
    """Ask every target that is not complete, or score again."""
    waiting: dict[str, tuple[str, Path, dict[str, Any]]] = {}
    for name, (spec, output) in targets.items():
        config = {
            "schema": SCHEMA, "inputs": _inputs(options, spec),
            "options": {**chosen_options(ctx, without=NOT_PROTOCOL), "model": spec},
        }  # fmt: skip
        if options["rescore"]:
            from .evaluation import rescore

            rescore(output, options)
        elif decide(output, config, overwrite=options["overwrite"], what="evaluation") == "skip":
            click.echo(f"evaluate: {name}: complete, skipped: {output}")
        elif options["dry_run"]:
            click.echo(f"evaluate: would ask {name} ({spec}) into {output}")
        else:
            waiting[name] = (spec, output, config)
    if waiting:
        from .evaluation import Target, evaluate_targets

        asked = {name: Target(*target) for name, target in waiting.items()}
        evaluate_targets(options, asked, _vanilla(options), policy)


def _inputs(options: Mapping[str, Any], spec: str) -> dict[str, str]:
    controls = input_stamps(options["controls"]) if options["controls"] else {}
    return {**input_stamps(options["data"], spec), **controls}


def _vanilla(options: Mapping[str, Any]) -> str | None:
    """Return the model that says how fluent replies are: the one named, or the run's vanilla; None without either."""
    if options["vanilla"] is not None or options["run"] is None:
        named: str | None = options["vanilla"]
        return named
    return str(options["model"] or options["run"] / "vanilla")


def find_targets(options: Mapping[str, Any]) -> dict[str, tuple[str, Path]]:
    """Return name -> (model, evaluation directory) of what is to be evaluated.

    Raises:
        DataError: a target the run does not have.
    """
    run: Path | None = options["run"]
    if run is None:
        if options["model"] is None or options["output"] is None:
            raise click.UsageError("evaluate: expected --run DIR, or --model and --output DIR, found neither.")
        return {Path(options["model"]).name: (options["model"], options["output"])}
    models: dict[str, str] = {"vanilla": str(options["model"] or run / "vanilla")}
    if is_complete(run / "retain-only"):
        models["retain-only"] = str(run / "retain-only")
    models |= {path.name: str(path) for path in _adapters(run)}
    unknown = sorted(set(options["target"]) - set(models))
    if unknown:
        raise DataError(f"--target: expected some of {', '.join(models)}, found {', '.join(unknown)}.")
    chosen = options["target"] or tuple(models)
    return {name: (models[name], run / "evaluations" / name) for name in chosen}


def _adapters(run: Path) -> list[Path]:
    """Return the complete adapters of a run; one whose inputs were made again is left out, with a word."""
    found = []
    for path in sorted((run / "adapters").glob("*/")) if (run / "adapters").is_dir() else []:
        if not is_complete(path):
            continue
        if remade := _remade_inputs(path):
            click.echo(
                f"evaluate: left out {path.name}: {', '.join(remade)} was made again after it. Train it again.",
                err=True,
            )
        else:
            found.append(path)
    return found


def _remade_inputs(adapter: Path) -> list[str]:
    """Return the inputs of an adapter that were made again since: on other weights it means nothing."""
    stamps = read_json(adapter / "config.json").get("inputs", {})
    return [
        spec
        for spec, stamp in stamps.items()
        if is_complete(Path(spec)) and read_json(Path(spec) / "provenance.json").get("finished") != stamp
    ]


def _compare(options: Mapping[str, Any]) -> None:
    from .compare_evaluations import compare_named

    compared = compare_named(options["compare"], options["run"], options["seed"], options["compare_metrics"] or None)
    if options["as_json"]:
        click.echo(json.dumps(compared.told, indent=2, ensure_ascii=False))
    else:
        click.echo("\n\n".join(compared.texts))


def _effects(options: Mapping[str, Any]) -> None:
    from .compare_evaluations import effects_named

    rows, table = effects_named(options["effects"])
    told = {"schema": "viker/effects/1", "effects": rows}
    click.echo(json.dumps(told, indent=2, ensure_ascii=False) if options["as_json"] else table)


def _list(options: Mapping[str, Any]) -> None:
    """Print what attacks or corrections there are."""
    told: dict[str, str] = {}
    if options["list_attacks"]:
        told |= {name: attack.summary for name, attack in ATTACKS.items()}
    if options["list_corrections"]:
        told |= {name: f"published: {each.published} Ours: {each.ours}" for name, each in CORRECTIONS.items()}
    if options["as_json"]:
        click.echo(json.dumps({"schema": "viker/list/1", "items": told}, indent=2, ensure_ascii=False))
        return
    for name, text in told.items():
        click.echo(f"{name:24} {text}")
