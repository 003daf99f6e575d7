"""The measures that a page shows, in words and digits, and their values as JSON takes them."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_LARGEST_EXACT = 2**53 - 1  # of the integers that JavaScript's numbers hold


class PageColumn(NamedTuple):
    """A measure as a page shows it.

    Attributes:
        name: Its key in the page's rows.
        title: What the page calls it.
        digits: How many it is shown with after the point.
        meaning: What it tells, in one or two sentences.
        in_scores: Whether it is in the unit of the scores, which may be of any size: small ones in significant digits.
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
    "How likely the label is wrong, from 0 to 1. Above 0.5 another class was, on average over the epochs, more "
    "probable than the given one.",
)
NOISE_OF_SCORES = PageColumn(
    "noise_score",
    "noise",
    3,
    "How likely the given score is wrong, from 0 to 1. At 0.5 the predictions are as far off as the scores vary.",
)
MEASURES_OF_CLASSES = (
    PageColumn(
        "confidence",
        "confidence",
        3,
        "The mean probability that the epochs gave to the given label. Low: hard to learn, or mislabelled.",
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
        "The mean of the given label's logit less the largest other one (area under the margin). Far below 0: likely "
        "mislabelled.",
    ),
)
MEASURES_OF_SCORES = (
    PageColumn("mean_absolute_error", "error", 3, "The mean distance of the predictions from the given score.", True),
    PageColumn("variability", "variability", 3, "The standard deviation of the prediction over the epochs.", True),
)


def scores(values: Array) -> Array:
    """Rounded to 3 decimals, or to 4 significant digits where these are more."""
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
    """Sample ids as numbers; as texts where some are larger than JavaScript's numbers can tell apart."""
    return ids.tolist() if ids.size == 0 or ids.max() <= _LARGEST_EXACT else [str(i) for i in ids.tolist()]
