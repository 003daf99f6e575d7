"""Computes the report's measures: for each sample over the epochs, and for each epoch over the samples."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..method import dynamics
from ..store import StoreError
from .run import Run

Array = npt.NDArray[Any]

_LEAST_COUNTED = 500  # samples; the surest fifth of fewer says little


@dataclass(frozen=True)
class Measures:
    """The measures of a run's samples and epochs.

    Attributes:
        samples: Columns of N rows, a row for each sample that has a label, by ascending id.
        epochs: (E,) the means over samples in each of the E sealed epochs; NaN where no sample has a value.
        wrong_labels: The estimated number of wrong labels of the samples that have a prediction, see
            `dynamics.wrong_share`. None if there is no estimate: for a regression, for tokens, for several labels,
            for few samples, if the store lacks the epochs that it needs, or if the model has not learnt enough.
        unknown: (N,) bool: with that estimate, whether the model hardly ever predicts a sample's label in the last
            epoch, see `dynamics.Verdict`. Otherwise None.
        has_learnt: Whether the model has learnt enough to judge labels; True if that is not known. If False, no label
            looks wrong.
        only_guesses: Without an estimate of `wrong_labels`: whether a classifier's predictions agreed with the labels
            in the last epoch no more often than the largest class does. Labels may look wrong nevertheless.
        noise_of_all_epochs: Whether the noise score, and the mean absolute error of a regression, cover all epochs,
            although the store holds only some of them; see `Run.mean_of_all_epochs`.
    """

    samples: dict[str, Array]
    epochs: dict[str, Array]
    wrong_labels: int | None = None
    unknown: Array | None = None
    noise_of_all_epochs: bool = False
    has_learnt: bool = True
    only_guesses: bool = False

    @property
    def seen(self) -> Array:
        """(N,) bool: whether a sample has a prediction in any epoch. Nothing else is known of one without."""
        return self.samples["noise_rank"] > 0


def measure(run: Run, *, with_kept_mean: bool = True) -> Measures:
    """Computes all measures, in chunks of samples. Raises StoreError if no sample has a finite prediction.

    `with_kept_mean`: whether to use the mean over all epochs that the run kept, which holds for its own labels only.
    """
    refuse_several_labels(run)
    scale = float(np.std(run.labels)) or 1.0 if run.is_regression else 0.0
    parts: list[dict[str, Array]] = []
    totals: dict[str, Array] = {}
    for chunk in run.chunks(len(run.ids)):
        logits, labels = run.logits(run.ids[chunk]), run.labels[chunk]
        if run.is_regression:
            samples, over_epochs = of_scores(logits[:, :, 0], labels, scale)
        else:
            samples, over_epochs = of_classes(logits, labels, run.epochs)
        parts.append(samples)
        for name, values in over_epochs.items():
            present = ~np.isnan(values)
            sums = np.stack([np.where(present, values, 0).sum(axis=1, dtype=np.float64), present.sum(axis=1)])
            totals[name] = totals.get(name, 0) + sums
    samples = {"sample_id": run.ids, "label": run.labels}
    samples |= {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    mean = run.mean_of_all_epochs() if with_kept_mean else None
    if mean is not None:
        # A sample without a prediction in the store is not on the page, even if the kept mean covers it.
        mean = np.where(np.isnan(samples["noise_score"]), np.nan, mean)
        if run.is_regression:
            samples["mean_absolute_error"] = mean
            samples["noise_score"] = dynamics.regression_noise_score(mean[None], scale)
        else:
            samples["noise_score"] = (1 - mean) / 2
            if len(run.classes) == 2:  # the mean's sign says which of them was more probable
                suggested = np.where(mean < 0, 1 - run.labels, run.labels)
                samples["suggested_label"] = np.where(np.isnan(mean), -1, suggested)
    samples["noise_rank"] = dynamics.ranks(samples["noise_score"])
    # No estimate for tokens and for several labels: those of one sample are not independent draws, and mostly have one
    # class.
    judges_classes = not run.is_regression and run.unit == "sample"
    wrong_share = _wrong_share(run) if judges_classes else None
    seen = samples["noise_rank"] > 0  # nothing is known of samples without a prediction
    wrong_labels, unknown = None, None
    has_learnt = wrong_share is None or _has_learnt(run.labels[seen], wrong_share)
    if wrong_share is None:
        samples["looks_wrong"] = dynamics.flags(samples["noise_score"])
    elif not has_learnt:
        samples["looks_wrong"] = np.zeros(len(run.ids), bool)
    else:
        last, _ = _verdict(run, run.epochs[-1])
        samples["looks_wrong"] = dynamics.worst(samples["noise_score"], run.labels, last, wrong_share)
        wrong_labels, unknown = int(samples["looks_wrong"].sum()), seen & ~last.known
    over_samples = {name: _ratio(total, count) for name, (total, count) in totals.items()}
    only_guesses = judges_classes and wrong_share is None and _only_guesses(run.labels[seen], over_samples["accuracy"])
    measures = Measures(samples, over_samples, wrong_labels, unknown, mean is not None, has_learnt, only_guesses)
    if not measures.seen.any():
        raise StoreError(
            f"{run.store.path}: no sample has a finite prediction: expected some, of {len(run.ids):,} samples with a "
            f"label in epochs {', '.join(map(str, run.epochs))}. Has training diverged? Train again with a lower "
            "learning rate, or without float16. Are classes ruled out by -inf? Use a large negative number, -1e4."
        )
    return measures


def refuse_several_labels(run: Run) -> None:
    """Raises ValueError for a multi-label head's run, which `multi_label.measure_labels` measures."""
    if run.is_multi_label:
        raise ValueError(
            f"{run.store.path} is of a multi-label head: expected one label for each sample. The report of one run, "
            "`read_history` and `lstsd clean` know several."
        )


