"""`LSTSDTrainer`: what needs sample ids and logits together."""

import copy
import functools
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, cast

import datasets
import numpy as np
import numpy.typing as npt
import torch
from accelerate import Accelerator
from huggingface_hub import CommitInfo, HfApi
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler
from transformers import Trainer, TrainerState
from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, HubStrategy, TrainOutput, has_length
from transformers.utils import logging

from . import model_card
from ._version import __version__
from .callbacks import StoreCallback
from .config import LOGITS_FOLDER, PRIVATE_FOLDERS, DistillationArguments, checkpoints_of
from .data import (
    SAMPLE_IDS,
    TEACHER_LOGITS,
    IdentifiedDataset,
    TeacherCollator,
    TrainingSet,
    has_sample_ids,
    inspect_training_set,
    refuse_labels_outside,
    sample_ids_of,
)
from .objective import Lessons, ProblemType, distillation_loss, infer_problem_type, learn_from
from .store import LogitsStore, StoreError

logger = logging.get_logger(__name__)

_HEADS = (
    "heads that predict one row of logits for each sample: sequence, image, audio and video classification, multiple "
    "choice, regression and multi-label"
)


class LSTSDTrainer(Trainer):
    """`transformers.Trainer` with Long Short-Term Sample Distillation (Jiang et al., AAAI 2020).

    Takes the arguments of `Trainer`. `args` may be an `LSTSDConfig`, or any other `TrainingArguments`: the method's
    defaults apply then. Teachers' weights that are None in `args` become numbers there at `train()`, by the problem
    type. The training set may lack sample ids: a row's position is its id then, and the set must come in the same
    order when a run is resumed.

    A sample's two past predictions are its teachers; see `lstsd_hf.objective` for the loss. It is scaled so that the
    gradient is that of the mean over all samples of a step, whatever the gradient accumulation and the number of
    processes. A `compute_loss_func` gets the number of items in its own micro-batch, and may return a mean, or a sum
    divided by that number.

    Raises:
        ValueError: at `train()`, before the first step: sample ids that are missing, repeated or negative, labels
            outside of the model's classes, several GPUs in one process, logits that are not one row for each sample.
        StoreError: the store's folder holds something else, or the disk is full.
    """

    # What `compute_loss` returns is a part of the mean over all samples of the step already.
    loss_is_scaled_for_ga = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.distillation = self.args if isinstance(self.args, DistillationArguments) else DistillationArguments()
        if self.compute_loss_func is not None:
            self.compute_loss_func = _count_own_items(self.compute_loss_func)
        self._trial: Any = None
        self._store_callback = StoreCallback(self.distillation, self.args, self.accelerator)
        self.add_callback(self._store_callback)
        self._parts = _LossParts()

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        if self.args.n_gpu > 1:
            raise ValueError(
                f"{self.args.n_gpu} GPUs in one process (DataParallel) are not supported: expected one process "
                f"for each. Start the script with `torchrun --nproc_per_node {self.args.n_gpu} SCRIPT ...`, or show "
                "it one GPU with CUDA_VISIBLE_DEVICES=0."
            )
        self._trial = trial
        self._parts = _LossParts()
        if trial is not None and self.args.push_to_hub and self.args.hub_strategy != HubStrategy.END:
            self._refuse_leak([Path(self._get_output_dir(trial), LOGITS_FOLDER)])
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_complete_checkpoint(str(self.args.output_dir))
        self._store_callback.resume_from(resume_from_checkpoint or None, self._num_labels())
        try:
            return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        finally:
            self._store_callback.release()

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        # First, because the plain Trainer pushes and rotates checkpoints before it returns; and because it writes its
        # own state last, so that a checkpoint that has one is complete.
        if not self.args.save_only_model:
            folder = Path(self._get_output_dir(trial), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
            if self.args.should_save:  # a folder that is written over is not complete meanwhile
                (folder / TRAINER_STATE_NAME).unlink(missing_ok=True)
            self._store_callback.save(folder)
        super()._save_checkpoint(model, trial)

    # ---- the data

    def get_train_dataloader(self) -> DataLoader:
        """The plain Trainer's loader, whose batches carry the sample ids and the teachers' logits as well."""
        if self.train_dataset is None:
            return super().get_train_dataloader()
        arguments, column = self.distillation, self.distillation.sample_id_column
        arguments.check()
        dataset: Any = self.train_dataset
        collator: Any = self.data_collator
        self._set_signature_columns_if_needed()
        signature: Any = self._signature_columns  # typed as None, which it no longer is
        taken = signature if self.args.remove_unused_columns else None
        training_set = inspect_training_set(dataset, column, taken, arguments.num_samples)
        self._refuse_labels_outside(training_set)
        arguments.fill_weights(self._problem_type(training_set.labels) == "regression")

        path = self._logits_path()
        in_rows = isinstance(dataset, IterableDataset) or (
            isinstance(dataset, datasets.Dataset) and has_sample_ids(dataset, column)
        )
        if in_rows:
            teachers = TeacherCollator(collator, column, training_set.num_samples, path)
        else:
            ids: Any = range(len(dataset))
            if isinstance(dataset, datasets.Dataset):
                ids = sample_ids_of(dataset, column)
                dataset = self._remove_unused_columns(dataset, description="training")
            dataset = IdentifiedDataset(dataset, ids)
            plain_rows = self._get_collator_with_removed_columns(collator, description="training")
            teachers = TeacherCollator(plain_rows, column, training_set.num_samples, path)
        self._store_callback.prepare(path, training_set, teachers)

        plain = self.train_dataset, self.data_collator, self._signature_columns
        try:
            # For this loader only: a save reads the user's collator, and evaluation wants the plain columns. A new
            # list, because the plain Trainer's collators keep a reference to the old one.
            self.train_dataset, self.data_collator = dataset, cast(Any, teachers)
            self._signature_columns = cast(Any, [*signature, column])
            return super().get_train_dataloader()
        finally:
            self.train_dataset, self.data_collator, self._signature_columns = plain

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        # Samplers look into the rows, for their lengths.
        if isinstance(train_dataset, IdentifiedDataset):
            train_dataset = train_dataset.dataset
        return super()._get_train_sampler(train_dataset)

    def _logits_path(self) -> str:
        default = os.path.join(str(self.args.output_dir), LOGITS_FOLDER)
        path = self.distillation.logits_dir or default
        if self._trial is not None:
            run = self._get_output_dir(self._trial)
            path = os.path.join(run, LOGITS_FOLDER) if path == default else os.path.join(path, os.path.basename(run))
        return os.path.abspath(path)

    def _num_labels(self) -> int | None:
        """The size of the model's head, where its config tells it; multiple-choice heads have one row per choice."""
        if self._model_class() in MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES.values():
            return None
        return getattr(self._config(), "num_labels", None)

    def _model_class(self) -> str:
        model: Any = self.model
        return type(model.get_base_model() if hasattr(model, "get_base_model") else model).__name__  # PEFT

    def _config(self) -> Any:
        return getattr(self.model, "config", None)

    def _problem_type(self, labels: npt.NDArray[Any] | None) -> ProblemType:
        """The problem as far as it can be told ahead; `labels` are the training set's, where they are known."""
        return infer_problem_type(self._config(), None if labels is None else torch.from_numpy(labels[:1]))

    def _refuse_labels_outside(self, training_set: TrainingSet) -> None:
        """Raises ValueError where labels that are known ahead should be classes of the model, and are not."""
        labels, num_labels = training_set.labels, self._num_labels()
        if labels is None or num_labels is None or labels.ndim != 1 or labels.dtype.kind != "i":
            return
        if self.compute_loss_func is not None:  # what its labels mean is its own business
            return
        if self._problem_type(labels) == "single_label_classification":
            refuse_labels_outside(training_set, num_labels)

    # ---- the loss

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> torch.Tensor | int | None:
        """The number of samples in a group of micro-batches over all processes; None in evaluation.

        The plain Trainer counts labels here, of which a multi-label row has many and a masked one none.
        """
        if not batch_samples or SAMPLE_IDS not in batch_samples[0]:
            return None
        count = sum(len(batch[SAMPLE_IDS]) for batch in batch_samples)
        if self.accelerator.num_processes == 1:
            return count
        return self.accelerator.reduce(torch.full((), count, device=device), "sum")

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The loss of a micro-batch of B samples: base loss and both teachers' divergences; records the logits.

        Args:
            model: The model, as it is wrapped for training.
            inputs: A batch of `get_train_dataloader`. In evaluation: any batch.
            return_outputs: Whether to return the model's outputs as well.
            num_items_in_batch: The number of samples N in this step's group of micro-batches on all W processes. The
                loss is multiplied by B W / N, so that the sum over micro-batches, averaged over processes, is the mean
                over samples.

        Raises:
            ValueError: the batch has no sample ids, or the logits are not one row for each sample.
        """
        if not model.training:
            # Without a count of items, which would multiply the loss by the number of processes.
            return super().compute_loss(model, inputs, return_outputs=return_outputs)
        if SAMPLE_IDS not in inputs:
            raise ValueError(
                f"A training batch holds {sorted(inputs)}, and no sample ids: expected a batch of "
                "LSTSDTrainer.get_train_dataloader. A subclass that overrides it must call super()."
            )
        sample_ids = inputs.pop(SAMPLE_IDS)
        teachers = {name: inputs.pop(key) for name, key in TEACHER_LOGITS.items() if key in inputs}
        labels = inputs.get("labels")
        label_is_kept = (self.label_smoother is not None or self.compute_loss_func is not None) and labels is not None
        base_loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        logits = _logits(outputs, 0 if label_is_kept else 1, len(sample_ids))

        problem_type = infer_problem_type(self._config(), labels)
        temperature, trust = self.distillation.temperature, self.distillation.teacher_trust
        loss, lessons = base_loss, None
        if teachers:
            lessons = learn_from(problem_type, logits, torch.stack(list(teachers.values())), temperature, trust)
            loss = distillation_loss(base_loss, self._store_callback.weights, lessons)
        self._store_callback.record(sample_ids, logits)
        self._parts.add(base_loss, len(sample_ids), tuple(teachers), lessons)

        if num_items_in_batch is not None:
            share = len(sample_ids) * self.accelerator.num_processes / num_items_in_batch
            loss = loss * share
        return (loss, outputs) if return_outputs else loss

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        # An evaluation set may have been given ids as well, which remove_unused_columns=False lets through to here.
        inputs.pop(self.distillation.sample_id_column, None)
        return super().prediction_step(model, inputs, *args, **kwargs)

    # ---- the log, and the Hub

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        # The training log, and that of the run's end, for the steps after the last one. All processes write these.
        if "loss" in logs or "total_flos" in logs:
            weighted = {name for name in TEACHER_LOGITS if getattr(self.distillation, f"{name}_weight")}
            logs = {**logs, **self._parts.means_since_last_log(self.accelerator, weighted)}
        super().log(logs, start_time)

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """The plain Trainer's model card, with a section on the distillation; see `lstsd_hf.model_card`.

        The metrics of the last evaluation go into its model-index. Takes the arguments of `Trainer.create_model_card`.
        """
        if not self.is_world_process_zero():
            return
        output_dir = Path(str(self.args.output_dir))
        # The name that the repo on the Hub gets, which the plain Trainer does not think of for output_dir=".".
        model_name = model_name or Path(self.hub_model_id or output_dir.absolute()).name
        super().create_model_card(language, license, tags, model_name, *args, **kwargs)
        distillation = copy.copy(self.distillation)
        distillation.fill_weights(self._problem_type(None) == "regression")  # where it has not trained yet
        log_history, rows = self.state.log_history, self.train_dataset
        section = model_card.describe(distillation, self.args, log_history, len(rows) if has_length(rows) else None)
        path = output_dir / "README.md"
        card = model_card.complete(
            path.read_text(encoding="utf-8"),
            section,
            model_card.evaluation_metrics(log_history),
            model_card.infer_task(self._model_class()),
        )
        path.write_text(card, encoding="utf-8")

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """As `Trainer.push_to_hub`; with `push_logits=True` the logits store follows the model, into `_logits/`.

        Returns:
            The model's commit; with `blocking=False` a future of it, which is done when the store has arrived as well.

        Raises:
            StoreError: `push_logits=True`, and there is no store; or the push would take along what it must not.
                Nothing is uploaded then.
        """
        if self.is_world_process_zero():
            self._refuse_leak(private_folders_of_trials(Path(str(self.args.output_dir))))
        if not self.distillation.push_logits or not self.is_world_process_zero():
            return super().push_to_hub(commit_message, blocking, token, revision, *args, **kwargs)
        path = Path(self._logits_path())
        try:
            store = LogitsStore.open(path)
        except StoreError as error:
            raise StoreError(f"{error} push_logits=True uploads it: train first, or set push_logits=False.") from error
        # A copy, because the upload may go on while training changes the store; of links, where the disk has them.
        folder = Path(tempfile.mkdtemp(prefix=f"{path.name}.push-", dir=path.parent))
        try:
            snapshot = store.copy(folder / LOGITS_FOLDER, {})
            pushed = super().push_to_hub(commit_message, blocking, token, revision, *args, **kwargs)
        except BaseException:
            shutil.rmtree(folder)
            raise

        def push_store() -> CommitInfo:
            try:
                commit = pushed.result() if isinstance(pushed, Future) else pushed
                HfApi(library_name="lstsd_hf", library_version=__version__).upload_folder(
                    repo_id=cast(str, self.hub_model_id),
                    folder_path=snapshot.path,
                    path_in_repo=LOGITS_FOLDER,
                    commit_message=f"{commit_message}, logits",
                    token=token or self.args.hub_token,
                    revision=revision or self.args.hub_revision,
                    delete_patterns="*",  # of an earlier push: epochs that were dropped since
                )
                return commit
            finally:
                shutil.rmtree(folder)

        if blocking:
            return push_store()
        following = HfApi().run_as_future(push_store)
        following.add_done_callback(_warn_of_failed_push)
        return following

    def _refuse_leak(self, paths: Sequence[Path]) -> None:
        """Raises StoreError where there are folders that a push would take along, and `push_logits` is not set."""
        if paths and not self.distillation.push_logits:
            raise StoreError(
                f"A push of {self.args.output_dir} to the Hub would upload {paths[0]}, with what a trial of a "
                "hyper-parameter search predicted for the training samples: expected that to stay. Use "
                "hub_strategy='end' in a search, and move the trials' folders elsewhere before a push; or set "
                "push_logits=True."
            )

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        before = self._pushes()
        super()._push_from_checkpoint(checkpoint_folder)
        for push in self._pushes():
            if push not in before:
                push.add_done_callback(_warn_of_failed_push)

    def _pushes(self) -> list[Future]:
        """The uploads of checkpoints in mid-training, whose outcome the plain Trainer does not look at."""
        progress = getattr(self, "push_in_progress", None)  # there on the process that pushes
        return list(progress.jobs) if progress is not None else []


def last_complete_checkpoint(output_dir: str) -> str:
    """The newest `checkpoint-*` with a readable trainer state, which is the last file of a checkpoint to be written.

    The plain Trainer takes the newest folder, even one that a crash left half written.

    Raises:
        ValueError: there is none.
    """
    for path in checkpoints_of(output_dir):
        try:
            TrainerState.load_from_json(str(path / TRAINER_STATE_NAME))
        except (FileNotFoundError, json.JSONDecodeError):
            logger.warning(f"{path} was not saved completely: resuming from an earlier checkpoint.")
            continue
        return str(path)
    raise ValueError(f"No complete checkpoint in {output_dir}: expected a folder checkpoint-N to resume from.")


def private_folders_of_trials(output_dir: Path) -> list[Path]:
    """Stores and reports in the folders of a hyper-parameter search's trials.

    A push leaves out what has an underscore in front, or is a checkpoint, but at the top of `output_dir` only.
    """
    patterns = (f"[!_]*/{inside}{name}" for name in PRIVATE_FOLDERS for inside in ("", f"{PREFIX_CHECKPOINT_DIR}-*/"))
    found = (path for pattern in patterns for path in output_dir.glob(pattern))
    return sorted(path for path in found if path.parent not in checkpoints_of(output_dir))


def _warn_of_failed_push(push: Future) -> None:
    """Says what went wrong with an upload that nobody waits for."""
    error = None if push.cancelled() else push.exception()
    if error is not None:
        logger.warning(
            f"A push to the Hub failed: {error!r}, because of {error.__cause__!r}. Training goes on, what is on disk "
            "is not affected, and the next push uploads all that is missing."
        )


def _count_own_items(compute_loss_func: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Hands a user's loss function the number of items in its own micro-batch, in place of the whole step's."""

    @functools.wraps(compute_loss_func)
    def counted(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        own = labels.ne(-100).sum() if isinstance(labels, torch.Tensor) else None
        return compute_loss_func(outputs, labels, num_items_in_batch=own)

    return counted


def _logits(outputs: Any, position: int, rows: int) -> torch.Tensor:
    """The (B, C) logits in a model's outputs; `position` is where they stand in a tuple."""
    if isinstance(outputs, Mapping):
        logits, found = outputs.get("logits"), f"outputs {', '.join(outputs)}"
    else:
        logits = outputs[position] if len(outputs) > position else None
        found = f"a tuple of {len(outputs)}"
    if not isinstance(logits, torch.Tensor):
        raise ValueError(f"The model returned no logits, but {found}: LSTSDTrainer works with {_HEADS}.")
    if logits.ndim != 2 or len(logits) != rows:
        raise ValueError(
            f"The model returned logits of shape {tuple(logits.shape)} for {rows} samples: expected "
            f"({rows}, classes). LSTSDTrainer works with {_HEADS}."
        )
    return logits


class _LossParts:
    """Sums of the loss's parts since the last log, kept on the device: reading them there would wait for it."""

    def __init__(self) -> None:
        self._samples = 0
        self._base: torch.Tensor | None = None
        # By the teachers that there were, float32 (4, T): sums of trust times divergence, trust, agreement, presence.
        self._lessons: dict[tuple[str, ...], torch.Tensor] = {}
        self._decides = True

    def add(self, base_loss: torch.Tensor, samples: int, teachers: tuple[str, ...], lessons: Lessons | None) -> None:
        """Adds a micro-batch with the lessons of its teachers, of these names."""
        base = base_loss.detach().float() * samples
        self._base = base if self._base is None else self._base + base
        self._samples += samples
        if lessons is not None:
            present, trust, divergence, agreement = lessons
            self._decides = agreement is not None
            columns = [trust * divergence.detach(), trust, present if agreement is None else agreement, present]
            sums = torch.stack(columns).sum(dim=2)
            self._lessons[teachers] = self._lessons[teachers] + sums if teachers in self._lessons else sums

    def means_since_last_log(self, accelerator: Accelerator, weighted: set[str]) -> dict[str, float]:
        """The means over all processes' samples; waits for the device. `weighted`: the teachers that are in use."""
        if self._base is None:
            return {}
        sums = [self._base.new_full((), self._samples), self._base, *(s.flatten() for s in self._lessons.values())]
        samples, base, *rest = accelerator.reduce(torch.hstack(sums), "sum").tolist()
        of_teachers = {name: np.zeros(4) for name in TEACHER_LOGITS}
        for teachers in self._lessons:
            columns = np.reshape(rest[: 4 * len(teachers)], (4, -1)).T
            del rest[: 4 * len(teachers)]
            for name, column in zip(teachers, columns, strict=True):
                of_teachers[name] += column
        self._samples, self._base, self._lessons = 0, None, {}
        means = {"base_loss": base / samples}
        for name, (divergence, trust, agreement, present) in of_teachers.items():
            if present or name in weighted:  # by definition 0 where no sample has the teacher
                means[f"{name}_loss"] = divergence / trust if trust else 0.0
                means[f"{name}_coverage"] = present / samples
            if present and self._decides:
                means[f"{name}_agreement"] = agreement / present
        return means
