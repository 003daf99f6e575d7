"""The folder of a store: the names of its files, checking them, and copying the whole."""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import StoreCorruptionError, StoreError
from .files import checksum_of, copy_bytes, link, remove, temporary_name, writing
from .ids import SampleIndex
from .journal import Journal
from .manifest import NAME, Manifest, read_manifest, write_manifest
from .npy import map_array, map_rows, reason_of
from .rows import VALUES

_BEFORE_THE_MANIFEST = {"open", "ids.npy", *(temporary_name(Path(name)).name for name in ("ids.npy", NAME))}
_IN_A_STORE = re.compile(
    r"open|store\.json|ids\.npy|labels(\.offsets)?\.npy|[a-z_]+-[0-9]{4,10}(\.[a-z]+)?\.npy|log-[0-9]+\.json|\..*\.tmp"
)
_JOURNAL_NAME = re.compile(r"epoch-([0-9]{4,10})\.rank-([0-9]{5,10})\.journal")


class StoreFolder:
    """The files of a store.

    Attributes:
        path: The folder.
        index: Which row of a file belongs to which sample id.
        row_bytes: The size in bytes of one row in a journal.
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
        """Whether this store of an earlier run was moved aside by a later run."""
        return read_manifest(self.path)["aside"]

    def mark_aside(self) -> None:
        """Notes that the store was moved aside, and that nothing needs it at its present path."""
        manifest = read_manifest(self.path)
        manifest["aside"] = True
        write_manifest(self.path, manifest)

    @property
    def note(self) -> dict[str, Any]:
        """The note given to the `LogitsStore.copy` that made this store; empty in a store that is not a copy."""
        return read_manifest(self.path)["note"]

    @property
    def source(self) -> dict[str, Any]:
        """What made the predictions, in a store of `record_predictions`; empty in a run's store. By name:

        - model: its class, and a hash of its weights
        - inputs: the names of its input columns; the statistic "inputs" has a hash of each value, (rows, columns)
        - tokenizer, max_length: how the inputs were made, each None if not known
        - classes: the model's names of its classes, in order; None if it has none, or they take more than 1 MiB
        - batch_size: how many samples were predicted at once
        """
        return read_manifest(self.path)["source"]

    @property
    def head(self) -> str:
        """What the rows stand for: a `ProblemType`, such as "regression"; empty if not known.

        Rows of one shape may be scores, the logits of one of C classes, or those of C labels.
        """
        return read_manifest(self.path)["head"]

    def write_head(self, head: str) -> None:
        """Notes what the rows stand for."""
        manifest = read_manifest(self.path)
        if manifest["head"] != head:
            manifest["head"] = head
            write_manifest(self.path, manifest)

    @property
    def sealed_epochs(self) -> list[int]:
        """The epochs that can be read, ascending. Read from the manifest, as another process may seal one."""
        return sorted(self.epoch_checksums)

    @property
    def epoch_checksums(self) -> dict[int, str]:
        """The checksum of each sealed epoch's file."""
        return {int(epoch): checksum for epoch, checksum in read_manifest(self.path)["sealed"].items()}

    @property
    def open_epochs(self) -> list[int]:
        """The epochs that have a journal of any process, ascending."""
        return sorted({journal.epoch for journal in self.journals()})

    # ---- the names of files

    def epoch_path(self, epoch: int) -> Path:
        """The file of a sealed epoch."""
        return self.path / f"epoch-{epoch:04d}.npy"

    def part_path(self, part: str, epoch: int) -> Path:
        """The file of one part of a sealed epoch's rows: its values, or another part that the row layout keeps."""
        return self.epoch_path(epoch) if part == VALUES else self.path / f"epoch-{epoch:04d}.{part}.npy"

    def journal_path(self, epoch: int, rank: int) -> Path:
        """The file in which one process records an open epoch."""
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
        """The file that says where each sample's labels begin, in a store with a label for each row."""
        return self.path / "labels.offsets.npy"

    def log_path(self, entries: int) -> Path:
        """The file of the run's log with this number of entries."""
        return self.path / f"log-{entries:06d}.json"

    def unchanging_files(self, manifest: Manifest) -> dict[Path, str]:
        """The files that never change again, with their checksums from the manifest."""
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
        """The journals of one epoch, or of all epochs.

        Raises:
            StoreCorruptionError: a file has a journal's suffix, but not the name of any epoch's journal.
        """
        manifest = read_manifest(self.path)
        journals = []
        # The folder may be missing, because the Hub keeps no empty folders.
        for path in sorted((self.path / "open").glob("*.journal")):
            match = _JOURNAL_NAME.fullmatch(path.name)
            numbers = (0, 0) if match is None else (int(match[1]), int(match[2]))
            if self.journal_path(*numbers).name != path.name or max(numbers) >= 2**32:
                raise StoreCorruptionError(f"{path} is no journal of this store: wrong name. Move it aside.")
            # A copy names its journals. In a folder on the Hub, others may be left from an earlier copy.
            if epoch in (None, numbers[0]) and (not manifest["note"] or "{} {}".format(*numbers) in manifest["open"]):
                journals.append(Journal(path, *numbers, self.row_bytes))
        return journals

    # ---- the whole folder

    def _verify_files(self) -> None:
        """Compares every file with its checksum. Raises StoreCorruptionError that names the first bad file."""
        manifest = read_manifest(self.path)
        parts = (key.split() for key in manifest["parts"])
        epochs = {self.epoch_path(int(epoch)) for epoch in manifest["sealed"]}
        epochs |= {self.part_path(part, int(epoch)) for part, epoch in parts}  # the row layout checks their rows
        if manifest["label_offsets"] is not None:
            epochs |= {self.labels_path, self.label_offsets_path}  # see `read_row_labels`
        for path, checksum in self.unchanging_files(manifest).items():
            with self._unless(lambda *own: own not in self._named(), path, checksum):
                check_file(path, checksum, None if path in epochs else self.index.num_rows)
        for key, size in manifest["open"].items():
            path = self.journal_path(*map(int, key.split()))
            if not path.is_file() or path.stat().st_size < size:
                raise StoreCorruptionError(f"{path} is missing or cut off: expected {size} bytes.")

    def _named(self) -> set[tuple[Path, str]]:
        """The files that the manifest names at present, each with its checksum."""
        return set(self.unchanging_files(read_manifest(self.path)).items())

    @staticmethod
    @contextmanager
    def _unless(is_gone: Callable[..., bool], *what: Any) -> Iterator[None]:
        """Lets a StoreCorruptionError pass unless what was checked has meanwhile been dropped, by a run under way."""
        try:
            yield
        except StoreCorruptionError:
            if not is_gone(*what):
                raise

    def _copy_files(self, path: Path, note: dict[str, Any]) -> None:
        """Copies the present content of this folder to `path`, with a note, replacing what is there."""
        temporary = path.with_name(f"{path.name}.tmp")
        manifest = read_manifest(self.path)
        journals = self.journals()
        # Only up to the last complete block. The manifest gives the exact size, so nothing cut off may follow.
        ends = [journal.end() for journal in journals]
        manifest["open"] = {
            f"{journal.epoch} {journal.rank}": end for journal, end in zip(journals, ends, strict=True)
        }
        manifest["note"], manifest["aside"] = note, False
        with writing(path):
            remove_unfinished_copy(temporary)
            try:
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
    """Raises StoreCorruptionError if a file is missing, or does not match its checksum or its number of rows."""
    try:
        # The header first, so that a file that is larger than it says is not read.
        if path.suffix == ".npy":
            _ = map_array(path) if rows is None else map_rows(path, rows)
        found = checksum_of(path)
    except FileNotFoundError as error:
        raise StoreCorruptionError(f"{path} is missing: the manifest of its store names it.") from error
    except (OSError, ValueError) as error:
        raise StoreCorruptionError(f"{path} is damaged: {reason_of(error)}.") from error
    if found != checksum:
        raise StoreCorruptionError(f"{path} is damaged: expected checksum {checksum}, found {found}.")


def is_unfinished(path: Path) -> bool:
    """Whether a folder holds only what is left of a `LogitsStore.create` that was cut off: no manifest yet."""
    names = {entry.name for entry in path.iterdir()}
    return names <= _BEFORE_THE_MANIFEST and "open" in names and not any((path / "open").iterdir())


def remove_unfinished_copy(path: Path) -> None:
    """Removes what is left of a copy that was cut off. Raises StoreError if there is anything else at `path`."""
    if path.is_symlink() or not path.exists():
        path.unlink(missing_ok=True)
    elif path.is_dir() and all(_IN_A_STORE.fullmatch(entry.name) for entry in path.iterdir()):
        remove(path)
    else:
        raise StoreError(f"{path} is in the way of a copy that is made under this name: expected nothing. Move it.")


def ids_path(path: Path) -> Path:
    """The file of the sample ids, in a store that keeps them."""
    return path / "ids.npy"
