"""Finds the newest complete checkpoint, and checks the store in a checkpoint."""

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy.typing as npt
from transformers import TrainerState
from transformers.utils import logging

from ..method.heads import HEADS
from ..paths import CHECKPOINT_PREFIX, LOGITS_FOLDER, TRAINER_STATE_FILE, absent, checkpoints_of
from ..store import LogitsStore, StoreCorruptionError, StoreError, StoreMismatchError
from ..store.files import read_regular
from ..store.manifest import is_whole, shortened
from .fingerprint import differ_in_labels, is_same
from .outside import is_noted
from .training_set import TrainingSet

logger = logging.get_logger(__name__)

_LARGEST_STATE = 256 << 20  # bytes; a log of a million entries
_FEW = 5

# What the recorder and the trainer note in a checkpoint: a check of each value, if it is there, and what is expected.
_NOTED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "steps_per_epoch": (lambda value: value is None or is_whole(value, 1), "a number of steps, or null"),
    "epoch": (lambda value: is_whole(value, -1), "an epoch"),
    "keeps_all": (lambda value: isinstance(value, bool), "true or false"),
    "steps_per_pass": (lambda value: value is None or is_whole(value, 1), "a number of steps, or null"),
    "steps_before_pass": (is_whole, "a number of steps"),
    "problem_type": (lambda value: value in (None, *HEADS), f"null, or one of {', '.join(HEADS)}"),
    "memory": (lambda value: isinstance(value, dict), "counters of what is memorised"),
    "log": (lambda value: isinstance(value, dict), "sums of the log"),
    "outside": (is_noted, "null, or a folder and a checksum"),
}


def last_complete_checkpoint(output_dir: str) -> str:
    """The newest `checkpoint-*` with a readable trainer state, the last file that is written to a checkpoint.

    The plain Trainer takes the newest folder, even one that a crash left half written.

    Raises:
        ValueError: there is no complete checkpoint.
    """
    for path in checkpoints_of(output_dir):
        try:
            refuse_incomplete(path)
        except (FileNotFoundError, ValueError) as error:
            logger.warning(f"{path} was not saved completely, so an earlier checkpoint is resumed from: {error}")
            continue
        return str(path)
    # The plain Trainer's own words, here and below, because scripts look for them.
    raise ValueError(
        f"No valid checkpoint found in output directory ({output_dir}): expected a folder checkpoint-N that was saved "
        "completely."
    )


def refuse_incomplete(checkpoint: Path) -> None:
    """Raises FileNotFoundError or ValueError if a folder `checkpoint-N` was not saved completely."""
    state = read_state(checkpoint)
    if checkpoint.name != f"{CHECKPOINT_PREFIX}-{state.global_step}":
        raise ValueError(f"its state is of step {state.global_step}.")


def read_state(checkpoint: Path) -> TrainerState:
    """The Trainer's state in a checkpoint's folder.

    Raises:
        FileNotFoundError: there is no state.
        ValueError: the state is damaged.
    """
    path = checkpoint / TRAINER_STATE_FILE
    try:
        state = TrainerState(**json.loads(read_regular(path, _LARGEST_STATE)))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, TypeError, RecursionError) as error:  # not UTF-8, not JSON, not an object, or an unknown key
        raise ValueError(f"{path} is damaged: {shortened(str(error))}.") from error
    entries, best = state.log_history, state.best_model_checkpoint
    wrong = [name for name in ("global_step", "max_steps", "num_train_epochs") if not is_whole(getattr(state, name))]
    wrong += ["log_history"] * (not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries))
    numbers = ("logging_steps", "eval_steps", "save_steps", "total_flos")
    wrong += [name for name in numbers if type(getattr(state, name)) not in (int, float)]
    wrong += ["train_batch_size"] * (state.train_batch_size is not None and not is_whole(state.train_batch_size))
    wrong += ["best_model_checkpoint"] * (best is not None and not isinstance(best, str))
    if wrong or not state.global_step:
        name = wrong[0] if wrong else "global_step"
        raise ValueError(f"{path} is damaged: {name}={shortened(getattr(state, name))}.")
    return state


