"""Samples with a variable number of rows: tokens, positions of a feature, predicted tokens of a language model.

    epoch-0000.npy           (R, *row_shape): all rows of the epoch, sample by sample
    epoch-0000.offsets.npy   (N + 1,) int64: sample i has the rows from offsets[i] to offsets[i + 1]; none: no record

and, if a row keeps the k largest of many classes (`TopKRows`):

    epoch-0000.npy           (R, k): log probabilities under the whole vocabulary, the largest first
    epoch-0000.classes.npy   (R, k) uint16, or uint32 for a vocabulary of more than 65,536: their classes
    epoch-0000.rest.npy      (R,): the logarithm of the mass of all other classes

In a journal, a row is one record of all its parts and its label, and each row has the id of its sample.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .errors import StoreCorruptionError, StoreMismatchError
from .files import CHUNK_BYTES
from .ids import SampleIndex
from .journal import ID, Block, Journal
from .manifest import DTYPES
from .npy import NpyWriter, map_array, reason_of
from .rows import VALUES, blocks_in_order, clip, refuse_other, samples_of

Array = npt.NDArray[Any]

OFFSETS = "offsets"
EXTRA_PARTS = ("classes", "rest")  # of a row that keeps the k largest
LABELS = "labels"
NO_LABEL = -100
_LABEL = np.dtype("<i4")


class Rows(NamedTuple):
    """The rows of B samples.

    Attributes:
        parts: By name, each (R, ...): "values", and the other parts that the layout keeps of a row.
        counts: int64 (B,): the number of rows of each sample, in order, R in all.
    """

    parts: dict[str, Array]
    counts: Array

    def aligned(self, counts: Array) -> dict[str, Array]:
        """The parts for samples that should have `counts` (B,) rows: NaN, or 0 in integers, for samples that have not.

        Rows are never realigned: a sample has all its rows or none.
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


def by_row(ids: Array, counts: Array) -> Array:
    """(R,): the sample id of each row of B samples, of which each has `counts` (B,) rows.

    Raises:
        StoreMismatchError: there is not one count for each sample, or one is negative, or no integer.
    """
    if counts.shape == ids.shape:
        try:
            return np.repeat(ids, counts)
        except (ValueError, TypeError):  # negative, or of a type that is no integer
            pass
    raise StoreMismatchError(
        f"Counts of shape {counts.shape} and type {counts.dtype} for {len(ids)} sample ids: expected an integer of at "
        "least 0 for each, its number of rows."
    )


def each_once(ids: Array, counts: Array, of_rows: Array, parts: Mapping[str, Array]) -> tuple[Array, dict[str, Array]]:
    """Keeps only the first occurrence of each sample, because an evenly padded batch may hold a sample twice.

    Args:
        ids: (B,) sample ids.
        counts: (B,) the number of rows of each sample.
        of_rows: (R,) the sample id of each row.
        parts: The parts of the R rows.

    Returns:
        The sample id of each row that is kept, and the parts of these rows.
    """
    _, first = np.unique(ids, return_index=True)
    if len(first) == len(ids):
        return of_rows, dict(parts)
    kept = np.zeros(len(ids), np.bool_)
    kept[first] = True
    rows = np.repeat(kept, counts)
    return of_rows[rows], {name: part[rows] for name, part in parts.items()}


class RowLabels(NamedTuple):
    """The label of each row of N samples.

    Attributes:
        labels: int32 (R,), sample by sample.
        offsets: int64 (N + 1,): sample i has those from offsets[i] to offsets[i + 1]; none if its labels are unknown.
    """

    labels: Array
    offsets: Array


class _Found(NamedTuple):
    """Where the rows of each sample are in the journals: from byte `first` on in journal number `owners`."""

    first: Array
    counts: Array
    owners: Array
    steps: Array
    clipped: int

    def part(self, samples: Any) -> "_Found":
        first, counts, owners, steps = (field[samples] for field in self[:-1])
        return _Found(first, counts, owners, steps, self.clipped)


