"""The callbacks of `lstsd train`: they show losses on the progress bar, and let Ctrl-C end a run cleanly."""

import os
import signal
import threading
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ProgressCallback

LOSSES = ("loss", "base_loss", "long_term_loss", "short_term_loss", "outside_loss")
# Logged at the end of each epoch; see `method.memory`.
MEMORY = ("honest_accuracy", "honest_loss", "memorised")


class LossProgressCallback(ProgressCallback):
    """A progress bar that ends with the current losses, and with what the last epoch has learnt and memorised."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._shown: dict[str, str] = {}

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().on_log(args, state, control, logs=logs, **kwargs)
        values = {name: f"{value:.4g}" for name, value in (logs or {}).items() if name in LOSSES + MEMORY}
        if values and self.training_bar is not None:
            self._shown |= values
            self.training_bar.set_postfix(self._shown)

    def close(self) -> None:
        """Closes the bars that an error left open, so that the next message on stderr begins a new line."""
        for bar in (self.training_bar, self.prediction_bar):
            if bar is not None:
                bar.close()


class InterruptCallback(TrainerCallback):
    """Makes a first Ctrl-C end the run between two steps, and a second one end it at once.

    Within a step, a KeyboardInterrupt can hit code of other libraries that is not made for it: a progress bar keeps
    its lock, a data loader stays half made, and in a destructor Python prints the exception and drops it. The process
    then hangs, ends with a traceback, or trains on. Use the callback as a context manager too, around each call of the
    trainer. Forked workers of the data loader leave a Ctrl-C to the process that trains.
    """

    def __init__(self) -> None:
        self._process = os.getpid()
        self._is_due = False
        self._before: Any = None

    def __enter__(self) -> "InterruptCallback":
        self._before = signal.getsignal(signal.SIGINT)
        # A background command, which ignores Ctrl-C, and a process with its own handler keep what they have.
        if self._before is signal.default_int_handler and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self._keep)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if signal.getsignal(signal.SIGINT) == self._keep:
            signal.signal(signal.SIGINT, self._before)
        # An error after a Ctrl-C is a consequence of it: another process may have ended before this one.
        if kind is None or issubclass(kind, Exception):
            self._interrupt_if_due()

    def _keep(self, *_: object) -> None:
        if os.getpid() != self._process:
            return
        if self._is_due:
            raise KeyboardInterrupt
        self._is_due = True

    def _interrupt_if_due(self) -> None:
        if self._is_due:
            self._is_due = False
            raise KeyboardInterrupt

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._interrupt_if_due()

    on_substep_end = on_prediction_step = on_step_begin
