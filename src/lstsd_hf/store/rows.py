"""The row layout of stores in which every sample has one row of one shape.

A row layout defines how a batch is encoded for a journal, and how the journals of an epoch become its sealed file.
Samples with a variable number of rows, and rows that keep the `k` largest of many classes, have layouts of their own:
see `ragged`.
"""

from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import StoreCorruptionError, StoreMismatchError
from .files import CHUNK_BYTES
from .ids import SampleIndex
from .journal import BLOCK_TABLE, ID, Block, Journal
from .manifest import DTYPES
from .npy import NpyWriter, map_array, reason_of

Parts = Mapping[str, npt.NDArray[Any]]  # of rows, by name

VALUES = "values"

# For each dtype, the integer dtype of the same size, and the bits of infinity.
_BITS = {dtype: np.dtype(f"<u{dtype.itemsize}") for dtype in DTYPES.values()}
_INFINITY = {dtype: np.array(np.inf, dtype).view(bits) for dtype, bits in _BITS.items()}
_INDEXED = 1 << 24  # how many rows are located at once, at 10 bytes each


def refuse_other(name: str, part: npt.NDArray[Any], dtype: np.dtype[Any], largest: int = 0) -> None:
    """Raises StoreMismatchError if a part holds what its dtype in the store cannot hold.

    Args:
        name: The part's name.
        part: The part; floats may be of any range, see `clip`.
        dtype: Its dtype in the store: floats, classes as unsigned or labels as signed integers.
        largest: The largest class.
    """
    if part.dtype.kind not in ("fiub" if dtype.kind == "f" else "iub"):
        expected = "real numbers" if dtype.kind == "f" else "integers"
        raise StoreMismatchError(
            f"{'Logits' if name == VALUES else name.capitalize()} of type {part.dtype}: expected {expected}."
        )
    if not part.size or dtype.kind == "f" or (dtype.kind == "i" and part.dtype == dtype):
        return
    if dtype.kind == "u":
        # Checks both ends in one pass: read as unsigned, a negative number is huge.
        low, high = 0, largest
        fits = part.astype(np.int64, copy=False).view(np.uint64).max() <= largest
    else:
        low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
        fits = low <= part.min() and part.max() <= high
    if not fits:
        raise StoreMismatchError(
            f"{name.capitalize()} from {part.min()} to {part.max()} do not fit the store: expected {low} to {high}."
        )


def clip(rows: npt.NDArray[Any], dtype: np.dtype[Any]) -> tuple[npt.NDArray[Any], int]:
    """Rows (B, ...) in a dtype, and how many values were clipped to its range; rows that are not finite become NaN."""
    with np.errstate(over="ignore"):
        rounded = rows.astype(dtype, copy=False)
    # Infinity and NaN have all exponent bits set. Numpy's own float16 arithmetic takes 20 times as long.
    if not rows.size or (rounded.view(_BITS[dtype]) & _INFINITY[dtype]).max() != _INFINITY[dtype]:
        return rounded, 0
    limit = float(np.finfo(dtype).max)
    finite = np.isfinite(rows).reshape(len(rows), -1).all(axis=1)
    clipped = int((np.abs(rows[finite]) > limit).sum())
    rows = np.clip(rows, -limit, limit)
    rows[~finite] = np.nan
    return rows.astype(dtype), clipped


def blocks_in_order(journals: list[Journal]) -> tuple[list[tuple[int, Block]], int]:
    """All blocks, each with the position of its journal in the list, and the total number of clipped values.

    They are in reverse order of step, then rank, then place. Written in this order, the first record of a sample
    overwrites its later ones.
    """
    tables = [np.fromiter(journal.blocks(), BLOCK_TABLE) for journal in journals]
    table = np.concatenate([np.empty(0, BLOCK_TABLE), *tables])
    owners = np.repeat(np.arange(len(journals)), [len(part) for part in tables])
    ranks = np.array([journal.rank for journal in journals], int)[owners]
    order = np.lexsort((table["offset"], ranks, table["step"]))[::-1]
    return [(int(owners[i]), Block(*table[i].tolist())) for i in order], int(table["clipped"].sum())


def samples_of(index: SampleIndex, journal: Journal, block: Block) -> npt.NDArray[Any]:
    """For each row of a block, the position of its sample among the samples of a sealed file.

    Raises:
        StoreCorruptionError: the block is damaged, or has ids that the store does not know.
    """
    ids = journal.ids(block)
    wrong = index.unknown(ids)
    if wrong:
        raise StoreCorruptionError(f"{journal.path} holds sample ids {wrong}: expected {index.expected}.")
    return index.rows_of(ids, journal.path)


