"""The page of a run of question answering or of a language model: the loss of each sample over the epochs."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from . import figures, page_columns, summary
from .assembly import write_html
from .losses import Losses
from .many_rows import LossRun
from .page import choose, texts_of
from .page_columns import PageColumn
from .texts import PlainTexts

Array = npt.NDArray[Any]


def _columns(run: LossRun) -> tuple[PageColumn, ...]:
    what = "tokens" if run.is_language_model else "positions"
    right = (
        "The share of its tokens that the last epoch predicted right: the most probable class was the given one."
        if run.is_language_model
        else "1 where the last epoch's most probable start and end were the given ones, else 0."
    )
    return (
        PageColumn("mean_loss", "loss", 3, "The mean over the epochs, in nats. High: hard, or mislabelled.", True),
        PageColumn("first_loss", "first", 3, "The loss in the first epoch that the store holds.", True),
        PageColumn("last_loss", "last", 3, "The loss in the last epoch.", True),
        PageColumn("variability", "variability", 3, "The standard deviation of the loss over the epochs.", True),
        PageColumn("right", "right", 2, right),
        PageColumn(
            "forgetting_events",
            "forgotten",
            0,
            "How often a right prediction was followed by a wrong one in the next epoch"
            + (", over all its tokens." if run.is_language_model else "."),
        ),
        PageColumn("rows", what, 0, f"The number of its {what} with recorded predictions."),
    )


def write_losses_page(path: Path, run: LossRun, losses: Losses, texts: PlainTexts | None) -> Path:
    """Writes the page and returns its path."""
    samples, columns = losses.samples, _columns(run)
    listed, drawn = choose(samples["loss_rank"])
    words, cut = (None, "") if texts is None else texts_of(texts, run.ids[listed])
    unknown = np.isnan(losses.by_epoch[:, listed])
    by_epoch = [
        page_columns.plain(page_columns.scores(values), absent)
        for values, absent in zip(np.nan_to_num(losses.by_epoch[:, listed]), unknown, strict=True)
    ]
    points = listed[drawn]
    right = np.nan_to_num(samples["right"][points])
    colouring = figures.by_value("right in the last epoch", right, figures.BAD_TO_GOOD, (0, 1))
    regions = [("hard", 0.01, 0.99), ("unsteady", 0.99, 0.66), ("easy", 0.01, 0.01)]
    titles = ("variability: standard deviation of the loss over epochs", "mean loss, nats")
    loss_map = figures.data_map(
        samples["variability"][points], samples["mean_loss"][points], titles, colouring, regions, False
    )
    plots = _plots(run, losses)
    memory = summary.memory(run.log)
    if memory is not None:
        plots["memory"] = memory.figure
    rows: dict[str, Any] = {column.name: column.cells(samples[column.name][listed]) for column in columns}
    data = {
        "epochs": run.epochs,
        "columns": [column._asdict() for column in columns],
        "rows": rows | {"id": page_columns.identifiers(run.ids[listed]), "by_epoch": by_epoch, "text": words},
        "drawn": drawn.tolist(),
        "figures": {"map": loss_map, **plots},
        "colourings": [colouring],
        "pair": ["rows", "rows"],
    }
    return write_html(
        path,
        "losses",
        data,
        run=run,
        title=f"{run.name} · training report",
        tiles=_tiles(run, losses),
        notes=[*_notes(run, losses, len(listed)), *([cut] if cut else [])],
        columns=columns,
        colourings=[colouring],
        memory=memory,
        plots=[(name, *summary.PLOTS[name]) for name in plots if name in summary.PLOTS],
        has_texts=words is not None,
    )


def _plots(run: LossRun, losses: Losses) -> dict[str, figures.Figure]:
    plots = {}
    logged = figures.loss_curves(run.log)
    if logged is not None:
        plots["losses"] = logged
    lines = {}
    for name, share in (("median", 0.5), ("90 % are below", 0.9), ("10 % are below", 0.1)):
        known = [(epoch, values[~np.isnan(values)]) for epoch, values in zip(run.epochs, losses.by_epoch, strict=True)]
        kept = [(epoch, float(np.quantile(values, share))) for epoch, values in known if values.size]
        lines[name] = ([epoch for epoch, _ in kept], [value for _, value in kept])
    plots["sample_losses"] = figures.lines_over_epochs(lines, "loss of a sample, nats", share=False)
    return plots


def _tiles(run: LossRun, losses: Losses) -> list[tuple[str, str, str]]:
    samples = losses.samples
    seen = samples["loss_rank"] > 0
    last, right = losses.by_epoch[-1], losses.right[-1]
    known = ~np.isnan(last)
    loss = f"{last[known].mean():.3f}" if known.any() else "none"
    share = f"{right[known].mean():.1%}" if known.any() else "none"
    told = "of a sample's tokens, on average" if run.is_language_model else "with both ends as labelled"
    shown = [
        ("samples", f"{len(run.ids):,}", "that have labels"),
        ("epochs", str(len(run.epochs)), "with recorded predictions"),
        ("mean loss of a sample, last epoch", loss, "nats, on the training samples"),
        ("predicted right, last epoch", share, told),
    ]
    if len(run.epochs) > 1:
        forgotten = f"{(samples['forgetting_events'][seen] > 0).mean():.1%}"
        shown.append(("forgotten at least once", forgotten, "samples with a prediction that went from right to wrong"))
    return shown


def _notes(run: LossRun, losses: Losses, listed: int) -> list[str]:
    told = summary.notes_of_epochs(run.epochs, "All numbers here are of the epochs that it holds.")
    if losses.bounded:
        (k,) = run.store.row_shape
        told.append(
            f"For {losses.bounded:.1%} of the predicted tokens, the label is not among the {k} classes that were "
            "kept: their part of a loss is a lower bound, from the probability of all other classes together. A "
            "larger logits_top_k keeps more."
        )
    unseen = int((losses.samples["loss_rank"] == 0).sum())
    if unseen:
        told.append(
            f"Samples with no loss in any epoch, or no complete answer: {unseen:,}. They are not on this page."
        )
    if listed < len(run.ids) - unseen:
        told.append(
            f"The table has {listed:,} samples: those with the highest loss, and those on the map. samples.parquet "
            "has all."
        )
    return told
