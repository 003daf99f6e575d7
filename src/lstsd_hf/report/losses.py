"""The losses of samples with many rows over epochs: features of question answering, sequences of a language model."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..method import dynamics, token_dynamics
from ..store import StoreError
from .many_rows import LossRun

Array = npt.NDArray[Any]


class Losses(NamedTuple):
    """The losses of a run's N samples.

    Attributes:
        samples: Columns of N rows. `mean_loss`, `first_loss`, `last_loss`, over the E sealed epochs, in nats; NaN
            where there is none; `variability`, their standard deviation; `rows`, how many rows a sample has; `right`,
            the share of its tokens that the last epoch predicted right, or 1 if it predicted both ends of a span
            right; `forgetting_events`, how often a prediction went from right to wrong; `loss_rank`, 1 for the highest
            mean, 0 where there is none.
        by_epoch: (E, N) the losses.
        right: (E, N) the shares that were right.
        bounded: The share of a language model's predictions whose label is not among the k classes that were kept, so
            that their part of a loss is a lower bound; 0 for spans.
    """

    samples: dict[str, Array]
    by_epoch: Array
    right: Array
    bounded: float


def measure_losses(run: LossRun) -> Losses:
    """Computes the losses, in chunks of samples. Raises StoreError if no sample has a finite loss."""
    parts = [_of_some(run, chunk) for chunk in run.chunks()]
    losses = np.concatenate([part[0] for part in parts], axis=1)
    right = np.concatenate([part[1] for part in parts], axis=1)
    if np.isnan(losses).all():
        raise StoreError(
            f"{run.store.path}: no sample has a finite loss: expected some, of {len(run.ids):,} samples with labels. "
            "Has training diverged? Train again with a lower learning rate, or without float16."
        )
    mean = dynamics.mean_over_epochs(losses)
    samples = {
        "sample_id": run.ids,
        "mean_loss": mean,
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "variability": dynamics.variability(losses),
        "rows": np.diff(run.offsets),
        "right": right[-1],
        "forgetting_events": np.concatenate([part[2] for part in parts]),
        "loss_rank": dynamics.ranks(mean),
    }
    bounded, count = sum(part[3] for part in parts), sum(part[4] for part in parts)
    return Losses(samples, losses, right, bounded / max(count, 1))


def _of_some(run: LossRun, chunk: slice) -> tuple[Array, Array, Array, int, int]:
    """(E, n) losses and shares that are right, (n,) forgetting events; counts of bounded and of all predictions."""
    begin, end = run.offsets[chunk.start], run.offsets[chunk.stop]
    labels, offsets = run.labels[begin:end], run.offsets[chunk.start : chunk.stop + 1] - begin
    ids, counts = run.ids[chunk], np.diff(offsets)
    losses, right, hits, bounded, count = [], [], [], 0, 0
    for epoch in run.epochs:
        rows = run.store.read_rows(epoch, ids).aligned(counts)
        values = rows["values"].astype(np.float32)
        if not run.is_language_model:
            loss, hit = token_dynamics.span_loss(values, labels, offsets)
            losses.append(loss)
            right.append(hit)
            continue
        rest = rows["rest"].astype(np.float32)
        log_p, is_bound = token_dynamics.label_log_probability(values, rows["classes"], rest, labels)
        hit = np.where(np.isnan(log_p), np.nan, rows["classes"][:, 0] == labels)
        losses.append(-token_dynamics.mean_of_rows(log_p, offsets))
        right.append(token_dynamics.mean_of_rows(hit, offsets))
        hits.append(hit)
        known = ~np.isnan(log_p)
        bounded, count = bounded + int((is_bound & known).sum()), count + int(known.sum())
    if not run.is_language_model:
        return np.stack(losses), np.stack(right), dynamics.forgetting_events(np.stack(right)), 0, 0
    forgotten = token_dynamics.sum_of_rows(dynamics.forgetting_events(np.stack(hits)), offsets).astype(np.int64)
    return np.stack(losses), np.stack(right), forgotten, bounded, count
