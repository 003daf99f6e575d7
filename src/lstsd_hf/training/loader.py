"""The training loader: sample ids and teachers on their way into a batch, and what is refused before the first one."""

import os
from pathlib import Path
from typing import Any, cast

import datasets
import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

from ..method.heads import Head, ProblemType, choose_head
from ..paths import LOGITS_FOLDER
from .collator import IdentifiedDataset, TeacherCollator, TeachingEpochs
from .hub import HubMixin
from .model_head import known_columns
from .overrides import is_plain, same_random_numbers
from .recorder import Plan
from .sample_ids import has_sample_ids, sample_ids_of
from .training_set import TrainingSet, inspect_training_set, rows_with_labels_outside


class LoaderMixin(HubMixin):
    """The part of `LSTSDMixin` that brings the training data."""

    _teaching: TeachingEpochs
    _plan: Plan | None
    _has_own_loss: bool
    _trial: Any

    def _assume(self, head: Head) -> None:
        """Takes settings and teachers for a head that is not sure before the first batch."""
        raise NotImplementedError

    def get_train_dataloader(self) -> DataLoader:
        """The parent's loader, whose batches carry the sample ids and the teachers' logits as well."""
        if self.train_dataset is None:
            return super().get_train_dataloader()
        distillation, column = self.distillation, self.distillation.sample_id_column
        distillation.check()
        dataset: Any = self.train_dataset
        self._set_signature_columns_if_needed()
        signature: Any = self._signature_columns  # typed as None, which it no longer is
        taken = signature if self.args.remove_unused_columns else None
        training_set = inspect_training_set(dataset, column, taken, distillation.num_samples, self.label_names)
        self._refuse_labels_outside(training_set)
        labels = None if training_set.labels is None else torch.from_numpy(training_set.labels[:1])
        self._assume(choose_head(self._problem_type(), labels, known_columns(self.model) or 2).head)

        collator: Any = self.data_collator
        if isinstance(dataset, datasets.Dataset) and not has_sample_ids(dataset, column):
            ids = sample_ids_of(dataset, column)
            if is_plain(self, "get_train_dataloader"):
                rows = self._remove_unused_columns(dataset, description="training")
                dataset = IdentifiedDataset(rows, ids)
            else:  # a loader of its own, which may insist on a datasets.Dataset
                dataset = dataset.add_column(column, np.asarray(ids))
        elif not isinstance(dataset, (datasets.Dataset, IterableDataset)):
            dataset = IdentifiedDataset(dataset, range(len(dataset)))
        if isinstance(dataset, IdentifiedDataset):
            collator = self._get_collator_with_removed_columns(collator, description="training")
        path = self.logits_path()
        teachers = TeacherCollator(collator, column, training_set.num_samples, path, self._teaching)
        keeps_all = distillation.logits_retention == "all"
        lenient, skips = distillation.resume_without_logits, not self.args.ignore_data_skip
        self._plan = Plan(
            Path(path), training_set, distillation.logits_dtype, keeps_all, lenient, skips, self._teaching
        )

        plain = self.train_dataset, self.data_collator, self._signature_columns
        try:
            # For this loader only: a save reads the user's collator, and evaluation wants the plain columns. A new
            # list, because the plain Trainer's collators keep a reference to the old one.
            self.train_dataset, self.data_collator = dataset, cast(Any, teachers)
            self._signature_columns = cast(Any, [*signature, column])
            return super().get_train_dataloader()
        finally:
            self.train_dataset, self.data_collator, self._signature_columns = plain

    def _get_dataloader(
        self, dataset: Any, description: str, batch_size: int, sampler_fn: Any = None, *args: Any, **kwargs: Any
    ) -> DataLoader:
        if isinstance(dataset, IdentifiedDataset) and sampler_fn is not None:
            # Samplers look into the rows, for their lengths or their labels: they get the user's own data set.
            of_identified, sampler_fn = sampler_fn, lambda identified: of_identified(identified.dataset)
        return super()._get_dataloader(dataset, description, batch_size, sampler_fn, *args, **kwargs)

    def logits_path(self) -> str:
        """The folder of the run's store, absolute; in a hyper-parameter search each trial has one."""
        default = os.path.join(str(self.args.output_dir), LOGITS_FOLDER)
        path = self.distillation.logits_dir or default
        if self._trial is not None:
            run = self._get_output_dir(self._trial)
            path = os.path.join(run, LOGITS_FOLDER) if path == default else os.path.join(path, os.path.basename(run))
        return os.path.abspath(path)

    def _problem_type(self) -> ProblemType | None:
        """What the user or the model's config says that the logits stand for."""
        config = getattr(self.model, "config", None)
        return self.distillation.problem_type or getattr(config, "problem_type", None)

    def _refuse_labels_outside(self, training_set: TrainingSet) -> None:
        """Raises ValueError where the model would see labels that should be classes of its, and are not."""
        labels, columns = training_set.labels, known_columns(self.model)
        if labels is None or columns is None or labels.ndim != 1 or labels.dtype.kind != "i":
            return
        # What the labels of a loss of the user's own mean is that one's business.
        if self.compute_loss_func is not None or self._has_own_loss or columns == 1:
            return
        if self._problem_type() not in (None, "single_label_classification"):
            return
        wrong = rows_with_labels_outside(labels, columns)
        if not wrong.size or not self._sees_labels_outside(wrong[:5].tolist(), columns):
            return
        assert training_set.ids is not None
        few = wrong[:5]
        raise ValueError(
            f"{wrong.size} training labels are outside of the model's {columns} classes, first "
            f"{labels[few].tolist()} for sample ids {training_set.ids[few].tolist()}: expected 0 to {columns - 1}. "
            "Give the model num_labels=..., or mend the labels."
        )

    def _sees_labels_outside(self, rows: list[int], columns: int) -> bool:
        """Whether what transforms and the collator make of these rows has labels that are no classes."""
        dataset = self._remove_unused_columns(cast(datasets.Dataset, self.train_dataset), description="training")
        column = self.distillation.sample_id_column
        with same_random_numbers():
            examples = [{k: v for k, v in dataset[row].items() if k != column} for row in rows]
            labels = cast(Any, self.data_collator)(examples).get("labels")
        return labels is not None and bool(rows_with_labels_outside(np.asarray(labels), columns).size)
