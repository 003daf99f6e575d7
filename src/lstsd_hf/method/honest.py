"""Trust by honesty: how far to believe a label, and how far the model's own past with its memory taken out.

`method.memory` estimates how much of the model's agreement with the labels is memory. This module takes that memory
out of past predictions. The rest, the honest past, is what the model would predict for a sample without having seen
its label. If a share w of the labels is wrong, Bayes' rule combines the honest past and the label, and the result is
more reliable than either. This target replaces the label as far as the labels are in doubt. The idea and its formulas
are ours. N is the number of samples, C of classes, T of teachers, B of samples in a batch.

    z_k   = 0.7 (q_k - mean over samples) / sd + log p - d_k [class = label]       p: share of each class in the labels
    t     = softmax(2 mean_k z_k + e [class = label]),  e = log((1 - w) (C - 1) / w)      the honest past and the label
    L     = (1 - s) (the base loss) + s mean_c (-log softmax(student)_c)                  the loss of smoothed labels
    loss  = (1 - g) (the loss with trust by confidence, of L) + g KL(t || student)
    w, g    come from the share of the surest predictions that contradict their labels: `label_evidence`, `label_doubt`
    s       comes from how far the model's confidence exceeds what it can do: `smoothing_after`

q_k are the recorded logits of teacher k. d_k lowers the label's logit by one number for all samples, until z_k agrees
with the labels only as often as the honest part of agreement says. Self-adaptive training (Huang et al., 2020) and
early-learning regularisation (Liu et al., 2020) also build targets from the model's own past, but do not separate out
memory. Modelling the error of labels comes from forward correction (Patrini et al., 2017), label smoothing from
Szegedy et al. (2016).
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

# SPREAD is the standard deviation to which a teacher's logits are scaled: their own scale depends on how long the
# model was trained, and grows with what it has memorised. SHARPNESS multiplies the mean of the teachers. Other values
# are tried in scripts/benchmark_honest.py.
SPREAD, SHARPNESS = 0.7, 2.0
# The limits of `label_doubt`, which counts from the third epoch on: up to the first limit, a share of the surest
# predictions that contradict their labels is no reason for doubt; from the second limit on, doubt is full. Chosen on
# 68 runs of plain fine-tuning, see docs/honest.md. After fewer optimizer steps than those runs had by then, even sure
# predictions contradict right labels.
DOUBT_FROM, SINCE_EPOCH, SINCE_STEP = (0.04, 0.08), 2, 90
# The share of wrong labels is estimated from this many epochs, from the second on: `dynamics.wrong_share`.
COUNTED, COUNTED_FROM = 2, 1
# Lower bounds of a class's share and of the share of wrong labels, and of the logits' standard deviation: they keep
# logarithms and quotients finite.
_LEAST_SHARE, _LEAST_SPREAD = 1e-3, 1e-6
_VALUES_AT_ONCE = 4 << 20
# A class whose logit is this far below the row's largest has a probability of 0 in float32: it is ruled out.
_RULED_OUT = 104.0


class Witness(NamedTuple):
    """Takes the memory out of an epoch's logits q: z = scale * q + shift, less `lowered` at the label.

    Attributes:
        scale: A number above 0.
        shift: float64 (C,).
        lowered: d_k, by which the label's z is lowered; 0 or more.
    """

    scale: float
    shift: Array
    lowered: float


class LabelShares(NamedTuple):
    """The class frequencies of the training labels.

    Attributes:
        shares: float64 (C,), the share of each class.
        chance: The accuracy of guesses drawn with these shares: the sum of their squares.
        samples: How many labels were counted.
    """

    shares: Array
    chance: float
    samples: int

    @classmethod
    def of(cls, labels: Array, classes: int) -> "LabelShares":
        """Counts (N,) integer labels; those outside of [0, classes) are left out."""
        known = labels[(labels >= 0) & (labels < classes)]
        shares = np.bincount(known, minlength=classes) / max(len(known), 1)
        return cls(shares, float((shares**2).sum()), len(known))


def witness(rows: Array, labels: Array, priors: LabelShares, honest: float) -> Witness | None:
    """The correction of an epoch's predictions, which are read twice, in chunks.

    Args:
        rows: Logits (N, C) of any floating-point type, NaN where there is no prediction; may be a memory map.
        labels: (N,) integers; those outside of [0, C) are left out.
        priors: The class frequencies of the labels.
        honest: The honest part of agreement in this epoch, from 0 to 1.

    Returns:
        None if no sample has both a prediction and a label.
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
    # Apart from the arguments, this is all that grows with N: one number for each sample.
    ahead = np.concatenate([_ahead(scale * chunk.double() + shift, given) for chunk, given in _chunks(rows, labels)])
    honest = min(max(honest, priors.chance), 1.0)
    return Witness(scale, shift.numpy(), max(float(np.quantile(ahead, 1 - honest)), 0.0))


