"""What the store must know about a training set, read before the first step."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch

from ..method.rows import IGNORED
from .fingerprint import fingerprint
from .sample_ids import has_sample_ids, label_columns, refuse_repeated_ids, sample_ids_of

_AT_ONCE = 1000  # rows


@dataclass(frozen=True)
class TrainingSet:
    """What the store must know about a training set.

    Attributes:
        num_samples: The largest sample id plus 1.
        fingerprint: Equal for equal training sets, on every machine and in every order of the rows.
        ids: int64 (N,): the id of each row; None if they are not known ahead, or the store has them already.
        labels: (N, ...): the label of each row, integers or floats, before any transform; None if they cannot be read
            ahead, are not numbers, or the store has them already.
        texts: By text column of the user's file, the fingerprint of its texts; empty if there is no such file.
        label_column: The name of the label column in that file.
        streamed: Whether the rows come from an iterable, so that their ids can only be checked as they come.
    """

    num_samples: int
    fingerprint: str
    ids: npt.NDArray[np.int64] | None = None
    labels: npt.NDArray[Any] | None = None
    texts: dict[str, str] = field(default_factory=dict)
    label_column: str | None = None
    streamed: bool = False

    def without_rows(self) -> "TrainingSet":
        """The same without ids and labels, which take memory for each row."""
        return replace(self, ids=None, labels=None)


def inspect_training_set(
    dataset: Any,
    column: str,
    columns: Sequence[str] | None = None,
    num_samples: int | None = None,
    label_names: Sequence[str] = (),
    *,
    of_rows: bool = False,
) -> TrainingSet:
    """Reads a training set ahead, as far as that has no side effects.

    Args:
        dataset: A `datasets.Dataset` is read in full, at a few seconds per million rows. Of a torch data set only the
            length is read, because its items may be slow to make, and random; of `Subset` and `ConcatDataset` also
            the ids in the data sets that they are made of. Of an iterable nothing is read.
        column: The id column.
        columns: The columns that the model takes; None for all of them.
        num_samples: The largest id plus 1, for an iterable, or for a torch data set whose items have their own ids,
            which cannot be read ahead.
            The store has a row for each number below it, because the ids are not known ahead.
        label_names: The trainer's names for the labels; see `label_columns`.
        of_rows: Whether the labels are those of a sample's rows. They are recorded with the rows, and not read here.

    Raises:
        SampleIdError: see `sample_ids_of`; two parts of a torch data set have an id in common.
        ValueError: the set is empty, or it is an iterable without `num_samples`, or one known to lack the id column.
    """
    if isinstance(dataset, torch.utils.data.IterableDataset):
        known = dataset.column_names if isinstance(dataset, datasets.IterableDataset) else None
        if num_samples is None or (known is not None and column not in known):
            raise ValueError(
                f"The training set is an iterable with columns {known}, and num_samples={num_samples}: expected "
                f"a column {column!r} of integer ids, the same in every epoch, and the largest id plus 1 as "
                "num_samples. The position of a row in a stream is no stable name for it. Use add_sample_ids, and "
                "LSTSDConfig(num_samples=...)."
            )
        return TrainingSet(num_samples, f"stream of {num_samples}", streamed=True)
    if not len(dataset):
        raise ValueError("The training set is empty: expected at least one row.")
    if not isinstance(dataset, datasets.Dataset):
        parts = _ids_in_parts(dataset, column)
        if parts is not None:
            refuse_repeated_ids(parts, column)
            num_samples = num_samples or int(parts.max()) + 1
        return TrainingSet(num_samples or len(dataset), f"torch data set of {len(dataset)}")
    ids = np.asarray(sample_ids_of(dataset, column))
    kept = [name for name in dataset.column_names if columns is None or name in columns]
    # It is not known which columns a transform reads. If the model takes none, the Trainer says so in its own words.
    if dataset.format["type"] == "custom" or not set(kept) - {column}:
        kept = dataset.column_names
    labels = {*label_columns(label_names)}.intersection(kept)
    name = fingerprint(dataset, ids, [name for name in kept if name != column], labels)
    return TrainingSet(int(ids.max()) + 1, name, ids, None if of_rows else labels_of(dataset, label_names))


def _ids_in_parts(dataset: Any, column: str) -> npt.NDArray[np.int64] | None:
    """The id of each row of a `Subset` or `ConcatDataset`; None if the rows of a part do not carry their ids."""
    if isinstance(dataset, datasets.Dataset):
        return np.asarray(sample_ids_of(dataset, column)) if has_sample_ids(dataset, column) else None
    if isinstance(dataset, torch.utils.data.Subset):
        ids = _ids_in_parts(dataset.dataset, column)
        return None if ids is None else ids[np.asarray(dataset.indices, np.int64)]
    if isinstance(dataset, torch.utils.data.ConcatDataset):
        parts = [_ids_in_parts(part, column) for part in dataset.datasets]
        known = [part for part in parts if part is not None]
        return np.concatenate(known) if len(known) == len(parts) else None
    return None


def labels_of(dataset: datasets.Dataset, label_names: Sequence[str] = ()) -> npt.NDArray[Any] | None:
    """The label of each row; see `TrainingSet.labels` and `label_columns`."""
    name = next((name for name in label_columns(label_names) if name in dataset.column_names), None)
    if name is None:
        return None
    values = dataset.with_format("numpy").select_columns([name])[:][name]
    if values.dtype.kind not in "biuf":
        return None
    return values.astype(np.float32 if values.dtype.kind == "f" else np.int64)


def refuse_no_labels(dataset: Any, label_names: Sequence[str] = ()) -> None:
    """Raises ValueError if a data set has a label for each token, and all of them are -100, which losses ignore.

    Reads up to the first other label. A data set with a transform is not checked.
    """
    if not isinstance(dataset, datasets.Dataset) or dataset.format["type"] == "custom":
        return
    name = next((name for name in label_columns(label_names) if name in dataset.column_names), None)
    if name is None or not pa.types.is_list(dataset.features.arrow_schema.field(name).type):
        return
    for batch in dataset.select_columns([name]).with_format("arrow").iter(_AT_ONCE):
        values = batch[name].combine_chunks().flatten()
        if not pa.types.is_integer(values.type) or pc.any(pc.not_equal(values, IGNORED)).as_py():
            return
    raise ValueError(
        f"All labels in column {name!r} of the training set are {IGNORED}, or there are none: expected a class for "
        "some tokens at least. Labels of -100 are left out of the loss; were they lost where the data set was "
        "tokenised, for instance by aligning words with tokens?"
    )


def rows_with_labels_outside(labels: npt.NDArray[Any], num_labels: int) -> npt.NDArray[np.integer[Any]]:
    """The positions of integer labels that are not a class; -100, which losses ignore, is allowed."""
    return np.flatnonzero(((labels < 0) & (labels != -100)) | (labels >= num_labels))
