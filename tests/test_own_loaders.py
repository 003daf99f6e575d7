"""Loaders, data sets and samplers that users of Trainer write, and what they get with LSTSDTrainer."""

from typing import Any

import datasets
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Sampler, SequentialSampler, WeightedRandomSampler
from transformers import Trainer, TrainerCallback, default_data_collator

from lstsd_hf import LSTSDMixin, LSTSDTrainer, add_sample_ids
from lstsd_hf.training.sample_ids import SampleIdError
from own_trainers import OFF, SHORT, Scores, assert_taught, run
from toys import config, logged, rows, tiny_bert, weights


def test_a_loader_that_does_not_come_from_super_is_an_error(tmp_path):
    class Own(LSTSDTrainer):
        def get_train_dataloader(self):
            return DataLoader(self.train_dataset.with_format("torch"), batch_size=8)

    with pytest.raises(ValueError, match=r"Own\.get_train_dataloader never reached LSTSDMixin's.*Call it there"):
        run(Own, tmp_path)


def test_a_loader_that_comes_from_super_works(tmp_path):
    class Limited(LSTSDTrainer):
        def get_train_dataloader(self):
            loader = super().get_train_dataloader()
            assert len(loader) == 3
            self.seen = loader
            return loader

    trainer = run(Limited, tmp_path)
    assert_taught(trainer)


def test_the_loader_of_a_trainer_behind_the_mixin_works(tmp_path):
    """It insists on a datasets.Dataset and reads the collator's attributes, as sentence-transformers does."""

    class Collator:
        valid_label_columns = ("score",)

        def __call__(self, features):
            features = [{"labels" if key == "score" else key: feature[key] for key in feature} for feature in features]
            return default_data_collator(features)

    class Own(Trainer):
        def get_train_dataloader(self):
            assert isinstance(self.train_dataset, datasets.Dataset)
            assert self.data_collator.valid_label_columns == ("score",)
            sampler = SequentialSampler(self.train_dataset)
            loader = DataLoader(self.train_dataset, batch_size=8, sampler=sampler, collate_fn=self.data_collator)
            return self.accelerator.prepare(loader)

    data = rows(24).rename_column("label", "score")
    for name, numbered in (("none", data), ("ids", add_sample_ids(data))):
        trainer = run(type("Mixed", (LSTSDMixin, Own), {}), tmp_path / name, numbered, data_collator=Collator())
        assert_taught(trainer)
        np.testing.assert_array_equal(np.load(tmp_path / name / "_logits" / "labels.npy"), data["score"][:])


def test_several_training_sets_by_name_are_refused(tmp_path):
    data = datasets.DatasetDict(a=rows(8), b=rows(8))
    with pytest.raises(ValueError, match=r"a dictionary of \['a', 'b'\].*concatenate_datasets"):
        run(LSTSDTrainer, tmp_path, data)


@pytest.mark.parametrize("head", ["classes", "regression"])
def test_a_second_loader_in_mid_training_changes_nothing(tmp_path, head):
    class Looks(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            batch = next(iter(trainer.get_train_dataloader()))
            found.append({key for key in batch if key.endswith("_logits")})

    settings = {"train_sampling_strategy": "sequential"}
    found: list[set[str]] = []
    ends = []
    for callbacks in ([], [Looks()]):
        model = tiny_bert(dropout=0.0) if head == "classes" else Scores()
        arguments = config(tmp_path / str(len(callbacks)), **SHORT | settings)
        trainer = LSTSDTrainer(model, arguments, train_dataset=rows(16, head), callbacks=callbacks)
        trainer.train()
        assert_taught(trainer)
        ends.append(trainer)
    assert torch.equal(*(weights(trainer.model) for trainer in ends))
    assert logged(ends[0], "loss") == logged(ends[1], "loss")
    assert [len(keys) for keys in found] == [0] * 2 + [2] * 4


def test_a_training_batch_may_be_evaluated_by_the_users_code(tmp_path):
    class Strict(nn.Module):
        """Takes the arguments that it knows and no others."""

        def __init__(self):
            super().__init__()
            self.bert = tiny_bert()

        def forward(self, input_ids, attention_mask, labels):
            return self.bert(input_ids=input_ids, attention_mask=attention_mask, labels=labels)

    trainer = run(LSTSDTrainer, tmp_path, model=Strict())
    batch = next(iter(trainer.get_train_dataloader()))
    keys = set(batch)
    trainer.model.eval()
    assert torch.isfinite(trainer.compute_loss(trainer.model, batch))
    assert set(batch) == keys


class Growing(torch.utils.data.Dataset):
    """A data set with attributes that the loader, samplers and callbacks use."""

    def __init__(self, count: int = 24) -> None:
        self.items = [{key: row[key] for key in ("input_ids", "attention_mask")} for row in rows(count)]
        self.labels = rows(count)["label"][:]
        self.ids = [f"row-{i}" for i in range(count)]
        self.epochs: list[int] = []
        self.difficulty = 0

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.items[index], "labels": self.labels[index]}


