"""The folder of a store: the names of its files, and the arrays in it that have a row for each sample."""

import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import StoreCorruptionError, StoreMismatchError
from .files import checksum_of, copy_bytes, link, publish, writing
from .journal import Journal
from .manifest import read_manifest, write_manifest

_JOURNAL_NAME = re.compile(r"epoch-(\d{4,})\.rank-(\d{5,})\.journal")
_STATISTIC_NAME = re.compile(r"(?!epoch$)[a-z_]+")


class StoreFolder:
    """What lies in a store's folder beside the predictions: the training labels, and statistics of the epochs.

    Attributes:
        path: The folder.
        num_samples: The largest sample id plus 1.
        row_bytes: The size of one sample's prediction.
    """

    def __init__(self, path: str | os.PathLike[str], num_samples: int, row_bytes: int) -> None:
        self.path = Path(path)
        self.num_samples = num_samples
        self.row_bytes = row_bytes

    @property
    def note(self) -> dict[str, Any]:
        """What the last `LogitsStore.copy` was told to note; empty in a store that is no copy."""
        return read_manifest(self.path)["note"]

    # ---- the names of files

    def epoch_path(self, epoch: int) -> Path:
        """The file of a sealed epoch."""
        return self.path / f"epoch-{epoch:04d}.npy"

    def journal_path(self, epoch: int, rank: int) -> Path:
        """Where one process records an open epoch."""
        return self.path / "open" / f"epoch-{epoch:04d}.rank-{rank:05d}.journal"

    def statistic_path(self, name: str, epoch: int) -> Path:
        """The file of a statistic of the epochs up to `epoch`."""
        return self.path / f"{name}-{epoch:04d}.npy"

    @property
    def labels_path(self) -> Path:
        """The file of the training labels."""
        return self.path / "labels.npy"

    def unchanging_files(self, manifest: dict[str, Any]) -> dict[Path, str]:
        """The files that never change again, with the checksums that the manifest has of them."""
        files = {self.epoch_path(int(epoch)): checksum for epoch, checksum in manifest["sealed"].items()}
        for key, checksum in manifest["statistics"].items():
            name, epoch = key.split()
            files[self.statistic_path(name, int(epoch))] = checksum
        if manifest["labels"] is not None:
            files[self.labels_path] = manifest["labels"]
        return files

    def journals(self, epoch: int | None = None) -> list[Journal]:
        """The journals of one epoch, or of all."""
        manifest = read_manifest(self.path)
        # There may be no such folder: the Hub keeps no empty ones.
        found = ((_JOURNAL_NAME.fullmatch(path.name), path) for path in sorted((self.path / "open").glob("*")))
        journals = [
            Journal(path, int(match[1]), int(match[2]), self.row_bytes)
            for match, path in found
            if match and epoch in (None, int(match[1]))
        ]
        if manifest["note"]:  # A copy names its journals; others were left by an earlier copy, in a folder on the Hub.
            journals = [journal for journal in journals if f"{journal.epoch} {journal.rank}" in manifest["open"]]
        return journals

    def _verify_files(self) -> None:
        """Compares every file with its checksum. Raises StoreCorruptionError, naming the first that differs."""
        manifest = read_manifest(self.path)
        for path, checksum in self.unchanging_files(manifest).items():
            if not path.is_file():
                raise StoreCorruptionError(f"{path} is missing: the manifest of its store names it.")
            found = checksum_of(path)
            if found != checksum:
                raise StoreCorruptionError(f"{path} is damaged: expected checksum {checksum}, found {found}.")
        for journal in self.journals():
            for block in journal.blocks():
                journal.ids(block)
        for key, size in manifest["open"].items():
            epoch, rank = map(int, key.split())
            path = self.journal_path(epoch, rank)
            if not path.is_file() or path.stat().st_size < size:
                raise StoreCorruptionError(f"{path} is missing or cut off: expected {size} bytes.")

    def _copy_files(self, path: Path, note: dict[str, Any]) -> None:
        """Makes a folder with what this one holds now, and a note, in place of what is there."""
        temporary = path.with_name(f"{path.name}.tmp")
        manifest = read_manifest(self.path)
        journals = self.journals()
        # Up to the last complete block: what a crash cut off is not part of the copy, whose size is exact.
        ends = [journal.end() for journal in journals]
        manifest["open"] = {
            f"{journal.epoch} {journal.rank}": end for journal, end in zip(journals, ends, strict=True)
        }
        manifest["note"] = note
        with writing(path):
            for folder in (temporary, path):
                if folder.exists():
                    shutil.rmtree(folder)
            (temporary / "open").mkdir(parents=True)
            for file in self.unchanging_files(manifest):
                link(file, temporary / file.name)
            for journal, end in zip(journals, ends, strict=True):
                with journal.path.open("rb") as source, (temporary / "open" / journal.path.name).open("wb") as target:
                    copy_bytes(source, target, end)
            write_manifest(temporary, manifest)
            os.rename(temporary, path)

    # ---- labels and statistics

    def write_labels(self, labels: npt.ArrayLike) -> None:
        """Stores the training labels, (num_samples, ...), row i for sample id i, for whoever reads the predictions."""
        checksum = self._publish_array(self.labels_path, self._row_for_each_sample(labels, "labels"))
        with writing(self.labels_path):
            write_manifest(self.path, read_manifest(self.path) | {"labels": checksum})

    def read_labels(self) -> npt.NDArray[Any] | None:
        """The training labels, (num_samples, ...), mapped from the disk; None where none were stored.

        Raises:
            StoreCorruptionError: the file is missing or damaged, or has another number of labels.
        """
        if read_manifest(self.path)["labels"] is None:
            return None
        return self._map_array(self.labels_path)

    def write_statistic(self, name: str, epoch: int, values: npt.ArrayLike) -> None:
        """Publishes a statistic of the epochs up to `epoch`, which replaces that of the epochs up to an earlier one.

        Args:
            name: In small letters; not "epoch".
            epoch: The last epoch that it is of.
            values: (num_samples, ...), row i for sample id i.
        """
        if not _STATISTIC_NAME.fullmatch(name):
            raise ValueError(f"name={name!r}: expected small letters for the name of a statistic, and not 'epoch'.")
        path = self.statistic_path(name, epoch)
        checksum = self._publish_array(path, self._row_for_each_sample(values, f"values of {name!r}"))
        manifest = read_manifest(self.path)
        earlier = [old for old in self._epochs_of(name, manifest) if old != epoch]
        for old in earlier:
            del manifest["statistics"][f"{name} {old}"]
        manifest["statistics"][f"{name} {epoch}"] = checksum
        with writing(path):
            write_manifest(self.path, manifest)
            for old in earlier:
                self.statistic_path(name, old).unlink(missing_ok=True)

    def read_statistic(self, name: str) -> tuple[int, npt.NDArray[Any]] | None:
        """The last epoch that a statistic is of, and its values, (num_samples, ...), mapped from the disk.

        Returns:
            None where the store has no statistic of that name.

        Raises:
            StoreCorruptionError: the file is missing or damaged, or has another number of rows.
        """
        epochs = self._epochs_of(name, read_manifest(self.path))
        return (max(epochs), self._map_array(self.statistic_path(name, max(epochs)))) if epochs else None

    @staticmethod
    def _epochs_of(name: str, manifest: dict[str, Any]) -> list[int]:
        keys = (key.split() for key in manifest["statistics"])
        return [int(epoch) for found, epoch in keys if found == name]

    def _row_for_each_sample(self, values: npt.ArrayLike, what: str) -> npt.NDArray[Any]:
        array = np.asarray(values)
        if len(array) != self.num_samples:
            raise StoreMismatchError(f"{len(array)} {what} for a store of {self.num_samples} samples.")
        return array

    def _publish_array(self, path: Path, array: npt.NDArray[Any]) -> str:
        """Writes a plain .npy file, and returns its checksum, which the manifest does not name yet."""
        temporary = path.with_name(f".{path.name}.tmp")
        with writing(path):
            with temporary.open("wb") as file:
                np.save(file, array, allow_pickle=False)
            checksum = checksum_of(temporary)
            publish(temporary, path)
        return checksum

    def _map_array(self, path: Path) -> npt.NDArray[Any]:
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise StoreCorruptionError(f"{path} is missing or damaged: {error}.") from error
        if len(array) != self.num_samples:
            raise StoreCorruptionError(f"{path} is not of this store: expected {self.num_samples} rows.")
        return array
