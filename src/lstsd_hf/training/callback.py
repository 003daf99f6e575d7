"""Forwards the Trainer's events to the recorder of the run."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import CallbackHandler

from .recorder import Recorder


class RecorderCallback(TrainerCallback):
    """Begins a recorder when a run begins, and tells it when epochs begin and end.

    Attributes:
        recorder: The recorder of the current run, or of the last one; None before the first.
        listens: Whether a run is in progress.
        taught: Whether a loss of this run went through `LSTSDMixin`, which records and teaches.
    """

    def __init__(self, trainer: str, begin: Callable[[TrainerState, Any], Recorder]) -> None:
        """Starts without a recorder.

        Args:
            trainer: The name of the trainer's class, for messages.
            begin: Makes a recorder from the Trainer's state and the training loader.
        """
        self.recorder: Recorder | None = None
        self.listens = self.taught = False
        self._trainer, self._begin = trainer, begin

    @contextmanager
    def listening(self, handler: CallbackHandler) -> Iterator[None]:
        """Gets a run's events before the user's callbacks do, so that these find an epoch sealed at its end.

        Outside of a run, the trainer has only the callbacks that the plain Trainer would have.
        """
        handler.callbacks.insert(0, self)
        self.listens = True
        try:
            yield
        finally:
            self.listens = False
            if self in handler.callbacks:
                handler.callbacks.remove(self)
            self.release()

    def release(self) -> None:
        """Ends the run, so that another may use the store's folder."""
        if self.recorder is not None:
            self.recorder.release()

    def end_last_epoch(self) -> None:
        """Measures the last epoch, once, if the run resumed at its last step: then no epoch begins or ends."""
        if self.listens and self.recorder is not None and self.recorder.steps_per_epoch:
            self.recorder.end_epoch()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.release()  # after a try with a batch that was too large (auto_find_batch_size)
        self.taught = False
        self.recorder = self._begin(state, kwargs["train_dataloader"])

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.recorder is not None:
            self.recorder.begin_epoch()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not self.taught:
            raise ValueError(
                f"The first step of {self._trainer} is about to update the weights, and its loss never reached "
                "LSTSDMixin, so nothing was recorded: expected a training_step that calls self.compute_loss, and a "
                "compute_loss that is a method of the class. Write\n\n    loss = self.compute_loss(model, inputs, "
                "num_items_in_batch=num_items_in_batch)\n\nwith the model in training mode."
            )

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
