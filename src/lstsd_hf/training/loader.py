"""The training loader: adds sample ids and teachers to batches, and refuses unfit data before the first one."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import datasets
import numpy as np
import numpy.typing as npt
import torch
from accelerate import Accelerator
from accelerate.data_loader import DataLoaderDispatcher
from torch.utils.data import DataLoader, Dataset, IterableDataset
from transformers.utils import logging

from ..config import DefaultFolder, check_logits_dir
from ..method.rows import IGNORED
from ..paths import LOGITS_FOLDER
from .collator import IdentifiedDataset, TeacherCollator, TeachingEpochs
from .head import HeadMixin
from .overrides import is_plain, same_random_numbers
from .recorder import Plan
from .sample_ids import has_sample_ids, label_columns, sample_ids_of
from .training_set import TrainingSet, inspect_training_set, refuse_no_labels, rows_with_labels_outside

logger = logging.get_logger(__name__)


class LoaderMixin(HeadMixin):
    """The part of `LSTSDMixin` that makes the training loader."""

    _lstsd_teaching: TeachingEpochs
    _lstsd_plan: Plan | None
    _lstsd_trial: Any
    # Whether some samples may have no class (-100), so that the base loss leaves them out.
    _lstsd_some_unlabelled = False
    # Whether `__init__` is done. A parent's may ask for loaders, evaluate or log, and gets what is the parent's own.
    _lstsd_is_made = False
    # By text column of the user's file, the fingerprint of the texts in the training set, for the store.
    _lstsd_texts: Mapping[str, str] = MappingProxyType({})
    # The name of the label column in that file.
    _lstsd_label_column: str | None = None
    # The training set as the user gave it, while the parent makes a loader from the one with ids.
    _lstsd_given_dataset: Any = None

    def get_train_dataloader(self) -> DataLoader:
        """The parent's loader. Its batches also carry the sample ids and the teachers' logits."""
        if self.train_dataset is None or not self._lstsd_is_made:
            return super().get_train_dataloader()
        distillation, column = self.distillation, self.distillation.sample_id_column
        distillation.check()
        dataset: Any = self.train_dataset
        _refuse_many(dataset)
        self._set_signature_columns_if_needed()
        signature: Any = self._signature_columns  # typed as None, which it no longer is
        parents = type(self).__mro__[type(self).__mro__.index(LoaderMixin) :]
        plain_loader = is_plain(parents, "get_train_dataloader")
        if plain_loader and isinstance(dataset, datasets.Dataset):
            # If the model takes none of the columns, the plain Trainer says so here. Once there are ids, it would not.
            self._remove_unused_columns(dataset, description="training")
        taken = signature if plain_loader and self.args.remove_unused_columns else None
        label_names = (*self.label_names, *getattr(self.data_collator, "valid_label_columns", ()))
        head = self._lstsd_many_rows_head()
        if head is not None:
            refuse_no_labels(dataset, label_names)
        training_set = inspect_training_set(
            dataset, column, taken, distillation.num_samples, label_names, of_rows=head is not None
        )
        training_set = replace(training_set, texts=dict(self._lstsd_texts), label_column=self._lstsd_label_column)
        self._lstsd_refuse_labels_outside(training_set)
        if self._lstsd_head is None:  # else this is another loader, made during training
            labels = training_set.labels
            # Nothing is known ahead of a stream's labels, nor of a torch data set's.
            lacks = labels is None or (labels.ndim == 1 and labels.dtype.kind == "i" and (labels == IGNORED).any())
            self._lstsd_some_unlabelled = head is None and self._lstsd_known_columns() != 1 and bool(lacks)
            self._lstsd_open_outside(dataset, training_set)
            self._lstsd_assume_head(training_set.labels)
            teaching = TeachingEpochs(self._lstsd_teachers)
            if teaching.sources != self._lstsd_teaching.sources:  # else share them with a loader that was made before
                self._lstsd_teaching = teaching

        collator: Any = self.data_collator
        # Where the user chooses the columns, the ids may not be among them.
        picks = ("_remove_unused_columns", "_set_signature_columns_if_needed")
        keeps_ids = not plain_loader or all(is_plain(type(self).__mro__, name) for name in picks)
        if isinstance(dataset, datasets.Dataset) and not (keeps_ids and has_sample_ids(dataset, column)):
            ids = sample_ids_of(dataset, column)
            if column not in dataset.column_names and self.is_world_process_zero():
                logger.warning(
                    f"The training set has no column {column!r}, or lost it on the way (map with remove_columns): a "
                    "row's position is its sample id. A resumed run and the report need the rows in this order; to be "
                    "free to shuffle or select them, number them with add_sample_ids first, and keep the column."
                )
            if plain_loader:
                rows = self._remove_unused_columns(dataset, description="training")
                dataset = IdentifiedDataset(rows, ids)
            else:  # the parent makes its own loader, which may insist on a datasets.Dataset
                dataset = dataset.add_column(column, np.asarray(ids))
        elif not isinstance(dataset, (datasets.Dataset, IterableDataset)):
            dataset = IdentifiedDataset(dataset, range(len(dataset)))
        if isinstance(dataset, IdentifiedDataset):
            collator = self._get_collator_with_removed_columns(collator, description="training")
        path = self.logits_path()
        teachers = TeacherCollator(collator, column, training_set.num_samples, path, self._lstsd_teaching, head)
        output_dir = (
            self._get_output_dir(self._lstsd_trial) if self._lstsd_trial is not None else str(self.args.output_dir)
        )
        self._lstsd_plan = Plan(
            path=Path(path),
            output_dir=Path(output_dir).absolute(),
            training_set=training_set,
            dtype=distillation.logits_dtype,
            retention=distillation.logits_retention,
            history_budget=distillation.history_budget,
            resumes_without_logits=distillation.resume_without_logits,
            accepts_new_labels=distillation.accept_new_labels,
            skips_seen_batches=not self.args.ignore_data_skip,
            teaching=self._lstsd_teaching,
        )

        given = self.train_dataset, self.data_collator, self._signature_columns
        try:
            # Only while this loader is made, because saving reads the user's collator, and evaluation needs the plain
            # columns. A new list, because the plain Trainer's collators keep a reference to the old one.
            self.train_dataset, self.data_collator = dataset, cast(Any, teachers)
            self._signature_columns = cast(Any, [*signature, column])
            self._lstsd_given_dataset = given[0]
            with _undispatched(self.accelerator, head is not None):
                loader = super().get_train_dataloader()
            if head is not None:
                _refuse_dispatched(loader, self.accelerator.num_processes)
            return loader
        finally:
            self.train_dataset, self.data_collator, self._signature_columns = given
            self._lstsd_given_dataset = None

    def _get_dataloader(
        self, dataset: Any, description: str, batch_size: int, sampler_fn: Any = None, *args: Any, **kwargs: Any
    ) -> DataLoader:
        if isinstance(dataset, IdentifiedDataset) and sampler_fn is not None:
            # Samplers may read lengths or labels from the rows, so they get the user's own data set.
            of_identified, sampler_fn = (
                sampler_fn,
                lambda identified: self._lstsd_sampler_of(of_identified, identified),
            )
        return super()._get_dataloader(dataset, description, batch_size, sampler_fn, *args, **kwargs)

    def _lstsd_sampler_of(self, sampler_fn: Callable[[Any], Any], identified: IdentifiedDataset) -> Any:
        replaced, self.train_dataset = self.train_dataset, self._lstsd_given_dataset
        try:
            return sampler_fn(identified.wrapped)
        finally:
            self.train_dataset = replaced

    def prediction_step(self, model: torch.nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        # An evaluation set may have ids as well, and remove_unused_columns=False lets them through to here.
        settings = self.distillation if self._lstsd_is_made else cast(Any, self)._lstsd_given_settings()
        inputs.pop(settings.sample_id_column, None)
        return super().prediction_step(model, inputs, *args, **kwargs)

    def logits_path(self) -> str:
        """The folder of the run's store, absolute, with links resolved. Each trial of a search has its own."""
        default = os.path.join(str(self.args.output_dir), LOGITS_FOLDER)
        given = self.distillation.logits_dir
        path = default if given is None or isinstance(given, DefaultFolder) else given
        check_logits_dir(path, str(self.args.output_dir))  # which may have been set since the arguments were made
        if self._lstsd_trial is not None:
            run = self._get_output_dir(self._lstsd_trial)
            path = os.path.join(run, LOGITS_FOLDER) if path == default else os.path.join(path, os.path.basename(run))
        return os.path.realpath(path)

    def _lstsd_refuse_labels_outside(self, training_set: TrainingSet) -> None:
        """Raises ValueError if the model would see labels outside of its classes."""
        labels, columns = training_set.labels, self._lstsd_known_columns()
        if self._lstsd_many_rows_head() is not None:
            return
        if labels is None or columns is None or labels.ndim != 1 or labels.dtype.kind != "i":
            return
        # Only the user's own loss knows what its labels mean.
        if self.compute_loss_func is not None or columns == 1:
            return
        if self._lstsd_problem_type() not in (None, "single_label_classification"):
            return
        wrong = rows_with_labels_outside(labels, columns)
        if not wrong.size or not self._lstsd_sees_labels_outside(wrong, columns):
            return
        assert training_set.ids is not None
        few = wrong[:5]
        raise ValueError(
            f"{wrong.size} training labels are outside of the model's {columns} classes, first "
            f"{labels[few].tolist()} for sample ids {training_set.ids[few].tolist()}: expected 0 to {columns - 1}. "
            "Give the model num_labels=..., or correct the labels."
        )

    def _lstsd_labels_in(self, batch: Any) -> Any:
        return next((batch[name] for name in label_columns(self.label_names) if name in batch), None)

    def _lstsd_sees_labels_outside(self, wrong: npt.NDArray[np.integer[Any]], columns: int) -> bool:
        """Whether these rows still have labels that are not classes after transforms and the collator."""
        dataset = self._remove_unused_columns(cast(datasets.Dataset, self.train_dataset), description="training")
        # A whole batch, because a collator may need one: these rows, filled up with others if they are few.
        size = self.args.train_batch_size
        few = wrong[:size]
        others = np.setdiff1d(np.arange(min(len(dataset), 2 * size)), few)
        positions = np.concatenate([few, others])[:size].tolist()
        column = self.distillation.sample_id_column
        with same_random_numbers():
            examples = [{k: v for k, v in dataset[position].items() if k != column} for position in positions]
            batch: Any = cast(Any, self.data_collator)(examples)
        labels = self._lstsd_labels_in(batch)
        return labels is not None and bool(rows_with_labels_outside(np.asarray(labels), columns).size)


