"""What a run left behind that the report reads: the store, the model's configuration, the Trainer's log."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..paths import checkpoints_of
from ..store import LogitsStore, StoreCorruptionError, StoreError

Array = npt.NDArray[Any]

IGNORED = -100  # what labels.npy holds for an id that is in no row, and what losses ignore
_ROWS_AT_ONCE = 65_536
_VALUES_AT_ONCE = 4 << 20


@dataclass(frozen=True)
class Run:
    """What a run left behind.

    Attributes:
        name: The name of its folder.
        store: Its predictions.
        epochs: The sealed epochs, E of them.
        ids: (N,) the samples that have a label, ascending.
        labels: (N,) their labels: class ids, or scores.
        classes: The names of the C classes; empty for a regression.
        log: The Trainer's log; empty where there is none.
    """

    name: str
    store: LogitsStore
    epochs: list[int]
    ids: Array
    labels: Array
    classes: tuple[str, ...]
    log: list[dict[str, Any]]

    @property
    def is_regression(self) -> bool:
        return not self.classes

    def logits(self, ids: Array) -> Array:
        """(E, n, C) float32: what the sealed epochs predicted for (n,) sample ids; NaN where they did not."""
        return np.stack([self.store.read(epoch, ids) for epoch in self.epochs]).astype(np.float32)

    def chunks(self, count: int) -> Iterator[slice]:
        """Slices of `count` samples, each so few that their logits in all epochs take some megabytes."""
        rows = min(_ROWS_AT_ONCE, max(1, _VALUES_AT_ONCE // (len(self.epochs) * self.store.row_shape[0])))
        return (slice(start, min(start + rows, count)) for start in range(0, count, rows))


def read_run(run_dir: Path, logits_dir: Path) -> Run:
    """Reads all but the predictions.

    Raises:
        StoreError: there is no store, no epoch of it is sealed, or it has no labels.
        StoreCorruptionError: a file of the store is damaged.
        ValueError: the head is one that the report does not know, a label is no class, or a JSON file is damaged.
    """
    if not (logits_dir / "store.json").exists():
        raise StoreError(
            f"{logits_dir} holds no logits store: expected store.json in it. If the run had a logits_dir of its own, "
            "name it (--logits_dir)."
        )
    store = LogitsStore.open(logits_dir)
    epochs = store.sealed_epochs
    if not epochs:
        raise StoreError(f"{logits_dir} has no sealed epoch yet: expected at least one. Train for an epoch first.")
    store.verify()
    labels = _labels(store)
    checkpoints = checkpoints_of(run_dir)
    config = _json([run_dir, *checkpoints], "config.json")
    # A run that went on from a checkpoint, and was cut off, has newer checkpoints than its own log; `max` takes the
    # first of equals.
    states = (_json(folders, "trainer_state.json") for folders in ([run_dir], checkpoints))
    state = max(states, key=lambda state: state.get("global_step", 0))
    classes = store.row_shape[0]
    if labels.ndim != 1 or (labels.dtype.kind == "f" and classes > 1):
        raise ValueError(
            f"{logits_dir} holds labels of shape {labels.shape} and type {labels.dtype}, for predictions of shape "
            f"{store.row_shape}: expected one class or one score for each sample. The report does not know "
            "multi-label heads and regressions with several columns."
        )
    ids = np.flatnonzero(~np.isnan(labels) if labels.dtype.kind == "f" else labels != IGNORED)
    labels = labels[ids]
    if classes > 1 and ids.size and not (labels.min() >= 0 and labels.max() < classes):
        wrong = ids[(labels < 0) | (labels >= classes)][:5].tolist()
        raise ValueError(f"The labels of sample ids {wrong} are no classes: expected 0 to {classes - 1}.")
    if not ids.size:
        raise StoreError(f"{logits_dir} holds no label but {IGNORED}: expected a label for each sample.")
    known = config.get("id2label") or {}
    names = tuple(known.get(str(label), str(label)) for label in range(classes)) if len(known) == classes else ()
    return Run(
        name=run_dir.resolve().name,
        store=store,
        epochs=epochs,
        ids=ids,
        labels=labels,
        classes=() if classes == 1 else names or tuple(map(str, range(classes))),
        log=state.get("log_history", []),
    )


def _labels(store: LogitsStore) -> Array:
    path = store.path / "labels.npy"
    if not path.is_file():
        raise StoreError(
            f"{path} is missing: expected the training labels. A stream, a torch data set, and labels that are no "
            "numbers have none in the store: the report needs a `datasets.Dataset` with labels."
        )
    try:
        labels = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise StoreCorruptionError(f"{path} is damaged: {error}.") from error
    if len(labels) != store.num_samples:
        raise StoreCorruptionError(f"{path} is not of this store: expected {store.num_samples} labels.")
    return labels


def _json(folders: list[Path], name: str) -> dict[str, Any]:
    """What the file holds in the first of the folders that has it; nothing where none has."""
    path = next((folder / name for folder in folders if (folder / name).is_file()), None)
    if path is None:
        return {}
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged: expected JSON: {error}.") from error
    if not isinstance(held, dict):
        raise ValueError(f"{path} is damaged: expected a JSON object, found {type(held).__name__}.")
    return held
