"""Distillation over a vocabulary: the teacher's `k` most probable classes, and the rest of its mass as one event.

A row of a teacher is k log probabilities under its whole vocabulary, the classes that they are of, and the logarithm
of the mass that remains. The divergence is over these k + 1 events, so it is never negative, and 0 where student and
teacher agree on them. Both tails are sums over the classes that are not among the k, not 1 less a sum, which is noise
where it is small.

The logits of a language model are the largest tensor of a step. All that is computed of them here goes through them a
few rows at a time; only the gradient has their size.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812

from .loss import TeacherTerms, divergence
from .teachers import TeacherTrust

_VALUES_AT_ONCE = 4 << 20


class TopK(NamedTuple):
    """The k most probable classes of R rows, the most probable first.

    Attributes:
        log_probabilities: float32 (R, k), under the whole vocabulary.
        classes: int64 (R, k).
        log_rest: float32 (R,): the logarithm of the mass of all other classes.
    """

    log_probabilities: torch.Tensor
    classes: torch.Tensor
    log_rest: torch.Tensor


def _chunks(positions: torch.Tensor, vocabulary: int) -> Iterator[slice]:
    rows = max(1, _VALUES_AT_ONCE // vocabulary)
    return (slice(start, start + rows) for start in range(0, len(positions), rows))


def top_k(logits: torch.Tensor, positions: torch.Tensor, k: int) -> TopK:
    """The k most probable classes at R positions.

    Args:
        logits: (M, V), floating-point; no gradient is kept.
        positions: int64 (R,), rows of the logits.
        k: From 1 to V - 1.
    """
    flat = logits.detach()
    parts = []
    for chunk in _chunks(positions, flat.shape[1]):
        rows = flat.index_select(0, positions[chunk]).float()
        total = rows.logsumexp(dim=1)
        values, classes = rows.topk(k, dim=1)
        rest = rows.scatter_(1, classes, -math.inf).logsumexp(dim=1)
        parts.append((values - total[:, None], classes, rest - total))
    if not parts:
        return TopK(flat.new_empty(0, k).float(), positions.new_empty(0, k), flat.new_empty(0).float())
    return TopK(*(torch.cat(column) for column in zip(*parts, strict=True)))


class _EventLogProbabilities(torch.autograd.Function):
    """(M, V) logits, (R,) positions, (T, R, k) classes -> (T, R, k + 1): the k classes, then the rest."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, positions: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        events = torch.empty(*classes.shape[:2], classes.shape[2] + 1, dtype=torch.float32, device=logits.device)
        totals = torch.empty(len(positions), dtype=torch.float32, device=logits.device)
        for chunk in _chunks(positions, logits.shape[1]):
            rows = logits.index_select(0, positions[chunk]).float()
            totals[chunk] = total = rows.logsumexp(dim=1)
            for teacher, named in enumerate(classes):
                known = rows.gather(1, named[chunk])
                rest = rows.scatter(1, named[chunk], -math.inf).logsumexp(dim=1, keepdim=True)
                events[teacher, chunk] = torch.cat([known, rest], dim=1) - total[:, None]
        ctx.save_for_backward(logits, positions, classes, events, totals)
        return events

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        logits, positions, classes, events, totals = ctx.saved_tensors
        (grad,) = grads
        result = torch.zeros_like(logits)
        for chunk in _chunks(positions, logits.shape[1]):
            rows = logits.index_select(0, positions[chunk]).float()
            p = (rows - totals[chunk, None]).exp_()
            # d log p_c / dz = [c] - p;  d log rest / dz = p [not among the k] / rest - p
            out = p * -grad[:, chunk].sum(dim=(0, 2))[:, None]
            for teacher, named in enumerate(classes):
                of_rest = grad[teacher, chunk, -1] * (-events[teacher, chunk, -1]).exp()
                outside = (p * of_rest[:, None]).scatter_(1, named[chunk], 0.0)
                out += outside.scatter_add_(1, named[chunk], grad[teacher, chunk, :-1])
            result.index_copy_(0, positions[chunk], out.to(result.dtype))
        return result, None, None


def event_log_probabilities(logits: torch.Tensor, positions: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """The student's log probabilities of the teachers' events, float32 (T, R, k + 1), the rest last; with gradient.

    Args:
        logits: (M, V), floating-point, with gradient.
        positions: int64 (R,), rows of the logits, each once.
        classes: int64 (T, R, k), no class twice in a row.
    """
    return _EventLogProbabilities.apply(logits, positions, classes)


def confidence(log_q: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """How sure a teacher is, (...): `1 - H / log V`, where the rest counts as spread evenly over its classes.

    The true entropy is at most this one, so the confidence is at least what is returned, and a teacher that has learnt
    nothing has none, however small k is.

    Args:
        log_q: (..., k + 1), finite.
        vocabulary: V.
    """
    spread = math.log(max(vocabulary - (log_q.shape[-1] - 1), 1))
    share = torch.linalg.vecdot(log_q.exp(), log_q) - log_q[..., -1].exp() * spread
    return (share / math.log(vocabulary) + 1).clamp(0, 1)


def vocabulary_terms(
    logits: torch.Tensor,
    positions: torch.Tensor,
    student: TopK,
    teachers: TopK,
    temperature: float,
    teacher_trust: TeacherTrust,
) -> TeacherTerms:
    """The teachers' terms for R rows, each (T, R).

    Args:
        logits: (M, V), with gradient.
        positions: int64 (R,).
        student: The student's own k most probable classes, as recorded.
        teachers: Of T teachers, each field with an axis T in front; NaN log probabilities: that teacher is absent.
        temperature: tau; above 1 the k + 1 events are softened, each as if it were one class.
        teacher_trust: See `heads.Head.terms`.
    """
    log_q = torch.cat([teachers.log_probabilities, teachers.log_rest[..., None]], dim=-1).float()
    total = log_q.sum(dim=-1)
    present = (total == total).float()  # NaN differs from itself
    # An absent teacher's classes are any k that differ.
    absent = present[..., None] == 0
    order = torch.arange(teachers.classes.shape[-1], device=logits.device)
    classes = torch.where(absent, order, teachers.classes.long())
    log_q = F.log_softmax(torch.where(absent, 0.0, log_q), dim=-1)  # float16 rounds: the events sum to 1 again
    log_p = event_log_probabilities(logits, positions, classes)
    trust = present * confidence(log_q, logits.shape[-1]) if teacher_trust == "confidence" else present
    same = (student.classes[:, 0] == classes[..., 0]).float()
    return TeacherTerms(present, trust, divergence(log_p, log_q, temperature), present * same)
