"""The unlearning loop: draw a step's examples, take the step, log what it did, stop where the teacher is reached.

One loop for every method: a method is data (`method.py`), its terms are pure functions (`terms.py`), its batches a
function of (seed, epoch) (`batches.py`), a step sums micro-batches (`steps.py`). With cached rows no teacher is run.
Between two steps a run can be put down and taken up: `state()` is all that the next step depends on (`checkpoint.py`
keeps it). Guards that look at replies are `guards.py`'s, writing the adapter `unlearn.py`'s.
"""

# M answer tokens

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from ..data.example import DataError
from ..models.encode import Encoder
from ..models.vision_memo import VisionMemo
from .batches import Item, count_steps, draw_batches, image_keys
from .method import Method
from .processes import from_all, is_sharded, share, shared_like, whole
from .random_states import random_state, set_random_state
from .run_state import RunState, optimizer_tensors, set_optimizer, set_weights, weight_tensors
from .scored import Scored
from .step_log import StepLog as StepLog
from .step_log import add_up, as_log
from .step_log import as_line as as_line
from .steps import Phase, RowsOf, Scorer, cached_rows, run_step
from .student import Student

MOST_TOLD = 8  # examples that an error names
STOP_WINDOW = 4  # steps pooled by the stop rule: a single small batch may hold few key tokens


class NonFiniteLoss(ValueError):
    """The loss became infinite or NaN: says at which step and on which examples."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Optimization:
    """How steps are taken; names as in transformers' TrainingArguments."""

    num_train_epochs: float
    per_device_train_batch_size: int
    gradient_accumulation_steps: int
    learning_rate: float
    weight_decay: float
    warmup_ratio: float
    max_grad_norm: float
    seed: int
    group_by_image: bool = False
    group_size: int = 0
    row_length: int = 0

    @property
    def questions_an_image(self) -> int:
        """How many questions share one copy of their image, at most."""
        if not self.group_by_image:
            return 1
        return self.group_size or self.per_device_train_batch_size


