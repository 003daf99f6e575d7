"""Checkpoints: the newest that is complete, and the store in it."""

import json
from pathlib import Path

from transformers import TrainerState
from transformers.utils import logging

from ..paths import LOGITS_FOLDER, TRAINER_STATE_FILE, checkpoints_of
from ..store import LogitsStore, StoreError, StoreMismatchError
from .training_set import TrainingSet

logger = logging.get_logger(__name__)


def last_complete_checkpoint(output_dir: str) -> str:
    """The newest `checkpoint-*` with a readable trainer state, which is the last file of a checkpoint to be written.

    The plain Trainer takes the newest folder, even one that a crash left half written.

    Raises:
        ValueError: there is none.
    """
    for path in checkpoints_of(output_dir):
        try:
            TrainerState.load_from_json(str(path / TRAINER_STATE_FILE))
        except (FileNotFoundError, json.JSONDecodeError):
            logger.warning(f"{path} was not saved completely: resuming from an earlier checkpoint.")
            continue
        return str(path)
    # In the plain Trainer's own words, here and below: scripts look for them.
    raise ValueError(
        f"No valid checkpoint found in output directory ({output_dir}): expected a folder checkpoint-N that was saved "
        "completely."
    )


def saved_store(checkpoint: str, columns: int | None, resumes_without_logits: bool) -> LogitsStore | None:
    """The store in the checkpoint that a run resumes from.

    Args:
        checkpoint: The checkpoint's folder.
        columns: How many columns the model's rows have, where that is known.
        resumes_without_logits: Whether to return None where there is no store.

    Raises:
        ValueError: there is no such folder.
        StoreError: the checkpoint has no store.
        StoreMismatchError: its store is for another head.
    """
    if not Path(checkpoint).is_dir():
        raise ValueError(
            f"Can't find a valid checkpoint at {checkpoint}: no such folder. Expected a folder checkpoint-N."
        )
    path = Path(checkpoint, LOGITS_FOLDER)
    if not path.exists():
        if resumes_without_logits:
            return None
        raise StoreError(
            f"{checkpoint} holds no logits store: expected the predictions of past epochs in {path}. Resume from "
            "a checkpoint that an LSTSDTrainer saved without save_only_model; or set resume_without_logits=True "
            "to train on without teachers until there are new ones."
        )
    store = LogitsStore.open(path)
    if columns is not None and store.row_shape != (columns,):
        raise StoreMismatchError(
            f"The store in {checkpoint} holds predictions of shape {store.row_shape}: expected {(columns,)}, "
            "because the model has as many labels. Resume with the model that the checkpoint was saved from."
        )
    return store


def refuse_other(
    saved: LogitsStore, training_set: TrainingSet, dtype: str, steps_per_epoch: int | None, epoch: int
) -> None:
    """Raises StoreMismatchError where a checkpoint's store does not go with a run, before anything changes.

    Args:
        saved: The checkpoint's store.
        training_set: What the run trains on.
        dtype: The dtype that the run stores.
        steps_per_epoch: The run's; None for a stream.
        epoch: The epoch before the one in which the run goes on.
    """
    saved.expect(
        num_samples=training_set.num_samples,
        row_shape=saved.row_shape,
        dtype=dtype,
        fingerprint=training_set.fingerprint,
    )
    steps = saved.note["steps_per_epoch"]
    if steps != steps_per_epoch:
        raise StoreMismatchError(
            f"The checkpoint was saved with {steps} steps per epoch, and this run has {steps_per_epoch}: "
            "expected the same, because its step would be in another epoch. The batch size, the gradient "
            "accumulation and the number of processes may change together only."
        )
    late = [sealed for sealed in saved.sealed_epochs if sealed > epoch]
    if late and steps_per_epoch is not None:
        raise StoreMismatchError(
            f"The checkpoint's store has sealed epochs {late}, and the run would go on in epoch {epoch + 1}: "
            "an epoch was ended early, after which the Trainer's own count of epochs is off. Start anew."
        )