class RaggedRows:
    """The row layout for any number of rows of one shape for each of N samples.

    Attributes:
        index: Which of the N samples, in the order of the files, has which id.
        row: The structured dtype of a row, with a field for each part.
        record: The same with the row's label, as stored in a journal.
        row_bytes: The size of a record in bytes.
        limit: The largest finite number of the values' dtype.
    """

    def __init__(self, index: SampleIndex, row_shape: tuple[int, ...], dtype: str) -> None:
        self.index = index
        self.row = np.dtype(self._fields(row_shape, DTYPES[dtype]))
        self.record = np.dtype([*self._fields(row_shape, DTYPES[dtype]), (LABELS, _LABEL)])
        self.row_bytes = self.record.itemsize
        self.limit = float(np.finfo(DTYPES[dtype]).max)

    # The largest class of a row that names its classes.
    _largest_class = 0

    def _fields(self, row_shape: tuple[int, ...], dtype: np.dtype[Any]) -> list[Any]:
        return [(VALUES, dtype, row_shape)]

    @property
    def files(self) -> dict[str, str]:
        """For each part, the suffix of its file's name after `epoch-0000`."""
        return {VALUES: ".npy"} | {name: f".{name}.npy" for name in (*self._names, OFFSETS) if name != VALUES}

    @property
    def _names(self) -> tuple[str, ...]:
        return self.row.names or ()

    def shapes(self, rows: int) -> dict[str, tuple[int, ...]]:
        """The shape of each part, for a number of rows."""
        return {name: (rows, *self.row[name].shape) for name in self._names} | {LABELS: (rows,)}

    def encode(self, parts: Mapping[str, Array]) -> tuple[bytes, int]:
        """The bytes of R rows, and how many values were clipped to the dtype's range. Labels may be left out.

        A part of a row with a value that is not finite becomes all NaN.

        Raises:
            StoreMismatchError: a part is not of real numbers, or a class or a label is not one that can be stored.
        """
        rows = np.empty(len(parts[VALUES]), self.record)
        if LABELS in parts:
            refuse_other(LABELS, parts[LABELS], _LABEL)
        rows[LABELS] = parts.get(LABELS, NO_LABEL)
        clipped = 0
        for name in self._names:
            part = np.asarray(parts[name])
            refuse_other(name, part, self.row[name].base, self._largest_class)
            if part.dtype.kind == "f":
                part, count = clip(part, self.row[name].base)
                clipped += count
            rows[name] = part
        return rows.tobytes(), clipped

    def write_sealed(self, paths: Mapping[str, Path], journals: list[Journal]) -> tuple[int, dict[str, str]]:
        """Writes the content of an epoch's sealed files, by part.

        A sample that was recorded more than once keeps the rows of its first record, by step and then by rank.

        Returns:
            The number of clipped values, and the checksum of each file by part.
        """
        found = self._find(journals)
        offsets = np.concatenate([[0], np.cumsum(found.counts)])
        with ExitStack() as files:

            def new(name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NpyWriter:
                return files.enter_context(NpyWriter(paths[name], dtype, shape))

            total = int(offsets[-1])
            writers = {n: new(n, self.row[n].base, (total, *self.row[n].shape)) for n in self._names}
            writers[OFFSETS] = new(OFFSETS, offsets.dtype, offsets.shape)
            writers[OFFSETS].write(offsets)
            for at, end in self._chunks(offsets):
                rows = self._gather(journals, found.part(slice(at, end)), self.row_bytes).view(self.record)
                for name in self._names:
                    writers[name].write(np.ascontiguousarray(rows[name]))
            return found.clipped, {name: writer.finish() for name, writer in writers.items()}

    def _find(self, journals: list[Journal]) -> "_Found":
        """Finds the rows of each sample: those of its first record, by step and then by rank."""
        blocks, clipped = blocks_in_order(journals)
        samples = self.index.num_rows
        first, counts, owners, steps = (np.zeros(samples, kind) for kind in ("i8", "i8", "u2", "i8"))
        found = _Found(first, counts, owners, steps, clipped)
        for owner, block in blocks:  # the first record comes last and overwrites the others
            rows = self.rows_of(journals[owner], block)
            starts = np.flatnonzero(np.diff(rows, prepend=-1))
            named = rows[starts][::-1]
            found.first[named] = (block.offset + block.rows * ID.itemsize + starts * self.row_bytes)[::-1]
            found.counts[named] = np.diff(starts, append=len(rows))[::-1]
            found.owners[named] = owner
            found.steps[named] = block.step
        return found

    def find_new_labels(self, journals: list[Journal], known: "RowLabels | None", since: int) -> "_Found | None":
        """The rows of samples whose labels are in an epoch's journals but not known yet; None if there are none.

        Args:
            journals: The journals of the epoch.
            known: The labels so far.
            since: The first step whose recorded labels count.
        """
        is_new = np.ones(self.index.num_rows, np.bool_) if known is None else np.diff(known.offsets) == 0
        if not is_new.any():
            return None
        found = self._find(journals)
        is_new &= (found.counts > 0) & (found.steps >= since)
        found.counts[:] *= is_new
        first_rows = found.part(is_new)._replace(counts=np.ones(is_new.sum(), np.int64))
        found.counts[is_new] *= self._labels_of(journals, first_rows) != NO_LABEL
        return found if found.counts.any() else None

    def write_labels(
        self, labels: Path, offsets: Path, journals: list[Journal], found: "_Found", known: "RowLabels | None"
    ) -> tuple[str, str]:
        """Writes the labels so far and those that `find_new_labels` found. Returns the checksums of both files."""
        before = 0 if known is None else np.diff(known.offsets)
        counts = before + found.counts
        ends = np.concatenate([[0], np.cumsum(counts)])
        with (
            NpyWriter(labels, _LABEL, (int(ends[-1]),)) as of_rows,
            NpyWriter(offsets, ends.dtype, ends.shape) as of_samples,
        ):
            of_samples.write(ends)
            for at, end in self._chunks(ends):
                samples = slice(at, end)
                is_new = np.repeat(found.counts[samples] > 0, counts[samples])
                part = np.empty(len(is_new), _LABEL)
                part[is_new] = self._labels_of(journals, found.part(samples))
                if known is not None:
                    part[~is_new] = known.labels[known.offsets[at] : known.offsets[end]]
                of_rows.write(part)
            return of_rows.finish(), of_samples.finish()

    def _labels_of(self, journals: list[Journal], found: "_Found") -> Array:
        return self._gather(journals, found, _LABEL.itemsize, self.row.itemsize).view(_LABEL)

    def _chunks(self, offsets: Array) -> Iterator[tuple[int, int]]:
        """Ranges of samples whose rows take about `CHUNK_BYTES`."""
        rows_at_once, at = max(1, CHUNK_BYTES // self.row_bytes), 0
        while at < self.index.num_rows:
            end = max(at + 1, int(np.searchsorted(offsets, offsets[at] + rows_at_once, "right")) - 1)
            yield at, end
            at = end

    def rows_of(self, journal: Journal, block: Block) -> Array:
        """For each row of a block, the position of its sample among the N samples; raises as `samples_of`."""
        return samples_of(self.index, journal, block)

    def _gather(self, journals: list[Journal], found: "_Found", size: int, at: int = 0) -> Array:
        """Reads `size` bytes, from byte `at` on, of each row of the found samples, in order, as `numpy.void`."""
        within = np.arange(found.counts.sum()) - np.repeat(np.cumsum(found.counts) - found.counts, found.counts)
        places = np.repeat(found.first, found.counts) + within * self.row_bytes + at
        owner = np.repeat(found.owners, found.counts)
        rows = np.empty(len(places), np.dtype((np.void, size)))
        for number, journal in enumerate(journals):
            mine = np.flatnonzero(owner == number)
            rows[mine] = journal.rows_at(places[mine], size)
        return rows

    def open_sealed(self, paths: Mapping[str, Path]) -> dict[str, Array]:
        """Maps the sealed files of an epoch, by part.

        Raises:
            StoreCorruptionError: a file is missing, cut off, or of another shape or dtype.
        """
        found: dict[str, Array] = {}
        for name, path in paths.items():
            try:
                found[name] = map_array(path)
            except (OSError, ValueError) as error:
                raise StoreCorruptionError(f"{path} is missing or damaged: {reason_of(error)}.") from error
        offsets = found[OFFSETS]
        _check_offsets(offsets, self.index.num_rows, paths[OFFSETS])
        for name in self._names:
            shape = (int(offsets[-1]), *self.row[name].shape)
            if found[name].shape != shape or found[name].dtype != self.row[name].base:
                raise StoreCorruptionError(
                    f"{paths[name]} is not of this store: expected {self.row[name].base} of shape {shape}, found "
                    f"{found[name].dtype} of shape {found[name].shape}."
                )
        return found

    def read(self, sealed: Mapping[str, Array], positions: Array) -> Rows:
        """A copy of the rows of the samples at these positions, from what `open_sealed` mapped."""
        offsets = sealed[OFFSETS]
        begin = offsets[positions]
        counts = offsets[positions + 1] - begin
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        places = np.repeat(begin, counts) + within
        return Rows({name: np.take(sealed[name], places, axis=0) for name in self._names}, counts)


def _check_offsets(offsets: Array, samples: int, path: Path) -> None:
    if (
        offsets.shape != (samples + 1,)
        or offsets.dtype != np.int64
        or offsets[0]
        or (offsets[1:] < offsets[:-1]).any()
    ):
        raise StoreCorruptionError(f"{path}: expected {samples + 1} ascending offsets, from 0 on.")


def open_labels(labels: Path, offsets: Path, samples: int) -> RowLabels:
    """Maps the labels of the rows of `samples` samples.

    Raises:
        StoreCorruptionError: a file is missing, cut off, or of another shape or dtype.
    """
    path = labels
    try:
        values = map_array(labels)
        path = offsets
        found = RowLabels(values, map_array(offsets))
    except (OSError, ValueError) as error:
        raise StoreCorruptionError(f"{path} is missing or damaged: {reason_of(error)}.") from error
    _check_offsets(found.offsets, samples, offsets)
    if values.shape != (int(found.offsets[-1]),) or values.dtype != _LABEL:
        raise StoreCorruptionError(
            f"{labels} is not of this store: expected {_LABEL} of shape {(int(found.offsets[-1]),)}, found "
            f"{values.dtype} of shape {values.shape}."
        )
    return found


class TopKRows(RaggedRows):
    """Any number of rows for each sample, each with the k largest of V classes and the mass of the rest."""

    def __init__(self, index: SampleIndex, row_shape: tuple[int, ...], dtype: str, vocabulary: int) -> None:
        self.vocabulary, self._largest_class = vocabulary, vocabulary - 1
        super().__init__(index, row_shape, dtype)

    def _fields(self, row_shape: tuple[int, ...], dtype: np.dtype[Any]) -> list[Any]:
        classes = np.dtype("<u2" if self.vocabulary <= 1 << 16 else "<u4")
        return [(VALUES, dtype, row_shape), (EXTRA_PARTS[0], classes, row_shape), (EXTRA_PARTS[1], dtype)]
