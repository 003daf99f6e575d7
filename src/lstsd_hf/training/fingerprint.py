"""The fingerprint of a training set: equal for equal rows, on every machine and in every order of the rows."""

import os
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from ..store.ragged import NO_LABEL
from .sample_ids import LABEL_COLUMNS

_ROWS_AT_ONCE = 10_000
_NULL = np.uint64(0x9E3779B97F4A7C15)  # stands for a missing value


def fingerprint(
    dataset: datasets.Dataset, ids: npt.NDArray[np.int64], columns: Iterable[str], labels: Iterable[str] = ()
) -> str:
    """A hash over (id, label, model inputs) of all rows that does not depend on the order of the rows.

    Each row is hashed with xxh3, and the hashes are summed modulo 2^64. So the rows need not be sorted, and only one
    batch is in memory.

    Args:
        dataset: The training set.
        ids: int64 (N,): the id of each row.
        columns: The columns to hash, labels and inputs.
        labels: Which of these are labels. A second hash leaves them out, for `differ_in_labels`.
    """
    names = sorted(columns)
    inputs = [name for name in names if name not in set(labels)]
    kinds = {"xxh3": names} if inputs == names else {"xxh3": names, "inputs": inputs}
    seeds = {kind: xxhash.xxh3_64_intdigest("\0".join(kept).encode()) for kind, kept in kinds.items()}
    totals = dict.fromkeys(kinds, 0)
    batches = dataset.with_format("arrow").select_columns(names).iter(_ROWS_AT_ONCE)
    for start, table in zip(range(0, len(ids), _ROWS_AT_ONCE), batches, strict=True):
        cells = {name: _row_hashes(table[name].combine_chunks()) for name in names}
        numbers = ids[start : start + len(table)].view(np.uint64)
        for kind, kept in kinds.items():
            hashes = _hash_rows(np.column_stack([numbers, *(cells[name] for name in kept)]), seeds[kind])
            totals[kind] = (totals[kind] + int(hashes.sum(dtype=np.uint64))) % 2**64
    return ", ".join([f"{len(ids)} rows", *(f"{kind} {total:016x}" for kind, total in totals.items())])


def input_hashes(dataset: datasets.Dataset, columns: Sequence[str]) -> npt.NDArray[np.uint64]:
    """uint64 (N, columns): a hash of each cell of these columns, equal for equal cells on every machine."""
    batches = dataset.with_format("arrow").select_columns(list(columns)).iter(_ROWS_AT_ONCE)
    found = [np.column_stack([_row_hashes(table[name].combine_chunks()) for name in columns]) for table in batches]
    return np.concatenate(found)


def labelled_hashes(dataset: datasets.Dataset, problem_type: str) -> npt.NDArray[np.uint64] | None:
    """uint64 (N,): a hash of which tokens of each row have a label, and so a row of predictions.

    An encoder-decoder model also reads the labels, so theirs is a hash of the labels up to the last one.

    Args:
        dataset: The data set.
        problem_type: Of the model; see `heads.ProblemType`.

    Returns:
        None if rows are not those of labelled tokens, or if a transform or the data collator makes the labels.
    """
    name = next((name for name in LABEL_COLUMNS if name in dataset.column_names), None)
    is_of_tokens = problem_type in ("token_classification", "causal_lm", "seq2seq_lm", "masked_lm")
    if name is None or not is_of_tokens or dataset.format["type"] == "custom":
        return None
    kind = dataset.features.arrow_schema.field(name).type
    if not is_list(kind) or not pa.types.is_integer(kind.value_type):
        return None
    hashes = []
    begin = 1 if problem_type == "causal_lm" else 0  # nothing predicts the first token
    for table in dataset.with_format("arrow").select_columns([name]).iter(_ROWS_AT_ONCE):
        for cells in table[name].to_pylist():
            labels = np.asarray(cells or [], np.int64)
            held = np.flatnonzero(labels[begin:] != NO_LABEL)
            if problem_type == "seq2seq_lm":
                held = labels[: held[-1] + 1] if len(held) else labels[:0]
            hashes.append(xxhash.xxh3_64_intdigest(np.ascontiguousarray(held, np.int64).tobytes()))
    return np.array(hashes, np.uint64)


def is_same(one: str, other: str) -> bool:
    """Whether two fingerprints are of equal rows. Stores from before 0.2 have no hash of the inputs to compare."""
    return _hashes(one)[0] == _hashes(other)[0]


def differ_in_labels(one: str, other: str) -> bool:
    """Whether two fingerprints are of rows that differ in their labels, and in nothing else."""
    (whole, inputs), (other_whole, other_inputs) = _hashes(one), _hashes(other)
    return whole != other_whole and inputs is not None and inputs == other_inputs


def same_inputs(one: str, other: str) -> bool:
    """Whether two fingerprints are of equal inputs, whatever the labels are."""
    (whole, inputs), (other_whole, other_inputs) = _hashes(one), _hashes(other)
    # Without labels, all columns are inputs, and their hash is that of the inputs.
    of_whole, of_other = (tuple(name.split(", xxh3 ")) for name in (whole, other_whole))
    return (inputs or of_whole) == (other_inputs or of_other)


def _hashes(name: str) -> tuple[str, tuple[str, str] | None]:
    """A fingerprint's part on all columns; and its number of rows with the hash of the inputs, if it has that hash."""
    whole, found, inputs = name.partition(", inputs ")
    return whole, (whole.partition(",")[0], inputs) if found else None


def is_list(kind: pa.DataType) -> bool:
    """Whether a column has a list in each row, of any length or of one length."""
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


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
        if parts.keys() == {"bytes", "path"}:  # an image or a sound: its folder differs between machines
            names = [path and os.path.basename(path) for path in parts["path"].to_pylist()]
            parts["path"] = pa.array(names, pa.string())
        cells = [_row_hashes(part) for part in parts.values()]
        hashes = _hash_rows(np.column_stack(cells)) if cells else np.zeros(len(array), np.uint64)
    elif is_list(kind):
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
