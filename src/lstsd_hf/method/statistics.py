"""Statistics of a run's epochs: small arrays with a row for each sample, updated at the end of each epoch.

A statistic keeps what the report or a teacher needs from epochs that retention has dropped. Its values after epoch e
are a function of its values after epoch e - 1, the predictions of epoch e, and the labels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .teachers import ENSEMBLE

Array = npt.NDArray[Any]

ENSEMBLE_DECAY = 0.6


@dataclass(frozen=True)
class Statistic:
    """A statistic: its name and its update.

    Attributes:
        name: Lower-case letters and underscores; names its file in the store.
        fold: (before, rows, labels) -> after, for n samples. `before` (n, ...) are the values after the previous
            epoch, or None in the first epoch; `rows` (n, *row_shape) are the epoch's predictions, NaN where there is
            none; `labels` are (n, ...). The result is float32 (n, ...), and must not depend on other samples.
        teaches: Whether a teacher is read from it: from its first columns, as many as a row has. Such a statistic does
            not depend on labels, and is updated even after epochs that it has missed.
    """

    name: str
    fold: Callable[[Array | None, Array, Any], Array]
    teaches: bool = False

    def width(self, columns: int) -> int:
        """The number of values of a sample, for rows of `columns` numbers: the last counts epochs."""
        return columns + 1 if self.teaches else 2


def _running_mean(before: Array | None, values: Array) -> Array:
    """(n, 2) float32: the mean over the epochs that have a value, and their number; values are (n,), NaN for none."""
    before = np.zeros((len(values), 2), np.float32) if before is None else before
    known = ~np.isnan(values)
    count = before[:, 1] + known
    step = np.where(known, values - before[:, 0], 0) / np.maximum(count, 1)
    return np.stack([before[:, 0] + step, count], axis=1).astype(np.float32)


def two_columns(rows: Array) -> Array:
    """(..., 2) logits whose softmax is the sigmoid of (..., 1) logits; other rows (..., C) as they are."""
    return np.concatenate([-rows / 2, rows / 2], axis=-1) if rows.shape[-1] == 1 else rows


def fold_margin(before: Array | None, rows: Array, labels: Array) -> Array:
    """The running mean of the label's probability less the largest of any other class, and the number of epochs.

    The mean is from -1 (another class was certain in every epoch) to 1. (1 - mean) / 2 is `dynamics.noise_score`.

    Args:
        before: (n, 2) float32, or None.
        rows: Logits, (n, C). One column is the logit of class 1 against class 0.
        labels: Classes, (n,); those outside of [0, C) have no margin.
    """
    rows = two_columns(rows)
    known = (labels >= 0) & (labels < rows.shape[1])
    # In torch, because numpy converts float16 one number at a time and uses one core. Imported here, because the
    # import takes seconds and the report needs only the statistics' names from this module.
    import torch

    probabilities = torch.tensor(rows).float().softmax(dim=-1)
    index = torch.from_numpy(np.where(known, labels, 0).astype(np.int64))[:, None]
    given = probabilities.gather(1, index)[:, 0].clone()
    others = probabilities.scatter_(1, index, -1.0).amax(dim=1)
    return _running_mean(before, np.where(known, (given - others).numpy(), np.nan))


def fold_absolute_error(before: Array | None, rows: Array, labels: Array) -> Array:
    """The running mean of the absolute error, in the labels' unit, and the number of epochs.

    Args:
        before: (n, 2) float32, or None.
        rows: Predictions, (n, 1).
        labels: Scores, (n,), NaN where there is none.
    """
    return _running_mean(before, np.abs(rows[:, 0].astype(np.float32) - labels))


def fold_ensemble(before: Array | None, rows: Array, labels: object) -> Array:
    """The running mean of the logits, in which an epoch weighs 0.6 of the one after it, and the number of epochs.

    Temporal ensembling, Laine and Aila, ICLR 2017 (arXiv 1610.02242): Z = 0.6 Z + 0.4 z, and the target after n epochs
    is Z / (1 - 0.6^n), which corrects for Z = 0 at the start. This function updates the target itself, with the same
    result. Theirs averages probabilities; averaging logits gives one formula for every head with one row.

    Args:
        before: (n, C + 1) float32, or None.
        rows: Logits, (n, C).
        labels: Not used.

    Returns:
        float32 (n, C + 1): the mean, NaN without any prediction, and in the last column the number of epochs.
    """
    rows = rows.astype(np.float32)
    known = np.isfinite(rows.sum(axis=1))
    mean, count = (rows, np.zeros(len(rows), np.float32)) if before is None else (before[:, :-1], before[:, -1])
    first = known & (count == 0)
    count = count + known
    step = (1 - ENSEMBLE_DECAY) / (1 - ENSEMBLE_DECAY ** np.maximum(count, 1))
    mean = np.where(first[:, None], rows, mean)
    mean = np.where(known[:, None], mean + step[:, None] * (rows - mean), mean)
    return np.column_stack([mean, count]).astype(np.float32)


MARGIN = Statistic("margin", fold_margin)
ABSOLUTE_ERROR = Statistic("absolute_error", fold_absolute_error)
# The statistics that a teacher may be read from, by name.
TAUGHT_FROM = {ENSEMBLE: Statistic(ENSEMBLE, fold_ensemble, teaches=True)}
