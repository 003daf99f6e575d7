"""Training dynamics as pure functions of arrays: what a run's predictions say about each training sample.

Throughout, arrays are over E recorded epochs, in order, N samples and C classes. A prediction that was not recorded is
NaN and is left out: every mean is over the epochs that have one, and NaN if none has.

Sources: confidence, variability, correctness: Swayamdipta et al., Dataset Cartography, EMNLP 2020. Forgetting: Toneva
et al., An Empirical Study of Example Forgetting, ICLR 2019. Area under the margin: Pleiss et al., Identifying
Mislabeled Data using the Area Under the Margin Ranking, NeurIPS 2020. Calibration: Guo et al., On Calibration of
Modern Neural Networks, ICML 2017.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]
Integers = npt.NDArray[np.integer[Any]]

# See `Verdict`. Below LEAST_REACH two or three chance contradictions would stand for many wrong labels, and the model
# gains more by learning the other classes than by doubting labels. TREC with 6 classes had 0.8, with 50 at most 0.42.
SUREST, KNOWN_FROM, LEAST_REACH = 0.2, 0.1, 0.5


def softmax(logits: Floats) -> Floats:
    """Probabilities from logits, over the last axis; a row with a NaN is all NaN."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def given_probability(probabilities: Floats, labels: Integers) -> Floats:
    """(E, N): the probability of each sample's label, from (E, N, C) probabilities and (N,) labels."""
    return np.take_along_axis(probabilities, labels[None, :, None], axis=2)[:, :, 0]


def margin(values: Floats, labels: Integers) -> Floats:
    """(E, N): the label's value less the largest of any other class; above 0 where the prediction is the label.

    Args:
        values: Logits or probabilities, (E, N, C), C at least 2.
        labels: (N,).
    """
    others = values.copy()
    np.put_along_axis(others, labels[None, :, None], -np.inf, axis=2)
    return given_probability(values, labels) - others.max(axis=2)


def correct(predictions: Floats, labels: Integers) -> Floats:
    """(E, N): 1 where the largest logit is the label's, 0 where it is not, NaN where there is no prediction."""
    hit = (predictions.argmax(axis=2) == labels).astype(predictions.dtype)
    return np.where(np.isnan(predictions).any(axis=2), np.nan, hit)


def mean_over_epochs(values: Floats) -> Floats:
    """(N, ...) means of (E, N, ...) values over the epochs that have one."""
    present = ~np.isnan(values)
    total, count = np.where(present, values, 0).sum(axis=0), present.sum(axis=0)
    return np.divide(total, count, out=np.full(total.shape, np.nan, total.dtype), where=count > 0)


def confidence(given: Floats) -> Floats:
    """(N,) from 0 to 1: the mean probability of the label over epochs; low: hard, or mislabelled (Swayamdipta)."""
    return mean_over_epochs(given)


def variability(values: Floats) -> Floats:
    """(N,), 0 where all epochs agree: the standard deviation over epochs (Swayamdipta: of the label's probability)."""
    return np.sqrt(mean_over_epochs((values - mean_over_epochs(values)) ** 2))


def correctness(hits: Floats) -> Floats:
    """(N,) from 0 to 1: the share of epochs that predicted the label (Swayamdipta); `hits` are `correct`'s (E, N)."""
    return mean_over_epochs(hits)


def forgetting_events(hits: Floats) -> Integers:
    """(N,): how often a right prediction was followed by a wrong one, among the recorded epochs (Toneva).

    A sample that was never predicted right has none. `first_learnt` tells it from one that was never forgotten.
    """
    events = np.zeros(hits.shape[1], np.int32)
    learnt = np.zeros(hits.shape[1], np.bool_)
    for hit in hits:
        events += learnt & (hit == 0)
        learnt = np.where(np.isnan(hit), learnt, hit == 1)
    return events


def first_learnt(hits: Floats) -> Integers:
    """(N,): the position, from 0 to E - 1, of the first epoch that predicted the label; -1: never learnt (Toneva)."""
    learnt = hits == 1
    return np.where(learnt.any(axis=0), learnt.argmax(axis=0), -1)


def area_under_margin(logits: Floats, labels: Integers) -> Floats:
    """(N,), in logits: the mean over epochs of `margin`; far below 0: likely mislabelled (Pleiss)."""
    return mean_over_epochs(margin(logits, labels))


