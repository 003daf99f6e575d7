"""Memory and honesty: what a model can do, and what it has by heart, from its training predictions alone.

A prediction is recorded before the update of its step. Within an epoch, the share of predictions that agree with their
labels rises by what carries over to samples that the epoch has not visited yet: learning. Between the end of an epoch
and the start of the next one the model is the same, but each sample has been visited once more: that jump is memory.
So agreement is the sum of two parts, and the honest part estimates what agreement would be on new samples.

The idea, the filter and its constants are ours. The constants were chosen on 54 runs of fine-tuning (MiniLM's first
layers; MRPC, Rotten Tomatoes, SST-2, TREC-6; 1,500 rows; 0, 10, 20 and 40 % wrong labels); docs/memory.md has the
errors on others.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

# The number of windows in an epoch: enough to fit a line, and few enough to store in a checkpoint's note.
BINS = 24
# The last part of epoch 0 that anchors the honest part. Agreement rises in an S shape there, so a longer part lags.
LAST_PART = 0.25
# The prior standard deviation of the slope of agreement there, in shares per epoch. It shrinks a slope that is mostly
# noise towards 0.
STEEPEST = 0.25
# The standard deviation of the change of memory within an epoch, as a share of memory. On average memory stays: one
# sample's fades, while another's early visit begins to show as the model becomes able to use it.
KEPT_SD = 0.1
# The prior mean and standard deviation of what a visit adds to memory, as a share of what is not predicted yet: in
# epoch 1, and later. The first visit leaves little, because the model knows little; for later ones the prior is vague.
VISIT_FIRST = (0.05, 0.04)
VISIT_LATER = (0.0, 1.0)
# The prior scale of what an epoch adds to the honest part: in epoch 1, and later. The slope within one epoch has a
# standard error of about 3.5 / sqrt(N) standard deviations, so on its own it would say nothing.
LEARNT = (0.05, 0.01)
# That scale is at least this share of what the previous epoch is estimated to have added: a model may take off late.
CARRY = 0.25
# The standard deviation of the filter's own error from epoch 1 on, however many samples there are. It was chosen so
# that nine of ten intervals hold.
MODEL_ERROR = 0.055
# The same for losses, in epoch 0 too, as a share of their unit. A regression on STS-B was off by 0.07 to 0.37 of it.
MODEL_ERROR_OF_LOSSES = 0.2
# The degrees of freedom of Student's t, the prior of what an epoch adds to the honest part. With heavy tails, what is
# clearly learnt is not shrunk towards 0.
FREEDOM = 2
_REWEIGHTINGS = 6  # iterations for the t; then its weight no longer changes
# The least variance of an item: if all predictions agree, they say nothing of their own spread.
_LEAST_VARIANCE = 1e-3
# The least share of the variance that is left after the previous epoch's hits have explained some of it.
_LEAST_LEFT = 0.05
# The least unit of losses, for a mean loss of 0.
_LEAST_LOSS = 1e-12
# The sums of a window: the number of items, and y, y^2, x, x^2 and x y; y is this epoch's value, x the previous one's.
_SUMS = 6


class Counters:
    """Sums over the items of one epoch, by window. They are added over batches and over processes.

    An item is a sample, a labelled or predicted token, or the start or end of a span. The sums are of hits (for a
    multi-label sample, the share of its labels that are right) or, for a regression, of losses.

    Attributes:
        sums: float64 (BINS, 6).
    """

    def __init__(self, sums: Array | None = None) -> None:
        self.sums = np.zeros((BINS, _SUMS)) if sums is None else sums

    def add(self, position: npt.ArrayLike, value: npt.ArrayLike, before: npt.ArrayLike | None = None) -> None:
        """Adds n items, one after the other, so that the sums do not depend on how the items are grouped.

        Args:
            position: The item's position in the epoch, from 0 to below 1; (n,), or one for all.
            value: (n,): 1 where the prediction is the label, else 0; or a loss.
            before: The same for the items' predictions in the previous epoch; None if there was none.
        """
        y = np.asarray(value, np.float64)
        x = np.zeros_like(y) if before is None else np.asarray(before, np.float64)
        window = np.clip((np.asarray(position) * BINS).astype(np.int64), 0, BINS - 1)
        rows = np.stack([np.ones_like(y), y, y * y, x, x * x, x * y], axis=1)
        np.add.at(self.sums, np.broadcast_to(window, y.shape), rows)

    @property
    def items(self) -> Array:
        """(BINS,): the number of items in each window."""
        return self.sums[:, 0]

    @property
    def hits(self) -> Array:
        """(BINS,): the sums of y; for decisions, the number of hits."""
        return self.sums[:, 1]

    @property
    def before(self) -> Array:
        """(BINS,): the same sums for the previous epoch's predictions."""
        return self.sums[:, 3]

    def as_shares(self, unit: float) -> "Counters":
        """Turns sums of losses into sums of 1 - loss / unit, which is 1 for no loss and which memory raises."""
        n, y, yy, x, xx, xy = self.sums.T / np.array([[1, unit, unit**2, unit, unit**2, unit**2]]).T
        own = [n, n - y, n - 2 * y + yy]
        past = [n - x, n - 2 * x + xx, n - x - y + xy] if xx.any() else [x, xx, xy]
        return Counters(np.stack([*own, *past], axis=1))

    def state(self) -> list[list[float]]:
        """The sums as plain numbers, for a checkpoint."""
        found: list[list[float]] = self.sums.tolist()
        return found

    @classmethod
    def of_state(cls, state: Any) -> "Counters":
        """Restores what `state` returned. Raises ValueError if it is anything else."""
        return cls(_numbers(state, (BINS, _SUMS)))


