"""A mixin for any Trainer: it records each sample's logits, and distils from those of earlier epochs."""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, HubStrategy, TrainOutput, has_length

from ..config import DistillationArguments
from ..method.heads import Compared
from ..method.loss import distillation_loss
from ..method.rows import RowIndex
from ..paths import LOGITS_FOLDER, TRAINER_STATE_FILE
from ..store import LogitsStore
from ..store.rows import VALUES
from .base_loss import BaseLossMixin
from .callback import RecorderCallback
from .checkpoint import last_complete_checkpoint, saved_store
from .collator import COUNTS, POSITIONS, ROW_LABELS, SAMPLE_IDS, TeachingEpochs, teacher_key, teacher_parts
from .exchange import Processes
from .log import LossParts
from .memory_log import memory_log
from .model_head import refuse_no_loss, refuse_unsupported
from .overrides import (
    Shown,
    is_plain,
    is_taught,
    plain_batch,
    refuse_no_ids,
    refuse_same_names,
    refuse_wrong_order,
    same_name,
    take_added,
    taught,
    watching,
)
from .recorder import Plan, Recorder


class LSTSDMixin(BaseLossMixin):
    """Long Short-Term Sample Distillation (Jiang et al., AAAI 2020) for any subclass of `Trainer`.

    ```python
    class MyTrainer(LSTSDMixin, SomeTrainer): ...

    @dataclass
    class MyConfig(DistillationArguments, SomeConfig): ...
    ```

    The base loss is what `compute_loss` returns, the parent's or your own: the mean over a micro-batch. The loss is
    scaled so that the gradient is that of the mean over all samples of a step, whatever the gradient accumulation and
    the number of processes. Your own `compute_loss` or `compute_loss_func` gets the number of items in its own
    micro-batch, and may return a mean, or a sum divided by that number.

    `args` may also be a config without the method's settings; their defaults apply then. The training set may lack
    sample ids. Then a row's position is its id, and a resumed run needs the rows in the same order.

    Attributes:
        distillation: The method's settings as the user gave them. They are never changed.
        settings: The settings in force. Weights that the user left open are numbers here: the defaults of the head
            that the first batch shows.
        teacher_weights: float32 (T,), on the device: the teachers' weights in the last batch, the honest past's last.
        is_computing_base_loss, batch_sample_ids, batch_teachers: see `BaseLossMixin`; for a loss of your own.

    Raises:
        TypeError: when a subclass is defined in which another trainer stands before the mixin, or a class has a method
            or an attribute of its own with a public name of the mixin.
        AttributeError: when a trainer sets such an attribute.
        ValueError: at `train()`, before the first step, for sample ids that are missing, repeated or negative, labels
            outside of the model's classes, several GPUs in one process, or a head that is not supported. In the first
            step, for logits that are not one row for each sample, or have no gradient.
        StoreError: the store's folder holds something else, or the disk is full.
    """

    teacher_weights = Shown[torch.Tensor]()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        refuse_wrong_order(cls, LSTSDMixin)
        refuse_same_names(cls, LSTSDMixin)
        if not is_taught(cls.compute_loss):
            cls.compute_loss = taught(cls.compute_loss)  # type: ignore[method-assign]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._lstsd_distillation = self._lstsd_given_settings()
        self._lstsd_prepare_loss()
        self._lstsd_teacher_weights = torch.empty(0)
        self._lstsd_callback = RecorderCallback(type(self).__name__, self._lstsd_begin)
        self._lstsd_has_own_loss = not is_plain(type(self).__mro__, "compute_loss")
        self._lstsd_trial: Any = None
        self._lstsd_assume_head(None)
        self._lstsd_reset()
        self._lstsd_is_made = True

    def _lstsd_reset(self) -> None:
        """Forgets an earlier run."""
        self._lstsd_head, self._lstsd_is_honest = None, False
        self._lstsd_callback.recorder = None
        self._lstsd_plan: Plan | None = None
        self._lstsd_saved: LogitsStore | None = None
        self._lstsd_parts = LossParts()
        self._lstsd_weighted_for: Any = None
        self._lstsd_plain_items: Any = None
        self._lstsd_teaching = TeachingEpochs(())

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        if self.args.n_gpu > 1:
            raise ValueError(
                f"{self.args.n_gpu} GPUs in one process (DataParallel) are not supported: expected one process "
                f"for each. Start the script with `torchrun --nproc_per_node {self.args.n_gpu} SCRIPT ...`, or show "
                "it one GPU with CUDA_VISIBLE_DEVICES=0."
            )
        if "logits_path" in vars(self):
            raise AttributeError(same_name(type(self).__name__, "logits_path"))
        if not self._lstsd_has_own_loss:  # a loss of the user's own may make rows from any model's outputs
            refuse_unsupported(self.model)
            self._lstsd_refuse_drawn_mask()
        self._lstsd_trial = kwargs.get("trial", args[0] if args else None)
        self._lstsd_reset()
        if self._lstsd_trial is not None and self.args.push_to_hub and self.args.hub_strategy != HubStrategy.END:
            self._lstsd_refuse_leak([Path(self._get_output_dir(self._lstsd_trial), LOGITS_FOLDER)])
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_complete_checkpoint(str(self.args.output_dir))
        if resume_from_checkpoint:
            lenient = self.distillation.resume_without_logits
            self._lstsd_saved = saved_store(
                str(resume_from_checkpoint), self._lstsd_known_columns(), lenient, self._lstsd_known_top()
            )
        with self._lstsd_callback.listening(self.callback_handler):
            return super().train(resume_from_checkpoint, *args, **kwargs)

    def _lstsd_given_settings(self) -> DistillationArguments:
        """The method's settings in `args`, or their defaults."""
        return self.args if isinstance(self.args, DistillationArguments) else DistillationArguments()

    def _lstsd_begin(self, state: TrainerState, loader: Any) -> Recorder:
        """Makes the recorder of a run, when the Trainer begins to train."""
        plan, self._lstsd_plan = self._lstsd_plan, None
        if plan is None:
            raise ValueError(
                f"{type(self).__name__}.get_train_dataloader never reached LSTSDMixin's, so no batch has sample ids: "
                "expected a loader of super().get_train_dataloader(). Call it there and change what it returns, or "
                "set train_dataset and data_collator, or override _get_train_sampler."
            )
        saved = self._lstsd_saved if state.global_step else None
        steps = max(math.ceil(len(loader) / self.args.gradient_accumulation_steps), 1) if has_length(loader) else None
        self._lstsd_check_epochs(state.num_train_epochs, steps)
        self._lstsd_parts, self._lstsd_teacher_weights, self._lstsd_weighted_for = LossParts(), torch.empty(0), None
        if saved is not None:
            if self.accelerator.is_main_process:
                self._lstsd_parts.restore(saved.note.get("log", {}), self.accelerator.device)
            self._lstsd_restore_head(saved)
        processes = Processes(self.accelerator, self.args)
        memory = memory_log(self, processes, loader, saved)
        honesty = self._lstsd_honesty(plan.training_set.labels, memory, saved)
        recorder = Recorder(plan, self._lstsd_teachers, processes, state, steps, memory, saved)
        recorder.honesty = honesty
        recorder.head = self._lstsd_head  # from the checkpoint, or from a try with a batch that was too large
        return recorder

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        # The store is saved first, because the plain Trainer pushes and rotates checkpoints before it returns. It also
        # writes its own state last, so a checkpoint that has a state is complete.
        if not self.args.save_only_model and self._lstsd_callback.recorder is not None:
            folder = Path(self._get_output_dir(trial), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
            if self.args.should_save:  # a folder that is being overwritten is not complete
                (folder / TRAINER_STATE_FILE).unlink(missing_ok=True)
            note = {"log": self._lstsd_parts.totals(self.accelerator), **self._lstsd_head_note()}
            self._lstsd_callback.recorder.save(folder, note)
        super()._save_checkpoint(model, trial)

    # ---- the loss

    def _lstsd_teach(
        self,
        compute_loss: Callable[..., Any],
        model: nn.Module,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Any,
    ) -> Any:
        """Computes the loss of a training micro-batch, from base loss and divergences, and records the logits.

        Outside of `train()` it only returns what `compute_loss` returns.

        Args:
            compute_loss: Computes the base loss: an unbound method.
            model: The model, as it is wrapped for training.
            inputs: A batch of `get_train_dataloader`. It is not changed.
            return_outputs: Whether to return the model's outputs as well.
            num_items_in_batch: The number of items N, samples or predicted tokens, in this step's group of
                micro-batches on all W processes. The loss of a micro-batch of n items is multiplied by n W / N, so
                that the sum over micro-batches, averaged over processes, is the mean over items. None: no scaling.
            **kwargs: More arguments for the user's own `compute_loss`.

        Raises:
            ValueError: the batch has no sample ids, the loss is not a scalar, or the logits are not one row for each
                sample or have no gradient.
        """
        if not self._lstsd_callback.listens:
            return compute_loss(self, model, plain_batch(inputs), return_outputs, num_items_in_batch, **kwargs)
        recorder = self._lstsd_callback.recorder
        if recorder is None:
            raise ValueError(
                "A training batch came before a run began to record: expected train() to call "
                "callback_handler.on_train_begin first. A training loop of your own must do that too."
            )
        refuse_no_ids(inputs)
        inputs, added = take_added(inputs)
        sample_ids = added[SAMPLE_IDS]
        teachers = tuple(teacher.name for teacher in self._lstsd_teachers if teacher_key(teacher.name) in added)
        index = RowIndex(added[POSITIONS], added[COUNTS]) if POSITIONS in added else None
        labels = self._lstsd_labels_in(inputs)
        items, own_items = self._lstsd_items_in(added), self._lstsd_own_items(inputs, labels, num_items_in_batch)
        with self._lstsd_shown(added), watching(model, cast(nn.Module, self.model), self._lstsd_has_own_loss) as seen:
            batch = copy.copy(inputs)  # because a loss may pop the labels
            found = compute_loss(self, model, batch, return_outputs=True, num_items_in_batch=own_items, **kwargs)
        base_loss, outputs, *_ = (*found, None) if isinstance(found, tuple) else (found, None)
        refuse_no_loss(base_loss, outputs, self._lstsd_has_own_loss or self.compute_loss_func is not None)
        student = self._lstsd_student([outputs, *seen], inputs, len(sample_ids), labels, recorder)
        assert self._lstsd_head is not None
        self._lstsd_callback.taught = True
        past = teacher_parts(added, teachers)
        compared = self._lstsd_head.compare(student, past, self.settings, index)
        targets = added.get(ROW_LABELS, self._lstsd_head.targets(labels))
        recorder.record(sample_ids, compared, added.get(COUNTS), targets)
        if recorder.honesty is not None:
            compared, teachers = recorder.honesty.join(compared, past.get(VALUES), teachers, targets)
        loss = self._lstsd_whole_loss(
            base_loss, recorder, compared, teachers, targets, items, own_items, num_items_in_batch
        )
        return (loss, outputs) if return_outputs else loss

    def _lstsd_whole_loss(
        self,
        base_loss: torch.Tensor,
        recorder: Recorder,
        compared: Compared,
        teachers: tuple[str, ...],
        targets: torch.Tensor | None,
        items: int,
        own_items: Any,
        num_items_in_batch: torch.Tensor | int | None,
    ) -> torch.Tensor:
        """The loss that the Trainer gets: base loss and divergences, as this micro-batch's part of the step's mean."""
        self.loss_is_scaled_for_ga = num_items_in_batch is not None  # else the Trainer divides it by the micro-batches
        if not items:  # no token has a label, and a mean over nothing is NaN
            base_loss, num_items_in_batch = base_loss.nan_to_num(0.0), None
        base_loss, share = self._lstsd_share(base_loss, own_items, targets, items, num_items_in_batch)
        loss = base_loss
        if compared.terms is not None and recorder.honesty is not None:
            loss = recorder.honesty.smooth(base_loss, compared, targets)
        if share is not None:
            base_loss, loss = base_loss * share, loss * share
        if compared.terms is not None:
            loss = distillation_loss(loss, self._lstsd_weigh(recorder, teachers), compared.terms)
        self._lstsd_parts.add(base_loss, items, teachers, compared.terms)
        if num_items_in_batch is not None:
            loss = loss * (items * self.accelerator.num_processes / num_items_in_batch)
        return loss

    def _lstsd_weigh(self, recorder: Recorder, names: tuple[str, ...]) -> torch.Tensor:
        """The weights of the named teachers, computed anew when the epoch or the names change."""
        if self._lstsd_weighted_for != (recorder.epoch, names):
            epochs = recorder.num_train_epochs
            weights = [t.weight_of(recorder.epoch, epochs) for t in self._lstsd_teachers if t.name in names]
            self._lstsd_teacher_weights = torch.empty(len(weights), device=self.accelerator.device)
            for own, weight in zip(self._lstsd_teacher_weights, weights, strict=True):
                own.fill_(weight)  # a copy from the host would wait for the device
            if recorder.honesty is not None:
                self._lstsd_teacher_weights = recorder.honesty.weigh(self._lstsd_teacher_weights)
            self._lstsd_weighted_for = recorder.epoch, names
        return self._lstsd_teacher_weights

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        # The training log, and the one at the run's end, for the steps since the last. All processes write these. The
        # dictionary is changed in place, because at the run's end it is the run's metrics as well.
        if self._lstsd_is_made and ("loss" in logs or "total_flos" in logs):
            k = self.settings.mini_generation_epochs  # from epoch k on, every teacher in use has a weight above 0
            in_use = [teacher.name for teacher in self._lstsd_teachers if teacher.weight_of(k, k + 1)]
            recorder = self._lstsd_callback.recorder
            if "total_flos" in logs:
                self._lstsd_callback.end_last_epoch()
            honesty = recorder.honesty if recorder is not None else None
            logs.update(self._lstsd_parts.means_since_last_log(self.accelerator, in_use))
            logs.update({} if honesty is None else honesty.logged())
        super().log(logs, *args, **kwargs)
