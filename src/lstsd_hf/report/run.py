"""Reads what a run left on disk for the report: the store, the model's configuration, the Trainer's log.

Only the store's own files have a checksum. Other files beside it are not trusted.
"""

import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from ..method.statistics import ABSOLUTE_ERROR, MARGIN, two_columns
from ..paths import LOGITS_FOLDER, TRAINER_STATE_FILE, absent, checkpoints_of
from ..store import LogitsStore, StoreCorruptionError, StoreError
from ..store.files import read_regular
from ..store.manifest import is_whole, shortened

Array = npt.NDArray[Any]

IGNORED = -100  # the label of a sample without one, which losses ignore
_ROWS_AT_ONCE = 65_536
_VALUES_AT_ONCE = 4 << 20
_LARGEST_JSON = 256 << 20  # bytes; a log of a million entries
_LARGEST = 1e30
_LARGEST_SCORE = 1e15
_SCORES, _LABELS = "regression", "multi_label_classification"  # see `LogitsStore.head`


@dataclass(frozen=True)
class Run:
    """What a run left on disk.

    Attributes:
        name: The name of its folder.
        store: Its predictions.
        epochs: The sealed epochs, E of them.
        ids: (N,) the samples that have a label, ascending.
        labels: (N,) their labels: class ids, or scores; with soft labels, the class with the highest probability. For
            a multi-label head (N, C): 1 where a label holds, else 0.
        vectors: (N, C) the labels as they were trained on, if each is a row: soft labels, which are probabilities, and
            those of a multi-label head; (N, 1) the soft labels of one logit; else None.
        classes: The names of the C classes; empty for a regression.
        log: The run's log: in each entry, numbers by name; empty if there is none.
        unit: What has the label that is judged: a sample, one of its tokens, or one of its several labels.
    """

    name: str
    store: LogitsStore
    epochs: list[int]
    ids: Array
    labels: Array
    classes: tuple[str, ...]
    log: list[dict[str, float]]
    unit: ClassVar[str] = "sample"
    vectors: Array | None = field(default=None, kw_only=True)

    @property
    def shown_ids(self) -> Array:
        """(N,): the sample that each row of the page is about; here the `ids`."""
        return self.ids

    @property
    def is_multi_label(self) -> bool:
        return self.labels.ndim == 2

    @property
    def is_regression(self) -> bool:
        return not self.classes

    @property
    def numbers(self) -> Array | None:
        """(N,): the labels as they were trained on, if each is a number that is no class; else None."""
        if self.vectors is not None and self.vectors.shape[1] == 1 and not self.is_multi_label:
            return self.vectors[:, 0]
        return self.labels if self.is_regression else None

    def logits(self, ids: Array, epochs: Sequence[int] | None = None) -> Array:
        """(E, n, C) float32: the predictions of some epochs for (n,) sample ids; NaN where there is none.

        `epochs`: their numbers; None: all. Logits are clipped at 1e30, and scores at 1e15, in either direction: sums
        and squares of larger ones are not finite.
        """
        found = np.stack([self.store.read(epoch, ids) for epoch in epochs or self.epochs])
        return self.within_range(found.astype(np.float32, copy=False))

    def within_range(self, found: Array) -> Array:
        """Clips what is too large for sums and squares, in place, and returns the array; see `logits`."""
        largest = _LARGEST_SCORE if self.is_regression else _LARGEST
        return np.clip(found, -largest, largest, out=found)

    def mean_of_all_epochs(self) -> Array | None:
        """(N,): the mean over all epochs that the run kept, if the store holds only some of them; NaN: not known.

        For a classifier, the mean of the margin (`method.statistics.fold_margin`); for a regression, of the absolute
        error.

        Returns:
            None if the store holds all epochs, or no such mean: a run that was resumed without its logits, or with
            corrected labels, has none.

        Raises:
            StoreCorruptionError: the file is damaged.
        """
        last, store = self.epochs[-1], self.store
        if len(self.epochs) == last + 1 or store.label_changes:
            return None
        name = (ABSOLUTE_ERROR if self.is_regression else MARGIN).name
        found = store.read_statistic(name)
        if found is None or found[0] != last:
            return None
        if found[1].ndim != 2 or found[1].shape[1] != 2:
            path = store.statistic_path(name, last)
            raise StoreCorruptionError(f"{path}: expected a mean and a number of epochs for each sample.")
        mean, count = found[1][store.index.rows_of(self.ids, store.path)].T
        low, high = (0.0, _LARGEST_SCORE) if self.is_regression else (-1.0, 1.0)
        return np.where(count > 0, mean.clip(low, high), np.nan)

    def chunks(self, count: int) -> Iterator[slice]:
        """Slices of `count` samples, so small that their logits of all epochs take some megabytes."""
        rows = min(_ROWS_AT_ONCE, max(1, _VALUES_AT_ONCE // (len(self.epochs) * self.store.row_shape[0])))
        return (slice(start, min(start + rows, count)) for start in range(0, count, rows))


class OneLogitRun(Run):
    """A classifier of two classes with one logit for each sample: that of class 1 against class 0."""

    def logits(self, ids: Array, epochs: Sequence[int] | None = None) -> Array:
        return two_columns(super().logits(ids, epochs))


def folders_of(run_dir: str | os.PathLike[str], logits_dir: str | os.PathLike[str] | None) -> tuple[Path, Path]:
    """The folder of a run, and that of its store. Raises ValueError if the first does not exist."""
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        found = absent(run_dir, "folder")
        raise ValueError(f"{run_dir}: {found}: expected a run's output_dir, or a checkpoint in it.")
    return run_dir, Path(logits_dir or run_dir / LOGITS_FOLDER)


def read_run(run_dir: Path, logits_dir: Path) -> Run:
    """Reads everything of a run but its predictions.

    Raises:
        StoreError: there is no store, no epoch of it is sealed, or it has no labels.
        StoreCorruptionError: a file of the store is damaged.
        ValueError: the report does not know such a head, a label is not a class, or a JSON file is damaged.
    """
    store = open_store(logits_dir)
    if store.is_ragged:
        raise ValueError(
            f"{logits_dir} holds many rows for each sample, as of tokens, spans or a language model: expected one. "
            "Such a run has a report (lstsd report) and a history (read_history); clean and a comparison of two runs "
            "do not take it."
        )
    checkpoints = checkpoints_of(run_dir)
    config = _config([run_dir, *checkpoints])
    ids, labels, vectors = _labels(store, config.get("problem_type") == "multi_label_classification")
    classes, kind = store.row_shape[0], Run
    if classes == 1 and vectors is None and _is_one_logit(store, labels):
        classes, kind, vectors = 2, OneLogitRun, None if np.isin(labels, (0, 1)).all() else labels[:, None]
        labels = (labels > 0.5).astype(np.int64)
    return kind(
        name=run_dir.resolve().name,
        store=store,
        epochs=store.sealed_epochs,
        ids=ids,
        labels=labels,
        classes=() if classes == 1 and vectors is None else class_names([run_dir, *checkpoints], classes),
        log=log_of(store, run_dir, checkpoints),
        vectors=vectors,
    )


def _is_one_logit(store: LogitsStore, labels: Array) -> bool:
    """Whether one number for each sample is the logit of class 1 against class 0, and not a score."""
    return store.head not in ("", _SCORES) and bool(((labels >= 0) & (labels <= 1)).all())


def open_store(logits_dir: Path) -> LogitsStore:
    """Opens a store, checks that it has a sealed epoch, and verifies every byte of it; raises as `read_run`."""
    if not (logits_dir / "store.json").exists():
        raise StoreError(
            f"{logits_dir} holds no logits store: expected store.json in it. If the run had a logits_dir of its own, "
            "name it (--logits_dir)."
        )
    store = LogitsStore.open(logits_dir)
    if not store.sealed_epochs:
        raise StoreError(f"{logits_dir} has no sealed epoch yet: expected at least one. Train for an epoch first.")
    store.verify()
    return store


def _labels(store: LogitsStore, is_multi_label: bool) -> tuple[Array, Array, Array | None]:
    """The `ids`, `labels` and `vectors` of a `Run`.

    `is_multi_label`: whether the model's configuration says so; otherwise rows that add up to 1 are soft labels.
    """
    labels = store.read_labels()
    if labels is None:
        raise StoreError(
            f"{store.labels_path} is missing: expected the training labels. A stream, a torch data set, labels that "
            "are no numbers, and labels that a transform or a data collator maps are not in the store: the report "
            "needs a `datasets.Dataset` with the labels that the loss sees."
        )
    if labels.shape[1:] == (1,) == store.row_shape and store.head:
        is_list = store.head == _LABELS and np.isin(labels, (0, 1, IGNORED)).all()  # a list with a label in it
        labels = labels if is_list else labels[:, 0]
    if labels.ndim == 2 and len(store.row_shape) == 1 and labels.shape[1] == store.row_shape[0]:
        return _vectors(store, np.asarray(labels, np.float64), is_multi_label)
    are_scores = labels.dtype.kind == "f"
    if labels.ndim != 1 or len(store.row_shape) != 1 or (are_scores and store.row_shape[0] > 1):
        raise ValueError(
            f"{store.path} holds labels of shape {labels.shape} and type {labels.dtype}, for predictions of shape "
            f"{store.row_shape}: expected one class or one score for each sample, or a number for each class. The "
            "report does not know regressions with several columns, and heads with many rows."
        )
    has_label = ~np.isnan(labels) if are_scores else labels != IGNORED
    ids, labels = store.sample_ids[has_label], labels[has_label]
    if not ids.size:
        raise StoreError(f"{store.path} holds no label but {IGNORED}: expected a label for each sample.")
    classes = store.row_shape[0]
    if classes > 1 and not (labels.min() >= 0 and labels.max() < classes):
        wrong = ids[(labels < 0) | (labels >= classes)][:5].tolist()
        raise ValueError(f"The labels of sample ids {wrong} are no classes: expected 0 to {classes - 1}.")
    if classes == 1 and not np.abs(labels.astype(np.float64)).max() <= _LARGEST_SCORE:
        raise ValueError(f"{store.path} holds labels beyond {_LARGEST_SCORE:g}: expected scores.")
    return ids, labels if are_scores else labels.astype(np.int64), None


def _vectors(store: LogitsStore, vectors: Array, is_multi_label: bool) -> tuple[Array, Array, Array]:
    """As `_labels`, for (rows, C) labels."""
    has_label = ~np.isnan(vectors).any(axis=1) & (vectors != IGNORED).all(axis=1)
    ids, vectors = store.sample_ids[has_label], vectors[has_label]
    if not ids.size:
        raise StoreError(f"{store.path} holds no label: expected one for each sample.")
    if store.head == _LABELS and np.isin(vectors, (0, 1)).all():
        is_multi_label = True  # the model's configuration may be missing, or not say it
    if not is_multi_label and vectors.shape[1] > 1 and (vectors >= 0).all() and _add_up_to_1(vectors):
        return ids, vectors.argmax(axis=1), vectors
    wrong = ids[~np.isin(vectors, (0, 1)).all(axis=1)][:5].tolist()
    if wrong:
        raise ValueError(
            f"The labels of sample ids {wrong} in {store.path} are neither 0 or 1 for each class, nor probabilities "
            "that add up to 1: expected one of them. The report does not know regressions with several columns."
        )
    return ids, vectors.astype(np.int64), vectors


def _add_up_to_1(vectors: Array) -> bool:
    return bool(np.abs(vectors.sum(axis=1) - 1).max() < 1e-2)  # with room for float16's rounding


def _config(folders: list[Path]) -> dict[str, Any]:
    """The model's configuration in the first of the folders that has one."""
    path = next((folder / "config.json" for folder in folders if (folder / "config.json").exists()), None)
    config = {} if path is None else _json(path)
    if not isinstance(config.get("id2label") or {}, dict):
        raise ValueError(f"{path} is damaged: expected the names of classes by number as id2label.")
    return config


def class_names(folders: list[Path], classes: int) -> tuple[str, ...]:
    """The classes' names in the model's configuration, if it names as many; else their numbers."""
    known = _config(folders).get("id2label") or {}
    numbers = map(str, range(classes))
    if len(known) != classes:
        return tuple(numbers)
    # JSON can hold half of a surrogate pair, which cannot be written to a page.
    return tuple(str(known.get(name, name)).encode("utf-8", "replace").decode() for name in numbers)


def log_of(store: LogitsStore, run_dir: Path, checkpoints: list[Path]) -> list[dict[str, float]]:
    """The log in the store. A store from before version 0.2 has none; then the Trainer's own is read."""
    kept = store.read_log()
    return _newest_log(run_dir, checkpoints) if kept is None else _numbers(kept)


def _newest_log(run_dir: Path, checkpoints: list[Path]) -> list[dict[str, float]]:
    """The log of a run, or of its newest readable checkpoint if that has a later step; empty if there is none.

    A run that was resumed, and then cut off, has checkpoints that are newer than its own log.
    """
    step: int = 0
    log: list[dict[str, float]] = []
    if (run_dir / TRAINER_STATE_FILE).exists():
        step, log = _log(run_dir / TRAINER_STATE_FILE)
    for checkpoint in checkpoints:
        try:
            saved, entries = _log(checkpoint / TRAINER_STATE_FILE)
        except ValueError:
            continue  # missing, or half written: the run was cut off while it saved
        return entries if saved > step else log
    return log


def _log(path: Path) -> tuple[int, list[dict[str, float]]]:
    """The step of a Trainer's state, and its log. Raises ValueError if it is damaged."""
    state = _json(path)
    step, entries = state.get("global_step", 0), state.get("log_history", [])
    if not is_whole(step) or not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"{path} is damaged: expected a number as global_step, and a list of objects as log_history.")
    return step, _numbers(entries)


def _numbers(entries: list[dict[str, Any]]) -> list[dict[str, float]]:
    """A log with only what can be drawn."""
    return [{name: value for name, value in entry.items() if _is_logged(name, value)} for entry in entries]


def _is_logged(name: str, value: Any) -> bool:
    """Whether a value of a log can be drawn; one that is not finite leaves a gap in its curve."""
    if type(value) is float and not math.isfinite(value):
        return name != "epoch"
    return type(value) in (int, float) and abs(value) <= _LARGEST and (name != "epoch" or 0 <= value <= 2**32)


def _json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises ValueError if it cannot be read, or holds something else."""
    try:
        held = json.loads(read_regular(path, _LARGEST_JSON))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: expected JSON: {shortened(str(error))}.") from error
    if not isinstance(held, dict):
        raise ValueError(f"{path} is damaged: expected a JSON object, found {type(held).__name__}.")
    return held
