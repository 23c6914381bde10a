"""The key-token view of a report: answers token by token, what the teacher would say there, and what models said.

A word's color is the entropy of the teacher's rows: where irrelevant images leave the teacher unsure, the word was
about the person (ViKeR, arXiv 2601.22020, calls it a key token). Beside it stand the likeliest tokens by the teacher
and by every evaluated model, vanilla before, adapters after. Models' candidates are the evaluations' (`tokens.jsonl`),
rows those of the cache that the run names (`teacher_rows.py`); nothing is computed and no model is loaded. Where there
is nothing to show, the section says why; what is left out is counted in `notes`.
"""

import json
from collections.abc import Mapping, Sequence
from math import exp
from typing import Any

from ...data.sidecar import Sidecar, read_sidecar
from ...precompute.cache import Rows
from ..token_lines import DIGITS, FILE, NUM_CANDIDATES, About, TokenLine, read_lines, spread_over_people
from .run import Run, sidecar_file
from .teacher_rows import TeacherRows, find_teacher_rows
from .token_texts import Texts, texts_of

KEY_ENTROPY = 1.0  # nats: what `viker train --key-entropy` has unless it is given
MOST_EXAMPLES = 24
MOST_BYTES = 700_000  # of the examples as `report.json` writes them
LEAST_SHOWN = 5e-5  # a probability that rounds to 0.0000 takes as much room as one that says something
_FIRST = ("vanilla", "retain-only")

Lines = Mapping[str, TokenLine]  # of one answer, by model


def tokens_section(run: Run) -> dict[str, Any]:
    """Return the key-token view of a run as plain values; where there is nothing to show, `reason` says why.

    Raises:
        DataError: a `tokens.jsonl` is damaged; its file and line are named.
    """
    notes: list[str] = []
    kept, key_entropy = _read_models(run, notes), _key_entropy(run, notes)
    section: dict[str, Any] = {
        "reason": None, "key_entropy": key_entropy, "teacher": None, "shown": 0, "of": 0, "models": list(kept),
        "examples": [], "notes": notes,
    }  # fmt: skip
    answers = _by_answer(kept, notes)
    if not answers:
        return section | {"reason": _why_no_lines(run, list(kept))}
    teacher = find_teacher_rows(run, [_any(lines).row_key for lines in answers])
    if isinstance(teacher, str):
        return section | {"reason": teacher}
    having = [lines for lines in answers if _fits(teacher, _any(lines))]
    if missing := len(answers) - len(having):
        notes.append(f"{missing} of {len(answers)} answers have no rows in the teacher cache, and are left out.")
    if not having:
        return section | {"of": len(answers), "reason": "The teacher's rows are of other tokens than these answers."}
    examples = _examples(run, having, teacher, key_entropy, notes)
    return section | {"teacher": teacher.told, "shown": len(examples), "of": len(answers), "examples": examples}


def _read_models(run: Run, notes: list[str]) -> dict[str, list[TokenLine]]:
    """Return what every evaluation kept, vanilla and retain-only first; those that kept nothing are noted."""
    evaluations = run.under("evaluations")
    order = [*(name for name in _FIRST if name in evaluations), *sorted(set(evaluations) - set(_FIRST))]
    paths = {name: evaluations[name].path / FILE for name in order}
    if without := [name for name, path in paths.items() if not path.is_file()]:
        notes.append(f"Without {FILE}, so not in this view (evaluate again with --overwrite): {', '.join(without)}.")
    return {name: read_lines(path) for name, path in paths.items() if path.is_file()}


def _by_answer(kept: Mapping[str, Sequence[TokenLine]], notes: list[str]) -> list[Lines]:
    """Return the lines of each answer by model; a model that reads an answer as other tokens cannot stand beside it."""
    found: dict[str, dict[str, TokenLine]] = {}
    others: dict[str, int] = {}
    for model, lines in kept.items():
        for line in lines:
            beside = found.setdefault(line.id, {})
            if all(_tokens(line) == _tokens(one) for one in beside.values()):
                beside[model] = line
            else:
                others[model] = others.get(model, 0) + 1
    notes += [f"{model} reads {count} answers as other tokens; they are left out." for model, count in others.items()]
    return list(found.values())


def _tokens(line: TokenLine) -> tuple[str, tuple[int, ...]]:
    return line.row_key, tuple(token.id for token in line.tokens)


def _any(lines: Lines) -> TokenLine:
    return next(iter(lines.values()))


def _fits(teacher: TeacherRows, line: TokenLine) -> bool:
    rows = teacher.rows.get(line.row_key)
    return rows is not None and len(rows) == len(line.tokens)


def _why_no_lines(run: Run, kept: Sequence[str]) -> str:
    if kept:
        return f"{FILE} of {', '.join(kept)} holds no answers: no training question shows a picture, or all are purged."
    return (
        f"{run.path}: no evaluation of this run kept its next-token candidates ({FILE}). Evaluations made before there "
        f"were any stay valid; `viker evaluate --run {run.path} --overwrite` asks again."
    )


