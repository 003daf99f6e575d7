"""The way of the data: stable sample ids, the training set's fingerprint, the collator that brings the teachers."""

import operator
import os
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar, cast

import datasets
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
import xxhash

from .store import LogitsStore

AnyDataset = TypeVar(
    "AnyDataset", datasets.Dataset, datasets.IterableDataset, datasets.DatasetDict, datasets.IterableDatasetDict
)

# What the collator adds to a batch, and the trainer takes out before the model sees it.
SAMPLE_IDS = "lstsd_sample_ids"
TEACHER_LOGITS = {"long_term": "lstsd_long_term_logits", "short_term": "lstsd_short_term_logits"}

LABEL_COLUMNS = ("labels", "label", "label_ids")

_ROWS_AT_ONCE = 10_000
_FEW = 5
_NULL = np.uint64(0x9E3779B97F4A7C15)  # stands for a missing value


class SampleIdError(ValueError):
    """The sample ids are missing, repeated, or no ids."""


def add_sample_ids(dataset: AnyDataset, column: str = "sample_id") -> AnyDataset:
    """Adds an int64 column that names each row for good: 0 to N-1 in the data set's present order.

    Later `shuffle`, `select`, `filter` and `train_test_split` keep a row's id. Each split of a dictionary is numbered
    on its own.

    Raises:
        ValueError: the column exists already, or a streamed data set has several shards, whose rows each worker would
            number from 0.
    """
    if isinstance(dataset, (datasets.DatasetDict, datasets.IterableDatasetDict)):
        splits = {name: add_sample_ids(split, column) for name, split in dataset.items()}
        return cast(AnyDataset, type(dataset)(splits))
    if column in (dataset.column_names or ()):
        raise ValueError(f"The data set has a column {column!r} already: its ids stay. Name another column.")
    if isinstance(dataset, datasets.IterableDataset):
        if dataset.num_shards > 1:
            raise ValueError(
                f"The streamed data set has {dataset.num_shards} shards, and each worker would number its own from 0: "
                "expected 1 shard. Give every row its id where the shards are written."
            )
        return dataset.map(_number, with_indices=True, batched=True, fn_kwargs={"column": column})
    # Without the format: a transform set on the data set must not run here, nor its result be written.
    bare = dataset.with_format(None)
    numbered = bare.map(_number, with_indices=True, batched=True, fn_kwargs={"column": column})
    style: dict[str, Any] = dataset.format
    columns = None if len(style["columns"]) == len(dataset.column_names) else [*style["columns"], column]
    if style["type"] == "custom":
        return numbered.with_transform(style["format_kwargs"]["transform"], columns, style["output_all_columns"])
    return numbered.with_format(style["type"], columns, style["output_all_columns"], **style["format_kwargs"])


def _number(batch: Mapping[str, list[Any]], indices: list[int], column: str) -> dict[str, list[int]]:
    if column in batch:  # a stream may learn its columns only from its rows
        raise ValueError(f"The data set has a column {column!r} already: its ids stay. Name another column.")
    return {column: indices}


# ---- what the store must know of a training set


@dataclass(frozen=True)
class TrainingSet:
    """What the store must know of a training set.

    Attributes:
        num_samples: The largest sample id plus 1.
        fingerprint: Equal for equal training sets, on every machine and in every order of the rows.
        ids: (N,) the id of each row, where they are known ahead, and until the store has the labels.
        labels: (N, ...) the label of each row, integers or floats; None where the set cannot be read ahead, or has no
            numbers as labels.
        streamed: Whether the rows come from an iterable, so that their ids can only be checked as they come.
    """

    num_samples: int
    fingerprint: str
    ids: npt.NDArray[np.int64] | None = None
    labels: npt.NDArray[Any] | None = None
    streamed: bool = False

    def labels_by_id(self) -> npt.NDArray[Any] | None:
        """(num_samples, ...), row i for sample id i; ids that the set does not have get -100, or NaN among floats."""
        if self.labels is None:
            return None
        fill = np.nan if self.labels.dtype.kind == "f" else -100
        labels = np.full((self.num_samples, *self.labels.shape[1:]), fill, self.labels.dtype)
        labels[self.ids] = self.labels
        return labels

    def without_rows(self) -> "TrainingSet":
        """The same without what takes memory for each row."""
        return replace(self, ids=None, labels=None)


def has_sample_ids(dataset: Any, column: str) -> bool:
    """Whether the rows that the collator gets from a `datasets.Dataset` carry the id column."""
    shown = dataset.format
    return shown["type"] != "custom" and column in shown["columns"]


