"""The journal of an open epoch: what one process has recorded, in the order of recording.

A journal is a head followed by blocks, one for each recorded batch, little-endian throughout:

    head    8s magic | u32 epoch | u32 rank | u64 bytes per row | u64 xxh3 of the head so far
    block   i64 step | u64 rows | u64 clipped values | u64 xxh3 of ids and rows | u64 xxh3 of the block's head so far
            i64 id, for each row | the rows in the store's dtype

A block that reaches beyond the end of the file was cut off by a crash and counts as never recorded. A complete block
that fails its checksum is damage.
"""

import errno
import os
import struct
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash

from .errors import StoreCorruptionError
from .files import open_regular, writing

ID = np.dtype("<i8")

_MAGIC = b"LSTSDJ01"
_JOURNAL_HEAD = struct.Struct("<8sIIQ")
_BLOCK_HEAD = struct.Struct("<qQQQ")
_HASH = struct.Struct("<Q")


class Block(NamedTuple):
    """One recorded batch. `offset` is the position of its ids, in bytes from the start of the journal."""

    step: int
    rows: int
    clipped: int
    checksum: int
    offset: int


BLOCK_TABLE = np.dtype([("step", "<i8"), ("rows", "<u8"), ("clipped", "<u8"), ("checksum", "<u8"), ("offset", "<u8")])


class Journal:
    """Reads a journal through a memory map."""

    def __init__(self, path: Path, epoch: int, rank: int, row_bytes: int) -> None:
        self.path = path
        self.epoch = epoch
        self.rank = rank
        self._head = journal_head(epoch, rank, row_bytes)
        self._row_bytes = row_bytes

    def blocks(self) -> Iterator[Block]:
        """The complete blocks in the order of writing. Raises StoreCorruptionError if a head is damaged."""
        data = self._data
        if len(data) < len(self._head):  # cut off by a crash before anything was recorded
            return
        if data[: len(self._head)].tobytes() != self._head:
            raise StoreCorruptionError(f"{self.path} is damaged, or is no journal of this store: wrong head.")
        start = len(self._head)
        while (offset := start + _BLOCK_HEAD.size + _HASH.size) <= len(data):
            head = data[start : start + _BLOCK_HEAD.size].tobytes()
            if data[start + _BLOCK_HEAD.size : offset].tobytes() != _hash(head):
                raise StoreCorruptionError(f"{self.path} is damaged: wrong head of the block at byte {start}.")
            step, rows, clipped, checksum = _BLOCK_HEAD.unpack(head)
            block = Block(step, rows, clipped, checksum, offset)
            start = self._end_of(block)
            if start > len(data):
                return
            yield block

    def end(self) -> int:
        """The byte at which the next block starts: after the last complete one, or 0 in a journal without a head."""
        end = len(self._head) if len(self._data) >= len(self._head) else 0
        for block in self.blocks():
            end = self._end_of(block)
        return end

    def ids(self, block: Block) -> npt.NDArray[Any]:
        """A block's ids. Raises StoreCorruptionError if its ids and rows fail their checksum."""
        payload = self._data[block.offset : self._end_of(block)]
        if xxhash.xxh3_64_intdigest(payload.data) != block.checksum:
            raise StoreCorruptionError(f"{self.path} is damaged: wrong checksum of the block at byte {block.offset}.")
        return payload[: block.rows * ID.itemsize].view(ID)

    def rows_at(self, offsets: npt.NDArray[np.int64], size: int | None = None) -> npt.NDArray[Any]:
        """The rows that start at these bytes of the journal, or the first `size` bytes of each, as `numpy.void`."""
        row = np.dtype((np.void, self._row_bytes if size is None else size))
        count = len(self._data) - row.itemsize + 1
        return np.ndarray((max(count, 0),), row, self._data.data, strides=(1,))[offsets]

    def _end_of(self, block: Block) -> int:
        return block.offset + block.rows * (ID.itemsize + self._row_bytes)

    @cached_property
    def _data(self) -> npt.NDArray[np.uint8]:
        try:
            with open_regular(self.path) as file:
                if not file.seek(0, os.SEEK_END):  # an empty file cannot be mapped
                    return np.empty(0, np.uint8)
                return np.asarray(np.memmap(file, np.uint8, mode="r"))
        except OSError as error:
            raise StoreCorruptionError(f"{self.path} cannot be read: {error.strerror or error}.") from error


class JournalWriter:
    """Appends blocks to a journal, each as a whole or not at all."""

    def __init__(self, path: Path, end: int, head: bytes) -> None:
        self._path = path
        with writing(path):
            self._file = path.open("r+b" if path.exists() else "w+b", buffering=0)
            self._file.truncate(end)  # removes a block that a crash cut off
            self._file.seek(end)
        self._end = end
        if not end:
            self._write(head)

    def append(self, step: int, rows: int, clipped: int, ids: bytes, payload: bytes) -> None:
        """Appends a batch. Raises StoreError if the write fails, as on a full disk; the journal is then unchanged.

        Raises ValueError if the step is not an integer of 64 bits.
        """
        checksum = xxhash.xxh3_64(ids)
        checksum.update(payload)
        try:
            head = _BLOCK_HEAD.pack(step, rows, clipped, checksum.intdigest())
        except struct.error as error:
            raise ValueError(f"step={step!r}: expected an integer of 64 bits, with its sign.") from error
        self._write(b"".join((head, _hash(head), ids, payload)))

    def _write(self, data: bytes) -> None:
        with writing(self._path):
            try:
                if self._file.write(data) != len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                self._file.truncate(self._end)
                self._file.seek(self._end)
                raise
        self._end += len(data)

    def close(self) -> None:
        self._file.close()


def journal_head(epoch: int, rank: int, row_bytes: int) -> bytes:
    """The first bytes of a journal."""
    head = _JOURNAL_HEAD.pack(_MAGIC, epoch, rank, row_bytes)
    return head + _hash(head)


def _hash(data: bytes) -> bytes:
    return _HASH.pack(xxhash.xxh3_64_intdigest(data))
