"""How far the student is from its teachers, and the loss: pure functions of tensors.

Throughout, B is the number of samples in a micro-batch and T the number of teachers. The convex form of the loss, the
trust in a teacher and the treatment of a missing teacher are ours.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812


class TeacherTerms(NamedTuple):
    """What T teachers contribute to the loss of B samples, without their weights; float32 tensors of shape (T, B).

    Attributes:
        present: 1 where the teacher has a prediction for the sample, else 0.
        trust: c in `distillation_loss`, from 0 to 1; 0 where the teacher is absent.
        divergence: 0 where student and teacher agree in full. Arbitrary where the teacher is absent, because its trust
            is 0 there; finite if the student's logits are.
        agreement: The share of the sample's decisions that are the same for student and teacher: whether the largest
            logit is of the same class, or the share of a multi-label row's logits with the same sign. 0 where the
            teacher is absent. None for a regression, which takes no decision.
    """

    present: torch.Tensor
    trust: torch.Tensor
    divergence: torch.Tensor
    agreement: torch.Tensor | None


def bernoulli_log_probabilities(logits: torch.Tensor) -> torch.Tensor:
    """(..., 2): the logarithms of p and 1 - p of the Bernoulli distribution that each logit stands for."""
    return torch.stack((F.logsigmoid(logits), F.logsigmoid(-logits)), dim=-1)


def divergence(log_p: torch.Tensor, log_q: torch.Tensor, temperature: float) -> torch.Tensor:
    """`tau^2 KL(softmax(q / tau) || softmax(p / tau))` along the last axis (Hinton et al., 2015); 0: both agree.

    Args:
        log_p: The student's log probabilities, (..., C).
        log_q: The teacher's log probabilities, finite, of the student's shape with any axes in front.
        temperature: tau, above 0.
    """
    if temperature != 1:  # the same as for logits, which differ by a constant that softmax ignores
        log_p, log_q = (F.log_softmax(log / temperature, dim=-1) for log in (log_p, log_q))
    return temperature**2 * torch.linalg.vecdot(log_q.exp(), log_q - log_p)


def confidence(log_q: torch.Tensor) -> torch.Tensor:
    """How sure a teacher is, `1 - H(softmax(q)) / log C`, along the last axis: 0 if uniform, 1 if certain.

    Args:
        log_q: The teacher's log probabilities, finite, (..., C), C at least 2.
    """
    share = torch.linalg.vecdot(log_q.exp(), log_q) / math.log(log_q.shape[-1])
    return (share + 1).clamp(0, 1)  # rounding may leave the range


def distillation_loss(base_loss: torch.Tensor, weights: torch.Tensor, terms: TeacherTerms) -> torch.Tensor:
    """The loss of a micro-batch of B samples.

        loss = (1 - sum_t a_t) L + sum_t a_t D_t,   a_t = weight_t mean_i c_i,   D_t = sum_i c_i d_i / sum_i c_i

    So a sample without a teacher, or with one that is not trusted, gives the teacher's weight back to the base loss.
    It is computed in the equal form L + mean_i sum_t weight_t c_i (d_i - L).

    Args:
        base_loss: L, a scalar: what the plain Trainer would have minimised.
        weights: weight_t of each of the T teachers, floating-point, (T,), on the device of the logits.
        terms: The teachers' trust c and divergences d.
    """
    share = weights[:, None] * terms.trust
    return base_loss + (share * (terms.divergence - base_loss)).sum() / max(share.shape[-1], 1)