@contextmanager
def _undispatched(accelerator: Accelerator, is_ragged: bool) -> Iterator[None]:
    """Lets one process alone make ragged batches without dispatching them to itself, which would cut their rows."""
    config = accelerator.dataloader_config
    given = config.dispatch_batches
    if is_ragged and accelerator.num_processes == 1:
        config.dispatch_batches = False
    try:
        yield
    finally:
        config.dispatch_batches = given


def _refuse_dispatched(loader: DataLoader, processes: int) -> None:
    """Raises ValueError if one process makes the batches of all: it would cut ragged rows within a sample."""
    if processes > 1 and isinstance(loader, DataLoaderDispatcher):
        raise ValueError(
            f"The main process makes the batches of all {processes} processes (dispatch_batches), and cuts them as if "
            "each sample had one row: expected each process to make its own, because a sample's number of rows "
            "varies. Set accelerator_config={'dispatch_batches': False}; of a stream, each process then reads all "
            "samples, and keeps its own."
        )


def _refuse_many(dataset: Any) -> None:
    """Raises ValueError if the training set is a dictionary of several."""
    if isinstance(dataset, dict) and any(isinstance(part, (Dataset, datasets.Dataset)) for part in dataset.values()):
        raise ValueError(
            f"train_dataset is a dictionary of {sorted(map(str, dataset))}: expected one training set, because its "
            "sample ids name the rows of one. Join them with datasets.concatenate_datasets before add_sample_ids."
        )
