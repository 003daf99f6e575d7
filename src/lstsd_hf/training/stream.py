"""The passes of a run: which epoch one belongs to, and how many there will be; nobody knows the length of a stream."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers import TrainerState

from .sample_ids import SampleIdError


def refuse_repeated(ids: npt.NDArray[np.int64], seen: npt.NDArray[np.bool_], epoch: int) -> None:
    """Notes which ids a stream gave in an epoch; raises SampleIdError where it gave one of them before.

    Args:
        ids: (B,).
        seen: (num_samples,): whether an id was given; changed in place.
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
    """The passes over a training set of known length: one is an epoch, and the Trainer resumes within it.

    Attributes:
        steps: Of an epoch.
        began_at: The step at which the epoch under way began.
    """

    def __init__(self, state: TrainerState, steps: int) -> None:
        """Args:
        state: The Trainer's, which goes on to change.
        steps: Of an epoch.
        """
        self.steps, self._state = steps, state
        self.began_at = 0

    def resume(self, note: Mapping[str, Any], sealed: Sequence[int]) -> int:
        """The epoch before the one in which a checkpoint's run goes on."""
        return self._state.global_step // self.steps - 1

    def note(self) -> dict[str, Any]:
        """Nothing: the step says all."""
        return {}

    def repeats(self) -> bool:
        """Never."""
        return False

    def begin(self, epoch: int) -> None:
        """Begins an epoch, or goes on in it."""
        self.began_at = self._state.global_step // self.steps * self.steps

    def end(self) -> bool:
        """Whether the epoch under way is complete; one that max_steps cut short is not."""
        return self._state.global_step % self.steps == 0

    def num_epochs(self, epoch: int) -> int:
        """How many epochs the run has."""
        return self._state.num_train_epochs


class StreamPasses:
    """Counts the passes over a stream in one run.

    The Trainer takes a stream for one long epoch: to resume, it passes over as many batches of it as there were in all
    epochs. In epoch 0 that is exact, and the run goes on as the uninterrupted one. In a later epoch the stream ends
    before that many, and the Trainer begins a new pass:

    - An epoch that was under way begins anew, with the same teachers; a sample that it has seen already keeps its
      first prediction.
    - An epoch that was complete is sealed, and the next one begins.

    Sealed epochs stay as they are. The order of the samples, and so the weights, are not those of an uninterrupted
    run, in the plain Trainer neither. `ignore_data_skip` begins a new pass in every case, in epoch 0 as well. Passes
    are expected to be of one length.

    Attributes:
        began_at: The step at which the pass under way began.
        steps: The steps of a whole pass; None before there was one.
    """

    def __init__(self, state: TrainerState, skips_seen_batches: bool) -> None:
        """Args:
        state: The Trainer's, which goes on to change.
        skips_seen_batches: Whether a resumed run passes over the batches that its checkpoint had seen.
        """
        self.began_at = state.global_step
        self.steps: int | None = None
        self._state, self._skips = state, skips_seen_batches
        self._epoch: int | None = None  # of the pass under way
        self._interrupted: int | None = None  # begins anew, unless the first pass brings batches

    def resume(self, note: Mapping[str, Any], sealed: Sequence[int]) -> int:
        """The epoch before the one in which a checkpoint's run goes on.

        Args:
            note: What `note` gave when it was saved, and "epoch", the epoch under way.
            sealed: The epochs that are sealed in it.
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
        """Whether the Trainer passed over the pass under way, so that the next one is of the same epoch."""
        interrupted = self._interrupted is not None and self._interrupted == self._epoch
        return interrupted and self._state.global_step == self.began_at

    def begin(self, epoch: int) -> None:
        """Begins a pass, that of an epoch."""
        if self.repeats():
            self._interrupted = None
        self._epoch = epoch
        # A resumed run passes over exactly the batches of epoch 0 that there were.
        self.began_at = 0 if epoch == 0 and self._skips else self._state.global_step

    def end(self) -> bool:
        """Ends a pass; whether its epoch is complete. One that max_steps cut short is not."""
        made = self._state.global_step - self.began_at
        cut_short = self._state.global_step >= self._state.max_steps and made != self.steps
        if cut_short or self.repeats():
            return False
        self.steps = made or self.steps
        return True

    def num_epochs(self, epoch: int) -> int:
        """How many epochs the run has, seen from one after the first: those before it, and what max_steps allows."""
        steps = self.steps or self.began_at / epoch
        return epoch + math.ceil((self._state.max_steps - self.began_at) / steps)


def passes_of(
    state: TrainerState, steps_per_epoch: int | None, skips_seen_batches: bool
) -> FixedPasses | StreamPasses:
    """Those of a run with so many steps in an epoch; None: a stream. See `StreamPasses` for the rest."""
    if steps_per_epoch is None:
        return StreamPasses(state, skips_seen_batches)
    return FixedPasses(state, steps_per_epoch)
