"""Short runs of trainers that users write, and the check that their samples were taught."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from transformers import Trainer

from lstsd_hf import LogitsStore
from toys import config, rows, tiny_bert

OFF = {"long_term_weight": 0.0, "short_term_weight": 0.0}
# Both teachers teach from epoch 1 on, with equal weight.
SHORT = {"num_train_epochs": 3, "mini_generation_epochs": 1, "teacher_trust": "constant", "learning_rate": 0.02}


def run(
    trainer_class: type[Trainer],
    folder: Path,
    data: Any = None,
    model: Any = None,
    settings: dict[str, Any] | None = None,
    resume: Any = None,
    **options: Any,
) -> Any:
    """Trains a fresh model for three epochs; `settings` are changes of the config, `options` the trainer's own."""
    trainer = trainer_class(
        tiny_bert() if model is None else model,
        config(folder, **SHORT | (settings or {})),
        train_dataset=rows(24) if data is None else data,
        **options,
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def assert_taught(trainer: Any) -> None:
    """Asserts that all samples are recorded, have both teachers at the end, and that the loss weighs these in."""
    store = LogitsStore.open(Path(trainer.args.output_dir, "_logits"))
    assert store.sealed_epochs == [0, 1, 2]
    assert np.isfinite(store.read(2, range(store.num_samples))).all()
    last = trainer.state.log_history[-2]  # the last entry is the summary of the run
    assert last["long_term_coverage"] == last["short_term_coverage"] == 1.0
    assert last["long_term_loss"] > 0
    weight = trainer.settings.long_term_weight
    parts = weight * (last["long_term_loss"] + last["short_term_loss"])
    assert last["loss"] == pytest.approx((1 - 2 * weight) * last["base_loss"] + parts, rel=1e-4)


def class_weights(base: type) -> type:
    """The example in the documentation of Trainer."""

    class WeightedTrainer(base):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            labels = inputs.get("labels")
            outputs = model(**inputs)
            logits = outputs.get("logits")
            loss_fct = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0], device=model.device))
            loss = loss_fct(logits.view(-1, self.model.config.num_labels), labels.view(-1))
            return (loss, outputs) if return_outputs else loss

    return WeightedTrainer


class Scores(nn.Module):
    """One score for each sample, of shape (B,), and no config that says so."""

    def __init__(self) -> None:
        super().__init__()
        self.bert = tiny_bert("regression", dropout=0.0)

    def forward(self, input_ids, attention_mask, labels=None):
        scores = self.bert(input_ids=input_ids, attention_mask=attention_mask).logits.squeeze(-1)
        return {"loss": (scores - labels).square().mean(), "logits": scores}


class OneLogit(nn.Module):
    """One column, its own loss, no config, and its own name for the target."""

    def __init__(self, binary: bool) -> None:
        super().__init__()
        self.bert = tiny_bert("regression", dropout=0.0)
        self.binary = binary

    def forward(self, input_ids, attention_mask, target, labels=None):
        logits = self.bert(input_ids=input_ids, attention_mask=attention_mask).logits
        loss = F.binary_cross_entropy_with_logits if self.binary else F.mse_loss
        return {"loss": loss(logits[:, 0], target.float()), "logits": logits}