class Unlearning:
    """A run in progress. Trains the model's trainable weights in place.

    Between two logs the model may be measured, and must be left in training mode.
    """

    def __init__(
        self, model: Any, encoder: Encoder, forget: Sequence[Item], retain: Sequence[Item], method: Method,
        optimization: Optimization, *, key_entropy: float, stop_at_teacher: bool, accelerator: Accelerator,
        top_k: int = 1 << 30, rows_of: RowsOf | None = None, mask: Mapping[str, Tensor] | None = None,
        is_asked_to_stop: Callable[[], bool] = lambda: False,
    ) -> None:  # fmt: skip
        """Prepare a run.

        Args:
            model: the student, a PEFT model or any model with trainable weights.
            encoder: its encoder.
            forget: examples to unlearn, with the rows the method reads.
            retain: examples of the retain term.
            method: what the loss is.
            optimization: how steps are taken.
            key_entropy: nats above which a row is a key token's.
            stop_at_teacher: whether the run ends once key tokens are as unlikely as the teacher has them.
            accelerator: device and processes.
            top_k: kept tokens of a row that the loss sees, at most.
            rows_of: gives the forget rows in place of the cached ones (a live teacher).
            mask: weights by name that the forget gradient is multiplied with.
            is_asked_to_stop: whether this process is to stop behind the step at hand; then all of them do.
        """
        self.step, self.method, self.accelerator = 0, method, accelerator
        self._model, self._optimization, self._key_entropy = model, optimization, key_entropy
        self._forget, self._retain = forget, retain
        per_step = optimization.per_device_train_batch_size * optimization.gradient_accumulation_steps
        self._batch_size = per_step * accelerator.num_processes
        self.total_steps = count_steps(len(forget), self._batch_size, optimization.num_train_epochs)
        optimizer = torch.optim.AdamW(
            _trainable(model).values(), lr=optimization.learning_rate, weight_decay=optimization.weight_decay
        )
        self.student, self.optimizer = share(accelerator, Student(model), optimizer)
        self.trainable = _trainable(model)  # parts of what they were, where processes share the weights
        scorer = Scorer(
            student=self.student, encoder=encoder, rows_of=rows_of or cached_rows(top_k),
            # Where processes share the weights, they have to run the same layers, remembered pictures or not.
            group_size=optimization.questions_an_image, memo=None if is_sharded(accelerator) else VisionMemo(model),
            layer=_layer_of(model, method), row_length=optimization.row_length,
            without_adapter=getattr(model, "disable_adapter", nullcontext),
        )  # fmt: skip
        self._score_forget = partial(_score_forget, scorer, method)
        retain_scorer = replace(scorer, rows_of=cached_rows(top_k))
        self._score_retain = partial(retain_scorer.score, keeps_states=method.layer)
        self._whole_mask = mask
        self._mask = None if mask is None else {n: shared_like(mask[n], w) for n, w in self.trainable.items()}
        self.stop_rule = StopRule(stop_at_teacher)
        self._is_asked_to_stop, self.was_asked_to_stop = is_asked_to_stop, False

    def steps(self) -> Iterator[StepLog]:
        """Take the steps that are left; yield a log after each; end at the last one or at the stop.

        Raises:
            NonFiniteLoss: with the step and the examples; no weight was changed by it.
        """
        bar = tqdm(
            total=self.total_steps, initial=self.step, desc=self.method.name, unit="step",
            disable=not self.accelerator.is_main_process,
        )  # fmt: skip
        self._model.train()
        try:
            for number, (epoch, chosen, kept) in enumerate(self._draws(), start=1):
                if number <= self.step:  # of a run that was taken up
                    continue
                if self.is_over or self.was_asked_to_stop:
                    break
                log = self._take_step(number, epoch, chosen, kept)
                self.step = number
                self.stop_rule.take_in(log)
                bar.update()
                yield log
        finally:
            bar.close()
            self._model.eval()

    @property
    def is_over(self) -> bool:
        """Whether no step is left, or the stop is reached."""
        return self.step >= self.total_steps or self.stop_rule.is_reached

    def state(self) -> RunState:
        """Return all that the next step depends on; every process has to ask."""
        tensors = weight_tensors(self.trainable, self._whole_mask)
        return RunState(
            step=self.step,
            tensors=tensors | optimizer_tensors(self.optimizer, self.trainable),
            recent=list(self.stop_rule.recent),
            random=from_all(random_state(self.accelerator.device), self.accelerator),
        )

    def take_up(self, state: RunState) -> None:
        """Go on where a run of the same inputs, options and number of processes was put down."""
        self.step = state.step
        set_weights(self.trainable, state)
        set_optimizer(self.optimizer, self.trainable, state)
        self.stop_rule.recent.extend((ours, theirs) for ours, theirs in state.recent)
        set_random_state(state.random[self.accelerator.process_index], self.accelerator.device)

    def _take_step(self, number: int, epoch: int, chosen: Sequence[Item], kept: Sequence[Item]) -> StepLog:
        before = random_state(self.accelerator.device)
        method, optimization = self.method, self._optimization
        phases = [Phase(batch=chosen, score=self._score_forget, terms=method.forget, then=self._masker())]
        if kept:
            assert method.retain is not None, "retain examples are drawn for a retain term"
            phases.append(Phase(batch=kept, score=self._score_retain, terms=(method.retain,)))
        sums = list(run_step(self.student, phases, method, self.accelerator, optimization.per_device_train_batch_size))
        clipped = self.accelerator.clip_grad_norm_(list(self.trainable.values()), optimization.max_grad_norm)
        counts = {term.name: len(phase.batch) for phase in phases for term in phase.terms}
        totals = add_up(
            sums, list(counts), self._key_entropy, asked_to_stop=self._is_asked_to_stop(), accelerator=self.accelerator
        )
        rate = optimization.learning_rate * _scale(number - 1, self.total_steps, optimization.warmup_ratio)
        log = as_log(number, epoch, totals, counts, phases, method, float(whole(clipped)), rate)
        if not (math.isfinite(log.loss) and math.isfinite(log.gradient_norm)):
            self.optimizer.zero_grad()
            set_random_state(before, self.accelerator.device)  # as if the step had not been taken
            raise _not_finite(log, chosen, kept)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.was_asked_to_stop = totals.num_asked_to_stop > 0
        return log

    def _draws(self) -> Iterator[tuple[int, list[Item], list[Item]]]:
        """Yield (epoch, forget items, retain items) of each step, without end."""
        group_size, seed = self._optimization.questions_an_image, self._optimization.seed
        forget, retain = self._forget, self._retain
        kept_batches = draw_batches(
            len(retain), self._batch_size, seed=seed, purpose="retain", keys=image_keys(retain), group_size=group_size
        )
        for epoch, drawn in draw_batches(
            len(forget), self._batch_size, seed=seed, purpose="forget", keys=image_keys(forget), group_size=group_size
        ):
            kept = next(kept_batches)[1] if retain else []
            yield epoch, [forget[index] for index in drawn], [retain[index] for index in kept]

    def _masker(self) -> Callable[[], None] | None:
        if self._mask is None:
            return None
        mask = self._mask

        def apply() -> None:
            for name, weight in self.trainable.items():
                if weight.grad is not None:
                    weight.grad.mul_(mask[name])

        return apply


