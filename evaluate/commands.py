"""`viker evaluate`: ask models the whole protocol, keep every reply, score them.

Several models can be asked by one call, so that questions are read once: with `--run`, vanilla, retain-only and every
complete adapter of the run. Replies are kept; `--rescore` computes scores again without a model.
"""

import shutil
import time
from pathlib import Path
from typing import Any

import click

from ..data.artefact import begin, decide, finish, is_complete, read_json, write_json
from ..data.example import DataError
from ..data.inputs import input_stamps
from ..data.options import chosen_options, config_option, model_options, source_options

TASKS = ("classification", "cloze", "generation")
_NOT_PROTOCOL = (
    "run",
    "output",
    "target",
    "overwrite",
    "dry_run",
    "rescore",
    "device",
    "batch_size",
    "as_json",
    "model",
    "models",
)


@click.command()
@click.option(
    "--run", type=click.Path(path_type=Path), help="Evaluate this run's models; evaluations go to RUN/evaluations."
)
@click.option(
    "--target",
    "target",
    multiple=True,
    metavar="NAME",
    help="With --run: only these (vanilla, retain-only, an adapter's name).",
)
@click.option("--output", type=click.Path(path_type=Path), help="Where the evaluation of --model goes (without --run).")
@source_options
@model_options
@click.option(
    "--style",
    type=click.Choice(["official", "plain"]),
    default="official",
    show_default=True,
    help="The protocol's instructions, or the bare question.",
)
@click.option(
    "--task",
    "task",
    multiple=True,
    type=click.Choice(TASKS),
    default=TASKS,
    show_default=True,
    help="Which tasks (repeatable).",
)
@click.option(
    "--few-shot", default=0, show_default=True, help="official: answered questions of so many retain people in front."
)
@click.option(
    "--real",
    type=click.Choice(["all", "heldout"]),
    default="all",
    show_default=True,
    help="heldout: without the celebrities that are references.",
)
@click.option("--max-new-tokens", default=50, show_default=True, help="Longest reply.")
@click.option("--batch-size", default=32, show_default=True, help="Questions a batch; halved when memory runs out.")
@click.option(
    "--seed",
    default=0,
    show_default=True,
    help="Seed of the intervals and of what the official code leaves to chance.",
)
@click.option("--limit", type=int, help="Only so many people a split.")
@click.option("--rescore", is_flag=True, help="Score the kept answers again; no model is loaded.")
@click.option("--overwrite", is_flag=True, help="Ask again where an evaluation with other options is complete.")
@click.option("--dry-run", is_flag=True, help="Say what would be asked.")
@config_option
@click.pass_context
def command(ctx: click.Context, /, **options: Any) -> None:
    """Say what was forgotten and what survived."""
    if options["data"] is None:
        raise click.UsageError("evaluate: expected --data, found none.")
    targets = find_targets(options)
    waiting = {}
    for name, (spec, output) in targets.items():
        config = {
            "schema": "viker/evaluation/1", "inputs": input_stamps(options["data"], spec),
            "options": {**chosen_options(ctx, without=_NOT_PROTOCOL), "model": spec},
        }  # fmt: skip
        if options["rescore"]:
            _rescore(output, options)
        elif decide(output, config, overwrite=options["overwrite"], what="evaluation") == "skip":
            click.echo(f"evaluate: {name}: complete, skipped: {output}")
        elif options["dry_run"]:
            click.echo(f"evaluate: would ask {name} ({spec}) into {output}")
        else:
            waiting[name] = (spec, output, config)
    if waiting:
        _evaluate(options, waiting)


def find_targets(options: dict[str, Any]) -> dict[str, tuple[str, Path]]:
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
    adapters = sorted((run / "adapters").glob("*/")) if (run / "adapters").is_dir() else []
    for path in adapters:
        if not is_complete(path):
            continue
        if remade := _remade_inputs(path):
            click.echo(
                f"evaluate: left out {path.name}: {', '.join(remade)} was made again after it. Train it again.",
                err=True,
            )
        else:
            models[path.name] = str(path)
    unknown = sorted(set(options["target"]) - set(models))
    if unknown:
        raise DataError(f"--target: expected some of {', '.join(models)}, found {', '.join(unknown)}.")
    chosen = options["target"] or tuple(models)
    return {name: (models[name], run / "evaluations" / name) for name in chosen}


def _remade_inputs(adapter: Path) -> list[str]:
    """Return the inputs of an adapter that were made again since: on other weights it means nothing."""
    stamps = read_json(adapter / "config.json").get("inputs", {})
    return [
        spec
        for spec, stamp in stamps.items()
        if is_complete(Path(spec)) and read_json(Path(spec) / "provenance.json").get("finished") != stamp
    ]


def _evaluate(options: dict[str, Any], waiting: dict[str, tuple[str, Path, dict[str, Any]]]) -> None:
    from ..data.sources import open_source
    from .answers import answer_line
    from .ask import Protocol, ask_model, collect_questions

    source = open_source(
        options["data"], ratio=options["ratio"], forget=options["forget"], revision=options["data_revision"]
    )
    questions = collect_questions(source, options["task"], options["limit"], options["real"])
    for split, skipped in source.skipped().items():
        for reason, count in skipped.items():
            click.echo(f"evaluate: {split}: left out {count} {reason}", err=True)
    protocol = Protocol(
        style=options["style"],
        max_new_tokens=options["max_new_tokens"],
        batch_size=options["batch_size"],
        tasks=tuple(options["task"]),
        few_shot=options["few_shot"],
        seed=options["seed"],
    )
    for name, (spec, output, config) in waiting.items():
        started = time.time()
        begin(output, config)
        try:
            answers, facts = ask_model(spec, options, questions, protocol, name)
        except ValueError:  # a user's mistake: nothing half-done stays
            shutil.rmtree(output)
            raise
        lines = "".join(answer_line(answer) + "\n" for answer in answers)
        (output / "answers.jsonl").write_text(lines, encoding="utf-8")
        _score(output, source.location, options["seed"])
        finish(output, facts, started=started, device=facts["device"])
        click.echo(f"evaluate: {name}: {len(answers)} answers in {time.time() - started:.0f} s -> {output}")


def _score(output: Path, location: Path, seed: int) -> None:
    """Score the kept answers of one evaluation."""
    from ..data.sidecar import read_sidecar
    from .answers import count_without_logprob, read_answers
    from .score import score_answers, scores_json

    answers = read_answers(output / "answers.jsonl")
    if without := count_without_logprob(answers):
        click.echo(
            f"evaluate: {output}: {without} generated answers were kept without their log-probability and are scored "
            "without `answer_logprob`. Evaluate again with --overwrite to have it.",
            err=True,
        )
    sidecar = location / "sidecar.json"
    records = score_answers(answers, read_sidecar(sidecar) if sidecar.is_file() else None, seed)
    write_json(output / "scores.json", scores_json(records))


def _rescore(output: Path, options: dict[str, Any]) -> None:
    if not is_complete(output):
        raise DataError(
            f"{output}: expected a complete evaluation to score again, found none. Run it without --rescore."
        )
    from ..data.sources import open_source

    source = open_source(options["data"], ratio=options["ratio"], forget=options["forget"])
    _score(output, source.location, options["seed"])
    click.echo(f"evaluate: scored again: {output}")