class FixedRows:
    """One row of a fixed shape for each sample. A sealed file is (N, *row_shape).

    Attributes:
        index: Which of the N rows belongs to which sample id.
        row_shape: The shape of a row.
        dtype: The numpy dtype of a row, little-endian.
        row_bytes: The size of a row in bytes.
        limit: The largest finite number of the dtype.
    """

    def __init__(self, index: SampleIndex, row_shape: tuple[int, ...], dtype: str) -> None:
        self.index = index
        self.row_shape = row_shape
        self.dtype = DTYPES[dtype]
        self.row_bytes = prod(row_shape) * self.dtype.itemsize
        self.limit = float(np.finfo(self.dtype).max)

    @property
    def files(self) -> dict[str, str]:
        """For each part of a row, the suffix of its file's name after `epoch-0000`."""
        return {VALUES: ".npy"}

    def shapes(self, rows: int) -> dict[str, tuple[int, ...]]:
        """The shape of each part, for a number of rows."""
        return {VALUES: (rows, *self.row_shape)}

    def encode(self, parts: Parts) -> tuple[bytes, int]:
        """The bytes of (B, *row_shape) rows, and how many values were clipped to the dtype's range.

        A row with a value that is not finite becomes all NaN.

        Raises:
            StoreMismatchError: they are not real numbers.
        """
        refuse_other(VALUES, parts[VALUES], self.dtype)
        rounded, clipped = clip(parts[VALUES], self.dtype)
        return rounded.tobytes(), clipped

    def open_sealed(self, paths: Mapping[str, Path]) -> dict[str, npt.NDArray[Any]]:
        """Maps the sealed file of an epoch, (N, *row_shape).

        Raises:
            StoreCorruptionError: the file is missing, cut off, or of another shape or dtype.
        """
        path = paths[VALUES]
        try:
            array = map_array(path)
        except (OSError, ValueError) as error:
            raise StoreCorruptionError(f"{path} is missing or damaged: {reason_of(error)}.") from error
        shape = (self.index.num_rows, *self.row_shape)
        if array.shape != shape or array.dtype != self.dtype:
            raise StoreCorruptionError(
                f"{path} is not of this store: expected {self.dtype.name} of shape {shape}, found {array.dtype} of "
                f"shape {array.shape}."
            )
        return {VALUES: array}

    def write_sealed(self, paths: Mapping[str, Path], journals: list[Journal]) -> tuple[int, dict[str, str]]:
        """Writes the content of an epoch's sealed file.

        The rows are gathered by id and written sequentially while the disk is flushed. Writing 2.6 GB in the order of
        the journals, each row to its place, took ten times as long.

        Returns:
            The number of clipped values, and the checksum of each file by part.
        """
        blocks, clipped = blocks_in_order(journals)
        with NpyWriter(paths[VALUES], self.dtype, (self.index.num_rows, *self.row_shape)) as file:
            for rows in self._rows_by_id(journals, blocks):
                file.write(rows)
            return clipped, {VALUES: file.finish()}

    def _rows_by_id(self, journals: list[Journal], blocks: list[tuple[int, Block]]) -> Iterator[npt.NDArray[Any]]:
        """The sealed file's rows as raw bytes (`numpy.void`), in chunks.

        Args:
            journals: The journals of all ranks.
            blocks: Each with the position of its journal. If a sample is in several blocks, the last one counts, and
                within a block its first row.
        """
        row = np.dtype((np.void, self.row_bytes))  # raw bytes, because numpy copies float16 one number at a time
        nothing = np.full(self.row_shape, np.nan, self.dtype).reshape(-1).view(row)
        rows_at_once = max(1, CHUNK_BYTES // self.row_bytes)
        for first in range(0, self.index.num_rows, _INDEXED):
            offsets = np.zeros(min(_INDEXED, self.index.num_rows - first), np.int64)  # in its journal; 0: not recorded
            owners = np.zeros(len(offsets), np.uint16)
            for owner, block in blocks:
                sample_rows = self.rows_of(journals[owner], block)
                places = self.row_bytes * np.arange(block.rows) + block.offset + block.rows * ID.itemsize
                here = np.flatnonzero((sample_rows >= first) & (sample_rows < first + len(offsets)))[::-1]
                offsets[sample_rows[here] - first] = places[here]
                owners[sample_rows[here] - first] = owner
            for start in range(0, len(offsets), rows_at_once):
                part = slice(start, start + rows_at_once)
                known = offsets[part] > 0
                rows = np.empty(len(known), row)
                rows[~known] = nothing
                for owner, journal in enumerate(journals):
                    found = np.flatnonzero(known & (owners[part] == owner))
                    rows[found] = journal.rows_at(offsets[part][found])
                yield rows

    def rows_of(self, journal: Journal, block: Block) -> npt.NDArray[Any]:
        """The positions of a block's samples in a sealed file; raises as `samples_of`."""
        return samples_of(self.index, journal, block)
