"""Statistics of a run's epochs: small arrays with a row for each sample, folded anew at the end of each epoch.

A statistic keeps what the report, or a teacher, must know of epochs that retention has dropped. Its values after
epoch e are a function of its values after e - 1, of the predictions of e, and of the labels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Statistic:
    """A statistic.

    Attributes:
        name: In small letters; names its file in the store.
        fold: (before, rows, labels) -> after, for n samples: `before` (n, ...) are the values after the epoch before,
            or None in the first epoch; `rows` (n, *row_shape) the epoch's predictions, NaN where there is none;
            `labels` (n, ...). The result is float32 (n, ...), and must not depend on other samples.
    """

    name: str
    fold: Callable[[Array | None, Array, Array], Array]


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


MARGIN = Statistic("margin", fold_margin)
ABSOLUTE_ERROR = Statistic("absolute_error", fold_absolute_error)