class Measured(NamedTuple):
    """The two parts of agreement at the end of an epoch; for a regression, of the loss, in its own unit.

    Attributes:
        honest: An estimate of agreement on new samples with labels as noisy as these, from 0 to 1; or of their loss,
            0 or more.
        honest_error: Its standard error.
        memorised: What the samples' own visits add to agreement, or take off the loss.
        memorised_error: Its standard error.
    """

    honest: float
    honest_error: float
    memorised: float
    memorised_error: float


class _Line(NamedTuple):
    """A least-squares line through agreement by position in the epoch, with the variances of its parameters."""

    middle: float
    slope: float
    mean: float
    slope_variance: float
    mean_variance: float  # of the mean, given the previous epoch's predictions
    draw_variance: float  # of the mean, including the luck of the draw


def _line(counters: Counters, part: float = 1.0) -> _Line:
    """The line through the last `part` (above 0, up to 1) of an epoch.

    The same items' predictions in the previous epoch are a control variate: they tell which windows are harder.
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
    """Splits each epoch's agreement, as the counters show it, into an honest and a memorised part.

    This is a Kalman filter with the state (honest, memorised, shared): what carries over, what is by heart, and the
    luck of the draw, which is the same in all epochs. The observations are the two ends of a line through an epoch:

        start = honest + memorised + visit + shared
        end   = honest + learnt + memorised + visit + shared

    `visit` is what the visit in the previous epoch has added to memory, `learnt` what this epoch adds to the honest
    part. After the epoch, the honest part is honest + learnt and the memorised part is memorised + visit. Epoch 0 is
    the anchor: it predicts each sample before any visit, so all agreement at its end is honest.

    For losses it splits 1 - loss / unit, where the unit is the mean loss at the end of epoch 0.
    """

    def __init__(self, of_losses: bool = False) -> None:
        """Args:
        of_losses: Whether the counters hold losses instead of hits.
        """
        self.of_losses = of_losses
        self.epochs = 0
        self._x, self._covariance = np.zeros(3), np.zeros((3, 3))
        self._learnt, self._unit = 0.0, 1.0

    def fold(self, counters: Counters) -> Measured:
        """The two parts at the end of an epoch, from its counters, which must hold at least one item."""
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
        unknown = 1 / (1 / STEEPEST**2 + 1 / line.slope_variance)  # the posterior variance of the slope
        slope = unknown / line.slope_variance * line.slope
        honest = min(max(line.mean + slope * ahead, 0.0), 1.0)
        variance = line.draw_variance + ahead**2 * unknown
        # Later epochs have the luck of all items in common; the last part has only some of it.
        shared = 0.5 * _line(counters).draw_variance
        self._x = np.array([honest, 0.0, 0.0])
        self._covariance = np.array([[variance, 0, -shared], [0, 0, 0], [-shared, 0, shared]])

    def _go_on(self, counters: Counters, epoch: int) -> None:
        line = _line(counters)
        ends = np.array([-line.middle, 1 - line.middle])
        slope_variance = min(line.slope_variance, 1.0)  # a single window leaves the slope unknown
        seen = line.mean + line.slope * ends
        noise = slope_variance * np.outer(ends, ends) + line.mean_variance
        share, deviation = VISIT_FIRST if epoch == 1 else VISIT_LATER
        missed = min(max(1 - self._x[0] - self._x[1], 0.02), 0.9)  # a visit never adds exactly nothing, nor everything
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
        """What the last `fold` returned."""
        honest, memorised = self._x[:2].tolist()
        honest = min(honest, 1.0) if self.of_losses else min(max(honest, 0.0), 1.0)  # the state itself may overshoot
        filters = MODEL_ERROR_OF_LOSSES if self.of_losses else MODEL_ERROR
        own = np.where([self.epochs > 1 or self.of_losses, self.epochs > 1], filters, 0.0)
        error, other = np.sqrt(np.maximum(np.diag(self._covariance)[:2], 0) + own**2).tolist()
        unit = self._unit if self.of_losses else 1.0
        return Measured(
            unit * (1 - honest) if self.of_losses else honest, unit * error, unit * memorised, unit * other
        )

    def now(self, hits: float, items: int) -> tuple[float, float]:
        """What is memorised at present, within the next epoch, and its standard error.

        It is the agreement of this epoch so far less the honest part; for losses, the honest part less their mean.

        Args:
            hits: The number of hits in this epoch so far, or the sum of losses.
            items: The number of items so far, at least 1.
        """
        honest, error, _, _ = self.values()
        mean = hits / items
        if self.of_losses:
            return honest - mean, float(np.hypot(error, mean / np.sqrt(items)))
        return mean - honest, float(np.sqrt(error**2 + mean * (1 - mean) / items))

    def state(self) -> dict[str, Any]:
        """The state as plain values, for a checkpoint."""
        numbers = [*self._x.tolist(), *self._covariance.ravel().tolist(), self._learnt, self._unit]
        return {"epochs": self.epochs, "of_losses": self.of_losses, "numbers": numbers}

    @classmethod
    def of_state(cls, state: Any) -> "MemoryMeter":
        """Restores what `state` returned. Raises ValueError if it is anything else."""
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
