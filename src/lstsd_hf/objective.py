"""The method as pure functions: which epochs teach, how far the student is from them, and the loss.

Long Short-Term Sample Distillation, Jiang et al., AAAI 2020 (arXiv 2003.00739). The two teachers and the single pass
are the paper's; the convex form of the loss, the trust in a teacher and the treatment of a missing one are ours.
"""

import math
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812

from .config import DistillationArguments, TeacherTrust

ProblemType = Literal["regression", "single_label_classification", "multi_label_classification"]


class TeachingEpochs(NamedTuple):
    """The epochs whose predictions teach, or None where a teacher does not exist yet."""

    long_term: int | None
    short_term: int | None


class TeacherWeights(NamedTuple):
    """The share of the loss that a teacher takes where it is trusted in full."""

    long_term: float
    short_term: float


class Lessons(NamedTuple):
    """What T teachers have to say about a micro-batch of B samples; float32 tensors of shape (T, B).

    Attributes:
        present: 1 where the teacher has a prediction for the sample, else 0.
        trust: From 0 to 1: c in `distillation_loss`; 0 where the teacher is absent.
        divergence: 0 where the student agrees with the teacher in full; finite, and no more, where it is absent.
        agreement: The share of the sample's decisions that are the same for student and teacher: whether the classes
            with the largest logit are the same, or how many of a multi-label row's signs. 0 where the teacher is
            absent. None for a regression, which takes no decision.
    """

    present: torch.Tensor
    trust: torch.Tensor
    divergence: torch.Tensor
    agreement: torch.Tensor | None


def teaching_epochs(epoch: int, mini_generation_epochs: int) -> TeachingEpochs:
    """The epochs that teach in `epoch`; both count from 0.

    The short-term teacher is the epoch before; the long-term teacher is the last epoch of the mini-generation before,
    `(epoch // K) * K - 1`.
    """
    long_term = epoch // mini_generation_epochs * mini_generation_epochs - 1
    return TeachingEpochs(long_term if long_term >= 0 else None, epoch - 1 if epoch >= 1 else None)


def teacher_weights(arguments: DistillationArguments, epoch: int, num_train_epochs: int) -> TeacherWeights:
    """The teachers' weights in an epoch: the ramp, and who gets the long-term teacher's weight while it is absent."""
    ramp = (epoch + 1) / num_train_epochs if arguments.weight_schedule == "linear" else 1.0
    long_term, short_term = arguments.long_term_weight, arguments.short_term_weight
    assert long_term is not None, "see DistillationArguments.fill_weights"
    assert short_term is not None
    if epoch < arguments.mini_generation_epochs and arguments.lone_teacher == "teacher":
        long_term, short_term = 0.0, short_term + long_term
    return TeacherWeights(long_term * ramp, short_term * ramp)


def infer_problem_type(config: Any, labels: Any) -> ProblemType:
    """The problem that a batch with these labels poses; `config` is the model's, or None.

    The rule is that of the heads in transformers: the config's `problem_type`; else one label is a regression,
    integers are classes, and floating-point rows are multi-label.
    """
    problem_type = getattr(config, "problem_type", None)
    if problem_type is not None:
        return problem_type
    if getattr(config, "num_labels", None) == 1:
        return "regression"
    if isinstance(labels, torch.Tensor) and labels.is_floating_point():
        return "multi_label_classification" if labels.ndim > 1 and labels.shape[-1] > 1 else "regression"
    return "single_label_classification"


def log_probabilities(problem_type: ProblemType, logits: torch.Tensor) -> torch.Tensor:
    """The logarithm of the distributions that logits (..., C) stand for, which lie along the last axis of the result.

    Args:
        problem_type: Classes: one distribution over C classes, (..., C). Multi-label: a Bernoulli distribution for
            each of C labels, (..., C, 2).
        logits: Floating-point.
    """
    if problem_type == "multi_label_classification":
        return torch.stack((F.logsigmoid(logits), F.logsigmoid(-logits)), dim=-1)
    return F.log_softmax(logits, dim=-1)


