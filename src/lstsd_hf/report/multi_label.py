"""The measures of a multi-label head, label by label: each is a yes or no of its own, with a probability of its own.

As for one label, all epochs count the same: a model that has learnt wrong labels by heart was against them early on.
cleanlab's scores of multi-label data, on one epoch, are the same: see the tests.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from ..method import dynamics
from ..store import StoreError
from .measures import Measures
from .run import Run

Array = npt.NDArray[Any]


def measure_labels(run: Run) -> Measures:
    """Computes, in chunks of N samples, with C labels each:

    - `noise_score_by_label` (N, C), from 0 to 1: 1 less the mean over epochs of the probability of what the label
      says; above 0.5 the model was against it.
    - `noise_score` (N,): the highest of these. `looks_wrong`: whether it is above 0.5. `noise_rank`.
    - `suggested_label` (N, C): what the mean over epochs says of each label.

    Raises StoreError where no sample has a finite prediction.
    """
    scores = np.full(run.labels.shape, np.nan, np.float32)
    for chunk in run.chunks(len(run.ids)):
        logits = run.logits(run.ids[chunk])  # (E, n, C)
        scores[chunk] = 1 - dynamics.mean_over_epochs(_probability_of_given(logits, run.labels[chunk]))
    worst = scores.max(axis=1)
    if np.isnan(worst).all():
        raise StoreError(f"{run.store.path}: no sample has a finite prediction: expected some. Has training diverged?")
    samples = {
        "sample_id": run.ids,
        "label": run.labels,
        "noise_score": worst,
        "noise_rank": dynamics.ranks(worst),
        "looks_wrong": dynamics.flags(worst),
        "suggested_label": np.where(scores > 0.5, 1 - run.labels, run.labels),
        "noise_score_by_label": scores,
    }
    return Measures(samples, {})


def losses(logits: Array, labels: Array) -> Array:
    """(E, n): the mean over labels of the binary cross-entropy, in nats; logits (E, n, C), labels (n, C)."""
    found: Array = np.logaddexp(0, np.where(labels, -logits, logits)).mean(axis=2)
    return found


def _probability_of_given(logits: Array, labels: Array) -> Array:
    """(E, n, C): of what the labels (n, C) say, yes or no."""
    return np.exp(-np.logaddexp(0, np.where(labels, -logits, logits)))
