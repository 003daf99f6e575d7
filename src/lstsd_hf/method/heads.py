"""The heads: what a model's rows of logits stand for, and how far the student's rows are from a teacher's.

For its kind of prediction, a head defines the log probabilities, the divergence, the trust, what counts as agreement,
the teachers' default weight, and the statistics that a run keeps.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812

from .loss import TeacherTerms, bernoulli_log_probabilities, confidence, divergence
from .rows import IGNORED, RowIndex
from .statistics import ABSOLUTE_ERROR, MARGIN, Statistic
from .teachers import Settings, TeacherTrust

ProblemType = Literal[
    "regression",
    "single_label_classification",
    "multi_label_classification",
    "token_classification",
    "question_answering",
    "causal_lm",
    "seq2seq_lm",
    "masked_lm",
]


class Compared(NamedTuple):
    """A student compared with its teachers.

    Attributes:
        terms: What the teachers contribute to the loss of each item; None if there are no teachers.
        recorded: What to record, by part of a row.
        vocabulary: The number of classes, if only the largest are recorded; None if all are.
    """

    terms: TeacherTerms | None
    recorded: dict[str, torch.Tensor]
    vocabulary: int | None = None


class Head(ABC):
    """What a model's rows of logits stand for.

    Attributes:
        default_weight: The weight of each teacher if the user gives none.
        decides: Whether a prediction is a decision, so that student and teacher can agree or not.
        judged: The parts of a row that `scores` reads.
    """

    default_weight: ClassVar[float] = 0.4
    decides: ClassVar[bool] = True
    judged: ClassVar[tuple[str, ...]] = ("values",)

    def items(self, samples: int, rows: int) -> int:
        """The number of items that the base loss of a micro-batch averages, given its numbers of samples and rows."""
        return samples

    @abstractmethod
    def statistics(self, labels: Any) -> tuple[Statistic, ...]:
        """The statistics that a run keeps of its epochs, given the store's labels, an array with a row per sample."""

    @abstractmethod
    def compare(
        self, student: torch.Tensor, past: Mapping[str, torch.Tensor], settings: Settings, index: RowIndex | None
    ) -> Compared:
        """Compares the student with its teachers.

        Args:
            student: The model's logits with gradient: (B, C), or the (B x L, C) grid of a head with many rows.
            past: The recorded rows of T teachers, by part, with an axis T in front; empty if there are no teachers.
            settings: The settings in force.
            index: Where the rows are in the grid; None for a head with one row for each sample.
        """

    def targets(self, labels: Any) -> torch.Tensor | None:
        """A batch's labels in the form that `scores` takes; None if predictions cannot be compared with them.

        Heads with many rows use a label for each row instead.
        """
        return None

    def scores(
        self, recorded: Mapping[str, torch.Tensor], labels: torch.Tensor, counts: torch.Tensor | None
    ) -> torch.Tensor:
        """How good predictions are: 1 for a hit, 0 for a miss.

        With several labels it is the share of them that are right; for a regression, the squared error.

        Args:
            recorded: The `judged` parts of n recorded rows, on the CPU.
            labels: (n, ...).
            counts: (B,) the number of rows of each sample; None: one each.

        Returns:
            (n,), or (n, 2) for start and end; NaN without a label or a prediction.
        """
        raise NotImplementedError


