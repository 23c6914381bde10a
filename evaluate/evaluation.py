"""Evaluate targets one after the other: ask, keep, score. Each is complete, resumable, or absent.

What is told by a model is kept batch by batch in `work/` inside the evaluation (`work.py`), so that a kill costs the
batches in flight, and removed once `answers.jsonl` holds it. Scores are written from that file alone. Whom to evaluate
is `commands.py`'s decision, what is asked `ask.py`'s.
"""

import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click

from ..data.artefact import begin, finish, is_complete, read_json, resumable, write_json
from ..data.controls import refuse_acquaintances
from ..data.example import DataError, Example
from ..data.sources import open_source
from ..models.load import pick_device
from ..models.vllm_start import require_vllm
from .after_answers import with_fluency, with_grades, with_gradient_norms
from .answers import Answer, count_without_logprob, read_answers, write_answers
from .ask import (
    CLEAR_TASKS,
    CONTROLS,
    Protocol,
    Purpose,
    answers_of,
    collect_questions,
    jobs_of,
    letter_tokens,
    longest_reply,
    prompted_questions,
    without_options,
)
from .measures.comparisons import NO_VERDICT
from .named_source import facts_of, open_named_source
from .policy import Policy, record_policy
from .processes import ProcessEnded, threads_each
from .protocols.clear import OPTION_SUFFIX
from .protocols.clear_corrections import CORRECTIONS as OF_CLEAR
from .protocols.clear_table import clear_table
from .protocols.corrections import as_published
from .protocols.every import CORRECTIONS
from .protocols.mllmu import Prompted
from .protocols.official_scores import official_table
from .runner import Once, Runner, checkpoint_of, loading_of
from .score import person_scores, score_answers, scores_json
from .token_candidates import keep_candidates, training_answers
from .work import Job

PUBLISHED_FILE = "published.json"
_WORK = "work"


class Asked(NamedTuple):
    """What every target is asked: the questions, their jobs, what each job is for; answers to look at by token."""

    prompted: Sequence[Prompted]
    jobs: Sequence[Job]
    purposes: Sequence[Purpose]
    by_token: Sequence[Example]


class Target(NamedTuple):
    """One model to evaluate: what it is, where its evaluation goes, and the evaluation's options."""

    spec: str
    output: Path
    config: dict[str, Any]


def evaluate_targets(
    options: Mapping[str, Any], targets: Mapping[str, Target], vanilla: str | None, policy: Policy | None
) -> None:
    """Ask every target everything, keep and score it.

    Args:
        options: those of the command.
        targets: by name.
        vanilla: the model that says how fluent replies are, None where nobody does.
        policy: recorded beside each evaluation before its first answer is made.

    Raises:
        DataError: the source, a model or an answer is not usable; what was begun for that model is removed.
    """
    if options["engine"] == "vllm":
        require_vllm()  # before anything that is there is replaced
    protocol = protocol_of(options)
    questions = open_questions(options)
    prompted = prompted_questions(questions, protocol)
    _tell_unscored(questions, prompted)
    for split, left_out in without_options(questions, protocol).items():
        for reason, count in left_out.items():
            click.echo(f"evaluate: {split}: questions by options go without {count} {reason}", err=True)
    longest, letters = longest_reply(questions, protocol), letter_tokens(questions, protocol)
    work = Asked(prompted, *jobs_of(prompted, longest, letters), training_answers(options))
    # What the others are held against comes first, so that their label says so.
    for name, target in sorted(targets.items(), key=lambda item: item[0] != "retain-only"):
        started = time.time()
        run = _runner(options, target)
        if is_complete(target.output):  # replaced only by a model that can be loaded
            run.require_loadable()
        if not resumable(target.output, target.config):
            begin(target.output, target.config)
        if policy is not None:
            record_policy(target.output, policy)
        try:
            answers, facts = _ask(options, work, name, run, vanilla)
        except ProcessEnded:  # memory, most often: what is finished is kept, and the same command goes on
            raise
        except ValueError:  # a user's mistake: nothing half-done stays
            shutil.rmtree(target.output)
            raise
        write_answers(target.output / "answers.jsonl", answers)
        shutil.rmtree(target.output / _WORK, ignore_errors=True)
        score_kept(target.output, options)
        facts["questions"] = {split: len(examples) for split, examples in questions.items()}
        finish(target.output, facts, started=started, device=facts["device"])
        click.echo(f"evaluate: {name}: {len(answers)} answers in {time.time() - started:.0f} s -> {target.output}")


def protocol_of(options: Mapping[str, Any]) -> Protocol:
    """Return the protocol that the options ask for: `official` is every step, word and length as published."""
    is_official = options["protocol"] == "official"
    return Protocol(
        style="official" if is_official else options["style"],
        max_new_tokens=None if is_official else options["max_new_tokens"],
        batch_size=options["batch_size"],
        tasks=tuple(options["task"]),
        few_shot=options["few_shot"] if is_official else options["few_shot"] or 0,
        as_published=as_published(options["protocol"], options["as_published"], CORRECTIONS),
        seed=options["seed"],
    )


