"""Attack one model: ask again under each attack, keep every answer, and derive what was brought back.

Each attack is an artefact of its own, `<output>/<attack>/` with config, answers, provenance and marker, so that a
killed run goes on at the first unfinished attack and a finished one is skipped without loading anything. Only pictures
are asked about, openly: the forget people and the held-out retain people, and controls where there are any. Answers
before any attack are those of the evaluation; a question it did not ask is asked here, into `<output>/unattacked/`.
A model is loaded once for all attacks that leave its weights alone, and afresh for each that changes them. Numbers are
made from what is kept alone (`write_rows`, `recovery.py`).
"""

import hashlib
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ...data.artefact import begin, decide, finish, is_complete, write_json
from ...data.example import DataError, Example, canonical_json, digest_of
from ...data.sidecar import Sidecar
from ...models.load import Loaded
from ..answers import Answer, read_answers, write_answers
from ..ask import Protocol, ask_everything
from .attacks import ATTACKS
from .pictures import STRENGTHS, change_pictures
from .prefix import ask_forced
from .quantization import in_int8, in_nf4, reason_against_int8, reason_against_nf4
from .questions import paraphrase
from .recovery import CONTROLS, FORGET, RETAIN, Kept, Recovery, attack_rows, attacks_json
from .relearning import Budget, forget_questions, num_steps, relearn, relearned_people, unrelated_questions

ATTACK_SCHEMA = "viker/attack/1"
FOLDER = "attacks"  # inside an evaluation
UNATTACKED = "unattacked"
TASKS = ("generation", "captioning", "recognition")
PEOPLE = 8