class OneRow(Head):
    """One row of logits for each sample, (B, C)."""

    def compare(
        self, student: torch.Tensor, past: Mapping[str, torch.Tensor], settings: Settings, index: RowIndex | None
    ) -> Compared:
        terms = self.terms(student, past["values"], settings.temperature, settings.teacher_trust) if past else None
        return Compared(terms, {"values": student})

    @abstractmethod
    def _terms(
        self, student: torch.Tensor, teachers: torch.Tensor, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Divergence, confidence and agreement, each (T, B), of finite float32 tensors; None if the head has none."""

    def terms(
        self, student: torch.Tensor, teachers: torch.Tensor, temperature: float, teacher_trust: TeacherTrust
    ) -> TeacherTerms:
        """The teachers' terms for a micro-batch, without their weights.

        All teachers are computed together: the tensors are small, so the cost is the number of operations.

        Args:
            student: The model's logits, (B, C), with gradient.
            teachers: The recorded logits, (T, B, C), of any floating-point type. A row with a NaN: that teacher is
                absent.
            temperature: See `loss.divergence`; a regression does not use it.
            teacher_trust: "constant": 1. "confidence" and "honest": see `loss.confidence`; 1 for a regression.
        """
        student, teachers = student.float(), teachers.float()
        total = teachers.sum(dim=-1)
        present = (total == total).float()  # the sum of a row with a NaN is NaN, which differs from itself
        # Zeros instead of a mask on the result, because 0 times the gradient of a NaN is NaN.
        distance, sure, same = self._terms(student, teachers.nan_to_num(0.0), temperature)
        trust = present if teacher_trust == "constant" or sure is None else present * sure
        return TeacherTerms(present, trust, distance, None if same is None else present * same)


class Classes(OneRow):
    """One distribution over C classes, C at least 2."""

    def statistics(self, labels: Any) -> tuple[Statistic, ...]:
        return (MARGIN,) if labels.ndim == 1 and labels.dtype.kind == "i" else ()

    def targets(self, labels: Any) -> torch.Tensor | None:
        if not isinstance(labels, torch.Tensor) or labels.is_floating_point() or labels.shape[1:].numel() != 1:
            return None
        return labels.flatten()

    def scores(
        self, recorded: Mapping[str, torch.Tensor], labels: torch.Tensor, counts: torch.Tensor | None
    ) -> torch.Tensor:
        values = recorded["values"].float()
        # numpy's argmax: torch's takes many times as long on a CPU for 1000 classes.
        hits = (torch.from_numpy(values.numpy().argmax(axis=-1)) == labels).float()
        known = (labels >= 0) & (labels < values.shape[-1]) & values.isfinite().all(dim=-1)
        return torch.where(known, hits, torch.nan)

    def _terms(
        self, student: torch.Tensor, teachers: torch.Tensor, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        log_p, log_q = F.log_softmax(student, dim=-1), F.log_softmax(teachers, dim=-1)
        same = student.argmax(dim=-1) == teachers.argmax(dim=-1)
        return divergence(log_p, log_q, temperature), confidence(log_q), same


class Labels(OneRow):
    """C labels, each present or not: Bernoulli distributions. Divergence and trust are means over labels."""

    def statistics(self, labels: Any) -> tuple[Statistic, ...]:
        # One number for each sample, 0 or 1, is one of two classes, and has the margin of one.
        known = labels[(labels == labels) & (labels != IGNORED)] if labels.ndim == 1 else None
        return (MARGIN,) if known is not None and bool(((known == 0) | (known == 1)).all()) else ()

    def targets(self, labels: Any) -> torch.Tensor | None:
        return labels.float() if isinstance(labels, torch.Tensor) else None

    def scores(
        self, recorded: Mapping[str, torch.Tensor], labels: torch.Tensor, counts: torch.Tensor | None
    ) -> torch.Tensor:
        values = recorded["values"].float()
        if labels.numel() != values.numel():  # classes, which the loss makes rows of flags of
            return torch.full((len(values),), torch.nan)
        right = ((values > 0) == (labels.reshape(values.shape) > 0.5)).float().mean(dim=-1)
        return torch.where(values.isfinite().all(dim=-1), right, torch.nan)

    def _terms(
        self, student: torch.Tensor, teachers: torch.Tensor, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        log_p, log_q = bernoulli_log_probabilities(student), bernoulli_log_probabilities(teachers)
        same = ((student > 0) == (teachers > 0)).float().mean(dim=-1)
        return divergence(log_p, log_q, temperature).mean(dim=-1), confidence(log_q).mean(dim=-1), same


class Scores(OneRow):
    """C numbers. The divergence is the mean squared error over them, and every teacher is trusted in full."""

    # A score does not tell how sure it is. With the weights that suit classes, teachers held a regression back.
    default_weight = 0.1
    decides = False

    def statistics(self, labels: Any) -> tuple[Statistic, ...]:
        return (ABSOLUTE_ERROR,) if labels.ndim == 1 and labels.dtype.kind == "f" else ()

    def targets(self, labels: Any) -> torch.Tensor | None:
        return labels.float() if isinstance(labels, torch.Tensor) else None

    def scores(
        self, recorded: Mapping[str, torch.Tensor], labels: torch.Tensor, counts: torch.Tensor | None
    ) -> torch.Tensor:
        values = recorded["values"].float()
        if labels.numel() != values.numel():  # the loss makes other targets of them
            return torch.full((len(values),), torch.nan)
        return (values - labels.reshape(values.shape)).square().mean(dim=-1)

    def _terms(
        self, student: torch.Tensor, teachers: torch.Tensor, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        return (student - teachers).square().mean(dim=-1), None, None


HEADS: dict[ProblemType, Head] = {
    "single_label_classification": Classes(),
    "multi_label_classification": Labels(),
    "regression": Scores(),
}


def name_of(head: Head | None) -> ProblemType | None:
    """The problem type of a head with one row for each sample; None for any other head."""
    return next((name for name, known in HEADS.items() if known is head), None)


@dataclass(frozen=True)
class Choice:
    """A head and, if it is a guess that the user may want to correct, the reason for it."""

    head: Head
    guessed_from: str | None = None


def choose_head(problem_type: ProblemType | None, labels: Any, columns: int) -> Choice:
    """The head for a model whose rows have C columns.

    One column is a score, or one label that is present or not. It is never one class, whose probability would always
    be 1.

    Args:
        problem_type: What the user or the model's config says; None if neither says anything.
        labels: A batch's labels, a tensor; anything else if they are not known.
        columns: C.
    """
    if columns == 1 and problem_type != "regression":
        if problem_type is not None:
            return Choice(HEADS["multi_label_classification"])
        if not isinstance(labels, torch.Tensor):
            return Choice(HEADS["regression"], "one logit for each sample, and no labels that are known")
        if bool(((labels == 0) | (labels == 1)).all()):  # reads a value from the device, once in a run
            reason = "one logit for each sample, and labels that are all 0 or 1"
            return Choice(HEADS["multi_label_classification"], reason)
        return Choice(HEADS["regression"], "one logit for each sample, and labels that are not all 0 or 1")
    if problem_type is not None:
        return Choice(HEADS[problem_type])
    if isinstance(labels, torch.Tensor) and labels.is_floating_point():
        if labels.ndim > 1 and labels.shape[-1] > 1:
            reason = "labels that are rows of floating-point numbers"
            return Choice(HEADS["multi_label_classification"], reason)
        return Choice(HEADS["regression"], "labels that are floating-point numbers")
    return Choice(HEADS["single_label_classification"])
