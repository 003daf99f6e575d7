"""Which epoch each pass of a run belongs to, and how many epochs there will be, also if a stream has no length."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers import TrainerState

from .sample_ids import SampleIdError


def refuse_repeated(ids: npt.NDArray[np.int64], seen: npt.NDArray[np.bool_], epoch: int) -> None:
    """Marks the ids that a stream gave in an epoch; raises SampleIdError if it gave one of them before.

    Args:
        ids: Sample ids, (B,).
        seen: (num_samples,): whether an id was given. Changed in place.
        epoch: For the message.
    """
    unique, count = np.unique(ids, return_counts=True)
    repeated = unique[(count > 1) | seen[unique]]
    if repeated.size:
        raise SampleIdError(
            f"The streamed training set gave sample ids {repeated[:5].tolist()} a second time in epoch {epoch}: "
            "expected each id once. Number the rows where the stream is made."
        )
    seen[unique] = True


class FixedPasses:
    """The passes over a training set of known length: each is one epoch, and the Trainer can resume within it.

    Attributes:
        steps: Optimizer steps per epoch.
        began_at: The step at which the current epoch began.
    """

    def __init__(self, state: TrainerState, steps: int) -> None:
        """Starts before the first epoch.

        Args:
            state: The Trainer's state, which the Trainer keeps changing.
            steps: See the attribute.
        """
        self.steps, self._state = steps, state
        self.began_at = 0

    def resume(self, note: Mapping[str, Any], sealed: Sequence[int]) -> int:
        """The epoch before the one in which a checkpoint's run continues."""
        return self._state.global_step // self.steps - 1

    def note(self) -> dict[str, Any]:
        """Nothing, because the step is enough."""
        return {}

    def repeats(self) -> bool:
        """Always False; see `StreamPasses`."""
        return False

    def begin(self, epoch: int) -> None:
        """Begins an epoch, or continues one."""
        self.began_at = self._state.global_step // self.steps * self.steps

    def end(self) -> bool:
        """Whether the current epoch is complete. One that max_steps cut short is not."""
        return self._state.global_step % self.steps == 0

    def num_epochs(self, epoch: int) -> int:
        """How many epochs the run has."""
        return self._state.num_train_epochs


class StreamPasses:
    """Counts the passes over a stream in one run.

    The Trainer takes a stream for one long epoch. To resume, it skips as many batches as there were in all epochs so
    far. In epoch 0 that is exact, and the run continues as if it had not been interrupted. In a later epoch the stream
    ends before that many, and the Trainer begins a new pass:

    - An epoch that was interrupted begins anew, with the same teachers. A sample that it has seen already keeps its
      first prediction.
    - An epoch that was complete is sealed, and the next one begins.

    Sealed epochs are not changed. The order of the samples, and so the weights, are not those of an uninterrupted run;
    nor are they with the plain Trainer. `ignore_data_skip` begins a new pass in every case, in epoch 0 as well. Passes
    are expected to have the same length.

    Attributes:
        began_at: The step at which the current pass began.
        steps: Optimizer steps of a whole pass; None before there was one.
    """

    def __init__(self, state: TrainerState, skips_seen_batches: bool) -> None:
        """Starts before the first pass.

        Args:
            state: The Trainer's state, which the Trainer keeps changing.
            skips_seen_batches: Whether a resumed run skips the batches that it trained on before the checkpoint.
        """
        self.began_at = state.global_step
        self.steps: int | None = None
        self._state, self._skips = state, skips_seen_batches
        self._epoch: int | None = None  # of the current pass
        self._interrupted: int | None = None  # begins anew, unless the first pass has batches left

    def resume(self, note: Mapping[str, Any], sealed: Sequence[int]) -> int:
        """The epoch before the one in which a checkpoint's run continues.

        Args:
            note: What `note` returned when the checkpoint was saved, and "epoch", the epoch at that time.
            sealed: The epochs that are sealed in the checkpoint.
        """
        last, self.steps = note.get("epoch", 0), note.get("steps_per_pass")
        made = self._state.global_step - note.get("steps_before_pass", 0)
        whole = last in sealed or (self.steps is not None and made >= self.steps)
        if self._skips and last > 0 and not whole:
            self._interrupted = last
        return last if whole and not self._skips else last - 1

    def note(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return {"steps_per_pass": self.steps, "steps_before_pass": self.began_at}

    def repeats(self) -> bool:
        """Whether the Trainer skipped the whole current pass, so that the next one is of the same epoch."""
        interrupted = self._interrupted is not None and self._interrupted == self._epoch
        return interrupted and self._state.global_step == self.began_at

    def begin(self, epoch: int) -> None:
        """Begins the pass of an epoch."""
        if self.repeats():
            self._interrupted = None
        self._epoch = epoch
        # In epoch 0 a resumed run skips exactly the batches that it has trained on.
        self.began_at = 0 if epoch == 0 and self._skips else self._state.global_step

    def end(self) -> bool:
        """Ends a pass. Returns whether its epoch is complete: one that max_steps cut short is not."""
        made = self._state.global_step - self.began_at
        cut_short = self._state.global_step >= self._state.max_steps and made != self.steps
        if cut_short or self.repeats():
            return False
        self.steps = made or self.steps
        return True

    def num_epochs(self, epoch: int) -> int:
        """How many epochs the run has: those before `epoch`, at least 1, and as many as max_steps still allows."""
        steps = self.steps or self.began_at / epoch
        return epoch + math.ceil((self._state.max_steps - self.began_at) / steps)


def passes_of(
    state: TrainerState, steps_per_epoch: int | None, skips_seen_batches: bool
) -> FixedPasses | StreamPasses:
    """The passes of a run; `steps_per_epoch` is None for a stream. See `StreamPasses` for the rest."""
    if steps_per_epoch is None:
        return StreamPasses(state, skips_seen_batches)
    return FixedPasses(state, steps_per_epoch)
