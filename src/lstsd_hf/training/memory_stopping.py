"""Stops a run, or warns, when further epochs only memorise."""

from typing import Any

import numpy as np
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

from ..store.manifest import is_whole

logger = logging.get_logger(__name__)


class MemoryStoppingCallback(TrainerCallback):
    """Stops training when further epochs only memorise; it needs no held-out rows.

    ```python
    trainer = LSTSDTrainer(..., callbacks=[MemoryStoppingCallback(patience=2)])
    ```

    At the end of an epoch it compares the log with that of `patience` epochs before; see `method.memory`. It stops if
    `honest_accuracy`, or for a regression `honest_loss`, has improved by no more than its standard error, while
    `memorised` has grown by more than its own.

    It works with every trainer that logs `memorised`: an `LSTSDTrainer`, also with weights of 0, and the classes that
    `PredictionRecorder` makes. The final weights are those of the last epoch. With a learning rate that decays over
    the whole run, planning fewer epochs is better than stopping a run.

    A run that resumes from a checkpoint of the last step before it would have stopped takes one step more.

    Attributes:
        stopped_at: The number of epochs after which the run first met this condition; None if it never did.
    """

    def __init__(self, patience: int = 2, stop: bool = True) -> None:
        """Starts with no epoch seen.

        Args:
            patience: The number of epochs to look back, at least 1.
            stop: Whether to stop the run; else the callback only warns, once.

        Raises:
            ValueError: the patience is not a whole number of at least 1.
        """
        patience = patience.item() if isinstance(patience, np.integer) else patience
        if not is_whole(patience, low=1):
            raise ValueError(f"patience={patience!r}: expected a whole number of epochs, at least 1.")
        self.patience, self.stop = patience, stop
        self.stopped_at: int | None = None
        self._missed = False
        self._judged = 0  # epochs

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.stopped_at, self._missed, self._judged = None, False, len(_measured(state))

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # A checkpoint of an epoch's last step was saved before that epoch was measured. A run that resumes from it
        # measures it now, and the Trainer looks whether to stop only after the next step.
        if len(_measured(state)) > self._judged:
            self._judge(state, control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._judge(state, control)

    def _judge(self, state: TrainerState, control: TrainerControl) -> None:
        epochs = _measured(state)
        self._judged = len(epochs)
        if not epochs and not self._missed:
            self._missed = True
            if state.is_world_process_zero:
                logger.warning(
                    "MemoryStoppingCallback has nothing to go by, because the log has no `memorised`: expected an "
                    "LSTSDTrainer, or a trainer that PredictionRecorder made, and epochs in random order."
                )
        if self.stopped_at is not None or len(epochs) <= self.patience:
            return
        before, now = epochs[-1 - self.patience], epochs[-1]
        name = "honest_accuracy" if "honest_accuracy" in now else "honest_loss"
        learnt = (now[name] - before[name]) * (1 if name == "honest_accuracy" else -1)
        grown = now["memorised"] - before["memorised"]
        if learnt > now[f"{name}_error"] or grown <= now["memorised_error"]:
            return
        self.stopped_at = len(epochs)
        if state.is_world_process_zero:
            logger.warning(
                f"Further epochs buy memory alone: in the last {self.patience}, up to epoch {self.stopped_at}, {name} "
                f"went from {before[name]:.3g} to {now[name]:.3g} (standard error {now[f'{name}_error']:.2g}), and "
                f"memorised from {before['memorised']:.3g} to {now['memorised']:.3g}."
                + (" Training ends here." if self.stop else "")
            )
        if self.stop:
            control.should_training_stop = True


def _measured(state: TrainerState) -> list[dict[str, float]]:
    """The entries of the log that say what an epoch has memorised, oldest first."""
    return [entry for entry in state.log_history if "memorised" in entry]
