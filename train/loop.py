"""The unlearning loop: stream cached rows, take a step, log what it did, stop before collapse.

One loop for every method: a method is data (`methods.py`), its terms are pure functions (`losses.py`), its batches a
function of (seed, step) (`batches.py`). The teacher is never run here. A loss is a sum over answer tokens divided by
the number of examples of the optimizer step over all processes, so workers and accumulation change no number.
Writing the adapter is `commands.py`'s job. M answer tokens, V vocabulary.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from ..data.example import DataError
from ..models.encode import Encoder, answer_rows, collate
from ..models.forward import answer_logits, to_device
from ..models.pack import pack_for
from .batches import Item, count_steps, draw_batches, share_of, stack_rows
from .losses import TeacherRows, adaptive_ascent, answer_logprobs, ascent, bucket, forward_kl
from .methods import Method

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
    group_size: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class StepLog:
    """One line of training_log.jsonl; terms are means an example, log-probabilities means a token."""

    step: int
    epoch: int
    loss: float
    ascent: float
    kl: float
    retain_kl: float
    gradient_norm: float
    learning_rate: float
    key_logprob: float | None
    key_teacher_logprob: float | None
    normal_logprob: float | None


@dataclass(frozen=True, slots=True)
class _Terms:
    """Sums over a micro-batch: the loss to descend, and what the log and the stop rule want to know."""

    loss: Tensor
    ascent: float
    kl: float
    retain_kl: float
    logprob_M: Tensor
    rows: TeacherRows | None


def unlearn(
    model: Any,
    encoder: Encoder,
    forget: Sequence[Item],
    retain: Sequence[Item],
    method: Method,
    optimization: Optimization,
    *,
    key_entropy: float,
    stop_at_teacher: bool,
    accelerator: Accelerator,
) -> Iterator[StepLog]:
    """Train the model's trainable weights in place; yield a log after every step; end at the last step or at the stop.

    Between two logs the model may be measured, and must be left in training mode. The stop: over the last steps' key
    tokens, mean log q(y) is at or below mean log R(y), which the rows know.

    Raises:
        NonFiniteLoss: with the step and the examples.
    """
    batch_size = (
        optimization.per_device_train_batch_size * optimization.gradient_accumulation_steps * accelerator.num_processes
    )
    total_steps = count_steps(len(forget), batch_size, optimization.num_train_epochs)
    trainable = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=optimization.learning_rate, weight_decay=optimization.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _linear(total_steps, optimization.warmup_ratio))
    model, optimizer = accelerator.prepare(model, optimizer)
    draws = _draw_steps(forget, retain, batch_size, optimization.seed)
    stop_rule = _StopRule()
    model.train()
    bar = tqdm(total=total_steps, desc=method.name, unit="step", disable=not accelerator.is_main_process)
    for step, (epoch, chosen, kept) in zip(range(1, total_steps + 1), draws, strict=False):
        terms = list(_run_step(model, encoder, chosen, kept, method, optimization, accelerator))
        norm = float(accelerator.clip_grad_norm_(trainable, optimization.max_grad_norm))
        rate = float(schedule.get_last_lr()[0])
        log = _log(step, epoch, terms, len(chosen), len(kept), norm, rate, key_entropy, method, accelerator)
        _require_finite(log, chosen)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        bar.update()
        yield log
        if stop_rule.is_reached(log) and stop_at_teacher:
            break
    bar.close()
    model.eval()


class _StopRule:
    """Pools the last steps' key tokens: the student is as unlikely to say them as the teacher is."""

    def __init__(self) -> None:
        self._recent: deque[tuple[float, float]] = deque(maxlen=STOP_WINDOW)

    def is_reached(self, log: StepLog) -> bool:
        """Take in a step and tell whether mean log q(y) is at or below mean log R(y)."""
        if log.key_logprob is not None and log.key_teacher_logprob is not None:
            self._recent.append((log.key_logprob, log.key_teacher_logprob))
        ours, theirs = sum(student for student, _ in self._recent), sum(teacher for _, teacher in self._recent)
        return len(self._recent) == STOP_WINDOW and ours <= theirs


def _draw_steps(
    forget: Sequence[Item], retain: Sequence[Item], batch_size: int, seed: int
) -> Iterator[tuple[int, list[Item], list[Item]]]:
    """Yield (epoch, forget items, retain items) of each step, without end."""
    retain_batches = draw_batches(len(retain), batch_size, seed=seed, purpose="retain") if retain else None
    for epoch, drawn in draw_batches(len(forget), batch_size, seed=seed, purpose="forget"):
        kept = next(retain_batches)[1] if retain_batches else []
        yield epoch, [forget[index] for index in drawn], [retain[index] for index in kept]


def _require_finite(log: StepLog, chosen: Sequence[Item]) -> None:
    if math.isfinite(log.loss) and math.isfinite(log.gradient_norm):
        return
    raise NonFiniteLoss(
        f"step {log.step}: expected a finite loss and gradient, found loss {log.loss} and norm {log.gradient_norm} on "
        f"{', '.join(item.example.id for item in chosen[:8])}. Lower --learning-rate, or train in float32."
    )


def _linear(total_steps: int, warmup_ratio: float) -> Callable[[int], float]:
    warmup = max(1, round(total_steps * warmup_ratio))

    def scale(step: int) -> float:
        return min(1.0, (step + 1) / warmup) * max(0.0, (total_steps - step) / total_steps)

    return scale


