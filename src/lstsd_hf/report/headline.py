"""The headline of a run, on its page and at the end of `lstsd train`: how many labels look wrong."""

from typing import NamedTuple

import numpy as np

from .measures import Measures
from .multi_label import LabelRun
from .run import Run

# From scripts/results/labels.jsonl; see docs/labels.md.
_HOW_FAR_OFF = (
    "In 66 test runs it was off by 4 percentage points on average, and by 26 at the most: mostly too high where few "
    "labels were wrong, and too low where many were."
)


_ADVICE = "Hard and unusual samples look like this too: read a sample before you change it."


class Headline(NamedTuple):
    """What the page says first: how many labels look wrong, what that means, and what the button does."""

    title: str
    text: str
    action: str


def headline(run: Run, measures: Measures) -> Headline:
    """Says how many of the samples that have a prediction are flagged."""
    flagged = int(measures.samples["looks_wrong"].sum())
    if run.unit == "token":
        return _headline_of_tokens(run, measures, flagged)
    if isinstance(run, LabelRun):
        return _headline_of_labels(run, measures, flagged)
    if not measures.has_learnt:
        return Headline(
            "The model learnt too little to judge labels",
            "It predicts at most half of the classes, or its surest predictions are unsure, or they agree with the "
            "labels no more often than always predicting the largest class would. Train for more epochs, or with "
            "another learning rate.",
            "Review the least likely",
        )
    what = "score" if run.is_regression else "label"
    title = _title(flagged, measures.seen.sum(), what)
    if measures.wrong_labels is not None:
        return _about(title, flagged, measures)
    them = "this one" if flagged == 1 else "these"
    if run.is_regression:
        reason = "the predictions missed the given score by more than the standard deviation of all scores"
    else:
        reason = "the model found another class more probable than the given one"
    epochs = run.epochs[-1] + 1 if measures.noise_of_all_epochs else len(run.epochs)
    if not flagged:
        return Headline(title, f"There is no {what} for which {reason}, {_when(epochs)}.", "Review the least likely")
    text = f"For {them} {reason}, {_when(epochs)}."
    return _to_review(title, f"{text} {caution(measures)}".rstrip(), flagged)


def caution(measures: Measures) -> str:
    """Why not to believe that labels look wrong: empty unless the model only guesses."""
    if not measures.only_guesses:
        return ""
    return (
        "In the last epoch the model agreed with the labels no more often than always predicting the largest class "
        "would, so it has learnt too little to judge them."
    )


def of_unknown_classes(measures: Measures) -> str:
    """How many labels the predictions say little of, and how many of these look wrong; empty if there are none."""
    if measures.unknown is None or not measures.unknown.any():
        return ""
    looks_wrong = measures.samples["looks_wrong"][measures.unknown].sum()
    return (
        f"{measures.unknown.sum():,} labels are of classes that the model hardly ever predicts, so it says little of "
        f"them; {looks_wrong:,} of these look wrong"
    )


def _when(epochs: int) -> str:
    return "in its one epoch" if epochs == 1 else f"on average over {epochs} epochs"


def _to_review(title: str, text: str, flagged: int) -> Headline:
    return Headline(title, f"{text} {_ADVICE}", "Review it" if flagged == 1 else "Review them")


def _title(flagged: int, count: int, what: str) -> str:
    return f"{f'{flagged:,}' if flagged else 'None'} of {count:,} {what}s look{'s' * (flagged < 2)} wrong"


def _headline_of_tokens(run: Run, measures: Measures, flagged: int) -> Headline:
    tokens = int(measures.samples["flagged_tokens"].sum())
    title = f"{f'{tokens:,}' if tokens else 'No'} label{'s' * (tokens != 1)} of tokens look{'s' * (tokens == 1)} wrong"
    when = _when(len(run.epochs))
    if not tokens:
        return Headline(
            title,
            f"There is no token for which the model found another class more probable, {when}.",
            "Review the least likely",
        )
    text = (
        f"They are in {flagged:,} of {measures.seen.sum():,} samples. For these tokens the model found another class "
        f"more probable than the given one, {when}. The page shows each sample's most suspicious token. Hard and "
        "unusual tokens look like this too: read the sample before you change a label."
    )
    return Headline(title, text, "Review it" if flagged == 1 else "Review them")


def _headline_of_labels(run: LabelRun, measures: Measures, flagged: int) -> Headline:
    wrong = measures.samples["looks_wrong"]
    samples = len(np.unique(run.shown_ids[measures.seen]))
    title = _title(flagged, samples * len(run.names), "label")
    each = f"Each of {samples:,} samples has {len(run.names):,} labels, a yes or no each."
    when = _when(len(run.epochs))
    if not flagged:
        return Headline(
            title,
            f"{each} There is no label for which the model found the opposite more probable, {when}.",
            "Review the least likely",
        )
    added, owners = int((run.labels[wrong] == 1).sum()), len(np.unique(run.shown_ids[wrong]))
    text = (
        f"{each} {added:,} added and {flagged - added:,} missing, it seems, in {owners:,} sample{'s' * (owners > 1)}: "
        f"for these labels the model found the opposite more probable, {when}."
    )
    return _to_review(title, text, flagged)


def _about(title: str, count: int, measures: Measures) -> Headline:
    """The headline if the number of wrong labels is an estimate."""
    how = f"An estimate, from how often the surest early predictions disagreed with the label. {_HOW_FAR_OFF}"
    if unknown := of_unknown_classes(measures):
        how += f" {unknown}."
    if not count:
        return Headline(title, how, "Review the least likely")
    title = f"About {title} ({count / measures.seen.sum():.0%})"
    text = f"{how} These are the labels that the model's predictions disagreed with most, over all epochs."
    return Headline(title, f"{text} {_ADVICE}", "Review them")
