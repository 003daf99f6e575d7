"""Records what any model predicts for a data set, as a store of one epoch that can teach other models."""

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from torch import nn
from torch.utils.data import DataLoader
from transformers import DataCollatorWithPadding, default_data_collator
from transformers.utils import find_labels, logging

from ..config import DistillationArguments, LogitsDtype
from ..method.heads import HEADS, ProblemType, choose_head, name_of
from ..method.many_rows import ManyRows, Vocabulary, many_rows_head
from ..method.rows import RowIndex
from ..store import LogitsStore, StoreCorruptionError, StoreError, StoreMismatchError
from ..store.files import writing
from ..store.manifest import NAME
from ..store.rows import VALUES
from . import place
from .collator import COUNTS, POSITIONS, SAMPLE_IDS, IdentifiedDataset, TeacherCollator, TeachingEpochs
from .descriptions import class_names, input_lengths, tokenizer_name, vocabulary_of
from .evaluation import device_of, in_evaluation, refuse_arguments, weights_hash
from .fingerprint import fingerprint, input_hashes, labelled_hashes
from .forecast import Forecast
from .model_head import grid_of, many_rows_problem, refuse_unsupported, rows_of, unwrapped
from .outside import INPUT_HASHES, LABELLED
from .overrides import take_added
from .sample_ids import LABEL_COLUMNS, has_sample_ids, sample_ids_of

logger = logging.get_logger(__name__)

EPOCH = 0  # the only epoch of such a store
_FEW = 5
_LONGEST_NAMES = 1 << 20  # bytes as JSON


