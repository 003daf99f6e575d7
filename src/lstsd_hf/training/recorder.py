"""Keeps the store of a run: creates or restores it, records into it, seals each epoch, saves it in checkpoints."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from filelock import BaseFileLock
from transformers import TrainerState

from ..method.heads import Compared, Head
from ..method.statistics import TAUGHT_FROM
from ..method.teachers import Teacher, epochs_needed
from ..paths import LOGITS_FOLDER
from ..store import LogitsStore, StoreError
from ..store.files import writing
from ..store.ids import SampleIndex
from ..store.ragged import LABELS
from ..store.rows import VALUES
from . import place
from .checkpoint import refuse_live, refuse_other
from .collator import COUNTS, SAMPLE_IDS, TeachingEpochs
from .exchange import Processes
from .fold import fold_statistics
from .forecast import Forecast
from .honesty import Honesty
from .log import keep_log
from .mapped_labels import MappedLabels
from .memory_log import MemoryLog
from .on_its_way import OnItsWay
from .row_counts import RowCounts
from .stream import passes_of, refuse_repeated
from .teacher_reader import holds
from .training_set import TrainingSet

Given = torch.Tensor | None


@dataclass(frozen=True)
class Plan:
    """What a run records, and where.

    Attributes:
        path: The store's folder, absolute, with links resolved.
        output_dir: The folder of the run's checkpoints.
        training_set: What is known about the samples.
        dtype: The dtype of stored logits, "float16" or "float32".
        retention: "all": keep every epoch. "needed": keep the epochs that can still teach. None: do as before the
            checkpoint; in a new run keep all if they take at most `history_budget` bytes and fit on the disk.
        history_budget: In bytes.
        resumes_without_logits: Whether to continue if the store lacks epochs that should teach.
        accepts_new_labels: Whether to resume if the labels, and nothing else, have changed.
        skips_seen_batches: Whether a resumed run skips the batches that it trained on before the checkpoint.
        teaching: Tells the loaders which epochs teach.
    """

    path: Path
    output_dir: Path
    training_set: TrainingSet
    dtype: str
    retention: str | None
    history_budget: int
    resumes_without_logits: bool
    accepts_new_labels: bool
    skips_seen_batches: bool
    teaching: TeachingEpochs


class Recorder:
    """Keeps the logits store in step with the training loop of one run.

    With several processes, each records into its own journal. At the end of an epoch all wait, the owner of the store
    seals it, and all wait again. Then the loaders of the next epoch read the sealed file.

    Attributes:
        epoch: The current epoch, from 0. Until the first `begin_epoch` it is the one before the run's first. Counted
            here, because `int(state.epoch)` is wrong after an epoch that ended early, and after a resume with another
            batch size.
        steps_per_epoch: Optimizer steps. None for a stream, whose length is not known; see `StreamPasses`.
        head: What the logits stand for; None until it is known. It decides which statistics are folded.
        memory: Measures what is memorised.
        honesty: Takes memory out of the teachers; None if the run does not use trust by honesty.
    """

    def __init__(
        self,
        plan: Plan,
        teachers: Sequence[Teacher],
        processes: Processes,
        state: TrainerState,
        steps_per_epoch: int | None,
        memory: MemoryLog,
        saved: LogitsStore | None = None,
    ) -> None:
        """Locks the run's folders, moves an earlier store there aside, and restores the checkpoint's, if there is one.

        Args:
            plan: What to record.
            teachers: The run's teachers.
            processes: The run's processes.
            state: The Trainer's state, which the Trainer keeps changing.
            steps_per_epoch: See the attribute.
            memory: See the attribute.
            saved: The store in the checkpoint that the run resumes from; None for a new run.

        Raises:
            StoreMismatchError: the checkpoint's store does not fit this run.
            StoreError: another run uses the folder, the folder holds something else, or the disk is too small.
        """
        self.head: Head | None = None
        self.honesty: Honesty | None = None
        self.memory = memory
        self.steps_per_epoch = steps_per_epoch
        self._plan, self._teachers, self._processes, self._state = plan, teachers, processes, state
        self._store: LogitsStore | None = None
        self._pending, self._row_counts = OnItsWay(), RowCounts()
        self._seen: npt.NDArray[np.bool_] | None = None
        self._last_ids: torch.Tensor | None = None  # of the batch that was recorded last
        self._is_sealed = False  # whether the current epoch is sealed
        self._keeps_all = False  # decided once the size of a row is known
        self._held: list[BaseFileLock] = []
        has_new_labels = False
        if saved is not None:
            refuse_live(saved, plan.path)
        self._passes = passes_of(state, steps_per_epoch, plan.skips_seen_batches)
        self.epoch = self._passes.resume(saved.note if saved else {}, saved.sealed_epochs if saved else [])
        with writing(plan.path):
            plan.path.parent.mkdir(parents=True, exist_ok=True)
        if saved is not None:
            if processes.owns_store:
                saved.verify()
            has_new_labels = refuse_other(
                saved, plan.training_set, plan.dtype, steps_per_epoch, self.epoch, plan.accepts_new_labels
            )
            size = Size(rows_in(saved), saved.row_shape, saved.vocabulary)
            self._keeps_all = keeps_all(plan, size, self._planned_epochs, processes, saved)
        if has_new_labels:
            self.memory.leave_out("labels have changed since the checkpoint")
        try:
            if processes.owns_store:
                self._held = place.lock(plan.path, plan.output_dir)
                self._take_place(saved, has_new_labels)
            processes.wait()
            if saved is not None:
                self._open_store()
            plan.teaching.set([None] * len(teachers))
        except BaseException:
            self.release()
            raise

    def _take_place(self, saved: LogitsStore | None, has_new_labels: bool) -> None:
        path, known = self._plan.path, self._plan.training_set
        aside = place.move_aside(path)
        restored = None if saved is None else saved.copy(path, {})
        if restored is not None and has_new_labels:
            at = {"epoch": self.epoch + 1, "step": self._state.global_step}
            restored.relabel(known.labels, known.ids, known.fingerprint, **at, kept=TAUGHT_FROM)
        if aside is not None:
            place.tidy(path, aside, restored, {Path(teacher.store) for teacher in self._teachers if teacher.store})

    def _open_store(self) -> None:
        # The store has the ids and labels of all rows now, so free them here.
        self._plan = replace(self._plan, training_set=self._plan.training_set.without_rows())
        self._store = LogitsStore.open(self._plan.path)
        self._mapped = MappedLabels(self._store, self._processes)

    def release(self) -> None:
        """Unlocks the folders for other runs, and lets the loaders make plain batches again."""
        self._plan.teaching.end()
        place.unlock(self._held)

    # ---- epochs

    def begin_epoch(self) -> None:
        """Moves on to the next epoch, and tells the loaders which epochs teach in it.

        Raises:
            StoreError: an epoch that should teach is not in the store, and the plan does not allow that.
        """
        if not self._passes.repeats():
            self._seal()  # also here, because `end_epoch` leaves an epoch open that was cut short
            if self.steps_per_epoch and self._passes.end():  # not measured yet if the run resumed at its last step
                self.memory.end_epoch(self.epoch, self.steps_per_epoch, self.head)
            self.epoch += 1
        self.memory.begin_epoch(self.epoch)
        self._passes.begin(self.epoch)
        self._last_ids = None
        sealed = self._store.sealed_epochs if self._store is not None else []
        self._is_sealed = self.epoch in sealed
        if self._is_sealed:  # a complete pass over a stream, whose batches the Trainer now skips
            self._plan.teaching.set([None] * len(self._teachers))
            return
        teaching = [teacher.teaching_epoch(self.epoch, self.num_train_epochs) for teacher in self._teachers]
        pairs = list(zip(self._teachers, teaching, strict=True))
        held = [epoch is not None and holds(self._store, teacher, epoch, sealed) for teacher, epoch in pairs]
        missing = {epoch for epoch, there in zip(teaching, held, strict=True) if epoch is not None and not there}
        if missing and not self._plan.resumes_without_logits:
            raise _not_there(missing, self.epoch, self._plan.path)
        self._plan.teaching.set([epoch if there else None for epoch, there in zip(teaching, held, strict=True)])
        if self.honesty is not None:
            self.honesty.begin_epoch(self.epoch, self._store, self._plan.teaching.get())
        if self._plan.training_set.streamed and self._processes.count == 1:
            self._seen = np.zeros(self._plan.training_set.num_samples, np.bool_)

    @property
    def num_train_epochs(self) -> int:
        """How many epochs the whole run has."""
        # In epoch 0 the length of a stream is not known yet, and the run's own past does not teach.
        return self._passes.num_epochs(self.epoch) if self.epoch > 0 else self._state.num_train_epochs

    @property
    def _planned_epochs(self) -> int | None:
        return None if self.steps_per_epoch is None else self._state.num_train_epochs

    def end_epoch(self) -> None:
        """Seals a complete epoch. One that max_steps cut short stays open, so that a resumed run can complete it."""
        if self._passes.end():
            self._seal()
            self.memory.end_epoch(self.epoch, self._passes.steps or 0, self.head)

    def end(self) -> None:
        """Seals the last epoch, complete or not."""
        self._seal()

    def _seal(self) -> None:
        if self._store is None:
            return
        self._flush()
        self._store.close()
        self._processes.gather_journals(self._store, self.epoch)
        if self._processes.owns_store and self.epoch in self._store.open_epochs:
            self._store.seal(self.epoch)
            self._row_counts.check(self._store, self.epoch, self._plan.teaching.get())
            if self.head is not None:
                fold_statistics(self._store, self.epoch, self.head, self._teachers)
            if not self._keeps_all:
                for old in set(self._store.sealed_epochs) - epochs_needed(self._teachers, self.epoch + 1):
                    self._store.drop(old)
        if self._processes.owns_store:  # even if the epoch was sealed before: more may have been logged since
            keep_log(self._store, self._state.log_history)
        self._processes.wait()

    # ---- recording

    def record(self, sample_ids: torch.Tensor, compared: Compared, counts: Given = None, labels: Given = None) -> None:
        """Records a micro-batch of the current epoch, without waiting for the device. Several are written together.

        Args:
            sample_ids: int64, (B,).
            compared: Holds what to record, predicted before this step's update: (B, *row_shape), or ragged rows.
            counts: int64, (B,): how many ragged rows each sample has; None if rows are not ragged.
            labels: (B, ...), or int32 (R,) for ragged rows; None if none can be compared with predictions.

        Raises:
            StoreError, StoreMismatchError: see `LogitsStore.record`.
            SampleIdError: a streamed training set repeats an id within an epoch.
        """
        # Where a step computes several losses of one batch, as adversarial training does, the first one counts.
        if self._is_sealed or sample_ids is self._last_ids:
            return
        if self._store is None:
            self._create(compared, counts)
        tensors = {SAMPLE_IDS: sample_ids, COUNTS: counts, LABELS: labels, **compared.recorded}
        self._pending.put(self._state.global_step, {n: _plain(t) for n, t in tensors.items() if t is not None})
        for batch in self._pending.due(at_once=self._last_ids is None or self._seen is not None):
            self._write(*batch)
        self._last_ids = sample_ids

    def _flush(self) -> None:
        for batch in self._pending.all():
            self._write(*batch)
        if self._store is not None:
            self.memory.flush(self._store)
            self._mapped.settle()

    def _write(self, step: int, tensors: dict[str, torch.Tensor]) -> None:
        parts = {name: tensor.numpy() for name, tensor in tensors.items()}
        ids, counts, labels = parts.pop(SAMPLE_IDS), parts.pop(COUNTS, None), parts.pop(LABELS, None)
        if self._seen is not None:
            refuse_repeated(ids, self._seen, self.epoch)
        assert self._store is not None
        rows: dict[str, Any] = {"logits" if name == VALUES else name: part for name, part in parts.items()}
        rows |= {} if counts is None else {"counts": counts, "labels": labels}
        self._store.record(self.epoch, ids, step=step, rank=self._processes.rank, **rows)
        is_needed = self.honesty is not None and self.honesty.is_asked_for
        self._mapped.compare(ids, labels, is_needed=is_needed)
        self.memory.add(step - self._passes.began_at, ids, parts, labels, counts, self.head, self._store)

    def _create(self, compared: Compared, counts: torch.Tensor | None) -> None:
        """Creates the store from the first logits, because a config may not tell their shape, or tell it wrong."""
        known, row_shape = self._plan.training_set, tuple(compared.recorded[VALUES].shape[1:])
        rows = SampleIndex.of(known.num_samples, known.ids).num_rows
        if counts is not None:  # an estimate: as many per sample as in this batch
            rows = math.ceil(rows * counts.float().mean().item())
        size = Size(rows, row_shape, compared.vocabulary)
        self._keeps_all = keeps_all(self._plan, size, self._planned_epochs, self._processes)
        if self._processes.owns_store:
            new_store(self._plan, row_shape, is_ragged=counts is not None, vocabulary=compared.vocabulary)
        self._processes.wait()
        self._open_store()

    # ---- saving and restoring

    def save(self, checkpoint: Path, note: dict[str, Any]) -> None:
        """Copies the store, as it is at this step, into a checkpoint's folder, with a note of plain values."""
        if self._store is None:
            return
        self._flush()
        self._processes.gather_journals(self._store, self.epoch)
        note = {"memory": self.memory.note(), **note}
        note |= {} if self.honesty is None else {"honesty": self.honesty.note()}
        if self._processes.owns_store:
            checkpoint.mkdir(parents=True, exist_ok=True)
            keep_log(self._store, self._state.log_history)
            own = {"steps_per_epoch": self.steps_per_epoch, "epoch": self.epoch, "keeps_all": self._keeps_all}
            own |= self._passes.note()
            self._store.copy(checkpoint / LOGITS_FOLDER, own | note)
        self._processes.wait()


