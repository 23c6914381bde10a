"""The terms that methods are made of: from scored answer tokens and a method's settings to one number, in nats.

Each is a sum over the examples of a micro-batch, so that batches, accumulation and processes only add them up. Formulas
and sources are with the pure functions (`losses.py`, `divergences.py`); here they meet the data.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from ..data.example import DataError
from . import divergences, losses
from .rows import answer_bucket
from .scored import Scored

Settings = Mapping[str, float]


def climb(scored: Scored, _: Settings) -> Tensor:
    """Return the ascent on every answer token alike."""
    return losses.ascent(scored.answer_logprob_M).sum()


def climb_adaptively(scored: Scored, _: Settings) -> Tensor:
    """Return the ascent weighted by what the teacher does not say anyway."""
    return losses.adaptive_ascent(scored.answer_logprob_M, scored.rows.answer_logprob_M).sum()


def climb_confident(scored: Scored, settings: Settings) -> Tensor:
    """Return WGA's weighted ascent."""
    return losses.confident_ascent(scored.answer_logprob_M, settings["beta"]).sum()


def climb_saturated(scored: Scored, settings: Settings) -> Tensor:
    """Return SatImp's weighted ascent."""
    return losses.saturated_ascent(scored.answer_logprob_M, settings["beta1"], settings["beta2"]).sum()


def follow(scored: Scored, _: Settings) -> Tensor:
    """Return KL(R || q) over the answer tokens."""
    return divergences.forward_kl(scored.teacher_MC, scored.student_MC).sum()


def follow_by_entropy(scored: Scored, _: Settings) -> Tensor:
    """Return KL(R || q), each token's weighted by how certain the teacher is."""
    weight_M = losses.lambda_by_entropy(scored.rows.entropy_M)
    return (weight_M * divergences.forward_kl(scored.teacher_MC, scored.student_MC)).sum()


def follow_jensen_shannon(scored: Scored, _: Settings) -> Tensor:
    """Return the Jensen-Shannon divergence over the answer tokens."""
    return divergences.jensen_shannon(scored.teacher_MC, scored.student_MC).sum()


def follow_kept_cosine(scored: Scored, _: Settings) -> Tensor:
    """Return the cosine distance over kept tokens.

    Raises:
        DataError: the rows keep none.
    """
    if scored.rows.kept_ids_MK.shape[1] == 0:
        raise DataError(
            "--regularizer cosine: expected rows with kept tokens, found scalars only. Read rows with some "
            "(--top-k 64), or take another regularizer."
        )
    return divergences.kept_cosine_distance(scored.teacher_MC, scored.student_MC).sum()


def follow_on_average(scored: Scored, _: Settings) -> Tensor:
    """Return KL(R || q) as a mean over each example's tokens (KL-Min)."""
    sums_B = scored.sum_by_example(divergences.forward_kl(scored.teacher_MC, scored.student_MC))
    return (sums_B / scored.num_tokens_B).sum()


def learn(scored: Scored, _: Settings) -> Tensor:
    """Return the negative log-likelihood of the answers."""
    return -scored.answer_logprob_M.sum()


def learn_refusals(scored: Scored, _: Settings) -> Tensor:
    """Return the negative log-likelihood of refusals in place of the answers (PO)."""
    assert scored.refusal is not None, "the method says that it reads refusals"
    return -scored.refusal.answer_logprob_M.sum()


def prefer_anything(scored: Scored, settings: Settings) -> Tensor:
    """Return NPO's loss."""
    return losses.npo(scored.log_ratio_B, settings["beta"]).sum()


def prefer_anything_simply(scored: Scored, settings: Settings) -> Tensor:
    """Return SimNPO's loss."""
    logprob_B = scored.sum_by_example(scored.answer_logprob_M)
    return losses.simnpo(logprob_B, scored.num_tokens_B, settings["beta"], settings["delta"]).sum()


def prefer_refusals(scored: Scored, settings: Settings) -> Tensor:
    """Return IdkPO's loss."""
    assert scored.refusal is not None, "the method says that it reads refusals"
    return losses.idkpo(scored.refusal.log_ratio_B, scored.log_ratio_B, settings["beta"]).sum()


def follow_lowered(scored: Scored, settings: Settings) -> Tensor:
    """Return UNDIAL's cross-entropy."""
    column_M = answer_bucket(scored.rows)
    return losses.undial(scored.teacher_MC, scored.student_MC, column_M, settings["gamma"]).sum()


def misdirect(scored: Scored, settings: Settings) -> Tensor:
    """Return RMU's forget term; the direction is a seeded unit vector."""
    assert scored.states_MD is not None, "the method says that it reads a layer"
    generator = torch.Generator().manual_seed(0)
    direction_D = torch.rand(scored.states_MD.shape[1], generator=generator)
    return losses.misdirection(scored.states_MD, direction_D / direction_D.norm(), settings["coefficient"]).sum()


def keep_states(scored: Scored, _: Settings) -> Tensor:
    """Return RMU's retain term."""
    assert scored.states_MD is not None, "the method says that it reads a layer"
    assert scored.frozen_states_MD is not None, "on retain examples the layer is run without the adapter too"
    return losses.state_distance(scored.states_MD, scored.frozen_states_MD).sum()