def record_predictions(
    model: nn.Module,
    dataset: Any,
    path: str | Path,
    collator: Any = None,
    *,
    processing_class: Any = None,
    batch_size: int = 32,
    dtype: LogitsDtype = "float16",
    top_k: int = 8,
    problem_type: ProblemType | None = None,
    sample_id_column: str = "sample_id",
    disable_tqdm: bool = False,
) -> LogitsStore:
    """Records what a model predicts for each sample, in evaluation mode, as the one epoch of a store.

    The store can be the `outside_teacher` of any run on the same inputs. Each batch has samples of about the same
    length, and the longest come first. To continue a call that was interrupted, make it again: the store then has the
    same bytes as without the interruption. Several processes (`accelerate launch`) share the work; they must share the
    disk.

    Args:
        model: A model with one of the heads that `LSTSDTrainer` supports. It is moved to this process's device.
        dataset: A `datasets.Dataset`, or a torch data set with a length. Columns of a `datasets.Dataset` that
            `model.forward` does not take are left out. Labels are needed only if the head's rows are those of labelled
            tokens.
        path: The store's folder: a new one, or that of an interrupted call.
        collator: Makes a batch. None: the plain Trainer's, which pads with `processing_class`.
        processing_class: The tokenizer. It pads batches, and the store notes it.
        batch_size: How many samples a process predicts at once.
        dtype: How predictions are stored: "float16" or "float32".
        top_k: For a language model: how many classes of the vocabulary to keep for each predicted token.
        problem_type: See `DistillationArguments`. None: as the model's class says.
        sample_id_column: The column of integer ids. Without it, a row's position is its id.
        disable_tqdm: Whether to hide the progress bar.

    Returns:
        The sealed store.

    Raises:
        ValueError: the model's head is not supported, an argument is out of range, or sample ids are missing,
            repeated or negative.
        StoreMismatchError: the folder holds predictions of another model, of other inputs, or with other settings.
        StoreError: the folder holds something else, another process records into it, or the disk is too small.
    """
    refuse_arguments(dataset, batch_size, dtype, top_k, problem_type)
    refuse_unsupported(model)
    # On a machine without an accelerator, each of several processes would otherwise take itself for the only one.
    state = PartialState(cpu=not torch.accelerator.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU"))
    head = many_rows_head(problem_type or many_rows_problem(model), top_k)
    size = vocabulary_of(model) if isinstance(head, Vocabulary) else None
    if size is not None and top_k >= size:
        raise ValueError(
            f"top_k={top_k} and a vocabulary of {size}: expected fewer than all of it, because the mass of the rest "
            "is recorded as well. Set top_k lower."
        )
    recording = _Recording(
        model, head, dataset, collator, processing_class, batch_size, sample_id_column, problem_type
    )
    place_of_store = Path(path).resolve()
    with writing(place_of_store):
        place_of_store.parent.mkdir(parents=True, exist_ok=True)
    held = (
        place.lock_file(Path(f"{place_of_store}.lock"), f"the store at {place_of_store}") if _is_first(state) else []
    )
    try:
        if _is_first(state):
            store = recording.begin(place_of_store, dtype)
            if store.sealed_epochs:
                recording.finish(store)
                logger.warning(f"{path} holds these predictions already: nothing was recorded.")
        state.wait_for_everyone()
        store = LogitsStore.open(place_of_store)
        if not store.sealed_epochs:
            recording.record(store, state, disable_tqdm)
            state.wait_for_everyone()
            if _is_first(state):
                store.seal(EPOCH)
                recording.warn_of_gaps(store)
        state.wait_for_everyone()
    finally:
        place.unlock(held)
    return store


def _is_first(state: PartialState) -> bool:
    return state.process_index == 0


class _Recording:
    """Predicts a data set and records it, in batches that are the same in every call."""

    def __init__(
        self,
        model: nn.Module,
        head: ManyRows | None,
        dataset: Any,
        collator: Any,
        processing_class: Any,
        batch_size: int,
        column: str,
        problem_type: ProblemType | None,
    ) -> None:
        self._model, self._head, self._problem_type = model, head, problem_type
        self._settings = DistillationArguments().resolve(0.0)  # there are no teachers, so any weight will do
        self._batch_size, self._processing_class = batch_size, processing_class
        inner: Any = unwrapped(model)
        self._taken = inspect.signature(inner.forward).parameters
        self._label_names = {*find_labels(type(inner)), *LABEL_COLUMNS}
        is_table = isinstance(dataset, datasets.Dataset)
        self._dataset = dataset
        self._inputs: list[str] = []
        self._ids: npt.NDArray[np.int64] = np.arange(len(dataset))
        rows = dataset
        if is_table:
            self._ids = np.asarray(sample_ids_of(dataset, column))
            kept = self._kept(dataset, column)
            self._inputs = sorted(name for name in kept if name not in {*self._label_names, column})
            rows = dataset if dataset.format["type"] == "custom" else dataset.select_columns(kept)
        if not is_table or not has_sample_ids(dataset, column):
            rows = IdentifiedDataset(rows, self._ids)
        self._rows = rows
        if collator is None:
            collator = DataCollatorWithPadding(processing_class) if processing_class else default_data_collator
        nobody = TeachingEpochs(())
        nobody.set(())  # else batches would have no ids
        self._collator = TeacherCollator(collator, column, int(self._ids.max()) + 1, "", nobody, head)
        lengths = input_lengths(dataset)
        self._lengths = np.ones(len(dataset), np.int64) if lengths is None else lengths
        self._unit = "row" if lengths is None else "token"
        # Sorted by length, for little padding. The longest first, so that a batch too large for memory fails at once.
        # Then by id, so that a call that goes on has the same batches if the rows are in another order.
        order = np.lexsort((self._ids, -self._lengths))
        self._batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]

    def _kept(self, dataset: datasets.Dataset, column: str) -> list[str]:
        names = dataset.column_names
        kept = [name for name in names if name in self._taken or name in {*self._label_names, column}]
        names_none = all(parameter.kind is parameter.VAR_KEYWORD for parameter in self._taken.values())
        if dataset.format["type"] == "custom" or names_none:
            kept = names
        elif not set(kept) - {*self._label_names, column}:
            raise ValueError(
                f"The data set has columns {names}, and {type(unwrapped(self._model)).__name__} takes none of them: "
                "expected its inputs, such as input_ids. Tokenize the data set first."
            )
        # A classifier's labels are not needed, and words would stop a collator.
        idle = [name for name in kept if self._head is None and self._is_left_out(name) and _is_text(dataset, name)]
        return [name for name in kept if name not in idle]

    def begin(self, path: Path, dtype: str) -> LogitsStore:
        """The store at `path`: that of an earlier call, or a new one.

        Raises:
            StoreMismatchError: it holds predictions of another model, of other inputs, or with other settings.
            StoreError: the folder holds something else, or the disk is too small.
        """
        source, name = self._source(), self._fingerprint()
        if (path / NAME).exists():
            store = LogitsStore.open(path)
            found = {**store.source, "dtype": store.dtype, "inputs": store.fingerprint}
            if not store.source:
                raise StoreError(f"{path} holds the predictions of a run: expected a new folder. Name another one.")
            expected = {**source, "dtype": dtype, "inputs": name}
            if isinstance(self._head, ManyRows) and hasattr(self._head, "k"):
                found["top_k"], expected["top_k"] = store.row_shape[0], self._head.k
            if self._head is not None and store.head:  # a store from before this note has none
                found["problem_type"], expected["problem_type"] = store.head, self._kind(store.row_shape[0])
            wrong = [
                f"{key} {expected[key]!r}, found {found.get(key)!r}"
                for key in expected
                if expected[key] != found.get(key)
            ]
            if wrong:
                raise StoreMismatchError(
                    f"{path} holds predictions that were made otherwise: expected {'; '.join(wrong)}. Give the same "
                    "arguments to go on, or name a new folder."
                )
        else:
            store = self._create(path, dtype, name, source)
        if self._inputs and store.read_statistic(INPUT_HASHES) is None:
            by_row = np.zeros((store.index.num_rows, len(self._inputs)), np.uint64)
            by_row[store.index.rows_of(self._ids, path)] = input_hashes(self._dataset, self._inputs)
            store.write_statistic(INPUT_HASHES, EPOCH, by_row)
        self._note_labelled(store)
        return store

    def _note_labelled(self, store: LogitsStore) -> None:
        """Notes which tokens have labels, and so rows. Raises StoreMismatchError if other tokens had before."""
        hashes = labelled_hashes(self._dataset, store.head) if self._inputs else None
        if hashes is None:
            return
        by_row = np.zeros((store.index.num_rows, 1), np.uint64)
        by_row[store.index.rows_of(self._ids, store.path), 0] = hashes
        noted = store.read_statistic(LABELLED)
        if noted is None and not store.sealed_epochs and not store.open_epochs:
            store.write_statistic(LABELLED, EPOCH, by_row)
        elif noted is not None and (noted[1] != by_row).any():
            wrong = store.sample_ids[(noted[1] != by_row).any(axis=1)]
            raise StoreMismatchError(
                f"{store.path} holds predictions of other tokens for {len(wrong)} samples, first for sample ids "
                f"{wrong[:_FEW].tolist()}: expected labels at the same tokens. Give these, or name a new folder."
            )

    def _kind(self, columns: int, *, paired: bool = False) -> str:
        """See `LogitsStore.head`."""
        if self._head is not None:
            return str(self._problem_type or many_rows_problem(self._model))
        said = getattr(getattr(unwrapped(self._model), "config", None), "problem_type", None)
        said = self._problem_type or ("single_label_classification" if paired else said)
        return (name_of(choose_head(said, None, columns).head) or "") if said in HEADS else ""

    def _create(self, path: Path, dtype: str, name: str, source: dict[str, Any]) -> LogitsStore:
        """A new store, with the layout of the first batch's predictions."""
        first = self._batches[0]
        with in_evaluation(self._model):
            self._model.to(device_of(self._model))
            _, parts, counts = self._predict(self._collator(self._rows_at(first)))
        row_shape = parts[VALUES].shape[1:]
        rows = len(self._ids)
        if counts is not None:
            rows = round(counts.sum() / max(self._lengths[first].sum(), 1) * self._lengths.sum())
        vocabulary = self._vocabulary if "classes" in parts else None
        names = ("folder", "dtype", "top_k")
        Forecast(path, rows, row_shape, vocabulary, dtype, 1, 0, names).refuse_full_disk(keeps_all=True)
        samples = int(self._ids.max()) + 1
        is_ragged = counts is not None
        store = LogitsStore.create(
            path, samples, row_shape, dtype, name, self._ids, ragged=is_ragged, vocabulary=vocabulary, source=source
        )
        store.write_head(self._kind(row_shape[-1], paired=not is_ragged and self._is_paired))
        return store

    def finish(self, store: LogitsStore) -> None:
        """Checks a store that has been sealed, and removes the journals if a kill left them.

        Raises:
            StoreCorruptionError: it is damaged.
        """
        try:
            store.verify_epochs([EPOCH])
        except StoreCorruptionError as error:
            raise StoreCorruptionError(f"{error} Move {store.path} aside to record anew.") from error
        store.seal(EPOCH)

    def record(self, store: LogitsStore, state: PartialState, disable_tqdm: bool) -> None:
        """Records this process's part of the batches that the store does not have yet."""
        done = {block.step for journal in store.journals(EPOCH) for block in journal.blocks()}
        state.wait_for_everyone()  # no process may write before all have read what is done
        left = [number for number in range(len(self._batches)) if number not in done]
        mine = left[state.process_index :: state.num_processes]
        sampler: Any = [self._batches[number].tolist() for number in mine]
        loader = DataLoader(self._rows, batch_sampler=sampler, collate_fn=self._collator)
        size = sum(int(self._lengths[self._batches[number]].sum()) for number in mine)
        bar = logging.tqdm(
            total=size,
            unit=self._unit,
            unit_scale=True,
            desc="Recording",
            disable=disable_tqdm or not state.is_local_main_process,
        )
        with bar, in_evaluation(self._model):
            self._model.to(device_of(self._model))
            for number, batch in zip(mine, loader, strict=True):
                ids, parts, counts = self._predict(batch)
                values = parts.pop(VALUES)
                store.record(EPOCH, ids, values, counts=counts, step=number, rank=state.process_index, **parts)
                bar.update(int(self._lengths[self._batches[number]].sum()))
        store.close()

    def warn_of_gaps(self, store: LogitsStore) -> None:
        """Warns of samples whose predictions are not finite, which the store leaves out."""
        if store.is_ragged:  # a sample without a labelled token has no rows either
            return
        rows = store.epoch_rows(EPOCH).reshape(store.index.num_rows, -1)[:, 0]
        lost = self._ids[np.isnan(rows[store.index.rows_of(self._ids, store.path)])]
        if len(lost):
            logger.warning(
                f"The model's logits are not finite for {len(lost)} of {len(self._ids)} samples, first for sample ids "
                f"{lost[:_FEW].tolist()}: the store has no predictions of them."
            )

    def _rows_at(self, positions: npt.NDArray[Any]) -> list[Any]:
        if hasattr(self._rows, "__getitems__"):
            return list(self._rows.__getitems__(positions.tolist()))
        return [self._rows[int(position)] for position in positions]

    def _predict(self, batch: Any) -> tuple[npt.NDArray[Any], dict[str, npt.NDArray[Any]], npt.NDArray[Any] | None]:
        """The sample ids of a batch, its predictions by part of a row, and how many rows each sample has or None."""
        inputs, added = take_added(batch)
        device = device_of(self._model)
        inputs = {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in inputs.items()}
        outputs = self._model(**{key: value for key, value in inputs.items() if not self._is_left_out(key)})
        ids, counts = added[SAMPLE_IDS].numpy(), None
        if self._head is None:
            rows = rows_of(outputs, len(ids), inputs)
            found: Mapping[str, torch.Tensor] = {VALUES: rows.logits}
            self._is_paired = rows.paired
        else:
            shape = next(inputs[name].shape[:2] for name in self._head.grid if name in inputs)
            grid = grid_of(outputs, self._head.outputs, tuple(shape))
            index = RowIndex(added[POSITIONS].to(device), added[COUNTS].to(device))
            compared = self._head.compare(grid, {}, self._settings, index)
            found, counts = compared.recorded, added[COUNTS].numpy()
            self._vocabulary = compared.vocabulary
        parts = {n: part.float() if part.is_floating_point() else part for n, part in found.items()}
        return ids, {name: part.cpu().numpy() for name, part in parts.items()}, counts

    def _is_left_out(self, name: str) -> bool:
        """Whether an input is labels that the model does not need: no loss is wanted, and labels may be out of range.

        For an encoder-decoder model, labels are inputs too, and so they may be where `forward` takes `**kwargs` alone.
        """
        if name not in self._label_names:
            return False
        if name not in self._taken:
            takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in self._taken.values())
            return "labels" in self._taken or not takes_any
        is_decoder = getattr(getattr(unwrapped(self._model), "config", None), "is_encoder_decoder", False)
        return self._taken[name].default is None and not is_decoder

    def _fingerprint(self) -> str:
        if not self._inputs:
            return f"torch data set of {len(self._ids)}"
        return fingerprint(self._dataset, self._ids, self._inputs)

    def _source(self) -> dict[str, Any]:
        """See `LogitsStore.source`."""
        inner = unwrapped(self._model)
        columns = getattr(getattr(inner, "config", None), "num_labels", 0)
        return {
            "model": f"{type(inner).__name__}, weights {weights_hash(self._model)}",
            "inputs": self._inputs,
            "tokenizer": tokenizer_name(self._processing_class),
            "max_length": int(self._lengths.max()) if self._unit == "token" else None,
            "classes": _noted_names(class_names(self._model, columns)) if columns else None,
            "batch_size": self._batch_size,
        }


def _is_text(dataset: datasets.Dataset, name: str) -> bool:
    """Whether a column holds texts."""
    feature = dataset.features[name]
    return isinstance(feature, datasets.Value) and "string" in feature.dtype


def _noted_names(names: list[str] | None) -> list[str] | None:
    """The names of the classes, unless they would take most of the manifest, which is read again and again."""
    return names if names is None or len(json.dumps(names)) <= _LONGEST_NAMES else None