Questions = Mapping[str, Sequence[Example]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Conditions:
    """What every model is attacked with.

    Attributes:
        questions: by split, from `attack_questions`.
        training: the training questions of the forget people, and of retain people who are not asked about.
        protocol: how questions are asked: that of the evaluation.
        facts, control_facts: private words of the source's people and of the controls; they decide what is forced.
        budget: of learning again.
        seed: of every draw.
    """

    questions: Questions
    training_forget: Sequence[Example]
    training_unrelated: Sequence[Example]
    protocol: Protocol
    facts: Sidecar | None = None
    control_facts: Sidecar | None = None
    budget: Budget = field(default_factory=Budget)
    seed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """The model under attack.

    Attributes:
        name: what its answers call it.
        load: loads it, with its adapter, afresh every time.
        known: its answers before any attack, of the same protocol.
        inputs: stamps of what it was made from and asked (`data/inputs.py`).
        device: where it is loaded.
        trust_remote_code: whether code that comes with the model may run.
    """

    name: str
    load: Callable[[], Loaded]
    known: Sequence[Answer]
    inputs: Mapping[str, str]
    device: str = "cpu"
    trust_remote_code: bool = False


def attack_questions(questions: Questions, people: int = PEOPLE) -> dict[str, list[Example]]:
    """Return what is asked under attack: open questions about pictures, without what only other scores need.

    Everybody to forget is asked about, and the first `people` by id of held-out retain people and of controls.

    Raises:
        DataError: there is no such question about the forget people.
    """
    chosen: dict[str, list[Example]] = {}
    for split in (FORGET, RETAIN, CONTROLS):
        shown = [example for example in questions.get(split, ()) if example.images and example.task in TASKS]
        ids = sorted({example.people[0] for example in shown})
        kept = frozenset(ids if split == FORGET else ids[:people])
        if kept:
            chosen[split] = [replace(one, wrong=(), paraphrase="") for one in shown if one.people[0] in kept]
    if FORGET not in chosen:
        raise DataError(
            f"--attacks: expected questions about pictures of the forget people ({', '.join(TASKS)}), found none. "
            "Ask these tasks too, or leave the attacks out."
        )
    return chosen


def reasons_against(conditions: Conditions, device: str) -> dict[str, str]:
    """Return why attacks cannot be made on these people and this device, by name: `choose_attacks` reads it."""
    people = {example.people[0] for example in conditions.training_forget}
    found = {"nf4": reason_against_nf4(device), "int8": reason_against_int8(device)}
    if len(people) < 2:
        found["relearn-forget"] = (
            f"expected training questions about at least two forget people (one to learn again, one to ask about), "
            f"found {len(people)}. Leave it out."
        )
    if not conditions.training_unrelated or not conditions.training_forget:
        found["relearn-unrelated"] = (
            "expected training questions about forget people and about retain people who are not asked about, found "
            f"{len(conditions.training_forget)} and {len(conditions.training_unrelated)}. Leave it out."
        )
    return {name: reason for name, reason in found.items() if reason is not None}


def run_attacks(
    names: Sequence[str],
    target: Target,
    conditions: Conditions,
    output: Path,
    *,
    overwrite: bool = False,
    say: Callable[[str], None] = print,
) -> None:
    """Make the attacks that are not kept yet, each into its own folder of `output`.

    Raises:
        ArtefactMismatch: an attack with other options is complete there.
        DataError: an attack cannot be made on this model.
    """
    questions = {UNATTACKED: _unasked(conditions.questions, target.known), **dict.fromkeys(names, conditions.questions)}
    configs = {name: _config(name, target, conditions, asked) for name, asked in questions.items() if asked}
    waiting = []
    for name, config in configs.items():
        if decide(output / name, config, overwrite=overwrite, what="attack") == "run":
            waiting.append(name)
        else:
            say(f"attack {name}: {target.name}: complete, skipped: {output / name}")
    output.mkdir(parents=True, exist_ok=True)
    loaded: Loaded | None = None
    for name in sorted(waiting, key=_changes_weights):
        started = time.time()
        begin(output / name, configs[name])
        try:
            if _changes_weights(name):
                loaded = None  # its memory is wanted
                answers, made = _under_changed_weights(name, target, conditions, output / name)
            else:
                loaded = loaded or target.load()
                answers, made = _under_changed_questions(name, loaded, questions[name], target, conditions), {}
        except ValueError:  # a user's mistake: nothing half-done stays
            shutil.rmtree(output / name)
            raise
        write_answers(output / name / "answers.jsonl", answers)
        finish(output / name, {"attack": name, "answers": len(answers), **made}, started=started, device=target.device)
        say(f"attack {name}: {target.name}: {len(answers)} answers in {time.time() - started:.0f} s")


def read_kept(evaluation: Path) -> Kept:
    """Return what is kept of an evaluated model: its answers before any attack, and after each that is complete."""
    attacks = evaluation / FOLDER
    before = read_answers(evaluation / "answers.jsonl")
    if is_complete(attacks / UNATTACKED):
        before += read_answers(attacks / UNATTACKED / "answers.jsonl")
    done = [name for name in ATTACKS if is_complete(attacks / name)]
    return Kept(before, {name: read_answers(attacks / name / "answers.jsonl") for name in done})


def write_rows(
    evaluation: Path,
    retain_only: Path | None,
    facts: Sidecar | None,
    *,
    control_facts: Sidecar | None = None,
    seed: int = 0,
) -> list[Recovery]:
    """Write `attacks/attacks.json` of an evaluated model from what is kept, and return its rows.

    `retain_only` is that model's evaluation, where there is one: its answers under the same attacks are the baseline.
    """
    baseline = None if retain_only is None or retain_only == evaluation else read_kept(retain_only)
    rows = attack_rows(read_kept(evaluation), baseline, facts, control_facts=control_facts, seed=seed)
    write_json(evaluation / FOLDER / "attacks.json", attacks_json(rows))
    return rows


def _changes_weights(name: str) -> bool:
    return name in ATTACKS and ATTACKS[name].kind == "model"


def _unasked(questions: Questions, known: Sequence[Answer]) -> dict[str, list[Example]]:
    """Return the questions that the evaluation holds no answer to."""
    asked = {(answer.split, answer.id) for answer in known}
    missing = {
        split: [one for one in examples if (split, one.id) not in asked] for split, examples in questions.items()
    }
    return {split: examples for split, examples in missing.items() if examples}


def _under_changed_questions(
    name: str, loaded: Loaded, questions: Questions, target: Target, conditions: Conditions
) -> list[Answer]:
    if name == "prefix":
        return _forced(loaded, questions, target, conditions)
    changed = {split: _changed(name, examples, conditions.seed) for split, examples in questions.items()}
    return ask_everything(loaded.model, loaded.encoder, changed, conditions.protocol, target.name)


def _changed(name: str, examples: Sequence[Example], seed: int) -> list[Example]:
    if name == "paraphrase":
        return paraphrase(examples, seed)
    return change_pictures(examples, name, seed) if name in STRENGTHS else list(examples)


def _forced(loaded: Loaded, questions: Questions, target: Target, conditions: Conditions) -> list[Answer]:
    """Ask with forced openings; controls have private words of their own, under ids that may be others' too."""
    answers = []
    for split, examples in questions.items():
        facts = conditions.control_facts if split == CONTROLS else conditions.facts
        answers += ask_forced(loaded.model, loaded.encoder, {split: examples}, conditions.protocol, target.name, facts)
    return answers


def _under_changed_weights(
    name: str, target: Target, conditions: Conditions, folder: Path
) -> tuple[list[Answer], dict[str, Any]]:
    """Change a model's weights and ask it; nobody is asked about who was learned again."""
    questions, made = dict(conditions.questions), dict[str, Any]()
    if name == "int8":
        model, encoder = in_int8(target.load)
    elif name == "nf4":
        model, encoder = in_nf4(target.load, folder / "merged", trust_remote_code=target.trust_remote_code)
        shutil.rmtree(folder / "merged")
    else:
        loaded = target.load()
        again = forget_questions(conditions.training_forget, conditions.budget.share, conditions.seed)
        learned = again if name == "relearn-forget" else unrelated_questions(
            conditions.training_unrelated, len(again), conditions.seed
        )  # fmt: skip
        steps = num_steps(len(again), conditions.budget)
        model, made = relearn(loaded, learned, conditions.budget, steps=steps, seed=conditions.seed)
        encoder = loaded.encoder
        people = frozenset(made["people"])
        questions[FORGET] = [one for one in questions[FORGET] if not people & set(one.people)]
        if not questions[FORGET]:
            raise DataError(
                f"attack {name}: expected questions about forget people who are not learned again, found none beside "
                f"those about {', '.join(sorted(people))}. Leave it out."
            )
    return ask_everything(model, encoder, questions, conditions.protocol, target.name), made


def _config(name: str, target: Target, conditions: Conditions, questions: Questions) -> dict[str, Any]:
    """Return what an attack's answers depend on."""
    asked = {key: value for key, value in asdict(conditions.protocol).items() if key != "batch_size"}
    options: dict[str, Any] = {
        **{key: sorted(value) if isinstance(value, frozenset) else value for key, value in asked.items()},
        "attack_seed": conditions.seed, **STRENGTHS.get(name, {}),
        "questions": {split: digest_of(list(examples)) for split, examples in questions.items()},
    }  # fmt: skip
    if name == "int8":
        options["batch_size"] = conditions.protocol.batch_size  # activations are rounded by what shares a batch
    if name == "prefix":
        options["facts"] = _digest(conditions.facts, conditions.control_facts)
    if name.startswith("relearn"):
        learned = conditions.training_forget if name == "relearn-forget" else conditions.training_unrelated
        people = relearned_people(
            {one.people[0] for one in conditions.training_forget}, conditions.budget.share, conditions.seed
        )
        options |= {**asdict(conditions.budget), "relearned": list(people), "training": digest_of(list(learned))}
    return {"schema": ATTACK_SCHEMA, "attack": name, "inputs": dict(target.inputs), "options": options}


def _digest(*sidecars: Sidecar | None) -> str:
    """Return the digest of the private words that openings are cut by."""
    words = [None if one is None else {person: dict(facts) for person, facts in one.facts.items()} for one in sidecars]
    return hashlib.sha256(canonical_json(words)).hexdigest()
