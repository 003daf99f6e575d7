"""The life of the logits store in a training run: made, recorded into, sealed at the end of each epoch, read."""

import math
import os
import shutil
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from filelock import BaseFileLock, FileLock, Timeout
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import has_length
from transformers.utils import logging

from .config import LOGITS_FOLDER, DistillationArguments
from .data import SampleIdError, TeacherCollator, TrainingSet
from .objective import teacher_weights, teaching_epochs
from .store import LogitsStore, StoreError, StoreMismatchError

logger = logging.get_logger(__name__)

_CHUNK_BYTES = 16 << 20
_ID_BYTES = 8


class StoreCallback(TrainerCallback):
    """Keeps the logits store in step with the training loop.

    With several processes, all record the epoch, each into its own journal; at its end all wait, one seals, all wait
    again; then the collators of the next epoch read what was sealed.

    Attributes:
        epoch: The epoch under way, from 0. Counted here, because `int(state.epoch)` is wrong after an early end of an
            epoch and after a resume with another batch size.
        weights: float32 (T,), on the device: the weights of the T teachers that this epoch has, long-term first.
    """

    def __init__(self, arguments: DistillationArguments, args: TrainingArguments, accelerator: Accelerator) -> None:
        self.epoch = -1
        self.weights = torch.empty(0)
        self._arguments = arguments
        self._accelerator = accelerator
        self._keeps = args.should_save  # this process makes, seals and copies the store: one, or one on each node
        self._apart = args.save_on_each_node
        self._state = TrainerState()
        self._store: LogitsStore | None = None
        self._pending: list[tuple[torch.cuda.Event | None, int, torch.Tensor, torch.Tensor]] = []
        self._seen: npt.NDArray[np.bool_] | None = None
        self._checkpoint: LogitsStore | None = None
        self._held: BaseFileLock | None = None

    def prepare(self, path: str, training_set: TrainingSet, collator: TeacherCollator) -> None:
        """Says what the next run records, where, and who reads it. Touches nothing on disk."""
        self._path, self._training_set, self._collator = Path(path), training_set, collator

    def resume_from(self, checkpoint: str | None, num_labels: int | None) -> None:
        """Says what the next run goes on from, and looks whether that is possible.

        Args:
            checkpoint: The checkpoint's folder; None: the run starts anew.
            num_labels: The size of the model's head, where it is known.

        Raises:
            StoreError: the checkpoint has no store.
            StoreMismatchError: its store is for another head.
        """
        self._checkpoint = None
        if checkpoint is None:
            return
        path = Path(checkpoint, LOGITS_FOLDER)
        if not path.exists():
            if self._arguments.resume_without_logits:
                return
            raise StoreError(
                f"{checkpoint} holds no logits store: expected the predictions of past epochs in {path}. Resume from "
                "a checkpoint that an LSTSDTrainer saved without save_only_model; or set resume_without_logits=True "
                "to train on without teachers until there are new ones."
            )
        store = LogitsStore.open(path)
        if num_labels is not None and store.row_shape != (num_labels,):
            raise StoreMismatchError(
                f"The store in {checkpoint} holds predictions of shape {store.row_shape}: expected {(num_labels,)}, "
                "because the model has as many labels. Resume with the model that the checkpoint was saved from."
            )
        self._checkpoint = store

    # ---- the events of the loop, in their order

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        loader = kwargs["train_dataloader"]
        sized = has_length(loader)
        steps = max(math.ceil(len(loader) / args.gradient_accumulation_steps), 1) if sized else state.max_steps
        self.epoch = state.global_step // steps - 1
        self._steps_per_epoch = steps if sized else None
        self._state = state
        self._store, self._seen = None, None
        self._pending.clear()
        k = self._arguments.mini_generation_epochs
        too_few = self._arguments.long_term_weight and state.num_train_epochs <= k
        if too_few and self._accelerator.is_main_process:
            warnings.warn(
                f"The long-term teacher would teach from epoch {k} on (epochs count from 0), and this run has only "
                f"{state.num_train_epochs}: it will never teach. Train for at least {k + 1} epochs, or set "
                "mini_generation_epochs lower.",
                stacklevel=2,
            )
        self._path.parent.mkdir(parents=True, exist_ok=True)
        saved = self._checkpoint if state.global_step else None
        if saved is not None:
            self._refuse_other(saved)
            self._refuse_full_disk(saved.row_shape, len(saved.sealed_epochs))
        if self._keeps:
            self._lock()
            aside = move_aside(self._path)
            if saved is not None:
                saved.copy(self._path, {})
                if aside is not None:
                    discard_shared(aside, saved)
        self._accelerator.wait_for_everyone()
        if saved is not None:
            self._training_set = self._training_set.without_rows()
            self._store = LogitsStore.open(self._path)

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # Not only at the epoch's end: that is skipped where an epoch was cut short.
        self._seal(self.epoch)
        self.epoch += 1
        weights = teacher_weights(self._arguments, self.epoch, self._num_train_epochs(state))
        epochs = teaching_epochs(self.epoch, self._arguments.mini_generation_epochs)
        pairs = zip(epochs, weights, strict=True)
        teaching = [epoch if epoch is not None and weight else -1 for epoch, weight in pairs]
        missing = set(teaching) - {-1, *(self._store.sealed_epochs if self._store is not None else ())}
        if missing and not self._arguments.resume_without_logits:
            raise StoreError(
                f"The predictions of epochs {sorted(missing)}, which teach in epoch {self.epoch}, are not in the "
                f"store at {self._path}. Is mini_generation_epochs still what it was? Set resume_without_logits=True "
                "to train without the missing teachers."
            )
        teaching = [-1 if epoch in missing else epoch for epoch in teaching]
        self._collator.epochs.copy_(torch.tensor(teaching))
        # Once an epoch: a step that brings numbers to the device waits for it.
        present = [weight for weight, epoch in zip(weights, teaching, strict=True) if epoch >= 0]
        self.weights = torch.tensor(present, device=self._accelerator.device)
        if self._training_set.streamed and self._accelerator.num_processes == 1:
            self._seen = np.zeros(self._training_set.num_samples, np.bool_)

    def _num_train_epochs(self, state: TrainerState) -> int:
        """How many epochs the whole run has; at the beginning of an epoch."""
        if self._steps_per_epoch is None and self.epoch:
            # The Trainer does not know how long a stream is. It has ended before, and no teacher is in epoch 0.
            return math.ceil(state.max_steps * self.epoch / state.global_step)
        return state.num_train_epochs

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # An epoch that max_steps cut short stays open, so that a run resumed from here can complete it.
        if self._steps_per_epoch is None or state.global_step % self._steps_per_epoch == 0:
            self._seal(self.epoch)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._seal(self.epoch)

    # ---- saving and restoring

    def save(self, checkpoint: Path) -> None:
        """Puts the store, as it is at this step, into a checkpoint's folder."""
        if self._store is None:
            return
        self._flush()
        self._gather_journals(self.epoch)
        if self._keeps:
            checkpoint.mkdir(parents=True, exist_ok=True)
            self._store.copy(checkpoint / LOGITS_FOLDER, {"steps_per_epoch": self._steps_per_epoch})
        self._accelerator.wait_for_everyone()

    def _refuse_other(self, saved: LogitsStore) -> None:
        """Raises StoreMismatchError where a checkpoint's store does not go with this run, before anything changes."""
        if self._keeps:
            saved.verify()
        known = self._training_set
        saved.expect(
            num_samples=known.num_samples,
            row_shape=saved.row_shape,
            dtype=self._arguments.logits_dtype,
            fingerprint=known.fingerprint,
        )
        steps = saved.note["steps_per_epoch"]
        if steps != self._steps_per_epoch:
            raise StoreMismatchError(
                f"The checkpoint was saved with {steps} steps per epoch, and this run has {self._steps_per_epoch}: "
                "expected the same, because its step would be in another epoch. The batch size, the gradient "
                "accumulation and the number of processes may change together only."
            )
        late = [epoch for epoch in saved.sealed_epochs if epoch > self.epoch]
        if late:
            raise StoreMismatchError(
                f"The checkpoint's store has sealed epochs {late}, and the run would go on in epoch {self.epoch + 1}: "
                "an epoch was ended early, after which the Trainer's own count of epochs is off. Start anew."
            )

    def _lock(self) -> None:
        self.release()
        lock = FileLock(f"{self._path}.lock", timeout=0)
        try:
            lock.acquire()
        except Timeout as error:
            raise StoreError(
                f"Another run uses the logits store at {self._path}: expected one run in one folder. Wait for it, or "
                "name another output_dir or logits_dir."
            ) from error
        self._held = lock

    def release(self) -> None:
        """Lets another run use the store's folder."""
        if self._held is not None:
            self._held.release()
            self._held = None

    # ---- recording

    def record(self, sample_ids: torch.Tensor, logits: torch.Tensor) -> None:
        """Records a micro-batch of the epoch under way, without waiting for the device.

        Args:
            sample_ids: int64, (B,).
            logits: floating-point, (B, *row_shape), before the update of this step.

        Raises:
            StoreError, StoreMismatchError: see `LogitsStore.record`.
            SampleIdError: a streamed training set repeats an id within an epoch.
        """
        if self._store is None:
            self._store = self._create(tuple(logits.shape[1:]))
        rows = logits.detach().float()
        event = None
        if rows.is_cuda:
            # A copy into pinned memory that the device makes when it gets there; it is written to disk later.
            sample_ids, rows = sample_ids.to("cpu", non_blocking=True), rows.to("cpu", non_blocking=True)
            event = torch.cuda.current_stream().record_event()
        self._pending.append((event, self._state.global_step, sample_ids.cpu(), rows.cpu()))
        while self._pending and (self._pending[0][0] is None or self._pending[0][0].query()):
            self._write(*self._pending.pop(0))

    def _flush(self) -> None:
        while self._pending:
            self._write(*self._pending.pop(0))

    def _write(self, event: torch.cuda.Event | None, step: int, sample_ids: torch.Tensor, rows: torch.Tensor) -> None:
        if event is not None:
            event.synchronize()
        ids = sample_ids.numpy()
        if self._seen is not None:
            unique, count = np.unique(ids, return_counts=True)
            repeated = unique[(count > 1) | self._seen[unique]]
            if repeated.size:
                raise SampleIdError(
                    f"The streamed training set gave sample ids {repeated[:5].tolist()} a second time in epoch "
                    f"{self.epoch}: expected each id once. Number the rows where the stream is made."
                )
            self._seen[unique] = True
        assert self._store is not None
        self._store.record(self.epoch, ids, rows.numpy(), step=step, rank=self._accelerator.process_index)

    def _create(self, row_shape: tuple[int, ...]) -> LogitsStore:
        """Makes the store, when the first logits are seen: a config may not tell their shape, or tell it wrong."""
        if self._keeps:
            known = self._training_set
            dtype = self._arguments.logits_dtype
            self._refuse_full_disk(row_shape)
            store = LogitsStore.create(self._path, known.num_samples, row_shape, dtype, known.fingerprint)
            labels = known.labels_by_id()
            if labels is not None:
                store.write_labels(labels)
        self._training_set = self._training_set.without_rows()
        self._accelerator.wait_for_everyone()
        return LogitsStore.open(self._path)

    def _refuse_full_disk(self, row_shape: tuple[int, ...], sealed: int = 0) -> None:
        """Raises StoreError where the disk has less room than the store will still take, with a journal's copy.

        Args:
            row_shape: The shape of one sample's logits.
            sealed: The number of epochs that are on disk already, in the checkpoint that the run resumes from.
        """
        row_bytes = math.prod(row_shape) * np.dtype(self._arguments.logits_dtype).itemsize
        samples, epochs = self._training_set.num_samples, self._state.num_train_epochs
        kept = epochs if self._arguments.logits_retention == "all" and self._steps_per_epoch else min(epochs, 3)
        needed = samples * (max(kept - sealed, 0) * row_bytes + 2 * (row_bytes + _ID_BYTES))
        free = shutil.disk_usage(self._path.parent).free
        if needed > free:
            raise StoreError(
                f"The logits store at {self._path} will take about {needed / 1e9:.3g} GB, and {free / 1e9:.3g} GB are "
                "free: expected room for the whole run. Free some space, name a logits_dir on another disk, or set "
                "logits_retention='needed' or logits_dtype='float16'."
            )

    def _seal(self, epoch: int) -> None:
        if self._store is None:
            return
        self._flush()
        self._store.close()
        self._gather_journals(epoch)
        if self._keeps and epoch in self._store.open_epochs:
            self._store.seal(epoch)
            if self._arguments.logits_retention == "needed":
                needed = teaching_epochs(epoch + 1, self._arguments.mini_generation_epochs)
                for old in set(self._store.sealed_epochs) - set(needed):
                    self._store.drop(old)
        self._accelerator.wait_for_everyone()

    def _gather_journals(self, epoch: int) -> None:
        """Waits for all processes; where nodes share no disk, gives each node the journals of all."""
        self._accelerator.wait_for_everyone()
        if not self._apart or self._accelerator.num_processes == 1:
            return
        assert self._store is not None
        rank, device = self._accelerator.process_index, self._accelerator.device
        node = rank - self._accelerator.local_process_index  # its first process names a node
        for source in range(self._accelerator.num_processes):
            journal = self._store.journal_path(epoch, source)
            sends = source == rank
            size = journal.stat().st_size if sends and journal.exists() else 0
            size, source_node = broadcast(torch.tensor([size, node], device=device), source).tolist()
            if not size:
                continue
            receives = self._keeps and source_node != node
            temporary = self._path / f".{journal.name}.tmp"
            file: Any = journal.open("rb") if sends else temporary.open("wb") if receives else nullcontext()
            with file:
                for start in range(0, size, _CHUNK_BYTES):
                    chunk = torch.empty(min(_CHUNK_BYTES, size - start), dtype=torch.uint8)
                    if sends:
                        file.readinto(chunk.numpy())
                    chunk = broadcast(chunk.to(device), source)
                    if receives:
                        file.write(chunk.cpu().numpy())
            if receives:
                os.replace(temporary, journal)
        self._accelerator.wait_for_everyone()


