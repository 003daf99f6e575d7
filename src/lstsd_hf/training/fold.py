"""Folds the statistics of a run at the end of an epoch: see `method.statistics`."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from ..method.heads import Head, name_of
from ..method.statistics import TAUGHT_FROM, Statistic
from ..method.teachers import Teacher
from ..store import LogitsStore, StoreCorruptionError

_VALUES_AT_ONCE = 4 << 20


def fold_statistics(store: LogitsStore, epoch: int, head: Head, teachers: Iterable[Teacher] = ()) -> None:
    """Adds the epoch that was just sealed to the run's statistics, in chunks of samples, and writes them.

    Also notes the head, see `LogitsStore.head`.

    Args:
        store: The run's store.
        epoch: The epoch.
        head: Names the statistics that the report needs, if there are labels.
        teachers: The run's teachers. One of the run's own past may be read from a statistic.
    """
    store.write_head(name_of(head) or "")
    labels = store.read_labels()
    kept = () if labels is None else head.statistics(labels)
    tracks = {
        teacher.track for teacher in teachers if teacher.store is None and teacher.weight_of(epoch + 1, epoch + 2)
    }
    for statistic in (*kept, *(TAUGHT_FROM[track] for track in sorted(tracks & TAUGHT_FROM.keys()))):
        found = read_folded(store, statistic)
        last, values = (-1, None) if found is None else found
        if found is None and store.label_changes:
            # It was dropped with the old labels, so it is folded anew over the epochs that the store still has.
            epochs = [sealed for sealed in store.sealed_epochs if sealed <= epoch]
        elif last == epoch - 1 or statistic.teaches:
            epochs = [epoch]
        else:
            continue  # a gap: a run that was resumed without its logits, or from a store that has no statistics
        for number in epochs:
            values = _fold(statistic, values, store.epoch_rows(number), labels)
        assert values is not None
        store.write_statistic(statistic.name, epoch, values)


def read_folded(store: LogitsStore, statistic: Statistic) -> tuple[int, npt.NDArray[Any]] | None:
    """As `LogitsStore.read_statistic`. Raises StoreCorruptionError also for values that no run has folded."""
    found = store.read_statistic(statistic.name)
    if found is not None:
        shape = (store.index.num_rows, statistic.width(math.prod(store.row_shape)))
        if found[1].dtype != np.float32 or found[1].shape != shape:
            raise StoreCorruptionError(
                f"{store.statistic_path(statistic.name, found[0])} is damaged: expected float32 of shape {shape}, "
                f"found {found[1].dtype} of shape {found[1].shape}."
            )
    return found


def _fold(
    statistic: Statistic,
    before: npt.NDArray[Any] | None,
    rows: npt.NDArray[Any],
    labels: npt.NDArray[Any] | None,
) -> npt.NDArray[Any]:
    at_once = max(1, _VALUES_AT_ONCE // math.prod(rows.shape[1:]))

    def chunk(array: npt.NDArray[Any] | None, start: int) -> Any:
        return None if array is None else array[start : start + at_once]

    starts = range(0, len(rows), at_once)
    return np.concatenate([statistic.fold(chunk(before, at), chunk(rows, at), chunk(labels, at)) for at in starts])
