"""The script that test_distributed.py starts with torchrun or accelerate: leaves each variant's weights and store.

distributed_runs.py FOLDER [VARIANT]     without VARIANT: all of them, then runs that are interrupted and resumed
"""

import gc
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from accelerate import PartialState
from transformers import DataCollatorWithFlattening, Trainer, default_data_collator

import many_toys
from lstsd_hf import LSTSDMixin, LSTSDTrainer, add_sample_ids, record_predictions
from toys import Preempted, StopAfter, config, rows, tiny_bert, weights


class MapsOne:
    """A collator that changes the label of one sample, which only one of two processes sees."""

    def __call__(self, features):
        changed = [
            {**row, "label": (row["label"] + (row["input_ids"] == rows(64)[5]["input_ids"])) % 3} for row in features
        ]
        return default_data_collator(changed)


def without_each(every: int, data: Any) -> Any:
    """The rows, of which each `every`-th has no label."""
    labels = [label if at % every else -100 for at, label in enumerate(data["label"])]
    return data.remove_columns("label").add_column("label", labels)


def sum_over_count(outputs, labels, num_items_in_batch=None):
    return F.cross_entropy(outputs["logits"], labels, reduction="sum") / num_items_in_batch


def token_sum_over_count(outputs, labels, num_items_in_batch=None):
    return sum_over_count({"logits": outputs["logits"].flatten(0, 1)}, labels.flatten(), num_items_in_batch)


