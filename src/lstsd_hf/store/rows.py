"""How the rows of a sample lie in files: here, every sample has one row of one shape.

A row layout owns what depends on that: how a batch is encoded for a journal, and how the journals of an epoch become
its sealed file. Rows of variable number, and rows that keep the `k` largest of many classes, are layouts of their own.
"""

from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import StoreCorruptionError
from .files import CHUNK_BYTES
from .ids import SampleIndex
from .journal import BLOCK_TABLE, ID, Block, Journal
from .manifest import DTYPES
from .npy import NpyWriter, map_array, reason_of

Parts = Mapping[str, npt.NDArray[Any]]  # of rows, by name

VALUES = "values"

# The dtype that shows the bits of a number, and those of infinity.
_BITS = {dtype: np.dtype(f"<u{dtype.itemsize}") for dtype in DTYPES.values()}
_INFINITY = {dtype: np.array(np.inf, dtype).view(bits) for dtype, bits in _BITS.items()}
_INDEXED = 1 << 24  # rows that are looked for at once, at 10 bytes for each


def clip(rows: npt.NDArray[Any], dtype: np.dtype[Any]) -> tuple[npt.NDArray[Any], int]:
    """Rows (B, ...) in a dtype, and how many values were clipped to its range; NaN: not finite."""
    with np.errstate(over="ignore"):
        rounded = rows.astype(dtype, copy=False)
    # Infinite or NaN: all bits of the exponent are set. Numpy's own float16 arithmetic takes 20 times as long.
    if not rows.size or (rounded.view(_BITS[dtype]) & _INFINITY[dtype]).max() != _INFINITY[dtype]:
        return rounded, 0
    limit = float(np.finfo(dtype).max)
    finite = np.isfinite(rows).reshape(len(rows), -1).all(axis=1)
    clipped = int((np.abs(rows[finite]) > limit).sum())
    rows = np.clip(rows, -limit, limit)
    rows[~finite] = np.nan
    return rows.astype(dtype), clipped


def blocks_in_order(journals: list[Journal]) -> tuple[list[tuple[int, Block]], int]:
    """All blocks, each with the position of its journal, and how many values were clipped in all.

    The last record comes first: by step, then by rank, then by place. Written in this order, the first record of a
    sample is the one that stays.
    """
    tables = [np.fromiter(journal.blocks(), BLOCK_TABLE) for journal in journals]
    table = np.concatenate([np.empty(0, BLOCK_TABLE), *tables])
    owners = np.repeat(np.arange(len(journals)), [len(part) for part in tables])
    ranks = np.array([journal.rank for journal in journals], int)[owners]
    order = np.lexsort((table["offset"], ranks, table["step"]))[::-1]
    return [(int(owners[i]), Block(*table[i].tolist())) for i in order], int(table["clipped"].sum())


def samples_of(index: SampleIndex, journal: Journal, block: Block) -> npt.NDArray[Any]:
    """Where, among the samples of a sealed file, the sample of each of a block's rows is.

    Raises:
        StoreCorruptionError: the block is damaged, or has ids that are none of the store's.
    """
    ids = journal.ids(block)
    wrong = index.unknown(ids)
    if wrong:
        raise StoreCorruptionError(f"{journal.path} holds sample ids {wrong}: expected {index.expected}.")
    return index.rows_of(ids, journal.path)


class FixedRows:
    """One row of a fixed shape for each sample; a sealed file is (N, *row_shape).

    Attributes:
        index: Which of the N rows belongs to which sample id.
        row_shape: The shape of a row.
        dtype: Its numpy dtype, little-endian.
        row_bytes: The size of a row.
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
        """By part of a row: what its file's name has behind `epoch-0000`."""
        return {VALUES: ".npy"}

    def shapes(self, rows: int) -> dict[str, tuple[int, ...]]:
        """The shape of each part of so many rows."""
        return {VALUES: (rows, *self.row_shape)}

    def encode(self, parts: Parts) -> tuple[bytes, int]:
        """The bytes of (B, *row_shape) rows, and how many values were clipped to the dtype's range.

        A row with a value that is not finite becomes NaN throughout.
        """
        rounded, clipped = clip(parts[VALUES], self.dtype)
        return rounded.tobytes(), clipped

    def open_sealed(self, paths: Mapping[str, Path]) -> dict[str, npt.NDArray[Any]]:
        """Maps the sealed file of an epoch, (N, *row_shape).

        Raises:
            StoreCorruptionError: it is missing, cut off, or of another shape or dtype.
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

        The rows are gathered by id and written in one sweep, which the disk follows at once. Written to where they
        belong in the order of the journals, 2.6 GB took ten times as long.

        Returns:
            How many values were clipped, and the checksum of each file.
        """
        blocks, clipped = blocks_in_order(journals)
        with NpyWriter(paths[VALUES], self.dtype, (self.index.num_rows, *self.row_shape)) as file:
            for rows in self._rows_by_id(journals, blocks):
                file.write(rows)
            return clipped, {VALUES: file.finish()}

    def _rows_by_id(self, journals: list[Journal], blocks: list[tuple[int, Block]]) -> Iterator[npt.NDArray[Any]]:
        """The sealed file's rows as raw bytes (`numpy.void`), some at a time.

        Args:
            journals: Of all ranks.
            blocks: Each with the position of its journal; where a sample is in several, the last one counts, and
                within a block its first row.
        """
        row = np.dtype((np.void, self.row_bytes))  # moved as it is: numpy copies float16 one number at a time
        nothing = np.full(self.row_shape, np.nan, self.dtype).reshape(-1).view(row)
        rows_at_once = max(1, CHUNK_BYTES // self.row_bytes)
        for first in range(0, self.index.num_rows, _INDEXED):
            offsets = np.zeros(min(_INDEXED, self.index.num_rows - first), np.int64)  # in its journal; 0: nowhere
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
        """The rows that a block's samples have in a sealed file; raises as `samples_of`."""
        return samples_of(self.index, journal, block)
