"""Two runs side by side, sample by sample: what the second one does better and worse than the first.

    <output_dir of B>/_report/comparison.html

Both are judged by the labels of the second run, which may be cleaned ones, on the samples that both have predicted.
"""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from datasets import Dataset, DatasetDict

from ..extras import require
from ..store.files import replacing
from .folder import report_folder
from .history import open_run
from .measures import Measures, measure
from .run import Run
from .texts import read_texts

Array = npt.NDArray[Any]


class Pair(NamedTuple):
    """Two runs on the samples that both have predicted in their last epochs, with the labels of the second.

    Attributes:
        runs: The two, with the same ids and labels.
        measures: Theirs.
        gain: (N,) by how much B is better. Of classes: its confidence less A's, from -1 to 1. Of scores: A's mean
            absolute error less B's.
        right: For each run (N,): 1 where the last epoch predicts the label, else 0; empty for a regression.
    """

    runs: tuple[Run, Run]
    measures: tuple[Measures, Measures]
    gain: Array
    right: tuple[Array, ...]


def write_comparison(
    run_a: str | os.PathLike[str],
    run_b: str | os.PathLike[str],
    dataset: str | os.PathLike[str] | Dataset | DatasetDict | None = None,
    text_columns: str | Sequence[str] | None = None,
    *,
    logits_dirs: tuple[str | os.PathLike[str] | None, str | os.PathLike[str] | None] = (None, None),
    sample_id_column: str = "sample_id",
    label_column: str | None = None,
    tsv_quoting: bool = False,
) -> Path:
    """Writes a page about two runs into the `_report` of the second, over an earlier one.

    Args:
        run_a: The first run's output_dir, or a checkpoint in it.
        run_b: The second one's: the run that is to be better.
        dataset: The training set of the second run, or its file, for the texts. None: the page shows ids.
        text_columns: The column to show, or several; None: all columns of text but the label's.
        logits_dirs: Where the two stores are, if not in `<run>/_logits`.
        sample_id_column: The data set's id column. Where it has none, a row's position is its id.
        label_column: The data set's label column, which must agree with the second run's labels.
        tsv_quoting: Whether quotes enclose fields in a TSV file.

    Returns:
        The path of the page.

    Raises:
        StoreError: of a run, see `write_report`; or the page could not be written.
        ValueError: there is no such run; the runs are of different tasks or have no sample in common; or texts that
            cannot be read or are of other samples.
        MissingExtraError: the extra `report` is not installed.
    """
    require("report")
    from .comparison_page import write_comparison_page

    folder = report_folder(Path(run_b))
    runs = [open_run(run, logits) for run, logits in zip((run_a, run_b), logits_dirs, strict=True)]
    texts = None
    if dataset is not None:
        texts = read_texts(
            dataset,
            runs[1],
            text_columns,
            sample_id_column=sample_id_column,
            label_column=label_column,
            tsv_quoting=tsv_quoting,
        )
    pair, notes = _pair(*runs)
    folder.mkdir(exist_ok=True)
    path = folder / "comparison.html"
    with replacing(path) as temporary:
        write_comparison_page(temporary, pair, texts, notes)
    return path


def _pair(a: Run, b: Run) -> tuple[Pair, list[str]]:
    """Brings two runs to the same samples and labels; and what there is to say of the others."""
    if len(a.classes) != len(b.classes):
        kinds = [f"{len(run.classes)} classes" if run.classes else "scores" for run in (a, b)]
        raise ValueError(f"{a.name} predicts {kinds[0]}, {b.name} {kinds[1]}: expected two runs of one task.")
    ids, at_a, at_b = np.intersect1d(a.ids, b.ids, assume_unique=True, return_indices=True)
    if not len(ids):
        raise ValueError(f"{a.name} and {b.name} have no sample id in common: expected two runs on the same samples.")
    others = int((a.labels[at_a] != b.labels[at_b]).sum())
    same = a.epochs == b.epochs

    both = _predicted(a, ids) & _predicted(b, ids)
    if not both.any():
        raise ValueError(f"{a.name} and {b.name} have no sample that the last epochs of both have predicted.")
    runs = [replace(run, ids=ids[both], labels=b.labels[at_b][both]) for run in (a, b)]
    # A mean that was kept is of a run's own labels, and of all its epochs.
    found = [measure(run, with_kept_mean=same and not others) for run in runs]
    if a.is_regression:
        gain = found[0].samples["mean_absolute_error"] - found[1].samples["mean_absolute_error"]
        right: list[Array] = []
    else:
        gain = found[1].samples["confidence"] - found[0].samples["confidence"]
        right = [(measures.samples["prediction"] == measures.samples["label"]).astype(np.int64) for measures in found]
    notes = []
    if not same:
        notes.append(
            f"A has the epochs {_listed(a)}, B {_listed(b)}. Means are over these: more epochs, or later ones, look "
            "better on samples that a model learns from."
        )
    if others:
        notes.append(
            f"Samples with another label in B than in A: {others:,}. Both runs are judged by the labels of B."
        )
    for name, run in (("A", a), ("B", b)):
        missing = len(run.ids) - int(both.sum())
        if missing:
            notes.append(f"Samples of {name} that are not here, because not both runs predicted them: {missing:,}.")
    return Pair((runs[0], runs[1]), (found[0], found[1]), gain, tuple(right)), notes


def _predicted(run: Run, ids: Array) -> Array:
    """(n,) bool: whether the last epoch has a prediction for a sample."""
    last = run.epochs[-1:]
    return np.concatenate([~np.isnan(run.logits(ids[chunk], last)).any(axis=(0, 2)) for chunk in run.chunks(len(ids))])


def _listed(run: Run) -> str:
    """The epochs of a run, in few words."""
    first, last = run.epochs[0], run.epochs[-1]
    whole = last - first + 1 == len(run.epochs) > 2
    return f"{first} to {last}" if whole else ", ".join(map(str, run.epochs))
