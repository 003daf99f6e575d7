"""Which row of a store's files belongs to which sample id."""

from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import StoreError

_SPARSE = 4  # the ids are kept if without them more than three of four rows would be empty
_FEW = 5


class SampleIndex:
    """The rows of N samples: row i is sample id i, or `ids[i]` in a store that keeps its ids.

    Attributes:
        num_samples: The largest sample id plus 1.
        num_rows: The number of rows in each file.
        ids: int64 (num_rows,), ascending; None: row i is id i.
    """

    def __init__(self, num_samples: int, ids: npt.NDArray[np.int64] | None = None) -> None:
        """Raises ValueError unless the ids are distinct integers from 0 to num_samples - 1, ascending."""
        if ids is not None and (
            ids.dtype != np.int64
            or ids.ndim != 1
            or not len(ids)
            or not (ids[1:] > ids[:-1]).all()
            or ids[0] < 0
            or int(ids[-1]) >= num_samples
        ):
            raise ValueError(f"expected int64 sample ids from 0 to {num_samples - 1}, ascending, each once")
        self.num_samples = num_samples
        self.ids = ids
        self.num_rows = num_samples if ids is None else len(ids)

    @classmethod
    def of(cls, num_samples: int, sample_ids: npt.ArrayLike | None) -> "SampleIndex":
        """The index of a new store. It keeps the ids if they are far apart.

        Args:
            num_samples: The largest sample id plus 1.
            sample_ids: (N,) in any order; None if they are not known in advance, and row i is id i.

        Raises:
            ValueError: see `__init__`.
        """
        if sample_ids is None:
            return cls(num_samples)
        ids = np.asarray(sample_ids)
        if ids.dtype.kind not in "iu":
            raise ValueError(f"expected integers as sample ids, found {ids.dtype}")
        found = cls(num_samples, np.sort(ids.astype(np.int64, copy=False)))
        return found if num_samples > _SPARSE * found.num_rows else cls(num_samples)

    @property
    def all_ids(self) -> npt.NDArray[np.int64]:
        """int64 (num_rows,): the id of each row."""
        return np.arange(self.num_rows) if self.ids is None else self.ids

    @property
    def expected(self) -> str:
        """The ids that the store has, in words, for a message."""
        if self.ids is None:
            return f"0 to {self.num_samples - 1}"
        return f"one of {self.num_rows} from {self.ids[0]} to {self.ids[-1]}"

    def rows_of(self, sample_ids: npt.ArrayLike, path: object) -> npt.NDArray[Any]:
        """The rows of (B,) sample ids.

        Args:
            sample_ids: Integers.
            path: The store's path, for the message.

        Raises:
            StoreError: the store has no row for some of the ids, or they are not integers of shape (B,).
        """
        ids = np.asarray(sample_ids)
        if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
            raise StoreError(f"Sample ids of shape {ids.shape} and type {ids.dtype}: expected integers of shape (B,).")
        if not ids.size:
            return ids.astype(np.int64)
        if self.ids is None:
            # Checks both ends in one pass: read as unsigned, a negative number is huge.
            if ids.astype(np.int64, copy=False).view(np.uint64).max() < self.num_samples:
                return ids
        else:
            numbers = ids.astype(np.int64, copy=False)  # 2^63 and above become negative, as no id is
            rows = np.minimum(np.searchsorted(self.ids, numbers), self.num_rows - 1)
            if (self.ids[rows] == numbers).all():
                return rows
        raise StoreError(
            f"Sample ids {self.unknown(ids)} are outside of the store at {path}: expected {self.expected}. "
            "Has the training set grown? Start a new run."
        )

    def knows(self, sample_ids: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.bool_]:
        """(B,): whether the store has a row for each of these ids."""
        if self.ids is None:
            return (sample_ids >= 0) & (sample_ids < self.num_samples)
        return np.isin(sample_ids.astype(np.int64, copy=False), self.ids)

    def unknown(self, sample_ids: npt.NDArray[np.integer[Any]]) -> list[int]:
        """The first few of these ids that the store has no row for."""
        return sample_ids[~self.knows(sample_ids)][:_FEW].tolist()
