"""How hard a loss pushes each answer token: measured by autograd in float64, and held against what theory predicts.

Gradient ascent has d log q(y) / d z_v = 1[v = y] - q_v, and every loss of an answer's distributions reweights it:
d loss / d z_v = w_v (1[v = y] - q_v). Measured weights come from the very terms that training runs, differentiated by
the student's logits. Where a loss is ascent plus KL(R || q), `losses.gradient_weights` predicts them (Propositions 2
and 3 of arXiv 2601.22020); in the tail, which a row knows as one number, by the ratio of the tails. Vocabularies are
large, so only K + 2 buckets are held for all tokens, and logits of a few tokens at a time. Who asks is `diagnose.py`.
"""

# M answer tokens, m of a chunk, K kept, C = K + 2 buckets: kept, answer, tail, V vocabulary

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from .losses import gradient_weights, lambda_by_entropy
from .method import Method
from .rows import ANSWER, TAIL, TeacherRows, answer_bucket
from .scored import Scored
from .steps import term_function
from .student import dense_buckets

CHUNK_BYTES = 16 * 1024**2  # of float64 logits at a time; a dozen tensors of that size are alive
BOUND = 1e-6  # relative error up to which a prediction holds; float64 itself gives 1e-14
_SATURATED = 1e-6  # where less than this is left beside the answer, 1 - q(y) has lost digits
_ASCENTS, _REGULARIZERS = ("climb", "climb_adaptively"), ("follow", "follow_by_entropy")


class Reweighting(NamedTuple):
    """A loss that is ascent plus KL(R || q): the weights of its terms by the names of their functions."""

    terms: Mapping[str, float]

    def ascent_M(self, rows: TeacherRows) -> Tensor:
        """Return the factor of log q(y) at each token, [M]."""
        adaptive_M = self.terms.get("climb_adaptively", 0.0) * (1 - rows.answer_logprob_M.exp())
        return self.terms.get("climb", 0.0) + adaptive_M

    def lambda_M(self, rows: TeacherRows) -> Tensor:
        """Return the factor of KL(R || q) at each token, [M]."""
        by_entropy_M = self.terms.get("follow_by_entropy", 0.0) * lambda_by_entropy(rows.entropy_M)
        return self.terms.get("follow", 0.0) + by_entropy_M

    @property
    def normal_limit(self) -> float:
        """What every weight tends to where the teacher is certain of the answer: 1 - lambda of ViKeR."""
        return self.terms.get("climb", 0.0) - sum(self.terms.get(name, 0.0) for name in _REGULARIZERS)


def reweighting_of(method: Method) -> Reweighting | None:
    """Return the prediction's parts, or None for a loss that is not ascent plus KL(R || q)."""
    weights: dict[str, float] = {}
    for term in method.forget:
        if not isinstance(term.of, str) or term.of not in (*_ASCENTS, *_REGULARIZERS):
            return None
        weights[term.of] = weights.get(term.of, 0.0) + method.weight(term)
    follows = any(weights.get(name) for name in _REGULARIZERS)
    return Reweighting(weights) if follows and not method.layer else None


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenWeights:
    """What is known of M answer tokens, float64 [M]; NaN where there is nothing of the kind.

    Attributes:
        logprob_M: log q(y).
        weight_M: measured w_y: the gradient of the answer's logit over that of gradient ascent.
        kept_mean_M, kept_max_M: measured w_v over the kept tokens beside the answer.
        kept_above_one_M: the share of them with w_v > 1, which are pushed up harder than by ascent alone.
        predicted_M: w_y as predicted.
        error_M: largest relative error of predicted gradients over the vocabulary, against the sum of the absolute
            values of their parts: where parts cancel (lambda 1, a normal token), nothing is left to compare with.
    """

    logprob_M: Tensor
    weight_M: Tensor
    kept_mean_M: Tensor
    kept_max_M: Tensor
    kept_above_one_M: Tensor
    predicted_M: Tensor
    error_M: Tensor

    @classmethod
    def join(cls, parts: "list[Self]") -> Self:
        """Return tokens end to end, on the CPU."""
        return cls(**{part.name: torch.cat([getattr(one, part.name).cpu() for one in parts]) for part in fields(cls)})


