"""Measures what a run has learnt and what it has by heart: counts in visiting order, estimates at each epoch's end.

Predictions are copied to the CPU anyway, to be recorded. Labels travel with them and are compared there, so a step
does not wait for the device, and nothing grows with the data set.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DistributedSampler, RandomSampler, SubsetRandomSampler
from transformers import Trainer
from transformers.trainer_pt_utils import DistributedLengthGroupedSampler, LengthGroupedSampler
from transformers.trainer_utils import has_length
from transformers.utils import logging

from ..method.heads import Head
from ..method.memory import BINS, Counters, Measured, MemoryMeter
from ..store import LogitsStore
from .exchange import Processes

logger = logging.get_logger(__name__)

# Up to this many batches or values are compared together, because each comparison costs several small operations.
_BATCHES_AT_ONCE, _VALUES_AT_ONCE = 64, 1 << 20
# With fewer steps an epoch has too few windows for a line through them.
_LEAST_STEPS = 4

Parts = Mapping[str, npt.NDArray[Any]]


class _Batch(NamedTuple):
    position: float
    ids: npt.NDArray[np.int64]
    parts: Parts
    labels: npt.NDArray[Any]
    counts: npt.NDArray[np.int64] | None


class MemoryLog:
    """The counters of the current epoch, and the meter of the run; see `method.memory`.

    What is counted depends on the head: hits if it decides, squared errors for a regression, and for a multi-label
    head the share of a sample's labels that are right. If a sampler repeats a sample for padding, it may count twice.

    Attributes:
        meter: Measures the epochs so far; None before the end of the first one, and if the run is left out.
        left_out: Why the run is not measured; None if it is.
        steps_per_epoch: The expected number of optimizer steps.
    """

    def __init__(
        self,
        processes: Processes,
        steps_per_epoch: int,
        log: Callable[[dict[str, float]], None],
        left_out: str | None = None,
    ) -> None:
        """Starts with no epoch counted.

        Args:
            processes: The run's processes.
            steps_per_epoch: See the attribute.
            log: Writes to the Trainer's log.
            left_out: See `reason_to_leave_out`.
        """
        self.meter: MemoryMeter | None = None
        self.left_out: str | None = None
        self._processes, self._log = processes, log
        self.steps_per_epoch = steps_per_epoch
        self._head: Head | None = None
        self._counters: Counters | None = None
        self._folded = 0  # epochs
        self._waiting: list[_Batch] = []
        self._values = 0
        self._has_before: bool | None = None  # whether the store holds the epoch before; None if not known yet
        if left_out is None and steps_per_epoch < _LEAST_STEPS:
            left_out = f"an epoch has {steps_per_epoch} steps, and {_LEAST_STEPS} are needed: take smaller batches"
        if left_out is not None:
            self.leave_out(left_out)

    def leave_out(self, reason: str) -> None:
        """Stops measuring this run, and warns with the reason."""
        if self.left_out is None:
            self.left_out, self.meter, self._counters, self._waiting = reason, None, None, []
            if self._processes.accelerator.is_main_process:
                logger.warning(f"What is memorised, and honest accuracy, are left out of the log: {reason}.")

    def begin_epoch(self, epoch: int) -> None:
        """Starts counting, or continues if the checkpoint was saved within the epoch."""
        if self.left_out is not None or epoch < self._folded:
            return
        if epoch > self._folded:
            self.leave_out(f"epoch {self._folded} was cut short, or the checkpoint has no counters of it")
        elif self._counters is None:
            self._counters = Counters()

    def add(
        self,
        step: int,
        ids: npt.NDArray[np.int64],
        parts: Parts,
        labels: npt.NDArray[Any] | None,
        counts: npt.NDArray[np.int64] | None,
        head: Head | None,
        store: LogitsStore,
    ) -> None:
        """Adds the recorded predictions of a micro-batch.

        Args:
            step: The step within the epoch, from 0.
            ids: Sample ids, (B,).
            parts: The predictions, by part of a row.
            labels: Of the samples or of the rows; None if they are not known.
            counts: (B,): how many rows each sample has; None if each has one.
            head: What the predictions stand for; None if it is not known.
            store: Holds the predictions of the epoch before.
        """
        if self._counters is None:
            return
        if labels is None or head is None:
            self._counters.sums[:] = np.nan  # so that all processes know when they sum at the end of the epoch
            return
        self._head = head
        judged = {name: parts[name] for name in head.judged}
        position = min((step + 0.5) / self.steps_per_epoch, 1 - 1e-9)
        self._waiting.append(_Batch(position, ids, judged, labels, counts))
        self._values += sum(part.size for part in judged.values())
        if len(self._waiting) == _BATCHES_AT_ONCE or self._values > _VALUES_AT_ONCE:
            self.flush(store)

    def flush(self, store: LogitsStore) -> None:
        """Counts the waiting batches."""
        if not self._waiting or self._counters is None:
            return
        assert self._head is not None
        batches, self._waiting, self._values = self._waiting, [], 0
        labels = np.concatenate([batch.labels for batch in batches])
        counts = None
        if batches[0].counts is not None:
            counts = np.concatenate([batch.counts for batch in batches if batch.counts is not None])
        parts = {name: np.concatenate([batch.parts[name] for batch in batches]) for name in self._head.judged}
        found = _scores(self._head, parts, labels, counts)
        before, epoch = None, self._folded
        if self._has_before is None:  # this reads the disk, so only once an epoch
            self._has_before = epoch - 1 in store.sealed_epochs
        if self._has_before:
            ids = np.concatenate([batch.ids for batch in batches])
            past: Parts = {"values": store.read(epoch - 1, ids)} if counts is None else {}
            if counts is not None:
                past = store.read_rows(epoch - 1, ids).aligned(counts)
            # A sample without a past prediction gets any number that does not depend on its position in the epoch.
            before = np.nan_to_num(_scores(self._head, past, labels, counts))
        position = np.repeat([batch.position for batch in batches], [len(batch.labels) for batch in batches])
        position = np.repeat(position, found.size // max(len(labels), 1))
        found = found.ravel()
        known = np.isfinite(found)
        self._counters.add(position[known], found[known], None if before is None else before.ravel()[known])

    def end_epoch(self, epoch: int, steps: int, head: Head | None) -> None:
        """Logs the measures of a complete epoch, once. All processes call this together.

        Args:
            epoch: The epoch.
            steps: How many optimizer steps it had.
            head: What the predictions stand for; None if it is not known.
        """
        if self._counters is None or epoch != self._folded or head is None:
            return
        if abs(steps - self.steps_per_epoch) * BINS > self.steps_per_epoch:
            self.leave_out(f"an epoch had {steps} steps, but {self.steps_per_epoch} were expected from num_samples")
            return
        counters = self._total()
        if counters is None:
            return
        if np.count_nonzero(counters.items) < 2:
            self.leave_out("too few labels can be compared with predictions")
            return
        if self.meter is None:
            self.meter = MemoryMeter(of_losses=not head.decides)
        measured = self.meter.fold(counters)
        self._counters, self._folded, self._has_before = None, epoch + 1, None
        self._log(logged(measured, head))

    def _total(self) -> Counters | None:
        """The sum of all processes' counters; None if the run is not measured, or one process cannot count."""
        if self._counters is None:
            return None
        total = Counters(self._processes.sum(self._counters.sums))
        if np.isnan(total.sums).any():
            self.leave_out("the batches have no labels that predictions can be compared with")
            return None
        return total

    def note(self) -> dict[str, Any]:
        """Plain values for a checkpoint. All processes call this together, after `flush`."""
        counters = self._total()
        return {
            "left_out": self.left_out,
            "folded": self._folded,
            "counters": None if counters is None else counters.state(),
            "meter": None if self.meter is None else self.meter.state(),
        }

    def restore(self, note: dict[str, Any] | None) -> None:
        """Continues from what `note` returned. None: the checkpoint has no counters.

        Raises:
            ValueError: the values are damaged.
        """
        if self.left_out is not None:
            return
        if note is None:
            self.leave_out("the checkpoint has no counters")
            return
        try:
            reason, folded = note["left_out"], note["folded"]
            counters = None if note["counters"] is None else Counters.of_state(note["counters"])
            meter = None if note["meter"] is None else MemoryMeter.of_state(note["meter"])
            fits = type(folded) is int and folded >= 0
            fits = fits and (reason is None or type(reason) is str)
            fits = fits and (folded == 0 if meter is None else folded == meter.epochs)
        except (KeyError, TypeError, ValueError):
            fits = False
        if not fits:
            raise ValueError("The counters of what is memorised are damaged in the checkpoint. Resume from another.")
        if reason is not None:
            self.leave_out(reason)
            return
        self._folded, self.meter = folded, meter
        # The note has the sums over all processes, so only one of them continues from it.
        if counters is not None:
            self._counters = counters if self._processes.accelerator.is_main_process else Counters()


