"""An outside teacher: a store that is only read, and the checks that it fits the run."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
from transformers.utils import logging

from ..method.many_rows import ManyRows, Spans, Vocabulary
from ..method.outside import LAST, MEAN_OF_EPOCHS
from ..method.teachers import MEAN, PREDICTIONS, OutsideSource
from ..paths import CHECKPOINT_PREFIX
from ..store import LogitsStore, StoreError, StoreMismatchError
from ..store.manifest import is_text, shortened
from ..store.ragged import OFFSETS
from ..store.rows import VALUES
from .descriptions import class_names, longest_input, tokenizer_name, vocabulary_of
from .fingerprint import input_hashes, is_same, labelled_hashes, same_inputs
from .model_head import unwrapped
from .training_set import TrainingSet

logger = logging.get_logger(__name__)

INPUT_HASHES = "inputs"  # a statistic of the stores that `record_predictions` makes: uint64 (rows, columns)
LABELLED = "labelled"  # likewise, if rows are those of labelled tokens: uint64 (rows, 1)
_FEW = 5
_SECONDARY = {"attention_mask", "token_type_ids", "position_ids", "special_tokens_mask"}


@dataclass(frozen=True)
class OutsideTeacher:
    """A store whose predictions teach.

    Attributes:
        store: The store.
        epochs: The epochs that teach: one, or all that are averaged.
        source: Where the predictions are read from.
        checksum: A hash of the contents of these epochs.
        tells: Whether this process logs warnings; only one of several does.
    """

    store: LogitsStore
    epochs: tuple[int, ...]
    source: OutsideSource
    checksum: str
    tells: bool = True

    @classmethod
    def open(cls, path: str, epoch: str, *, tells: bool = True) -> "OutsideTeacher":
        """Opens the store at `path`. `epoch` says which epoch teaches: a number, "last", or "mean" of all.

        Raises:
            StoreError: there is no store, it does not have the epoch, or its epochs have no mean (language models).
        """
        place = os.path.realpath(path)
        try:
            store = LogitsStore.open(place)
            sealed = store.sealed_epochs
        except StoreError as error:
            if type(error) is not StoreError:  # damage: its message says enough
                raise
            raise StoreError(
                f"outside_teacher={os.fspath(path)!r}: {error} Expected a store that `lstsd record` or "
                "record_predictions has made, or an earlier run's <output_dir>/_logits."
            ) from error
        if not sealed:
            raise StoreError(
                f"outside_teacher={os.fspath(path)!r} holds no complete epoch: expected one at least. Where `lstsd "
                "record` was interrupted, start it again with the same arguments, and it goes on."
            )
        epochs = tuple(sealed) if epoch == MEAN_OF_EPOCHS else ((sealed[-1] if epoch == LAST else int(epoch)),)
        if epochs[0] not in sealed:
            raise StoreError(
                f"outside_epoch={epoch}: the store at {place} holds epochs {sealed}. Name one of them, {LAST!r} or "
                f"{MEAN_OF_EPOCHS!r}."
            )
        if len(epochs) > 1 and store.vocabulary is not None:
            raise StoreError(
                f"outside_epoch={epoch!r}: the store at {place} keeps the largest classes of a vocabulary, others in "
                f"each epoch, which have no mean: expected the number of an epoch, or {LAST!r}."
            )
        source = OutsideSource(place, epochs[-1], MEAN if len(epochs) > 1 else PREDICTIONS)
        return cls(store, epochs, source, store.checksum_of_epochs(epochs), tells)

    @property
    def note(self) -> dict[str, str]:
        """What a checkpoint notes about this teacher."""
        return {"path": str(self.store.path), "checksum": self.checksum}

    # ---- checks that it fits the run

    def for_model(self, model: Any, head: ManyRows | None, columns: int | None) -> "OutsideTeacher":
        """The same teacher with its classes in the order of the model's.

        Args:
            model: The student.
            head: The student's head if its samples have many rows, else None.
            columns: How many columns the student's rows have; None if not known.

        Raises:
            StoreMismatchError: the store is for another kind of head, or for other classes.
        """
        store = self.store
        is_top_k = isinstance(head, Vocabulary)
        fits = store.is_ragged == (head is not None) and (store.vocabulary is not None) == is_top_k
        if isinstance(head, Spans):
            columns = 2
        if not fits or (columns is not None and not is_top_k and store.row_shape != (columns,)):
            raise StoreMismatchError(
                f"The outside teacher's store at {store.path} holds {_rows_in_words(store)}: expected what "
                f"{type(unwrapped(model)).__name__} predicts here"
                + (f", rows of {columns} numbers" if columns is not None and not is_top_k else "")
                + ". Record it with a teacher that has the same kind of head."
            )
        if is_top_k:
            self._refuse_vocabulary(model)
            return self
        names, own = store.source.get("classes"), class_names(model, store.row_shape[-1])
        if names is None or own is None or isinstance(head, Spans):
            if (names is None) != (own is None) and store.source and len(store.row_shape) == 1:
                self._warn(
                    f"The outside teacher's classes are {_names_in_words(names)}, and those of the model "
                    f"{_names_in_words(own)}: they are taken to be in the same order."
                )
            return self
        order = _order_of(names, own)
        if order is None:
            raise StoreMismatchError(
                f"The outside teacher's classes are {names}, in the store at {store.path}, and the model's are {own}: "
                "expected the same names. Give the model the teacher's id2label, or record another teacher."
            )
        if order == tuple(range(len(order))):
            return self
        return replace(self, source=replace(self.source, columns=order))

    def _refuse_vocabulary(self, model: Any) -> None:
        size = vocabulary_of(model)
        if size is None or size == self.store.vocabulary:
            return
        # Models that share a tokenizer may pad their vocabularies to different sizes.
        largest = max(int(self.store.epoch_parts(epoch)["classes"].max(initial=0)) for epoch in self.epochs)
        if largest >= size:
            raise StoreMismatchError(
                f"The outside teacher's store at {self.store.path} names class {largest} of a vocabulary of "
                f"{self.store.vocabulary}, and the model's has {size}: expected the same tokenizer."
            )

    def refuse_rows(self, row_shape: tuple[int, ...], head: str | None) -> None:
        """Raises StoreMismatchError if the rows of the model's first batch are of another kind than the store's.

        Args:
            row_shape: Their shape.
            head: What they stand for, see `LogitsStore.head`; None if not known.
        """
        if self.store.row_shape != row_shape:
            raise StoreMismatchError(
                f"The outside teacher's store at {self.store.path} holds rows of shape {self.store.row_shape}, and "
                f"the model's have {row_shape}: expected the same. Record a teacher of the same classes."
            )
        if head is not None and self.store.head not in ("", head):
            raise StoreMismatchError(
                f"The rows of the outside teacher's store at {self.store.path} are of the kind {self.store.head!r}, "
                f"and the model's of the kind {head!r}: expected the same. Take a teacher that has the same kind of "
                "head; if one of the two is wrong, set problem_type."
            )

    def refuse_inputs(self, training_set: TrainingSet, dataset: Any, tokenizer: Any) -> None:
        """Raises StoreMismatchError if the store was made on other inputs; warns about samples that it lacks.

        Args:
            training_set: What is known about the training set.
            dataset: The training set.
            tokenizer: The trainer's tokenizer, for the message.
        """
        store, ids = self.store, training_set.ids
        if ids is None:
            if not training_set.streamed and store.fingerprint != training_set.fingerprint:
                raise StoreMismatchError(
                    f"The outside teacher's store at {store.path} was made on {store.fingerprint!r}, and the training "
                    f"set is {training_set.fingerprint!r}: expected the same. Use a datasets.Dataset for both, whose "
                    "rows can be compared."
                )
            if training_set.streamed:
                self._warn(
                    "The training set is a stream: its inputs are not compared with what the outside teacher saw."
                )
            return
        present = self._has(ids)
        if not present.any():
            due = "the same sample ids. Number the rows with add_sample_ids before both, and keep the column"
            if not self._has(store.index.all_ids).any():
                due = "a finite prediction of some sample. Take a teacher whose logits are neither NaN nor infinite"
            raise StoreMismatchError(
                f"The outside teacher's store at {store.path} has none of the {len(ids)} training samples: expected "
                f"{due}."
            )
        if not store.source:
            self._refuse_run(training_set)
        else:
            self._refuse_columns(ids, present, dataset, tokenizer)
        lacking = int((~present).sum())
        if lacking:
            self._warn(
                f"The outside teacher has no prediction for {lacking} of {len(ids)} training samples, first for "
                f"sample ids {ids[~present][:_FEW].tolist()}: their labels count in full."
            )

    def _warn(self, message: str) -> None:
        if self.tells:
            logger.warning(message)

    def _has(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """(N,): whether the store has a prediction for each of these samples."""
        present = np.zeros(len(ids), np.bool_)
        known = self.store.index.knows(ids)
        rows = self.store.index.rows_of(ids[known], self.store.path)
        for epoch in self.epochs:
            parts = self.store.epoch_parts(epoch)
            if self.store.is_ragged:
                present[known] |= np.diff(parts[OFFSETS])[rows] > 0
            else:
                first = parts[VALUES].reshape(len(parts[VALUES]), -1)[:, 0]
                present[known] |= ~np.isnan(first)[rows]
        return present

    def _refuse_columns(
        self, ids: npt.NDArray[np.int64], present: npt.NDArray[np.bool_], dataset: datasets.Dataset, tokenizer: Any
    ) -> None:
        """Compares the inputs column by column, sample by sample: for a store that `record_predictions` made."""
        store, source = self.store, self.store.source
        compared = [name for name in source["inputs"] if name in dataset.column_names]
        store.verify_statistic(INPUT_HASHES)
        found = store.read_statistic(INPUT_HASHES)
        if not set(compared) - _SECONDARY or found is None or found[1].shape[1:] != (len(source["inputs"]),):
            raise StoreMismatchError(
                f"The outside teacher's store at {store.path} was made on columns {source['inputs']}, and the "
                f"training set has {dataset.column_names}: expected the same inputs. Record the set as it is trained "
                "on, tokenized."
            )
        hashes = input_hashes(dataset, compared)[present]
        rows = store.index.rows_of(ids[present], store.path)
        theirs = found[1][rows][:, [source["inputs"].index(name) for name in compared]]
        differs = hashes != theirs
        wrong = [name for name, column in zip(compared, differs.T, strict=True) if column.any()]
        if wrong:
            samples = differs.any(axis=1)
            made = f"{source['tokenizer'] or 'no tokenizer'}, at most {source['max_length']} tokens"
            here = f"{tokenizer_name(tokenizer) or 'no tokenizer'}, at most {longest_input(dataset)} tokens"
            raise StoreMismatchError(
                f"The outside teacher's store at {store.path} was made on other inputs: {', '.join(wrong)} "
                f"{'differs' if len(wrong) == 1 else 'differ'} for {int(samples.sum())} of {len(rows)} samples, first "
                f"for sample ids {ids[present][samples][:_FEW].tolist()} (the store: {made}; the training set: "
                f"{here}). Tokenize the same rows in the same way, or record the teacher anew."
            )
        _refuse_labelled(self.store, ids, present, rows, dataset)

    def _refuse_run(self, training_set: TrainingSet) -> None:
        """Compares fingerprints and labels: for a store that an earlier run made."""
        store = self.store
        if is_same(store.fingerprint, training_set.fingerprint):
            return
        if not same_inputs(store.fingerprint, training_set.fingerprint):
            raise StoreMismatchError(
                f"The outside teacher's store at {store.path} is a run's on {store.fingerprint!r}, and the training "
                f"set is {training_set.fingerprint!r}: expected the same inputs, tokenized in the same way. Record "
                "that run's model on this set with `lstsd record`."
            )
        order = _new_order(store, training_set)
        if order is not None:
            raise StoreMismatchError(
                f"The labels of the outside teacher's store at {store.path} are in another order than those of the "
                f"training set: its class {order[0]} is class {order[1]} here. Expected the same order. Encode the "
                "labels as that run did."
            )


def _refuse_labelled(
    store: LogitsStore,
    ids: npt.NDArray[np.int64],
    present: npt.NDArray[np.bool_],
    rows: Any,
    dataset: datasets.Dataset,
) -> None:
    """Compares which tokens have a label, because the store has a row for each of these."""
    found, here = store.read_statistic(LABELLED), labelled_hashes(dataset, store.head)
    if found is None or here is None:
        return
    store.verify_statistic(LABELLED)
    wrong = ids[present][found[1][rows].reshape(len(rows), -1)[:, 0] != here[present]]
    other = "are others, and the decoder reads them" if store.head == "seq2seq_lm" else "are at other tokens"
    if len(wrong):
        raise StoreMismatchError(
            f"The outside teacher's store at {store.path} has predictions of other tokens: the labels of "
            f"{len(wrong)} of {len(rows)} samples {other}, first for sample ids "
            f"{wrong[:_FEW].tolist()}. Give the labels that it was recorded with, or record the teacher anew."
        )


def refuse_place(store: Path, logits_dir: str, output_dir: str) -> None:
    """Raises ValueError if the run would move, drop, overwrite or upload the store."""
    own, run, place = (Path(os.path.realpath(path)) for path in (logits_dir, output_dir, store))
    inside = place.relative_to(run).parts[0] if place.is_relative_to(run) and place != run else ""
    if place in (own, own.with_name(f"{own.name}.tmp"), run) or place.is_relative_to(own):
        what = "is where this run keeps its own predictions: an earlier store there would be moved aside"
    elif inside.startswith(f"{CHECKPOINT_PREFIX}-"):
        what = "lies in a checkpoint of this run's output_dir, which the run may delete or write over"
    elif inside and not inside.startswith("_"):
        what = f"lies in output_dir under {inside!r}, which a push to the Hub would upload"
    else:
        return
    raise ValueError(
        f"outside_teacher={str(place)!r} {what}. Expected a folder that the run leaves alone: name another "
        "output_dir, or move the store out of it."
    )


def refuse_other_teacher(noted: Any, outside: OutsideTeacher | None, checkpoint: Path) -> None:
    """Raises StoreMismatchError if a run is resumed without the outside teacher that its checkpoint names.

    Args:
        noted: What the checkpoint notes about its outside teacher, or None.
        outside: The run's outside teacher, or None.
        checkpoint: The store in the checkpoint.
    """
    if noted is None or (outside is not None and outside.checksum == noted["checksum"]):
        return
    found = "no outside_teacher" if outside is None else f"{outside.store.path} with checksum {outside.checksum}"
    raise StoreMismatchError(
        f"The run of {checkpoint} had an outside teacher, {noted['path']} with checksum {noted['checksum']}: "
        f"expected the same, found {found}. Give that store as outside_teacher, with the same outside_epoch, wherever "
        "it is now."
    )


def is_noted(value: Any) -> bool:
    """Whether a value has the form of `OutsideTeacher.note`, or is None."""
    return value is None or (
        isinstance(value, dict) and value.keys() == {"path", "checksum"} and all(map(is_text, value.values()))
    )


def _order_of(names: list[str], wanted: list[str]) -> tuple[int, ...] | None:
    """Where each wanted name is among the others, by any case if that is unique; None if they are not the same."""
    for one, other in ((names, wanted), ([name.lower() for name in names], [name.lower() for name in wanted])):
        if len(set(one)) == len(one) and sorted(one) == sorted(other):
            return tuple(map(one.index, other))
    return None


def _names_in_words(names: list[str] | None) -> str:
    return "not named (id2label)" if names is None else shortened(names)


def _rows_in_words(store: LogitsStore) -> str:
    if store.vocabulary is not None:
        return f"the {store.row_shape[0]} most probable of {store.vocabulary} classes for each token"
    many = "any number of rows for each sample" if store.is_ragged else "one row for each sample"
    return f"{many}, each of {store.row_shape[0]} numbers"


def _new_order(store: LogitsStore, training_set: TrainingSet) -> tuple[int, int] | None:
    """The old and the new number of a class, if the classes were only renumbered; None if they were not.

    A class's new number is the label that most of its samples have now.
    """
    before, now, ids = store.read_labels(), training_set.labels, training_set.ids
    if before is None or now is None or ids is None or before.ndim != 1 or now.ndim != 1 or now.dtype.kind != "i":
        return None
    if before.dtype.kind != "i":
        return None
    old = before[store.index.rows_of(ids, store.path)]
    known = (old >= 0) & (now >= 0)
    if not known.any():
        return None
    size = int(max(old[known].max(), now[known].max())) + 1
    table = np.zeros((size, size), np.int64)
    np.add.at(table, (old[known], now[known]), 1)
    used = np.flatnonzero(table.sum(axis=1))
    most = table[used].argmax(axis=1)
    moved = used != most
    return (int(used[moved][0]), int(most[moved][0])) if moved.any() and len(set(most)) == len(most) else None
