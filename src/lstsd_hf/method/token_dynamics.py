"""Training dynamics of samples with many rows, as pure functions of arrays: tokens, spans, language models.

N samples have R rows in all. Sample i has the rows from offsets[i] to offsets[i + 1]; offsets are (N + 1,). Tokens are
measured as `dynamics` measures samples. A sample is as suspicious as its worst token, as in cleanlab's token
classification (Wang and Mueller, Detecting Label Errors in Token Classification Data, 2022), where a sentence's score
is the lowest quality of its tokens.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from .dynamics import Floats, Integers

STARTS, ENDS = 1, 2  # bits in the label of a position, in question answering


def worst_rows(scores: Floats, offsets: Integers) -> Integers:
    """(N,): each sample's row, from 0 to R - 1, with the highest score, the first among equals; -1 without any score.

    Args:
        scores: (R,), such as `dynamics.noise_score`; NaN where there is none.
        offsets: (N + 1,).
    """
    counts = np.diff(offsets)
    owners = np.repeat(np.arange(len(counts)), counts)
    order = np.lexsort((-scores, owners))  # stable, and NaN comes last
    worst = np.full(len(counts), -1)
    filled = counts > 0
    first = order[offsets[:-1][filled]]
    worst[filled] = np.where(np.isnan(scores[first]), -1, first)
    return worst


def sum_of_rows(values: npt.NDArray[Any], offsets: Integers) -> Floats:
    """(N,) float64 sums of (R,) values over the rows of each sample; 0 for a sample without rows."""
    return _reduce(np.add, values, offsets, 0.0)


def _reduce(operation: np.ufunc, values: npt.NDArray[Any], offsets: Integers, empty: float) -> Floats:
    """(N,) float64: an operation over the rows of each sample; `empty` for a sample without rows."""
    filled = np.diff(offsets) > 0
    found = np.full(len(filled), empty)
    if filled.any():
        found[filled] = operation.reduceat(values.astype(np.float64), offsets[:-1][filled])
    return found


def mean_of_rows(values: Floats, offsets: Integers) -> Floats:
    """(N,) means of (R,) values over the rows of each sample, leaving out NaN; NaN if nothing is left."""
    known = ~np.isnan(values)
    total, count = sum_of_rows(np.where(known, values, 0), offsets), sum_of_rows(known, offsets)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def span_loss(scores: Floats, labels: Integers, offsets: Integers) -> tuple[Floats, Floats]:
    """The loss of question answering features in one epoch, and whether both ends were predicted as labelled.

    Args:
        scores: (R, 2), start and end scores of the positions of each feature that are not padding.
        labels: (R,): STARTS is set where the answer starts, ENDS where it ends.
        offsets: (N + 1,).

    Returns:
        (N,) in nats, the mean cross-entropy of start and end over the feature's positions, like the model's own loss;
        and (N,), 1 where the largest start score and the largest end score are at the labels, else 0. NaN without a
        prediction, or without a start or an end in the feature.
    """
    owners = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    losses, hits = np.full((2, 2, len(offsets) - 1), np.nan)
    for side, bit in enumerate((STARTS, ENDS)):
        own = scores[:, side].astype(np.float64)
        largest = _reduce(np.maximum, own, offsets, np.nan)
        total = sum_of_rows(np.exp(own - largest[owners]), offsets)
        at = np.flatnonzero((labels > 0) & (labels & bit > 0))
        of = owners[at]
        losses[side, of] = np.log(total[of]) + largest[of] - own[at]
        hits[side, of] = np.where(np.isnan(largest[of]), np.nan, own[at] == largest[of])
    return losses.mean(axis=0), hits.min(axis=0)


def label_log_probability(
    values: Floats, classes: Integers, rest: Floats, labels: Integers
) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """The log probability that a language model gave to each label, if only the k most probable classes were kept.

    A label that is not among the k has at most the mass of the rest, and at most that of the last of the k. The lesser
    of the two is returned, so the loss computed from it is a lower bound.

    Args:
        values: (R, k) log probabilities under the whole vocabulary, the largest first.
        classes: (R, k) their classes.
        rest: (R,) the logarithm of the mass of all other classes.
        labels: (R,) the classes that should have been predicted.

    Returns:
        (R,) log probabilities, NaN without a prediction; and (R,) whether each is only an upper bound.
    """
    named = classes == labels[:, None]
    found = named.any(axis=1)
    bound = np.minimum(rest, values[:, -1])
    return np.where(found, np.where(named, values, 0).sum(axis=1), bound), ~found