def saved_store(
    checkpoint: str,
    columns: int | None,
    resumes_without_logits: bool,
    top: tuple[int, int | None] | None = None,
) -> LogitsStore | None:
    """The store in the checkpoint that a run resumes from.

    Args:
        checkpoint: The checkpoint's folder.
        columns: How many columns the model's rows have; None if not known.
        resumes_without_logits: Whether to return None if there is no store.
        top: For a language model: how many classes the run records, and the size of the vocabulary, if it is known.

    Raises:
        ValueError: there is no such folder, or the Trainer's state in it is damaged.
        StoreError: the checkpoint has no store.
        StoreCorruptionError: the store is damaged.
        StoreMismatchError: the store is for another head.
    """
    if not Path(checkpoint).is_dir():
        raise ValueError(
            f"Can't find a valid checkpoint at {checkpoint}: {absent(Path(checkpoint), 'folder')}. Expected a folder "
            "checkpoint-N."
        )
    with suppress(FileNotFoundError):  # the plain Trainer then starts anew with the checkpoint's weights
        read_state(Path(checkpoint))
    path = Path(checkpoint, LOGITS_FOLDER)
    if not path.exists():
        if resumes_without_logits:
            return None
        raise StoreError(
            f"{checkpoint} holds no logits store: expected the predictions of past epochs in {path}. Resume from "
            "a checkpoint that an LSTSDTrainer saved without save_only_model; or set resume_without_logits=True, "
            "a field of LSTSDConfig, to train on without teachers until there are new ones."
        )
    store = LogitsStore.open(path)
    _check_note(store)
    if top is not None:
        _refuse_other_vocabulary(store, *top)
    elif columns is not None and store.row_shape != (columns,):
        raise StoreMismatchError(
            f"The store in {checkpoint} holds predictions of shape {store.row_shape}: expected {(columns,)}, "
            "because the model has as many labels. Resume with the model that the checkpoint was saved from."
        )
    return store


def _refuse_other_vocabulary(store: LogitsStore, k: int, vocabulary: int | None) -> None:
    """Raises StoreMismatchError if a store's rows are not the k largest of `vocabulary` classes."""
    if store.vocabulary is None or store.row_shape != (k,):
        found = f"the {store.row_shape[0]} largest" if store.vocabulary is not None else f"rows of {store.row_shape}"
        advice = f"Set logits_top_k={store.row_shape[0]}, as" if store.vocabulary is not None else "Resume with what"
        raise StoreMismatchError(
            f"The store at {store.path} holds {found} of each prediction: expected the {k} largest (logits_top_k). "
            f"{advice} the checkpoint was saved with."
        )
    if vocabulary not in (None, store.vocabulary):
        raise StoreMismatchError(
            f"The store at {store.path} holds shares of a vocabulary of {store.vocabulary}, and the model has "
            f"{vocabulary}: expected the same. Were tokens added since (resize_token_embeddings)? Add them before "
            "the first run, or start anew, without resume_from_checkpoint."
        )


def _check_note(store: LogitsStore) -> None:
    """Raises StoreCorruptionError if a checkpoint's note holds a value that no run writes."""
    note = store.note
    for name, (is_right, expected) in _NOTED.items():
        if name in note and not is_right(note[name]):
            raise StoreCorruptionError(
                f"The note of the store at {store.path} is damaged: {name}={shortened(note[name])}: expected "
                f"{expected}."
            )


def refuse_other(
    saved: LogitsStore,
    training_set: TrainingSet,
    dtype: str,
    steps_per_epoch: int | None,
    epoch: int,
    accepts_new_labels: bool,
) -> bool:
    """Raises StoreMismatchError if a checkpoint's store does not fit a run, before anything changes.

    Args:
        saved: The checkpoint's store.
        training_set: What the run trains on.
        dtype: The dtype in which the run stores logits.
        steps_per_epoch: The run's; None for a stream.
        epoch: The epoch before the one in which the run continues.
        accepts_new_labels: Whether the labels may have changed.

    Returns:
        Whether the labels, and nothing else, have changed.
    """
    has_new_labels = differ_in_labels(saved.fingerprint, training_set.fingerprint)
    if has_new_labels and not accepts_new_labels:
        raise StoreMismatchError(
            f"The labels of the training set are not those that the store at {saved.path} was made with"
            f"{_which_labels(saved, training_set)}: expected fingerprint {training_set.fingerprint!r}, found "
            f"{saved.fingerprint!r}. Set accept_new_labels=True to go on with the new labels: what was predicted so "
            "far, by a model that had learnt from the old ones, goes on to teach. Or start anew, without "
            "resume_from_checkpoint."
        )
    saved.expect(
        num_samples=training_set.num_samples,
        row_shape=saved.row_shape,
        dtype=dtype,
        fingerprint=saved.fingerprint
        if has_new_labels or is_same(saved.fingerprint, training_set.fingerprint)
        else training_set.fingerprint,
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
    return has_new_labels


def refuse_live(saved: LogitsStore, live: Path) -> None:
    """Raises StoreMismatchError if a run would resume from a store that was not saved in a checkpoint.

    Args:
        saved: The store in the folder that the run resumes from.
        live: The folder of the run's store.
    """
    if saved.path.resolve() == live or "steps_per_epoch" not in saved.note:
        raise StoreMismatchError(
            f"The store at {saved.path} is a run's own, which goes on to change, or was uploaded from there: expected "
            "the copy in a folder checkpoint-N. Use resume_from_checkpoint=True for the last one in output_dir, or "
            "name it."
        )


def _which_labels(saved: LogitsStore, training_set: TrainingSet) -> str:
    if training_set.labels is None or training_set.ids is None or saved.is_ragged:
        return ""
    changed: npt.NDArray[Any] = saved.changed_labels(training_set.labels, training_set.ids)
    return f" ({len(changed)} of {len(training_set.ids)} differ, first for sample ids {changed[:_FEW].tolist()})"
