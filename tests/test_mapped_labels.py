"""Labels that a transform or the data collator maps: the store keeps none, and nothing is computed from them."""

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from transformers import Trainer, default_data_collator

from lstsd_hf import LogitsStore, LSTSDTrainer, PredictionRecorder, StoreError, add_sample_ids, read_history
from toys import Preempted, StopAfter, config, logged, rows, tiny_bert, weights

COUNT, CLASSES = 96, 5


class Maps:
    """A data collator that maps the labels of a batch."""

    def __init__(self, mapping: Any) -> None:
        self.mapping = mapping

    def __call__(self, features: list[Any]) -> Any:
        batch = default_data_collator(features)
        return batch | {"labels": self.mapping(batch["labels"])}


def mirrored(labels: Any) -> Any:
    return CLASSES - 1 - labels


def is_high(labels: Any) -> Any:
    return (labels > 1).long()


def joined(labels: Any) -> Any:
    """Maps the rarest class to another one, so that most batches have the labels of the data set."""
    return torch.where(labels == 4, 3, labels)


@pytest.fixture(scope="module")
def data() -> datasets.Dataset:
    """Five classes, one of which has one sample."""
    found = rows(COUNT)
    labels = [tokens[0] % 4 for tokens in found["input_ids"]]
    labels[7] = 4
    return add_sample_ids(found.remove_columns("label").add_column("label", labels))


def trainer(folder: Path, data: Any, collator: Any = None, classes: int = CLASSES, **changes: Any) -> LSTSDTrainer:
    settings = {"num_train_epochs": 6, "optim": "adamw_torch", "learning_rate": 5e-3}
    callbacks = changes.pop("callbacks", None)
    return LSTSDTrainer(
        tiny_bert(num_labels=classes),
        config(folder, **settings | changes),
        train_dataset=data,
        data_collator=collator or default_data_collator,
        callbacks=callbacks,
    )


@pytest.mark.parametrize(
    ("mapping", "classes", "told"),
    [
        (mirrored, CLASSES, "labels that batches"),
        (is_high, 2, "labels that batches"),
        (joined, 5, "1 of the 96 labels"),
    ],
)
def test_mapped_labels_are_not_kept_and_not_doubted(tmp_path, data, caplog, mapping, classes, told):
    run = trainer(tmp_path, data, Maps(mapping), classes)
    run.train()
    assert caplog.text.count("The store of this run keeps no labels") == 1
    assert told in caplog.text
    assert set(logged(run, "honest_gate") + logged(run, "honest_smoothing")) == {0.0}
    assert len(logged(run, "honest_accuracy")) == 6  # made of the batches' own labels
    store = LogitsStore.open(tmp_path / "_logits")
    store.verify()
    assert store.read_labels() is None
    assert store.read_statistic("margin") is None
    with pytest.raises(StoreError, match="labels that a transform or a data collator maps are not in the store"):
        read_history(tmp_path)


def test_a_transform_maps_as_well(tmp_path, data, caplog):
    shown = {"input_ids", "attention_mask"}
    mapped = data.with_transform(
        lambda batch: {name: batch[name] for name in shown} | {"labels": [4 - label for label in batch["label"]]}
    )
    trainer(tmp_path, mapped).train()
    assert "The store of this run keeps no labels" in caplog.text
    assert LogitsStore.open(tmp_path / "_logits").read_labels() is None


def test_trust_by_honesty_that_is_asked_for_is_refused_at_once(tmp_path, data):
    message = r"teacher_trust='honest' compares .* 8 of the 8 labels .* Map them in the data set instead, with"
    run = trainer(tmp_path / "refused", data, Maps(mirrored), teacher_trust="honest")
    run.train_dataset = data.filter(lambda row: row["label"] != 2)  # whose class stays
    with pytest.raises(ValueError, match=message):
        run.train()
    assert run.state.global_step <= 1
    # Follows the advice.
    mapped = data.map(lambda row: {"label": mirrored(row["label"])})
    trainer(tmp_path / "mapped", mapped, teacher_trust="honest").train()
    assert read_history(tmp_path / "mapped")["label"][:] == mapped["label"][:]


def test_a_resumed_run_decides_as_the_first(tmp_path, data):
    """Cut within the first epoch, before and after the one label that differs, and later."""
    saving = {"save_strategy": "steps", "save_steps": 3}
    whole = trainer(tmp_path / "whole", data, Maps(joined), **saving)
    whole.train()
    for step in (3, 9, 30):
        folder = tmp_path / str(step)
        with pytest.raises(Preempted):
            trainer(folder, data, Maps(joined), callbacks=[StopAfter(step)], **saving).train()
        resumed = trainer(folder, data, Maps(joined), **saving)
        resumed.train(resume_from_checkpoint=True)
        assert torch.equal(weights(resumed.model), weights(whole.model))
        store = LogitsStore.open(folder / "_logits")
        assert store.read_labels() is None
        for epoch in store.sealed_epochs:
            other = tmp_path / "whole" / "_logits" / f"epoch-{epoch:04d}.npy"
            assert store.epoch_path(epoch).read_bytes() == other.read_bytes()
        logs = [[e for e in run.state.log_history if "loss" in e] for run in (resumed, whole)]
        assert logs[0] == logs[1]


def test_a_recorded_run_is_that_of_the_plain_trainer(tmp_path, data):
    models = []
    for name, kind in (("recorded", PredictionRecorder(Trainer)), ("plain", Trainer)):
        arguments = config(tmp_path / name, num_train_epochs=2)
        run = kind(tiny_bert(num_labels=CLASSES), arguments, train_dataset=data, data_collator=Maps(mirrored))
        run.train()
        models.append(weights(run.model))
    assert torch.equal(*models)
    assert LogitsStore.open(tmp_path / "recorded" / "_logits").read_labels() is None


@pytest.mark.parametrize(("mapping", "keeps"), [(lambda scores: scores.bfloat16(), True), (lambda s: 5 * s, False)])
def test_scores_may_be_rounded_but_not_scaled(tmp_path, mapping, keeps):
    data = add_sample_ids(rows(32, "regression"))
    arguments = config(tmp_path, num_train_epochs=1)
    run = LSTSDTrainer(tiny_bert("regression"), arguments, train_dataset=data, data_collator=Maps(mapping))
    run.compute_loss_func = lambda outputs, labels, **kwargs: (outputs.logits[:, 0] - labels.float()).square().mean()
    run.train()
    labels = LogitsStore.open(tmp_path / "_logits").read_labels()
    assert (labels is not None) == keeps
    if keeps:
        np.testing.assert_array_equal(labels, data["label"][:])