def _chunks(rows: Array, labels: Array) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Logits float32 (n, C) and labels int64 (n,) of the samples that have both."""
    at_once = max(_VALUES_AT_ONCE // rows.shape[1], 1)
    for start in range(0, len(rows), at_once):
        # In torch, because numpy converts float16 one number at a time.
        chunk = torch.tensor(rows[start : start + at_once]).float()
        given = torch.from_numpy(labels[start : start + at_once].astype(np.int64))
        known = chunk.isfinite().all(dim=1) & (given >= 0) & (given < rows.shape[1])
        yield chunk[known], given[known]


def _ahead(z: torch.Tensor, given: torch.Tensor) -> Array:
    """(n,): the label's z less the largest z of any other class."""
    own = z.gather(1, given[:, None])[:, 0]
    return (own - z.scatter(1, given[:, None], -torch.inf).amax(dim=1)).numpy()


class Said(NamedTuple):
    """What an epoch's predictions say of themselves and of the labels.

    Attributes:
        claimed: The mean probability of the predicted class, from 0 to 1: how often the model claims to be right.
        contradicted: The share of its surest predictions that contradict their labels; NaN if the model knows too
            little to doubt a label. See `dynamics.Verdict`.
        wrong: The share of labels that this says are wrong, or NaN; see `dynamics.Verdict`.
        rules_out: Whether a prediction rules a class out, as a mask of -1e4 does. Then the spread of the logits is
            that of the mask, and the loss of smoothed labels has no bound, so the formulas here do not hold.
    """

    claimed: float
    contradicted: float
    wrong: float
    rules_out: bool = False


def said(rows: Array, labels: Array) -> Said:
    """The measures of an epoch's predictions, which are read once, in chunks. Without predictions they are 0.

    Args:
        rows: As for `witness`.
        labels: As for `witness`.
    """
    tops, predicted, labelled, rules_out = [], [], [], False
    for chunk, given in _chunks(rows, labels):
        rules_out = rules_out or bool((chunk.amax(dim=1) - chunk.amin(dim=1) > _RULED_OUT).any())
        most = chunk.softmax(dim=1).max(dim=1)
        tops.append(most.values)
        predicted.append(most.indices)
        labelled.append(given)
    if not sum(map(len, tops)):
        return Said(0.0, 0.0, 0.0)
    top = torch.cat(tops).double().numpy()
    found = dynamics.verdict(top, torch.cat(predicted).numpy(), torch.cat(labelled).numpy())
    return Said(float(top.mean()), found.contradicted, found.wrong, rules_out)


def smoothing_after(smoothing: float, claimed: float, honest: float, classes: int) -> float:
    """How far to smooth labels in the next epoch, so that the model is no more confident than it is accurate.

    A model that fits labels smoothed by s perfectly gives each of them a probability of 1 - s (1 - 1 / C). So if the
    model claims more than it can do, s grows by the difference, divided by 1 - 1 / C; if it claims less, s shrinks. s
    stops growing where such a perfect fit would claim exactly what the model can do.

    Args:
        smoothing: s in this epoch, from 0 to 1.
        claimed: How often the model claims to be right in this epoch; see `Said`.
        honest: The honest part of agreement in this epoch.
        classes: C.

    Returns:
        s for the next epoch, from 0 to 1.
    """
    most = 1 - 1 / classes
    honest = min(max(honest, 1 / classes), 1.0)
    return min(max(smoothing + (claimed - honest) / most, 0.0), (1 - honest) / most)


