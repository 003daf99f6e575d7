"""Forwards the Trainer's events to the recorder of the run."""

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .recorder import Recorder


class RecorderCallback(TrainerCallback):
    """Begins a recorder when a run begins, and tells it when epochs begin and end.

    Attributes:
        recorder: That of the run under way, or of the last one; None before the first.
    """

    def __init__(self, begin: Callable[[TrainerState, Any], Recorder]) -> None:
        """`begin` makes a recorder from the Trainer's state and the training loader."""
        self.recorder: Recorder | None = None
        self._begin = begin

    def release(self) -> None:
        """Ends the run: another may use the store's folder."""
        if self.recorder is not None:
            self.recorder.release()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.release()  # of a try with a batch that was too large (auto_find_batch_size)
        self.recorder = self._begin(state, kwargs["train_dataloader"])

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.recorder is not None:
            self.recorder.begin_epoch()

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.recorder is not None:
            self.recorder.end_epoch()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.recorder is not None:
            self.recorder.end()
