"""The logits store: what the model predicted for every training sample in past epochs, on disk.

    <path>/
      store.json            the manifest: format, shape, dtype, data set, a checksum for each sealed file; in a copy
                            also the size of each open journal
      labels.npy            optional: the training labels, row i for sample id i
      epoch-0000.npy        sealed: (num_samples, *row_shape), plain .npy, row i for sample id i, NaN: no prediction
      open/
        epoch-0001.rank-00000.journal    the epoch under way, appended to by one process

A journal is a head and then blocks, one per recorded batch, little-endian throughout:

    head    8s magic | u32 epoch | u32 rank | u64 bytes per row | u64 xxh3 of the head so far
    block   i64 step | u64 rows | u64 clipped values | u64 xxh3 of ids and rows | u64 xxh3 of the block's head so far
            i64 id, for each row | the rows in the store's dtype

A block that ends after its file does was cut off by a crash and was never recorded. A block that is all there and
fails its checksum is damage. Sealed files and the manifest are written under a temporary name, flushed and renamed, so
a crash leaves the old state or the new one. Needs numpy and a hash; knows nothing of torch.
"""

import errno
import json
import math
import os
import re
import shutil
import struct
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash

FORMAT = "lstsd-logits"
VERSION = 1

_MAGIC = b"LSTSDJ01"
_JOURNAL_HEAD = struct.Struct("<8sIIQ")
_BLOCK_HEAD = struct.Struct("<qQQQ")
_HASH = struct.Struct("<Q")
_JOURNAL_NAME = re.compile(r"epoch-(\d{4,})\.rank-(\d{5,})\.journal")
_ID = np.dtype("<i8")
_DTYPES: dict[str, np.dtype[Any]] = {"float16": np.dtype("<f2"), "float32": np.dtype("<f4")}
_BITS: dict[str, np.dtype[Any]] = {"float16": np.dtype("<u2"), "float32": np.dtype("<u4")}
_BLOCK_TABLE = np.dtype([("step", "<i8"), ("rows", "<u8"), ("clipped", "<u8"), ("checksum", "<u8"), ("offset", "<u8")])
_CHUNK_BYTES = 1 << 20  # from 32 MB on glibc would keep what it took
_FLUSH_BYTES = 16 << 20
_INDEXED = 1 << 24  # samples whose rows are looked for at once, at 10 bytes for each
# Another disk, a file system without hard links, or too many of them.
_NO_LINKS = {errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EACCES}


class StoreError(Exception):
    """The logits store cannot do what was asked of it."""


class StoreMismatchError(StoreError):
    """The store was made for another data set, model head or dtype."""


class StoreCorruptionError(StoreError):
    """A file of the store is damaged, or is not one of ours."""


