"""What `lstsd train` adds to the Trainer: losses on the progress bar, and a Ctrl-C that is not lost."""

import sys
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ProgressCallback

LOSSES = ("loss", "base_loss", "long_term_loss", "short_term_loss", "outside_loss")
# At the end of each epoch; see `method.memory`.
MEMORY = ("honest_accuracy", "honest_loss", "memorised")


class LossProgressCallback(ProgressCallback):
    """The progress bar, with the current losses at its end, and what the last epoch has learnt and memorised."""

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
        """Ends the line of a bar that an error left open, so that the next line on stderr is one of its own."""
        for bar in (self.training_bar, self.prediction_bar):
            if bar is not None:
                bar.close()


class LateInterruptCallback(TrainerCallback):
    """Keeps a Ctrl-C that falls into a destructor, which Python would report and forget, for the next step.

    The end of an epoch is such a place, where the data loader's workers are shut down: training would just go on.
    While the run lasts, the callback is to be used as a context manager too.
    """

    def __init__(self) -> None:
        self._is_due = False
        self._report = sys.unraisablehook

    def __enter__(self) -> "LateInterruptCallback":
        self._report, sys.unraisablehook = sys.unraisablehook, self._keep
        return self

    def __exit__(self, *_: object) -> None:
        sys.unraisablehook = self._report

    def _keep(self, unraisable: "sys.UnraisableHookArgs") -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            self._is_due = True
        else:
            self._report(unraisable)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._is_due:
            self._is_due = False
            raise KeyboardInterrupt

    on_prediction_step = on_step_begin