def _key_entropy(run: Run, notes: list[str]) -> float:
    """Return the entropy above which a token is a key token: what the adapters were trained with, if it is one."""
    found = {stage.options.get("key_entropy") for stage in run.under("adapters").values()}
    values = sorted(float(value) for value in found if isinstance(value, int | float))
    if len(values) > 1:
        notes.append(f"Adapters were trained with other --key-entropy ({values}): here {KEY_ENTROPY} nats are used.")
    return values[0] if len(values) == 1 else KEY_ENTROPY


# ---- Examples --------------------------------------------------------------------------------------------------------


def _examples(
    run: Run, answers: Sequence[Lines], teacher: TeacherRows, key_entropy: float, notes: list[str]
) -> list[dict[str, Any]]:
    """Return as many answers as there is room for, evenly over people."""
    path = sidecar_file(run)
    facts = None if path is None else read_sidecar(path)
    texts = texts_of(run, [line for lines in answers for line in lines.values()])
    seed = next((int(stage.options.get("seed") or 0) for stage in run.under("evaluations").values()), 0)
    made: dict[int, dict[str, Any]] = {}
    sizes: dict[int, int] = {}
    abouts = [About(line.id, line.person, line.question, line.answer) for line in map(_any, answers)]
    for most in range(MOST_EXAMPLES, 0, -1):
        chosen = spread_over_people(abouts, most, seed)
        for place in chosen:
            if place not in made:
                made[place] = _example(answers[place], teacher.rows, texts, key_entropy, facts)
                sizes[place] = len(json.dumps({"": {"": [made[place]]}}, indent=2, ensure_ascii=False).encode())
        if most == 1 or sum(sizes[place] for place in chosen) <= MOST_BYTES:
            break
    notes += texts.notes
    return [made[place] for place in chosen]


def _example(
    lines: Lines, rows: Mapping[str, Rows], texts: Texts, key_entropy: float, facts: Sidecar | None
) -> dict[str, Any]:
    line = _any(lines)
    of_teacher = rows[line.row_key]
    return {
        "id": line.id, "person": line.person, "people": list(line.people), "question": line.question,
        "answer": line.answer,
        "tokens": [_token(place, lines, of_teacher, texts) for place in range(len(line.tokens))],
        "words": _words(line, of_teacher, key_entropy, facts),
    }  # fmt: skip


def _token(place: int, lines: Lines, rows: Rows, texts: Texts) -> dict[str, Any]:
    """Return one token: how sure the teacher is, what teacher and models would say, how likely the answer is."""
    line = _any(lines)
    before = line.tokens[place - 1].id if place else None
    kept = zip(rows.kept_ids_NK[place, :NUM_CANDIDATES], rows.kept_logprobs_NK[place, :NUM_CANDIDATES], strict=True)
    by_teacher = [(texts.behind(before, int(id_)), float(logprob)) for id_, logprob in kept]
    asked = {name: of.tokens[place] for name, of in lines.items()}
    return {
        "text": line.tokens[place].text,
        "entropy": round(float(rows.entropy_N[place]), DIGITS),
        "disagreement": round(float(rows.disagreement_N[place]), DIGITS),
        "teacher": _shown(by_teacher),
        "models": {
            name: _shown([(text, logprob) for _, text, logprob in token.candidates]) for name, token in asked.items()
        },
        "answer_prob": {"teacher": _probability(float(rows.answer_logprob_N[place])),
                        **{name: _probability(token.logprob) for name, token in asked.items()}},
    }  # fmt: skip


def _shown(candidates: Sequence[tuple[str, float]]) -> list[list[Any]]:
    """Return candidates with their probabilities, without those that round to nothing but for the first."""
    return [
        [text, _probability(logprob)]
        for place, (text, logprob) in enumerate(candidates)
        if not place or exp(logprob) >= LEAST_SHOWN
    ]


def _probability(logprob: float) -> float:
    return round(exp(min(0.0, logprob)), DIGITS)  # a stored half may lie a rounding above 0


def _words(line: TokenLine, rows: Rows, key_entropy: float, facts: Sidecar | None) -> list[dict[str, Any]]:
    """Return the words of an answer: each is as uncertain as its most uncertain token, which carries the choice."""
    private = None if facts is None else facts.private_spans(line.answer, line.person)
    words = []
    for first, last, start, stop in line.words:
        entropy = float(rows.entropy_N[first : last + 1].max())
        word = {"text": line.answer[start:stop], "first": first, "last": last, "entropy": round(entropy, DIGITS),
                "is_key": entropy > key_entropy}  # fmt: skip
        if private is not None:
            word["is_private"] = any(begin < stop and start < end for begin, end in private)
        words.append(word)
    return words