def sample_ids_of(dataset: datasets.Dataset, column: str) -> npt.NDArray[np.int64] | range:
    """The id of each row: what its id column holds, or its position where there is no such column.

    Raises:
        SampleIdError: an id is missing, negative, repeated, or no integer; the message names the first offenders.
    """
    if column not in dataset.column_names:
        return range(len(dataset))
    values = dataset.with_format("arrow").select_columns([column])[:][column].combine_chunks()
    if not pa.types.is_integer(values.type):
        raise SampleIdError(
            f"Column {column!r} holds {values.type}: expected integer sample ids. Use add_sample_ids, or name another "
            "sample_id_column."
        )
    if values.null_count:
        rows = np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))[:_FEW].tolist()
        raise SampleIdError(f"Column {column!r} has no sample id in {values.null_count} rows, first in rows {rows}.")
    ids = values.to_numpy().astype(np.int64)
    _refuse_ids(ids, ids < 0, column, "negative")
    unique, first = np.unique(ids, return_index=True)
    if len(unique) < len(ids):
        repeated = np.ones(len(ids), bool)
        repeated[first] = False
        _refuse_ids(ids, repeated, column, "repeated")
    return ids


def _refuse_ids(ids: npt.NDArray[np.int64], wrong: npt.NDArray[np.bool_], column: str, what: str) -> None:
    if wrong.any():
        rows = np.flatnonzero(wrong)[:_FEW]
        raise SampleIdError(
            f"Column {column!r} holds {int(wrong.sum())} {what} sample ids, first {ids[rows].tolist()} in rows "
            f"{rows.tolist()}: expected one integer of at least 0 for each row, each once. Use add_sample_ids on the "
            "data set as it was loaded, before it is shuffled, repeated or joined."
        )