class Passing(Trainer):
    """Has a loss of its own, which hands the count of items on to the plain Trainer."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)


class BehindTheMixin(LSTSDMixin, Passing):
    pass


BASE = {
    "num_train_epochs": 4,
    "teacher_trust": "constant",
    "mini_generation_epochs": 1,
    "learning_rate": 0.1,
    "seed": 7,
    "eval_strategy": "epoch",
    # Divides the 32 evaluation rows on one process and on two: with a short last batch, the mean losses would differ.
    "per_device_eval_batch_size": 8,
}

# name: rows, batch over all processes, head, settings
VARIANTS = {
    "classes": (64, 32, "classes", {}),
    "regression": (64, 32, "regression", {"learning_rate": 0.02}),
    "multi_label": (64, 32, "multi_label", {}),
    "accumulated": (96, 16, "classes", {"gradient_accumulation_steps": 2}),
    "label smoothing": (64, 32, "classes", {"label_smoothing_factor": 0.1}),
    "sum over count": (64, 32, "classes", {"compute_loss_func": sum_over_count}),
    "workers": (64, 32, "classes", {"dataloader_num_workers": 1, "train_sampling_strategy": "sequential"}),
    "dispatched": (64, 32, "classes", {"accelerator_config": {"dispatch_batches": True}}),
    "padded": (42, 16, "classes", {}),
    "dropped": (42, 16, "classes", {"dataloader_drop_last": True}),
    "fewer than a batch": (3, 8, "classes", {}),
    "grouped by length": (64, 32, "classes", {"train_sampling_strategy": "group_by_length"}),
    "cut short": (64, 16, "classes", {"max_steps": 14}),
    # Only the honest past teaches: what a teacher adds that is trusted by its confidence depends on the micro-batch.
    "honest": (96, 16, "classes", {"teacher_trust": "honest", "long_term_weight": 1e-9, "short_term_weight": 1e-9}),
    "mapped labels": (64, 32, "classes", {"data_collator": MapsOne()}),
    "outside teacher": (64, 32, "classes", {"outside_teacher": "recorded"}),
    "some without a label": (64, 32, "classes", {"unlabelled": 5}),
}


# Samples of many rows. name: kind, number of samples, settings. A batch has 16 samples over all processes.
MANY = {
    "tokens": ("tokens", 32, {}),
    "tokens accumulated": ("tokens", 48, {"gradient_accumulation_steps": 2}),
    "spans": ("spans", 32, {}),
    "vocabulary accumulated": ("vocabulary", 48, {"gradient_accumulation_steps": 2}),
    "gpt2": ("gpt2", 32, {}),
    "gpt2, counts of one process": (
        "gpt2",
        32,
        {"average_tokens_across_devices": False, "gradient_accumulation_steps": 2},
    ),
    "gpt2 of a parent": ("gpt2", 32, {"trainer": BehindTheMixin}),
    "tokens of a parent": (
        "tokens",
        32,
        {"trainer": BehindTheMixin, "compute_loss_func": token_sum_over_count},
    ),
    "padding-free": ("vocabulary", 32, {"data_collator": DataCollatorWithFlattening(return_tensors="pt")}),
    "tokens padded": ("tokens", 42, {}),
    "vocabulary padded": ("vocabulary", 42, {"dataloader_num_workers": 1}),
}

FIRST_ID = 1_500_000_000_000_000_000  # of the resumable runs


def resumable(folder: Path, world: int, stop: int = 0) -> LSTSDTrainer:
    """A run with dropout, padding, ids of 19 digits and 3 steps per epoch. It is preempted at step `stop`."""
    settings = config(
        folder,
        num_train_epochs=4,
        per_device_train_batch_size=16 // world,
        save_strategy="steps",
        save_steps=1,
        learning_rate=0.02,
        seed=7,
    )
    data = rows(42).add_column("sample_id", [FIRST_ID + 5 * i for i in range(42)])
    return LSTSDTrainer(tiny_bert(), settings, train_dataset=data, callbacks=[StopAfter(stop)])


def resumable_tokens(folder: Path, world: int, stop: int = 0) -> LSTSDTrainer:
    """The same for samples of many rows. The last batch is short."""
    settings = config(
        folder, per_device_train_batch_size=16 // world, save_strategy="steps", save_steps=1, learning_rate=0.02
    )
    data = many_toys.data("tokens", 42).add_column("sample_id", [FIRST_ID + 5 * i for i in range(42)])
    return LSTSDTrainer(
        many_toys.make("tokens"),
        settings,
        train_dataset=data,
        data_collator=many_toys.Pad(),
        callbacks=[StopAfter(stop)],
    )


def train_many(folder: Path, world: int, name: str) -> None:
    kind, count, changes = MANY[name]
    changes = {"trainer": LSTSDTrainer, "data_collator": many_toys.Pad(), "compute_loss_func": None} | changes
    trainer_class = changes.pop("trainer")
    options = {name: changes.pop(name) for name in ("data_collator", "compute_loss_func")}
    settings = BASE | {"per_device_train_batch_size": 16 // world, "logits_top_k": many_toys.K, "eval_strategy": "no"}
    trainer = trainer_class(
        many_toys.make(kind),
        config(folder / name, **settings | {"num_train_epochs": 3} | changes),
        train_dataset=add_sample_ids(many_toys.data(kind, count, length=many_toys.SPAN_LENGTH.get(kind))),
        **options,
    )
    trainer.train()
    if trainer.is_world_process_zero():
        torch.save(weights(trainer.model), folder / name / "weights.pt")
        (folder / name / "log.json").write_text(json.dumps(trainer.state.log_history))
    trainer.accelerator.wait_for_everyone()


def stream_many(folder: Path) -> None:
    """A stream of tokens is refused if the main process makes the batches, which is the default; else it trains."""
    data = add_sample_ids(many_toys.data("tokens", 32).to_iterable_dataset())
    settings = BASE | {"num_samples": 32, "max_steps": 4, "per_device_train_batch_size": 8, "eval_strategy": "no"}

    def trainer(**changes: Any) -> LSTSDTrainer:
        return LSTSDTrainer(
            many_toys.make("tokens"),
            config(folder / "stream", **settings | changes),
            train_dataset=data,
            data_collator=many_toys.Pad(),
        )

    with pytest.raises(ValueError, match=r"Set accelerator_config=\{'dispatch_batches': False\}"):
        trainer().train()
    assert not (folder / "stream" / "_logits").exists()
    trainer(accelerator_config={"dispatch_batches": False}).train()  # as the message advises


def interrupt_and_resume(folder: Path, world: int, resumable: Any = resumable) -> None:
    whole = resumable(folder / "whole", world)
    whole.train()
    for stop in (4, 6):
        cut = resumable(folder / f"cut {stop}", world, stop)
        try:
            cut.train()
        except Preempted:
            pass
        else:
            raise AssertionError("the run was not preempted")
        cut.accelerator.wait_for_everyone()
        if stop == 4 and cut.is_world_process_zero():
            shutil.copytree(folder / "cut 4", folder / "for another number of processes")
        resumed = resumable(folder / f"cut {stop}", world)
        resumed.train(resume_from_checkpoint=True)
        assert torch.equal(weights(resumed.model), weights(whole.model))


def main(folder: Path, world: int, only: str | None = None) -> None:
    data, path = add_sample_ids(rows(64)), folder / "recorded"
    record_predictions(tiny_bert(seed=5), data, path, batch_size=6, dtype="float32", disable_tqdm=True)
    for name, (count, batch, head, changes) in VARIANTS.items():
        if only not in (None, name):
            continue
        changes = dict(changes)
        if "outside_teacher" in changes:
            changes["outside_teacher"] = str(folder / changes["outside_teacher"])
        options = {option: changes.pop(option, None) for option in ("compute_loss_func", "data_collator")}
        every = changes.pop("unlabelled", None)
        settings = config(folder / name, **BASE | {"per_device_train_batch_size": batch // world} | changes)
        trainer = LSTSDTrainer(
            tiny_bert(head, dropout=0.0),
            settings,
            train_dataset=add_sample_ids(rows(count, head) if every is None else without_each(every, rows(count))),
            eval_dataset=rows(32, head, seed=1),
            **options,
        )
        trainer.train()
        assert isinstance(trainer, Trainer)
        if trainer.is_world_process_zero():
            torch.save(weights(trainer.model), folder / name / "weights.pt")
            (folder / name / "log.json").write_text(json.dumps(trainer.state.log_history))
        trainer.accelerator.wait_for_everyone()
    if only is not None:
        return
    for name in MANY:
        train_many(folder, world, name)
    if world == 2:
        stream_many(folder)
        interrupt_and_resume(folder, world)
        interrupt_and_resume(folder / "many", world, resumable_tokens)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(os.environ.get("WORLD_SIZE", "1")), *sys.argv[2:])
    gc.collect()  # see lstsd_hf.glue.run.command
    PartialState().destroy_process_group()
