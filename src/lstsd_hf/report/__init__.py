"""The report of a run: what the model predicted for every training sample, in each of the sealed epochs.

    <output_dir>/_report/
      report.html           a page that opens offline: what looks wrong, a review of it, a map, a table, curves
      comparison.html       a page that compares this run with another; see `compare`
      samples.parquet       a row for each sample id that has a label; columns: `measures.of_classes`, `of_scores`
      sample_ids.npy        (M,) int64: the samples with a prediction in the last epoch, in the order of the arrays
      labels.npy            (M,) their labels
      pred_probs.npy        (M, C) float32: the last epoch's probabilities, as cleanlab takes them; in-sample
      predictions.npy       (M,) float32: the last epoch's scores; a regression has it in place of pred_probs.npy

For a multi-label head, labels.npy is (M, C), 1 where a label holds, and pred_probs.npy has each label's probability.

For a tagger, samples.parquet has each sample's most suspicious token, and tokens.parquet each labelled token.
labels.npy and pred_probs.npy have a row for each token, sample by sample, and offsets.npy (M + 1,) says where each
sample's tokens begin. For question answering and language models there are only the page and samples.parquet, with
losses.

The report of a checkpoint goes to the run's `_report`, outside the checkpoint: a push to the Hub may upload a whole
checkpoint, and the report holds texts.

The store is read in chunks of samples, all epochs at once. In memory stay the rows of the parquet file and, for the
samples that the page lists, the text and a few numbers for each epoch.
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
from ..store.files import one_at_a_time, publish, remove, writing
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
_UNFINISHED = ".unfinished"  # the folder for a report that is being written


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
        run_dir: The run's output_dir, or a checkpoint in it. If the run kept only some of its epochs
            (`logits_retention`, `history_budget`), the report shows what it can, and says what it cannot.
        dataset: The training set, which has the texts, or its file; see `texts.read_texts`. None: the page shows ids.
        text_columns: The column to show, or several; None: all text columns but the label's. For a tagger, the column
            with a list of words in each row; None: "tokens" or "words".
        logits_dir: The store's folder, if it is not `<run_dir>/_logits`.
        sample_id_column: The data set's id column. If it has none, a row's position is its id.
        label_column: The data set's label column, which must agree with the run's labels; None: "labels", "label" or
            "label_ids", if there is one. For a tagger, the column with the tags of the words; None: "tags",
            "ner_tags", "pos_tags", or one of those.
        tsv_quoting: Whether quotes enclose fields in a TSV file.

    Returns:
        The path of the page.

    Raises:
        StoreError: there is no store, no epoch of it is sealed, or it has no labels or no finite prediction.
        StoreCorruptionError: the store is damaged: every byte of it is checked.
        ValueError: there is no such run, or there is a file where the report goes; a label is not a class; or the
            texts cannot be read or are of other samples.
        MissingExtraError: the extra `report` is not installed.
    """
    require("report")
    from .losses_page import write_losses_page  # imported here: other modules of this package do without the extra
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
        folder: The folder to write to.
        run: The run.
        measures: The measures of its samples; for a multi-label head, of its labels, see `multi_label.label_run`.
        texts: The texts that the page shows; None: it shows ids.

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
    """Yields a folder to write a report in, and then moves its files to `folder`, one by one.

    If writing fails, the earlier report stays as it was. Other files that the user keeps in `folder` stay.

    Raises:
        StoreError: a file could not be written.
    """
    new = folder / _UNFINISHED
    with writing(folder):
        folder.mkdir(exist_ok=True)
        with one_at_a_time(folder):  # else one report would publish what another has half written
            remove(new)
            try:
                new.mkdir()
                yield new
                written = {path.name: path for path in new.iterdir()}
                for name in sorted(written, key=lambda name: name == PAGE):  # the page last: it is what a user opens
                    publish(written[name], folder / name)
                for name in _FILES - written.keys():  # left by an earlier report on another kind of head
                    (folder / name).unlink(missing_ok=True)
            finally:
                remove(new)


def _write_last_epoch(folder: Path, run: Run, measures: Measures) -> None:
    """Writes the last epoch's predictions as arrays, for the samples with one; `measures`: see `write_measured`."""
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
    """Writes the last epoch's predictions of tokens as arrays, for the samples that have them."""
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
