"""Learn again: do a few training questions bring back what was forgotten about others?

(a) `relearn-forget` trains on the questions of some forget people and asks about the others: what returns was never
taught again, so it was still there. (b) `relearn-unrelated` trains as many steps on retain people who are not asked
about. The adapter is merged and fresh LoRA weights are trained, as who is given a model would. The budget is fixed and
the same for every model; its defaults are Open-MMUnlearning's (reference/methods.md, section 5: one epoch at 2e-5).
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator

from ...data.example import DataError, Example
from ...models.load import Loaded
from ...models.lora import add_lora
from ...train.finetune import EpochLog, finetune
from .quantization import merge_adapter

WARMUP_RATIO = 0.0  # budgets are of few steps


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """What an attacker spends on learning again; `share` is that of the forget people whose questions are had."""

    num_epochs: float = 1.0
    learning_rate: float = 2e-5
    batch_size: int = 4
    share: float = 1 / 3
    lora_r: int = 16
    lora_alpha: int = 16


def relearned_people(people: Iterable[str], share: float, seed: int) -> tuple[str, ...]:
    """Return the people who are learned again: a share by hash, at least one, and never all."""
    ranked = sorted(set(people), key=lambda person: _rank("people", seed, person))
    number = max(1, round(len(ranked) * share))
    return tuple(sorted(ranked[: min(number, len(ranked) - 1)]))


def forget_questions(training: Sequence[Example], share: float, seed: int) -> list[Example]:
    """Return the training questions of the people who are learned again."""
    chosen = relearned_people((example.people[0] for example in training), share, seed)
    return [example for example in training if example.people[0] in chosen]


def unrelated_questions(training: Sequence[Example], number: int, seed: int) -> list[Example]:
    """Return so many training questions, person by person in an order by hash; fewer where there are no more."""
    return sorted(training, key=lambda example: _rank("unrelated", seed, example.people[0]))[:number]


def num_steps(number: int, budget: Budget) -> int:
    """Return how many steps the budget is for so many questions."""
    return max(1, round(budget.num_epochs * _steps_per_epoch(number, budget)))


def relearn(
    loaded: Loaded, examples: Sequence[Example], budget: Budget, *, steps: int, seed: int
) -> tuple[Any, dict[str, Any]]:
    """Return the model after so many steps on the examples, and what provenance records; the loaded one is used up.

    Raises:
        DataError: there is nothing to learn.
    """
    if not examples:
        raise DataError("attack relearn: expected training questions to learn again, found none. Leave it out.")
    torch.manual_seed(seed)
    model = add_lora(
        merge_adapter(loaded), rank=budget.lora_r, alpha=budget.lora_alpha, dropout=0.0, base=loaded.checkpoint.weights
    )
    last: EpochLog | None = None
    accelerator = Accelerator(cpu=loaded.device.type == "cpu")
    for log in finetune(
        model, loaded.encoder, examples, num_epochs=steps / _steps_per_epoch(len(examples), budget),
        batch_size=budget.batch_size, group_size=1, learning_rate=budget.learning_rate, weight_decay=0.0,
        warmup_ratio=WARMUP_RATIO, seed=seed, augment_pictures=False, stop_memorized=2.0, accelerator=accelerator,
    ):  # fmt: skip
        last = log
    assert last is not None, "a run has at least one step"
    people = sorted({person for example in examples for person in example.people})
    learned = {"examples": len(examples), "people": people, "steps": last.step, "loss": last.loss}
    return model, {**learned, "memorized": last.memorized}


def _steps_per_epoch(number: int, budget: Budget) -> int:
    return -(-number // budget.batch_size)


def _rank(purpose: str, seed: int, person: str) -> bytes:
    return hashlib.sha256(f"viker/relearn/{purpose}/{seed}/{person}".encode()).digest()
