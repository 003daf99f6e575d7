"""What the page tells of a run in words, numbers and plots; `page` puts it together."""

from typing import Any

import numpy as np
import numpy.typing as npt

from ..method import dynamics
from . import figures
from .measures import Measures, logged_over_epochs
from .run import Run

Array = npt.NDArray[Any]


def data_map(run: Run, measures: Measures, rows: Array) -> figures.Figure:
    samples = {name: values[rows] for name, values in measures.samples.items()}
    if run.is_regression:
        titles = (
            "variability: standard deviation of the prediction over epochs",
            "mean absolute error",
            "given score",
        )
        return figures.data_map(
            samples["variability"], samples["mean_absolute_error"], samples["label"], titles, "Viridis"
        )
    titles = (
        "variability: standard deviation over epochs",
        "confidence: mean probability of the label",
        "correctness",
    )
    colour = samples["correctness"]
    return figures.data_map(samples["variability"], samples["confidence"], colour, titles, figures.BAD_TO_GOOD, (0, 1))


# The titles of the plots below the table, and what they show.
PLOTS = {
    "losses": ("Loss", "What the loss was made of, as logged. The teachers' parts are divergences from the student."),
    "agreement": (
        "Agreement",
        "How often the prediction of an epoch was the given label, and that of each teacher: the epoch before "
        "(short-term), and the last epoch of the mini-generation before (long-term).",
    ),
    "reliability": (
        "Reliability",
        "The last epoch's predictions by how sure they were. On the diagonal, they are right as often as they claim "
        "to be; on training samples a model seems better than it is.",
    ),
    "forgetting": ("Forgetting", "How often samples went from a right prediction to a wrong one in the next epoch."),
    "error": ("Error", "The mean absolute error of an epoch's predictions."),
}


def curves(run: Run, measures: Measures) -> tuple[dict[str, figures.Figure], list[str]]:
    """The plots below the table by name, and what there is to say about those that are missing."""
    plots, missing = {}, []
    losses = figures.loss_curves(run.log)
    if losses is None:
        missing.append(
            "There is no loss curve: trainer_state.json, in the run's folder or its checkpoints, has no log."
        )
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
        missing.append("The agreement with the long-term teacher is known from the log only, which has none.")
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
    """Of the last epoch; None where it predicted nothing."""
    samples = measures.samples
    seen = samples["prediction"] >= 0
    hits = np.where(seen, samples["prediction"] == samples["label"], np.nan)
    return dynamics.calibration(samples["prediction_probability"], hits) if seen.any() else None


def tiles(run: Run, measures: Measures) -> list[tuple[str, str]]:
    """The numbers on top: what, how many."""
    samples = measures.samples
    shown = [("samples", f"{len(run.ids):,}"), ("epochs", str(len(run.epochs)))]
    if run.is_regression:
        error = measures.epochs["absolute_error"][-1]
        # Scores may be of any size.
        told = "none" if np.isnan(error) else f"{error:.3g}" if error < 0.1 else f"{error:.3f}"
        return [*shown, ("mean absolute error, last epoch", told)]
    bins = _calibration(measures)
    shown += [
        ("predicted as labelled, last epoch", "none" if bins is None else f"{measures.epochs['accuracy'][-1]:.1%}"),
        ("calibration error, last epoch", "none" if bins is None else f"{bins.expected_error:.1%}"),
    ]
    if len(run.epochs) > 1:  # which one alone cannot tell
        shown += [
            ("forgotten at least once", f"{(samples['forgetting_events'][measures.seen] > 0).mean():.1%}"),
            ("never learnt", f"{samples['never_learnt'].sum():,}"),
        ]
    return [*shown, ("noise above 0.5", f"{(samples['noise_score'] > 0.5).sum():,}")]


def notes(run: Run, measures: Measures) -> list[str]:
    """What the reader must know about what the store does not hold."""
    told = []
    epochs = run.epochs
    gaps = sorted(set(range(epochs[-1] + 1)) - set(epochs))
    if gaps:
        told.append(
            f"The store holds epochs {_listing(epochs)} and no longer {_listing(gaps)}. "
            f"{_of_which_epochs(run, measures)} What was learnt or forgotten in the others cannot be computed. "
            'Train with logits_retention="all" to keep every epoch.'
        )
    elif len(epochs) == 1:
        told.append("One epoch says nothing of variability and forgetting: train for more.")
    seen, last = measures.seen, measures.samples["prediction"]
    unseen, late = int((~seen).sum()), int((seen & (np.isnan(last) if run.is_regression else last < 0)).sum())
    if unseen:
        which = "any epoch that the store holds" if gaps else "any epoch"
        told.append(f"Samples with a label and no prediction in {which}: {unseen:,}. They are not on this page.")
    if late:
        told.append(
            f"Samples with a prediction in an earlier epoch and none in the last one, {epochs[-1]}: {late:,}. The "
            "numbers of the last epoch are without them."
        )
    return told


def _of_which_epochs(run: Run, measures: Measures) -> str:
    """Which epochs the numbers are of, where the store does not hold all."""
    if not measures.noise_of_all_epochs:
        return "All numbers here are of the epochs that it holds, when a model may know wrong labels by heart."
    kept = "The mean absolute error and the noise score are" if run.is_regression else "The noise score is"
    return (
        f"{kept} of all epochs, from a mean that the run kept. All other numbers are of the epochs that the store "
        "holds, when a model may know wrong labels by heart."
    )


def _listing(epochs: list[int]) -> str:
    shown = [str(epoch) for epoch in epochs]
    return ", ".join(shown if len(shown) <= 8 else [*shown[:3], "…", *shown[-3:]])
