"""The folder of a store: the names of its files, their check, and copies of the whole."""

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import StoreCorruptionError
from .files import checksum_of, copy_bytes, link, remove, writing
from .ids import SampleIndex
from .journal import Journal
from .manifest import Manifest, read_manifest, write_manifest
from .npy import map_array, map_rows, reason_of
from .rows import VALUES

_JOURNAL_NAME = re.compile(r"epoch-([0-9]{4,10})\.rank-([0-9]{5,10})\.journal")


class StoreFolder:
    """A store's files.

    Attributes:
        path: The folder.
        index: Which row of a file belongs to which sample id.
        row_bytes: The size of one sample's prediction.
    """

    def __init__(self, path: str | os.PathLike[str], index: SampleIndex, row_bytes: int) -> None:
        self.path = Path(path)
        self.index = index
        self.row_bytes = row_bytes

    @property
    def num_samples(self) -> int:
        """The largest sample id plus 1."""
        return self.index.num_samples

    @property
    def sample_ids(self) -> npt.NDArray[np.int64]:
        """int64 (rows,): the id of each row of a sealed file, ascending."""
        return self.index.all_ids

    @property
    def is_aside(self) -> bool:
        """Whether this was a run's store, and was moved aside by the next one."""
        return read_manifest(self.path)["aside"]

    def mark_aside(self) -> None:
        """Notes that the store was moved aside, so that nothing needs it where it is."""
        manifest = read_manifest(self.path)
        manifest["aside"] = True
        write_manifest(self.path, manifest)

    @property
    def note(self) -> dict[str, Any]:
        """What the last `LogitsStore.copy` was told to note; empty in a store that is no copy."""
        return read_manifest(self.path)["note"]

    @property
    def source(self) -> dict[str, Any]:
        """What made the predictions, in a store of `record_predictions`; empty in a run's. By name:

        - model: its class, and a hash of its weights
        - inputs: the columns that it was given; the statistic "inputs" has a hash of each, (rows, columns)
        - tokenizer, max_length: what is known of how the inputs were made, or None
        - classes: what the model calls its classes, in their order, or None
        - batch_size: how many samples were predicted at once
        """
        return read_manifest(self.path)["source"]

    @property
    def sealed_epochs(self) -> list[int]:
        """The epochs that can be read, ascending; read from the manifest, since another process may seal."""
        return sorted(self.epoch_checksums)

    @property
    def epoch_checksums(self) -> dict[int, str]:
        """The checksum of each sealed epoch's file."""
        return {int(epoch): checksum for epoch, checksum in read_manifest(self.path)["sealed"].items()}

    @property
    def open_epochs(self) -> list[int]:
        """The epochs that have journals, of any process, ascending."""
        return sorted({journal.epoch for journal in self.journals()})

    # ---- the names of files

    def epoch_path(self, epoch: int) -> Path:
        """The file of a sealed epoch."""
        return self.path / f"epoch-{epoch:04d}.npy"

    def part_path(self, part: str, epoch: int) -> Path:
        """The file of a part of a sealed epoch's rows: its values, or what else a row layout keeps."""
        return self.epoch_path(epoch) if part == VALUES else self.path / f"epoch-{epoch:04d}.{part}.npy"

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

    @property
    def label_offsets_path(self) -> Path:
        """Where each sample's labels begin, in a store with a label for each row of a sample."""
        return self.path / "labels.offsets.npy"

    def log_path(self, entries: int) -> Path:
        """The file of the run's log, when it has so many entries."""
        return self.path / f"log-{entries:06d}.json"

    def unchanging_files(self, manifest: Manifest) -> dict[Path, str]:
        """The files that never change again, with the checksums that the manifest has of them."""
        files = {self.epoch_path(int(epoch)): checksum for epoch, checksum in manifest["sealed"].items()}
        for key, checksum in manifest["parts"].items():
            part, epoch = key.split()
            files[self.part_path(part, int(epoch))] = checksum
        for key, checksum in manifest["statistics"].items():
            name, epoch = key.split()
            files[self.statistic_path(name, int(epoch))] = checksum
        files |= {self.log_path(int(entries)): checksum for entries, checksum in manifest["log"].items()}
        if manifest["labels"] is not None:
            files[self.labels_path] = manifest["labels"]
        if manifest["label_offsets"] is not None:
            files[self.label_offsets_path] = manifest["label_offsets"]
        if manifest["ids"] is not None:
            files[ids_path(self.path)] = manifest["ids"]
        return files

    def journals(self, epoch: int | None = None) -> list[Journal]:
        """The journals of one epoch, or of all.

        Raises:
            StoreCorruptionError: a file is called like a journal, and no epoch and process have that name.
        """
        manifest = read_manifest(self.path)
        journals = []
        # There may be no such folder: the Hub keeps no empty ones.
        for path in sorted((self.path / "open").glob("*.journal")):
            match = _JOURNAL_NAME.fullmatch(path.name)
            numbers = (0, 0) if match is None else (int(match[1]), int(match[2]))
            if self.journal_path(*numbers).name != path.name or max(numbers) >= 2**32:
                raise StoreCorruptionError(f"{path} is no journal of this store: wrong name. Move it aside.")
            # A copy names its journals; others were left by an earlier copy, in a folder on the Hub.
            if epoch in (None, numbers[0]) and (not manifest["note"] or "{} {}".format(*numbers) in manifest["open"]):
                journals.append(Journal(path, *numbers, self.row_bytes))
        return journals

    # ---- the whole folder

    def _verify_files(self) -> None:
        """Compares every file with its checksum. Raises StoreCorruptionError, naming the first that differs."""
        manifest = read_manifest(self.path)
        parts = (key.split() for key in manifest["parts"])
        epochs = {self.epoch_path(int(epoch)) for epoch in manifest["sealed"]}
        epochs |= {self.part_path(part, int(epoch)) for part, epoch in parts}  # their rows are their layout's business
        if manifest["label_offsets"] is not None:
            epochs |= {self.labels_path, self.label_offsets_path}  # see `read_row_labels`
        for path, checksum in self.unchanging_files(manifest).items():
            check_file(path, checksum, None if path in epochs else self.index.num_rows)
        for key, size in manifest["open"].items():
            path = self.journal_path(*map(int, key.split()))
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
        manifest["note"], manifest["aside"] = note, False
        with writing(path):
            try:
                remove(temporary)
                (temporary / "open").mkdir(parents=True)
                for file in self.unchanging_files(manifest):
                    link(file, temporary / file.name)
                for journal, end in zip(journals, ends, strict=True):
                    copied = temporary / "open" / journal.path.name
                    with journal.path.open("rb") as source, copied.open("wb") as target:
                        copy_bytes(source, target, end)
                write_manifest(temporary, manifest)
                remove(path)
                os.rename(temporary, path)
            except BaseException:
                remove(temporary)
                raise


def check_file(path: Path, checksum: str, rows: int | None = None) -> None:
    """Raises StoreCorruptionError where a file is missing, or not what its checksum and its number of rows say."""
    try:
        # First, so that no more is read than what the header says.
        if path.suffix == ".npy":
            _ = map_array(path) if rows is None else map_rows(path, rows)
        found = checksum_of(path)
    except FileNotFoundError as error:
        raise StoreCorruptionError(f"{path} is missing: the manifest of its store names it.") from error
    except (OSError, ValueError) as error:
        raise StoreCorruptionError(f"{path} is damaged: {reason_of(error)}.") from error
    if found != checksum:
        raise StoreCorruptionError(f"{path} is damaged: expected checksum {checksum}, found {found}.")


def ids_path(path: Path) -> Path:
    """The file of the sample ids, in a store that keeps them."""
    return path / "ids.npy"
