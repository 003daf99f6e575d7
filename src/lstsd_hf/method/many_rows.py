"""Heads with any number of rows for each sample: taggers, question answering, language models.

`index` finds a batch's rows in the batch itself, on the CPU, before it is moved to the device. The student's rows are
the model's outputs at these positions, so nothing is ever realigned.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from .heads import Classes, Compared, Head, Labels
from .loss import TeacherTerms
from .rows import IGNORED, RowIndex, labelled_tokens, own_positions, predicted_tokens
from .spans import is_most, span_terms
from .statistics import Statistic
from .teachers import Settings
from .vocabulary import TopK, student_events, vocabulary_terms

VALUES, CLASSES, REST = "values", "classes", "rest"
_ENDS = ("start_positions", "end_positions")


class ManyRows(Head):
    """A head whose samples have any number of rows.

    Attributes:
        outputs: The names of the model's (B, L, ...) logits; several of them are stacked as columns of one grid.
        grid: Columns of the batch. The first of them that the batch has gives (B, L), the shape of the logits.
    """

    # Taggers and spans did better with this than with twice as much: see docs/heads.md.
    default_weight = 0.2
    outputs: ClassVar[tuple[str, ...]] = ("logits",)
    grid: tuple[str, ...] = ("labels",)

    @abstractmethod
    def index(self, batch: Mapping[str, Any], samples: int) -> RowIndex:
        """The rows of a batch of B samples. Raises ValueError if the batch does not show them."""

    @abstractmethod
    def row_labels(self, batch: Mapping[str, Any], index: RowIndex) -> torch.Tensor:
        """int32 (R,): the label of each row, -100 where there is none."""

    def statistics(self, labels: Any) -> tuple[Statistic, ...]:
        return ()


class Tokens(ManyRows):
    """A tagger: one distribution over C classes for each token whose label is not -100; these tokens are the items.

    One column is the logit of class 1 against class 0.
    """

    def __init__(self, label_names: Sequence[str] = ()) -> None:
        """`label_names`: what a batch may call the labels, besides "labels"."""
        self.grid = (*label_names, "labels")

    def index(self, batch: Mapping[str, Any], samples: int) -> RowIndex:
        return labelled_tokens(_labels_of(batch, self.grid))

    def row_labels(self, batch: Mapping[str, Any], index: RowIndex) -> torch.Tensor:
        return _labels_of(batch, self.grid).flatten()[index.positions].int()

    def items(self, samples: int, rows: int) -> int:
        return rows

    def scores(
        self, recorded: Mapping[str, torch.Tensor], labels: torch.Tensor, counts: torch.Tensor | None
    ) -> torch.Tensor:
        return _each(recorded[VALUES]).scores(recorded, labels, None)

    def compare(
        self, student: torch.Tensor, past: Mapping[str, torch.Tensor], settings: Settings, index: RowIndex | None
    ) -> Compared:
        assert index is not None
        rows = student.index_select(0, index.positions)
        terms = _each(rows).terms(rows, past[VALUES], settings.temperature, settings.teacher_trust) if past else None
        return Compared(terms, {VALUES: rows})


class Spans(ManyRows):
    """Question answering: start and end are distributions over a feature's own positions. The items are features."""

    outputs = ("start_logits", "end_logits")
    grid = ("input_ids", "inputs_embeds")

    def index(self, batch: Mapping[str, Any], samples: int) -> RowIndex:
        mask = batch.get("attention_mask")
        if mask is None:
            grid = next((batch[name] for name in self.grid if name in batch), None)
            if grid is None:
                raise ValueError(f"The batch holds {sorted(batch)}: expected an attention_mask or input_ids.")
            mask = torch.ones(grid.shape[:2], dtype=torch.int64)
        return own_positions(mask)

    def row_labels(self, batch: Mapping[str, Any], index: RowIndex) -> torch.Tensor:
        """int32 (R,): 1 where the span starts, 2 where it ends, 3 for both, 0 for neither; -100 without labels."""
        if not all(isinstance(batch.get(name), torch.Tensor) for name in _ENDS):
            return torch.full((len(index.positions),), IGNORED, dtype=torch.int32)
        length = next(batch[name].shape[1] for name in ("attention_mask", *self.grid) if name in batch)
        within, samples = index.positions % length, index.samples
        start, end = (within == batch[name].flatten()[samples] for name in _ENDS)
        return start.int() + 2 * end.int()

    def scores(
        self, recorded: Mapping[str, torch.Tensor], labels: torch.Tensor, counts: torch.Tensor | None
    ) -> torch.Tensor:
        assert counts is not None
        values = recorded[VALUES].float()
        samples = torch.arange(len(counts)).repeat_interleave(counts)
        known = torch.stack([labels & 1, labels & 2], dim=1).bool() & (labels >= 0)[:, None] & values.isfinite()
        return torch.where(known, is_most(values, samples, len(counts)), torch.nan)

    def compare(
        self, student: torch.Tensor, past: Mapping[str, torch.Tensor], settings: Settings, index: RowIndex | None
    ) -> Compared:
        assert index is not None
        rows = student.index_select(0, index.positions)
        if not past:
            return Compared(None, {VALUES: rows})
        count = len(index.counts)
        tau, trust = settings.temperature, settings.teacher_trust
        return Compared(span_terms(rows, past[VALUES], index.samples, count, tau, trust), {VALUES: rows})


