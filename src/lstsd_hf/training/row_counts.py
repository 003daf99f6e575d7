"""Warns once in a run about samples whose number of rows changes between epochs: they have no teacher there."""

import warnings
from collections.abc import Sequence

import numpy as np

from ..store import LogitsStore
from ..store.ragged import OFFSETS

_FEW = 5


class RowCounts:
    """Compares the samples' numbers of rows in a sealed epoch with those in the epochs that taught in it."""

    def __init__(self) -> None:
        self._has_warned = False

    def check(self, store: LogitsStore, epoch: int, teaching: Sequence[int]) -> None:
        """Warns, once in a run, if samples have another number of rows than their teachers.

        Args:
            store: The run's store. Nothing is compared if each of its samples has one row.
            epoch: A sealed epoch.
            teaching: The epochs that taught in it. Those that are not sealed are left out.
        """
        sealed = set(store.sealed_epochs)
        if not store.is_ragged or self._has_warned or epoch not in sealed:
            return
        counts = np.diff(store.epoch_parts(epoch)[OFFSETS])
        differ = np.zeros(len(counts), np.bool_)
        for past in sealed.intersection(teaching):
            before = np.diff(store.epoch_parts(past)[OFFSETS])
            differ |= (before != counts) & (before > 0) & (counts > 0)
        if not differ.any():
            return
        self._has_warned = True
        warnings.warn(
            f"In epoch {epoch} {int(differ.sum())} of {int((counts > 0).sum())} samples had another number of rows "
            f"than in the epochs that taught them, first sample ids {store.sample_ids[differ][:_FEW].tolist()}: they "
            "had no teacher. Expected the same tokens and labels in every epoch: truncate, mask and augment where the "
            "data set is made, not in the data collator. Later epochs are not warned of.",
            stacklevel=2,
        )