def _not_there(epochs: set[int], epoch: int, path: Path) -> StoreError:
    return StoreError(
        f"The predictions of epochs {sorted(epochs)}, which teach in epoch {epoch}, are not in the store at {path}. "
        "Are mini_generation_epochs, long_term_teacher and the weights still what they were? Set "
        "resume_without_logits=True, a field of LSTSDConfig, to train without the missing teachers."
    )


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor without gradient. Floats become float32, because numpy has no bfloat16."""
    return tensor.detach().float() if tensor.is_floating_point() else tensor


def new_store(plan: Plan, row_shape: tuple[int, ...], *, is_ragged: bool, vocabulary: int | None) -> None:
    """Creates an empty store, with what is known of labels and texts ahead; raises as `LogitsStore.create`."""
    known = plan.training_set
    store = LogitsStore.create(
        plan.path,
        known.num_samples,
        row_shape,
        plan.dtype,
        known.fingerprint,
        known.ids,
        ragged=is_ragged,
        vocabulary=vocabulary,
    )
    if known.labels is not None and not is_ragged:
        store.write_labels(known.labels, known.ids)
    if known.texts:
        store.write_texts(known.texts, known.label_column)


class Size(NamedTuple):
    """The size of an epoch's file: its number of rows, and the layout of a row; see `Forecast`."""

    rows: int
    row_shape: tuple[int, ...]
    vocabulary: int | None


def keeps_all(
    plan: Plan, size: Size, epochs: int | None, processes: Processes, saved: LogitsStore | None = None
) -> bool:
    """Whether a run of `epochs` epochs keeps all of them; decided once. `saved` is the store that it resumes from.

    Raises StoreError if the disk is too small.
    """
    forecast = Forecast(plan.path, *size, plan.dtype, epochs, 0 if saved is None else len(saved.sealed_epochs))
    noted = None if saved is None else saved.note.get("keeps_all")
    if plan.retention is not None:
        keeps = plan.retention == "all"
    elif noted is not None:
        keeps = bool(noted)
    else:
        keeps = processes.first_says(processes.rank == 0 and forecast.keeps_all(plan.history_budget))
    if saved is not None or processes.owns_store:
        forecast.refuse_full_disk(keeps)
    return keeps


def rows_in(store: LogitsStore) -> int:
    """How many rows an epoch's file has; for ragged rows, how many the last sealed one has."""
    sealed = store.sealed_epochs
    return len(store.epoch_rows(sealed[-1])) if store.is_ragged and sealed else store.index.num_rows
