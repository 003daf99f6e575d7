"""What a run learnt of each training sample, as a `datasets.Dataset`: its measures, and its history epoch by epoch."""

import os
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from datasets import ClassLabel, Dataset, Features

from ..method import dynamics
from .cells import in_memory
from .losses import Losses, measure_losses
from .many_rows import LossRun, TokenRun, open_any_run
from .measures import Measures, measure, refuse_several_labels
from .multi_label import losses as multi_label_losses
from .multi_label import measure_labels
from .run import Run, folders_of, read_run

Array = npt.NDArray[Any]

# A column with one of these values is unknown. Of a sample that was never seen, only the id and the label are known.
_NOTHING = {"prediction": -1, "first_learnt": -1, "suggested_label": -1, "noise_rank": 0}
_CLASSES = ("label", "prediction", "suggested_label")


def read_history(run_dir: str | os.PathLike[str], *, logits_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """Reads the history of a run: a row for each sample that has a label, by ascending id.

    ```python
    history = lstsd_hf.read_history("out")
    worst = history.sort("noise_score", reverse=True).select(range(20))
    ```

    The columns are those of the report's samples.parquet; see `measures.of_classes` and `measures.of_scores`.
    `looks_wrong` is true of the highest `noise_score`s, as many as `dynamics.wrong_share` estimates to be wrong, among
    the labels whose class the model knows in the end (`dynamics.Verdict`). If there is no estimate, it is true of
    every `noise_score` above 0.5; if the model has learnt too little, of none.

    Further columns are lists with a value for each of the E sealed epochs, None where a sample has no prediction:

    - `epochs`: the numbers of the epochs, from 0; the same in every row.
    - For a classifier: `loss_by_epoch`, the cross-entropy of the label, in nats; `prediction_by_epoch`, the predicted
      class; `label_probability_by_epoch`, from 0 to 1.
    - For a regression: `error_by_epoch`, the prediction minus the label.
    - For a multi-label head: `loss_by_epoch`, the mean over labels of the binary cross-entropy. `label`,
      `suggested_label` and `noise_score_by_label` are lists with a value for each label; see `multi_label`.

    With soft labels, the class with the highest probability counts as the label, in `loss_by_epoch` too.

    For a tagger there is a row for each labelled token: `sample_id` is its sample, and `token` says which of that
    sample's labelled tokens it is, from 0. For question answering and language models, the columns are those of
    `losses.Losses`, `epochs`, `loss_by_epoch` and `right_by_epoch`; no label is judged. If the label of a language
    model's token is not among the classes that were kept, its loss is a lower bound.

    Each prediction was made when the sample was trained on, with dropout on. `label`, `prediction` and
    `suggested_label` are class ids, with the classes' names as their feature.

    Args:
        run_dir: The run's output_dir, or a checkpoint in it. If the run kept only some of its epochs
            (`logits_retention`, `history_budget`), the history has only these.
        logits_dir: The store's folder, if it is not `<run_dir>/_logits`.

    Raises:
        StoreError: there is no store, no epoch of it is sealed, or it has no labels or no finite prediction.
        StoreCorruptionError: the store is damaged: every byte of it is checked.
        ValueError: there is no such run, or a label is not a class.
    """
    run = open_any_run(run_dir, logits_dir)
    if isinstance(run, LossRun):
        return in_memory(_losses_table(run))
    measures = measure_labels(run) if run.is_multi_label else measure(run)
    table = token_table(run, measures) if isinstance(run, TokenRun) else samples_table(measures)
    chunks = [_by_epoch(run, chunk) for chunk in run.chunks(len(run.ids))]
    for name in chunks[0]:
        table = table.append_column(name, pa.chunked_array([chunk[name] for chunk in chunks]))
    features = Features.from_arrow_schema(table.schema)
    if len(set(run.classes)) == len(run.classes) > 0 and not run.is_multi_label:
        features |= {name: ClassLabel(names=list(run.classes)) for name in _CLASSES}
    return in_memory(table.cast(Features(features).arrow_schema), Features(features))


def open_run(
    run_dir: str | os.PathLike[str], logits_dir: str | os.PathLike[str] | None, *, multi_label: bool = False
) -> Run:
    """Reads everything of a run but its predictions; see `run.read_run`.

    Also raises ValueError if there is no such folder, and for a multi-label head unless `multi_label` is set.
    """
    run = read_run(*folders_of(run_dir, logits_dir))
    if not multi_label:
        refuse_several_labels(run)
    return run


def token_table(run: TokenRun, measures: Measures) -> pa.Table:
    """As `samples_table`, a row for each labelled token of a tagger's run, which `sample_id` and `token` identify."""
    table = samples_table(measures)
    owners = run.sample_ids[run.owners(run.ids)]
    return table.set_column(0, "sample_id", [owners]).add_column(1, "token", [run.places(run.ids)])


def losses_table(losses: Losses) -> pa.Table:
    """A row for each sample of question answering or of a language model; null where a value is unknown."""
    samples = losses.samples
    unseen = samples["loss_rank"] == 0
    masks = {name: np.isnan(values) for name, values in samples.items() if values.dtype.kind == "f"}
    masks |= dict.fromkeys(("forgetting_events", "loss_rank"), unseen)
    return pa.table({name: pa.array(values, mask=masks.get(name)) for name, values in samples.items()})


def _losses_table(run: LossRun) -> pa.Table:
    losses = measure_losses(run)
    epochs = np.tile(np.array(run.epochs, np.int64)[:, None], len(run.ids))
    table = losses_table(losses)
    for name, values in (("epochs", epochs), ("loss_by_epoch", losses.by_epoch), ("right_by_epoch", losses.right)):
        table = table.append_column(name, [_lists(values)])
    return table


def samples_table(measures: Measures) -> pa.Table:
    """A row for each of N samples with its measures; null where a value is unknown."""
    columns = {}
    for name, values in measures.samples.items():
        if values.ndim == 2:  # of a multi-label head
            known = measures.seen if name != "label" else np.ones(len(values), np.bool_)
            columns[name] = _lists(values.T, np.tile(~known, (values.shape[1], 1)))
            continue
        unknown = np.isnan(values) if values.dtype.kind == "f" else values == _NOTHING.get(name, np.nan)
        if name not in ("sample_id", "label"):
            unknown |= ~measures.seen
        columns[name] = pa.array(values, mask=unknown)
    return pa.table(columns)


def _by_epoch(run: Run, chunk: slice) -> dict[str, pa.Array]:
    """The columns that have a value for each epoch, for some samples."""
    logits, labels = run.logits(run.ids[chunk]), run.labels[chunk]  # (E, n, C), (n,)
    epochs = np.tile(np.array(run.epochs, np.int64)[:, None], len(labels))
    if run.is_regression:
        errors = logits[:, :, 0] - labels.astype(np.float32)
        return {"epochs": _lists(epochs), "error_by_epoch": _lists(errors)}
    if run.is_multi_label:
        losses = multi_label_losses(logits, labels)
        return {"epochs": _lists(epochs), "loss_by_epoch": _lists(losses)}
    given = dynamics.given_probability(logits, labels)  # the label's logit
    largest = logits.max(axis=2)
    losses = np.log(np.exp(logits - largest[:, :, None]).sum(axis=2)) + largest - given
    predicted = logits.argmax(axis=2)
    return {
        "epochs": _lists(epochs),
        "loss_by_epoch": _lists(losses),
        "prediction_by_epoch": _lists(predicted, np.isnan(largest)),
        "label_probability_by_epoch": _lists(dynamics.given_probability(dynamics.softmax(logits), labels)),
    }


def _lists(values: Array, unknown: Array | None = None) -> pa.Array:
    """(n,) lists of E values, from (E, n) values; null where they are unknown, by default where they are NaN."""
    if unknown is None:
        unknown = np.isnan(values)
    count, samples = values.shape
    flat = pa.array(values.T.ravel(), mask=unknown.T.ravel())
    return pa.ListArray.from_arrays(pa.array(np.arange(0, (samples + 1) * count, count, dtype=np.int32)), flat)
