"""Distillation over a vocabulary: the teacher's `k` most probable classes, and the rest of its mass as one event.

A teacher's row has k log probabilities under its whole vocabulary, their classes, and the logarithm of the remaining
mass. The divergence is over these k + 1 events, so it is never negative, and 0 where student and teacher agree on all
of them. The remaining mass of either is a sum over its classes, not 1 less the mass of the k: when small, that
difference is mostly rounding noise.

The logits of a language model are the largest tensor of a step. This module works through them a few rows at a time,
so only the gradient is as large.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812

from .loss import TeacherTerms, divergence
from .teachers import TeacherTrust

_VALUES_AT_ONCE = 1 << 20
_BLOCK = 128
# The least mass of the rest: its logarithm stays finite, and so does a gradient divided by it.
_LEAST_REST = 1e-35


class TopK(NamedTuple):
    """The k most probable classes of R rows, the most probable first.

    Attributes:
        log_probabilities: float32 (R, k), under the whole vocabulary, the largest first.
        classes: int64 (R, k).
        log_rest: float32 (R,): the logarithm of the mass of all other classes.
    """

    log_probabilities: torch.Tensor
    classes: torch.Tensor
    log_rest: torch.Tensor


def fewer_classes(teacher: Mapping[str, torch.Tensor], k: int) -> dict[str, torch.Tensor]:
    """A teacher's rows with only the first k of its classes, by part; the mass of the others is added to the rest.

    Args:
        teacher: "values" (R, K), log probabilities, the largest first; "classes" (R, K); "rest" (R,).
        k: At most K.
    """
    values = teacher["values"].float()
    rest = torch.cat([values[:, k:], teacher["rest"].float()[:, None]], dim=1).logsumexp(dim=1)
    return {"values": values[:, :k], "classes": teacher["classes"][:, :k], "rest": rest}


def _chunks(positions: torch.Tensor, vocabulary: int) -> Iterator[slice]:
    rows = max(1, _VALUES_AT_ONCE // vocabulary)
    return (slice(start, start + rows) for start in range(0, len(positions), rows))


def largest_of(rows: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest values of each of (r, V) rows and their classes, as `rows.topk(k)`, in little more than one pass.

    They are in the k blocks with the largest maxima, or after the last whole block.
    """
    blocks = rows.shape[1] // _BLOCK
    if blocks < 4 * k:
        return rows.topk(k, dim=1)
    behind = blocks * _BLOCK
    whole = rows[:, :behind].unflatten(1, (blocks, _BLOCK))
    best = whole.amax(dim=2).topk(k, dim=1).indices
    classes = (best[:, :, None] * _BLOCK + torch.arange(_BLOCK, device=rows.device)).flatten(1)
    left = torch.arange(behind, rows.shape[1], device=rows.device).expand(len(rows), -1)
    classes = torch.cat([classes, left], dim=1)
    values, places = rows.gather(1, classes).topk(k, dim=1)
    return values, classes.gather(1, places)


def _rest_of(
    named: torch.Tensor,
    of_named: torch.Tensor,
    top: torch.Tensor,
    of_top: torch.Tensor,
    rest: torch.Tensor,
    rows: torch.Tensor,
) -> torch.Tensor:
    """(r, 1): the mass of all classes but the named ones, computed from the mass of all but the top ones.

    If n <= k, the named classes outside the top have at most the mass of the top classes that are not named. So the
    result is at least `rest`, and the subtraction costs only a few roundings of the result.

    Args:
        named, of_named: (r, n) classes, none twice in a row, and their masses.
        top, of_top: (r, k) the same for the classes with the largest masses.
        rest: (r, 1), the mass of all classes but the top ones.
        rows: (r, V), all masses, but 0 at the top ones. Changed and restored.
    """
    same = named[:, :, None] == top[:, None, :]
    left_out = (of_top * ~same.any(dim=1)).sum(dim=1, keepdim=True)
    if named.shape[1] <= top.shape[1]:
        return (rest - (of_named * ~same.any(dim=2)).sum(dim=1, keepdim=True)).clamp(min=0) + left_out
    held = rows.gather(1, named)
    others = rows.scatter_(1, named, 0.0).sum(dim=1, keepdim=True)
    rows.scatter_(1, named, held)
    return others + left_out


