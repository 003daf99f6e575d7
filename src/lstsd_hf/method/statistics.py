"""Statistics of a run's epochs: small arrays with a row for each sample, folded anew at the end of each epoch.

A statistic keeps what the report, or a teacher, must know of epochs that retention has dropped. Its values after
epoch e are a function of its values after e - 1, of the predictions of e, and of the labels.
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
    """A statistic.

    Attributes:
        name: In small letters; names its file in the store.
        fold: (before, rows, labels) -> after, for n samples: `before` (n, ...) are the values after the epoch before,
            or None in the first epoch; `rows` (n, *row_shape) the epoch's predictions, NaN where there is none;
            `labels` (n, ...). The result is float32 (n, ...), and must not depend on other samples.
        teaches: Whether a teacher is read from it, by the number of a row's columns, in front. Labels have no part in
            it, and after epochs that it has not seen it goes on.
    """

    name: str
    fold: Callable[[Array | None, Array, Any], Array]
    teaches: bool = False


def _running_mean(before: Array | None, values: Array) -> Array:
    """(n, 2) float32: the mean over the epochs that have a value, and their number; values are (n,), NaN: none."""
    before = np.zeros((len(values), 2), np.float32) if before is None else before
    known = ~np.isnan(values)
    count = before[:, 1] + known
    step = np.where(known, values - before[:, 0], 0) / np.maximum(count, 1)
    return np.stack([before[:, 0] + step, count], axis=1).astype(np.float32)


def fold_margin(before: Array | None, rows: Array, labels: Array) -> Array:
    """The running mean of the label's probability less the largest of any other class, and the number of epochs.

    From -1 (never near the label) to 1. (1 - mean) / 2 is `dynamics.noise_score`.

    Args:
        before: (n, 2) float32, or None.
        rows: Logits, (n, C).
        labels: Classes, (n,); those outside of [0, C) have no margin.
    """
    known = (labels >= 0) & (labels < rows.shape[1])
    # torch, because numpy converts float16 one number at a time, and uses one core. Imported here: it takes seconds,
    # and the report needs no more of this module than the statistics' names.
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
        labels: Scores, (n,); NaN: no score.
    """
    return _running_mean(before, np.abs(rows[:, 0].astype(np.float32) - labels))


def fold_ensemble(before: Array | None, rows: Array, labels: object) -> Array:
    """The running mean of the logits, in which an epoch weighs 0.6 of the one after it, and the number of epochs.

    Temporal ensembling, Laine and Aila, ICLR 2017 (arXiv 1610.02242): Z = 0.6 Z + 0.4 z, and the target Z / (1 -
    0.6^n) after n epochs, which corrects for Z = 0 at the start. Here the target itself is carried on, which is the
    same. Theirs is of probabilities; of logits it is one formula for every head with one row.

    Args:
        before: (n, C + 1) float32, or None.
        rows: Logits, (n, C).
        labels: Not looked at.

    Returns:
        float32 (n, C + 1): the mean, NaN where there was no epoch, and in the last column the number of epochs.
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
# By name, what a teacher may be read from.
TAUGHT_FROM = {ENSEMBLE: Statistic(ENSEMBLE, fold_ensemble, teaches=True)}