class LogitsStore:
    """Predictions by epoch and sample id; one open epoch that is appended to, and sealed ones that are read.

    Attributes:
        path: The store's folder.
        num_samples: The largest sample id plus 1.
        row_shape: The shape of one sample's prediction, `(classes,)` for a classifier.
        dtype: "float16" or "float32".
        fingerprint: Names the data set that the ids belong to.
    """

    def __init__(self, path: str | os.PathLike[str], manifest: dict[str, Any]) -> None:
        """Use `create` or `open`."""
        self.path = Path(path)
        self.num_samples: int = manifest["num_samples"]
        self.row_shape: tuple[int, ...] = tuple(manifest["row_shape"])
        self.dtype: str = manifest["dtype"]
        self.fingerprint: str = manifest["fingerprint"]
        self._row_dtype = _DTYPES[self.dtype]
        self._row_bytes = math.prod(self.row_shape) * self._row_dtype.itemsize
        self._limit = float(np.finfo(self._row_dtype).max)
        self._infinity = np.array(np.inf, self._row_dtype).view(_BITS[self.dtype])
        self._writers: dict[tuple[int, int], _JournalWriter] = {}
        self._maps: dict[int, npt.NDArray[Any]] = {}

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        num_samples: int,
        row_shape: tuple[int, ...],
        dtype: str,
        fingerprint: str,
    ) -> "LogitsStore":
        """Makes an empty store in a folder that does not exist yet, or is empty.

        Raises:
            ValueError: a size is below 1, or the dtype is neither "float16" nor "float32".
            StoreError: the folder holds something.
        """
        if num_samples < 1 or any(size < 1 for size in row_shape):
            raise ValueError(f"num_samples={num_samples}, row_shape={row_shape}: expected sizes of at least 1.")
        if dtype not in _DTYPES:
            raise ValueError(f"dtype={dtype!r}: expected one of {', '.join(map(repr, _DTYPES))}.")
        path = Path(path)
        if path.is_dir() and any(path.iterdir()):
            raise StoreError(f"{path} is not empty: expected a new folder for the logits store. Move it aside.")
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "num_samples": int(num_samples),
            "row_shape": [int(size) for size in row_shape],
            "dtype": dtype,
            "fingerprint": fingerprint,
            "labels": None,
            "sealed": {},
            "open": {},
            "note": {},
        }
        with _writing(path):
            (path / "open").mkdir(parents=True, exist_ok=True)
            _write_manifest(path, manifest)
        return cls(path, manifest)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "LogitsStore":
        """Opens an existing store.

        Raises:
            StoreError: there is none.
            StoreCorruptionError: its manifest is damaged, of another version, or not ours.
        """
        return cls(path, _read_manifest(Path(path)))

    def expect(self, *, num_samples: int, row_shape: tuple[int, ...], dtype: str, fingerprint: str) -> None:
        """Raises StoreMismatchError where this store was made for something else than what is expected."""
        expected = {"num_samples": num_samples, "row_shape": row_shape, "dtype": dtype, "fingerprint": fingerprint}
        wrong = [
            f"{name} {value!r}, found {getattr(self, name)!r}"
            for name, value in expected.items()
            if getattr(self, name) != value
        ]
        if wrong:
            raise StoreMismatchError(
                f"The logits store at {self.path} belongs to another training set, label column, model head or dtype: "
                f"expected {'; '.join(wrong)}. Train on what the store was made for, or name another logits_dir."
            )

    @property
    def sealed_epochs(self) -> list[int]:
        """The epochs that can be read, ascending; read from the manifest, since another process may seal."""
        return sorted(map(int, _read_manifest(self.path)["sealed"]))

    @property
    def open_epochs(self) -> list[int]:
        """The epochs that have journals, of any process, ascending."""
        return sorted({journal.epoch for journal in self._journals()})

    def record(
        self,
        epoch: int,
        sample_ids: npt.ArrayLike,
        logits: npt.ArrayLike,
        *,
        step: int = 0,
        rank: int = 0,
    ) -> None:
        """Appends one batch of predictions to an open epoch.

        Args:
            epoch: The epoch under way, from 0.
            sample_ids: Integers of shape (B,), in [0, num_samples).
            logits: Numbers of shape (B, *row_shape). Those beyond the dtype's range are clipped to it, and counted. A
                row with a value that is not finite is recorded as NaN: no prediction.
            step: The training step. Where an epoch has a sample twice, the lower step wins, then the lower rank, then
                the earlier record.
            rank: The process that records. One process writes a rank's journal.

        Raises:
            StoreError: an id is out of range, the epoch is sealed, or the disk is full (the batch is then not
                recorded; all earlier ones are).
            StoreMismatchError: the logits' shape is not the store's.
        """
        ids = self._checked_ids(sample_ids)
        rows = np.asarray(logits)
        if rows.shape != (len(ids), *self.row_shape):
            raise StoreMismatchError(
                f"Logits of shape {rows.shape} for {len(ids)} sample ids do not fit the store at {self.path}: "
                f"expected {(len(ids), *self.row_shape)}. Has the number of labels changed? Name another logits_dir."
            )
        if not len(ids):
            return
        clipped = 0
        with np.errstate(over="ignore"):
            rounded = rows.astype(self._row_dtype, copy=False)
        # Infinite or NaN: all bits of the exponent are set. Numpy's own float16 arithmetic takes 20 times as long.
        if (rounded.view(_BITS[self.dtype]) & self._infinity).max() == self._infinity:
            finite = np.isfinite(rows).reshape(len(rows), -1).all(axis=1)
            clipped = int((np.abs(rows[finite]) > self._limit).sum())
            rows = np.clip(rows, -self._limit, self._limit)
            rows[~finite] = np.nan
            rounded = rows.astype(self._row_dtype)
        writer = self._writers.get((epoch, rank))
        if writer is None:
            writer = self._writers[epoch, rank] = self._open_journal(epoch, rank)
        writer.append(step, len(ids), clipped, ids.astype(_ID, copy=False).tobytes(), rounded.tobytes())

    def seal(self, epoch: int) -> None:
        """Turns an epoch's journals, of all ranks, into one read-only file. Does nothing where that is done already.

        Call it in one process, when no other one records the epoch any more. A sample that was not recorded gets NaN.

        Raises:
            StoreCorruptionError: a journal is damaged.
            StoreError: the disk is full; the journals are still there.
        """
        for key in [key for key in self._writers if key[0] == epoch]:
            self._writers.pop(key).close()
        manifest = _read_manifest(self.path)
        journals = self._journals(epoch)
        if str(epoch) not in manifest["sealed"]:
            temporary = self.path / f".epoch-{epoch:04d}.npy.tmp"
            with _writing(self._epoch_path(epoch)):
                clipped, checksum = self._write_epoch(temporary, journals)
                temporary.chmod(0o444)
                _publish(temporary, self._epoch_path(epoch))
                manifest["sealed"][str(epoch)] = checksum
                still_open = {key: size for key, size in manifest["open"].items() if int(key.split()[0]) != epoch}
                manifest["open"] = still_open
                _write_manifest(self.path, manifest)
            if clipped:
                warnings.warn(
                    f"Epoch {epoch}: {clipped} logits lay beyond the range of {self.dtype} (+-{self._limit:g}) and "
                    "were clipped to it. "
                    + ("Store them with logits_dtype='float32'." if self.dtype == "float16" else "Are they logits?"),
                    stacklevel=2,
                )
        for journal in journals:
            journal.path.unlink()

    def read(self, epoch: int, sample_ids: npt.ArrayLike) -> npt.NDArray[Any]:
        """The predictions of a sealed epoch: (B, *row_shape) in the store's dtype, a copy, for (B,) sample ids.

        Raises:
            StoreError: the epoch is not sealed, or an id is out of range.
            StoreCorruptionError: the epoch's file is missing, cut off, or not of the store's shape and dtype.
        """
        return np.take(self._map(epoch), self._checked_ids(sample_ids), axis=0)

    def drop(self, epoch: int) -> None:
        """Removes a sealed epoch for good."""
        manifest = _read_manifest(self.path)
        self._maps.pop(epoch, None)
        # The manifest first: a file that it does not name is nobody's, but a name without a file is damage.
        if manifest["sealed"].pop(str(epoch), None) is not None:
            _write_manifest(self.path, manifest)
        self._epoch_path(epoch).unlink(missing_ok=True)

    def write_labels(self, labels: npt.ArrayLike) -> None:
        """Stores the training labels, (num_samples, ...), row i for sample id i, for whoever reads the predictions."""
        array = np.asarray(labels)
        if len(array) != self.num_samples:
            raise StoreMismatchError(f"{len(array)} labels for a store of {self.num_samples} samples.")
        temporary = self.path / ".labels.npy.tmp"
        with _writing(self.path / "labels.npy"):
            with temporary.open("wb") as file:
                np.save(file, array, allow_pickle=False)
            manifest = _read_manifest(self.path) | {"labels": _checksum(temporary)}
            _publish(temporary, self.path / "labels.npy")
            _write_manifest(self.path, manifest)

    def verify(self) -> None:
        """Reads every file in full and compares it with its checksum.

        Raises:
            StoreCorruptionError: naming the first file that is missing, damaged, or not what the manifest says.
        """
        manifest = _read_manifest(self.path)
        for path, checksum in self._sealed_files(manifest).items():
            if not path.is_file():
                raise StoreCorruptionError(f"{path} is missing: the manifest of its store names it.")
            found = _checksum(path)
            if found != checksum:
                raise StoreCorruptionError(f"{path} is damaged: expected checksum {checksum}, found {found}.")
        for epoch in map(int, manifest["sealed"]):
            self._map(epoch)
        for journal in self._journals():
            for block in journal.blocks():
                journal.ids(block)
        for key, size in manifest["open"].items():
            epoch, rank = map(int, key.split())
            path = self.journal_path(epoch, rank)
            if not path.is_file() or path.stat().st_size < size:
                raise StoreCorruptionError(f"{path} is missing or cut off: expected {size} bytes.")

    def copy(self, path: str | os.PathLike[str], note: dict[str, Any]) -> "LogitsStore":
        """Makes a store elsewhere that holds what this one does now, with a note; replaces what is there.

        Sealed files never change again, so they are hard links, or copies where the file system has none; what is
        written is as much as the open epoch. No other process may record meanwhile.

        Args:
            path: The new store's folder.
            note: Plain values that `LogitsStore.note` gives back.
        """
        path = Path(path)
        temporary = path.with_name(f"{path.name}.tmp")
        manifest = _read_manifest(self.path)
        journals = self._journals()
        # Up to the last complete block: what a crash cut off is not part of the copy, whose size is exact.
        ends = [journal.end() for journal in journals]
        manifest["open"] = {
            f"{journal.epoch} {journal.rank}": end for journal, end in zip(journals, ends, strict=True)
        }
        manifest["note"] = note
        with _writing(path):
            for folder in (temporary, path):
                if folder.exists():
                    shutil.rmtree(folder)
            (temporary / "open").mkdir(parents=True)
            for file in self._sealed_files(manifest):
                _link(file, temporary / file.name)
            for journal, end in zip(journals, ends, strict=True):
                with journal.path.open("rb") as source, (temporary / "open" / journal.path.name).open("wb") as target:
                    _copy_bytes(source, target, end)
            _write_manifest(temporary, manifest)
            os.rename(temporary, path)
        return LogitsStore.open(path)

    @property
    def note(self) -> dict[str, Any]:
        """What the last `copy` was told to note; empty in a store that is no copy."""
        return _read_manifest(self.path)["note"]

    def close(self) -> None:
        """Closes the journals that this process writes, and the epochs that it reads. The store can be used on."""
        self._maps.clear()
        while self._writers:
            self._writers.popitem()[1].close()

    # ---- sample ids and files

    def _checked_ids(self, sample_ids: npt.ArrayLike) -> npt.NDArray[Any]:
        ids = np.asarray(sample_ids)
        if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
            raise StoreError(f"Sample ids of shape {ids.shape} and type {ids.dtype}: expected integers of shape (B,).")
        # Both ends in one pass: without its sign, a negative number is a huge one.
        if ids.size and not ids.astype(np.int64, copy=False).view(np.uint64).max() < self.num_samples:
            wrong = ids[(ids < 0) | (ids >= self.num_samples)][:5].tolist()
            raise StoreError(
                f"Sample ids {wrong} are outside of the store at {self.path}: expected 0 to {self.num_samples - 1}. "
                "Has the training set grown? Train into a new logits_dir."
            )
        return ids

    def _epoch_path(self, epoch: int) -> Path:
        return self.path / f"epoch-{epoch:04d}.npy"

    def journal_path(self, epoch: int, rank: int) -> Path:
        """Where one process records an open epoch."""
        return self.path / "open" / f"epoch-{epoch:04d}.rank-{rank:05d}.journal"

    def _sealed_files(self, manifest: dict[str, Any]) -> dict[Path, str]:
        """The files that never change again, with their checksums."""
        files = {self._epoch_path(int(epoch)): checksum for epoch, checksum in manifest["sealed"].items()}
        if manifest["labels"] is not None:
            files[self.path / "labels.npy"] = manifest["labels"]
        return files

    def _map(self, epoch: int) -> npt.NDArray[Any]:
        if epoch not in self._maps:
            sealed = self.sealed_epochs
            if epoch not in sealed:
                raise StoreError(f"Epoch {epoch} of the store at {self.path} is not sealed; sealed are {sealed}.")
            path = self._epoch_path(epoch)
            try:
                array = np.load(path, mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError, EOFError) as error:
                raise StoreCorruptionError(f"{path} is missing or damaged: {error}.") from error
            shape = (self.num_samples, *self.row_shape)
            if array.shape != shape or array.dtype != self._row_dtype:
                raise StoreCorruptionError(
                    f"{path} is not of this store: expected {self.dtype} of shape {shape}, found {array.dtype} of "
                    f"shape {array.shape}."
                )
            self._maps[epoch] = np.asarray(array)  # a view: `take` on a plain array costs half of that on a memmap
        return self._maps[epoch]

    # ---- journals

    def _journals(self, epoch: int | None = None) -> list["_Journal"]:
        """The journals of one epoch, or of all."""
        manifest = _read_manifest(self.path)
        # There may be no such folder: the Hub keeps no empty ones.
        found = ((_JOURNAL_NAME.fullmatch(path.name), path) for path in sorted((self.path / "open").glob("*")))
        journals = [
            _Journal(path, int(match[1]), int(match[2]), self._row_bytes)
            for match, path in found
            if match and epoch in (None, int(match[1]))
        ]
        if manifest["note"]:  # A copy names its journals; others were left by an earlier copy, in a folder on the Hub.
            journals = [journal for journal in journals if f"{journal.epoch} {journal.rank}" in manifest["open"]]
        return journals

    def _open_journal(self, epoch: int, rank: int) -> "_JournalWriter":
        if epoch in self.sealed_epochs:
            raise StoreError(f"Epoch {epoch} of the store at {self.path} is sealed: nothing can be recorded any more.")
        path = self.journal_path(epoch, rank)
        end = _Journal(path, epoch, rank, self._row_bytes).end() if path.exists() else 0
        return _JournalWriter(path, end, _journal_head(epoch, rank, self._row_bytes))

    def _write_epoch(self, path: Path, journals: list["_Journal"]) -> tuple[int, str]:
        """Writes the sealed file's content under another name.

        The rows are gathered by id and written in one sweep, which the disk follows at once. Written to where they
        belong in the order of the journals, 2.6 GB took ten times as long.

        Returns:
            How many values were clipped, and the file's checksum.
        """
        tables = [np.fromiter(journal.blocks(), _BLOCK_TABLE) for journal in journals]
        table = np.concatenate([np.empty(0, _BLOCK_TABLE), *tables])
        owners = np.repeat(np.arange(len(journals)), [len(part) for part in tables])
        ranks = np.array([journal.rank for journal in journals], int)[owners]
        # Backwards, so that the first record of a sample is the one that stays.
        order = np.lexsort((table["offset"], ranks, table["step"]))[::-1]
        blocks = [(int(owners[i]), _Block(*table[i].tolist())) for i in order]

        header = {"descr": self._row_dtype.str, "fortran_order": False, "shape": (self.num_samples, *self.row_shape)}
        head = BytesIO()
        np.lib.format.write_array_header_1_0(head, header)
        digest, unflushed, flushes = xxhash.xxh3_128(), 0, []
        with path.open("wb") as file, ThreadPoolExecutor(1) as disk:
            for data in chain([head.getbuffer()], self._rows_by_id(journals, blocks)):
                digest.update(data)
                file.write(data)
                unflushed += data.nbytes
                if unflushed >= _FLUSH_BYTES:
                    file.flush()
                    flushes.append(disk.submit(os.fsync, file.fileno()))
                    unflushed = 0
            for flush in flushes:
                flush.result()
        return int(table["clipped"].sum()), digest.hexdigest()

    def _rows_by_id(self, journals: list["_Journal"], blocks: list[tuple[int, "_Block"]]) -> Iterator[memoryview]:
        """The sealed file's rows as bytes, some at a time.

        Args:
            journals: Of all ranks.
            blocks: Each with the position of its journal; where a sample is in several, the last one counts, and
                within a block its first row.
        """
        row = np.dtype((np.void, self._row_bytes))  # moved as it is: numpy copies float16 one number at a time
        nothing = np.full(self.row_shape, np.nan, self._row_dtype).reshape(-1).view(row)
        rows_at_once = max(1, _CHUNK_BYTES // self._row_bytes)
        for first in range(0, self.num_samples, _INDEXED):
            offsets = np.zeros(min(_INDEXED, self.num_samples - first), np.int64)  # in its journal; 0: nowhere
            owners = np.zeros(len(offsets), np.uint16)
            for owner, block in blocks:
                ids = self._checked_ids(journals[owner].ids(block))
                places = self._row_bytes * np.arange(block.rows) + block.offset + block.rows * _ID.itemsize
                here = np.flatnonzero((ids >= first) & (ids < first + len(offsets)))[::-1]
                offsets[ids[here] - first] = places[here]
                owners[ids[here] - first] = owner
            for start in range(0, len(offsets), rows_at_once):
                part = slice(start, start + rows_at_once)
                known = offsets[part] > 0
                rows = np.empty(len(known), row)
                rows[~known] = nothing
                for owner, journal in enumerate(journals):
                    found = np.flatnonzero(known & (owners[part] == owner))
                    rows[found] = journal.rows_at(offsets[part][found])
                yield rows.view(np.uint8).data


class _Block(NamedTuple):
    step: int
    rows: int
    clipped: int
    checksum: int
    offset: int  # of the ids, in bytes from the start of the journal


class _Journal:
    """Reads a journal through a memory map."""

    def __init__(self, path: Path, epoch: int, rank: int, row_bytes: int) -> None:
        self.path = path
        self.epoch = epoch
        self.rank = rank
        self._head = _journal_head(epoch, rank, row_bytes)
        self._row_bytes = row_bytes

    def blocks(self) -> Iterator[_Block]:
        """The complete blocks in the order of writing. Raises StoreCorruptionError where a head is damaged."""
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
            block = _Block(step, rows, clipped, checksum, offset)
            start = self._end_of(block)
            if start > len(data):
                return
            yield block

    def end(self) -> int:
        """Where the next block goes: behind the last complete one, or 0 in a journal without a head."""
        end = len(self._head) if len(self._data) >= len(self._head) else 0
        for block in self.blocks():
            end = self._end_of(block)
        return end

    def ids(self, block: _Block) -> npt.NDArray[Any]:
        """A block's ids. Raises StoreCorruptionError where these or its rows fail their checksum."""
        payload = self._data[block.offset : self._end_of(block)]
        if xxhash.xxh3_64_intdigest(payload.data) != block.checksum:
            raise StoreCorruptionError(f"{self.path} is damaged: wrong checksum of the block at byte {block.offset}.")
        return payload[: block.rows * _ID.itemsize].view(_ID)

    def rows_at(self, offsets: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """The rows at these bytes of the journal, as they are."""
        row = np.dtype((np.void, self._row_bytes))
        count = len(self._data) - self._row_bytes + 1
        return np.ndarray((max(count, 0),), row, self._data.data, strides=(1,))[offsets]

    def _end_of(self, block: _Block) -> int:
        return block.offset + block.rows * (_ID.itemsize + self._row_bytes)

    @cached_property
    def _data(self) -> npt.NDArray[np.uint8]:
        if not self.path.stat().st_size:  # cannot be mapped
            return np.empty(0, np.uint8)
        return np.asarray(np.memmap(self.path, np.uint8, mode="r"))


class _JournalWriter:
    """Appends whole blocks to a journal, or nothing."""

    def __init__(self, path: Path, end: int, head: bytes) -> None:
        self._path = path
        self._file = path.open("r+b" if path.exists() else "w+b", buffering=0)
        self._file.truncate(end)  # what a crash cut off
        self._file.seek(end)
        self._end = end
        if not end:
            self._write(head)

    def append(self, step: int, rows: int, clipped: int, ids: bytes, payload: bytes) -> None:
        checksum = xxhash.xxh3_64(ids)
        checksum.update(payload)
        head = _BLOCK_HEAD.pack(step, rows, clipped, checksum.intdigest())
        self._write(b"".join((head, _hash(head), ids, payload)))

    def _write(self, data: bytes) -> None:
        with _writing(self._path):
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


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Says which file could not be written, and that this is the disk's fault."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{path} could not be written: {error.strerror or error}. Free some space; earlier files are intact."
        ) from error


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)  # of a link, as in huggingface_hub's cache, it would make another link
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        shutil.copy2(source, target)