def _wrong_share(run: Run) -> float | None:
    """The estimated share of wrong labels; NaN if the model knew too little in every epoch.

    None without the epochs that it needs, or with too few samples.
    """
    epochs, counted = dynamics.counted_epochs(run.epochs)
    shares: list[float] = []
    for epoch in epochs:
        found, predictions = _verdict(run, epoch)
        if predictions < _LEAST_COUNTED:
            return None
        shares += [] if math.isnan(found.wrong) else [found.wrong]
        if len(shares) == counted:
            break
    return dynamics.wrong_share(shares, counted) if epochs else None


def _verdict(run: Run, epoch: int) -> tuple[dynamics.Verdict, int]:
    """What an epoch's predictions say of the labels, and how many predictions there are."""
    top, predicted = np.full(len(run.ids), np.nan), np.full(len(run.ids), -1)
    for chunk in run.chunks(len(run.ids)):
        probabilities = dynamics.softmax(run.logits(run.ids[chunk], [epoch]))[0]
        top[chunk] = probabilities.max(axis=1)
        predicted[chunk] = np.where(np.isnan(top[chunk]), -1, probabilities.argmax(axis=1))
    return dynamics.verdict(top, predicted, run.labels), int((predicted >= 0).sum())


def _has_learnt(labels: Array, wrong_share: float) -> bool:
    """Whether the surest predictions agree with labels more often than the largest class, by 2 standard errors."""
    largest = _largest_share(labels)
    error = np.sqrt(largest * (1 - largest) / (dynamics.SUREST * len(labels)))
    return bool(1 - wrong_share > largest + 2 * error)


def _only_guesses(labels: Array, agreement: Array) -> bool:
    """Whether the last known agreement, (E,) by epoch, is at most that of the largest class. False with one class."""
    known = agreement[np.isfinite(agreement)]
    return bool(len(known) and known[-1] <= _largest_share(labels) < 1)


def _largest_share(labels: Array) -> float:
    """The share of the largest class among (N,) labels, N at least 1."""
    return float(np.unique(labels, return_counts=True)[1].max() / len(labels))


