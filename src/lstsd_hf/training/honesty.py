"""The honest past during a run: what is taken out of the teachers, and how far the gate is open; `method.honest`."""

import math
from collections.abc import Sequence
from typing import Any

import numpy.typing as npt
import torch
from accelerate import Accelerator
from transformers.utils import logging

from ..method.dynamics import wrong_share
from ..method.heads import Classes, Compared, Head
from ..method.honest import (
    COUNTED,
    COUNTED_FROM,
    SINCE_EPOCH,
    SINCE_STEP,
    Honest,
    LabelShares,
    Witness,
    label_doubt,
    label_evidence,
    said,
    smoothed,
    smoothing_after,
    with_gate,
    witness,
)
from ..method.loss import TeacherTerms
from ..method.teachers import PREDICTIONS, Settings, Teacher
from ..store import LogitsStore
from ..store.rows import VALUES
from .memory_log import MemoryLog

logger = logging.get_logger(__name__)

# The name in the log of what then teaches: the past, with its memory taken out, and the label.
HONEST_PAST = "honest_past"
_ADVICE = "Set teacher_trust='confidence' or 'constant'"


class Honesty:
    """Corrects the teachers of each epoch, and opens the gate; the same in all processes, and after a resume.

    Attributes:
        gate: From 0, believe the label as with trust by confidence, to 1, believe what it and the honest past say
            together. It changes between epochs alone.
        smoothing: How far the labels of this epoch are smoothed, from 0 to 1.
    """

    def __init__(
        self, teachers: Sequence[Teacher], memory: MemoryLog, accelerator: Accelerator, is_asked_for: bool
    ) -> None:
        """Args:
        teachers: Those of the run.
        memory: Its measures of what is memorised.
        accelerator: That of the run.
        is_asked_for: Whether the user has set this trust. It then need not wait for `SINCE_STEP`, and where its
            measures end, that is told.
        """
        self._teachers = [teacher.store is None and teacher.track == PREDICTIONS for teacher in teachers]
        self._names = [teacher.name for teacher in teachers]
        self._memory, self._device, self._is_main = memory, accelerator.device, accelerator.is_main_process
        self._is_asked_for = is_asked_for
        steps = 0 if is_asked_for else SINCE_STEP
        # The first epoch whose predictions may say that labels are wrong.
        self._since = max(SINCE_EPOCH, math.ceil(steps / max(memory.steps_per_epoch, 1)))
        self._honest: dict[int, float] = {}  # the honest part of agreement, by epoch
        self._contradicted: dict[int, float] = {}  # how many of the surest predictions are against labels, by epoch
        self._witnesses: dict[int, Witness] = {}
        self._corrections: Honest | None = None
        self._corrected: tuple[str, ...] = ()
        self._gave_up = False
        self.gate = self.smoothing = 0.0

    def begin_epoch(self, epoch: int, store: LogitsStore | None, teaching: Sequence[int]) -> None:
        """Sets the gate and the smoothing by the teachers' epochs, each read once; where the gate is open, twice.

        Args:
            epoch: The one that begins.
            store: The run's; None: nothing was recorded yet.
            teaching: The epoch of each teacher; -1: it does not teach.
        """
        self._corrections, self.gate = None, 0.0
        if not epoch or store is None:
            return
        if self._memory.left_out is not None:  # an epoch was cut short; the log says so as well
            if self._is_asked_for and not self._gave_up and self._is_main:
                logger.warning("teacher_trust='honest' is trust by confidence for the rest of this run.")
            self._gave_up, self.smoothing = True, 0.0
            return
        assert self._memory.meter is not None
        measured = self._memory.meter.values()
        self._honest[epoch - 1] = measured.honest
        own = {
            name: e
            for name, is_own, e in zip(self._names, self._teachers, teaching, strict=True)
            if is_own and e in self._honest
        }
        for forgotten in [e for e in self._honest if e < min(own.values(), default=0)]:
            del self._honest[forgotten]
        if not own:
            return
        labels = store.read_labels()
        assert labels is not None
        priors = LabelShares.of(labels, store.row_shape[-1])
        for e in sorted({e for e in own.values() if e >= COUNTED_FROM} - self._contradicted.keys()):
            found = said(store.epoch_rows(e), labels)
            self._contradicted[e] = found.contradicted
            if e >= self._since:
                self.smoothing = smoothing_after(self.smoothing, found.claimed, self._honest[e], len(priors.shares))
        # The largest doubt so far: that wrong labels are by heart by now, and hide, makes them no better.
        doubts = (label_doubt(share, len(labels)) for e, share in self._contradicted.items() if e >= self._since)
        self.gate = max(doubts, default=0.0)
        if self.gate:
            self._correct(own, store, labels, priors)

    def _correct(self, own: dict[str, int], store: LogitsStore, labels: npt.NDArray[Any], priors: LabelShares) -> None:
        """Takes the memory out of these epochs, by the names of the teachers that have them."""
        for epoch in set(own.values()) - self._witnesses.keys():
            found = witness(store.epoch_rows(epoch), labels, priors, self._honest[epoch])
            if found is not None:
                self._witnesses[epoch] = found
        self._witnesses = {e: w for e, w in self._witnesses.items() if e in own.values()}
        own = {name: e for name, e in own.items() if e in self._witnesses}
        if own:
            wrong = wrong_share([self._contradicted[e] for e in sorted(self._contradicted)[:COUNTED]])
            evidence = label_evidence(wrong, len(priors.shares))
            self._corrections = Honest.of([self._witnesses[e] for e in own.values()], evidence, self._device)
            self._corrected = tuple(own)
        else:
            self.gate = 0.0

    def join(
        self, compared: Compared, past: torch.Tensor | None, names: tuple[str, ...], labels: torch.Tensor | None
    ) -> tuple[Compared, tuple[str, ...]]:
        """Adds the honest past to the teachers of a batch of B samples, as the last.

        Args:
            compared: The student beside its teachers, of one row of logits for each sample.
            past: What the T teachers of these names recorded, (T, B, C); None: there are none.
            names: Theirs.
            labels: The batch's, integers (B,); None: they are something else.

        Returns:
            The student beside T + 1 teachers, and the names of these.

        Raises:
            ValueError: the labels are not one class for each sample, and the user has set this trust, or the gate is
                open by the labels of other batches.
        """
        if labels is None and (self._is_asked_for or self._corrections is not None):
            raise ValueError(
                "teacher_trust='honest' compares predictions with labels: expected one integer class for each sample "
                f"in a batch's labels, under a name in label_names. {_ADVICE}."
            )
        if labels is None or compared.terms is None or past is None or self._corrections is None:
            return compared, names
        own = torch.stack([past[names.index(name)] for name in self._corrected])
        honest = self._corrections.terms(compared.recorded[VALUES], own, labels)
        pairs = zip(compared.terms, honest, strict=True)
        terms = TeacherTerms(
            *(torch.cat([ours, more]) for ours, more in pairs if ours is not None and more is not None)
        )
        return compared._replace(terms=terms), (*names, HONEST_PAST)

    def smooth(self, base_loss: torch.Tensor, compared: Compared, labels: torch.Tensor | None) -> torch.Tensor:
        """The base loss of a batch with labels that are smoothed as far as this epoch's are.

        Args:
            base_loss: A scalar.
            compared: The student, of one row of logits for each sample.
            labels: As for `join`.
        """
        if not self.smoothing or labels is None:
            return base_loss
        return smoothed(base_loss, compared.recorded[VALUES], labels, self.smoothing)

    def weigh(self, weights: torch.Tensor) -> torch.Tensor:
        """The weights of these rows, from those of the teachers, on the device."""
        return weights if self._corrections is None or not len(weights) else with_gate(weights, self.gate)

    def logged(self) -> dict[str, float]:
        """What the log says of this epoch."""
        return {"honest_gate": self.gate, "honest_smoothing": self.smoothing}

    def note(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        pairs = {"honest": list(self._honest.items()), "contradicted": list(self._contradicted.items())}
        return pairs | {"smoothing": self.smoothing}

    def restore(self, note: Any) -> None:
        """Goes on from what `note` gave; the teachers are read anew. Raises ValueError where it is something else."""
        try:
            honest, against = (
                {epoch: float(value) for epoch, value in note[name]} for name in ("honest", "contradicted")
            )
            smoothing = float(note["smoothing"])
            fits = all(type(epoch) is int for epoch in (*honest, *against)) and all(
                0 <= x <= 1 for x in (*against.values(), smoothing)
            )
        except (KeyError, TypeError, ValueError):
            fits = False
        if not fits:
            raise ValueError(
                "The checkpoint does not say whom to believe, or is damaged: was it saved with "
                f"teacher_trust='honest'? Resume from another. {_ADVICE}."
            )
        self._honest, self._contradicted, self.smoothing = honest, against, smoothing


def why_not(head: Head, labels: npt.NDArray[Any] | None, settings: Settings, memory: MemoryLog) -> str | None:
    """The reason why a run cannot have trust by honesty; None where it can.

    Args:
        head: That of the run.
        labels: The training labels by sample id; None: they are not known, as of a stream.
        settings: Those of the run, with a weight for one of its own teachers.
        memory: The measures of what is memorised.
    """
    if settings.long_term_teacher == "ensemble" and not settings.short_term_weight:
        return (
            "teacher_trust='honest' corrects predictions of single epochs: expected long_term_teacher='epoch', or "
            "a short_term_weight above 0 beside an 'ensemble'."
        )
    if not isinstance(head, Classes):
        return (
            f"teacher_trust='honest' takes memory out of one row of classes for each sample, and this model has "
            f"{type(head).__name__.lower()}: no rule is known for these. {_ADVICE}."
        )
    if labels is None or labels.ndim != 1 or labels.dtype.kind != "i":
        found = "labels that are not known before training" if labels is None else f"labels of type {labels.dtype}"
        return (
            f"teacher_trust='honest' compares predictions with integer labels, and the training set has {found}. "
            f"{_ADVICE}."
        )
    if memory.left_out is not None:
        return (
            f"teacher_trust='honest' needs the measures of what is memorised, and they are left out: "
            f"{memory.left_out}. Train in random order, with train_sampling_strategy='random'. {_ADVICE}."
        )
    return None
