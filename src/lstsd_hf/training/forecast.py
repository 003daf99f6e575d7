"""How much disk a run's store will take: whether to keep every epoch, and what to do if the disk is too small."""

import math
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers.utils import logging

from ..store import StoreError

_ID_BYTES = 8
_EPOCHS_AT_ONCE = 3  # those that can still teach, and the one that is being sealed

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class Forecast:
    """What is known about a run's store before it is filled.

    Attributes:
        path: The store's folder.
        rows: The number of rows of an epoch.
        row_shape: The shape of a row.
        vocabulary: The number of classes of which a row keeps the `row_shape[0]` largest; None if it keeps all.
        dtype: "float16" or "float32".
        epochs: The number of epochs of the run; None for a stream, which does not tell.
        sealed: The number of epochs that are on disk already, in the checkpoint that the run resumes from.
        names: The user's names for the folder, the dtype and the number of classes that are kept, for messages.
    """

    path: Path
    rows: int
    row_shape: tuple[int, ...]
    vocabulary: int | None
    dtype: str
    epochs: int | None
    sealed: int = 0
    names: tuple[str, str, str] = ("logits_dir", "logits_dtype", "logits_top_k")

    def keeps_all(self, budget: int) -> bool:
        """Whether to keep every epoch: if all of them take at most `budget` bytes, and fit on the disk."""
        if self.epochs is None:
            return False
        size = self.epochs * self.rows * self._row_bytes(math.prod(self.row_shape))
        keeps_all = size <= budget and self._needed(True) <= self._free
        whole = f"The whole history, {self.epochs} epochs, takes about {size / 2**20:.3g} MiB"
        if keeps_all:
            logger.info(f"{whole}: every epoch is kept (logits_retention).")
        else:
            logger.warning(
                f"{whole}, and history_budget is {budget / 2**20:.3g} MiB: only the epochs that can still teach are "
                "kept. Set logits_retention='all', or a larger budget, to keep every epoch for the report."
            )
        return keeps_all

    def refuse_full_disk(self, keeps_all: bool) -> None:
        """Raises StoreError if the disk has less room than the store will still take, with a journal and its copy."""
        free = self._free
        if self._needed(keeps_all) <= free:
            return
        folder, dtype, top_k = self.names
        remedies = ["Free some space", f"name a {folder} on another disk"]
        remedies += ["set logits_retention='needed'"] * (keeps_all and self.epochs not in (None, 1))
        remedies += [f"set {dtype}='float16'"] * (self.dtype != "float16")
        if self.vocabulary is not None:
            fewer = range(math.prod(self.row_shape) - 1, 0, -1)
            fitting = next((k for k in fewer if self._needed(keeps_all, k) <= free), None)
            remedies += [] if fitting is None else [f"set {top_k}={fitting}, which fits"]
        raise StoreError(
            f"The logits store at {self.path} will take about {self._needed(keeps_all) / 1e9:.3g} GB, and "
            f"{free / 1e9:.3g} GB are free: expected room for the whole run. {', or '.join(remedies)}."
        )

    @property
    def _free(self) -> int:
        return shutil.disk_usage(self.path.parent).free

    def _row_bytes(self, values: int) -> int:
        itemsize = np.dtype(self.dtype).itemsize
        if self.vocabulary is None:
            return values * itemsize
        # Each value comes with its class, and each row with the mass of the other classes.
        return values * (itemsize + (2 if self.vocabulary <= 1 << 16 else 4)) + itemsize

    def _needed(self, keeps_all: bool, values: int | None = None) -> int:
        """The bytes that the store will still take, with `values` values in a row; None for those of `row_shape`."""
        kept = _EPOCHS_AT_ONCE
        if self.epochs is not None:
            kept = self.epochs if keeps_all else min(self.epochs, _EPOCHS_AT_ONCE)
        row_bytes = self._row_bytes(math.prod(self.row_shape) if values is None else values)
        return self.rows * (max(kept - self.sealed, 0) * row_bytes + 2 * (row_bytes + _ID_BYTES))
