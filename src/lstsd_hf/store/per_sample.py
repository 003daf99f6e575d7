"""What a store holds for each sample besides its predictions: the training label, and statistics of the epochs."""

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import StoreCorruptionError, StoreMismatchError
from .files import discard, replacing
from .folder import check_file
from .journal import Journal
from .manifest import Manifest, read_manifest, refuse_epoch, write_manifest
from .npy import map_rows, reason_of, write_array
from .ragged import RaggedRows, RowLabels, open_labels
from .training_log import TrainingLog

_NO_LABEL = -100  # ignored by losses
_STATISTIC_NAME = re.compile(r"(?!epoch$)[a-z_]+")


class PerSampleFiles(TrainingLog):
    """The files with a row for each sample, other than an epoch's predictions."""

    # ---- texts

    @property
    def texts(self) -> dict[str, str]:
        """By column of the user's file, the fingerprint of the texts that a run was trained on; empty if not known."""
        return read_manifest(self.path)["texts"]

    @property
    def label_column(self) -> str | None:
        """The column of the user's file whose labels a run was trained on; None if not known."""
        return read_manifest(self.path)["label_column"]

    def write_texts(self, texts: dict[str, str], label_column: str | None = None) -> None:
        """Notes the fingerprints of the texts by column, and the name of the label column.

        Each fingerprint is printable text of at most 1,000 characters.
        """
        manifest = read_manifest(self.path)
        manifest["texts"], manifest["label_column"] = texts, label_column
        write_manifest(self.path, manifest)

    # ---- labels

    @property
    def label_changes(self) -> list[dict[str, Any]]:
        """The corrections of the labels, oldest first, each with

        - epoch, step: when the run went on with the new labels. Earlier predictions, from models that had learnt the
          old labels, are unchanged.
        - samples: how many labels changed; None if the store did not know the labels
        - before: the fingerprint that the store had before
        """
        return read_manifest(self.path)["label_changes"]

    def write_labels(self, labels: npt.ArrayLike | None, sample_ids: npt.ArrayLike | None = None) -> None:
        """Stores the training labels beside the predictions.

        Args:
            labels: Numbers (N, ...); None: the store no longer has labels.
            sample_ids: (N,) the samples of these labels; other samples get -100, or NaN if labels are floating-point.
                None: the labels are of all rows of a sealed file, in the order of `self.sample_ids`.

        Raises:
            StoreMismatchError: there is not one label for each row or sample id.
        """
        checksum = None
        if labels is not None:
            checksum = write_array(self.labels_path, self._labels_by_row(labels, sample_ids))
        manifest = read_manifest(self.path)
        manifest["labels"] = checksum
        write_manifest(self.path, manifest)
        if labels is None:
            discard(self.labels_path)

    def read_labels(self) -> npt.NDArray[Any] | None:
        """The training labels, (rows, ...), memory-mapped; None if the manifest names none.

        A store with ragged rows has a label for each row instead: see `read_row_labels`.

        Raises:
            StoreCorruptionError: the file is missing or damaged, or has another number of labels.
        """
        manifest = read_manifest(self.path)
        if manifest["labels"] is None or manifest["label_offsets"] is not None:
            return None
        return self._intact(self.labels_path)

    def read_row_labels(self) -> RowLabels | None:
        """The label of each row in a store with ragged rows, memory-mapped; None if there are none.

        They were recorded with the rows of each sample's first epoch: the class of a labelled token; the token that a
        language model should have predicted; or, for a position in question answering, 1 if the answer starts there,
        2 if it ends there, 3 for both, 0 for neither.

        Raises:
            StoreCorruptionError: a file is missing or damaged.
        """
        if read_manifest(self.path)["label_offsets"] is None:
            return None
        return open_labels(self.labels_path, self.label_offsets_path, self.index.num_rows)

    def take_row_labels(self, rows: RaggedRows, journals: list[Journal], manifest: Manifest) -> None:
        """Publishes an epoch's recorded labels of the samples that have none yet.

        Args:
            rows: The row layout of the journals.
            journals: The journals of the epoch.
            manifest: Gets the checksums; the caller writes it.
        """
        known, changes = self.read_row_labels(), manifest["label_changes"]
        found = rows.find_new_labels(journals, known, changes[-1]["step"] if changes else 0)
        if found is None:
            return
        if known is not None:
            # If a crash comes between the two files, the labels count as unknown and are taken from a later epoch.
            on_disk = read_manifest(self.path)
            on_disk["labels"] = on_disk["label_offsets"] = None
            write_manifest(self.path, on_disk)
        with replacing(self.labels_path) as labels, replacing(self.label_offsets_path) as offsets:
            checksums = rows.write_labels(labels, offsets, journals, found, known)
        manifest["labels"], manifest["label_offsets"] = checksums

    def changed_labels(self, labels: npt.ArrayLike, sample_ids: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """The ids, ascending, of samples whose stored labels differ from these (N, ...) labels of (N,) samples."""
        before, after = self.read_labels(), self._labels_by_row(labels, sample_ids)
        if before is None or before.shape != after.shape:
            return np.sort(np.asarray(sample_ids, np.int64))
        same = (before == after) | ((before != before) & (after != after))  # a NaN differs from itself
        return self.sample_ids[~same.reshape(len(same), -1).all(axis=1)]

    def relabel(
        self,
        labels: npt.ArrayLike | None,
        sample_ids: npt.ArrayLike | None,
        fingerprint: str,
        *,
        epoch: int,
        step: int,
        kept: Collection[str] = (),
    ) -> None:
        """Replaces the labels by corrected ones, and notes it in `label_changes`. Predictions stay as they are.

        Statistics that depend on labels are dropped.

        Args:
            labels: As for `write_labels`; None: the store no longer has labels. With ragged rows they are not used:
                labels are taken from what is recorded from now on.
            sample_ids: The samples of these labels.
            fingerprint: The fingerprint of the data set with the new labels.
            epoch: The epoch in which the run goes on.
            step: The training step after which it goes on.
            kept: The names of the statistics that do not depend on labels.
        """
        manifest = read_manifest(self.path)
        changed = None
        if labels is None or sample_ids is None or manifest["layout"]:
            manifest["labels"] = manifest["label_offsets"] = None
        else:
            changed = None if manifest["labels"] is None else len(self.changed_labels(labels, sample_ids))
            manifest["labels"] = write_array(self.labels_path, self._labels_by_row(labels, sample_ids))
        change = {"epoch": epoch, "step": step, "samples": changed, "before": manifest["fingerprint"]}
        manifest["label_changes"] = [*manifest["label_changes"], change]
        manifest["fingerprint"] = fingerprint
        dropped = [key for key in manifest["statistics"] if key.split()[0] not in kept]
        for key in dropped:
            del manifest["statistics"][key]
        write_manifest(self.path, manifest)
        for key in dropped:
            name, last = key.split()
            discard(self.statistic_path(name, int(last)))

    def _labels_by_row(self, labels: npt.ArrayLike, sample_ids: npt.ArrayLike | None) -> npt.NDArray[Any]:
        array = np.asarray(labels)
        if array.dtype.kind in "bu":
            array = array.astype(np.int64)
        if sample_ids is None:
            return _with_rows(array, self.index.num_rows, "labels")
        rows = self.index.rows_of(sample_ids, self.path)
        _with_rows(array, len(rows), "labels")
        fill = np.nan if array.dtype.kind == "f" else _NO_LABEL
        by_row = np.full((self.index.num_rows, *array.shape[1:]), fill, array.dtype)
        by_row[rows] = array
        return by_row

    # ---- statistics

    def write_statistic(self, name: str, epoch: int, values: npt.ArrayLike) -> None:
        """Publishes a statistic of the epochs up to `epoch`, replacing its values for any other epoch.

        Args:
            name: Lower-case letters and underscores; not "epoch".
            epoch: The last epoch that the statistic includes.
            values: Numbers (rows, ...), in the order of `self.sample_ids`.
        """
        if not _STATISTIC_NAME.fullmatch(name):
            raise ValueError(f"name={name!r}: expected small letters for the name of a statistic, and not 'epoch'.")
        refuse_epoch(epoch)
        path = self.statistic_path(name, epoch)
        checksum = write_array(path, _with_rows(np.asarray(values), self.index.num_rows, f"values of {name!r}"))
        manifest = read_manifest(self.path)
        earlier = [old for old in _epochs_of(name, manifest) if old != epoch]
        for old in earlier:
            del manifest["statistics"][f"{name} {old}"]
        manifest["statistics"][f"{name} {epoch}"] = checksum
        write_manifest(self.path, manifest)
        for old in earlier:
            discard(self.statistic_path(name, old))

    def read_statistic(self, name: str) -> tuple[int, npt.NDArray[Any]] | None:
        """The last epoch that a statistic includes, and its values, (rows, ...), memory-mapped.

        Returns:
            None if the store has no statistic of that name.

        Raises:
            StoreCorruptionError: the file is missing or damaged, or has another number of rows.
        """
        epochs = _epochs_of(name, read_manifest(self.path))
        if not epochs:
            return None
        return max(epochs), self._intact(self.statistic_path(name, max(epochs)))

    def verify_statistic(self, name: str) -> None:
        """Like `LogitsStore.verify`, but compares only the file of this statistic, if there is one."""
        for key, checksum in read_manifest(self.path)["statistics"].items():
            if key.split()[0] == name:
                check_file(self.statistic_path(name, int(key.split()[1])), checksum, self.index.num_rows)

    def _intact(self, path: Path) -> npt.NDArray[Any]:
        try:
            return map_rows(path, self.index.num_rows)
        except (OSError, ValueError) as error:
            raise StoreCorruptionError(f"{path} is missing or damaged: {reason_of(error)}.") from error


def _epochs_of(name: str, manifest: Manifest) -> list[int]:
    keys = (key.split() for key in manifest["statistics"])
    return [int(epoch) for found, epoch in keys if found == name]


def _with_rows(array: npt.NDArray[Any], rows: int, what: str) -> npt.NDArray[Any]:
    if not array.ndim or len(array) != rows:
        found = len(array) if array.ndim else "no"
        raise StoreMismatchError(f"{found} {what} for a store of {rows} samples.")
    return array