class Vocabulary(ManyRows):
    """A language model: the k most probable classes of each predicted token. The items are predicted tokens.

    Attributes:
        k: How many classes are recorded.
        shifts: Whether position t predicts the label at t + 1.
    """

    # Larger weights made language models a little worse: see docs/heads.md.
    default_weight = 0.1
    judged = (CLASSES,)

    def __init__(self, k: int, shifts: bool) -> None:
        self.k = k
        self.shifts = shifts

    def index(self, batch: Mapping[str, Any], samples: int) -> RowIndex:
        if self.shifts:
            _labels_of(batch)
            return predicted_tokens(batch, samples)
        return labelled_tokens(_labels_of(batch))

    def row_labels(self, batch: Mapping[str, Any], index: RowIndex) -> torch.Tensor:
        if self.shifts and "shift_labels" in batch:
            return batch["shift_labels"].flatten()[index.positions].int()
        return batch["labels"].flatten()[index.positions + self.shifts].int()

    def items(self, samples: int, rows: int) -> int:
        return rows

    def scores(
        self, recorded: Mapping[str, torch.Tensor], labels: torch.Tensor, counts: torch.Tensor | None
    ) -> torch.Tensor:
        hits = (recorded[CLASSES][:, 0] == labels).float()  # the most probable class comes first
        return torch.where(labels >= 0, hits, torch.nan)

    def compare(
        self, student: torch.Tensor, past: Mapping[str, torch.Tensor], settings: Settings, index: RowIndex | None
    ) -> Compared:
        assert index is not None
        vocabulary = student.shape[-1]
        if self.k >= vocabulary:
            raise ValueError(
                f"logits_top_k={self.k} and a vocabulary of {vocabulary}: expected fewer than all of it, because the "
                "mass of the rest is recorded as well. Set logits_top_k lower."
            )
        terms: TeacherTerms | None = None
        if past:
            teachers = TopK(past[VALUES], past[CLASSES], past[REST])
            tau, trust = settings.temperature, settings.teacher_trust
            terms, own = vocabulary_terms(student, index.positions, teachers, tau, trust, self.k)
        else:
            none = index.positions.new_empty(0, len(index.positions), self.k)
            own = student_events(student.detach(), index.positions, none, self.k)[1]
        return Compared(terms, {VALUES: own.log_probabilities, CLASSES: own.classes, REST: own.log_rest}, vocabulary)


def _each(rows: torch.Tensor) -> Labels | Classes:
    """The head of each of a tagger's rows, (R, C)."""
    return Labels() if rows.shape[-1] == 1 else Classes()


def _labels_of(batch: Mapping[str, Any], names: Sequence[str] = ("labels",)) -> torch.Tensor:
    labels = next((batch[name] for name in names if name in batch), None)
    if not isinstance(labels, torch.Tensor) or labels.ndim != 2:
        found = f"labels of shape {tuple(labels.shape)}" if isinstance(labels, torch.Tensor) else sorted(batch)
        known = " or ".join(dict.fromkeys(names))
        raise ValueError(
            f"The batch holds {found}: expected {known} of shape (samples, tokens), -100 where a token has none. Use "
            "a data collator that pads labels, such as DataCollatorForTokenClassification. If a tagger's labels have "
            "another name, give it as label_names. A trainer without labels for each token, such as DPO's, is not "
            "supported."
        )
    return labels


def many_rows_head(problem_type: str | None, k: int, label_names: Sequence[str] = ()) -> ManyRows | None:
    """The head for a problem whose samples have many rows; None for any other problem.

    Args:
        problem_type: See `heads.ProblemType`.
        k: How many classes of the vocabulary to record for each predicted token.
        label_names: What a batch may call a tagger's labels, besides "labels".
    """
    if problem_type == "token_classification":
        return Tokens(label_names)
    if problem_type == "question_answering":
        return Spans()
    if problem_type in ("causal_lm", "seq2seq_lm", "masked_lm"):
        return Vocabulary(k, shifts=problem_type == "causal_lm")
    return None