def _ratio(total: Array, count: Array) -> Array:
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def of_classes(logits: Array, labels: Array, epochs: list[int]) -> tuple[dict[str, Array], dict[str, Array]]:
    """The measures of n samples of a classifier.

    Args:
        logits: (E, n, C), NaN where there is no prediction.
        labels: (n,), in [0, C).
        epochs: The numbers of the E epochs, ascending.

    Returns:
        For each sample, (n,): `prediction` and `prediction_probability`, the class that the last epoch predicted (-1:
        none) and its probability; `confidence`, `variability`, `correctness`, `forgetting_events`, `never_learnt`
        (bool), `first_learnt` (the number of the epoch; -1: none), `area_under_margin`, `noise_score`,
        `suggested_label` (-1: none): see `dynamics`.
        For each sample and epoch, (E, n), NaN where unknown: `accuracy`, 1 where the prediction is the label, else 0;
        `short_term_agreement`, 1 where it is that of the epoch before, the short-term teacher's, else 0.
    """
    probabilities = dynamics.softmax(logits)
    given, hits = dynamics.given_probability(probabilities, labels), dynamics.correct(logits, labels)
    first = dynamics.first_learnt(hits)
    seen = ~np.isnan(hits)
    samples = {
        "prediction": np.where(seen[-1], logits[-1].argmax(axis=1), -1),
        "prediction_probability": probabilities[-1].max(axis=1),
        "confidence": dynamics.confidence(given),
        "variability": dynamics.variability(given),
        "correctness": dynamics.correctness(hits),
        "forgetting_events": dynamics.forgetting_events(hits),
        "never_learnt": (first < 0) & seen.any(axis=0),
        "first_learnt": np.where(first < 0, -1, np.asarray(epochs)[first]),
        "area_under_margin": dynamics.area_under_margin(logits, labels),
        "noise_score": dynamics.noise_score(probabilities, labels),
        "suggested_label": dynamics.suggested_label(probabilities, labels),
    }
    same = np.full(hits.shape, np.nan, hits.dtype)
    for i in range(1, len(epochs)):
        if epochs[i] == epochs[i - 1] + 1:
            equal = logits[i].argmax(axis=1) == logits[i - 1].argmax(axis=1)
            same[i] = np.where(seen[i] & seen[i - 1], equal, np.nan)
    return samples, {"accuracy": hits, "short_term_agreement": same}


def of_scores(predictions: Array, labels: Array, scale: float) -> tuple[dict[str, Array], dict[str, Array]]:
    """The measures of n samples of a regression.

    Args:
        predictions: (E, n), NaN where there is none.
        labels: (n,).
        scale: The standard deviation of all labels.

    Returns:
        For each sample, (n,): `prediction`, the last epoch's (NaN: none); `mean_absolute_error` and `variability`, the
        mean of the absolute error and the standard deviation of the prediction over epochs, both in the label's unit;
        `noise_score`, see `dynamics.regression_noise_score`. For each sample and epoch, (E, n): `absolute_error`.
    """
    errors = predictions - labels
    samples = {
        "prediction": predictions[-1],
        "mean_absolute_error": dynamics.mean_over_epochs(np.abs(errors)),
        "variability": dynamics.variability(predictions),
        "noise_score": dynamics.regression_noise_score(errors, scale),
    }
    return samples, {"absolute_error": np.abs(errors)}


def logged_over_epochs(log: list[dict[str, Any]], name: str) -> Mapping[int, float]:
    """By the epoch's number, the mean of the values that the Trainer logged under `name` in that epoch."""
    values: dict[int, list[float]] = {}
    for entry in log:
        if name in entry and "epoch" in entry:
            values.setdefault(max(0, int(np.ceil(entry["epoch"])) - 1), []).append(entry[name])
    return {epoch: float(np.mean(logged)) for epoch, logged in values.items()}
