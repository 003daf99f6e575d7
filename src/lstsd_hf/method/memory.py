"""Memory and honesty: what a model can do, and what it has by heart, from its training predictions alone.

A prediction is recorded before the update of its step. Within an epoch the share of predictions that agree with their
labels rises by what carries over to samples that were not visited again yet: learning. Between the end of an epoch
and the start of the next one the model is the same, and each sample has been visited once more: that jump is memory.
So agreement is the sum of two parts, of which the honest one estimates what agreement would be on new samples.

The idea, the filter and its constants are ours. The constants were chosen on 54 runs of fine-tuning (MiniLM's first
layers; MRPC, Rotten Tomatoes, SST-2, TREC-6; 1,500 rows; 0, 10, 20 and 40 % wrong labels); docs/memory.md has the
errors on others.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

# Windows of an epoch: enough for a line through them, and few enough for a checkpoint's note.
BINS = 24
# How much of epoch 0, from its end, anchors the honest part. Agreement is S-shaped there: a longer part lags behind.
LAST_PART = 0.25
# The standard deviation of the slope of agreement, in shares per epoch, that is expected there: it draws a slope that
# is mostly noise towards 0.
STEEPEST = 0.25
# What is not known of how memory changes within an epoch, as a share of it. On average it stays: while one sample's
# fades, the traces of another's early visit show as the model becomes able to use them.
KEPT_SD = 0.1
# What a visit adds to memory, as a share of what is not predicted yet: mean and standard deviation, in epoch 1 and in
# later ones. The first visit leaves little, because the model knows little; of later ones nothing is known beforehand.
VISIT_FIRST = (0.05, 0.04)
VISIT_LATER = (0.0, 1.0)
# The scale of what an epoch adds to the honest part: in epoch 1, and later. A slope within one epoch has a standard
# error of some 3.5 / sqrt(N) standard deviations; alone it would say nothing.
LEARNT = (0.05, 0.01)
# That scale is at least this share of what the epoch before is thought to have added: a model may take off late.
CARRY = 0.25
# By how much the filter itself is off from epoch 1 on, however many samples there are: the standard deviation that
# makes nine of ten intervals hold.
MODEL_ERROR = 0.055
# The same of losses, as a share of their unit, in epoch 0 too: a regression on STS-B was off by 0.07 to 0.37 of it.
MODEL_ERROR_OF_LOSSES = 0.2
# Degrees of freedom of Student's t for it: what is clearly seen to be learnt is not drawn towards 0.
FREEDOM = 2
_REWEIGHTINGS = 6  # of the t, after which its weight changes no more
# The least variance of an item: where all predictions agree, the sample says nothing of its own spread.
_LEAST_VARIANCE = 1e-3
# What is left of the variance where the hits of the epoch before explain the hits of this one, at the least.
_LEAST_LEFT = 0.05
# The least unit of losses: where nothing is left of them.
_LEAST_LOSS = 1e-12
# The sums of a window: of items, and of y, y^2, x, x^2 and x y; y is now, x one epoch before.
_SUMS = 6


class Counters:
    """Sums over the items of one epoch, by window. They are added over batches and over processes.

    An item is what a base loss counts: a sample, a labelled token, a start or an end of a span. Of decisions the sums
    are those of hits, whole numbers; else those of losses.

    Attributes:
        sums: float64 (BINS, 6).
    """

    def __init__(self, sums: Array | None = None) -> None:
        self.sums = np.zeros((BINS, _SUMS)) if sums is None else sums

    def add(self, position: npt.ArrayLike, value: npt.ArrayLike, before: npt.ArrayLike | None = None) -> None:
        """Adds n items, one after the other, so that the sums do not depend on how they are grouped.

        Args:
            position: Of the item in the epoch, from 0 to below 1; (n,), or one for all.
            value: (n,): 1 where the prediction is the label, else 0; or a loss.
            before: The same of the items' predictions one epoch before; None: there was none.
        """
        y = np.asarray(value, np.float64)
        x = np.zeros_like(y) if before is None else np.asarray(before, np.float64)
        window = np.clip((np.asarray(position) * BINS).astype(np.int64), 0, BINS - 1)
        rows = np.stack([np.ones_like(y), y, y * y, x, x * x, x * y], axis=1)
        np.add.at(self.sums, np.broadcast_to(window, y.shape), rows)

    @property
    def items(self) -> Array:
        """(BINS,): how many items each window has."""
        return self.sums[:, 0]

    @property
    def hits(self) -> Array:
        """(BINS,): the sums of y, of decisions the hits."""
        return self.sums[:, 1]

    @property
    def before(self) -> Array:
        """(BINS,): the same one epoch before."""
        return self.sums[:, 3]

    def as_shares(self, unit: float) -> "Counters":
        """Of losses: those of 1 - loss / unit, which is 1 where there is no loss left, and memory adds to."""
        n, y, yy, x, xx, xy = self.sums.T / np.array([[1, unit, unit**2, unit, unit**2, unit**2]]).T
        own = [n, n - y, n - 2 * y + yy]
        past = [n - x, n - 2 * x + xx, n - x - y + xy] if xx.any() else [x, xx, xy]
        return Counters(np.stack([*own, *past], axis=1))

    def state(self) -> list[list[float]]:
        """Plain numbers for a checkpoint."""
        found: list[list[float]] = self.sums.tolist()
        return found

    @classmethod
    def of_state(cls, state: Any) -> "Counters":
        """What `state` gave. Raises ValueError where it is something else."""
        return cls(_numbers(state, (BINS, _SUMS)))


class Measured(NamedTuple):
    """The parts of agreement at the end of an epoch; or of the loss, in its own unit.

    Attributes:
        honest: An estimate of agreement on new samples with labels as noisy as these.
        honest_error: Its standard error.
        memorised: What the samples' own visits add to it; to a loss: what they take off.
        memorised_error: Its standard error.
    """

    honest: float
    honest_error: float
    memorised: float
    memorised_error: float


class _Line(NamedTuple):
    """A least-squares line through agreement over the position in the epoch, and the variances of its numbers."""

    middle: float
    slope: float
    mean: float
    slope_variance: float
    mean_variance: float  # of the mean, given the predictions of the epoch before
    draw_variance: float  # of the mean, with the luck of the draw


def _line(counters: Counters, part: float = 1.0) -> _Line:
    """The line through the last `part` of an epoch, from 0 to 1.

    The same items' predictions of the epoch before are a control variate: they say which windows have harder samples.
    """
    centres = (np.arange(BINS) + 0.5) / BINS
    kept = (counters.items > 0) & (centres > 1 - part)
    if not kept.any():  # an epoch of a few steps
        kept = np.arange(BINS) == np.flatnonzero(counters.items)[-1]
    n, y, yy, _, _, _ = counters.sums[kept].T
    total = n.sum()
    mean = y.sum() / total
    variance = max(yy.sum() / total - mean**2, _LEAST_VARIANCE)
    level, left = y / n, 1.0
    items, own, _, past, past_squares, products = counters.sums.sum(axis=0)
    past_mean = past / items
    past_variance = past_squares / items - past_mean**2
    if past_variance > 0:
        explains = (products / items - own / items * past_mean) / past_variance
        level = level - explains * (counters.before[kept] / n - past_mean)
        left = max(1 - explains**2 * past_variance / variance, _LEAST_LEFT)
    x = centres[kept]
    middle = (n * x).sum() / total
    spread = (n * (x - middle) ** 2).sum()
    slope = (n * (x - middle) * level).sum() / spread if spread else 0.0
    slope_variance = variance * left / spread if spread else np.inf
    return _Line(middle, slope, mean, slope_variance, variance * left / total, variance / total)


class MemoryMeter:
    """Splits what the counters show of each epoch into an honest and a memorised part.

    A Kalman filter with the state (honest, memorised, shared): what carries over, what is by heart, and the luck of
    the draw, which is the same in all epochs. An epoch shows the two ends of a line through agreement:

        start = honest + memorised + visit + shared
        end   = honest + learnt + memorised + visit + shared

    `visit` is what the visit one epoch before has added, `learnt` what the epoch adds to the honest part. Afterwards
    honest + learnt is the honest part, and memorised + visit the memorised one. Epoch 0 is the anchor: before
    its visits have been seen again, all agreement at its end is honest.

    Of losses it splits 1 - loss / unit, where the unit is the mean loss at the end of epoch 0.
    """

    def __init__(self, of_losses: bool = False) -> None:
        """Args:
        of_losses: Whether the counters hold losses, not hits.
        """
        self.of_losses = of_losses
        self.epochs = 0
        self._x, self._covariance = np.zeros(3), np.zeros((3, 3))
        self._learnt, self._unit = 0.0, 1.0

    def fold(self, counters: Counters) -> Measured:
        """What is learnt and what is by heart at the end of an epoch, by its counters, with one item at the least."""
        epoch, self.epochs = self.epochs, self.epochs + 1
        if self.of_losses:
            if epoch == 0:
                self._unit = max(_line(counters, LAST_PART).mean, _LEAST_LOSS)
            counters = counters.as_shares(self._unit)
        if epoch == 0:
            self._begin(counters)
        else:
            self._go_on(counters, epoch)
        return self.values()

    def _begin(self, counters: Counters) -> None:
        line = _line(counters, LAST_PART)
        ahead = 1 - line.middle
        unknown = 1 / (1 / STEEPEST**2 + 1 / line.slope_variance)  # the variance of the slope, after what was seen
        slope = unknown / line.slope_variance * line.slope
        honest = min(max(line.mean + slope * ahead, 0.0), 1.0)
        variance = line.draw_variance + ahead**2 * unknown
        # All items' luck is the same in later epochs; the last part's is only in part of it.
        shared = 0.5 * _line(counters).draw_variance
        self._x = np.array([honest, 0.0, 0.0])
        self._covariance = np.array([[variance, 0, -shared], [0, 0, 0], [-shared, 0, shared]])

    def _go_on(self, counters: Counters, epoch: int) -> None:
        line = _line(counters)
        ends = np.array([-line.middle, 1 - line.middle])
        slope_variance = min(line.slope_variance, 1.0)  # of a single window: nothing is known
        seen = line.mean + line.slope * ends
        noise = slope_variance * np.outer(ends, ends) + line.mean_variance
        share, deviation = VISIT_FIRST if epoch == 1 else VISIT_LATER
        missed = min(max(1 - self._x[0] - self._x[1], 0.02), 0.9)  # a visit never adds quite nothing, nor all
        scale = max(LEARNT[min(epoch, len(LEARNT)) - 1], CARRY * abs(self._learnt))
        noise[1, 1] += (KEPT_SD * max(self._x[1] + share * missed, 0.0)) ** 2
        shows = np.array([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]])  # of honest, memorised, shared, visit, learnt
        expected = np.array([*self._x, share * missed, 0.0])
        weight = 1.0
        for _ in range(_REWEIGHTINGS):
            prior = np.zeros((5, 5))
            prior[:3, :3] = self._covariance
            prior[3, 3], prior[4, 4] = (deviation * missed) ** 2, scale**2 / weight
            gain = prior @ shows.T @ np.linalg.inv(shows @ prior @ shows.T + noise)
            found, covariance = expected + gain @ (seen - shows @ expected), prior - gain @ shows @ prior
            weight = (FREEDOM + 1) / (FREEDOM + (found[4] ** 2 + covariance[4, 4]) / scale**2)
        self._learnt = float(found[4])
        ahead = np.array([[1, 0, 0, 0, 1], [0, 1, 0, 1, 0], [0, 0, 1, 0, 0]])
        self._x, self._covariance = ahead @ found, ahead @ covariance @ ahead.T
        self._covariance[1, 1] += 0.5 * (KEPT_SD * max(found[1] + found[3], 0.0)) ** 2

    def values(self) -> Measured:
        """What the last fold returned."""
        honest, memorised = self._x[:2].tolist()
        filters = MODEL_ERROR_OF_LOSSES if self.of_losses else MODEL_ERROR
        own = np.where([self.epochs > 1 or self.of_losses, self.epochs > 1], filters, 0.0)
        error, other = np.sqrt(np.maximum(np.diag(self._covariance)[:2], 0) + own**2).tolist()
        unit = self._unit if self.of_losses else 1.0
        return Measured(
            unit * (1 - honest) if self.of_losses else honest, unit * error, unit * memorised, unit * other
        )

    def now(self, hits: float, items: int) -> tuple[float, float]:
        """Within the next epoch: what is by heart right now, as agreement so far less the honest part; and its error.

        Args:
            hits: Of the epoch so far; of losses, their sum.
            items: How many there were, one at the least.
        """
        honest, error, _, _ = self.values()
        mean = hits / items
        if self.of_losses:
            return honest - mean, float(np.hypot(error, mean / np.sqrt(items)))
        return mean - honest, float(np.sqrt(error**2 + mean * (1 - mean) / items))

    def state(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        numbers = [*self._x.tolist(), *self._covariance.ravel().tolist(), self._learnt, self._unit]
        return {"epochs": self.epochs, "of_losses": self.of_losses, "numbers": numbers}

    @classmethod
    def of_state(cls, state: Any) -> "MemoryMeter":
        """What `state` gave. Raises ValueError where it is something else."""
        if not isinstance(state, dict) or state.keys() != {"epochs", "of_losses", "numbers"}:
            raise ValueError("expected the state of a memory meter")
        epochs, of_losses = state["epochs"], state["of_losses"]
        if type(epochs) is not int or epochs < 0 or type(of_losses) is not bool:
            raise ValueError(f"expected a number of epochs and a boolean, found {epochs!r} and {of_losses!r}")
        numbers = _numbers(state["numbers"], (14,))
        meter = cls(of_losses)
        meter.epochs, meter._x, meter._covariance = epochs, numbers[:3], numbers[3:12].reshape(3, 3)
        meter._learnt, meter._unit = numbers[12:].tolist()
        return meter


def _numbers(state: Any, shape: tuple[int, ...]) -> Array:
    try:
        numbers = np.array(state, np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"expected numbers of shape {shape}") from error
    if numbers.shape != shape or not np.isfinite(numbers).all():
        raise ValueError(f"expected finite numbers of shape {shape}, found shape {numbers.shape}")
    return numbers


# Of `noise_share`: the surest predictions, which are nearly always right, so that what disagrees with them is wrong;
_SUREST = 0.2
# how far standardised logits are stretched, beside the logarithms of the classes' shares;
_STRETCH = 1.4
# the least share of a class whose logarithm is taken; and how many standard errors are "clearly above".
_LEAST_SHARE, _CLEARLY = 1e-3, 3.0


def noise_share(logits: npt.ArrayLike, labels: npt.ArrayLike, honest: float) -> tuple[float, float]:
    """The share of labels that are wrong, estimated from an epoch's predictions, and its standard error.

    The label's logit is lowered, by one number for all samples, until predictions agree with labels as often as the
    model can do without memory. Of the surest fifth of these predictions nearly all are right, so the share of them
    that differ from their labels is that of wrong labels. It is an upper bound where the surest predictions err, as in
    a task that is hard for the model. The first epoch after epoch 0 that gives a number is the best: later ones hold
    so much memory that one number for all samples is too coarse. The method is ours.

    Args:
        logits: (N, C), C at least 2. Rows that are not finite are left out.
        labels: (N,) classes. Those outside of [0, C) are left out.
        honest: The honest part of that epoch's agreement, `Measured.honest`.

    Returns:
        NaN twice where the surest predictions are not clearly more often right than the most frequent label is.

    Raises:
        ValueError: the shapes are others.
    """
    z, given = np.array(logits, np.float64), np.asarray(labels)
    if z.ndim != 2 or z.shape[1] < 2 or given.shape != z.shape[:1]:
        raise ValueError(f"expected logits (N, C) and labels (N,), found shapes {z.shape} and {given.shape}")
    kept = np.isfinite(z).all(axis=1) & (given >= 0) & (given < z.shape[1])
    z, given = z[kept], given[kept].astype(np.int64)
    samples, classes = z.shape
    surest = round(_SUREST * samples)
    if not surest:
        return np.nan, np.nan
    shares = np.bincount(given, minlength=classes) / samples
    z = z - z.mean(axis=0)
    z = z - z.mean(axis=1, keepdims=True)
    z = _STRETCH * z / max(z.std(), 1e-6) + np.log(np.maximum(shares, _LEAST_SHARE))
    rows = np.arange(samples)
    others = z.copy()
    others[rows, given] = -np.inf
    lead = z[rows, given] - others.max(axis=1)
    misses = min(max(1 - max(honest, float((shares**2).sum())), 0.0), 1.0)  # at the most those of a guess
    z[rows, given] -= max(float(np.quantile(lead, misses)), 0.0)
    exponentials = np.exp(z - z.max(axis=1, keepdims=True))
    sure = exponentials.max(axis=1) / exponentials.sum(axis=1)
    chosen = np.argsort(-sure, kind="stable")[:surest]
    wrong = float((z[chosen].argmax(axis=1) != given[chosen]).mean())
    majority = float(shares.max())
    if 1 - wrong - majority <= _CLEARLY * np.sqrt(majority * (1 - majority) / surest):
        return np.nan, np.nan
    smoothed = (wrong * surest + 1) / (surest + 2)  # no error of 0 where none is wrong
    return wrong, float(np.sqrt(smoothed * (1 - smoothed) / surest))
