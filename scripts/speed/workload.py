"""What the speed benchmark trains: BERTs with random weights on rows of random tokens.

All runs resume at epoch 3 from a checkpoint that is made here. So both teachers are active from the first step on,
with predictions of two different epochs.
"""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import logging

from lstsd_hf import LogitsStore, LSTSDConfig
from lstsd_hf.training.training_set import TrainingSet, inspect_training_set

from .many_rows import LABEL_NAMES, Kind
from .measure import MemoryCallback
from .rivals import TRAINERS

SIZES: dict[str, dict[str, int]] = {
    "BERT-base": {"num_hidden_layers": 12, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072},
    "MiniLM-L6": {"num_hidden_layers": 6, "hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536},
    "two-layer": {"num_hidden_layers": 2, "hidden_size": 128, "num_attention_heads": 2, "intermediate_size": 512},
}
EPOCH = 3
TEACHERS = {"long_term": 1, "short_term": 2}  # in epoch 3, with mini-generations of 2 epochs
SEED = 0
_ROWS_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Setting:
    """What one comparison trains.

    Attributes:
        folder: Where checkpoints and outputs go.
        size: A key of `SIZES`.
        batch: The number of rows in a batch, per process.
        classes: The number of the model's outputs.
        samples: The number of rows in the training set.
        steps: The number of steps to train for; at most one epoch.
        tokens: The number of tokens in a row.
        workers: The number of data loader workers.
        by_index: Whether a torch data set makes each row on demand and stores none; else the rows are in a
            `datasets.Dataset`.
        processes: The number of processes that train together.
        kind: The kind of samples if each has many rows of logits; None: each has one.
    """

    folder: Path
    size: str = "two-layer"
    batch: int = 8
    classes: int = 2
    samples: int = 800
    steps: int = 100
    tokens: int = 64
    workers: int = 0
    by_index: bool = False
    processes: int = 1
    kind: Kind | None = None

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.samples // (self.batch * self.processes))

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint"


class RowsByIndex(torch.utils.data.Dataset[dict[str, Any]]):
    """Rows that take no memory, however many there are."""

    def __init__(self, count: int, tokens: int, classes: int) -> None:
        self._count, self._classes = count, classes
        self._tokens = torch.randint(1000, (tokens,), generator=torch.Generator().manual_seed(SEED))
        self._mask = torch.ones(tokens, dtype=torch.int64)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input_ids": self._tokens, "attention_mask": self._mask, "labels": index % self._classes}


def training_set(setting: Setting) -> Any:
    """The rows, all of the same length. A `datasets.Dataset` of them has a column of sample ids."""
    if setting.by_index:
        return RowsByIndex(setting.samples, setting.tokens, setting.classes)
    rng = np.random.default_rng(SEED)
    shape = (setting.samples, setting.tokens)
    tokens = rng.integers(1000, 30_000, shape)
    columns = {
        "input_ids": tokens.tolist(),
        "attention_mask": np.ones(shape, int).tolist(),
        "sample_id": list(range(setting.samples)),
    }
    if setting.kind is not None:
        return datasets.Dataset.from_dict(columns | setting.kind.columns(rng, tokens))
    columns["label"] = rng.integers(0, setting.classes, setting.samples).tolist()
    return datasets.Dataset.from_dict(columns)


def hush() -> None:
    """Turns off progress bars, and warnings about what is intended here."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def new_model(setting: Setting) -> Any:
    set_seed(SEED)
    if setting.kind is not None:
        return setting.kind.model(SIZES[setting.size])
    return BertForSequenceClassification(BertConfig(num_labels=setting.classes, **SIZES[setting.size]))


def make_checkpoint(setting: Setting) -> None:
    """Makes the checkpoint that a run leaves after epoch 2: weights, the trainer's state, two sealed epochs."""
    shutil.rmtree(setting.folder, ignore_errors=True)
    label_names = () if setting.kind is None else LABEL_NAMES.get(setting.kind.name, ())
    rows = inspect_training_set(training_set(setting), "sample_id", None, None, label_names)
    if setting.kind is not None:
        made = setting.kind.new_store(setting.folder / "made", rows.num_samples, rows.fingerprint)
        setting.kind.record_past(made, list(TEACHERS.values()), setting.samples, setting.tokens)
    else:
        made = _one_row_each(setting, rows)
    new_model(setting).save_pretrained(setting.checkpoint)
    made.copy(setting.checkpoint / "_logits", {"steps_per_epoch": setting.steps_per_epoch})
    step = EPOCH * setting.steps_per_epoch
    state = TrainerState(epoch=float(EPOCH), global_step=step, train_batch_size=setting.batch)
    state.save_to_json(str(setting.checkpoint / TRAINER_STATE_NAME))


def _one_row_each(setting: Setting, rows: TrainingSet) -> LogitsStore:
    """A store of random predictions for the epochs of both teachers."""
    row_shape = (setting.classes,)
    made = LogitsStore.create(setting.folder / "made", rows.num_samples, row_shape, "float16", rows.fingerprint)
    rng = np.random.default_rng(SEED)
    at_once = max(1, _ROWS_AT_ONCE // setting.classes)
    for epoch in TEACHERS.values():
        logits = rng.standard_normal((at_once, *row_shape), np.float32)
        for start in range(0, setting.samples, at_once):
            ids = np.arange(start, min(start + at_once, setting.samples))
            made.record(epoch, ids, logits[: len(ids)], step=start)
        made.seal(epoch)
    return made


def train(setting: Setting, name: str, callback: TrainerCallback, shared: "Shared | None" = None) -> None:
    """Trains from `EPOCH` on: with the plain Trainer if the name starts with "plain", else with `TRAINERS[name]`."""
    trainer_class: type[Trainer] = Trainer if name.startswith("plain") else TRAINERS[name]
    arguments_class: type[TrainingArguments] = LSTSDConfig if name == "lstsd" else TrainingArguments
    cuda = torch.cuda.is_available()
    changes = {"logits_top_k": setting.kind.k} if name == "lstsd" and setting.kind and setting.kind.k else {}
    arguments = arguments_class(
        output_dir=str(setting.folder / name),
        max_steps=EPOCH * setting.steps_per_epoch + setting.steps,
        per_device_train_batch_size=setting.batch,
        dataloader_num_workers=setting.workers,
        bf16=setting.size != "two-layer",
        use_cpu=not cuda,
        remove_unused_columns=name in ("lstsd", "plain", "plain again"),
        ddp_find_unused_parameters=False,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        seed=SEED,
        **changes,
    )
    rows = training_set(setting)
    if name.startswith("plain") and isinstance(rows, datasets.Dataset):
        rows = rows.remove_columns("sample_id")
    model, optimizer = (new_model(setting), None) if shared is None else (shared.model, shared.optimizer(arguments))
    trainer = trainer_class(model, arguments, train_dataset=rows, callbacks=[callback], optimizers=(optimizer, None))
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=str(setting.checkpoint))


def peak_memory(setting: Setting, name: str) -> dict[str, float]:
    """The peak memory of a training in MB; see `MemoryCallback`. Run it in a fresh process."""
    hush()
    shutil.rmtree(setting.folder / name, ignore_errors=True)  # left by an earlier process
    callback = MemoryCallback()
    train(setting, name, callback)
    return callback.megabytes()


class Shared:
    """One model and one optimizer for trainings that take turns.

    When each had its own, one of two equal trainings was a steady 1 % slower: where the weights lie in memory matters.
    """

    def __init__(self, setting: Setting) -> None:
        self.model = new_model(setting)
        self._optimizer: torch.optim.Optimizer | None = None

    def optimizer(self, arguments: TrainingArguments) -> torch.optim.Optimizer:
        """The Trainer's default optimizer."""
        if self._optimizer is None:
            if torch.cuda.is_available():
                self.model.cuda()
            optimizer_class, settings = Trainer.get_optimizer_cls_and_kwargs(arguments)
            self._optimizer = optimizer_class(self.model.parameters(), **settings)
        return self._optimizer


def trainings(
    setting: Setting, names: tuple[str, ...], together: bool = True
) -> Mapping[str, Callable[[TrainerCallback], None]]:
    """Trainings for `take_turns`; `together`: with one shared model, which DistributedDataParallel does not allow."""
    shared = Shared(setting) if together else None
    return {name: lambda callback, name=name: train(setting, name, callback, shared) for name in names}
