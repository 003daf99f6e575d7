"""Notices that batches have other labels than the data set, because a transform or the data collator maps them."""

from typing import Any

import numpy as np
import numpy.typing as npt
from transformers.utils import logging

from ..store import LogitsStore
from .exchange import Processes

logger = logging.get_logger(__name__)

_ROUNDING = 0.01  # relative; bfloat16 rounds scores by up to 0.004


class MappedLabels:
    """Compares the labels of batches with those of the data set, which the store has from before the first step.

    The loss sees those of the batches. If they differ, the store's are removed: what is computed from them would say
    that labels look wrong which the model has learnt as it was told.
    """

    def __init__(self, store: LogitsStore, processes: Processes) -> None:
        self._store, self._processes = store, processes
        self._labels = store.read_labels()
        self._found = np.zeros(2)  # how many labels differ, and how many were compared

    def compare(self, ids: npt.NDArray[np.int64], labels: npt.NDArray[Any] | None, *, is_needed: bool) -> None:
        """Compares the labels of a batch, unless the store has none, or has them in another form.

        Args:
            ids: Sample ids, (B,).
            labels: (B, ...), as a head compares them with predictions; None if it cannot.
            is_needed: Whether the user asks for what needs the data set's labels.

        Raises:
            ValueError: labels differ, and they are needed.
        """
        if self._labels is None or labels is None:
            return
        own = self._labels[self._store.index.rows_of(ids, self._store.path)]
        if own.size != labels.size:
            return
        own = own.reshape(labels.shape)
        if own.dtype.kind == labels.dtype.kind == "i":
            differs = own != labels
        else:
            differs = ~np.isclose(own, labels, rtol=_ROUNDING, equal_nan=True)
        self._found += differs.sum(), differs.size
        if is_needed and differs.any():
            raise ValueError(
                f"teacher_trust='honest' compares predictions with the labels of the data set, and {self._in_words()} "
                "Or set teacher_trust='confidence' or 'constant'."
            )

    def settle(self) -> None:
        """Removes the store's labels if any of a batch differed in any process. All processes call this together."""
        if self._labels is None:
            return
        found = self._processes.sum(self._found)
        if not found[0]:
            return
        self._labels, self._found = None, found
        if self._processes.owns_store:
            self._store.write_labels(None)
        if self._processes.accelerator.is_main_process:
            logger.warning(
                f"The store of this run keeps no labels, so there is no report, and teacher_trust is not 'honest': "
                f"{self._in_words()}"
            )

    def _in_words(self) -> str:
        differ, compared = self._found.astype(int)
        return (
            f"{differ} of the {compared} labels that batches have had so far are not those of the data set: expected "
            "the same, but a transform or the data collator maps them. Map them in the data set instead, with "
            "dataset.map."
        )
