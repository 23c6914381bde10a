"""Teach a model answers by cross-entropy: the base, the vanilla and the retain-only models, and relearning attacks.

One plain loop over answer tokens, whole-model or LoRA, with the same encoder as everything else. It stops early once
an epoch's answers are memorized, since more epochs only make the model harder to compare. Reading sources and writing
artefacts is `commands.py`'s job. B batch, M answer tokens of the batch, V vocabulary.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from ..data.example import Example
from ..models.augment import augment
from ..models.encode import Encoder
from ..models.forward import answer_logits, to_device
from ..models.pack import Packed, pack_for
from .batches import group_order


@dataclass(frozen=True, slots=True)
class EpochLog:
    """What an epoch of finetuning reached: mean loss a token, share of answer tokens predicted."""

    epoch: int
    step: int
    loss: float
    memorized: float


def epoch_order(examples: Sequence[Example], seed: int, epoch: int, group_size: int) -> list[Example]:
    """Return the order in which an epoch visits the examples: groups of `group_size` questions about one image."""
    keys = [tuple(image.sha256 for image in example.images) for example in examples]
    return [examples[index] for index in group_order(keys, group_size, random.Random(f"{seed}/{epoch}/order"))]


def finetune(
    model: Any,
    encoder: Encoder,
    examples: Sequence[Example],
    *,
    num_epochs: float,
    batch_size: int,
    group_size: int,
    learning_rate: float,
    weight_decay: float,
    warmup_ratio: float,
    seed: int,
    augment_pictures: bool,
    stop_memorized: float,
    accelerator: Accelerator,
) -> Iterator[EpochLog]:
    """Train a model's trainable weights in place; yield a log after every epoch, the last one when it stops.

    Stops after `num_epochs`, or after the epoch whose share of predicted answer tokens reaches `stop_memorized`.
    """
    steps_per_epoch = -(-len(examples) // batch_size)
    total_steps = max(1, round(num_epochs * steps_per_epoch))
    trainable = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=learning_rate, weight_decay=weight_decay)
    warms_up = warmup_ratio * (total_steps + 1) > 1  # less than a step of it divides by zero inside
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=learning_rate, total_steps=total_steps + 1, pct_start=warmup_ratio if warms_up else 0.0
    )
    model, optimizer = accelerator.prepare(model, optimizer)
    model.train()
    bar = tqdm(total=total_steps, desc="finetune", unit="step", disable=not accelerator.is_main_process)
    step, epoch = 0, 0
    while step < total_steps:
        losses, right_shares = [], []
        for batch in _batches(epoch_order(examples, seed, epoch, group_size), batch_size):
            rows = [encoder.encode(example) for example in batch]
            packed = pack_for(model, rows, pad_id=encoder.pad_id, group_size=group_size)
            if augment_pictures and "pixel_values" in packed.inputs:
                packed.inputs["pixel_values"] = augment(packed.inputs["pixel_values"], seed, step)
            loss, right = _loss(model, packed, accelerator.device)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(trainable, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            losses.append(float(loss.detach()))
            right_shares.append(right)
            step += 1
            bar.update()
            if step == total_steps:
                break
        epoch += 1
        log = EpochLog(epoch, step, sum(losses) / len(losses), sum(right_shares) / len(right_shares))
        bar.set_postfix(loss=f"{log.loss:.3f}", memorized=f"{log.memorized:.2f}")
        yield log
        if log.memorized >= stop_memorized:
            break
    bar.close()
    model.eval()


def _batches(order: Sequence[Example], batch_size: int) -> Iterator[Sequence[Example]]:
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def _loss(model: Any, packed: Packed, device: torch.device) -> tuple[Tensor, float]:
    """Return the batch's mean loss a token, and the share of answer tokens that are the likeliest."""
    inputs = to_device(packed.inputs, device, next(model.parameters()).dtype)
    logits_MV = answer_logits(model, inputs, packed.batch_M, packed.position_M).float()
    answer_ids_M = packed.answer_ids_M.to(device)
    loss = torch.nn.functional.cross_entropy(logits_MV, answer_ids_M)
    return loss, float((logits_MV.argmax(-1) == answer_ids_M).float().mean())
