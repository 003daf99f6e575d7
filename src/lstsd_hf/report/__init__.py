"""The report of a run: what the model thought of every training sample, and when, from the sealed epochs.

    <output_dir>/_report/
      report.html           a page that opens offline: what looks wrong, a review of it, a map, a table, curves
      comparison.html       a page about this run beside another one; see `compare`
      samples.parquet       a row for each sample id that has a label; columns: `measures.of_classes`, `of_scores`
      sample_ids.npy        (M,) int64: the samples that the last epoch has a prediction for, the rows of what follows
      labels.npy            (M,) their labels
      pred_probs.npy        (M, C) float32: the last epoch's probabilities, as cleanlab takes them; in-sample
      predictions.npy       (M,) float32: the last epoch's scores; a regression has it in place of pred_probs.npy

Of a multi-label head labels.npy is (M, C), 1 where a label holds, and pred_probs.npy has the probability of each.

Of a tagger samples.parquet has each sample's most suspicious token, and tokens.parquet a row for each labelled token.
labels.npy and pred_probs.npy are of the tokens, sample by sample, and offsets.npy (M + 1,) says where each sample's
begin. Of question answering and language models there are the page and samples.parquet, with losses.

A checkpoint has its report beside it, in the run's `_report`: pushes to the Hub may upload a checkpoint whole, and
the report holds texts.

The store is read in chunks of samples, all epochs at once. What stays in memory is a row of the parquet file for each
sample, and, of those that the page lists, the text and a few numbers for each epoch.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from datasets import Dataset, DatasetDict

from ..extras import require
from ..method import dynamics
from ..store.files import publish, remove, writing
from ..store.npy import NpyWriter, write_array
from .folder import report_folder
from .history import losses_table, samples_table, token_table
from .losses import measure_losses
from .many_rows import LossRun, TokenRun, open_any_run, worst_tokens
from .measures import Measures, measure
from .multi_label import by_sample, label_run, sigmoid, suspects
from .run import Run
from .texts import Texts, read_plain_texts, read_texts
from .token_texts import read_token_texts

PAGE = "report.html"
_ARRAYS = ("sample_ids.npy", "labels.npy", "offsets.npy", "pred_probs.npy", "predictions.npy")
_FILES = frozenset({"samples.parquet", "tokens.parquet", *_ARRAYS, PAGE})
_UNFINISHED = ".unfinished"  # what a report is written in


def write_report(
    run_dir: str | os.PathLike[str],
    dataset: str | os.PathLike[str] | Dataset | DatasetDict | None = None,
    text_columns: str | Sequence[str] | None = None,
    *,
    logits_dir: str | os.PathLike[str] | None = None,
    sample_id_column: str = "sample_id",
    label_column: str | None = None,
    tsv_quoting: bool = False,
) -> Path:
    """Writes the report of a run into the `_report` in its output_dir, over an earlier one.

    Args:
        run_dir: The run's output_dir, or a checkpoint in it. Of a run that kept only some of its
            epochs (`logits_retention`, `history_budget`) the report shows what it can, and says what it cannot.
        dataset: What holds the texts: the training set, or its file; see `texts.read_texts`. None: the page shows ids.
        text_columns: The column to show, or several; None: all columns of text but the label's. Of a tagger the column
            with a list of words in each row; None: "tokens" or "words".
        logits_dir: Where the store is, if not in `<run_dir>/_logits`.
        sample_id_column: The data set's id column. Where it has none, a row's position is its id.
        label_column: The data set's label column, which must agree with the run's labels; None: "labels", "label" or
            "label_ids", where there is one.
            Of a tagger the column with the tags of the words; None also: "tags", "ner_tags" or "pos_tags".
        tsv_quoting: Whether quotes enclose fields in a TSV file.

    Returns:
        The path of the page.

    Raises:
        StoreError: there is no store, no epoch of it is sealed, or it has no labels or no finite prediction.
        StoreCorruptionError: the store is damaged: every byte of it is checked.
        ValueError: there is no such run, or a file where the report goes; labels that are no classes; or texts that
            cannot be read or are of other samples.
        MissingExtraError: the extra `report` is not installed.
    """
    require("report")
    from .losses_page import write_losses_page  # the reader of files, which stands beside it, loads without the extra
    from .page import write_page

    run_dir = Path(run_dir)
    folder = report_folder(run_dir)
    run = open_any_run(run_dir, logits_dir)
    options: Any = {
        "sample_id_column": sample_id_column,
        "label_column": label_column,
        "tsv_quoting": tsv_quoting,
    }
    if isinstance(run, LossRun):
        shown = None if dataset is None else read_plain_texts(dataset, run.ids, text_columns, **options)
        losses = measure_losses(run)
        with _publishing(folder) as new:
            pq.write_table(losses_table(losses), new / "samples.parquet")
            write_losses_page(new / PAGE, run, losses, shown)
    elif isinstance(run, TokenRun):
        sentences = None if dataset is None else read_token_texts(dataset, run, text_columns, **options)
        measures = measure(run)
        worst, of_samples = worst_tokens(run, measures)
        with _publishing(folder) as new:
            pq.write_table(token_table(run, measures), new / "tokens.parquet")
            pq.write_table(samples_table(of_samples), new / "samples.parquet")
            _write_last_epoch_of_tokens(new, run)
            write_page(new / PAGE, worst, of_samples, sentences, (run, measures))
    else:
        texts = None if dataset is None else read_texts(dataset, run, text_columns, **options)
        return write_measured(folder, run, measure(label_run(run) if run.is_multi_label else run), texts)
    return folder / PAGE


def write_measured(folder: Path, run: Run, measures: Measures, texts: Texts | None) -> Path:
    """Writes the report of a run with one row of predictions for each sample, and returns the path of the page.

    Args:
        folder: Where to.
        run: The run.
        measures: Of its samples; of a multi-label head those of its labels, see `multi_label.label_run`.
        texts: What the page shows.

    Raises:
        StoreError: a file cannot be written.
    """
    from .page import write_page  # needs the extra

    with _publishing(folder) as new:
        if run.is_multi_label:
            every, of_samples = label_run(run), by_sample(run, measures)
            write_page(new / PAGE, *suspects(every, measures), texts, (every, measures))
        else:
            of_samples = measures
            write_page(new / PAGE, run, measures, texts)
        pq.write_table(samples_table(of_samples), new / "samples.parquet")
        _write_last_epoch(new, run, measures)
    return folder / PAGE


@contextmanager
def _publishing(folder: Path) -> Iterator[Path]:
    """Gives a folder to write a report in, and moves what is there afterwards to `folder`, file by file.

    A report that is cut off leaves the one before as it was. What else the user keeps in the folder stays.

    Raises:
        StoreError: a file could not be written.
    """
    new = folder / _UNFINISHED
    with writing(folder):
        folder.mkdir(exist_ok=True)
        remove(new)
        try:
            new.mkdir()
            yield new
            written = {path.name: path for path in new.iterdir()}
            for name in sorted(written, key=lambda name: name == PAGE):  # the page last: it is what one looks at
                publish(written[name], folder / name)
            for name in _FILES - written.keys():  # an earlier report may have been of the other kind
                (folder / name).unlink(missing_ok=True)
        finally:
            remove(new)


def _write_last_epoch(folder: Path, run: Run, measures: Measures) -> None:
    """The last epoch's predictions as plain arrays, of the samples that have one; `measures` as `write_measured`."""
    prediction = measures.samples["prediction"].reshape(run.labels.shape)
    absent = np.isnan(prediction) if run.is_regression else prediction < 0
    seen = ~(absent.any(axis=1) if run.is_multi_label else absent)
    ids = run.ids[seen]
    write_array(folder / "sample_ids.npy", ids)
    write_array(folder / "labels.npy", run.labels[seen])
    if run.is_regression:
        write_array(folder / "predictions.npy", prediction[seen])
        return
    with NpyWriter(folder / "pred_probs.npy", np.dtype("<f4"), (len(ids), len(run.classes))) as file:
        for chunk in run.chunks(len(ids)):
            (logits,) = run.logits(ids[chunk], run.epochs[-1:])
            file.write(sigmoid(logits) if run.is_multi_label else dynamics.softmax(logits))
        file.finish()


def _write_last_epoch_of_tokens(folder: Path, run: TokenRun) -> None:
    """The last epoch's predictions of tokens as plain arrays, of the samples that have them."""
    offsets = run.store.epoch_parts(run.epochs[-1])["offsets"]
    counts = np.diff(run.offsets)
    seen = (np.diff(offsets) == counts) & (counts > 0)
    tokens = np.flatnonzero(np.repeat(seen, counts))
    write_array(folder / "sample_ids.npy", run.sample_ids[seen])
    write_array(folder / "offsets.npy", np.concatenate([[0], np.cumsum(counts[seen])]))
    write_array(folder / "labels.npy", run.labels[tokens])
    with NpyWriter(folder / "pred_probs.npy", np.dtype("<f4"), (len(tokens), len(run.classes))) as file:
        for chunk in run.chunks(len(tokens)):
            (logits,) = run.logits(tokens[chunk], run.epochs[-1:])
            file.write(dynamics.softmax(logits))
        file.finish()
