"""Runs with many rows per sample: for a tagger, each token is judged; for other heads, only losses are computed.

A store does not say what its rows stand for. Rows with only the k largest logits are a language model's. Rows of two
columns are start and end scores if a label marks an end or no row has a label; otherwise they are the two classes of a
tagger, whose rows all have a label, 0 or 1.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from ..method import dynamics, token_dynamics
from ..method.statistics import two_columns
from ..paths import checkpoints_of
from ..store import LogitsStore, StoreError
from ..store.ragged import RowLabels
from .measures import Measures
from .run import Run, class_names, folders_of, log_of, open_store, read_run

Array = npt.NDArray[Any]

_ROWS_AT_ONCE = 65_536


@dataclass(frozen=True)
class TokenRun(Run):
    """A tagger's run. What `Run` says of samples holds here for the R labelled tokens, numbered sample by sample.

    Attributes:
        sample_ids: (N,) the samples, ascending.
        offsets: (N + 1,): sample i has the tokens from offsets[i] to offsets[i + 1]; if none, its labels are unknown.
    """

    sample_ids: Array
    offsets: Array
    unit: ClassVar[str] = "token"

    def owners(self, tokens: Array) -> Array:
        """(n,): the sample, from 0 to N - 1, of each of (n,) tokens."""
        return np.searchsorted(self.offsets, tokens, "right") - 1

    def places(self, tokens: Array) -> Array:
        """(n,): which of its sample's labelled tokens each is, from 0."""
        return tokens - self.offsets[self.owners(tokens)]

    def logits(self, ids: Array, epochs: Sequence[int] | None = None) -> Array:
        """As `Run.logits`, for tokens; NaN also in epochs where the token's sample had another number of tokens."""
        owners = self.owners(ids)
        places, counts = ids - self.offsets[owners], self.offsets[owners + 1] - self.offsets[owners]
        found = np.full((len(epochs or self.epochs), len(ids), *self.store.row_shape), np.nan, np.float32)
        for rows, epoch in zip(found, epochs or self.epochs, strict=True):
            parts = self.store.epoch_parts(epoch)
            begin = parts["offsets"][owners]
            same = parts["offsets"][owners + 1] - begin == counts
            rows[same] = parts["values"][(begin + places)[same]]
        return two_columns(self.within_range(found))  # one column is the logit of class 1 against class 0

    def mean_of_all_epochs(self) -> Array | None:
        return None  # a run keeps no such mean for tokens


@dataclass(frozen=True)
class WorstTokens(Run):
    """A tagger's run as the page shows it: each sample is represented by its most suspicious token.

    Attributes:
        run: The run.
        tokens: (n,) the token that represents each sample.
    """

    run: TokenRun
    tokens: Array
    unit: ClassVar[str] = "token"

    def logits(self, ids: Array, epochs: Sequence[int] | None = None) -> Array:
        return self.run.logits(self.tokens[np.searchsorted(self.ids, ids)], epochs)

    def mean_of_all_epochs(self) -> Array | None:
        return None


def worst_tokens(run: TokenRun, measures: Measures) -> tuple[WorstTokens, Measures]:
    """The most suspicious token of each sample, and its measures.

    The samples also have `token`, which of the labelled tokens it is, from 0; `tokens`, how many the sample has; and
    `flagged_tokens`, how many of these look wrong. The means of each epoch remain those of all tokens.
    """
    scores = measures.samples["noise_score"]
    worst = token_dynamics.worst_rows(scores, run.offsets)
    known = worst >= 0
    tokens, ids = worst[known], run.sample_ids[known]
    flagged = token_dynamics.sum_of_rows(measures.samples["looks_wrong"], run.offsets)[known]
    samples = {name: values[tokens] for name, values in measures.samples.items()}
    samples |= {
        "sample_id": ids,
        "noise_rank": dynamics.ranks(samples["noise_score"]),
        "token": run.places(tokens),
        "tokens": np.diff(run.offsets)[known],
        "flagged_tokens": flagged.astype(np.int64),
    }
    view = WorstTokens(
        run.name, run.store, run.epochs, ids, samples["label"], run.classes, run.log, run=run, tokens=tokens
    )
    return view, Measures(samples, measures.epochs)


@dataclass(frozen=True)
class LossRun:
    """A run of question answering or of a language model: the loss of each sample, and no labels to judge.

    Attributes:
        name: The name of its folder.
        store: Its predictions.
        epochs: The sealed epochs, E of them.
        ids: (N,) the samples whose labels are known, ascending.
        labels: (R,) the label of each of their rows, see `LogitsStore.read_row_labels`.
        offsets: (N + 1,): sample i has the rows from offsets[i] to offsets[i + 1].
        log: The run's log: in each entry, numbers by name.
    """

    name: str
    store: LogitsStore
    epochs: list[int]
    ids: Array
    labels: Array
    offsets: Array
    log: list[dict[str, float]]

    @property
    def is_language_model(self) -> bool:
        return self.store.vocabulary is not None

    def chunks(self) -> Iterator[slice]:
        """Slices of samples, with few enough rows to be held in memory at once."""
        at, rows = 0, max(1, _ROWS_AT_ONCE // len(self.epochs))
        while at < len(self.ids):
            end = max(at + 1, int(np.searchsorted(self.offsets, self.offsets[at] + rows, "right")) - 1)
            yield slice(at, min(end, len(self.ids)))
            at = end


def open_any_run(run_dir: str | os.PathLike[str], logits_dir: str | os.PathLike[str] | None) -> Run | LossRun:
    """Reads everything of a run but its predictions, with any head.

    Raises:
        StoreError: see `run.read_run`; or the store has no labels for rows.
        ValueError: there is no such run, or see `run.read_run`.
    """
    run_dir, logits_dir = folders_of(run_dir, logits_dir)
    store = open_store(logits_dir)
    if not store.is_ragged:
        return read_run(run_dir, logits_dir)
    found = store.read_row_labels()
    if found is None or not len(found.labels):
        raise StoreError(
            f"{logits_dir} holds no label of any row: expected those of tokens, or starts and ends of answers. They "
            "are recorded in training, since version 0.2."
        )
    checkpoints = checkpoints_of(run_dir)
    log = log_of(store, run_dir, checkpoints)
    name, labels = run_dir.resolve().name, np.asarray(found.labels).astype(np.int64)
    if store.vocabulary is None and not _are_spans(store, labels):
        return _token_run(name, store, found, labels, [run_dir, *checkpoints], log)
    known = np.diff(found.offsets) > 0
    offsets = np.concatenate([[0], np.cumsum(np.diff(found.offsets)[known])])
    return LossRun(name, store, store.sealed_epochs, store.sample_ids[known], labels, offsets, log)


def _are_spans(store: LogitsStore, labels: Array) -> bool:
    return store.row_shape == (2,) and bool(labels.max() >= token_dynamics.ENDS or labels.max() < 0)


def _token_run(
    name: str, store: LogitsStore, found: RowLabels, labels: Array, folders: list[Path], log: list[dict[str, float]]
) -> TokenRun:
    classes = max(2, *store.row_shape)
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(
            f"{store.path} holds labels of tokens from {labels.min()} to {labels.max()}: expected classes from 0 to "
            f"{classes - 1}."
        )
    return TokenRun(
        name,
        store,
        store.sealed_epochs,
        np.arange(len(labels)),
        labels,
        class_names(folders, classes),
        log,
        sample_ids=store.sample_ids,
        offsets=np.asarray(found.offsets),
    )