def _at_named(
    named: torch.Tensor, classes: torch.Tensor, grad: torch.Tensor, of_rest: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradient at the classes that one teacher names, from all T teachers: a + p b, each (R, n).

    b has 1 / rest of those teachers alone that do not name the class: p / rest is at most 1 for a class in the rest.
    For another class it is huge where the rest is small, and a difference of two such numbers is rounding noise.

    Args:
        named: (R, n).
        classes: (T, R, n), those of each teacher.
        grad: (T, R, n + 1), with respect to the log probabilities of the events.
        of_rest: (T, R, 1), the same of the rest, divided by its mass.
    """
    a = torch.zeros_like(grad[0, :, :-1])
    b = a - grad.sum(dim=(0, 2))[:, None]
    for theirs, of_theirs, rest in zip(classes, grad[..., :-1], of_rest, strict=True):
        same = named[:, :, None] == theirs[:, None, :]
        a = a + (same * of_theirs[:, None, :]).sum(dim=2)
        b = b + rest * ~same.any(dim=2)
    return a, b


class _Events(torch.autograd.Function):
    """Finds the k largest classes and the teachers' events together, because each pass over the logits is costly."""

    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, positions: torch.Tensor, classes: torch.Tensor, k: int
    ) -> tuple[torch.Tensor, ...]:
        count, device = len(positions), logits.device
        own = torch.empty(count, k + 1, device=device)
        largest = torch.empty(count, k, dtype=torch.int64, device=device)
        of_teachers = torch.empty(*classes.shape[:2], classes.shape[2] + 1, device=device)
        for chunk in _chunks(positions, logits.shape[1]):
            rows = logits.index_select(0, positions[chunk]).float()
            most, top = largest_of(rows, k)
            rows = rows.softmax(dim=1)  # one pass; an exponential and a sum would be several
            shares = rows.gather(1, top)
            rest = rows.scatter_(1, top, 0.0).sum(dim=1, keepdim=True)
            total = most[:, :1] - shares[:, :1].log()  # the logarithm of the sum of exp(z)
            largest[chunk] = top
            # Not from the probabilities, which underflow for the least probable of the k.
            own[chunk, :-1], own[chunk, -1:] = most - total, rest.clamp(min=_LEAST_REST).log()
            for teacher, named in enumerate(classes[:, chunk]):
                known = logits[positions[chunk, None], named].float() - total
                others = _rest_of(named, known.exp(), top, shares, rest, rows)
                of_teachers[teacher, chunk, :-1] = known
                of_teachers[teacher, chunk, -1:] = others.clamp(min=_LEAST_REST).log()
        ctx.save_for_backward(logits, positions, classes, of_teachers)
        ctx.mark_non_differentiable(own, largest)
        return of_teachers, own, largest

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        logits, positions, classes, events = ctx.saved_tensors
        grad = grads[0]
        result = torch.zeros_like(logits)
        # d log p_c / dz = [c] - p;  d log rest / dz = p [not among the k] / rest - p
        of_rest = grad[..., -1:] * (-events[..., -1:]).exp()
        factor = of_rest.sum(dim=0) - grad.sum(dim=(0, 2))[:, None]
        parts = [_at_named(named, classes, grad, of_rest) for named in classes]
        for chunk in _chunks(positions, logits.shape[1]):
            p = logits.index_select(0, positions[chunk]).softmax(dim=1, dtype=torch.float32)
            at = [
                a[chunk] + p.gather(1, named[chunk]) * b[chunk] for named, (a, b) in zip(classes, parts, strict=True)
            ]
            p.mul_(factor[chunk])
            for named, values in zip(classes, at, strict=True):
                p.scatter_(1, named[chunk], values)
            result.index_copy_(0, positions[chunk], p.to(result.dtype))
        return result, None, None, None


def student_events(
    logits: torch.Tensor, positions: torch.Tensor, classes: torch.Tensor, k: int
) -> tuple[torch.Tensor, TopK]:
    """The student's log probabilities of the teachers' events, with gradient, and its own k most probable classes.

    Args:
        logits: (M, V), floating-point.
        positions: int64 (R,), rows of the logits, each at most once.
        classes: int64 (T, R, n), the teachers' classes, none twice in a row; T may be 0.
        k: How many of the student's own classes to return, from 1 to V - 1.

    Returns:
        float32 (T, R, n + 1), the rest last; and the student's own classes, to be recorded, without gradient.
    """
    events, own, largest = _Events.apply(logits, positions, classes, k)
    return events, TopK(own[:, :-1], largest, own[:, -1])


def confidence(log_q: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """How sure a teacher is, (...): `1 - H / log V`, with the rest counted as spread evenly over its classes.

    The true entropy is at most this one, so the true confidence is at least the value returned. A teacher that has
    learnt nothing gets 0, however small k is.

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
    teachers: TopK,
    temperature: float,
    teacher_trust: TeacherTrust,
    k: int,
) -> tuple[TeacherTerms, TopK]:
    """The teachers' terms for R rows, each (T, R), and the student's own classes, to be recorded.

    Args:
        logits: (M, V), with gradient.
        positions: int64 (R,), rows of the logits, each at most once.
        teachers: The rows of T teachers, each field with an axis T in front. A row with a NaN log probability: that
            teacher is absent.
        temperature: tau. If it is not 1, the events of both sides are softened, the rest as if it were one class.
        teacher_trust: See `heads.OneRow.terms`.
        k: How many of the student's classes to record.
    """
    log_q = torch.cat([teachers.log_probabilities, teachers.log_rest[..., None]], dim=-1).float()
    total = log_q.sum(dim=-1)
    present = (total == total).float()  # NaN differs from itself
    # An absent teacher gets arbitrary classes that differ.
    absent = present[..., None] == 0
    order = torch.arange(teachers.classes.shape[-1], device=logits.device)
    classes = torch.where(absent, order, teachers.classes.long())
    log_q = F.log_softmax(torch.where(absent, 0.0, log_q), dim=-1)  # makes float16 events sum to 1 again
    log_p, student = student_events(logits, positions, classes, k)
    trust = present * confidence(log_q, logits.shape[-1]) if teacher_trust == "confidence" else present
    same = (student.classes[:, 0] == classes[..., 0]).float()
    return TeacherTerms(present, trust, divergence(log_p, log_q, temperature), present * same), student
