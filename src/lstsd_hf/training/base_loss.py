"""The base loss of a micro-batch, and how many items it is the mean of."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import nn
from transformers import Trainer

from ..method.heads import Classes
from ..method.many_rows import Vocabulary
from ..method.rows import IGNORED
from .collator import POSITIONS, SAMPLE_IDS, teacher_key
from .loader import LoaderMixin
from .overrides import Shown, count_own_items, items_in, taught


class BaseLossMixin(LoaderMixin):
    """The part of `LSTSDMixin` that gets the base loss of a micro-batch from the parent.

    Attributes:
        is_computing_base_loss: Whether the base loss of a training batch is being computed.
        batch_sample_ids: int64 (B,), on the device: the sample ids of the batch while its base loss is computed; else
            None. A `compute_loss_func` may use them to weigh single samples.
        batch_teachers: During that time, what each teacher predicted for these samples, by the teacher's name: logits
            (B, C), NaN where it has no prediction; (R, C) or (R, k) if samples have many rows. Empty in epochs without
            teachers.
        _lstsd_plain_items: For a language model: what the plain Trainer counts in the current group of micro-batches.
            The sum over tokens is divided by this count, which may be larger than the number of predicted tokens. For
            classes of samples of which some have no label (-100): how many in the group have one.
    """

    is_computing_base_loss = Shown[bool]()
    batch_sample_ids = Shown[torch.Tensor | None]()
    batch_teachers = Shown[Mapping[str, torch.Tensor]]()
    _lstsd_is_computing_base_loss = False
    _lstsd_batch_sample_ids: torch.Tensor | None = None
    _lstsd_batch_teachers: Mapping[str, torch.Tensor] = MappingProxyType({})
    _lstsd_plain_items: Any = None

    @contextmanager
    def _lstsd_shown(self, added: Mapping[str, torch.Tensor]) -> Iterator[None]:
        """Shows what was added to a batch while its base loss is computed."""
        keys = {teacher.name: teacher_key(teacher.name) for teacher in self._lstsd_teachers}
        self._lstsd_is_computing_base_loss, self._lstsd_batch_sample_ids = True, added[SAMPLE_IDS]
        self._lstsd_batch_teachers = {name: added[key] for name, key in keys.items() if key in added}
        try:
            yield
        finally:
            self._lstsd_is_computing_base_loss, self._lstsd_batch_sample_ids = False, None
            self._lstsd_batch_teachers = MappingProxyType({})

    def _lstsd_prepare_loss(self) -> None:
        # `compute_loss` already returns this micro-batch's part of the mean over all samples of the step, whatever a
        # subclass says about the loss that it computes. It does so if it is told how many these are.
        self.loss_is_scaled_for_ga = True

    def _lstsd_own_items(self, inputs: Any, labels: Any, num_items_in_batch: torch.Tensor | int | None) -> Any:
        """The count of items that is passed to the loss of a micro-batch."""
        if isinstance(self._lstsd_head, Vocabulary):
            return self._lstsd_plain_count(inputs)
        return items_in(labels) if self._lstsd_has_own_loss else None

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> torch.Tensor | int | None:
        """The number of items in a group of training micro-batches over all processes: samples, or predicted tokens.

        The plain Trainer counts labels here: a multi-label row has many, and a masked one none.
        """
        if not batch_samples or SAMPLE_IDS not in batch_samples[0]:
            return super()._get_num_items_in_batch(batch_samples, device)
        is_language_model = isinstance(self._lstsd_head, Vocabulary)
        self._lstsd_plain_items = super()._get_num_items_in_batch(batch_samples, device) if is_language_model else None
        if self._lstsd_some_unlabelled:
            pairs = [(self._lstsd_labels_in(batch), len(batch[SAMPLE_IDS])) for batch in batch_samples]
            labelled = torch.stack([self._lstsd_labelled(*pair).to(device) for pair in pairs]).sum()
            if self.accelerator.num_processes > 1:
                labelled = self.accelerator.reduce(labelled, "sum")
            self._lstsd_plain_items = labelled.clamp(min=1)
        count = sum(self._lstsd_items_in(batch) for batch in batch_samples)
        if self.accelerator.num_processes == 1:
            return count
        counts_own = not self.args.average_tokens_across_devices  # the plain Trainer: those of this process alone
        if is_language_model and self._lstsd_plain_items is not None and counts_own:
            self._lstsd_plain_items = self.accelerator.reduce(self._lstsd_plain_items.to(device), "sum")
        return self.accelerator.reduce(torch.full((), count, device=device), "sum")

    def _lstsd_share(
        self, base_loss: torch.Tensor, own_items: Any, targets: torch.Tensor | None, items: int, all_items: Any
    ) -> tuple[torch.Tensor, Any]:
        """The base loss, 0 if no sample has a label; and what to multiply it by, because it is not a mean over items.

        None: it is one. Otherwise it is the mean over, or is divided by, what `_lstsd_plain_items` counts.
        """
        if self._lstsd_some_unlabelled:
            own_items = self._lstsd_labelled(targets, items)
            base_loss = torch.where(own_items > 0, base_loss, base_loss.nan_to_num(0.0))
        if self._lstsd_plain_items is None or all_items is None:
            return base_loss, None
        # One division of whole numbers, so that it is exactly 1 where each item has a label.
        return base_loss, (own_items * all_items) / (self._lstsd_plain_items * max(items, 1))

    def _lstsd_labelled(self, labels: Any, samples: int) -> torch.Tensor:
        """How many samples of a batch have a class that the base loss counts."""
        is_class = isinstance(labels, torch.Tensor) and labels.numel() == samples and not labels.is_floating_point()
        if is_class and (self._lstsd_head is None or isinstance(self._lstsd_head, Classes)):
            return labels.ne(IGNORED).sum()
        return torch.full((), samples, device=self.accelerator.device)

    def _lstsd_items_in(self, batch: Any) -> int:
        samples = len(batch[SAMPLE_IDS])
        return samples if self._lstsd_head is None else self._lstsd_head.items(samples, len(batch.get(POSITIONS, ())))

    def _lstsd_plain_count(self, inputs: Any) -> torch.Tensor | None:
        """What the plain Trainer counts in a batch of a language model; for some models, more than is predicted."""
        labels = inputs.get("shift_labels", inputs["labels"])
        shifts = "shift_labels" not in inputs and getattr(self, "_loss_shifts_labels", False)
        return items_in(labels[..., 1:] if shifts else labels)

    def _lstsd_is_language_model(self) -> bool:
        """Whether the model predicts tokens; before a run its head is not chosen yet."""
        head = self._lstsd_head or (self._lstsd_many_rows_head() if self._lstsd_is_made else None)
        return isinstance(head, Vocabulary)

    def _lstsd_shifts_labels(self) -> bool:
        """Whether the loss predicts the label at the next position: then a sequence's first one does not count."""
        return getattr(self, "_loss_shifts_labels", False) and self._lstsd_is_language_model()

    def _lstsd_has_parents_loss(self) -> bool:
        """Whether `super().compute_loss` is a loss of the user's own, which is told how many items it has."""
        mro = type(self).__mro__
        owner = next(cls for cls in mro[mro.index(BaseLossMixin) + 1 :] if "compute_loss" in cls.__dict__)
        is_trls = owner.__module__.partition(".")[0] == "trl" and owner.__name__ == "SFTTrainer"
        return owner is not Trainer and not is_trls

    def _lstsd_refuse_loss_type(self) -> None:
        """Raises ValueError if TRL's SFTTrainer, whose loss is not called, was asked for an unusual one."""
        asked = getattr(self.args, "loss_type", "nll")
        if asked != "nll" and any(cls.__name__ == "SFTTrainer" for cls in type(self).__mro__):
            raise ValueError(
                f"loss_type={asked!r}: SFTTrainer computes this loss without logits that could be recorded: expected "
                "'nll'. Give another loss as compute_loss_func, or train with SFTTrainer alone."
            )

    def _lstsd_parents_loss(self, model: nn.Module, inputs: Any, **kwargs: Any) -> Any:
        """The loss of a parent that has its own, by keyword, as the Trainer calls it."""
        averages = self.args.average_tokens_across_devices
        try:
            # Where it says that the count is of all processes, and the parent hands the count on to the plain Trainer,
            # that multiplies the loss by their number. But the count is this process's own.
            self.args.average_tokens_across_devices = False
            return super().compute_loss(model, copy.copy(inputs), **kwargs)
        finally:
            self.args.average_tokens_across_devices = averages

    @taught
    def compute_loss(
        self,
        model: nn.Module,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
        **kwargs: Any,
    ) -> Any:
        """The parent's loss of a micro-batch, a mean. For a training batch, `_lstsd_teach` adds the teachers to it."""
        if self.compute_loss_func is not None:  # given to the trainer, or assigned to it since
            self.compute_loss_func = count_own_items(self.compute_loss_func, self._lstsd_shifts_labels)
        if self._lstsd_has_parents_loss():
            return self._lstsd_parents_loss(
                model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch, **kwargs
            )
        if not model.training and self._lstsd_is_language_model():  # the plain Trainer's evaluation, with its count
            return super().compute_loss(model, copy.copy(inputs), return_outputs, num_items_in_batch, **kwargs)
        if not model.training or not isinstance(self._lstsd_head, Vocabulary):
            # No count of items: given one, the plain Trainer multiplies the loss by the number of processes. And a
            # copy, because it may pop the labels, and the caller may compute another loss of the same batch.
            return super().compute_loss(model, copy.copy(inputs), return_outputs=return_outputs, **kwargs)
        self._lstsd_refuse_loss_type()
        # Language models divide a sum by the plain Trainer's count. Without a count they take a mean, which differs.
        # This is the plain Trainer's method, because TRL's SFTTrainer makes no logits with gradient.
        loss, outputs = Trainer.compute_loss(
            cast(Trainer, self), model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch
        )
        is_multiplied = self.args.average_tokens_across_devices and (
            self.model_accepts_loss_kwargs or self.compute_loss_func is not None
        )
        if self.accelerator.num_processes > 1 and is_multiplied:
            loss = loss / self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss
