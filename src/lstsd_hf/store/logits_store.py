"""The logits store: what the model predicted for every training sample in past epochs, on disk.

    <path>/
      store.json            the manifest: see `manifest`
      ids.npy               if ids are far apart: int64 (rows,), ascending; row i is sample ids[i], otherwise sample i
      labels.npy            optional: the training labels, by row
      labels.offsets.npy    if samples have any number of rows: labels.npy then has a label for each row, and this file
                            says where those of each sample begin, as epoch-0000.offsets.npy does for rows
      epoch-0000.npy        sealed: (rows, *row_shape), plain .npy; NaN means no prediction
      margin-0000.npy       optional: a statistic of the epochs up to this one, by row
      log-000037.json       the log of the run that fills the store: see `training_log`
      open/
        epoch-0001.rank-00000.journal    the epoch under way, appended to by one process: see `journal`

Sealed files and the manifest are written under a temporary name, flushed and renamed, so a crash leaves the old state
or the new one. The store needs numpy and a hash, not torch.
"""

import operator
import os
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .epochs import SealedEpochs
from .errors import StoreCorruptionError, StoreError, StoreMismatchError
from .files import discard, protect, replacing, warn_anew, writing
from .folder import ids_path, is_unfinished
from .ids import SampleIndex
from .journal import ID, Journal, JournalWriter, journal_head
from .manifest import DTYPES, Manifest, new_manifest, read_manifest, refuse_epoch, write_manifest
from .npy import map_array, reason_of, write_array
from .ragged import LABELS, NO_LABEL, RaggedRows, by_row, each_once
from .rows import VALUES


class LogitsStore(SealedEpochs):
    """Predictions by epoch and sample id. An open epoch is appended to; sealed epochs are read.

    ```python
    store = LogitsStore.create("out/_logits", num_samples=4, row_shape=(3,), dtype="float16", fingerprint="mine")
    store.record(epoch=0, sample_ids=[2, 0], logits=[[0.1, 0.2, 0.7], [0.5, 0.3, 0.2]])
    store.seal(epoch=0)
    store.read(epoch=0, sample_ids=[0, 1])  # (2, 3): row 1 is NaN, because sample 1 was not recorded
    ```

    Attributes:
        path: The store's folder.
        num_samples: The largest sample id plus 1.
        sample_ids: int64 (rows,): the id of each row of the files, ascending; 0 to num_samples - 1 if no ids are kept.
        row_shape, dtype, is_ragged, vocabulary, fingerprint: see `SealedEpochs`.
    """

    def __init__(self, path: str | os.PathLike[str], manifest: Manifest, index: SampleIndex) -> None:
        """Use `create` or `open`."""
        super().__init__(path, manifest, index)
        self._writers: dict[tuple[int, int], JournalWriter] = {}

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        num_samples: int,
        row_shape: tuple[int, ...],
        dtype: str,
        fingerprint: str,
        ids: npt.ArrayLike | None = None,
        *,
        ragged: bool = False,
        vocabulary: int | None = None,
        source: dict[str, Any] | None = None,
    ) -> "LogitsStore":
        """Creates an empty store in a folder that does not exist yet, is empty, or is left of a call that was cut off.

        Args:
            path: The folder.
            num_samples: The largest sample id plus 1.
            row_shape: The shape of one row of predictions.
            dtype: "float16" or "float32".
            fingerprint: Identifies the data set: printable text of at most 1,000 characters.
            ids: (N,) the sample ids, if they are known in advance. If num_samples is more than 4 N, the store keeps
                them in ids.npy, and files have N rows. Otherwise files have num_samples rows, and row i is id i.
            ragged: Whether a sample may have any number of rows: see `ragged`.
            vocabulary: The number of classes, of which rows keep the `row_shape = (k,)` largest. Implies `ragged`.
            source: What makes the predictions, if it is not a run: see the property `source`.

        Raises:
            ValueError: a size is below 1 or too large; the dtype, fingerprint, vocabulary or source is not allowed; or
                the ids are not distinct integers from 0 to num_samples - 1.
            StoreError: the folder is not empty, or could not be written.
        """
        sizes = [operator.index(size) for size in (num_samples, *row_shape)]
        if min(sizes) < 1:
            raise ValueError(f"num_samples={num_samples}, row_shape={row_shape}: expected sizes of at least 1.")
        if dtype not in DTYPES:
            raise ValueError(f"dtype={dtype!r}: expected one of {', '.join(map(repr, DTYPES))}.")
        layout: dict[str, Any] = {"kind": "ragged"} if ragged else {}
        if vocabulary is not None:
            layout = {"kind": "top_k", "vocabulary": vocabulary}
        manifest = new_manifest(sizes[0], tuple(sizes[1:]), dtype, fingerprint, layout, source or {})
        index = SampleIndex.of(sizes[0], ids)
        path = Path(path)
        warn_anew()
        with writing(path):
            if path.is_dir() and any(path.iterdir()) and not is_unfinished(path):
                raise StoreError(f"{path} is not empty: expected a new folder for the logits store. Move it aside.")
            (path / "open").mkdir(parents=True, exist_ok=True)
        if index.ids is not None:
            manifest["ids"] = write_array(ids_path(path), index.ids)
        write_manifest(path, manifest)
        return cls(path, manifest, index)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "LogitsStore":
        """Opens an existing store.

        Raises:
            StoreError: there is no store, or it cannot be read.
            StoreCorruptionError: its manifest or ids are damaged, of another version, or not those of a logits store.
        """
        path = Path(path)
        manifest = read_manifest(path)
        try:
            ids = None if manifest["ids"] is None else map_array(ids_path(path))
            index = SampleIndex(manifest["num_samples"], ids)
        except (OSError, ValueError) as error:
            raise StoreCorruptionError(f"{ids_path(path)} is missing or damaged: {reason_of(error)}.") from error
        return cls(path, manifest, index)

    def expect(self, *, num_samples: int, row_shape: tuple[int, ...], dtype: str, fingerprint: str) -> None:
        """Raises StoreMismatchError if this store was made for anything other than what is expected."""
        expected = {"num_samples": num_samples, "row_shape": row_shape, "dtype": dtype, "fingerprint": fingerprint}
        wrong = [
            f"{name} {value!r}, found {getattr(self, name)!r}"
            for name, value in expected.items()
            if getattr(self, name) != value
        ]
        if wrong:
            raise StoreMismatchError(
                f"The logits store at {self.path} belongs to another training set, label column, model head or dtype: "
                f"expected {'; '.join(wrong)}. Train on what it was made for, or start anew, without "
                "resume_from_checkpoint."
            )

    # ---- epochs

    def record(
        self,
        epoch: int,
        sample_ids: npt.ArrayLike,
        logits: npt.ArrayLike,
        *,
        counts: npt.ArrayLike | None = None,
        labels: npt.ArrayLike | None = None,
        step: int = 0,
        rank: int = 0,
        **parts: npt.ArrayLike,
    ) -> None:
        """Appends one batch of predictions to an open epoch.

        Args:
            epoch: The epoch under way, from 0.
            sample_ids: Integers of shape (B,).
            logits: Numbers of shape (B, *row_shape), or (R, *row_shape) for ragged rows, sample by sample. Values
                beyond the dtype's range are clipped to it and counted. A row with a value that is not finite is
                recorded as NaN, which means no prediction.
            counts: (B,) the number of ragged rows of each sample, R in all.
            labels: Integers (R,), the label of each ragged row: see `read_row_labels`.
            step: The training step. If an epoch has a sample twice, the lower step wins, then the lower rank, then
                the earlier record.
            rank: The recording process. Only one process may write a rank's journal.
            **parts: For rows that keep the k largest: `classes` (R, k) and `rest` (R,).

        Raises:
            StoreError: the store has no row for an id, the epoch is sealed, or the disk is full. The batch is then not
                recorded; all earlier batches are.
            StoreMismatchError: the shape, the type or a value of the logits or of another part does not fit the store.
            ValueError: the epoch or the rank is not a number from 0 to 2^32 - 1, or the step is none of 64 bits.
        """
        ids = np.asarray(sample_ids)
        self.index.rows_of(ids, self.path)
        rows = {VALUES: np.asarray(logits), **{name: np.asarray(part) for name, part in parts.items()}}
        of_rows = ids
        if counts is not None:
            counts = np.asarray(counts)
            of_rows = by_row(ids, counts)
        if labels is not None or self.is_ragged:
            rows[LABELS] = np.full(len(of_rows), NO_LABEL, np.int32) if labels is None else np.asarray(labels)
        found, expected = {name: part.shape for name, part in rows.items()}, self._rows.shapes(len(of_rows))
        if found != expected or self.is_ragged != (counts is not None):
            raise _misfit(self, found, expected, len(of_rows), counts is not None)
        if counts is not None:
            ids, rows = each_once(ids, counts, of_rows, rows)
        if not len(ids):
            return
        payload, clipped = self._rows.encode(rows)
        writer = self._writers.get((epoch, rank))
        if writer is None:
            writer = self._writers[epoch, rank] = self._open_journal(epoch, rank)
        writer.append(step, len(ids), clipped, ids.astype(ID, copy=False).tobytes(), payload)

    def seal(self, epoch: int) -> None:
        """Turns the journals of all ranks of an epoch into read-only files, unless that has been done already.

        Call it in one process, when no process records the epoch any more. A sample that was not recorded gets NaN, or
        no rows if the store is ragged.

        Raises:
            ValueError: the epoch is not a number from 0 to 2^32 - 1.
            StoreCorruptionError: a journal is damaged.
            StoreError: the disk is full; the journals are still there.
        """
        refuse_epoch(epoch)
        for key in [key for key in self._writers if key[0] == epoch]:
            self._writers.pop(key).close()
        manifest = read_manifest(self.path)
        journals = self.journals(epoch)
        if str(epoch) not in manifest["sealed"]:
            with ExitStack() as files:
                paths = {part: files.enter_context(replacing(path)) for part, path in self.part_paths(epoch).items()}
                clipped, checksums = self._rows.write_sealed(paths, journals)
                for path in paths.values():
                    protect(path)
            manifest["sealed"][str(epoch)] = checksums.pop(VALUES)
            manifest["parts"] |= {f"{part} {epoch}": checksum for part, checksum in checksums.items()}
            if isinstance(self._rows, RaggedRows):
                self.take_row_labels(self._rows, journals, manifest)
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
            discard(journal.path)

    # ---- the whole store

    def verify(self) -> None:
        """Reads every file in full and compares it with its checksum, also while a run goes on filling the store.

        Raises:
            StoreCorruptionError: a file is missing, damaged, or not what the manifest says; the first one is named.
        """
        self._verify_files()
        self.read_row_labels()
        self._verify_log()
        for epoch in self.sealed_epochs:
            with self._unless(lambda number: number not in self.sealed_epochs, epoch):
                self.check_epoch(epoch)
        for journal in self.journals():
            with self._unless(lambda path: not path.exists(), journal.path):
                for block in journal.blocks():
                    self._rows.rows_of(journal, block)

    def copy(self, path: str | os.PathLike[str], note: dict[str, Any]) -> "LogitsStore":
        """Copies the store, as it is now, to another folder, with a note; replaces what is there.

        Sealed files never change again, so they become hard links, or copies if the file system has none. With links,
        only the open epoch is written. No other process may record meanwhile.

        Args:
            path: The new store's folder.
            note: Plain values, which the copy's `note` returns.
        """
        self._copy_files(Path(path), note)
        return LogitsStore.open(path)

    def close(self) -> None:
        """Closes the journals that this process writes and the epochs that it reads. The store can still be used."""
        self._maps.clear()
        while self._writers:
            self._writers.popitem()[1].close()

    def _open_journal(self, epoch: int, rank: int) -> JournalWriter:
        refuse_epoch(epoch, rank)
        if epoch in self.sealed_epochs:
            raise StoreError(f"Epoch {epoch} of the store at {self.path} is sealed: nothing can be recorded any more.")
        path = self.journal_path(epoch, rank)
        end = Journal(path, epoch, rank, self._rows.row_bytes).end() if path.exists() else 0
        return JournalWriter(path, end, journal_head(epoch, rank, self._rows.row_bytes))


def _misfit(
    store: LogitsStore,
    found: dict[str, tuple[int, ...]],
    expected: dict[str, tuple[int, ...]],
    rows: int,
    has_counts: bool,
) -> StoreMismatchError:
    """The error about parts of `rows` rows whose shapes are not the expected ones, or about counts."""
    if store.is_ragged != has_counts:
        return StoreMismatchError(
            f"{'Counts' if has_counts else 'Rows without counts'} do not fit the store at {store.path}: expected "
            + ("how many rows each sample has." if store.is_ragged else "one row for each sample id.")
        )
    wrong = next(name for name in (*expected, *found) if found.get(name) != expected.get(name))
    return StoreMismatchError(
        f"{'Logits' if wrong == VALUES else wrong.capitalize()} of shape {found.get(wrong)} for {rows} "
        f"{'rows' if store.is_ragged else 'sample ids'} do not fit the store at {store.path}: expected "
        f"{expected.get(wrong)}. Has the number of labels changed? Start a new run. Does the number of choices vary "
        "(multiple choice)? Fill it up: every sample needs as many."
    )