def _scores(
    head: Head, parts: Parts, labels: npt.NDArray[Any], counts: npt.NDArray[np.int64] | None
) -> npt.NDArray[np.float64]:
    tensors = {name: _tensor(parts[name]) for name in head.judged}
    rows = None if counts is None else torch.from_numpy(counts)
    return head.scores(tensors, torch.from_numpy(labels), rows).double().numpy()


def _tensor(part: npt.NDArray[Any]) -> torch.Tensor:
    # torch has no arithmetic for unsigned integers.
    return torch.from_numpy(part.astype(np.int64) if part.dtype.kind == "u" else part)


def logged(measured: Measured, head: Head) -> dict[str, float]:
    """The entries for the log: shares from 0 to 1, or squared errors for a regression."""
    honest = "honest_accuracy" if head.decides else "honest_loss"
    names = (honest, f"{honest}_error", "memorised", "memorised_error")
    return dict(zip(names, map(float, measured), strict=True))


def memory_log(trainer: Any, processes: Processes, loader: Any, saved: LogitsStore | None) -> MemoryLog:
    """Makes the `MemoryLog` of a run that begins.

    Args:
        trainer: The Trainer.
        processes: The run's processes.
        loader: The training loader.
        saved: The store in the checkpoint that the run resumes from, or None.

    Raises:
        ValueError: the checkpoint's counters are damaged.
    """
    args, dataset = trainer.args, trainer.train_dataset
    reason = reason_to_leave_out(loader, dataset)
    accumulated = args.gradient_accumulation_steps
    if has_length(loader):
        steps = math.ceil(len(loader) / accumulated)
    else:
        at_once = args.train_batch_size * accumulated * processes.count
        steps = math.ceil((trainer.distillation.num_samples or 0) / at_once)
    note = {} if saved is None else saved.note
    is_resumed = trainer.state.global_step > 0
    if is_resumed and reason is None:
        if not has_length(loader) and note.get("epoch"):
            reason = "the interrupted epoch of a stream begins anew"
        elif args.ignore_data_skip:
            reason = "ignore_data_skip begins the interrupted epoch anew"
    # The plain Trainer's log, because one of the user's may add metrics of its own and start them anew.
    found = MemoryLog(processes, steps, functools.partial(Trainer.log, trainer), reason)
    if is_resumed:
        found.restore(note.get("memory"))
    return found


