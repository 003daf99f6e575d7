"""Samples in which no token has a label, as real data has them: an empty answer, a sentence that is cut too short."""

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    BertForTokenClassification,
    LlamaConfig,
    LlamaForCausalLM,
    default_data_collator,
    set_seed,
)

from lstsd_hf import LogitsStore, LSTSDTrainer
from toys import config, logged, rows, tiny_bert, weights

NO, VOCABULARY, BATCH = -100, 30, 4
SHAPE = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
SHAPE |= {"intermediate_size": 32, "max_position_embeddings": 16, "initializer_range": 0.2}


def make(kind: str) -> Any:
    set_seed(0)
    if kind == "tokens":
        off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        return BertForTokenClassification(BertConfig(**SHAPE, **off, num_labels=3))
    return LlamaForCausalLM(LlamaConfig(**SHAPE))


def data(unlabelled: int) -> datasets.Dataset:
    """Two batches of samples with labels, each after `unlabelled` samples without."""
    tokens = np.random.default_rng(0).integers(1, VOCABULARY, (2 * BATCH, 6))
    rows = [{"input_ids": row.tolist(), "labels": [NO, *(row[1:] % 3)]} for row in tokens]
    none = [{"input_ids": [1] * 6, "labels": [NO] * 6}] * unlabelled
    return datasets.Dataset.from_list([*none, *rows[:BATCH], *none, *rows[BATCH:]])


def train(kind: str, folder: Path, unlabelled: int, **changes: Any) -> Any:
    settings = {"num_train_epochs": 3, "mini_generation_epochs": 1, "per_device_train_batch_size": BATCH}
    settings |= {"train_sampling_strategy": "sequential", "logits_top_k": 3, "learning_rate": 0.1}
    trainer = LSTSDTrainer(
        make(kind),
        config(folder, **settings | changes),
        train_dataset=data(unlabelled),
        data_collator=default_data_collator,
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize("kind", ["tokens", "vocabulary"])
def test_a_step_without_labels_changes_nothing(tmp_path, kind):
    """The mean over no tokens is NaN, which must reach neither the weights nor the log."""
    with_them, without = (train(kind, tmp_path / str(count), count) for count in (BATCH, 0))
    assert torch.equal(weights(with_them.model), weights(without.model))
    assert np.isfinite(logged(with_them, "loss")).all()
    assert logged(with_them, "base_loss") == logged(without, "base_loss")
    counts = np.diff(LogitsStore.open(tmp_path / str(BATCH) / "_logits").epoch_parts(2)["offsets"])
    assert counts.reshape(-1, BATCH).any(axis=1).tolist() == [False, True, False, True]


@pytest.mark.parametrize("kind", ["tokens", "vocabulary"])
def test_a_micro_batch_without_labels_counts_for_nothing(tmp_path, kind):
    runs = [
        train(kind, tmp_path / str(steps), BATCH * (steps - 1), gradient_accumulation_steps=steps) for steps in (2, 1)
    ]
    torch.testing.assert_close(weights(runs[0].model), weights(runs[1].model), atol=1e-6, rtol=0)


def test_a_run_that_is_saved_after_a_step_without_labels_goes_on(tmp_path):
    whole = train("tokens", tmp_path / "whole", BATCH, logging_steps=100)
    cut = train("tokens", tmp_path / "cut", BATCH, logging_steps=100, save_strategy="steps", save_steps=1)
    cut.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-1"))
    assert torch.equal(weights(whole.model), weights(cut.model))


def unlabelled(folder, unlabelled_rows: tuple[int, ...], form: Any, **changes: Any) -> Any:
    """Trains a classifier on 16 rows, some of which have no label; batches come in the order of the rows."""
    table = rows(16)
    labels = [NO if at in unlabelled_rows else label for at, label in enumerate(table["label"])]
    settings = {"num_train_epochs": 3, "mini_generation_epochs": 1, "teacher_trust": "constant"}
    settings |= {"train_sampling_strategy": "sequential"}
    trainer = LSTSDTrainer(
        tiny_bert(dropout=0.0),
        config(folder, **settings | changes),
        train_dataset=form(table.remove_columns("label").add_column("label", labels)),
    )
    trainer.train()
    return trainer


# Micro-batches of 4 in which no row has a label, or one, or two.
@pytest.mark.parametrize("none", [(1, 6, 7, 12, 13, 14), (4, 5, 6, 7, 13)])
@pytest.mark.parametrize("label_smoothing_factor", [0.0, 0.1])
@pytest.mark.parametrize("form", [lambda table: table, list])
def test_samples_without_a_class_do_not_count_in_the_mean_of_a_step(tmp_path, none, form, label_smoothing_factor):
    big, small = (
        unlabelled(
            tmp_path / str(size),
            none,
            form,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=16 // size,
            label_smoothing_factor=label_smoothing_factor,
        )
        for size in (16, 4)
    )
    torch.testing.assert_close(weights(small.model), weights(big.model), atol=1e-6, rtol=0)
    assert logged(small, "loss") == pytest.approx(logged(big, "loss"), abs=1e-5)
    assert logged(small, "base_loss") == pytest.approx(logged(big, "base_loss"), abs=1e-5)
