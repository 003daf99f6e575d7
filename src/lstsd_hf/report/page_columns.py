"""The measures that a page shows: their titles, digits and meanings, and their values for JSON."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_LARGEST_EXACT = 2**53 - 1  # the largest integer that JavaScript's numbers hold exactly


class PageColumn(NamedTuple):
    """A measure as a page shows it.

    Attributes:
        name: Its key in the page's rows.
        title: What the page calls it.
        digits: The number of decimals that it is shown with.
        meaning: What it tells, in one or two sentences.
        in_scores: Whether it is in the unit of the scores. Values below 0.1 then have `digits` significant digits.
    """

    name: str
    title: str
    digits: int
    meaning: str
    in_scores: bool = False

    def cells(self, values: Array) -> list[Any]:
        """(n,) values rounded for the page; None where one is unknown: NaN, or a negative count."""
        if values.dtype.kind != "f":
            return plain(values, values < 0)
        rounded = scores(values) if self.in_scores else np.round(values.astype(np.float64), self.digits + 1)
        return plain(rounded, np.isnan(values))


NOISE = PageColumn(
    "noise_score",
    "score",
    3,
    "How likely the label is wrong, from 0 to 1. Above 0.5, another class was more probable than the given one, on "
    "average over the epochs.",
)
NOISE_OF_SCORES = PageColumn(
    "noise_score",
    "noise",
    3,
    "How likely the given score is wrong, from 0 to 1. Above 0.5, the mean error is larger than the standard "
    "deviation of all scores.",
)
MEASURES_OF_CLASSES = (
    PageColumn(
        "confidence",
        "confidence",
        3,
        "The mean probability of the given label over the epochs. Low: hard to learn, or mislabelled.",
    ),
    PageColumn(
        "variability",
        "variability",
        3,
        "The standard deviation of that probability over the epochs. High: the model changed its mind.",
    ),
    PageColumn("correctness", "correctness", 2, "The share of the epochs that predicted the given label."),
    PageColumn(
        "forgetting_events",
        "forgotten",
        0,
        "How often a right prediction was followed by a wrong one in the next epoch.",
    ),
    PageColumn(
        "first_learnt", "learnt", 0, "The first epoch, from 0, that predicted the given label. Empty: none did."
    ),
    PageColumn(
        "area_under_margin",
        "margin",
        2,
        "The mean over the epochs of the given label's logit minus the largest other logit (area under the margin). "
        "Far below 0: likely mislabelled.",
    ),
)
MEASURES_OF_SCORES = (
    PageColumn("mean_absolute_error", "error", 3, "The mean distance of the predictions from the given score.", True),
    PageColumn("variability", "variability", 3, "The standard deviation of the prediction over the epochs.", True),
)


def scores(values: Array) -> Array:
    """Rounds to 3 decimals, or to 4 significant digits where these are finer."""
    values = values.astype(np.float64)
    size = np.floor(np.log10(np.maximum(np.abs(values), 1e-19)))
    factor = 10.0 ** np.maximum(3, 3 - size)  # up to 1e22, which a float still holds exactly
    return np.round(values * factor) / factor


def percent(shares: Array) -> list[Any]:
    """Whole percent of (n,) shares from 0 to 1; None where one is NaN."""
    absent = np.isnan(shares)
    return plain(np.round(np.where(absent, 0, shares) * 100).astype(int), absent)


def plain(values: Array, absent: Array) -> list[Any]:
    """A list for JSON, which has no NaN: None where a value is absent."""
    listed = values.astype(object)
    listed[absent] = None
    return listed.tolist()


def identifiers(ids: Array) -> list[Any]:
    """Sample ids as numbers; as texts if some are too large for JavaScript's numbers to tell apart."""
    return ids.tolist() if ids.size == 0 or ids.max() <= _LARGEST_EXACT else [str(i) for i in ids.tolist()]
