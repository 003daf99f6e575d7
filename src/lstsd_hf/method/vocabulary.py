"""Distillation over a vocabulary: the teacher's `k` most probable classes, and the rest of its mass as one event.

A row of a teacher is k log probabilities under its whole vocabulary, the classes that they are of, and the logarithm
of the mass that remains. The divergence is over these k + 1 events, so it is never negative, and 0 where student and
teacher agree on them. Both tails are sums over the classes that are not among the k, not 1 less a sum, which is noise
where it is small.

The logits of a language model are the largest tensor of a step. All that is computed of them here goes through them a
few rows at a time; only the gradient has their size.
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


def fewer_classes(teacher: Mapping[str, torch.Tensor], k: int) -> dict[str, torch.Tensor]:
    """A teacher's rows with the first k of its classes, by part; what the others had is in the rest.

    Args:
        teacher: "values" (R, K) log probabilities, the largest first; "classes" (R, K); "rest" (R,).
        k: At most K.
    """
    values = teacher["values"].float()
    rest = torch.cat([values[:, k:], teacher["rest"].float()[:, None]], dim=1).logsumexp(dim=1)
    return {"values": values[:, :k], "classes": teacher["classes"][:, :k], "rest": rest}


def _chunks(positions: torch.Tensor, vocabulary: int) -> Iterator[slice]:
    rows = max(1, _VALUES_AT_ONCE // vocabulary)
    return (slice(start, start + rows) for start in range(0, len(positions), rows))


def largest_of(rows: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest of each of (r, V) rows and their classes, as `rows.topk(k)`, in little more than one pass.

    They lie in the k blocks that have the largest maxima, or behind the last whole block.
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
    """(r, 1): the mass of all classes but the named ones, from that of all but the top ones.

    Of as many classes as are named, or more, the top ones have the largest mass. So what a teacher names of the rest
    is at most what it leaves out of the top, and the difference is right to a few roundings of the result.

    Args:
        named, of_named: (r, n) classes, none twice in a row, and their masses.
        top, of_top: (r, k) the same of the largest.
        rest: (r, 1), the mass of all but the top ones.
        rows: (r, V), all masses, 0 at the top ones; the same again afterwards.
    """
    same = named[:, :, None] == top[:, None, :]
    left_out = (of_top * ~same.any(dim=1)).sum(dim=1, keepdim=True)
    if named.shape[1] <= top.shape[1]:
        return (rest - (of_named * ~same.any(dim=2)).sum(dim=1, keepdim=True)).clamp(min=0) + left_out
    held = rows.gather(1, named)
    others = rows.scatter_(1, named, 0.0).sum(dim=1, keepdim=True)
    rows.scatter_(1, named, held)
    return others + left_out


class _Events(torch.autograd.Function):
    """Two things at once, because each pass over the logits costs: the k largest classes, and the teachers' events."""

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
            rows = rows.softmax(dim=1)  # one pass, where an exponential and a sum are several
            shares = rows.gather(1, top)
            rest = rows.scatter_(1, top, 0.0).sum(dim=1, keepdim=True)
            total = most[:, :1] - shares[:, :1].log()  # of exp(z), as a logarithm
            largest[chunk] = top
            # Not through the exponential, which underflows for the least probable of the k.
            own[chunk, :-1], own[chunk, -1:] = most - total, rest.log()
            for teacher, named in enumerate(classes[:, chunk]):
                known = logits[positions[chunk, None], named].float() - total
                others = _rest_of(named, known.exp(), top, shares, rest, rows)
                of_teachers[teacher, chunk, :-1] = known
                of_teachers[teacher, chunk, -1:] = others.log()
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
        for chunk in _chunks(positions, logits.shape[1]):
            p = logits.index_select(0, positions[chunk]).softmax(dim=1, dtype=torch.float32)
            at = [
                grad[t, chunk, :-1] - p.gather(1, named[chunk]) * of_rest[t, chunk] for t, named in enumerate(classes)
            ]
            p.mul_(factor[chunk])
            for named, values in zip(classes, at, strict=True):
                p.scatter_add_(1, named[chunk], values)
            result.index_copy_(0, positions[chunk], p.to(result.dtype))
        return result, None, None, None


def student_events(
    logits: torch.Tensor, positions: torch.Tensor, classes: torch.Tensor, k: int
) -> tuple[torch.Tensor, TopK]:
    """The student's log probabilities of the teachers' events, with gradient, and its own k most probable classes.

    Args:
        logits: (M, V), floating-point.
        positions: int64 (R,), rows of the logits, each once.
        classes: int64 (T, R, k), no class twice in a row; T may be 0.
        k: From 1 to V - 1.

    Returns:
        float32 (T, R, k + 1), the rest last; and what is to be recorded, without gradient.
    """
    events, own, largest = _Events.apply(logits, positions, classes, k)
    return events, TopK(own[:, :-1], largest, own[:, -1])


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
    teachers: TopK,
    temperature: float,
    teacher_trust: TeacherTrust,
    k: int,
) -> tuple[TeacherTerms, TopK]:
    """The teachers' terms for R rows, each (T, R), and the student's own classes, which are to be recorded.

    Args:
        logits: (M, V), with gradient.
        positions: int64 (R,), rows of the logits, each once.
        teachers: Of T teachers, each field with an axis T in front; NaN log probabilities: that teacher is absent.
        temperature: tau; above 1 the k + 1 events are softened, each as if it were one class.
        teacher_trust: See `heads.Head.terms`.
        k: How many classes to record.
    """
    log_q = torch.cat([teachers.log_probabilities, teachers.log_rest[..., None]], dim=-1).float()
    total = log_q.sum(dim=-1)
    present = (total == total).float()  # NaN differs from itself
    # An absent teacher's classes are any k that differ.
    absent = present[..., None] == 0
    order = torch.arange(teachers.classes.shape[-1], device=logits.device)
    classes = torch.where(absent, order, teachers.classes.long())
    log_q = F.log_softmax(torch.where(absent, 0.0, log_q), dim=-1)  # float16 rounds: the events sum to 1 again
    log_p, student = student_events(logits, positions, classes, k)
    trust = present * confidence(log_q, logits.shape[-1]) if teacher_trust == "confidence" else present
    same = (student.classes[:, 0] == classes[..., 0]).float()
    return TeacherTerms(present, trust, divergence(log_p, log_q, temperature), present * same), student