def test_hooks_reach_the_users_data_set(tmp_path):
    class Curriculum(TrainerCallback):
        def on_epoch_begin(self, args, state, control, train_dataloader, **kwargs):
            data = train_dataloader.dataset
            data.difficulty += 1
            assert data.ids[3] == "row-3"
            assert data[5]["labels"] == growing.labels[5]
            assert len(data) == 24

    calls = []
    for trainer_class in (Trainer, LSTSDTrainer):
        growing = Growing()
        trainer = run(trainer_class, tmp_path / trainer_class.__name__, growing, callbacks=[Curriculum()])
        assert growing.difficulty == 3
        calls.append(growing.epochs)
    assert_taught(trainer)
    assert calls[0] == calls[1]
    assert {0, 1, 2} == set(calls[0])


class Endless:
    """Its rows can be counted by their iterator alone: each index has a row."""

    rows = 24

    def __len__(self):
        return self.rows

    def __getitem__(self, index):
        return ROWS[index % len(ROWS)]

    def __iter__(self):
        return (self[index] for index in range(self.rows))


ROWS = [dict(row) for row in rows(24)]


def test_a_callback_may_iterate_the_users_data_set(tmp_path):
    class Count(TrainerCallback):
        def on_train_begin(self, args, state, control, train_dataloader, **kwargs):
            self.found = sum(1 for _, _ in zip(train_dataloader.dataset, range(100), strict=False))

    count = Count()
    assert_taught(run(LSTSDTrainer, tmp_path, Endless(), callbacks=[count]))
    assert count.found == 24


def test_a_data_set_that_grows_in_a_run_is_refused(tmp_path):
    class Grow(TrainerCallback):
        def on_epoch_end(self, args, state, control, train_dataloader, **kwargs):
            train_dataloader.dataset.rows = 48

    with pytest.raises(SampleIdError, match=r"drew index \d+ from a training set that had 24 rows when the run began"):
        run(LSTSDTrainer, tmp_path, Endless(), callbacks=[Grow()])


class Balanced(Sampler[int]):
    """Orders positions by the labels that it is given."""

    def __init__(self, labels: Any) -> None:
        self.order = np.argsort(np.asarray(labels), kind="stable").tolist()

    def __iter__(self):
        return iter(self.order)

    def __len__(self):
        return len(self.order)


def by_column(self, train_dataset=None):
    return Balanced(train_dataset["label"])


def by_attribute(self, train_dataset=None):
    return Balanced(train_dataset.labels)


def by_rows_of_self(self, train_dataset=None):
    return Balanced([row.get("label", row.get("labels")) for row in self.train_dataset])


def by_another_column_of_self(self, train_dataset=None):
    generator = torch.Generator().manual_seed(0)
    importance = torch.tensor(self.train_dataset["importance"][:])  # which the model does not take
    return WeightedRandomSampler(importance, len(self.train_dataset), replacement=False, generator=generator)


@pytest.mark.parametrize("ids", [False, True])
@pytest.mark.parametrize("sampler", [by_column, by_attribute, by_rows_of_self, by_another_column_of_self])
def test_samplers_of_the_users_see_the_users_data_set(tmp_path, sampler, ids):
    data: Any = rows(24).add_column("importance", np.linspace(0.1, 1, 24))
    if sampler is by_attribute:
        data = Growing()
    elif ids:
        data = add_sample_ids(data)
    runs = [
        run(type("Own", (base,), {"_get_train_sampler": sampler}), tmp_path / base.__name__, data, settings=OFF)
        for base in (Trainer, LSTSDTrainer)
    ]
    assert torch.equal(*(weights(trainer.model) for trainer in runs))
