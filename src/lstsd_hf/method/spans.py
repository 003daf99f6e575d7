"""Question answering: start and end are each a distribution over the positions of a feature that are not padding."""

import torch

from .loss import TeacherTerms
from .teachers import TeacherTrust


def span_log_probabilities(rows: torch.Tensor, samples: torch.Tensor, count: int) -> torch.Tensor:
    """(..., R, 2) log probabilities of start and end, each a softmax over the rows of a sample.

    Args:
        rows: Scores, (..., R, 2), finite, float32.
        samples: int64 (R,): the sample of each row, from 0 to count - 1.
        count: B, the number of samples.
    """
    index = samples[:, None].expand(rows.shape)
    most = torch.full((*rows.shape[:-2], count, 2), -torch.inf, device=rows.device)
    most = most.scatter_reduce(-2, index, rows.detach(), "amax")
    shifted = rows - most.gather(-2, index)
    total = torch.zeros_like(most).scatter_add(-2, index, shifted.exp())
    return shifted - total.log().gather(-2, index)


def span_terms(
    student: torch.Tensor,
    teachers: torch.Tensor,
    samples: torch.Tensor,
    count: int,
    temperature: float,
    teacher_trust: TeacherTrust,
) -> TeacherTerms:
    """The teachers' terms for B features, each (T, B): means over start and end.

    Args:
        student: Scores, (R, 2), with gradient.
        teachers: Recorded scores, (T, R, 2). A teacher with a NaN in a feature is absent there.
        samples: int64 (R,): the feature of each row.
        count: B.
        temperature: tau, above 0.
        teacher_trust: See `heads.OneRow.terms`.
    """

    def over_rows(values: torch.Tensor) -> torch.Tensor:
        """(T, B): sums over the rows of each feature, averaged over start and end; values are (T, R, 2)."""
        sums = torch.zeros(len(values), count, device=values.device)
        return sums.index_add(1, samples, values.mean(dim=-1))

    student, teachers = student.float(), teachers.float()
    present = (over_rows(torch.isnan(teachers).float()) == 0).float()
    teachers = teachers.nan_to_num(0.0)
    log_q = span_log_probabilities(teachers, samples, count)
    softened = log_q if temperature == 1 else span_log_probabilities(teachers / temperature, samples, count)
    log_p = span_log_probabilities(student / temperature, samples, count)
    distance = temperature**2 * over_rows(softened.exp() * (softened - log_p))
    trust = present
    if teacher_trust == "confidence":
        rows = torch.zeros(count, device=student.device).index_add(0, samples, torch.ones_like(student[:, 0]))
        trust = present * (over_rows(log_q.exp() * log_q) / rows.clamp(min=2).log() + 1).clamp(0, 1)
    # Agreement: whether student and teacher have the same most probable start, and the same most probable end.
    best = is_most(log_p.detach(), samples, count) * is_most(log_q, samples, count)
    return TeacherTerms(present, trust, distance, present * over_rows(best).clamp(max=1))


def is_most(log_p: torch.Tensor, samples: torch.Tensor, count: int) -> torch.Tensor:
    """(..., R, 2): 1 where a row is the most probable one of its sample, else 0."""
    index = samples[:, None].expand(log_p.shape)
    most = torch.full((*log_p.shape[:-2], count, 2), -torch.inf, device=log_p.device)
    most = most.scatter_reduce(-2, index, log_p, "amax")
    return (log_p == most.gather(-2, index)).float()