def move_aside(path: Path) -> Path | None:
    """Renames an earlier run's store to the first free `<name>-<number>`; nothing is deleted.

    Returns:
        Where to, or None where there was nothing.

    Raises:
        StoreError: the folder holds something that is not a store.
    """
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return None
    if not (path / "open").is_dir() and not (path / "store.json").is_file():  # the Hub keeps no empty folders
        raise StoreError(
            f"{path} holds something that is not a logits store: expected a folder that is new, empty, or an earlier "
            "run's. Name another logits_dir."
        )
    number = 1
    while (aside := path.with_name(f"{path.name}-{number}")).exists():
        number += 1
    os.rename(path, aside)
    logger.warning(f"{path} holds the predictions of an earlier run: they were moved to {aside}.")
    return aside


def discard_shared(aside: Path, saved: LogitsStore) -> None:
    """Leaves of a store that was moved aside what a checkpoint does not hold: its later sealed epochs, if any.

    A run that is interrupted again and again would else hold on to the disk space of every epoch that it ever had.
    """
    try:
        store = LogitsStore.open(aside)
    except StoreError as error:  # the checkpoint does not need it: it stays as it is, for whoever wants to look
        logger.warning(f"{aside} is kept as it is: {error}")
        return
    kept = set(saved.sealed_epochs)
    for epoch in store.sealed_epochs:
        if epoch in kept:
            store.drop(epoch)
    if not store.sealed_epochs:
        shutil.rmtree(aside)
