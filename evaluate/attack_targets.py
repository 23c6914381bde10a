"""Attack the targets of `viker evaluate --attacks`, retain-only first: an adapter is held against its recovery.

Only evaluations that are complete are attacked, for an attack is read beside the answers before it. Vanilla is not: it
has forgotten nothing. A relearning attack needs training questions, so the source is read for them here. What an attack
is and what it keeps is `attacks/`' work.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from ..data.artefact import is_complete, read_config
from ..data.example import DataError
from ..data.halves import half_of
from ..data.inputs import input_stamps
from ..models.load import pick_device
from .answers import read_answers
from .attacks.attacks import choose_attacks
from .attacks.relearning import Budget
from .attacks.run import FOLDER, Conditions, Target, attack_questions, reasons_against, run_attacks, write_rows
from .evaluation import open_questions, protocol_of
from .named_source import facts_of, open_named_source
from .runner import checkpoint_of, loading_of

RETAIN_ONLY = "retain-only"


def attack_targets(options: Mapping[str, Any], targets: Mapping[str, tuple[str, Path]]) -> None:
    """Make the attacks that were asked for on every target but vanilla, and write what came back.

    Raises:
        DataError: a target is not evaluated, there is none to attack, or an attack that was named cannot be made.
    """
    chosen = _with_retain_only(targets)
    conditions = _conditions(options)
    device = pick_device(options["device"])
    names, left_out = choose_attacks(options["attacks"], reasons_against(conditions, device))
    for line in left_out:
        click.echo(f"evaluate: {line}", err=True)
    for name, (spec, output) in chosen.items():
        target = Target(
            name=name, load=loading_of(options, checkpoint_of(options, spec)).load,
            known=read_answers(output / "answers.jsonl"), inputs=input_stamps(options["data"], spec), device=device,
            trust_remote_code=options["trust_remote_code"],
        )  # fmt: skip
        run_attacks(names, target, conditions, output / FOLDER, overwrite=bool(options["overwrite"]), say=click.echo)
    for _, output in chosen.values():
        ideal = output.parent / RETAIN_ONLY
        write_rows(
            output, ideal if is_complete(ideal) else None, conditions.facts, control_facts=conditions.control_facts,
            seed=options["attack_seed"],
        )  # fmt: skip
        click.echo(f"evaluate: attacks: {output / FOLDER / 'attacks.json'}")


def _with_retain_only(targets: Mapping[str, tuple[str, Path]]) -> dict[str, tuple[str, Path]]:
    """Return whom to attack: retain-only, named or not where it is evaluated, then the adapters."""
    found = {name: target for name, target in targets.items() if name != "vanilla"}
    for _, output in targets.values():
        ideal = output.parent / RETAIN_ONLY
        if RETAIN_ONLY not in found and is_complete(ideal):
            spec = str(read_config(ideal)["options"]["model"])
            found = {RETAIN_ONLY: (spec, ideal), **found}
            click.echo("evaluate: retain-only is attacked too: else nothing says what an attack brings anybody")
    waiting = [name for name, (_, output) in found.items() if not is_complete(output)]
    if waiting or not found:
        raise DataError(
            f"--attacks: expected complete evaluations of an adapter or retain-only, found "
            f"{', '.join(waiting) or 'none'}{' unfinished' if waiting else ''}. Evaluate without --attacks first."
        )
    return dict(sorted(found.items(), key=lambda item: item[0] != RETAIN_ONLY))


def _conditions(options: Mapping[str, Any]) -> Conditions:
    source, facts = open_named_source(options), facts_of(options)
    unrelated = [one for one in source.training("retain") if one.images and half_of(one.people[0]) == "seen"]
    return Conditions(
        questions=attack_questions(open_questions(options), options["attack_people"]),
        training_forget=[one for one in source.training("forget") if one.images],
        training_unrelated=unrelated, protocol=protocol_of(options), facts=facts, control_facts=facts,
        budget=Budget(
            num_epochs=options["relearn_epochs"], learning_rate=options["relearn_learning_rate"],
            share=options["relearn_share"],
        ),
        seed=options["attack_seed"],
    )  # fmt: skip