@torch.enable_grad()
def token_weights(
    logits_MV: Tensor, rows: TeacherRows, method: Method, vocab_size: int, refusal: Scored | None = None
) -> TokenWeights:
    """Return the weights of one example's answer tokens.

    Args:
        logits_MV: the student's, in its dtype.
        rows: those that the method reads of them (with no kept tokens and NaN where it reads none).
        method: whose loss it is; one of hidden states has no weights, and leaves NaN.
        vocab_size: V of the teacher.
        refusal: the example with a refusal for an answer, for methods that read it.
    """
    rows = in_float64(rows)
    size = max(1, CHUNK_BYTES // (8 * logits_MV.shape[1]))
    chunks = [slice(start, start + size) for start in range(0, len(logits_MV), size)]
    student_MC = torch.cat([_buckets(logits_MV[chunk].double(), rows, chunk) for chunk in chunks])
    scored = Scored(
        student_MC=student_MC.requires_grad_(), rows=rows, num_examples=1, vocab_size=vocab_size, refusal=refusal,
        example_M=torch.zeros(len(logits_MV), dtype=torch.long, device=logits_MV.device),
    )  # fmt: skip
    gradient_MC = _bucket_gradient(scored, method)
    theory = reweighting_of(method)
    return TokenWeights.join([_of_chunk(logits_MV[chunk], scored, gradient_MC, chunk, theory) for chunk in chunks])


def score_in_float64(logits_MV: Tensor, rows: TeacherRows, vocab_size: int) -> Scored:
    """Return one example scored without kept tokens, as a refusal is."""
    rows = in_float64(rows)
    student_MC = dense_buckets(logits_MV.double(), rows.kept_ids_MK[:, :0], rows.answer_ids_M)
    example_M = torch.zeros(len(logits_MV), dtype=torch.long, device=logits_MV.device)
    return Scored(student_MC=student_MC, rows=rows, num_examples=1, vocab_size=vocab_size, example_M=example_M)


def in_float64(rows: TeacherRows) -> TeacherRows:
    """Return rows whose floats are float64, so that nothing behind them rounds to float32."""
    named = {part.name: getattr(rows, part.name) for part in fields(rows)}
    return replace(rows, **{name: value.double() for name, value in named.items() if value.is_floating_point()})


def _buckets(logits_mV: Tensor, rows: TeacherRows, chunk: slice) -> Tensor:
    return dense_buckets(logits_mV, rows.kept_ids_MK[chunk], rows.answer_ids_M[chunk])


def _bucket_gradient(scored: Scored, method: Method) -> Tensor:
    """Return the gradient of a method's forget terms by log q in buckets, [M, C]; NaN of a loss of hidden states."""
    if method.layer:
        return torch.full_like(scored.student_MC, torch.nan)
    loss = scored.student_MC.new_zeros(())
    for term in method.forget:
        loss = loss + method.weight(term) * term_function(term)(scored, method.settings)
    if not loss.requires_grad:  # refusals alone are learned
        return torch.zeros_like(scored.student_MC)
    (gradient_MC,) = torch.autograd.grad(loss, scored.student_MC)
    return gradient_MC


def _of_chunk(
    logits_mV: Tensor, scored: Scored, gradient_MC: Tensor, chunk: slice, theory: Reweighting | None
) -> TokenWeights:
    leaf_mV = logits_mV.double().requires_grad_()
    buckets_mC = _buckets(leaf_mV, scored.rows, chunk)
    (gradient_mV,) = torch.autograd.grad(buckets_mC, leaf_mV, gradient_MC[chunk])
    logprobs_mV, answer_ids_m = leaf_mV.detach().log_softmax(1), scored.rows.answer_ids_M[chunk]
    probs_mV = logprobs_mV.exp()
    # Gradients of logits sum to zero, so the answer's is read off the others, where nothing cancels.
    weight_m1 = -_beside(gradient_mV, answer_ids_m) / _beside(probs_mV, answer_ids_m)
    predicted_m, error_m = _predict(gradient_mV, logprobs_mV, scored, chunk, theory)
    mean_m, max_m, above_m = _kept_weights(gradient_mV, probs_mV, scored.rows.kept_ids_MK[chunk], answer_ids_m)
    return TokenWeights(
        logprob_M=buckets_mC.detach()[:, ANSWER], weight_M=weight_m1[:, 0], kept_mean_M=mean_m, kept_max_M=max_m,
        kept_above_one_M=above_m, predicted_M=predicted_m, error_M=error_m,
    )  # fmt: skip


def _kept_weights(
    gradient_mV: Tensor, probs_mV: Tensor, kept_ids_mK: Tensor, answer_ids_m: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean, maximum and share above 1 of w_v over the kept tokens beside the answer, NaN where there is none."""
    weights_mK = -gradient_mV.gather(1, kept_ids_mK) / probs_mV.gather(1, kept_ids_mK)
    weights_mK = weights_mK.masked_fill(kept_ids_mK == answer_ids_m[:, None], torch.nan)
    weights_mK = nn.functional.pad(weights_mK, (0, 1), value=torch.nan)  # a maximum needs one column, even of K = 0
    count_m = (~weights_mK.isnan()).sum(1)
    max_m = weights_mK.masked_fill(weights_mK.isnan(), -torch.inf).amax(1)
    return weights_mK.nanmean(1), max_m.where(count_m > 0, torch.nan), (weights_mK > 1).sum(1).double() / count_m


def _predict(
    gradient_mV: Tensor, logprobs_mV: Tensor, scored: Scored, chunk: slice, theory: Reweighting | None
) -> tuple[Tensor, Tensor]:
    """Return the predicted weight of the answer, and the largest relative error of predicted gradients, each [m]."""
    if theory is None:
        unknown_m = torch.full_like(logprobs_mV[:, 0], torch.nan)
        return unknown_m, unknown_m
    answer_ids_m = scored.rows.answer_ids_M[chunk]
    ascent_m1, lambda_m1 = theory.ascent_M(scored.rows)[chunk, None], theory.lambda_M(scored.rows)[chunk, None]
    probs_mV, teacher_mV = logprobs_mV.exp(), _spread_teacher(logprobs_mV, scored, chunk)
    weights_mV = gradient_weights(probs_mV, teacher_mV, answer_ids_m, lambda_m1) - 1 + ascent_m1
    rest_m1, teacher_rest_m1 = (_beside(part_mV, answer_ids_m) for part_mV in (probs_mV, teacher_mV))
    direction_mV = (-probs_mV).scatter(1, answer_ids_m[:, None], rest_m1)
    predicted_mV = weights_mV * direction_mV
    # The same of the answer without 1 - q(y), for a student that is sure of it.
    saturated_m1 = (ascent_m1 - lambda_m1) * rest_m1 + lambda_m1 * teacher_rest_m1
    answer_m1 = torch.where(rest_m1 > _SATURATED, predicted_mV.gather(1, answer_ids_m[:, None]), saturated_m1)
    predicted_mV = predicted_mV.scatter(1, answer_ids_m[:, None], answer_m1)
    constant_m1 = ascent_m1.abs() + (1 - ascent_m1).abs()  # the 1 of the formula is one of its parts
    size_mV = constant_m1 * direction_mV.abs() + lambda_m1.abs() * (probs_mV + teacher_mV)
    error_mV = (gradient_mV - predicted_mV).abs() / size_mV
    return (answer_m1 / rest_m1)[:, 0], error_mV.where(probs_mV > 0, 0.0).amax(1)


def _beside(part_mV: Tensor, answer_ids_m: Tensor) -> Tensor:
    """Return what all tokens but the answer's sum to, [m, 1]: 1 - q(y) that keeps its digits near zero."""
    return part_mV.scatter(1, answer_ids_m[:, None], 0.0).sum(1, keepdim=True)


def _spread_teacher(logprobs_mV: Tensor, scored: Scored, chunk: slice) -> Tensor:
    """Return the teacher over the vocabulary [m, V], its tail shared out as the student's is."""
    teacher_MC, rows = scored.teacher_MC, scored.rows
    teacher_mC, student_mC = teacher_MC[chunk], scored.student_MC.detach()[chunk]
    answer_m1 = teacher_mC.gather(1, answer_bucket(rows)[chunk, None])
    spread_mV = (logprobs_mV + (teacher_mC[:, TAIL] - student_mC[:, TAIL])[:, None]).exp()
    spread_mV = spread_mV.scatter(1, rows.kept_ids_MK[chunk], teacher_mC[:, :-2].exp())
    return spread_mV.scatter(1, rows.answer_ids_M[chunk, None], answer_m1.exp())
