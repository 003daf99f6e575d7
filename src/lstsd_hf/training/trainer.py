"""`LSTSDTrainer`: a drop-in replacement for `transformers.Trainer`."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

from .mixin import LSTSDMixin


class LSTSDTrainer(LSTSDMixin, Trainer):
    """`transformers.Trainer` with Long Short-Term Sample Distillation (Jiang et al., AAAI 2020).

    Takes the arguments of `Trainer`. `args` may be an `LSTSDConfig`, or any other `TrainingArguments`, for which the
    method's defaults apply. A sample's two past predictions are its teachers. `LSTSDMixin` does the work; see
    `lstsd_hf.method.loss` for the loss.
    """

    def __init__(
        self,
        model: PreTrainedModel | torch.nn.Module | None = None,
        args: TrainingArguments | None = None,
        data_collator: Callable[[list[Any]], dict[str, Any]] | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        model_init: Callable[..., PreTrainedModel] | None = None,
        compute_loss_func: Callable[..., torch.Tensor] | None = None,
        compute_metrics: Callable[..., dict[str, float]] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, Any] = (None, None),
        optimizer_cls_and_kwargs: tuple[type[torch.optim.Optimizer], dict[str, Any]] | None = None,
        preprocess_logits_for_metrics: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        super().__init__(
            model,
            args,
            data_collator,
            train_dataset,
            eval_dataset,
            processing_class,
            model_init,
            compute_loss_func,
            compute_metrics,
            callbacks,
            optimizers,
            optimizer_cls_and_kwargs,
            preprocess_logits_for_metrics,
        )