def _run_step(
    model: Any, encoder: Encoder, chosen: Sequence[Item], kept: Sequence[Item], method: Method,
    optimization: Optimization, accelerator: Accelerator,
) -> Iterator[_Terms]:  # fmt: skip
    """Run forward and backward over a step's micro-batches; gradients add up to those of the whole step."""
    # DDP averages gradients over processes where the step's loss is a sum, hence the factor.
    scale = accelerator.num_processes
    size = optimization.per_device_train_batch_size
    mine = share_of(range(len(chosen)), accelerator.process_index, accelerator.num_processes)
    for start in range(0, len(mine), size):
        terms = _forget_terms(
            model, encoder, [chosen[index] for index in mine[start : start + size]], method, optimization.group_size
        )
        if terms.loss.requires_grad:  # not where a retain term is all there is
            accelerator.backward(terms.loss * scale / len(chosen))
        yield terms
    mine = share_of(range(len(kept)), accelerator.process_index, accelerator.num_processes)
    for start in range(0, len(mine), size):
        terms = _retain_terms(
            model, encoder, [kept[index] for index in mine[start : start + size]], method, optimization.group_size
        )
        accelerator.backward(terms.loss * scale / len(kept))
        yield terms


def student_logits(model: Any, encoder: Encoder, items: Sequence[Item], group_size: int) -> Tensor:
    """Return the logits [M, V] at the items' answer tokens, one image behind up to `group_size` questions."""
    rows = [encoder.assemble(item.example, item.prompt_ids, item.answer_ids, item.example.images) for item in items]
    weights = next(model.parameters())
    if group_size > 1:
        packed = pack_for(model, rows, pad_id=encoder.pad_id, group_size=group_size)
        return answer_logits(
            model, to_device(packed.inputs, weights.device, weights.dtype), packed.batch_M, packed.position_M
        )
    batch_M, position_M, _ = answer_rows(rows)
    inputs = to_device(collate(rows, pad_id=encoder.pad_id, side="right"), weights.device, weights.dtype)
    return answer_logits(model, inputs, batch_M, position_M)


def _forget_terms(model: Any, encoder: Encoder, items: Sequence[Item], method: Method, group_size: int) -> _Terms:
    logits_MV = student_logits(model, encoder, items, group_size)
    answer_ids_M = torch.tensor([token for item in items for token in item.answer_ids], device=logits_MV.device)
    rows = stack_rows(items).to(logits_MV.device) if items[0].rows is not None else None
    logprob_M = answer_logprobs(logits_MV, answer_ids_M)
    zero = logprob_M.new_zeros(())
    climb = zero
    if method.ascent == "uniform":
        climb = ascent(logits_MV, answer_ids_M).sum()
    elif method.ascent == "adaptive":
        assert rows is not None, "adaptive ascent reads rows"
        climb = adaptive_ascent(logits_MV, rows).sum()
    divergence = forward_kl(bucket(logits_MV, rows)).sum() if rows is not None and method.lambda_ else zero
    loss = climb + method.lambda_ * divergence
    return _Terms(loss, float(climb.detach()), float(divergence.detach()), 0.0, logprob_M.detach(), rows)


def _retain_terms(model: Any, encoder: Encoder, items: Sequence[Item], method: Method, group_size: int) -> _Terms:
    logits_MV = student_logits(model, encoder, items, group_size)
    divergence = forward_kl(bucket(logits_MV, stack_rows(items).to(logits_MV.device))).sum()
    return _Terms(method.retain * divergence, 0.0, 0.0, float(divergence.detach()), logits_MV.new_zeros(0), None)


def _log(
    step: int, epoch: int, terms: Sequence[_Terms], num_forget: int, num_retain: int, norm: float, rate: float,
    key_entropy: float, method: Method, accelerator: Accelerator,
) -> StepLog:  # fmt: skip
    """Sum the micro-batches of all processes into one line."""
    forget = [part for part in terms if part.logprob_M.numel()]
    sums = torch.zeros(8, dtype=torch.float64)
    for part in terms:
        sums[:3] += torch.tensor([part.ascent, part.kl, part.retain_kl], dtype=torch.float64)
    for part in forget:
        if part.rows is None:
            continue
        is_key_M = part.rows.entropy_M > key_entropy
        ours_M, theirs_M = part.logprob_M.double(), part.rows.answer_logprob_M.double()
        found = (
            is_key_M.sum(),
            ours_M[is_key_M].sum(),
            theirs_M[is_key_M].sum(),
            (~is_key_M).sum(),
            ours_M[~is_key_M].sum(),
        )
        sums[3:] += torch.stack([value.double().cpu() for value in found])
    total: list[float] = accelerator.reduce(sums.to(accelerator.device), reduction="sum").tolist()
    climb, divergence, retained = total[0] / num_forget, total[1] / num_forget, total[2] / max(1, num_retain)
    return StepLog(
        step=step, epoch=epoch, loss=climb + method.lambda_ * divergence + method.retain * retained, ascent=climb,
        kl=divergence, retain_kl=retained, gradient_norm=norm, learning_rate=rate,
        key_logprob=total[4] / total[3] if total[3] else None,
        key_teacher_logprob=total[5] / total[3] if total[3] else None,
        normal_logprob=total[7] / total[6] if total[6] else None,
    )  # fmt: skip


def check_items(forget: Sequence[Item], retain: Sequence[Item], method: Method) -> None:
    """Raise `DataError` where a method's examples or rows are missing."""
    if not forget:
        raise DataError("expected examples of forget people to unlearn, found none. Check --forget and --ratio.")
    if method.reads_retain_rows and not retain:
        raise DataError(
            f"method {method.name}: expected retain examples for its retain term, found none. Add some, or --retain 0."
        )
    if method.reads_forget_rows and any(item.rows is None for item in forget):
        raise DataError(
            f"method {method.name}: expected cached rows of every forget example, found some without. "
            "Run `viker precompute`."
        )


def as_line(log: StepLog) -> dict[str, Any]:
    """Return a step's log as plain values with its schema."""
    return {"schema": "viker/step/1", **asdict(log)}
