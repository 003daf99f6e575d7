"""Trust by honesty during a run: takes memory out of the teachers, sets gate and smoothing; see `method.honest`."""

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

# The log's name for the target made of the label and of past predictions with their memory taken out.
HONEST_PAST = "honest_past"
_ADVICE = "Set teacher_trust='confidence' or 'constant'"


class Honesty:
    """Corrects the teachers of each epoch, and sets the gate: the same in all processes, and after a resume.

    Attributes:
        gate: From 0 (the loss with trust by confidence) to 1 (the label and the honest past together teach in its
            place). It changes between epochs only.
        smoothing: How far this epoch's labels are smoothed, from 0 to 1.
        is_asked_for: Whether the user has set this trust by name. Then it does not wait for `SINCE_STEP`, and a
            warning tells if the measures end.
    """

    def __init__(
        self, teachers: Sequence[Teacher], memory: MemoryLog, accelerator: Accelerator, is_asked_for: bool
    ) -> None:
        """Starts with the gate shut, and without smoothing.

        Args:
            teachers: The run's teachers.
            memory: The run's measures of what is memorised.
            accelerator: The run's.
            is_asked_for: See the attribute.
        """
        self._teachers = [teacher.store is None and teacher.track == PREDICTIONS for teacher in teachers]
        self._names = [teacher.name for teacher in teachers]
        self._memory, self._device, self._is_main = memory, accelerator.device, accelerator.is_main_process
        self.is_asked_for = is_asked_for
        steps = 0 if is_asked_for else SINCE_STEP
        # The first epoch whose predictions may count against labels.
        self._since = max(SINCE_EPOCH, math.ceil(steps / max(memory.steps_per_epoch, 1)))
        self._honest: dict[int, float] = {}  # the honest part of agreement, by epoch
        self._contradicted: dict[int, float] = {}  # what its predictions say of the labels, by epoch: see `Said`
        self._wrong: dict[int, float] = {}
        self._witnesses: dict[int, Witness] = {}
        self._corrections: Honest | None = None
        self._corrected: tuple[str, ...] = ()
        self._gave_up = False
        self.gate = self.smoothing = 0.0

    def begin_epoch(self, epoch: int, store: LogitsStore | None, teaching: Sequence[int]) -> None:
        """Sets the gate and the smoothing. Reads each epoch that teaches once, and twice more if the gate is open.

        Args:
            epoch: The epoch that begins.
            store: The run's store; None if nothing was recorded yet.
            teaching: The epoch of each teacher; -1 if it does not teach.
        """
        self._corrections, self.gate = None, 0.0
        if not epoch or store is None:
            return
        labels = store.read_labels()
        # For instance because an epoch was cut short, or because batches have other labels; a warning has said why.
        if self._memory.left_out is not None or labels is None:
            self._give_up(tells=self.is_asked_for)
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
        priors = LabelShares.of(labels, store.row_shape[-1])
        for e in sorted({e for e in own.values() if e >= COUNTED_FROM} - self._contradicted.keys()):
            found = said(store.epoch_rows(e), labels)
            if found.rules_out:
                self._contradicted.clear()  # so that a resumed run reads these predictions again, and ends here too
                self._give_up(tells=True, why=", because the model rules classes out (logits far below the others)")
                return
            self._contradicted[e], self._wrong[e] = found.contradicted, found.wrong
            if e >= self._since:
                self.smoothing = smoothing_after(self.smoothing, found.claimed, self._honest[e], len(priors.shares))
        # The largest doubt so far: wrong labels that the model has learnt by heart since then are still wrong.
        # Not len(labels): the store also has rows for ids that no sample has.
        doubts = (label_doubt(share, priors.samples) for e, share in self._contradicted.items() if e >= self._since)
        self.gate = max(doubts, default=0.0)
        if self.gate:
            self._correct(own, store, labels, priors)

    def _give_up(self, *, tells: bool, why: str = "") -> None:
        if tells and not self._gave_up and self._is_main:
            logger.warning(f"teacher_trust='honest' is trust by confidence for the rest of this run{why}.")
        self._gave_up, self.smoothing = True, 0.0

    def _correct(self, own: dict[str, int], store: LogitsStore, labels: npt.NDArray[Any], priors: LabelShares) -> None:
        """Takes the memory out of the epochs that teach: `own` has the epoch of each teacher by its name."""
        for epoch in set(own.values()) - self._witnesses.keys():
            found = witness(store.epoch_rows(epoch), labels, priors, self._honest[epoch])
            if found is not None:
                self._witnesses[epoch] = found
        self._witnesses = {e: w for e, w in self._witnesses.items() if e in own.values()}
        own = {name: e for name, e in own.items() if e in self._witnesses}
        if own:
            wrong = wrong_share((share for _, share in sorted(self._wrong.items())), COUNTED)
            evidence = label_evidence(wrong, len(priors.shares))
            self._corrections = Honest.of([self._witnesses[e] for e in own.values()], evidence, self._device)
            self._corrected = tuple(own)
        else:
            self.gate = 0.0

    def join(
        self, compared: Compared, past: torch.Tensor | None, names: tuple[str, ...], labels: torch.Tensor | None
    ) -> tuple[Compared, tuple[str, ...]]:
        """Adds the honest past to a batch of B samples, as the last teacher, if the gate is open.

        Args:
            compared: The student beside its teachers, with one row of logits for each sample.
            past: What the T teachers recorded, (T, B, C); None if there are none.
            names: The names of the T teachers.
            labels: The batch's labels, integers (B,); None if they are something else.

        Returns:
            The student beside T + 1 teachers, and their names; without the honest past, what was given.

        Raises:
            ValueError: the labels are not one class for each sample, and the user has set this trust by name or the
                gate is open.
        """
        if labels is None and (self.is_asked_for or self._corrections is not None):
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
        """The base loss of a batch, with labels smoothed as far as this epoch's are.

        Args:
            base_loss: A scalar.
            compared: The student, with one row of logits for each sample.
            labels: As for `join`.
        """
        if not self.smoothing or labels is None:
            return base_loss
        return smoothed(base_loss, compared.recorded[VALUES], labels, self.smoothing)

    def weigh(self, weights: torch.Tensor) -> torch.Tensor:
        """The weights of all that teaches, the honest past too, from those of the teachers; on the device."""
        return weights if self._corrections is None or not len(weights) else with_gate(weights, self.gate)

    def logged(self) -> dict[str, float]:
        """This epoch's entries for the log."""
        return {"honest_gate": self.gate, "honest_smoothing": self.smoothing}

    def note(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        by_epoch = {"honest": self._honest, "contradicted": self._contradicted, "wrong": self._wrong}
        return {name: list(values.items()) for name, values in by_epoch.items()} | {"smoothing": self.smoothing}

    def restore(self, note: Any) -> None:
        """Continues from what `note` returned; teachers are read anew. Raises ValueError if it is something else."""
        try:
            honest, against, wrong = (
                {epoch: float(value) for epoch, value in note[name]} for name in ("honest", "contradicted", "wrong")
            )
            smoothing = float(note["smoothing"])
            shares = [share for share in (*against.values(), *wrong.values()) if not math.isnan(share)]
            fits = all(type(epoch) is int for epoch in (*honest, *against)) and against.keys() == wrong.keys()
            fits = fits and all(0 <= x <= 1 for x in (*shares, smoothing))
        except (KeyError, TypeError, ValueError):
            fits = False
        if not fits:
            raise ValueError(
                "The checkpoint has no state of trust by honesty, or a damaged one: was it saved with "
                f"teacher_trust='honest'? Resume from another. {_ADVICE}."
            )
        self._honest, self._contradicted, self._wrong, self.smoothing = honest, against, wrong, smoothing


def why_not(head: Head, labels: npt.NDArray[Any] | None, settings: Settings, memory: MemoryLog) -> str | None:
    """The reason why a run cannot have trust by honesty; None if it can.

    Args:
        head: The run's head.
        labels: The training labels, one for each row; None if they are not known, as for a stream.
        settings: The run's settings, with a weight above 0 for at least one of its own teachers.
        memory: The run's measures of what is memorised.
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
            f"{memory.left_out}. {_ADVICE}."
        )
    return None
