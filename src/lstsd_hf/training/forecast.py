"""How much disk a run's store will take, and what to do where that is too much."""

import math
import shutil
from pathlib import Path

import numpy as np

from ..store import StoreError

_ID_BYTES = 8
_EPOCHS_AT_ONCE = 3  # those that can still teach, and the one that is being sealed


def refuse_full_disk(
    path: Path,
    rows: int,
    row_shape: tuple[int, ...],
    vocabulary: int | None,
    dtype: str,
    epochs: int,
    keeps_all: bool,
    sealed: int,
) -> None:
    """Raises StoreError where the disk has less room than the store will still take, with a journal's copy.

    Args:
        path: The store's folder.
        rows: The number of rows of an epoch.
        row_shape: The shape of a row.
        vocabulary: How many classes a row keeps the `row_shape[0]` largest of; None: it keeps all.
        dtype: "float16" or "float32".
        epochs: How many the run has.
        keeps_all: Whether every epoch is kept; else those that can still teach.
        sealed: The number of epochs that are on disk already, in the checkpoint that the run resumes from.
    """
    kept = max((epochs if keeps_all else min(epochs, _EPOCHS_AT_ONCE)) - sealed, 0)
    itemsize = np.dtype(dtype).itemsize

    def needed(values: int) -> int:
        row_bytes = values * itemsize
        if vocabulary is not None:  # beside each value its class, and the mass of the rest
            row_bytes += values * (2 if vocabulary <= 1 << 16 else 4) + itemsize
        return rows * (kept * row_bytes + 2 * (row_bytes + _ID_BYTES))

    values = math.prod(row_shape)
    free = shutil.disk_usage(path.parent).free
    if needed(values) <= free:
        return
    remedies = ["Free some space", "name a logits_dir on another disk"]
    remedies += ["set logits_retention='needed'"] * keeps_all
    remedies += ["set logits_dtype='float16'"] * (dtype != "float16")
    if vocabulary is not None:
        fitting = next((k for k in range(values - 1, 0, -1) if needed(k) <= free), None)
        remedies += [] if fitting is None else [f"set logits_top_k={fitting}, which fits"]
    raise StoreError(
        f"The logits store at {path} will take about {needed(values) / 1e9:.3g} GB, and {free / 1e9:.3g} GB are "
        f"free: expected room for the whole run. {', or '.join(remedies)}."
    )