def open_questions(options: Mapping[str, Any]) -> dict[str, list[Example]]:
    """Return the questions of every split of the source, and of the controls where some are named."""
    source = open_named_source(options)
    controls = open_source(options["controls"]) if options["controls"] else None
    questions = collect_questions(source, options["task"], options["limit"], options["real"], controls)
    for opened in (source, *([controls] if controls else [])):
        for split, skipped in opened.skipped().items():
            for reason, count in skipped.items():
                click.echo(f"evaluate: {split}: left out {count} {reason}", err=True)
    if CONTROLS in questions:
        refuse_acquaintances(questions[CONTROLS], (*source.training("all"), *questions["forget"]))
    if not questions["forget"]:
        raise DataError(
            f"{source.location}: expected questions about the forget people ({', '.join(options['task'])}), found "
            "none. Check --forget, --ratio and --task."
        )
    return questions


def score_kept(output: Path, options: Mapping[str, Any]) -> None:
    """Score the kept answers of one evaluation, and say what they can be compared with."""
    answers = read_answers(output / "answers.jsonl")
    if without := count_without_logprob(answers):
        click.echo(
            f"evaluate: {output}: {without} generated answers were kept without their log-probability and are scored "
            "without `answer_logprob`. Evaluate again with --overwrite to have it.",
            err=True,
        )
    as_published = protocol_of(options).as_published
    facts = facts_of(options)
    records = score_answers(answers, facts, options["seed"], as_published)
    people = person_scores(answers, facts, as_published)
    write_json(output / "scores.json", scores_json(records, people) | {"label": label_of(output, answers)})
    if table := _published_table(output, answers, options):
        write_json(output / PUBLISHED_FILE, table)


def _published_table(output: Path, answers: Sequence[Answer], options: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the table a benchmark publishes: CLEAR's by any protocol, MLLMU-Bench's by its official one."""
    if any(answer.task in CLEAR_TASKS for answer in answers):
        ideal = output.parent / "retain-only"
        retain_only = read_answers(ideal / "answers.jsonl") if is_complete(ideal) else None
        return clear_table(answers, retain_only, protocol_of(options).as_published & set(OF_CLEAR), options["seed"])
    if options["protocol"] == "official":
        return {"schema": "viker/published-table/1", "values": official_table(answers)}
    return None


def label_of(output: Path, answers: Sequence[Answer]) -> str:
    """Return what an evaluation's numbers can be held against, in words."""
    found = [
        *(["retain-only"] if is_complete(output.parent / "retain-only") or output.name == "retain-only" else []),
        *(["controls"] if any(answer.split == CONTROLS for answer in answers) else []),
    ]
    return f"compared with {' and '.join(found)}" if found else NO_VERDICT


def rescore(output: Path, options: Mapping[str, Any]) -> None:
    """Score a complete evaluation again.

    Raises:
        DataError: it is not complete.
    """
    if not is_complete(output):
        raise DataError(
            f"{output}: expected a complete evaluation to score again, found none. Run it without --rescore."
        )
    score_kept(output, dict(options) | _asked_with(output))
    click.echo(f"evaluate: scored again: {output}")


def _asked_with(output: Path) -> dict[str, Any]:
    """Return what an evaluation was asked with and cannot be changed by scoring: its protocol and its controls."""
    recorded = read_json(output / "config.json").get("options", {})
    names = ("protocol", "as_published", "controls", "few_shot", "style")
    return {name: recorded[name] for name in names if name in recorded}


def _tell_unscored(questions: Mapping[str, Sequence[Example]], prompted: Sequence[Prompted]) -> None:
    """Say how many questions the published protocol leaves out: those of the people in its few-shot blocks."""
    asked: dict[str, int] = {}
    for one in prompted:
        asked[one.split] = asked.get(one.split, 0) + (not one.example.id.endswith(OPTION_SUFFIX))
    for split, examples in questions.items():
        if (left_out := len(examples) - asked.get(split, 0)) > 0:
            click.echo(
                f"evaluate: {split}: {left_out} questions of few-shot people are not asked, as published", err=True
            )


def _runner(options: Mapping[str, Any], target: Target) -> Runner:
    loading = loading_of(options, checkpoint_of(options, target.spec))
    return Runner(options, loading, Once(loading.load), target.output / _WORK)


def _ask(
    options: Mapping[str, Any], work: Asked, name: str, run: Runner, vanilla: str | None
) -> tuple[list[Answer], dict[str, Any]]:
    """Return a target's answers, with facts for provenance."""
    prompted = work.prompted
    answers = answers_of(prompted, work.purposes, run(work.jobs, f"ask {name}"), name)
    if options["gradient_norm"]:
        answers = with_gradient_norms(run.model(), prompted, answers)
    keep_candidates(options, run.model, work.by_token, run.folder.parent)
    run.model.forget()
    if vanilla is not None and options["fluency"]:
        answers = with_fluency(options, prompted, answers, vanilla, run.folder / "fluency")
    if options["gibberish"]:
        answers = with_grades(options, answers)
    facts = {"device": pick_device(options["device"]), "model_commit": run.loading.checkpoint.commit}
    if options["engine"] == "vllm":
        facts["vllm"] = require_vllm()
    return answers, facts | ({"threads": threads_each(options["processes"])} if facts["device"] == "cpu" else {})
