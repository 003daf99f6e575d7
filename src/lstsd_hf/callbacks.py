"""The life of the logits store in a training run: made, recorded into, sealed at the end of each epoch, read."""

import math
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from accelerate import Accelerator
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import has_length
from transformers.utils import logging

from .config import DistillationArguments
from .data import SampleIdError, TeacherCollator, TrainingSet
from .objective import TeacherWeights, teacher_weights, teaching_epochs
from .store import LogitsStore, StoreError

logger = logging.get_logger(__name__)


class StoreCallback(TrainerCallback):
    """Keeps the logits store in step with the training loop.

    With several processes, all record the epoch, each into its own journal; at its end all wait, one seals, all wait
    again; then the collators of the next epoch read what was sealed.

    Attributes:
        epoch: The epoch under way, from 0. Counted here, because `int(state.epoch)` is wrong after an early end of an
            epoch and after a resume with another batch size.
        weights: The teachers' weights in this epoch.
    """

    def __init__(self, arguments: DistillationArguments, accelerator: Accelerator) -> None:
        self.epoch = -1
        self.weights = TeacherWeights(0.0, 0.0)
        self._arguments = arguments
        self._accelerator = accelerator
        self._state = TrainerState()
        self._store: LogitsStore | None = None
        self._pending: list[tuple[torch.cuda.Event | None, int, torch.Tensor, torch.Tensor]] = []
        self._seen: npt.NDArray[np.bool_] | None = None

    def prepare(self, path: str, training_set: TrainingSet, collator: TeacherCollator) -> None:
        """Says what the next run records, where, and who reads it. Touches nothing on disk."""
        self._path, self._training_set, self._collator = Path(path), training_set, collator

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
        self._store = None
        self._pending.clear()
        if self._arguments.weight_schedule == "linear" and not sized:
            raise ValueError(
                "weight_schedule='linear' needs the number of epochs: expected a training set with a length, found a "
                "stream. Use weight_schedule='constant'."
            )
        k = self._arguments.mini_generation_epochs
        if self._arguments.long_term_weight and state.num_train_epochs <= k:
            warnings.warn(
                f"The long-term teacher would teach from epoch {k} on (epochs count from 0), and this run has only "
                f"{state.num_train_epochs}: it will never teach. Train for at least {k + 1} epochs, or set "
                "mini_generation_epochs lower.",
                stacklevel=2,
            )
        if self._accelerator.is_main_process:
            move_aside(self._path)
        self._accelerator.wait_for_everyone()

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # Not only at the epoch's end: that is skipped where an epoch was cut short.
        self._seal(self.epoch)
        self.epoch += 1
        self.weights = teacher_weights(self._arguments, self.epoch, state.num_train_epochs)
        epochs = teaching_epochs(self.epoch, self._arguments.mini_generation_epochs)
        pairs = zip(epochs, self.weights, strict=True)
        teaching = [epoch if epoch is not None and weight else -1 for epoch, weight in pairs]
        self._collator.epochs.copy_(torch.tensor(teaching))
        if self._training_set.streamed and self._accelerator.num_processes == 1:
            self._seen = np.zeros(self._training_set.num_samples, np.bool_)

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
        if self._accelerator.is_main_process:
            known = self._training_set
            dtype = self._arguments.logits_dtype
            store = LogitsStore.create(self._path, known.num_samples, row_shape, dtype, known.fingerprint)
            if known.labels is not None:
                store.write_labels(known.labels)
        self._accelerator.wait_for_everyone()
        return LogitsStore.open(self._path)

    def _seal(self, epoch: int) -> None:
        if self._store is None:
            return
        self._flush()
        self._store.close()
        self._accelerator.wait_for_everyone()
        if self._accelerator.is_main_process:
            self._store.seal(epoch)
            if self._arguments.logits_retention == "needed":
                needed = teaching_epochs(epoch + 1, self._arguments.mini_generation_epochs)
                for old in set(self._store.sealed_epochs) - set(needed):
                    self._store.drop(old)
        self._accelerator.wait_for_everyone()


def move_aside(path: Path) -> None:
    """Renames an earlier run's store to the first free `<name>-<number>`; nothing is deleted.

    Raises:
        StoreError: the folder holds something that is not a store.
    """
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not (path / "open").is_dir():
        raise StoreError(
            f"{path} holds something that is not a logits store: expected a folder that is new, empty, or an earlier "
            "run's. Name another logits_dir."
        )
    number = 1
    while (aside := path.with_name(f"{path.name}-{number}")).exists():
        number += 1
    os.rename(path, aside)
    logger.warning(f"{path} holds the predictions of an earlier run: they were moved to {aside}.")
