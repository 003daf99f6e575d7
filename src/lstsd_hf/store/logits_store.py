"""The logits store: what the model predicted for every training sample in past epochs, on disk.

    <path>/
      store.json            the manifest: see `manifest`
      labels.npy            optional: the training labels, row i for sample id i
      epoch-0000.npy        sealed: (num_samples, *row_shape), plain .npy, row i for sample id i, NaN: no prediction
      margin-0000.npy       optional: a statistic of the epochs up to this one, row i for sample id i
      open/
        epoch-0001.rank-00000.journal    the epoch under way, appended to by one process: see `journal`

Sealed files and the manifest are written under a temporary name, flushed and renamed, so a crash leaves the old state
or the new one. Needs numpy and a hash; knows nothing of torch.
"""

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import StoreError, StoreMismatchError
from .files import publish, writing
from .folder import StoreFolder
from .journal import ID, Journal, JournalWriter, journal_head
from .manifest import new_manifest, read_manifest, write_manifest
from .rows import DTYPES, FixedRows


class LogitsStore(StoreFolder):
    """Predictions by epoch and sample id; one open epoch that is appended to, and sealed ones that are read.

    ```python
    store = LogitsStore.create("out/_logits", num_samples=4, row_shape=(3,), dtype="float16", fingerprint="mine")
    store.record(epoch=0, sample_ids=[2, 0], logits=[[0.1, 0.2, 0.7], [0.5, 0.3, 0.2]])
    store.seal(epoch=0)
    store.read(epoch=0, sample_ids=[0, 1])  # (2, 3): row 1 is NaN, because sample 1 was not recorded
    ```

    Attributes:
        path: The store's folder.
        num_samples: The largest sample id plus 1.
        row_shape: The shape of one sample's prediction, `(classes,)` for a classifier.
        dtype: "float16" or "float32".
        fingerprint: Names the data set that the ids belong to.
    """

    def __init__(self, path: str | os.PathLike[str], manifest: dict[str, Any]) -> None:
        """Use `create` or `open`."""
        self._rows = FixedRows(manifest["num_samples"], tuple(manifest["row_shape"]), manifest["dtype"])
        super().__init__(path, manifest["num_samples"], self._rows.row_bytes)
        self.row_shape: tuple[int, ...] = tuple(manifest["row_shape"])
        self.dtype: str = manifest["dtype"]
        self.fingerprint: str = manifest["fingerprint"]
        self._writers: dict[tuple[int, int], JournalWriter] = {}
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
        if dtype not in DTYPES:
            raise ValueError(f"dtype={dtype!r}: expected one of {', '.join(map(repr, DTYPES))}.")
        path = Path(path)
        if path.is_dir() and any(path.iterdir()):
            raise StoreError(f"{path} is not empty: expected a new folder for the logits store. Move it aside.")
        manifest = new_manifest(int(num_samples), [int(size) for size in row_shape], dtype, fingerprint)
        with writing(path):
            (path / "open").mkdir(parents=True, exist_ok=True)
            write_manifest(path, manifest)
        return cls(path, manifest)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "LogitsStore":
        """Opens an existing store.

        Raises:
            StoreError: there is none.
            StoreCorruptionError: its manifest is damaged, of another version, or not ours.
        """
        return cls(path, read_manifest(Path(path)))

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

    # ---- epochs

    @property
    def sealed_epochs(self) -> list[int]:
        """The epochs that can be read, ascending; read from the manifest, since another process may seal."""
        return sorted(map(int, read_manifest(self.path)["sealed"]))

    @property
    def open_epochs(self) -> list[int]:
        """The epochs that have journals, of any process, ascending."""
        return sorted({journal.epoch for journal in self.journals()})

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
        payload, clipped = self._rows.encode(rows)
        writer = self._writers.get((epoch, rank))
        if writer is None:
            writer = self._writers[epoch, rank] = self._open_journal(epoch, rank)
        writer.append(step, len(ids), clipped, ids.astype(ID, copy=False).tobytes(), payload)

    def seal(self, epoch: int) -> None:
        """Turns an epoch's journals, of all ranks, into one read-only file. Does nothing where that is done already.

        Call it in one process, when no other one records the epoch any more. A sample that was not recorded gets NaN.

        Raises:
            StoreCorruptionError: a journal is damaged.
            StoreError: the disk is full; the journals are still there.
        """
        for key in [key for key in self._writers if key[0] == epoch]:
            self._writers.pop(key).close()
        manifest = read_manifest(self.path)
        journals = self.journals(epoch)
        if str(epoch) not in manifest["sealed"]:
            temporary = self.path / f".epoch-{epoch:04d}.npy.tmp"
            with writing(self.epoch_path(epoch)):
                clipped, checksum = self._rows.write_sealed(temporary, journals)
                temporary.chmod(0o444)
                publish(temporary, self.epoch_path(epoch))
                manifest["sealed"][str(epoch)] = checksum
                still_open = {key: size for key, size in manifest["open"].items() if int(key.split()[0]) != epoch}
                manifest["open"] = still_open
                write_manifest(self.path, manifest)
            if clipped:
                warnings.warn(
                    f"Epoch {epoch}: {clipped} logits lay beyond the range of {self.dtype} (+-{self._rows.limit:g}) "
                    "and were clipped to it. "
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
        return np.take(self.epoch_rows(epoch), self._checked_ids(sample_ids), axis=0)

    def epoch_rows(self, epoch: int) -> npt.NDArray[Any]:
        """All predictions of a sealed epoch, (num_samples, *row_shape), mapped from the disk; raises as `read`."""
        if epoch not in self._maps:
            sealed = self.sealed_epochs
            if epoch not in sealed:
                raise StoreError(f"Epoch {epoch} of the store at {self.path} is not sealed; sealed are {sealed}.")
            self._maps[epoch] = self._rows.open_sealed(self.epoch_path(epoch))
        return self._maps[epoch]

    def drop(self, epoch: int) -> None:
        """Removes a sealed epoch for good."""
        manifest = read_manifest(self.path)
        self._maps.pop(epoch, None)
        # The manifest first: a file that it does not name is nobody's, but a name without a file is damage.
        if manifest["sealed"].pop(str(epoch), None) is not None:
            write_manifest(self.path, manifest)
        self.epoch_path(epoch).unlink(missing_ok=True)

    # ---- the whole store

    def verify(self) -> None:
        """Reads every file in full and compares it with its checksum.

        Raises:
            StoreCorruptionError: naming the first file that is missing, damaged, or not what the manifest says.
        """
        self._verify_files()
        for epoch in self.sealed_epochs:
            self.epoch_rows(epoch)

    def copy(self, path: str | os.PathLike[str], note: dict[str, Any]) -> "LogitsStore":
        """Makes a store elsewhere that holds what this one does now, with a note; replaces what is there.

        Sealed files never change again, so they are hard links, or copies where the file system has none; what is
        written is as much as the open epoch. No other process may record meanwhile.

        Args:
            path: The new store's folder.
            note: Plain values that `LogitsStore.note` gives back.
        """
        self._copy_files(Path(path), note)
        return LogitsStore.open(path)

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

    def _open_journal(self, epoch: int, rank: int) -> JournalWriter:
        if epoch in self.sealed_epochs:
            raise StoreError(f"Epoch {epoch} of the store at {self.path} is sealed: nothing can be recorded any more.")
        path = self.journal_path(epoch, rank)
        end = Journal(path, epoch, rank, self._rows.row_bytes).end() if path.exists() else 0
        return JournalWriter(path, end, journal_head(epoch, rank, self._rows.row_bytes))
