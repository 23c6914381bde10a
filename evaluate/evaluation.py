"""Evaluate targets one after the other: ask, keep, score. Each is complete, resumable, or absent.

What is told by a model is kept batch by batch in `work/` inside the evaluation (`work.py`), so that a kill costs the
batches in flight, and removed once `answers.jsonl` holds it. Scores are written from that file alone. Whom to evaluate
is `commands.py`'s decision, what is asked `ask.py`'s.
"""

import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch

from ..data.artefact import begin, finish, is_complete, read_json, resumable, write_json
from ..data.controls import refuse_acquaintances
from ..data.example import DataError, Example
from ..data.sources import open_source
from ..models.load import Checkpoint, Loaded, pick_device, resolve
from .answers import Answer, answer_line, count_without_logprob, read_answers
from .ask import (
    CONTROLS,
    Protocol,
    Purpose,
    answers_of,
    collect_questions,
    jobs_of,
    letter_tokens,
    longest_reply,
    prompted_questions,
)
from .gradient_norm import gradient_norms
from .measures.coherence import IS_LETTER, fluency_examples, typical_token
from .measures.comparisons import NO_VERDICT
from .named_source import facts_of, open_named_source
from .policy import Policy, record_policy
from .processes import Loading, run_jobs_in_processes
from .protocols.corrections import as_published
from .protocols.every import CORRECTIONS
from .protocols.mllmu import Prompted
from .score import person_scores, score_answers, scores_json
from .work import Job, Result, run_jobs

_WORK = "work"
_GRADIENT_SPLITS = ("forget", CONTROLS)


class Asked(NamedTuple):
    """What every target is asked: the questions, their jobs, and what each job is for."""

    prompted: Sequence[Prompted]
    jobs: Sequence[Job]
    purposes: Sequence[Purpose]


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
    protocol = protocol_of(options)
    questions = open_questions(options)
    prompted = prompted_questions(questions, protocol)
    _tell_unscored(questions, prompted)
    longest, letters = longest_reply(questions, protocol), letter_tokens(questions, protocol)
    work = Asked(prompted, *jobs_of(prompted, longest, letters))
    for name, target in targets.items():
        started = time.time()
        if not resumable(target.output, target.config):
            begin(target.output, target.config)
        if policy is not None:
            record_policy(target.output, policy)
        try:
            answers, facts = _ask(options, work, name, target, vanilla)
        except ValueError:  # a user's mistake: nothing half-done stays
            shutil.rmtree(target.output)
            raise
        text = "".join(answer_line(answer) + "\n" for answer in answers)
        (target.output / "answers.jsonl").write_text(text, encoding="utf-8")
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
        asked[one.split] = asked.get(one.split, 0) + (not one.example.id.endswith("/options"))
    for split, examples in questions.items():
        if (left_out := len(examples) - asked.get(split, 0)) > 0:
            click.echo(
                f"evaluate: {split}: {left_out} questions of few-shot people are not asked, as published", err=True
            )


def loading_of(options: Mapping[str, Any], checkpoint: Checkpoint) -> Loading:
    """Return how a model is loaded, as the options say."""
    return Loading(
        checkpoint=checkpoint, device=pick_device(options["device"]), dtype=options["dtype"],
        attention=options["attention"], trust_remote_code=options["trust_remote_code"],
        chat_template=options["chat_template"], system_prompt=options["system_prompt"],
        score_end_token=options["score_end_token"],
    )  # fmt: skip


def checkpoint_of(options: Mapping[str, Any], spec: str) -> Checkpoint:
    """Return a target's checkpoint."""
    return resolve(spec, revision=options["revision"], processor=options["processor"])


def _ask(
    options: Mapping[str, Any], work: Asked, name: str, target: Target, vanilla: str | None
) -> tuple[list[Answer], dict[str, Any]]:
    """Return a target's answers, with facts for provenance."""
    prompted = work.prompted
    checkpoint = checkpoint_of(options, target.spec)
    model = _Once(loading_of(options, checkpoint).load)
    run = _Runner(options, loading_of(options, checkpoint), model, target.output / _WORK)
    answers = answers_of(prompted, work.purposes, run(work.jobs, f"ask {name}"), name)
    if options["gradient_norm"]:
        answers = _with_gradient_norms(model(), prompted, answers)
    model.forget()
    if vanilla is not None and options["fluency"]:
        answers = _with_fluency(options, prompted, answers, vanilla, target.output / _WORK / "fluency")
    if options["gibberish"]:
        answers = _with_grades(options, answers)
    facts = {"device": pick_device(options["device"]), "model_commit": checkpoint.commit}
    return answers, facts | ({"threads": torch.get_num_threads()} if facts["device"] == "cpu" else {})