def reason_to_leave_out(loader: Any, dataset: Any) -> str | None:
    """Why the windows of an epoch cannot be compared: its order is not random. None if it is.

    Args:
        loader: The training loader.
        dataset: The training set as the user gave it.
    """
    if isinstance(dataset, torch.utils.data.IterableDataset):
        return None if _is_shuffled(dataset) else "the training set is a stream that is not shuffled"
    sampler: Any = getattr(loader, "batch_sampler", None) or getattr(loader, "sampler", None)
    while (inner := getattr(sampler, "batch_sampler", None) or getattr(sampler, "sampler", None)) is not None:
        sampler = inner
    if isinstance(sampler, (LengthGroupedSampler, DistributedLengthGroupedSampler)):
        return None  # it sorts parts of an epoch, which the control variate corrects for; figures: docs/memory.md
    if isinstance(sampler, RandomSampler) and not sampler.replacement:
        return None
    if isinstance(sampler, SubsetRandomSampler) or (isinstance(sampler, DistributedSampler) and sampler.shuffle):
        return None
    return (
        f"the order of an epoch is that of {type(sampler).__name__}, which is not known to be random "
        "(train_sampling_strategy='random' is)"
    )


def _is_shuffled(stream: Any) -> bool:
    """Whether a stream is a `datasets.IterableDataset` with a shuffle buffer; other streams do not tell."""
    source = getattr(stream, "_ex_iterable", None)
    while source is not None:
        if type(source).__name__ == "BufferShuffledExamplesIterable":
            return True
        source = getattr(source, "ex_iterable", None)
    return False