def _expectation(problem_type: ProblemType, log_q: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """The mean of values under q, averaged over the labels of a multi-label row."""
    means = torch.linalg.vecdot(log_q.exp(), values)
    return means.mean(dim=-1) if problem_type == "multi_label_classification" else means


def divergence(
    problem_type: ProblemType, log_p: torch.Tensor, log_q: torch.Tensor, temperature: float
) -> torch.Tensor:
    """How far the student is from the teacher, (..., B), 0 where they agree.

    Classes: `tau^2 KL(softmax(q / tau) || softmax(p / tau))`, with the teacher's entropy (Hinton et al., 2015).
    Multi-label: the same of each label's Bernoulli distribution, averaged over labels.

    Args:
        problem_type: See `log_probabilities`.
        log_p: The student's log probabilities, of B samples.
        log_q: The teacher's, finite, of the student's shape with any axes in front.
        temperature: tau, above 0.
    """
    if temperature != 1:  # of log probabilities as of logits, which differ by a constant that softmax does not see
        log_p, log_q = (F.log_softmax(log / temperature, dim=-1) for log in (log_p, log_q))
    return temperature**2 * _expectation(problem_type, log_q, log_q - log_p)


def confidence(problem_type: ProblemType, log_q: torch.Tensor) -> torch.Tensor:
    """How sure a teacher is, (..., B): 1 less its entropy over the largest possible; 0 knows nothing, 1 is sure.

    Classes: `1 - H(softmax(q)) / log C`. Multi-label: `1 - H / log 2` of each label, averaged.

    Args:
        problem_type: See `log_probabilities`.
        log_q: The teacher's log probabilities, finite.
    """
    share = _expectation(problem_type, log_q, log_q) / math.log(log_q.shape[-1])
    return (share + 1).clamp(0, 1)  # rounding leaves the range


def learn_from(
    problem_type: ProblemType,
    student: torch.Tensor,
    teachers: torch.Tensor,
    temperature: float,
    teacher_trust: TeacherTrust,
) -> Lessons:
    """The teachers' parts in a micro-batch, without their weights.

    Teachers come together because the tensors are small: what a step costs is the number of operations.

    Args:
        problem_type: Classes and multi-label: see `divergence`. Regression: the divergence is the squared error,
            averaged over columns; the temperature has no part in it, and every teacher is trusted in full.
        student: The model's logits, (B, C), with gradient.
        teachers: The recorded logits, (T, B, C), of any floating-point type. A row with a NaN: that teacher is absent.
        temperature: See `divergence`.
        teacher_trust: "constant": 1. "confidence": see `confidence`.
    """
    student, teachers = student.float(), teachers.float()
    total = teachers.sum(dim=-1)
    present = (total == total).float()  # a NaN, which a row's sum is if there is one in it, differs from itself
    # Zeros, not a mask on the result: 0 times the gradient of a NaN is NaN.
    teachers = teachers.nan_to_num(0.0)
    if problem_type == "regression":
        return Lessons(present, present, (student - teachers).square().mean(dim=-1), None)
    log_p, log_q = log_probabilities(problem_type, student), log_probabilities(problem_type, teachers)
    if problem_type == "multi_label_classification":
        agreement = ((student > 0) == (teachers > 0)).float().mean(dim=-1)
    else:
        agreement = student.argmax(dim=-1) == teachers.argmax(dim=-1)
    return Lessons(
        present,
        present * confidence(problem_type, log_q) if teacher_trust == "confidence" else present,
        divergence(problem_type, log_p, log_q, temperature),
        present * agreement,
    )


def distillation_loss(base_loss: torch.Tensor, weights: torch.Tensor, lessons: Lessons) -> torch.Tensor:
    """The loss of a micro-batch of B samples.

        loss = (1 - sum_t a_t) L + sum_t a_t D_t,   a_t = weight_t mean_i c_i,   D_t = sum_i c_i d_i / sum_i c_i

    so a sample without a teacher, or with one that is not trusted, gives its weight back to the base loss. Computed as
    L + mean_i sum_t weight_t c_i (d_i - L), which is the same.

    Args:
        base_loss: L, a scalar: what the plain Trainer would have minimised.
        weights: weight_t of each of the T teachers, floating-point, (T,), on the device of the logits.
        lessons: The teachers' trust c and divergences d.
    """
    share = weights[:, None] * lessons.trust
    return base_loss + (share * (lessons.divergence - base_loss)).sum() / share.shape[-1]