def _copy_bytes(source: BinaryIO, target: BinaryIO, count: int) -> None:
    while count:
        count -= target.write(source.read(min(count, _CHUNK_BYTES)))


def _hash(data: bytes) -> bytes:
    return _HASH.pack(xxhash.xxh3_64_intdigest(data))


def _journal_head(epoch: int, rank: int, row_bytes: int) -> bytes:
    head = _JOURNAL_HEAD.pack(_MAGIC, epoch, rank, row_bytes)
    return head + _hash(head)


def _checksum(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _publish(temporary: Path, final: Path) -> None:
    """Makes a finished file appear under its name, on disk, in one instant."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, final)
    folder = os.open(final.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _manifest_checksum(manifest: dict[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(manifest, sort_keys=True).encode())


def _write_manifest(path: Path, manifest: dict[str, Any]) -> None:
    temporary = path / ".store.json.tmp"
    temporary.write_text(json.dumps(manifest | {"checksum": _manifest_checksum(manifest)}, indent=2) + "\n")
    _publish(temporary, path / "store.json")


def _read_manifest(path: Path) -> dict[str, Any]:
    file = path / "store.json"
    try:
        text = file.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StoreError(f"{path} holds no logits store: {file.name} is missing.") from error
    except UnicodeDecodeError as error:
        raise StoreCorruptionError(f"{file} is damaged: {error}.") from error
    try:
        manifest = json.loads(text)
    except json.JSONDecodeError as error:
        raise StoreCorruptionError(f"{file} is damaged: {error}.") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise StoreCorruptionError(f"{file} is no manifest of a logits store: expected format {FORMAT!r}.")
    if manifest.get("version") != VERSION:
        raise StoreCorruptionError(
            f"{file} is of version {manifest.get('version')!r}: expected {VERSION}. Use the lstsd_hf that wrote it."
        )
    checksum = manifest.pop("checksum", None)
    if checksum != _manifest_checksum(manifest):
        raise StoreCorruptionError(f"{file} is damaged: its content does not fit its checksum {checksum!r}.")
    return manifest
