"""The words, numbers and plots that the page shows of a run; `page` puts them together."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..method import dynamics
from . import figures
from .measures import Measures, logged_over_epochs
from .multi_label import LOOKS, LabelRun
from .run import Run

Array = npt.NDArray[Any]

MATRIX_CLASSES = 12  # more do not fit a screen


def data_map(run: Run, measures: Measures, rows: Array) -> tuple[figures.Figure, list[figures.Colouring]]:
    """The map of some samples, and the colourings to choose from; the map begins with the first."""
    samples = {name: values[rows] for name, values in measures.samples.items()}
    if run.is_regression:
        colourings = [figures.by_value("given score", samples["label"], "Viridis")]
        titles = ("variability: standard deviation of the prediction over epochs", "mean absolute error")
        regions = [("hard to learn", 0.01, 0.99), ("ambiguous", 0.99, 0.66), ("easy to learn", 0.01, 0.01)]
        error = samples["mean_absolute_error"]
        return figures.data_map(samples["variability"], error, titles, colourings[0], regions, False), colourings
    colourings = [
        figures.by_value("correctness", samples["correctness"], figures.BAD_TO_GOOD, (0, 1)),
        figures.by_class("given label", samples["label"], run.classes),
        figures.by_class("suggested label", samples["suggested_label"], run.classes),
    ]
    if isinstance(run, LabelRun):
        colourings.append(figures.by_class("which label", run.about[rows], run.names))
    titles = ("variability: standard deviation over epochs", "confidence: mean probability of the label")
    regions = [("easy to learn", 0.01, 0.99), ("ambiguous", 0.99, 0.66), ("hard to learn", 0.01, 0.01)]
    confidence = samples["confidence"]
    return figures.data_map(samples["variability"], confidence, titles, colourings[0], regions), colourings


class Matrix(NamedTuple):
    """The number of samples by given and by suggested class.

    Attributes:
        classes: The ids of the K classes that it shows.
        counts: (K, K) by given and suggested class; for several labels (K, 2), see `matrix_of_labels`.
        largest: The largest count where the two differ.
        is_part: Whether there are classes that it does not show.
        columns: The ids of its columns.
    """

    classes: list[int]
    counts: list[list[int]]
    largest: int
    is_part: bool
    columns: list[int]


def matrix(given: Array, suggested: Array, classes: int) -> Matrix:
    """The matrix of (n,) samples, with at most `MATRIX_CLASSES` classes: those that are mistaken most often."""
    wrong = given != suggested
    mistaken = np.bincount(np.concatenate([given[wrong], suggested[wrong]]), minlength=classes)
    shown = np.sort(np.argsort(-mistaken, kind="stable")[:MATRIX_CLASSES])
    place = np.full(classes, -1)
    place[shown] = np.arange(len(shown))
    inside = (place[given] >= 0) & (place[suggested] >= 0)
    counts = np.zeros((len(shown), len(shown)), np.int64)
    np.add.at(counts, (place[given[inside]], place[suggested[inside]]), 1)
    largest = int(counts[~np.eye(len(shown), dtype=bool)].max(initial=0))
    return Matrix(shown.tolist(), counts.tolist(), largest, len(shown) < classes, shown.tolist())


def matrix_of_labels(about: Array, look: Array, labels: int) -> Matrix:
    """How many of (n,) labels look added or missing, for the names of labels that look wrong most often.

    `about`: which of the names each label has; `look`: its index in `multi_label.LOOKS`.
    """
    counts = np.zeros((labels, len(LOOKS)), np.int64)
    np.add.at(counts, (about, look), 1)
    wrong = counts[:, 1:]
    shown = np.sort(np.argsort(-wrong.sum(axis=1), kind="stable")[:MATRIX_CLASSES])
    return Matrix(shown.tolist(), wrong[shown].tolist(), int(wrong.max()), len(shown) < labels, [1, 2])


class Memory(NamedTuple):
    """What the model has learnt and what it knows by heart, in a sentence and a plot.

    `name`: the name of the line for new samples; `meaning`: the rest of a sentence that begins with that name.
    """

    sentence: str
    figure: figures.Figure
    name: str
    meaning: str


def memory(log: list[dict[str, float]]) -> Memory | None:
    """From `memorised` and `honest_accuracy`, or a regression's `honest_loss`, in the Trainer's log; else None."""
    return _memory_of_hits(log) or _memory_of_losses(log)


def _memory_of_hits(log: list[dict[str, float]]) -> Memory | None:
    logged = _both_parts(log, "honest_accuracy")
    if logged is None:
        return None
    epochs, honest, memorised, error, off = logged
    # Rounded first, so that the parts add up.
    can, heart = round(100 * honest[-1]), round(100 * memorised[-1])
    right = f"Of the {can + heart} % that it gets right"
    sentence = (
        f"{right}, {can} % it can do and {heart} % it has by heart" if heart > 0 else f"{right}, it has none by heart"
    )
    give_or_take = "" if np.isnan(off) else f" (each ± {100 * off:.0f} points, 95 % interval)"
    names = ("can do", "gets right, with what it knows by heart")
    figure = figures.memory(epochs, honest, honest + memorised, error, names, "share of the samples", share=True)
    meaning = "is how often it would agree with the labels of new samples, labelled as well or as badly as these."
    return Memory(f"{sentence}{give_or_take}.", figure, names[0], meaning)


def _memory_of_losses(log: list[dict[str, float]]) -> Memory | None:
    logged = _both_parts(log, "honest_loss")
    if logged is None:
        return None
    epochs, honest, memorised, error, off = logged
    give_or_take = "" if np.isnan(off) else f" (± {off:.3g}, 95 % interval)"
    sentence = f"The mean squared error is {honest[-1] - memorised[-1]:.3g} on the training samples, and would be "
    sentence += (
        f"{honest[-1]:.3g} on new ones{give_or_take}: knowing samples by heart lowers it by {memorised[-1]:.3g}."
        if memorised[-1] > 0
        else f"no higher on new ones{give_or_take}: the model knows nothing by heart."
    )
    names = ("error on new samples", "error on training samples, which it knows by heart in part")
    figure = figures.memory(epochs, honest, honest - memorised, error, names, "mean squared error", share=False)
    return Memory(
        sentence,
        figure,
        names[0],
        "is how far off it would be on samples that it was not trained on, with scores as true or as wrong as these.",
    )


def _both_parts(log: list[dict[str, float]], name: str) -> tuple[list[int], Array, Array, Array, float] | None:
    """The honest and the memorised part of each epoch, from the log; None if no epoch has both.

    Returns:
        The numbers of the E epochs that have both; (E,) the honest part, the memorised part, and the standard error of
        the honest part; and half the width of the 95 % interval of the last epoch's parts. An error that was not
        logged is NaN.
    """
    logged = [logged_over_epochs(log, key) for key in (name, "memorised", f"{name}_error", "memorised_error")]
    epochs = sorted(
        epoch
        for epoch in logged[0].keys() & logged[1].keys()
        if np.isfinite([logged[0][epoch], logged[1][epoch]]).all()
    )
    if not epochs:
        return None
    honest, memorised, *errors = (np.array([values.get(epoch, np.nan) for epoch in epochs]) for values in logged)
    return epochs, honest, memorised, errors[0], figures.NORMAL_95 * float(np.fmax(errors[0][-1], errors[1][-1]))


# The titles of the plots below the table, and what they show.
PLOTS = {
    "losses": ("Loss", "The parts of the loss, as logged. A teacher's part is its divergence from the student."),
    "agreement": (
        "Agreement",
        "How often an epoch's prediction was the given label, and how often it was each teacher's prediction. The "
        "short-term teacher is the epoch before, the long-term teacher the last epoch of the mini-generation before.",
    ),
    "reliability": (
        "Reliability",
        "The last epoch's predictions by how sure they were. On the diagonal, they are right as often as they claim "
        "to be. These are training samples, on which a model seems better than it is.",
    ),
    "forgetting": ("Forgetting", "How often samples went from a right prediction to a wrong one in the next epoch."),
    "sample_losses": ("Losses of samples", "The distribution of the samples' losses in each epoch."),
    "error": ("Error", "The mean absolute error of an epoch's predictions."),
}


def curves(run: Run, measures: Measures) -> tuple[dict[str, figures.Figure], list[str]]:
    """The plots below the table, by name; and sentences about those that are missing."""
    plots, missing = {}, []
    losses = figures.loss_curves(run.log)
    if losses is None:
        missing.append("There is no loss curve: neither the store nor a trainer_state.json of the run has a log.")
    else:
        plots["losses"] = losses
    if run.is_regression:
        line = _line(run.epochs, measures.epochs["absolute_error"])
        plots["error"] = figures.lines_over_epochs({"error": line}, "mean absolute error", share=False)
        return plots, missing
    lines = {"given label": _line(run.epochs, measures.epochs["accuracy"])}
    short_term = _line(run.epochs, measures.epochs["short_term_agreement"])
    if short_term[0]:
        lines["short-term teacher"] = short_term
    logged = logged_over_epochs(run.log, "long_term_agreement")
    if logged:
        lines["long-term teacher"] = (list(logged), list(logged.values()))
    elif len(run.epochs) > 1:
        missing.append("There is no curve of the agreement with the long-term teacher: the run's log has none.")
    plots["agreement"] = figures.lines_over_epochs(lines, "agreement", share=True)
    samples = measures.samples
    bins = _calibration(measures)
    if bins is not None:
        plots["reliability"] = figures.reliability(bins)
    if len(run.epochs) > 1:
        seen = measures.seen
        plots["forgetting"] = figures.forgetting(samples["forgetting_events"][seen], samples["never_learnt"][seen])
    return plots, missing


def _line(epochs: list[int], values: Array) -> tuple[list[int], list[float]]:
    known = ~np.isnan(values)
    return np.asarray(epochs)[known].tolist(), values[known].tolist()


def _calibration(measures: Measures) -> dynamics.Calibration | None:
    """The calibration of the last epoch; None if it predicted nothing."""
    samples = measures.samples
    seen = samples["prediction"] >= 0
    hits = np.where(seen, samples["prediction"] == samples["label"], np.nan)
    return dynamics.calibration(samples["prediction_probability"], hits) if seen.any() else None


def tiles(run: Run, measures: Measures) -> list[tuple[str, str, str]]:
    """The numbers at the top of the page: of each its title, its value and its meaning."""
    samples = measures.samples
    what = f"each a yes or no, of {len(run.run.ids):,} samples" if isinstance(run, LabelRun) else "that have a label"
    shown = [
        (f"{run.unit}s", f"{len(run.ids):,}", what),
        ("epochs", str(len(run.epochs)), "with recorded predictions"),
    ]
    if run.is_regression:
        error = measures.epochs["absolute_error"][-1]
        # Scores may be of any size.
        told = "none" if np.isnan(error) else f"{error:.3g}" if error < 0.1 else f"{error:.3f}"
        return [*shown, ("mean absolute error, last epoch", told, "on the training data")]
    bins = _calibration(measures)
    accuracy = "none" if bins is None else f"{measures.epochs['accuracy'][-1]:.1%}"
    error = "none" if bins is None else f"{bins.expected_error:.1%}"
    shown += [
        ("predicted as labelled, last epoch", accuracy, "of the training data"),
        ("calibration error, last epoch", error, "mean gap between how sure and how often right it was"),
    ]
    if len(run.epochs) > 1:  # a single epoch cannot tell
        forgotten = f"{(samples['forgetting_events'][measures.seen] > 0).mean():.1%}"
        shown += [
            ("forgotten at least once", forgotten, "right in one epoch, and wrong in the next"),
            ("never learnt", f"{samples['never_learnt'].sum():,}", "no epoch predicted the given label"),
        ]
    return shown


def notes(run: Run, measures: Measures) -> list[str]:
    """Sentences about what the store does not hold, which a reader must know."""
    epochs = run.epochs
    told = notes_of_epochs(epochs, _of_which_epochs(run, measures))
    gaps = len(epochs) <= epochs[-1]
    seen, last = measures.seen, measures.samples["prediction"]
    absent = seen & (np.isnan(last) if run.is_regression else last < 0)
    unseen, late = (len(np.unique(run.shown_ids[rows])) for rows in (~seen, absent))
    if unseen:
        which = "any epoch that the store holds" if gaps else "any epoch"
        told.append(f"Samples with a label and no prediction in {which}: {unseen:,}. They are not on this page.")
    if late:
        told.append(
            f"Samples with a prediction in an earlier epoch and none in the last one, {epochs[-1]}: {late:,}. The "
            "numbers of the last epoch leave them out."
        )
    return told


def notes_of_epochs(epochs: list[int], of_which: str) -> list[str]:
    """Sentences about the epochs in the store; `of_which`: one that says which epochs the numbers are of."""
    gaps = sorted(set(range(epochs[-1] + 1)) - set(epochs))
    if gaps:
        return [
            f"The store holds epochs {_listing(epochs)} and no longer {_listing(gaps)}. {of_which} What was learnt or "
            'forgotten in the others cannot be computed. Train with logits_retention="all" to keep every epoch.'
        ]
    return ["One epoch says nothing about variability and forgetting: train for more."] if len(epochs) == 1 else []


def _of_which_epochs(run: Run, measures: Measures) -> str:
    """Says which epochs the numbers are of, if the store does not hold all."""
    if not measures.noise_of_all_epochs:
        return "All numbers here are of the epochs that it holds. By then a model may know wrong labels by heart."
    kept = "The mean absolute error and the noise score are" if run.is_regression else "The noise score is"
    return (
        f"{kept} of all epochs, from a mean that the run kept. All other numbers are of the epochs that the store "
        "holds. By then a model may know wrong labels by heart."
    )


def _listing(epochs: list[int]) -> str:
    shown = [str(epoch) for epoch in epochs]
    return ", ".join(shown if len(shown) <= 8 else [*shown[:3], "…", *shown[-3:]])
