"""Whom to believe: the label, and what the model said of a sample before it knew the label by heart.

`method.memory` says how much of the model's agreement with the labels is memory. Here memory is taken out of past
predictions again. What remains is what the model would say of a sample without its label, so by Bayes' rule the two
together say more than either, where a share w of the labels is wrong. What they say teaches in the label's place, as
far as labels are to be doubted. The idea and its formulas are ours; N samples, C classes, T teachers, B samples of a
batch.

    z_k   = 0.7 (q_k - mean over samples) / sd + log p - d_k [class = label]       p: the labels' shares
    t     = softmax(2 mean_k z_k + e [class = label]),  e = log((1 - w) (C - 1) / w)      the honest past and the label
    L     = (1 - s) (the base loss) + s mean_c (-log softmax(student)_c)                          labels, smoothed
    loss  = (1 - g) (the loss with trust by confidence, of L) + g KL(t || student)
    w, g  = by how many of the surest predictions are against labels: see `label_evidence` and `label_doubt`
    s     = by how much surer of itself the model is than it can be right: see `smoothing_after`

d_k lowers the label's logit by one number for all samples, until z_k agrees with the labels as often as the honest
part of agreement says. Targets that follow the model's own past are those of self-adaptive training (Huang et al.,
2020) and of early-learning regularisation (Liu et al., 2020), which know nothing of memory; the error of labels as a
part of the model is that of forward correction (Patrini et al., 2017). Label smoothing is by Szegedy et al. (2016).
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812

from . import dynamics
from .loss import TeacherTerms, divergence

Array = npt.NDArray[Any]

# How far apart the honest past's logits are, in standard deviations: a teacher's own scale says how long the model was
# trained, and grows with what it has by heart. And how much sharper the mean of the teachers is. Others are tried in
# scripts/benchmark_honest.py.
SPREAD, SHARPNESS = 0.7, 2.0
# What the surest predictions say of the labels, from the third epoch on: up to so many against them are found where
# labels are right, from so many on some are wrong. Read off 68 runs of plain fine-tuning; docs/honest.md. After fewer
# optimizer steps than these runs had by then, sure predictions still err where labels are right.
DOUBT_FROM, SINCE_EPOCH, SINCE_STEP = (0.04, 0.08), 2, 90
# How many labels are wrong is counted in so many epochs, from the second on, as in the report: `dynamics.wrong_share`.
COUNTED, COUNTED_FROM = 2, 1
# Less of a class than this, or less of an error, would divide by next to nothing; and so many labels may be wrong.
_LEAST_SHARE, _LEAST_SPREAD = 1e-3, 1e-6
_VALUES_AT_ONCE = 4 << 20


class Witness(NamedTuple):
    """What takes the memory out of an epoch's predictions: z = scale * q + shift, less `lowered` at the label.

    Attributes:
        scale: A number above 0.
        shift: float64 (C,).
        lowered: What the label's z loses; 0 or more.
    """

    scale: float
    shift: Array
    lowered: float


class LabelShares(NamedTuple):
    """Of the training labels.

    Attributes:
        shares: float64 (C,), the share of each class.
        chance: How often a prediction by these shares alone is right: the sum of their squares.
    """

    shares: Array
    chance: float

    @classmethod
    def of(cls, labels: Array, classes: int) -> "LabelShares":
        """Of (N,) integers; those outside of [0, classes) are no labels."""
        known = labels[(labels >= 0) & (labels < classes)]
        shares = np.bincount(known, minlength=classes) / max(len(known), 1)
        return cls(shares, float((shares**2).sum()))


def witness(rows: Array, labels: Array, priors: LabelShares, honest: float) -> Witness | None:
    """Reads an epoch's predictions twice, in chunks; None: it has none.

    Args:
        rows: Logits (N, C) of any floating-point type, NaN where there is none; may be a memory map.
        labels: (N,) integers; those outside of [0, C) are left out.
        priors: Of the labels.
        honest: The honest part of agreement in this epoch, from 0 to 1.
    """
    count, total, squares = 0, torch.zeros(rows.shape[1], dtype=torch.float64), 0.0
    for chunk, _ in _chunks(rows, labels):
        chunk = chunk.double() - chunk.double().mean(dim=1, keepdim=True)
        count, total = count + len(chunk), total + chunk.sum(dim=0)
        squares += float(chunk.square().sum())
    if not count:
        return None
    mean = total / count
    deviation = math.sqrt(max(squares / count - float(mean.square().sum()), 0.0) / len(mean))
    scale = SPREAD / max(deviation, _LEAST_SPREAD)
    shift = torch.from_numpy(np.log(np.maximum(priors.shares, _LEAST_SHARE))) - scale * mean
    # One number for each sample, and nothing else that grows with their number.
    ahead = np.concatenate([_ahead(scale * chunk.double() + shift, given) for chunk, given in _chunks(rows, labels)])
    honest = min(max(honest, priors.chance), 1.0)
    return Witness(scale, shift.numpy(), max(float(np.quantile(ahead, 1 - honest)), 0.0))


def _chunks(rows: Array, labels: Array) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Logits float32 (n, C) and labels int64 (n,) of the samples that have both."""
    at_once = max(_VALUES_AT_ONCE // rows.shape[1], 1)
    for start in range(0, len(rows), at_once):
        # torch, because numpy converts float16 one number at a time.
        chunk = torch.tensor(rows[start : start + at_once]).float()
        given = torch.from_numpy(labels[start : start + at_once].astype(np.int64))
        known = chunk.isfinite().all(dim=1) & (given >= 0) & (given < rows.shape[1])
        yield chunk[known], given[known]


def _ahead(z: torch.Tensor, given: torch.Tensor) -> Array:
    """(n,): by how much the label's number is larger than the largest of the others."""
    own = z.gather(1, given[:, None])[:, 0]
    return (own - z.scatter(1, given[:, None], -torch.inf).amax(dim=1)).numpy()


class Said(NamedTuple):
    """What an epoch's predictions say of themselves, and of the labels; each from 0 to 1.

    Attributes:
        claimed: The mean probability of the predicted class: how often the model claims to be right.
        contradicted: How many of its surest predictions are against their labels; see `dynamics.contradicted`.
    """

    claimed: float
    contradicted: float


def said(rows: Array, labels: Array) -> Said:
    """Reads an epoch's predictions once, in chunks; of none both are 0.

    Args:
        rows: As for `witness`.
        labels: As for `witness`.
    """
    tops, hits = [], []
    for chunk, given in _chunks(rows, labels):
        most = chunk.softmax(dim=1).max(dim=1)
        tops.append(most.values)
        hits.append(most.indices == given)
    if not sum(map(len, tops)):
        return Said(0.0, 0.0)
    top = torch.cat(tops).double().numpy()
    return Said(float(top.mean()), dynamics.contradicted(top, torch.cat(hits).double().numpy()))


def smoothing_after(smoothing: float, claimed: float, honest: float, classes: int) -> float:
    """How far to smooth labels in the next epoch, so that the model's probabilities are no higher than it is right.

    A model that fits labels smoothed by s perfectly gives each of them a probability of 1 - s (1 - 1 / C). So if the
    model claims more than it can do, s grows by the difference, divided by 1 - 1 / C; if it claims less, s shrinks. s
    stops growing where such a perfect fit would claim exactly what the model can do.

    Args:
        smoothing: In this epoch, from 0 to 1.
        claimed: Of this epoch; see `Said`.
        honest: The honest part of agreement in this epoch.
        classes: C.

    Returns:
        From 0 to 1.
    """
    most = 1 - 1 / classes
    honest = min(max(honest, 1 / classes), 1.0)
    return min(max(smoothing + (claimed - honest) / most, 0.0), (1 - honest) / most)


def smoothed(loss: torch.Tensor, student: torch.Tensor, labels: torch.Tensor, smoothing: float) -> torch.Tensor:
    """The base loss of a batch as if its labels were smoothed.

    Args:
        loss: The base loss, a scalar; a mean over samples.
        student: Logits (B, C) with gradient.
        labels: (B,) integers; those outside of [0, C) are no labels, and left out.
        smoothing: From 0, labels as they are, to 1, each class as probable as the others.
    """
    known = (labels >= 0) & (labels < student.shape[-1])
    of_all = -F.log_softmax(student.float(), dim=-1).mean(dim=-1) @ (known / known.sum().clamp(min=1))
    return torch.lerp(loss.float(), of_all, smoothing)


def label_doubt(contradicted: float, samples: int) -> float:
    """How far labels are to be doubted, from 0 to 1, by how many of the surest predictions are against them.

    Memory alone does not say that labels are wrong: on a hard task a model learns right labels by heart too, and
    gains by it. But by the third epoch few of its surest predictions there are against a label. Where labels are
    wrong, more of them still are. Of few samples a share is partly chance, so its standard error is taken off first.

    Args:
        contradicted: The share that is against labels.
        samples: N, of which a fifth are the surest.
    """
    low, high = DOUBT_FROM
    surely = contradicted - math.sqrt(contradicted * (1 - contradicted) / dynamics.surest_count(samples))
    return min(max((surely - low) / (high - low), 0.0), 1.0)


def label_evidence(wrong: float, classes: int) -> float:
    """How much more a label says for its class than for another one, in nats; 0 or more.

    Args:
        wrong: The share of labels that are wrong, each other class as often; see `dynamics.wrong_share`.
        classes: C.
    """
    wrong = min(max(wrong, _LEAST_SHARE), 1 - 1 / classes)
    return math.log((1 - wrong) * (classes - 1) / wrong)


class Honest(NamedTuple):
    """What T teachers' predictions are corrected by, on the device: `Witness` as tensors.

    Attributes:
        scale: float32 (T, 1, 1).
        shift: float32 (T, 1, C).
        lowered: float32 (T, 1, 1).
        evidence: What the label says for its class; see `label_evidence`.
    """

    scale: torch.Tensor
    shift: torch.Tensor
    lowered: torch.Tensor
    evidence: float

    @classmethod
    def of(cls, witnesses: list[Witness], evidence: float, device: torch.device) -> "Honest":
        scale = torch.tensor([[[w.scale]] for w in witnesses], device=device)
        shift = torch.tensor(np.array([[w.shift] for w in witnesses]), dtype=torch.float32, device=device)
        lowered = torch.tensor([[[w.lowered]] for w in witnesses], device=device)
        return cls(scale, shift, lowered, evidence)

    def log_target(self, past: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What the honest past of a batch says, together with the labels.

        Args:
            past: Recorded logits, (T, B, C), of any floating-point type; a row with a NaN: no prediction.
            labels: (B,) integers; those outside of [0, C) are no labels.

        Returns:
            Log probabilities, float32 (B, C), and whether a teacher has a prediction, float32 (B,).
        """
        past = past.float()
        total = past.sum(dim=-1, keepdim=True)
        there = (total == total).float()
        given = labels[:, None] == torch.arange(past.shape[-1], device=labels.device)
        z = self.scale * past.nan_to_num(0.0) + self.shift - self.lowered * given
        z = (there * z).sum(dim=0) / there.sum(dim=0).clamp(min=1)
        return F.log_softmax(SHARPNESS * z + self.evidence * given, dim=-1), there[..., 0].amax(dim=0)

    def terms(self, student: torch.Tensor, past: torch.Tensor, labels: torch.Tensor) -> TeacherTerms:
        """The honest past as one more teacher, which is trusted in full, of logits (B, C) with gradient."""
        log_target, there = self.log_target(past, labels)
        log_p = F.log_softmax(student.float(), dim=-1)
        same = there * (student.argmax(dim=-1) == log_target.argmax(dim=-1))
        return TeacherTerms(there[None], there[None], divergence(log_p, log_target, 1.0)[None], same[None])


def with_gate(weights: torch.Tensor, gate: float) -> torch.Tensor:
    """Weights of the T teachers and, as the last of T + 1, of the honest past: (T,) -> (T + 1,)."""
    return torch.cat((weights * (1 - gate), weights.new_full((1,), gate)))
