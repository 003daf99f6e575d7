"""The page that compares two runs; see `compare`."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..method import dynamics
from . import figures, page_columns, summary
from .assembly import write_html
from .measures import logged_over_epochs
from .page import choose, texts_of
from .page_columns import PageColumn
from .pair import Pair
from .run import Run
from .texts import Texts

Array = npt.NDArray[Any]

_GAIN = PageColumn(
    "gain",
    "gain",
    3,
    "How much more probable the label is in B, on average over the epochs. Above 0: B is better at it.",
)
_GAIN_OF_SCORES = PageColumn(
    "gain",
    "gain",
    3,
    "How much closer to the score the predictions of B are, on average over the epochs. Above 0: B is better.",
    True,
)
_COLOURS = (figures.GREY, figures.BLUE, figures.ORANGE, figures.GREEN)  # right in neither, in B, in A, in both
_OF_RUNS = (figures.ORANGE, figures.BLUE)
_UNITS = ("_runtime", "_per_second", "_flos")  # endings of what an evaluation logs besides results


def write_comparison_page(path: Path, pair: Pair, texts: Texts | None, notes: list[str]) -> None:
    """Writes the page; `notes`: sentences about how the two runs differ, and about samples that are not on it."""
    a, b = pair.runs
    order, drawn = choose(dynamics.ranks(np.abs(pair.gain)))
    words, cut = (None, "") if texts is None else texts_of(texts, b.ids[order])
    columns = _columns(b)
    data_map, colouring = _map(pair, order[drawn])
    plots = _plots(pair)
    data = {
        "runs": [{"epochs": run.epochs} for run in pair.runs],
        "classes": b.classes,
        "columns": [column._asdict() for column in columns],
        "rows": _rows(pair, columns, order) | {"text": words},
        "pair": ["right_a", "right_b"],
        "drawn": drawn.tolist(),
        "figures": {"map": data_map, **{name: figure for name, (_, _, figure) in plots.items()}},
        "colourings": [colouring],
    }
    better, worse = _changed(pair)
    lead = (
        f"B is closer to the score for {better:,} of them, A for {worse:,}."
        if b.is_regression
        else f"{better:,} are predicted as labelled by B only, {worse:,} by A only."
    )
    write_html(
        path,
        "comparison",
        data,
        title=f"{b.name} beside {a.name}",
        a=a,
        b=b,
        headline=f"B is better at {better:,} of {len(b.ids):,} samples, and worse at {worse:,}",
        lead=f"{lead} All are training samples of both runs.",
        tiles=_tiles(pair),
        notes=[*notes, *([cut] if cut else [])],
        columns=columns,
        colourings=[colouring],
        matrix=None if b.is_regression else summary.matrix(pair.right[0][order], pair.right[1][order], 2),
        plots=[(name, title, text) for name, (title, text, _) in plots.items()],
        has_texts=words is not None,
    )


def _changed(pair: Pair) -> tuple[int, int]:
    """How many samples B is better at, and how many it is worse at."""
    gain = pair.gain if not pair.right else pair.right[1] - pair.right[0]
    return int((gain > 0).sum()), int((gain < 0).sum())


def _noise(run: Run) -> PageColumn:
    return page_columns.NOISE_OF_SCORES if run.is_regression else page_columns.NOISE


def _columns(run: Run) -> tuple[PageColumn, ...]:
    first = (page_columns.MEASURES_OF_SCORES if run.is_regression else page_columns.MEASURES_OF_CLASSES)[0]
    of_runs = [
        column._replace(name=f"{column.name}_{name.lower()}", title=f"{column.title}, {name}")
        for column in (first, _noise(run))
        for name in ("A", "B")
    ]
    return (_GAIN_OF_SCORES if run.is_regression else _GAIN, *of_runs)


def _rows(pair: Pair, columns: tuple[PageColumn, ...], order: Array) -> dict[str, Any]:
    """The page's rows, as columns; `history`, for each run and epoch: the label's percent, or the predicted score."""
    a, b = pair.runs
    values: dict[str, Array] = {"gain": pair.gain}
    for name, found in zip("ab", pair.measures, strict=True):
        values |= {f"{measure}_{name}": of for measure, of in found.samples.items()}
    rows: dict[str, Any] = {column.name: column.cells(values[column.name][order]) for column in columns}
    labels = b.labels[order]
    last = [found.samples["prediction"][order] for found in pair.measures]
    if b.is_regression:
        labels, last = page_columns.scores(labels), [page_columns.scores(scores) for scores in last]
    rows |= {"id": page_columns.identifiers(b.ids[order]), "label": labels.tolist()}
    rows |= {"last": [predictions.tolist() for predictions in last]}
    right = [of[order].tolist() for of in pair.right] or [[], []]
    return rows | {"right_a": right[0], "right_b": right[1], "history": [_history(run, order) for run in (a, b)]}


def _history(run: Run, order: Array) -> list[list[Any]]:
    history: list[list[Any]] = [[] for _ in run.epochs]
    ids, labels = run.ids[order], run.labels[order]
    for chunk in run.chunks(len(ids)):
        logits = run.logits(ids[chunk])
        if run.is_regression:
            found = [page_columns.plain(page_columns.scores(epoch), np.isnan(epoch)) for epoch in logits[:, :, 0]]
        else:
            shares = dynamics.given_probability(dynamics.softmax(logits), labels[chunk])
            found = [page_columns.percent(epoch) for epoch in shares]
        for cells, further in zip(history, found, strict=True):
            cells += further
    return history


def _map(pair: Pair, rows: Array) -> tuple[figures.Figure, figures.Colouring]:
    name = "mean_absolute_error" if pair.runs[0].is_regression else "confidence"
    x, y = (found.samples[name][rows] for found in pair.measures)
    titles = ("mean absolute error in A", "mean absolute error in B")
    if pair.runs[0].is_regression:
        colouring = figures.by_class("B is", (pair.gain[rows] > 0).astype(np.int64), ("no closer", "closer"), _OF_RUNS)
        regions = [("better in B", 0.99, 0.01), ("worse in B", 0.01, 0.99)]
        return figures.data_map(x, y, titles, colouring, regions, are_shares=False), colouring
    kinds = 2 * pair.right[0][rows] + pair.right[1][rows]
    colouring = figures.by_class("right in", kinds, ("neither", "B only", "A only", "both"), _COLOURS)
    titles = ("confidence in A: mean probability of the label", "confidence in B")
    regions = [("better in B", 0.01, 0.99), ("worse in B", 0.99, 0.01)]
    return figures.data_map(x, y, titles, colouring, regions), colouring


def _plots(pair: Pair) -> dict[str, tuple[str, str, figures.Figure]]:
    """Title, text and plot: agreement or error over epochs, and what both runs' evaluations logged."""
    of_epochs = "absolute_error" if pair.runs[0].is_regression else "accuracy"
    told = {
        "absolute_error": ("Error", "The mean absolute error of an epoch's predictions on these training samples."),
        "accuracy": ("Agreement", "How often the prediction of an epoch was the label, on these training samples."),
    }[of_epochs]
    lines = {}
    for name, run, found in zip("AB", pair.runs, pair.measures, strict=True):
        known = ~np.isnan(found.epochs[of_epochs])
        lines[name] = (np.asarray(run.epochs)[known].tolist(), found.epochs[of_epochs][known].tolist())
    plots = {
        "agreement": (
            *told,
            figures.lines_over_epochs(lines, told[0].lower(), share=of_epochs == "accuracy", colours=_OF_RUNS),
        )
    }
    logged = [{name for entry in run.log for name in entry} for run in pair.runs]
    for name in sorted(logged[0] & logged[1]):
        if name.startswith("eval_") and not name.endswith(_UNITS):
            of_runs = [logged_over_epochs(run.log, name) for run in pair.runs]
            lines = {title: (list(of), list(of.values())) for title, of in zip("AB", of_runs, strict=True) if of}
            if len(lines) == 2:
                text = "What the evaluations of both runs logged."
                plots[name] = (name, text, figures.lines_over_epochs(lines, name, share=False, colours=_OF_RUNS))
    return plots


def _tiles(pair: Pair) -> list[tuple[str, str, str]]:
    b = pair.runs[1]
    tiles = [("samples", f"{len(b.ids):,}", "that both runs have predicted")]
    for letter, run, found in zip("AB", pair.runs, pair.measures, strict=True):
        if run.is_regression:
            tiles.append((f"mean absolute error, {letter}", f"{found.epochs['absolute_error'][-1]:.3g}", "last epoch"))
        else:
            tiles.append((f"predicted as labelled, {letter}", f"{found.epochs['accuracy'][-1]:.1%}", "last epoch"))
    what = "scores" if b.is_regression else "labels"
    for letter, found in zip("AB", pair.measures, strict=True):
        flagged = int(found.samples["looks_wrong"].sum())
        tiles.append((f"{what} that look wrong, {letter}", f"{flagged:,}", "by the run's predictions over all epochs"))
    return tiles
