"""Reads what one teacher predicted for the samples of a batch."""

from typing import Any

import numpy as np
import numpy.typing as npt

from ..method.statistics import TAUGHT_FROM
from ..method.teachers import MEAN, PREDICTIONS, Teacher
from ..store import LogitsStore, StoreError
from ..store.rows import VALUES
from .fold import read_folded

Array = npt.NDArray[Any]
Parts = dict[str, Array]


def holds(store: LogitsStore | None, teacher: Teacher, epoch: int, sealed: list[int]) -> bool:
    """Whether the run's store, with these sealed epochs, has what a teacher needs; true if another store has it."""
    if teacher.store is not None or teacher.track == PREDICTIONS:
        return teacher.store is not None or epoch in sealed
    found = None if store is None else store.read_statistic(teacher.track)
    return found is not None and found[0] == epoch


class TeacherReader:
    """One teacher's store, opened at one epoch."""

    def __init__(
        self, path: str, track: str, epoch: int, columns: tuple[int, ...] | None = None, *, is_outside: bool = False
    ) -> None:
        """Opens the store at `path`.

        Args:
            path: The store's folder.
            track: See `Teacher`.
            epoch: The epoch that teaches.
            columns: See `Teacher`.
            is_outside: Whether the store may lack samples that are asked for.

        Raises:
            StoreError: the store, or the statistic, is missing.
        """
        self._store = LogitsStore.open(path)
        self._columns = None if columns is None else list(columns)
        self._is_outside = is_outside
        self._epochs = self._store.sealed_epochs if track == MEAN else [epoch]
        self._statistic: Array | None = None
        if track not in (PREDICTIONS, MEAN):
            found = read_folded(self._store, TAUGHT_FROM[track])
            if found is None or found[0] != epoch:
                raise StoreError(
                    f"{path} holds no statistic {track!r} of epoch {epoch}, which a teacher is read from."
                )
            self._statistic = found[1][:, : self._store.row_shape[0]]

    def read(self, sample_ids: npt.NDArray[np.int64], counts: npt.NDArray[np.int64] | None) -> Parts:
        """The teacher's predictions for B samples, by part of a row; NaN where it has none.

        Args:
            sample_ids: int64 (B,).
            counts: int64 (B,): how many rows each sample has; None if each has one.

        Returns:
            Arrays of shape (B, *row_shape), or with as many rows as `counts` add up to.
        """
        known = self._store.index.knows(sample_ids) if self._is_outside else None
        if known is None or known.all():
            parts = self._mean(sample_ids, counts)
        else:
            parts = self._mean(sample_ids[known], None if counts is None else counts[known])
            has_rows = known if counts is None else np.repeat(known, counts)
            parts = {name: _spread(part, has_rows) for name, part in parts.items()}
        if self._columns is not None:
            parts[VALUES] = parts[VALUES][..., self._columns]
        return parts

    def _mean(self, sample_ids: Array, counts: Array | None) -> Parts:
        """One epoch's predictions, or the mean of the logits over the epochs that have the sample."""
        if len(self._epochs) == 1:
            return self._read(self._epochs[0], sample_ids, counts)
        found = np.stack([self._read(epoch, sample_ids, counts)[VALUES] for epoch in self._epochs]).astype(np.float32)
        there = ~np.isnan(found)
        number = there.sum(axis=0)
        total = np.where(there, found, 0).sum(axis=0)
        return {VALUES: np.where(number > 0, total / np.maximum(number, 1), np.nan).astype(np.float32)}

    def _read(self, epoch: int, sample_ids: Array, counts: Array | None) -> Parts:
        if self._statistic is not None:
            return {VALUES: np.take(self._statistic, self._store.index.rows_of(sample_ids, self._store.path), axis=0)}
        if counts is None:
            return {VALUES: self._store.read(epoch, sample_ids)}
        parts = self._store.read_rows(epoch, sample_ids).aligned(counts)
        # torch has no arithmetic for unsigned integers.
        return {n: part.astype(np.int64) if part.dtype.kind == "u" else part for n, part in parts.items()}


def _spread(rows: Array, has_row: npt.NDArray[np.bool_]) -> Array:
    """Puts the rows where `has_row` is true, and NaN, or 0 for integers, elsewhere."""
    spread = np.full((len(has_row), *rows.shape[1:]), np.nan if rows.dtype.kind == "f" else 0, rows.dtype)
    spread[has_row] = rows
    return spread