def inspect_training_set(
    dataset: Any, column: str, columns: Sequence[str] | None, num_samples: int | None
) -> TrainingSet:
    """Reads a training set ahead as far as that is free of side effects.

    Args:
        dataset: A `datasets.Dataset` is read in full, at a few seconds per million rows. Of a torch data set only the
            length is taken: its items may cost much to make, and may be random. Of an iterable nothing is taken.
        column: The id column.
        columns: The columns that the model takes; None: all of them.
        num_samples: The largest id plus 1: of an iterable, or of a torch data set whose items have ids of their own.

    Raises:
        SampleIdError: see `sample_ids_of`.
        ValueError: an iterable without `num_samples`, or known not to have the id column; an empty set.
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
        return TrainingSet(num_samples or len(dataset), f"torch data set of {len(dataset)}")
    ids = np.asarray(sample_ids_of(dataset, column))
    kept = [name for name in dataset.column_names if columns is None or name in columns]
    if dataset.format["type"] == "custom":  # which columns a transform reads is not known
        kept = dataset.column_names
    name = fingerprint(dataset, ids, [name for name in kept if name != column])
    return TrainingSet(int(ids.max()) + 1, name, ids, labels_of(dataset))


def labels_of(dataset: datasets.Dataset) -> npt.NDArray[Any] | None:
    """The label of each row; see `TrainingSet.labels`."""
    name = next((name for name in LABEL_COLUMNS if name in dataset.column_names), None)
    if name is None:
        return None
    values = dataset.with_format("numpy").select_columns([name])[:][name]
    if values.dtype.kind not in "iuf":
        return None
    return values.astype(np.float32 if values.dtype.kind == "f" else np.int64)


def refuse_labels_outside(training_set: TrainingSet, num_labels: int) -> None:
    """Raises ValueError, naming the first offenders, where an integer label is no class; -100 is ignored by losses."""
    ids, labels = training_set.ids, training_set.labels
    assert ids is not None
    assert labels is not None
    wrong = np.flatnonzero(((labels < 0) & (labels != -100)) | (labels >= num_labels))
    if wrong.size:
        few = wrong[:_FEW]
        raise ValueError(
            f"{wrong.size} training labels are outside of the model's {num_labels} classes, first "
            f"{labels[few].tolist()} for sample ids {ids[few].tolist()}: expected 0 to {num_labels - 1}. Give the "
            "model num_labels=..., or mend the labels."
        )


def fingerprint(dataset: datasets.Dataset, ids: npt.NDArray[np.int64], columns: Iterable[str]) -> str:
    """A hash over (id, label, model inputs) of all rows that does not depend on the order of the rows.

    Each row is hashed with xxh3, and the sum of the hashes modulo 2^64 is taken; so the rows need not be sorted, and
    nothing is held in memory but one batch.
    """
    names = sorted(columns)
    seed = xxhash.xxh3_64_intdigest("\0".join(names).encode())
    total = 0
    batches = dataset.with_format("arrow").select_columns(names).iter(_ROWS_AT_ONCE)
    for start, table in zip(range(0, len(ids), _ROWS_AT_ONCE), batches, strict=True):
        cells = [_row_hashes(table[name].combine_chunks()) for name in names]
        rows = np.column_stack([ids[start : start + len(table)].view(np.uint64), *cells])
        total = (total + int(_hash_rows(rows, seed).sum(dtype=np.uint64))) % 2**64
    return f"{len(ids)} rows, xxh3 {total:016x}"


def _row_hashes(array: Any) -> npt.NDArray[np.uint64]:
    """A number for each value of an Arrow array, equal for equal values, whatever the width of their type."""
    if isinstance(array, pa.ChunkedArray):  # what combine_chunks leaves of a column without rows
        array = pa.concat_arrays(array.chunks)
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    kind = array.type
    if pa.types.is_struct(kind):
        parts = dict(zip((field.name for field in kind), array.flatten(), strict=True))
        if parts.keys() == {"bytes", "path"}:  # an image or a sound: where it lies differs between machines
            names = [path and os.path.basename(path) for path in parts["path"].to_pylist()]
            parts["path"] = pa.array(names, pa.string())
        hashes = _hash_rows(np.column_stack([_row_hashes(part) for part in parts.values()]))
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy()
        hashes = _hash_slices(_row_hashes(array.flatten()), np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]))
    elif pa.types.is_null(kind):
        hashes = np.zeros(len(array), np.uint64)
    elif pa.types.is_boolean(kind) or pa.types.is_integer(kind):
        numbers = array.cast(pa.int8()) if pa.types.is_boolean(kind) else array
        hashes = pc.fill_null(numbers, 0).to_numpy().astype(np.int64).view(np.uint64)
    elif pa.types.is_floating(kind):
        hashes = pc.fill_null(array, np.nan).to_numpy().astype(np.float64).view(np.uint64)
    elif pa.types.is_large_binary(kind):
        values = (xxhash.xxh3_64_intdigest(value or b"") for value in array.to_pylist())
        hashes = np.fromiter(values, np.uint64, len(array))
    elif pa.types.is_large_string(kind) or pa.types.is_binary(kind) or pa.types.is_fixed_size_binary(kind):
        hashes = _row_hashes(array.cast(pa.large_binary()))
    else:  # short strings, times, decimals
        hashes = _row_hashes(array.cast(pa.large_string()))
    if array.null_count:
        hashes = np.where(array.is_null().to_numpy(zero_copy_only=False), _NULL, hashes)
    return hashes


def _hash_rows(values: npt.NDArray[np.uint64], seed: int = 0) -> npt.NDArray[np.uint64]:
    """xxh3 of each row of a matrix."""
    return _hash_slices(values, np.arange(len(values) + 1) * values.shape[1], seed)


def _hash_slices(
    values: npt.NDArray[np.uint64], bounds: npt.NDArray[np.int64], seed: int = 0
) -> npt.NDArray[np.uint64]:
    """xxh3 of the flattened values from bounds[i] to bounds[i + 1], for each i."""
    data = memoryview(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
    ends = (bounds * values.itemsize).tolist()
    digest = xxhash.xxh3_64_intdigest
    hashes = (digest(data[start:end], seed) for start, end in pairwise(ends))
    return np.fromiter(hashes, np.uint64, len(ends) - 1)


# ---- the collator


class IdentifiedRow(NamedTuple):
    """An item of a map-style data set, and its position there, or its id where that is known."""

    position: int
    row: Any


class IdentifiedDataset(torch.utils.data.Dataset[IdentifiedRow]):
    """Names the items of a map-style data set, without a copy: an item is what it was, beside its id."""

    def __init__(self, dataset: Any, ids: Sequence[int] | npt.NDArray[np.int64]) -> None:
        self.dataset = dataset
        self.ids = ids

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> IdentifiedRow:
        return IdentifiedRow(int(self.ids[index]), self.dataset[index])

    def __getitems__(self, indices: list[int]) -> list[IdentifiedRow]:
        # The data loader's way to fetch a batch at once, which `datasets.Dataset` has and many torch data sets do not.
        if hasattr(self.dataset, "__getitems__"):
            rows = self.dataset.__getitems__(indices)
        else:
            rows = [self.dataset[index] for index in indices]
        return [IdentifiedRow(int(self.ids[index]), row) for index, row in zip(indices, rows, strict=True)]


class SentByValue(torch.Tensor):
    """A tensor that arrives in another process as a plain one, sent by value.

    PyTorch sends a file descriptor for each tensor instead, which costs the training process half a millisecond per
    tensor, however small.
    """

    @classmethod
    def from_numpy(cls, array: npt.NDArray[Any]) -> "SentByValue":
        return torch.from_numpy(array).as_subclass(cls)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return torch.from_numpy, (self.numpy(),)


class TeacherCollator:
    """Takes the sample ids out, lets another collator make the batch, and adds the ids and both teachers to it.

    It may run in worker processes, forked or spawned, persistent or not: it carries the store's path and a tensor in
    shared memory, and opens the store where and when it first reads.

    Attributes:
        epochs: int64 tensor of shape (2,) in shared memory: the epochs that teach, long-term and short-term; -1: none.
            Whoever trains sets it at the start of an epoch, before a batch of that epoch is fetched.
    """

    def __init__(self, collator: Callable[[list[Any]], Any], column: str, num_samples: int, path: str) -> None:
        self.collator = collator
        self.epochs = torch.full((2,), -1, dtype=torch.int64).share_memory_()
        self._column = column
        self._num_samples = num_samples
        self._path = path
        self._store: LogitsStore | None = None
        self._opened_for: tuple[int, ...] = ()

    def __getstate__(self) -> dict[str, Any]:
        # A memory map would be pickled as a full copy.
        return {**self.__dict__, "_store": None, "_opened_for": ()}

    def __call__(self, features: list[Any]) -> MutableMapping[str, Any]:
        """Makes a batch of B rows.

        Raises:
            SampleIdError: a row has no id, or one that is no integer in [0, num_samples), or that of another row.
            TypeError: the wrapped collator did not return a mapping.
        """
        identified = isinstance(features[0], IdentifiedRow)
        rows = [feature.row for feature in features] if identified else features
        if identified and not any(self._has_id(row) for row in rows):
            ids = [feature.position for feature in features]
        else:
            ids = [self._id_of(row) for row in rows]
            if identified:
                self._refuse_shared_ids(ids, features)
            rows = [{key: value for key, value in row.items() if key != self._column} for row in rows]
        batch = self.collator(rows)
        if not isinstance(batch, MutableMapping):
            raise TypeError(f"The data collator returned a {type(batch).__name__}: expected a mapping of tensors.")
        sample_ids = np.array(ids, np.int64)
        to_tensor = torch.from_numpy if torch.utils.data.get_worker_info() is None else SentByValue.from_numpy
        batch[SAMPLE_IDS] = to_tensor(sample_ids)
        teaching = tuple(self.epochs.tolist())
        for key, epoch in zip(TEACHER_LOGITS.values(), teaching, strict=True):
            if epoch >= 0:
                batch[key] = to_tensor(self._open(teaching).read(epoch, sample_ids))
        return batch

    def _open(self, teaching: tuple[int, ...]) -> LogitsStore:
        # Anew for each pair of teachers: the maps of epochs that were dropped would hold on to their disk space.
        if self._store is None or self._opened_for != teaching:
            self._store, self._opened_for = LogitsStore.open(self._path), teaching
        return self._store

    def _has_id(self, row: Any) -> bool:
        return isinstance(row, Mapping) and self._column in row

    def _id_of(self, row: Any) -> int:
        if not self._has_id(row):
            found = sorted(row) if isinstance(row, Mapping) else type(row).__name__
            raise SampleIdError(
                f"A training row has no {self._column!r}: expected an integer sample id in every row, found {found}. "
                "Add it with add_sample_ids, or where the rows are made."
            )
        try:
            sample_id = operator.index(row[self._column])
        except TypeError as error:
            raise SampleIdError(
                f"A training row has {self._column}={row[self._column]!r}: expected an integer sample id."
            ) from error
        if not 0 <= sample_id < self._num_samples:
            raise SampleIdError(
                f"A training row has {self._column}={sample_id}: expected 0 to {self._num_samples - 1}. Give the "
                "largest id plus 1 as num_samples."
            )
        return sample_id

    def _refuse_shared_ids(self, ids: list[int], features: list[IdentifiedRow]) -> None:
        # A sampler may well draw one row twice; two rows of one name are an error.
        owner: dict[int, int] = {}
        for sample_id, feature in zip(ids, features, strict=True):
            if owner.setdefault(sample_id, feature.position) != feature.position:
                raise SampleIdError(
                    f"Rows {owner[sample_id]} and {feature.position} of the training set share "
                    f"{self._column}={sample_id}: expected an id of its own for each row."
                )
