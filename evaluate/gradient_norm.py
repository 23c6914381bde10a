"""How hard does an answer pull on a model: the gradient norm, a score that tells what was trained on from what was not.

The score of an answer is the Euclidean norm of the gradient of its mean negative log-likelihood (nats a token) with
respect to the language model's weights: text decoder and output layer, not the vision tower and its projector. A model
that knows an answer has nothing left to learn from it, so the norm is small (GradNorm, eq. 60 of Open-MMU in reference/
methods.md 5.4; the score of membership is minus the norm).
For a model with LoRA the weights are the base's, with the adapter active, and not the adapter's own: that is the
gradient of the merged model with respect to its merged weights (d(W + sBA)/dW is the identity), so adapters, whole
models and models of another rank are compared on one scale. A decoder in few bits has no such gradient and is refused.
One example at a time, in evaluation mode, so nothing is padded and no neighbor counts. A weight's gradient is squared,
summed and dropped as soon as the backward pass has it, so beside the weights there is one weight's gradient and the
activations of one example. Whatever was there before (`grad`, `requires_grad`, the modes of the modules) is put back.
M answer tokens, V vocabulary.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from ..data.example import DataError, Example
from ..models.encode import Encoder, answer_rows, collate
from ..models.forward import answer_logits, to_device

_OF_ADAPTER = "lora_"  # in the name of every weight that peft's LoRA adds


def gradient_norms(model: Any, encoder: Encoder, examples: Sequence[Example]) -> list[float]:
    """Return the gradient norm of each example's answer, in order.

    Raises:
        DataError: the language model has weights in few bits, an answer cannot be encoded, or a norm is not finite.
    """
    weights = language_weights(model)
    with torch.inference_mode(False), torch.enable_grad(), _learning(model, weights), _squared(weights) as squares:
        bar = tqdm(examples, desc="gradient norm", unit="answer", leave=False)
        return [_norm(model, encoder, example, squares) for example in bar]


def language_weights(model: Any) -> list[nn.Parameter]:
    """Return the weights of a model's text decoder and output layer, each once, without those of an adapter.

    Raises:
        DataError: some are stored in few bits, or there is nothing that a gradient could be of.
    """
    whole = model.get_base_model() if hasattr(model, "get_base_model") else model
    parts = [whole.get_decoder(), whole.get_output_embeddings()]
    named = [(name, weight) for part in parts if part is not None for name, weight in part.named_parameters()]
    found = {id(weight): weight for name, weight in named if _OF_ADAPTER not in name}
    whole_weights = [weight for weight in found.values() if weight.is_floating_point()]
    if len(whole_weights) < len(found) or not any(weight.dim() > 1 for weight in whole_weights):
        raise DataError(
            f"{type(whole).__name__}: expected a language model of whole weights, found "
            f"{len(found) - len(whole_weights)} of {len(found)} stored in few bits. A gradient norm of the rest cannot "
            "be compared with other models': load it without quantization, or leave the gradient norm out."
        )
    return whole_weights


def _norm(model: Any, encoder: Encoder, example: Example, squares: list[Tensor]) -> float:
    """Return the gradient norm of one answer; `squares` is where the weights' hooks leave their sums of squares."""
    squares.clear()
    _mean_loss(model, encoder, example).backward()
    norm = math.sqrt(sum(float(square) for square in squares))
    if not math.isfinite(norm):
        raise DataError(
            f"{example.id}: expected a finite gradient norm of the answer, found {norm}. The model has diverged or "
            "overflows: train it again with a lower --learning-rate, or load it in another --dtype."
        )
    return norm


def _mean_loss(model: Any, encoder: Encoder, example: Example) -> Tensor:
    """Return the mean negative log-likelihood of an example's answer, float32 or wider, with its graph."""
    row = encoder.encode(example)
    like = next(model.parameters())
    inputs = to_device(collate([row], pad_id=encoder.pad_id, side="right"), like.device, like.dtype)
    batch_M, position_M, answer_ids_M = answer_rows([row])
    logits_MV = answer_logits(model, inputs, batch_M, position_M)
    logits_MV = logits_MV.to(torch.promote_types(logits_MV.dtype, torch.float32))
    return cross_entropy(logits_MV, answer_ids_M.to(logits_MV.device))


@contextmanager
def _learning(model: Any, weights: Sequence[nn.Parameter]) -> Iterator[None]:
    """Let only these weights have gradients, in evaluation mode; afterwards everything is as it was."""
    before = [(weight, weight.requires_grad, weight.grad) for weight in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    chosen = {id(weight) for weight in weights}
    try:
        model.eval()
        for weight, _, _ in before:
            weight.grad = None
            if weight.is_floating_point():
                weight.requires_grad_(id(weight) in chosen)
        yield
    finally:
        for weight, required, gradient in before:
            weight.requires_grad_(required)
            weight.grad = gradient
        for module, mode in modes:
            module.training = mode


@contextmanager
def _squared(weights: Sequence[nn.Parameter]) -> Iterator[list[Tensor]]:
    """Collect each weight's sum of squared gradients, float32 or wider, as soon as it is known, and drop the gradient.

    A weight that is used twice has one gradient, the sum: the engine calls the hook when all of it is there.
    """
    squares: list[Tensor] = []

    def take(weight: Tensor) -> None:
        assert weight.grad is not None, "the engine has just made it"
        wide = torch.promote_types(weight.grad.dtype, torch.float32)
        squares.append(torch.linalg.vector_norm(weight.grad, dtype=wide).square())
        weight.grad = None

    hooks = [weight.register_post_accumulate_grad_hook(take) for weight in weights]
    try:
        yield squares
    finally:
        for hook in hooks:
            hook.remove()
