"""Unlearning objectives on log-probabilities: pure functions, one value an answer token or an example.

The field's losses differ in which tokens they push and how hard. Each is written as it stands in its paper, with sums
over answer tokens (a joint log-probability an example) and never a mean over padding or prompt: differences from
official code are listed with each method (`methods.py`). Divergences are `divergences.py`'s; sums over a batch and
division by examples are the loop's.
"""

# M answer tokens, B examples, C buckets (kept, answer, tail), D hidden, V vocabulary

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def ascent(answer_logprob_M: Tensor) -> Tensor:
    """Return the uniform ascent term, log q(y), [M]: minimizing it lowers the answer's probability (GA)."""
    return answer_logprob_M


def adaptive_ascent(answer_logprob_M: Tensor, teacher_logprob_M: Tensor) -> Tensor:
    """Return log q(y) weighted by 1 - R(y), [M]: tokens the teacher says anyway feel no ascent (ours)."""
    return (1 - teacher_logprob_M.exp()) * answer_logprob_M


def lambda_by_entropy(entropy_M: Tensor) -> Tensor:
    """Return a factor of lambda for each token, exp(-H), [M] (ours).

    It is 1 where the teacher is certain and near 0 at key tokens. With lambda = 1 normal tokens then feel nothing
    (their ascent and their regularizer cancel), and key tokens little but the ascent.
    """
    return torch.exp(-entropy_M)


def confident_ascent(answer_logprob_M: Tensor, beta: float) -> Tensor:
    """Return WGA's term, p^beta log p with the weight held constant, [M] (arXiv 2502.19301)."""
    return (beta * answer_logprob_M).exp().detach() * answer_logprob_M


def saturated_ascent(answer_logprob_M: Tensor, beta1: float, beta2: float) -> Tensor:
    """Return SatImp's term, p^beta1 (1 - p)^beta2 log p with the weight held constant, [M] (arXiv 2505.11953)."""
    p_M = answer_logprob_M.exp()
    return (p_M.pow(beta1) * (1 - p_M).clamp_min(0).pow(beta2)).detach() * answer_logprob_M


def npo(log_ratio_B: Tensor, beta: float) -> Tensor:
    """Return NPO's loss, -(2 / beta) log sigmoid(-beta log(p / p0)), [B] (arXiv 2404.05868)."""
    return -(2 / beta) * logsigmoid(-beta * log_ratio_B)


def simnpo(logprob_B: Tensor, num_tokens_B: Tensor, beta: float, delta: float) -> Tensor:
    """Return SimNPO's loss, -(2 / beta) log sigmoid(-(beta / |y|) log p - delta), [B] (arXiv 2410.07163).

    `delta` is the paper's gamma; official code has it inside of beta.
    """
    return -(2 / beta) * logsigmoid(-(beta / num_tokens_B) * logprob_B - delta)


def idkpo(refusal_log_ratio_B: Tensor, log_ratio_B: Tensor, beta: float) -> Tensor:
    """Return IdkPO's loss, -(2 / beta) log sigmoid(beta (log p/p0 of the refusal - log p/p0 of the answer)), [B].

    DPO with a refusal as the preferred answer (arXiv 2305.18290, eq. 7; TOFU, arXiv 2401.06121), scaled like NPO.
    """
    return -(2 / beta) * logsigmoid(beta * (refusal_log_ratio_B - log_ratio_B))


def undial(teacher_MC: Tensor, student_MC: Tensor, answer_column_M: Tensor, gamma: float) -> Tensor:
    """Return UNDIAL's cross-entropy, [M]: to the teacher with the answer's logit lowered by gamma (arXiv 2402.10052).

    Lowering one logit multiplies one probability by exp(-gamma) and renormalizes, which buckets can do exactly.
    """
    lowered_MC = teacher_MC.detach().scatter_add(
        1, answer_column_M[:, None], torch.full_like(teacher_MC[:, :1], -gamma)
    )
    target_MC = lowered_MC.softmax(1)
    return -torch.where(target_MC == 0, 0.0, target_MC * student_MC).sum(1)


def misdirection(states_MD: Tensor, direction_D: Tensor, coefficient: float) -> Tensor:
    """Return RMU's forget term, ||h - c u||^2 / D, [M], float32 or wider (arXiv 2403.03218)."""
    states_MD = _widened(states_MD)
    return (states_MD - coefficient * direction_D.to(states_MD)).square().mean(1)


def state_distance(states_MD: Tensor, frozen_states_MD: Tensor) -> Tensor:
    """Return RMU's retain term, ||h - h0||^2 / D, [M], float32 or wider (arXiv 2403.03218)."""
    return (_widened(states_MD) - _widened(frozen_states_MD.detach())).square().mean(1)


def _widened(states_MD: Tensor) -> Tensor:
    return states_MD.to(torch.promote_types(states_MD.dtype, torch.float32))


def gradient_weights(
    student_probs_MV: Tensor, teacher_probs_MV: Tensor, answer_ids_M: Tensor, lambda_: float | Tensor
) -> Tensor:
    """Return ViKeR's reweighting factors w, [M, V], with d loss / d logit_v = w_v (1[v = y] - q_v).

    w_y = 1 + lambda (q_y - R_y) / (1 - q_y) and w_v = 1 - lambda + lambda R_v / q_v elsewhere (derived from the loss;
    with R one-hot at y every factor is 1 - lambda, the paper's Proposition 2). `lambda_` may be one a token, [M, 1].
    """
    weights_MV = 1 - lambda_ + lambda_ * teacher_probs_MV / student_probs_MV
    answer_M1 = answer_ids_M[:, None]
    student_M1, teacher_M1 = student_probs_MV.gather(1, answer_M1), teacher_probs_MV.gather(1, answer_M1)
    return weights_MV.scatter(1, answer_M1, 1 + lambda_ * (student_M1 - teacher_M1) / (1 - student_M1))
