"""The sealed epochs of a store: reading them by sample id, and dropping them."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from .errors import StoreCorruptionError, StoreError
from .files import discard
from .folder import check_file
from .ids import SampleIndex
from .manifest import Manifest, read_manifest, write_manifest
from .per_sample import PerSampleFiles
from .ragged import RaggedRows, Rows, TopKRows
from .rows import VALUES, FixedRows


class SealedEpochs(PerSampleFiles):
    """The part of `LogitsStore` that reads predictions.

    Attributes:
        row_shape: The shape of a row: `(classes,)` for a classifier or a tagger, `(k,)` if rows keep the k largest.
        dtype: "float16" or "float32".
        is_ragged: Whether a sample may have any number of rows.
        vocabulary: The number of classes, if rows keep only the k largest; None if they keep all.
        fingerprint: Identifies the data set that the ids belong to.
    """

    def __init__(self, path: str | os.PathLike[str], manifest: Manifest, index: SampleIndex) -> None:
        layout = manifest["layout"]
        self.row_shape: tuple[int, ...] = tuple(manifest["row_shape"])
        self.dtype: str = manifest["dtype"]
        self.fingerprint: str = manifest["fingerprint"]
        self.is_ragged: bool = bool(layout)
        self.vocabulary: int | None = layout.get("vocabulary")
        self._rows: FixedRows | RaggedRows
        if self.vocabulary is not None:
            self._rows = TopKRows(index, self.row_shape, self.dtype, self.vocabulary)
        else:
            self._rows = (RaggedRows if self.is_ragged else FixedRows)(index, self.row_shape, self.dtype)
        super().__init__(path, index, self._rows.row_bytes)
        self._maps: dict[int, dict[str, npt.NDArray[Any]]] = {}

    def read(self, epoch: int, sample_ids: npt.ArrayLike) -> npt.NDArray[Any]:
        """A copy of a sealed epoch's predictions for (B,) sample ids: (B, *row_shape), in the store's dtype.

        Raises:
            StoreError: the epoch is not sealed, the store has no row for an id, or its rows are ragged.
            StoreCorruptionError: the epoch's file is missing, cut off, or not of the store's shape and dtype.
        """
        if self.is_ragged:
            raise StoreError(f"The samples of the store at {self.path} have any number of rows: use read_rows.")
        return np.take(self.epoch_rows(epoch), self.index.rows_of(sample_ids, self.path), axis=0)

    def read_rows(self, epoch: int, sample_ids: npt.ArrayLike) -> Rows:
        """The rows of (B,) samples in a sealed epoch, of a store with ragged rows; raises as `read`."""
        if not isinstance(self._rows, RaggedRows):
            raise StoreError(f"Every sample of the store at {self.path} has one row: use read.")
        samples = self.index.rows_of(sample_ids, self.path)
        return self._rows.read(self.epoch_parts(epoch), samples)

    def epoch_rows(self, epoch: int) -> npt.NDArray[Any]:
        """All predictions of a sealed epoch, (rows, *row_shape), memory-mapped; raises as `read`."""
        return self.epoch_parts(epoch)[VALUES]

    def epoch_parts(self, epoch: int) -> dict[str, npt.NDArray[Any]]:
        """All files of a sealed epoch, memory-mapped, by part: "values", and for ragged rows the parts in `ragged`."""
        if epoch not in self._maps:
            sealed = self.sealed_epochs
            if epoch not in sealed:
                raise StoreError(f"Epoch {epoch} of the store at {self.path} is not sealed; sealed are {sealed}.")
            self._maps[epoch] = self._rows.open_sealed(self.part_paths(epoch))
        return self._maps[epoch]

    def part_paths(self, epoch: int) -> dict[str, Path]:
        """The paths of a sealed epoch's files, by part of a row."""
        return {part: self.part_path(part, epoch) for part in self._rows.files}

    def checksum_of_epochs(self, epochs: Iterable[int]) -> str:
        """A hash that identifies the content of sealed epochs, made from the checksums of their files."""
        return xxhash.xxh3_128_hexdigest("\n".join(self._checksums(epochs).values()).encode())

    def verify_epochs(self, epochs: Iterable[int]) -> None:
        """Like `LogitsStore.verify`, but compares only the files of these sealed epochs with their checksums."""
        for path, checksum in self._checksums(epochs).items():
            check_file(path, checksum)
        for epoch in epochs:
            self.check_epoch(epoch)

    def check_epoch(self, epoch: int) -> None:
        """Raises StoreCorruptionError if a sealed epoch's files are not of this store, or name unknown classes."""
        parts = self._rows.open_sealed(self.part_paths(epoch))
        if self.vocabulary is not None and int(parts["classes"].max(initial=0)) >= self.vocabulary:
            path = self.part_path("classes", epoch)
            raise StoreCorruptionError(f"{path} is damaged: expected classes from 0 to {self.vocabulary - 1}.")

    def _checksums(self, epochs: Iterable[int]) -> dict[Path, str]:
        paths = [path for epoch in sorted(epochs) for path in self.part_paths(epoch).values()]
        known = self.unchanging_files(read_manifest(self.path))
        return {path: known[path] for path in paths}

    def drop(self, epoch: int) -> None:
        """Deletes a sealed epoch."""
        manifest = read_manifest(self.path)
        self._maps.pop(epoch, None)
        # The manifest first: a file that it does not name is ignored, but a name without its file is damage.
        if manifest["sealed"].pop(str(epoch), None) is not None:
            for part in self._rows.files:
                manifest["parts"].pop(f"{part} {epoch}", None)
            write_manifest(self.path, manifest)
        for path in self.part_paths(epoch).values():
            discard(path)
