"""Samples with a variable number of rows: tokens, positions of a feature, predicted tokens of a language model.

    epoch-0000.npy           (R, *row_shape): all rows of the epoch, sample by sample
    epoch-0000.offsets.npy   (N + 1,) int64: sample i has the rows from offsets[i] to offsets[i + 1]; none: no record

and, where a row keeps the k largest of many classes, `TopKRows`:

    epoch-0000.npy           (R, k): log probabilities under the whole vocabulary, the largest first
    epoch-0000.classes.npy   (R, k) uint16, or uint32 for a vocabulary of more than 65,536: the classes they are of
    epoch-0000.rest.npy      (R,): the logarithm of the mass of all other classes

In a journal a row is one record of all its parts, and the id of its sample stands beside each row.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .errors import StoreCorruptionError
from .files import CHUNK_BYTES
from .ids import SampleIndex
from .journal import ID, Block, Journal
from .manifest import DTYPES
from .npy import NpyWriter, map_array, reason_of
from .rows import VALUES, blocks_in_order, clip, samples_of

Array = npt.NDArray[Any]

OFFSETS = "offsets"
EXTRA_PARTS = ("classes", "rest")  # of a row that keeps the k largest


class Rows(NamedTuple):
    """The rows of B samples.

    Attributes:
        parts: By name, each (R, ...): "values", and what else the layout keeps of a row.
        counts: int64 (B,): how many of the R rows each sample has, in order.
    """

    parts: dict[str, Array]
    counts: Array

    def aligned(self, counts: Array) -> dict[str, Array]:
        """The parts for samples with `counts` (B,) rows: NaN, or 0 among integers, where a sample has another number.

        Rows are never moved to other places: a sample has all its rows or none.
        """
        if np.array_equal(self.counts, counts):
            return self.parts
        same = self.counts == counts
        to, source = np.repeat(same, counts), np.repeat(same, self.counts)
        aligned = {}
        for name, part in self.parts.items():
            rows = np.full((int(counts.sum()), *part.shape[1:]), np.nan if part.dtype.kind == "f" else 0, part.dtype)
            rows[to] = part[source]
            aligned[name] = rows
        return aligned


def each_once(ids: Array, counts: Array, parts: Mapping[str, Array]) -> tuple[Array, dict[str, Array]]:
    """Leaves of a batch the first of equal samples, which an evenly padded batch may hold twice.

    Args:
        ids: (B,) sample ids.
        counts: (B,) how many rows each has.
        parts: Of the R rows.

    Returns:
        The sample id of each row that is left, and the parts of these rows.
    """
    by_row = np.repeat(ids, counts)
    _, first = np.unique(ids, return_index=True)
    if len(first) == len(ids):
        return by_row, dict(parts)
    kept = np.zeros(len(ids), np.bool_)
    kept[first] = True
    rows = np.repeat(kept, counts)
    return by_row[rows], {name: part[rows] for name, part in parts.items()}


class RaggedRows:
    """Any number of rows of one shape for each of N samples.

    Attributes:
        index: Which of the N samples, in the order of the files, has which id.
        row: The structured dtype of a row, with a field for each part.
        row_bytes: The size of a row.
        limit: The largest finite number of the values' dtype.
    """

    def __init__(self, index: SampleIndex, row_shape: tuple[int, ...], dtype: str) -> None:
        self.index = index
        self.row = np.dtype(self._fields(row_shape, DTYPES[dtype]))
        self.row_bytes = self.row.itemsize
        self.limit = float(np.finfo(DTYPES[dtype]).max)

    def _fields(self, row_shape: tuple[int, ...], dtype: np.dtype[Any]) -> list[Any]:
        return [(VALUES, dtype, row_shape)]

    @property
    def files(self) -> dict[str, str]:
        """By part: what its file's name has behind `epoch-0000`."""
        return {VALUES: ".npy"} | {name: f".{name}.npy" for name in (*self._names, OFFSETS) if name != VALUES}

    @property
    def _names(self) -> tuple[str, ...]:
        return self.row.names or ()

    def shapes(self, rows: int) -> dict[str, tuple[int, ...]]:
        """The shape of each part of so many rows."""
        return {name: (rows, *self.row[name].shape) for name in self._names}

    def encode(self, parts: Mapping[str, Array]) -> tuple[bytes, int]:
        """The bytes of R rows, and how many values were clipped to the dtype's range.

        A row with a value that is not finite becomes NaN in all its values.
        """
        rows = np.empty(len(parts[VALUES]), self.row)
        clipped = 0
        for name in self._names:
            part = np.asarray(parts[name])
            if part.dtype.kind == "f":
                part, count = clip(part, self.row[name].base)
                clipped += count
            rows[name] = part
        return rows.tobytes(), clipped

    def write_sealed(self, paths: Mapping[str, Path], journals: list[Journal]) -> tuple[int, dict[str, str]]:
        """Writes the content of an epoch's sealed files, by part.

        A sample that was recorded more than once has the rows of its first record, by step and then by rank.

        Returns:
            How many values were clipped, and the checksum of each file.
        """
        blocks, clipped = blocks_in_order(journals)
        samples = self.index.num_rows
        first, counts = np.zeros(samples, np.int64), np.zeros(samples, np.int64)
        owners = np.zeros(samples, np.uint16)
        for owner, block in blocks:  # the first record comes last, and stays
            rows = self.rows_of(journals[owner], block)
            starts = np.flatnonzero(np.diff(rows, prepend=-1))
            named = rows[starts][::-1]
            first[named] = (block.offset + block.rows * ID.itemsize + starts * self.row_bytes)[::-1]
            counts[named] = np.diff(starts, append=len(rows))[::-1]
            owners[named] = owner
        offsets = np.concatenate([[0], np.cumsum(counts)])
        with ExitStack() as files:

            def new(name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NpyWriter:
                return files.enter_context(NpyWriter(paths[name], dtype, shape))

            total = int(offsets[-1])
            writers = {n: new(n, self.row[n].base, (total, *self.row[n].shape)) for n in self._names}
            writers[OFFSETS] = new(OFFSETS, offsets.dtype, offsets.shape)
            writers[OFFSETS].write(offsets)
            for at, end in self._chunks(offsets):
                rows = self._gather(journals, first[at:end], counts[at:end], owners[at:end])
                for name in self._names:
                    writers[name].write(np.ascontiguousarray(rows[name]))
            return clipped, {name: writer.finish() for name, writer in writers.items()}

    def _chunks(self, offsets: Array) -> Iterator[tuple[int, int]]:
        """Ranges of samples whose rows take about a chunk's bytes."""
        rows_at_once, at = max(1, CHUNK_BYTES // self.row_bytes), 0
        while at < self.index.num_rows:
            end = max(at + 1, int(np.searchsorted(offsets, offsets[at] + rows_at_once, "right")) - 1)
            yield at, end
            at = end

    def rows_of(self, journal: Journal, block: Block) -> Array:
        """Where, among the N samples, the sample of each of a block's rows is; raises as `FixedRows.rows_of`."""
        return samples_of(self.index, journal, block)

    def _gather(self, journals: list[Journal], first: Array, counts: Array, owners: Array) -> Array:
        """The rows of some samples, from where they lie in the journals, in order."""
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        places = np.repeat(first, counts) + within * self.row_bytes
        owner = np.repeat(owners, counts)
        rows = np.empty(len(places), np.dtype((np.void, self.row_bytes)))
        for number, journal in enumerate(journals):
            found = np.flatnonzero(owner == number)
            rows[found] = journal.rows_at(places[found])
        return rows.view(self.row)

    def open_sealed(self, paths: Mapping[str, Path]) -> dict[str, Array]:
        """Maps the sealed files of an epoch, by part.

        Raises:
            StoreCorruptionError: one is missing, cut off, or of another shape or dtype.
        """
        found: dict[str, Array] = {}
        for name, path in paths.items():
            try:
                found[name] = map_array(path)
            except (OSError, ValueError) as error:
                raise StoreCorruptionError(f"{path} is missing or damaged: {reason_of(error)}.") from error
        offsets, samples = found[OFFSETS], self.index.num_rows
        if offsets.shape != (samples + 1,) or offsets.dtype != np.int64 or offsets[0] or (np.diff(offsets) < 0).any():
            raise StoreCorruptionError(f"{paths[OFFSETS]}: expected {samples + 1} ascending offsets, from 0 on.")
        for name in self._names:
            shape = (int(offsets[-1]), *self.row[name].shape)
            if found[name].shape != shape or found[name].dtype != self.row[name].base:
                raise StoreCorruptionError(
                    f"{paths[name]} is not of this store: expected {self.row[name].base} of shape {shape}, found "
                    f"{found[name].dtype} of shape {found[name].shape}."
                )
        return found

    def read(self, sealed: Mapping[str, Array], positions: Array) -> Rows:
        """The rows of the samples at these positions in the files, copied from what `open_sealed` mapped."""
        offsets = sealed[OFFSETS]
        begin = offsets[positions]
        counts = offsets[positions + 1] - begin
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        places = np.repeat(begin, counts) + within
        return Rows({name: np.take(sealed[name], places, axis=0) for name in self._names}, counts)


class TopKRows(RaggedRows):
    """Any number of rows for each sample, each with the k largest of V classes and the mass of the rest."""

    def __init__(self, index: SampleIndex, row_shape: tuple[int, ...], dtype: str, vocabulary: int) -> None:
        self.vocabulary = vocabulary
        super().__init__(index, row_shape, dtype)

    def _fields(self, row_shape: tuple[int, ...], dtype: np.dtype[Any]) -> list[Any]:
        classes = np.dtype("<u2" if self.vocabulary <= 1 << 16 else "<u4")
        return [(VALUES, dtype, row_shape), (EXTRA_PARTS[0], classes, row_shape), (EXTRA_PARTS[1], dtype)]