def smoothed(loss: torch.Tensor, student: torch.Tensor, labels: torch.Tensor, smoothing: float) -> torch.Tensor:
    """The base loss of a batch as if its labels were smoothed.

    Args:
        loss: The base loss, a scalar; a mean over samples.
        student: Logits (B, C) with gradient.
        labels: (B,) integers; those outside of [0, C) are left out.
        smoothing: From 0 (labels as they are) to 1 (all classes equally probable).
    """
    known = (labels >= 0) & (labels < student.shape[-1])
    of_all = -F.log_softmax(student.float(), dim=-1).mean(dim=-1) @ (known / known.sum().clamp(min=1))
    return torch.lerp(loss.float(), of_all, smoothing)


def label_doubt(contradicted: float, samples: int) -> float:
    """How far to doubt the labels, from 0 to 1, given the share of the surest predictions that contradict them.

    Memory alone does not show that labels are wrong: on a hard task a model also memorises right labels, and gains by
    it. But on such a task few of its surest predictions still contradict a label in the third epoch. If labels are
    wrong, more of them do. With few samples the share is partly chance, so its standard error is subtracted first.

    Args:
        contradicted: The share; see `Said`. If it is NaN, the doubt is 0.
        samples: The number of samples with a label, of which a fifth are the surest.
    """
    if math.isnan(contradicted):
        return 0.0
    low, high = DOUBT_FROM
    surely = contradicted - math.sqrt(contradicted * (1 - contradicted) / dynamics.surest_count(samples))
    return min(max((surely - low) / (high - low), 0.0), 1.0)


def label_evidence(wrong: float, classes: int) -> float:
    """The evidence of a label for its class against any other class: a log likelihood ratio, in nats; 0 or more.

    Args:
        wrong: The share of labels that are wrong, assumed to be spread evenly over the other classes; see
            `dynamics.wrong_share`.
        classes: C.
    """
    wrong = min(max(wrong, _LEAST_SHARE), 1 - 1 / classes)
    return math.log((1 - wrong) * (classes - 1) / wrong)


class Honest(NamedTuple):
    """The corrections of T teachers, each a `Witness`, as tensors on the device.

    Attributes:
        scale: float32 (T, 1, 1).
        shift: float32 (T, 1, C).
        lowered: float32 (T, 1, 1).
        evidence: e, see `label_evidence`.
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
        """The target t of a batch: its honest past combined with its labels.

        Args:
            past: Recorded logits, (T, B, C), of any floating-point type. A row with a NaN has no prediction.
            labels: (B,) integers; those outside of [0, C) are left out.

        Returns:
            Log probabilities, float32 (B, C); and float32 (B,), 1 where any teacher has a prediction, else 0.
        """
        past = past.float()
        total = past.sum(dim=-1, keepdim=True)
        there = (total == total).float()
        given = labels[:, None] == torch.arange(past.shape[-1], device=labels.device)
        z = self.scale * past.nan_to_num(0.0) + self.shift - self.lowered * given
        z = (there * z).sum(dim=0) / there.sum(dim=0).clamp(min=1)
        return F.log_softmax(SHARPNESS * z + self.evidence * given, dim=-1), there[..., 0].amax(dim=0)

    def terms(self, student: torch.Tensor, past: torch.Tensor, labels: torch.Tensor) -> TeacherTerms:
        """The target as one more teacher, fully trusted where there is a past, for logits (B, C) with gradient."""
        log_target, there = self.log_target(past, labels)
        log_p = F.log_softmax(student.float(), dim=-1)
        same = there * (student.argmax(dim=-1) == log_target.argmax(dim=-1))
        return TeacherTerms(there[None], there[None], divergence(log_p, log_target, 1.0)[None], same[None])


def with_gate(weights: torch.Tensor, gate: float) -> torch.Tensor:
    """Scales the weights (T,) of the teachers by 1 - gate and appends that of the honest past: (T + 1,)."""
    return torch.cat((weights * (1 - gate), weights.new_full((1,), gate)))