def noise_score(probabilities: Floats, labels: Integers) -> Floats:
    """(N,) from 0 to 1: how likely the label is wrong, to rank samples by; 0.5: another class is as probable.

        (1 - mean over epochs of (p_label - largest p of another class)) / 2

    This is the area under the margin, but of probabilities, so that large logits give no sample more weight. All
    epochs count the same: a model that has learnt wrong labels by heart predicted other classes early on.

    Args:
        probabilities: (E, N, C).
        labels: (N,), in [0, C).
    """
    return (1 - mean_over_epochs(margin(probabilities, labels))) / 2


def flags(noise_score: Floats) -> npt.NDArray[np.bool_]:
    """(N,): whether a label looks wrong, by its `noise_score` or `regression_noise_score`: above 0.5.

    Above 0.5, another class was more probable than the label on average over the epochs, or, in a regression, the
    predictions were further off than the standard deviation of the labels. False where the noise score is NaN.
    """
    return noise_score > 0.5


def surest_count(samples: int) -> int:
    """How many predictions `verdict` takes as the surest: a fifth of `samples`, but at least one."""
    return max(1, round(SUREST * samples))


class Verdict(NamedTuple):
    """What an epoch's predictions say of the labels. C is the number of classes among these.

    Attributes:
        known: (N,) bool: whether the model knows a label's class: it predicts it at least a tenth as often as it is
            given. A model learns the frequent classes first. As long as it never predicts a rare class, all its
            predictions contradict the labels of that class, right or wrong, so only known labels count here.
        reach: (K - 1) / (C - 1), where K of the classes are known: the share of the wrong labels that are known, if
            a wrong label is any other class with the same probability. 1 if all classes are known.
        contradicted: The share, from 0 to 1, of the surest fifth of the predictions that contradict their labels,
            among known labels. NaN if the model cannot judge labels yet: it knows at most half of the classes
            (`reach` is below one half), or most of its surest predictions have a probability of at most one half.
        wrong: The share of all labels that are wrong, if the surest predictions are right; NaN as `contradicted`.
    """

    known: npt.NDArray[np.bool_]
    reach: float
    contradicted: float = math.nan
    wrong: float = math.nan


def verdict(top: Floats, predicted: Integers, labels: Integers) -> Verdict:
    """Judges the labels by an epoch's predictions.

    Args:
        top: (N,) the probability of the predicted class.
        predicted: (N,) the predicted classes; -1 where there is no prediction.
        labels: (N,) the given labels, at least 0.
    """
    there = predicted >= 0
    classes = max(predicted.max(initial=0), labels.max(initial=0)) + 1
    told, given = (np.bincount(of[there], minlength=classes) for of in (predicted, labels))
    knows = (told > 0) & (given > 0) & (told >= KNOWN_FROM * given)
    known, others, all_others = knows[labels], int(knows.sum()) - 1, int((given > 0).sum()) - 1
    reach = max(others, 0) / all_others if all_others > 0 else 1.0
    judged = np.flatnonzero(there & known)
    surest = judged[np.argsort(-top[judged], kind="stable")[: surest_count(len(judged))]]
    if reach < LEAST_REACH or not len(surest) or np.median(top[surest]) <= 0.5:
        return Verdict(known, reach)
    against = float((predicted[surest] != labels[surest]).mean())
    # Let w be the share of wrong labels. Among the samples of known classes, 1 - w have the right label, and w reach
    # have a wrong one that is known too. So against = w reach / (1 - w + w reach), which is solved for w here.
    return Verdict(known, reach, against, against / (against + (1 - against) * reach))


def wrong_share(shares: Iterable[float], counted: int) -> float:
    """An estimate of the share of wrong labels: the geometric mean of `Verdict.wrong` over the first epochs that tell.

    The surest predictions are nearly always right, and wrong labels are as frequent among them as elsewhere. In the
    second epoch some of them are still wrong, so the share is too high; later, wrong labels are learnt by heart, so it
    is too low. The estimate is ours; docs/labels.md shows its errors.

    Args:
        shares: The values of `Verdict.wrong`, from the second epoch on. A NaN is left out.
        counted: How many of them count, see `counted_epochs`; no more are asked for.

    Returns:
        NaN if no epoch judges.
    """
    told = list(islice((share for share in shares if not math.isnan(share)), counted))
    return float(np.prod(told) ** (1 / len(told))) if told else math.nan


def counted_epochs(epochs: Sequence[int]) -> tuple[Sequence[int], int]:
    """The epochs from which `wrong_share` may be estimated, and how many of them count.

    These are the second and those that follow it without a gap. Two count, but in a run of at most four epochs one.

    Args:
        epochs: The recorded epochs, ascending, from 0. If the second is not among them, no epoch is returned.
    """
    following = [epoch for i, epoch in enumerate(e for e in epochs if e) if epoch == i + 1]
    return following, 1 if not epochs or epochs[-1] < 4 else 2