def unlearn(*arguments: Any, **options: Any) -> Iterator[StepLog]:
    """Train as `Unlearning` does, from the first step to the last."""
    yield from Unlearning(*arguments, **options).steps()


def _score_forget(scorer: Scorer, method: Method, items: Sequence[Item]) -> Scored:
    scored = scorer.score(items)
    if not method.refusals:
        return scored
    refused = [item.refusal for item in items if item.refusal is not None]
    assert len(refused) == len(items), "a method that reads refusals is given them"
    scores = replace(scorer, rows_of=cached_rows(0))
    return replace(scored, refusal=scores.score(refused))


def _layer_of(model: Any, method: Method) -> int | None:
    """Return the decoder layer whose states a method reads: a share of the model's depth."""
    if not method.layer:
        return None
    num_layers = int(model.config.get_text_config().num_hidden_layers)
    return max(1, round(method.settings["depth"] * num_layers)) - 1


class StopRule:
    """Pools the last steps' key tokens: the student is as unlikely to say them as the teacher is."""

    def __init__(self, is_on: bool) -> None:
        self._is_on = is_on
        self.recent: deque[tuple[float, float]] = deque(maxlen=STOP_WINDOW)

    def take_in(self, log: StepLog) -> None:
        """Take in a step."""
        if log.key_logprob is not None and log.key_teacher_logprob is not None:
            self.recent.append((log.key_logprob, log.key_teacher_logprob))

    @property
    def is_reached(self) -> bool:
        """Whether mean log q(y) is at or below mean log R(y), which the rows know."""
        ours, theirs = sum(student for student, _ in self.recent), sum(teacher for _, teacher in self.recent)
        return self._is_on and len(self.recent) == STOP_WINDOW and ours <= theirs


def _trainable(model: Any) -> dict[str, Tensor]:
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def _not_finite(log: StepLog, chosen: Sequence[Item], kept: Sequence[Item]) -> NonFiniteLoss:
    terms = ", ".join(f"{name} {value:.4g}" for name, value in log.terms.items())
    others = f" and of retain examples {_ids(kept)}" if kept else ""
    return NonFiniteLoss(
        f"step {log.step}: expected a finite loss and gradient, found loss {log.loss} ({terms}) and norm "
        f"{log.gradient_norm} of examples {_ids(chosen)}{others}. Lower --learning-rate, or train in float32."
    )


def _ids(items: Sequence[Item]) -> str:
    told = ", ".join(item.example.id for item in items[:MOST_TOLD])
    return told if len(items) <= MOST_TOLD else f"{told} and {len(items) - MOST_TOLD} more"


def _scale(step: int, total_steps: int, warmup_ratio: float) -> float:
    """Return the share of the peak learning rate after so many steps: a linear rise, and a linear fall to zero."""
    warmup = max(1, round(total_steps * warmup_ratio))
    return min(1.0, (step + 1) / warmup) * max(0.0, (total_steps - step) / total_steps)


def check_items(forget: Sequence[Item], retain: Sequence[Item], method: Method, *, reads_cache: bool = True) -> None:
    """Raise `DataError` where a method's examples are missing, or the rows it reads from a cache."""
    if not forget:
        raise DataError("expected examples of forget people to unlearn, found none. Check --forget and --ratio.")
    if method.needs_retain and not retain:
        raise DataError(
            f"method {method.name}: expected retain examples for its retain term, found none. Add some, or --retain 0."
        )
    if reads_cache and method.reads is not None and any(item.rows is None for item in forget):
        raise DataError(
            f"method {method.name}: expected cached rows of every forget example, found some without. "
            "Run `viker precompute`."
        )
