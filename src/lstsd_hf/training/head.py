"""The head of a run: assumed while its loader is made, chosen at the first batch, noted in checkpoints."""

import warnings
from dataclasses import replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from transformers.utils import logging

from ..method.heads import HEADS, Head, ProblemType, choose_head, name_of
from ..method.many_rows import ManyRows, Vocabulary, many_rows_head
from ..method.teachers import Teacher, teachers_of
from ..store import LogitsStore
from .honesty import Honesty, why_not
from .hub import HubMixin
from .memory_log import MemoryLog
from .model_head import (
    Rows,
    grid_with_gradient,
    known_columns,
    known_vocabulary,
    many_rows_problem,
    refuse_lists,
    rows_with_gradient,
    unwrapped,
)
from .outside import OutsideTeacher, refuse_other_teacher, refuse_place
from .recorder import Recorder
from .training_set import TrainingSet

logger = logging.get_logger(__name__)


class HeadMixin(HubMixin):
    """The part of `LSTSDMixin` that decides what the logits stand for, and so which settings are in force."""

    _lstsd_has_own_loss: bool
    _lstsd_teachers: tuple[Teacher, ...]
    _lstsd_head: Head | None = None
    # The training labels, until the head is known.
    _lstsd_labels: npt.NDArray[Any] | None = None
    _lstsd_outside: OutsideTeacher | None = None
    _lstsd_is_honest = False
    _lstsd_described_model: Any = None
    _lstsd_described_problem: ProblemType | None = None

    def _lstsd_problem_type(self) -> ProblemType | None:
        """The problem type that the user has set, or else the model's config.

        A model may write one into its config when it first computes its own loss. That says nothing about a user's own
        loss, for which only the config as it was before counts.
        """
        said = getattr(getattr(self.model, "config", None), "problem_type", None)
        if not isinstance(said, str) or said not in HEADS:  # the config of a model of the user's own has its own words
            said = None
        if self._lstsd_described_model is not self.model:  # before its first loss
            self._lstsd_described_model, self._lstsd_described_problem = self.model, said
        computes_own = self._lstsd_has_own_loss or self.compute_loss_func is not None
        return self.distillation.problem_type or (self._lstsd_described_problem if computes_own else said)

    def _lstsd_many_rows_head(self) -> ManyRows | None:
        """The head of a model whose samples have any number of rows; None if each sample has one row."""
        said = self.distillation.problem_type or many_rows_problem(self.model)
        return many_rows_head(said, self.distillation.logits_top_k, sorted(self.label_names, key="labels".__ne__))

    def _lstsd_refuse_drawn_mask(self) -> None:
        """Raises ValueError if the collator draws another mask for a language model in each epoch."""
        if isinstance(self._lstsd_many_rows_head(), Vocabulary) and getattr(self.data_collator, "mlm", False):
            raise ValueError(
                "The data collator draws another mask in each epoch, and past predictions are of other tokens: "
                "expected the same mask in every epoch. Mask the data set once, with map, and pad it with "
                "DataCollatorForTokenClassification; or train with the plain Trainer."
            )

    def _lstsd_known_columns(self) -> int | None:
        """How many columns the rows will have; None if not known, as with a loss that makes its own rows."""
        return None if self._lstsd_has_own_loss else known_columns(self.model)

    def _lstsd_known_top(self) -> tuple[int, int | None] | None:
        """For a language model: how many classes are recorded, and of how many, if known; None for another head."""
        head = self._lstsd_many_rows_head()
        return (head.k, known_vocabulary(self.model)) if isinstance(head, Vocabulary) else None

    def _lstsd_assume_head(self, labels: npt.NDArray[Any] | None) -> None:
        """Sets settings and teachers for the likely head, given the training labels.

        Only the first batch shows a head with one row for sure. Weights are not used before it.
        """
        many = self._lstsd_many_rows_head()
        if many is not None:
            self._lstsd_take_head(many)
            if self.settings.long_term_teacher == "ensemble" and self.settings.long_term_weight:
                raise ValueError(
                    f"long_term_teacher='ensemble' and {type(unwrapped(self.model)).__name__}, whose samples have "
                    "many rows: expected a head with one row for each sample. Set long_term_teacher='epoch'."
                )
            return
        self._lstsd_labels = labels
        first = None if labels is None else torch.from_numpy(labels[:1])
        self._lstsd_settle(choose_head(self._lstsd_problem_type(), first, self._lstsd_known_columns() or 2).head)

    def _lstsd_settle(self, head: Head) -> None:
        settings = self.distillation.resolve(head.default_weight)
        self._lstsd_settings = replace(settings, teacher_trust="honest") if self._lstsd_is_honest else settings
        self._lstsd_teachers = teachers_of(
            self.settings, None if self._lstsd_outside is None else self._lstsd_outside.source
        )

    def _lstsd_take_head(self, head: Head) -> None:
        self._lstsd_head, self._lstsd_labels = head, None
        self._lstsd_settle(head)

    def _lstsd_student(
        self, candidates: list[Any], inputs: Any, samples: int, labels: Any, recorder: Recorder
    ) -> torch.Tensor:
        """The model's logits: (B, C), or the (B x L, C) grid of a head with many rows."""
        trainer = type(self).__name__
        if isinstance(self._lstsd_head, ManyRows):
            shape = next(inputs[name].shape[:2] for name in self._lstsd_head.grid if name in inputs)
            return grid_with_gradient(candidates, self._lstsd_head.outputs, shape, trainer)
        if self._lstsd_head is None:
            refuse_lists(labels)
        rows = rows_with_gradient(candidates, samples, inputs, trainer)
        if self._lstsd_head is None:
            recorder.head = self._lstsd_choose_head(rows, labels)
        return rows.logits

    def _lstsd_choose_head(self, rows: Rows, labels: Any) -> Head:
        """Chooses the head from the first batch of a run: its rows, and its labels, a tensor if there are any."""
        columns = rows.logits.shape[-1]
        said = self._lstsd_problem_type()
        if rows.paired and not self.distillation.problem_type:
            said = "single_label_classification"
        if columns == 1 and self._lstsd_labels is not None:  # a few labels may be 0 or 1 by chance
            labels = torch.from_numpy(np.unique(self._lstsd_labels))
        choice = choose_head(said, labels, columns)
        if choice.guessed_from is not None and self.accelerator.is_main_process:
            logger.warning(
                f"The training data has {choice.guessed_from}: the logits are taken for "
                f"{type(choice.head).__name__.lower()}. If they are something else, set problem_type, "
                "a field of LSTSDConfig."
            )
        if self._lstsd_outside is not None:
            self._lstsd_outside.refuse_rows(tuple(rows.logits.shape[1:]), name_of(choice.head))
        self._lstsd_take_head(choice.head)
        return choice.head

    def _lstsd_open_outside(self, dataset: Any, training_set: TrainingSet) -> None:
        """Opens the outside teacher, if there is one, and refuses it if it does not fit the run."""
        self._lstsd_outside, given = None, self.distillation
        if given.outside_teacher is None:
            return
        is_first = self.is_world_process_zero()
        outside = OutsideTeacher.open(given.outside_teacher, str(given.outside_epoch), tells=is_first)
        refuse_place(outside.store.path, self.logits_path(), str(self.args.output_dir))
        outside = outside.for_model(self.model, self._lstsd_many_rows_head(), self._lstsd_known_columns())
        if is_first:
            outside.store.verify_epochs(outside.epochs)
        outside.refuse_inputs(training_set, dataset, self.processing_class)
        self._lstsd_outside = outside

    def _lstsd_check_epochs(self, num_train_epochs: int, steps_per_epoch: int | None) -> None:
        """Warns if the run is too short for the long-term teacher.

        Raises:
            ValueError: the schedule is linear, and an outside teacher teaches in the first epoch of a stream, when the
                number of epochs is not known.
        """
        k, is_epoch = self.settings.mini_generation_epochs, self.settings.long_term_teacher == "epoch"
        waits = is_epoch and self.settings.long_term_weight and num_train_epochs <= k
        if waits and self.accelerator.is_main_process:
            warnings.warn(
                f"The long-term teacher would teach from epoch {k} on (epochs count from 0), and this run has only "
                f"{num_train_epochs}: it will never teach. Train for at least {k + 1} epochs, or set "
                "mini_generation_epochs lower.",
                stacklevel=3,
            )
        is_taught = self._lstsd_outside is not None and self.settings.outside_weight > 0
        if steps_per_epoch is None and is_taught and self.settings.weight_schedule == "linear":
            raise ValueError(
                "weight_schedule='linear' needs the number of epochs. For a stream it is known only after the first "
                "epoch, and the outside teacher teaches in the first one: expected weight_schedule='constant', or a "
                "training set that has a length."
            )

    def _lstsd_honesty(
        self, labels: npt.NDArray[Any] | None, memory: MemoryLog, saved: LogitsStore | None
    ) -> Honesty | None:
        """Makes the `Honesty` of a run that begins; None if the run does not use trust by honesty.

        Raises:
            ValueError: the user asks for this trust, and the run has no measures of what is memorised, or has labels
                or a head for which there is no rule; or the checkpoint was not saved with this trust.
        """
        settings, asked_for = self.settings, self.distillation.teacher_trust
        if asked_for not in (None, "honest") or not (settings.long_term_weight or settings.short_term_weight):
            return None
        if asked_for is None and self._lstsd_outside is not None:
            return None  # trust by honesty beside another model was not measured
        first = None if labels is None else torch.from_numpy(labels[:1])
        head = (
            self._lstsd_head or choose_head(self._lstsd_problem_type(), first, self._lstsd_known_columns() or 2).head
        )
        reason = why_not(head, labels, settings, memory)
        if reason is not None and asked_for is not None:
            raise ValueError(reason)
        if reason is not None:
            return None
        self._lstsd_is_honest, self._lstsd_settings = True, replace(settings, teacher_trust="honest")
        honesty = Honesty(self._lstsd_teachers, memory, self.accelerator, asked_for is not None)
        if saved is not None:
            honesty.restore(saved.note.get("honesty"))
        return honesty

    def _lstsd_head_note(self) -> dict[str, Any]:
        """What a checkpoint notes about the head, and about an outside teacher."""
        note: dict[str, Any] = {} if self._lstsd_outside is None else {"outside": self._lstsd_outside.note}
        return note | {"problem_type": name_of(self._lstsd_head)}

    def _lstsd_restore_head(self, saved: LogitsStore) -> None:
        """Takes the head that a checkpoint was saved with, unless the user has set another.

        Raises:
            StoreMismatchError: the checkpoint was saved by a run with another outside teacher.
        """
        refuse_other_teacher(saved.note.get("outside"), self._lstsd_outside, saved.path)
        if self._lstsd_many_rows_head() is not None:
            return  # known already
        said = self.distillation.problem_type
        noted = HEADS.get(cast(ProblemType, saved.note.get("problem_type")))
        head = noted if said is None else choose_head(said, None, saved.row_shape[-1]).head
        if head is not None:
            self._lstsd_take_head(head)
