"""`viker sweep`: train a grid of settings, compare them at matched forgetting, and keep every number.

What has to exist is made, what is missing is trained, by local processes or by lines for a cluster; then everything is
read back and shown. With development worlds, settings are chosen on them and only those are trained on the worlds that
are reported. The parts are `study.py`, `asked.py`, `prepare.py`, `jobs.py`, `local.py`, `collect.py`, `choose.py`,
`analyze.py`, `page.py`.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from ..data.example import DataError
from .analyze import analyze
from .asked import Asked, ranked_as, resolve
from .choose import choose, settings_to_report
from .collect import Trained, read_bar, read_run, read_trained
from .grid import Setting
from .jobs import Job, as_line, as_process, draw_of
from .local import Failure, Task, run_tasks
from .prepare import Role, Run
from .results import Result, write_result
from .study import STUDIES


@click.command()
@click.option(
    "--study", type=click.Choice(list(STUDIES)), help="A comparison by name: fills in what is not named here."
)
@click.option("--run", type=click.Path(path_type=Path), help="Sweep over this run, with its --data and --model.")
@click.option("--data", metavar="DIR|ID", help="--run: its data.")
@click.option("--model", metavar="DIR|ID", help="--run: the model that unlearning starts from.")
@click.option("--pool", metavar="DIR|NAME", help="--run: irrelevant images, for rows it lacks (else the preset's).")
@click.option("--worlds", metavar="SEEDS", help="Report on these worlds of the embedded benchmark, e.g. 11,12,13.")
@click.option("--dev", metavar="SEEDS", help="Choose settings on these worlds first (else every setting is reported).")
@click.option(
    "--methods", help="Axis: methods of `viker train --list-methods`, or FILE.py:NAME.  [default: recommended]"
)
@click.option("--pools", help="Axis: pools of irrelevant images, folders or names; each is a cache of its own.")
@click.option("--regularizers", help="Axis: kl, jsd, cosine, none.")
@click.option("--ascents", help="Axis: uniform, adaptive, none.")
@click.option("--teachers", help="Axis: other rows of the forget examples: reference, self, noise, prompt, text.")
@click.option("--token-lambdas", help="Axis: constant, entropy.")
@click.option("--learning-rates", help="Axis: learning rates, e.g. 1e-3,2e-3 (else the preset's).")
@click.option("--lambdas", help="Axis: weights of the regularizer (else each method's own).")
@click.option("--retains", help="Axis: weights of the retain term (else each method's own).")
@click.option("--num-references", help="Axis: irrelevant images an answer (k); each is a cache of its own.")
@click.option("--top-ks", help="Axis: tokens read of a row (K).")
@click.option("--seeds", default="0", show_default=True, help="Seeds every setting is trained under.")
@click.option("--hp", multiple=True, metavar="[METHOD:]NAME=A,B", help="Axis: a method's own setting (repeatable).")
@click.option("--num-train-epochs", type=float, help="The step cap every setting gets (else the preset's).")
@click.option("--evaluate-every", default=4, show_default=True, type=click.IntRange(1), help="Steps between points.")
@click.option("--evaluate-people", default=12, show_default=True, help="Retain people a half measured at each point.")
@click.option("--jobs", type=click.IntRange(1), help="Local processes at a time; on one GPU, 1.", show_default="cores")
@click.option("--runs", type=click.Path(path_type=Path), default=Path("runs/sweep"), show_default=True,
              help="Where worlds go.")  # fmt: skip
@click.option("--output", type=click.Path(path_type=Path), show_default="in RUN or RUNS", help="The results, JSON; the "
              "page is .md beside it.")  # fmt: skip
@click.option("--dry-run", type=click.Choice(["prepare", "jobs", "unseen"]), is_flag=False, flag_value="jobs",
              help="Print one command a line and do nothing: `--dry-run=prepare` what has to exist first, `--dry-run` "
              "the jobs that are left (on development worlds before unseen ones), `--dry-run=unseen` those on unseen "
              "worlds, chosen by what is complete.")  # fmt: skip
@click.argument("train_options", nargs=-1, type=click.UNPROCESSED, metavar="[-- TRAIN-OPTIONS]")
@click.pass_context
def command(ctx: click.Context, /, **options: Any) -> None:
    """Train a grid of settings and compare them at matched forgetting; TRAIN-OPTIONS go to every `viker train`."""
    asked = resolve(options, ctx.obj["preset"], _announce)
    if options["dry_run"] == "prepare":
        _print_preparation(asked)
    elif options["dry_run"] is not None:
        _print_jobs(asked, skip_development=options["dry_run"] == "unseen")
    else:
        _sweep(asked, options["jobs"] or os.cpu_count() or 1, options["output"] or _place(options))


def _announce(text: str) -> None:
    click.echo(text, err=True)


def _place(options: Mapping[str, Any]) -> Path:
    folder: Path = options["runs"] if options["run"] is None else options["run"]
    return folder / f"{options['study'] or 'sweep'}.json"


def _print_preparation(asked: Asked) -> None:
    """Print a line a run that lacks something; the commands of a world build on each other."""
    for run in asked.runs:
        missing = [step for step in asked.steps(run) if not step.is_done]
        if run.is_world and missing:
            click.echo(as_line([*asked.recipe.opening, *step.words] for step in missing))
            continue
        for step in missing:
            click.echo(as_line([[*asked.recipe.opening, *step.words]]))


def _print_jobs(asked: Asked, *, skip_development: bool) -> None:
    """Print the trainings that are left: on development worlds, and once those are complete on the others."""
    unprepared = [run.name for run in asked.runs if not _is_prepared(asked, run)]
    if unprepared and any(draw_of(setting) for setting in asked.settings):
        raise DataError(
            f"sweep --dry-run: expected the caches that jobs name, found {', '.join(unprepared)} without. Run the "
            "lines of `--dry-run=prepare` first."
        )
    if unprepared:
        _announce(f"sweep: run the lines of `--dry-run=prepare` first: {', '.join(unprepared)} lack what jobs read")
    development = [] if skip_development else _missing(asked, asked.jobs("development", asked.tried))
    jobs = development or _missing(asked, asked.jobs("reported", _settings_to_report(asked)))
    for job in jobs:
        click.echo(as_line([job.words]))
    if development:
        _announce(f"sweep: {len(jobs)} jobs on development worlds; the same command then prints those on unseen ones")
    else:
        _announce(f"sweep: {len(jobs)} jobs left" + ("" if jobs else "; without --dry-run the results are written"))


def _is_prepared(asked: Asked, run: Run) -> bool:
    return all(step.is_done for step in asked.steps(run))


def _missing(asked: Asked, jobs: Sequence[Job]) -> list[Job]:
    """Return jobs whose adapter is not complete; what is not prepared is not asked."""
    prepared = {run: _is_prepared(asked, run) for run in {job.run for job in jobs}}
    return [job for job in jobs if not (prepared[job.run] and job.adapter().complete)]


def _sweep(asked: Asked, num_jobs: int, output: Path) -> None:
    """Prepare, train, choose, train on unseen worlds, and write everything down.

    Raises:
        DataError: jobs failed; what the others say is written down nevertheless.
    """
    _prepare(asked, num_jobs)
    failures = _train(asked.jobs("development", asked.tried), num_jobs, "development worlds")
    settings = _settings_to_report(asked)
    failures += _train(asked.jobs("reported", settings), num_jobs, "runs that are reported")
    done = [*_read(asked, "development", asked.tried), *_read(asked, "reported", settings)]
    number = len(done) + len(failures)
    if not done and asked.settings:
        raise _failed(failures, number)
    result = Result(
        asked=asked.told, runs=tuple(map(read_run, asked.runs)), trained=tuple(done),
        failed=tuple(failure.task.name for failure in failures),
    )  # fmt: skip
    result = replace(result, analyses=analyze(asked, result, _announce))
    write_result(output, result)
    _show(output, result)
    if failures:
        raise _failed(failures, number)


def _prepare(asked: Asked, num_jobs: int) -> None:
    tasks = []
    for run in asked.runs:
        processes = [as_process([*asked.recipe.opening, *step.words]) for step in asked.steps(run)]
        if processes:
            task = Task(f"preparing {run.path}", tuple(map(tuple, processes)), run.path / "logs" / "prepare.log")
            tasks.append(task)
    failures = run_tasks(tasks, num_jobs, "preparing") if tasks else []
    if failures:
        raise _failed(failures, len(tasks))


def _train(jobs: Sequence[Job], num_jobs: int, where: str) -> list[Failure]:
    """Train what is missing and return what failed; nothing is started for an adapter that is complete."""
    asked = [(job, job.adapter()) for job in jobs]
    left = {adapter.path: job for job, adapter in asked if not adapter.complete}  # one adapter may have two names
    missing = {job.name: job for job in left.values()}
    if jobs:
        complete = sum(adapter.complete for _, adapter in asked)
        _announce(f"sweep: {where}: {len(jobs)} jobs, {complete} of them complete")
    tasks = [Task(name, (tuple(as_process(job.words)),), job.log) for name, job in missing.items()]
    failures = run_tasks(tasks, num_jobs, where) if tasks else []
    return [failure for failure in failures if not missing[failure.task.name].adapter().complete]


def _settings_to_report(asked: Asked) -> list[Setting]:
    """Return the settings that are trained in reported runs: the chosen ones, or all where none are to be chosen."""
    runs = asked.under("development")
    if not runs:
        return list(asked.settings)
    chosen = choose(_read(asked, "development", asked.tried), len(runs) * len(asked.seeds))
    return settings_to_report(asked.settings, asked.follows, chosen)


def _read(asked: Asked, role: Role, settings: Sequence[Setting]) -> list[Trained]:
    """Return the complete trajectories of settings in the runs of a role."""
    bars = {run.name: read_bar(run) for run in asked.under(role)}
    adapters = [(job, job.adapter()) for job in asked.jobs(role, settings)]
    return [
        read_trained(job, adapter, *ranked_as(job.setting), bars[job.run.name].threshold)
        for job, adapter in adapters
        if adapter.complete
    ]


def _show(output: Path, result: Result) -> None:
    """Print the tables, and write the page and its figures beside the results."""
    from .figure import draw_all
    from .page import put_into, render

    page = output.with_suffix(".md")
    text = render(result, draw_all(output, result))
    click.echo(text)
    written = put_into(page, text, f"Sweep: {output.stem}")
    click.echo(
        f"sweep: {output}" + (f", {page}" if written else f"; {page} has no sweep markers and was left as it is")
    )


def _failed(failures: Sequence[Failure], number: int) -> DataError:
    told = "\n".join(failure.told() for failure in failures)
    return DataError(
        f"sweep: expected every job to end well, found {len(failures)} of {number} that did not; the others are kept. "
        f"Mend what is wrong and run the same command again.\n{told}"
    )
