"""How far the student is from its teachers, and the loss: pure functions of tensors.

Throughout, B is the number of samples of a micro-batch and T the number of teachers. The convex form of the loss, the
trust in a teacher and the treatment of a missing one are ours.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812


class TeacherTerms(NamedTuple):
    """What T teachers contribute to the loss of B samples, without their weights; float32 tensors of shape (T, B).

    Attributes:
        present: 1 where the teacher has a prediction for the sample, else 0.
        trust: From 0 to 1: c in `distillation_loss`; 0 where the teacher is absent.
        divergence: 0 where the student agrees with the teacher in full; an arbitrary finite value where the teacher
            is absent: its trust is 0.
        agreement: The share of the sample's decisions that are the same for student and teacher: whether the classes
            with the largest logit are the same, or how many of a multi-label row's signs. 0 where the teacher is
            absent. None for a regression, which takes no decision.
    """

    present: torch.Tensor
    trust: torch.Tensor
    divergence: torch.Tensor
    agreement: torch.Tensor | None


def bernoulli_log_probabilities(logits: torch.Tensor) -> torch.Tensor:
    """(..., 2): the logarithms of p and 1 - p of the Bernoulli distribution that each logit stands for."""
    return torch.stack((F.logsigmoid(logits), F.logsigmoid(-logits)), dim=-1)


def divergence(log_p: torch.Tensor, log_q: torch.Tensor, temperature: float) -> torch.Tensor:
    """`tau^2 KL(softmax(q / tau) || softmax(p / tau))` along the last axis (Hinton et al., 2015); 0: they agree.

    Args:
        log_p: The student's log probabilities, (..., C).
        log_q: The teacher's, finite, of the student's shape with any axes in front.
        temperature: tau, above 0.
    """
    if temperature != 1:  # of log probabilities as of logits, which differ by a constant that softmax does not see
        log_p, log_q = (F.log_softmax(log / temperature, dim=-1) for log in (log_p, log_q))
    return temperature**2 * torch.linalg.vecdot(log_q.exp(), log_q - log_p)


def confidence(log_q: torch.Tensor) -> torch.Tensor:
    """How sure a teacher is, `1 - H(softmax(q)) / log C`, along the last axis: 0 knows nothing, 1 is sure.

    Args:
        log_q: The teacher's log probabilities, finite, (..., C), C at least 2.
    """
    share = torch.linalg.vecdot(log_q.exp(), log_q) / math.log(log_q.shape[-1])
    return (share + 1).clamp(0, 1)  # rounding leaves the range


def distillation_loss(base_loss: torch.Tensor, weights: torch.Tensor, terms: TeacherTerms) -> torch.Tensor:
    """The loss of a micro-batch of B samples.

        loss = (1 - sum_t a_t) L + sum_t a_t D_t,   a_t = weight_t mean_i c_i,   D_t = sum_i c_i d_i / sum_i c_i

    so a sample without a teacher, or with one that is not trusted, gives its weight back to the base loss. Computed as
    L + mean_i sum_t weight_t c_i (d_i - L), which is the same.

    Args:
        base_loss: L, a scalar: what the plain Trainer would have minimised.
        weights: weight_t of each of the T teachers, floating-point, (T,), on the device of the logits.
        terms: The teachers' trust c and divergences d.
    """
    share = weights[:, None] * terms.trust
    return base_loss + (share * (terms.divergence - base_loss)).sum() / max(share.shape[-1], 1)