class _Once:
    """A model that is loaded when it is first asked for, and kept until it is forgotten."""

    def __init__(self, load: Callable[[], Loaded]) -> None:
        self._load = load
        self._loaded: Loaded | None = None

    def __call__(self) -> Loaded:
        if self._loaded is None:
            self._loaded = self._load()
        return self._loaded

    def forget(self) -> None:
        """Let its memory go."""
        self._loaded = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


class _Runner(NamedTuple):
    """Where jobs of one model are computed: here, in several processes, or replies by vLLM and scores here."""

    options: Mapping[str, Any]
    loading: Loading
    model: _Once
    folder: Path

    def __call__(self, jobs: Sequence[Job], desc: str) -> list[Result]:
        if self.options["engine"] == "vllm":
            return self._replies_by_vllm(jobs, desc)
        return self._run(jobs, desc)

    def _run(self, jobs: Sequence[Job], desc: str) -> list[Result]:
        batch_size, processes = self.options["batch_size"], self.options["processes"]
        if processes > 1:
            return run_jobs_in_processes(
                jobs, self.loading, num_processes=processes, batch_size=batch_size, folder=self.folder, desc=desc
            )
        return run_jobs(jobs, self.model(), batch_size=batch_size, folder=self.folder, desc=desc)

    def _replies_by_vllm(self, jobs: Sequence[Job], desc: str) -> list[Result]:
        from .vllm_replies import run_jobs_with_vllm

        is_reply = [job.kind == "reply" for job in jobs]
        replies = iter(
            run_jobs_with_vllm(
                [job for job in jobs if job.kind == "reply"], self.loading, options=self.options["vllm_options"],
                folder=self.folder / "vllm", desc=desc,
            )
        )  # fmt: skip
        scores = iter(self._run([job for job in jobs if job.kind != "reply"], f"{desc}, likelihoods"))
        return [next(replies) if reply else next(scores) for reply in is_reply]


def _with_gradient_norms(loaded: Loaded, prompted: Sequence[Prompted], answers: Sequence[Answer]) -> list[Answer]:
    """Return the answers with gradient norms where membership is asked: expected answers about forget and controls."""
    chosen = [
        index for index, answer in enumerate(answers)
        if answer.split in _GRADIENT_SPLITS and answer.answer_logprob is not None
    ]  # fmt: skip
    norms = gradient_norms(loaded.model, loaded.encoder, [prompted[index].example for index in chosen])
    found = dict(zip(chosen, norms, strict=True))
    return [replace(answer, gradient_norm=found.get(index)) for index, answer in enumerate(answers)]


def _with_fluency(
    options: Mapping[str, Any], prompted: Sequence[Prompted], answers: Sequence[Answer], vanilla: str, folder: Path
) -> list[Answer]:
    """Return the answers with how likely vanilla finds each reply behind the same question."""
    loading = loading_of(options, checkpoint_of(options, vanilla))
    prompts, replies = [asked.prompt for asked in prompted], [answer.reply or "" for answer in answers]
    asked = fluency_examples(prompts, replies, loading.encoder())
    model = _Once(loading.load)
    run = _Runner(dict(options) | {"engine": "transformers"}, loading, model, folder)
    results = run([Job("score", example) for _, example in asked.chosen], "fluency")
    found: dict[int, list[float]] = {
        index: [float(token[0]) for token in tokens] for (index, _), tokens in zip(asked.chosen, results, strict=True)
    }
    for reason, count in Counter(asked.left_out.values()).items():
        if reason != IS_LETTER:
            click.echo(f"evaluate: fluency: left out {count} replies: {reason}", err=True)
    return [
        answer if index not in found else replace(
            answer, fluency=(sum(found[index]), len(found[index])), fluency_median=typical_token(found[index])
        )
        for index, answer in enumerate(answers)
    ]  # fmt: skip


def _with_grades(options: Mapping[str, Any], answers: Sequence[Answer]) -> list[Answer]:
    """Return the answers with what a detector of gibberish makes of replies that are speech."""
    from .measures.gibberish import grade_replies, load_detector

    detector = load_detector(
        options["gibberish"], revision=options["gibberish_revision"], device=pick_device(options["device"])
    )
    longest = options["gibberish_max_length"]
    spoken = [index for index, answer in enumerate(answers) if answer.task != "classification"]
    grades = dict(
        zip(
            spoken,
            grade_replies(detector, [answers[index].reply or "" for index in spoken], max_length=longest),
            strict=True,
        )
    )
    if cut := sum(grade.is_cut for grade in grades.values()):
        click.echo(f"evaluate: gibberish: {cut} replies are longer than the detector reads, and were cut", err=True)
    return [
        replace(answer, clean=(grades[index].p_clean, int(grades[index].is_clean))) if index in grades else answer
        for index, answer in enumerate(answers)
    ]
