"""Sample ids: a number that names each row of a training set for good. No torch."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, cast

import datasets
import numpy as np
import numpy.typing as npt
import pyarrow as pa

AnyDataset = TypeVar(
    "AnyDataset", datasets.Dataset, datasets.IterableDataset, datasets.DatasetDict, datasets.IterableDatasetDict
)

LABEL_COLUMNS = ("labels", "label", "label_ids")

_FEW = 5


def label_columns(label_names: Sequence[str]) -> tuple[str, ...]:
    """Where labels are looked for, in order: under the trainer's `label_names`, then under the usual names.

    The usual names come first if one of them is among `label_names`. The plain Trainer takes every argument of
    `forward` for a label that has "label" in its name, and `label_weight` is none.
    """
    is_usual = not {*LABEL_COLUMNS}.isdisjoint(label_names)
    return (*LABEL_COLUMNS, *label_names) if is_usual else (*label_names, *LABEL_COLUMNS)


class SampleIdError(ValueError):
    """The sample ids are missing, repeated, or not valid."""


def add_sample_ids(dataset: AnyDataset, column: str = "sample_id") -> AnyDataset:
    """Adds an int64 column that names each row for good: 0 to N-1 in the data set's current order.

    Later `shuffle`, `select`, `filter` and `train_test_split` keep a row's id. Each split of a dictionary is numbered
    on its own.

    Raises:
        ValueError: the column exists already, or a streamed data set has several shards, so that each worker would
            number its own rows from 0.
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
    # Without the format, because a transform of the data set must not run here, and its result must not be written.
    bare = dataset.with_format(None)
    if len(bare):
        numbered = bare.map(_number, with_indices=True, batched=True, fn_kwargs={"column": column})
    else:  # of which `map` makes no column
        numbered = bare.add_column(column, np.empty(0, np.int64))
    style: dict[str, Any] = dataset.format
    columns = None if len(style["columns"]) == len(dataset.column_names) else [*style["columns"], column]
    if style["type"] == "custom":
        return numbered.with_transform(style["format_kwargs"]["transform"], columns, style["output_all_columns"])
    return numbered.with_format(style["type"], columns, style["output_all_columns"], **style["format_kwargs"])


def _number(batch: Mapping[str, list[Any]], indices: list[int], column: str) -> dict[str, list[int]]:
    if column in batch:  # a stream may learn its columns only from its rows
        raise ValueError(f"The data set has a column {column!r} already: its ids stay. Name another column.")
    return {column: indices}


def has_sample_ids(dataset: Any, column: str) -> bool:
    """Whether the rows that the collator gets from a `datasets.Dataset` carry the id column."""
    shown = dataset.format
    return shown["type"] != "custom" and column in shown["columns"]


def sample_ids_of(dataset: datasets.Dataset, column: str) -> npt.NDArray[np.int64] | range:
    """The id of each row: what its id column holds, or its position if there is no such column.

    Raises:
        SampleIdError: an id is missing, negative, above 2^63 - 1, repeated, or not an integer. The message names the
            first such rows.
    """
    if column not in dataset.column_names:
        return range(len(dataset))
    values = dataset.with_format("arrow").select_columns([column])[:][column].combine_chunks()
    if not pa.types.is_integer(values.type):
        raise SampleIdError(
            f"Column {column!r} holds {values.type}: expected integer sample ids. Use add_sample_ids with another "
            "column name, and give that name as sample_id_column."
        )
    if values.null_count:
        rows = np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))[:_FEW].tolist()
        raise SampleIdError(f"Column {column!r} has no sample id in {values.null_count} rows, first in rows {rows}.")
    found = values.to_numpy()
    _refuse_ids(found, found < 0, column, "negative")
    _refuse_ids(found, found > np.uint64(2**63 - 1), column, "too large")
    ids = found.astype(np.int64)
    refuse_repeated_ids(ids, column)
    return ids


def refuse_repeated_ids(ids: npt.NDArray[np.int64], column: str) -> None:
    """Raises SampleIdError if two rows have one id; it names the first such rows."""
    unique, first = np.unique(ids, return_index=True)
    if len(unique) < len(ids):
        repeated = np.ones(len(ids), bool)
        repeated[first] = False
        _refuse_ids(ids, repeated, column, "repeated")


def _refuse_ids(ids: npt.NDArray[Any], wrong: npt.NDArray[np.bool_], column: str, what: str) -> None:
    if wrong.any():
        rows = np.flatnonzero(wrong)[:_FEW]
        raise SampleIdError(
            f"Column {column!r} holds {int(wrong.sum())} {what} sample ids, first {ids[rows].tolist()} in rows "
            f"{rows.tolist()}: expected one integer from 0 to 2^63 - 1 for each row, each once. Where sets were "
            "joined, or rows repeated, after they were numbered, drop the column and number the whole: "
            f"add_sample_ids(dataset.remove_columns({column!r}), {column!r}). To join sets, use "
            "datasets.concatenate_datasets rather than ConcatDataset."
        )