def worst(noise_score: Floats, labels: Integers, last: Verdict, share: float) -> npt.NDArray[np.bool_]:
    """(N,): whether a label looks wrong: those with the highest noise scores, as many as are estimated to be wrong.

    All labels of a class that the model does not know have high noise scores, right or wrong. If a wrong label is any
    of the C - 1 other classes with the same probability, a rare class has about 1 / (C - 1) of all wrong labels. So no
    more labels of such a class are flagged.

    Args:
        noise_score: (N,), NaN where nothing is known of a sample.
        labels: (N,) the given labels, at least 0.
        last: The verdict of the last epoch, by which the model knows most classes.
        share: The share of all labels that is wrong, by `wrong_share`; NaN counts as 0.
    """
    there = ~np.isnan(noise_score)
    wrong = 0.0 if math.isnan(share) else share * there.sum()
    of_a_class = round(wrong / max(len(np.unique(labels[there])) - 1, 1))
    order = np.lexsort((-noise_score, labels))  # by class, the highest noise score first
    place = np.empty(len(labels), np.int64)
    place[order] = np.arange(len(labels)) - np.searchsorted(labels[order], labels[order])
    among = ranks(np.where(last.known | (place < of_a_class), noise_score, np.nan))
    return (among > 0) & (among <= round(wrong))


def suggested_label(probabilities: Floats, labels: Integers) -> Integers:
    """(N,): the class with the highest mean probability over epochs; -1 where no epoch has a prediction.

    Among equal classes it is the given label, else the first. All epochs count, because by the last one the model has
    learnt wrong labels by heart and repeats them.

    Args:
        probabilities: (E, N, C).
        labels: (N,) the given labels, in [0, C).
    """
    means = mean_over_epochs(probabilities)
    given = np.take_along_axis(means, labels[:, None], axis=1)[:, 0]
    best = np.where(given >= means.max(axis=1), labels, means.argmax(axis=1))
    return np.where(np.isnan(given), -1, best)


def regression_noise_score(errors: Floats, scale: float) -> Floats:
    """(N,) from 0 to below 1: how likely a score is wrong, to rank samples by; 0.5: the mean error equals `scale`.

    `m / (m + scale)`, where m is the mean absolute error over epochs. The formula is ours.

    Args:
        errors: Predictions less labels, (E, N).
        scale: The standard deviation of the labels, above 0.
    """
    mean = mean_over_epochs(np.abs(errors))
    return mean / (mean + scale)


def ranks(scores: Floats) -> Integers:
    """(N,): 1 for the highest score, 2 for the next; equal scores rank by position. 0 where the score is NaN."""
    order = np.argsort(-scores, kind="stable")  # NaN comes last
    result = np.zeros(len(scores), np.int64)
    result[order] = np.arange(1, len(scores) + 1)
    return np.where(np.isnan(scores), 0, result)


class Calibration(NamedTuple):
    """How sure a model is, and how often it is right, in bins of equal width from 0 to 1; each field is (bins,).

    Attributes:
        samples: The number of samples in the bin.
        confidence: Their mean probability of the predicted class; NaN in an empty bin.
        accuracy: The share of them whose predicted class is the label; NaN in an empty bin.
    """

    samples: Integers
    confidence: Floats
    accuracy: Floats

    @property
    def expected_error(self) -> float:
        """Mean distance of accuracy and confidence over samples, 0 (calibrated) to 1 (Guo); NaN if there is none."""
        distance = np.nan_to_num(np.abs(self.accuracy - self.confidence))
        return float((distance * self.samples).sum() / self.samples.sum()) if self.samples.any() else math.nan


def calibration(top: Floats, hits: Floats, bins: int = 10) -> Calibration:
    """Bins one epoch's predictions by how sure they were (Guo).

    Args:
        top: (N,) the probability of the predicted class.
        hits: (N,) 1 where the predicted class was the label, else 0. A NaN in either array leaves the sample out.
        bins: The number of bins; a probability of 1 belongs to the last one.
    """
    known = ~(np.isnan(top) | np.isnan(hits))
    top, hits = top[known], hits[known]
    number = np.minimum((top * bins).astype(np.int64), bins - 1)
    count = np.bincount(number, minlength=bins)
    sums = [np.bincount(number, weights=values, minlength=bins) for values in (top, hits)]
    means = [np.divide(total, count, out=np.full(bins, np.nan), where=count > 0) for total in sums]
    return Calibration(count, means[0], means[1])
