"""Mistakes with samples of many rows: they are reported before the first step, and nothing is lost."""

import re
from collections import namedtuple
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from lstsd_hf import LogitsStore, LSTSDTrainer, StoreError, StoreMismatchError
from many_toys import NO, VOCABULARY, K, Pad, data, make
from toys import config, logged

Usage = namedtuple("Usage", "total used free")


class StopAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            control.should_save = control.should_training_stop = True


def trainer(folder: Any, kind: str, rows: Any = None, model: Any = None, **options: Any) -> LSTSDTrainer:
    settings = config(folder, **{"logits_top_k": K, "num_train_epochs": 3} | options.pop("settings", {}))
    rows = data(kind) if rows is None else rows
    return LSTSDTrainer(model or make(kind), settings, train_dataset=rows, data_collator=Pad(), **options)


def files_in(folder: Any) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("kind", ["tokens", "vocabulary"])
def test_a_training_set_in_which_no_token_has_a_label(tmp_path, kind):
    none = data(kind).map(lambda row: {"labels": [NO] * len(row["labels"])})
    with pytest.raises(ValueError, match=r"All labels in column 'labels' of the training set are -100.*aligning"):
        trainer(tmp_path, kind, none).train()
    assert not (tmp_path / "_logits").exists()


@pytest.mark.parametrize("kind", ["tokens", "vocabulary"])
def test_a_sample_in_which_no_token_has_a_label_changes_nothing(tmp_path, kind):
    """Each sample is a micro-batch. One without labels has no rows, and the loss and the weights stay finite."""
    rows = data(kind, 12)
    rows = rows.map(lambda row, i: {"labels": [NO] * len(row["labels"]) if i in (0, 5) else row["labels"]}, True)
    settings = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4, "logging_steps": 1}
    run = trainer(tmp_path, kind, rows, settings=settings)
    run.train()
    assert np.isfinite(logged(run, "loss")).all()
    assert all(torch.isfinite(parameter).all() for parameter in run.model.parameters())
    store = LogitsStore.open(tmp_path / "_logits")
    counts = np.diff(store.epoch_parts(2)["offsets"])
    assert np.flatnonzero(counts == 0).tolist() == [0, 5]
    assert np.isfinite(store.epoch_rows(2)).all()
    assert np.array_equal(np.diff(store.read_row_labels().offsets), counts)


def cut_run(folder: Any) -> dict[str, bytes]:
    trainer(folder, "vocabulary", callbacks=[StopAt(4)]).train()
    return files_in(folder)


def test_a_vocabulary_that_grew_between_save_and_resume(tmp_path):
    before = cut_run(tmp_path)
    grown = make("vocabulary")
    grown.resize_token_embeddings(VOCABULARY + 4)
    message = r"shares of a vocabulary of 40, and the model has 44.*resize_token_embeddings"
    with pytest.raises(StoreMismatchError, match=message):
        trainer(tmp_path, "vocabulary", model=grown).train(resume_from_checkpoint=True)
    assert files_in(tmp_path) == before


def test_another_k_between_save_and_resume(tmp_path):
    before = cut_run(tmp_path)
    message = r"holds the 3 largest of each prediction: expected the 5 largest \(logits_top_k\). Set logits_top_k=3"
    with pytest.raises(StoreMismatchError, match=message):
        trainer(tmp_path, "vocabulary", settings={"logits_top_k": 5}).train(resume_from_checkpoint=True)
    assert files_in(tmp_path) == before
    trainer(tmp_path, "vocabulary", settings={"logits_top_k": 3}).train(resume_from_checkpoint=True)  # as advised


def test_a_history_that_does_not_fit_names_the_k_that_does(tmp_path, monkeypatch):
    """It is refused before the first step. The advised k fits the same disk, and k + 1 does not."""
    monkeypatch.setattr("lstsd_hf.training.forecast.shutil.disk_usage", lambda path: Usage(0, 0, 20_000))
    settings = {"logits_top_k": 30, "train_sampling_strategy": "sequential"}
    run = trainer(tmp_path, "vocabulary", settings=settings)
    with pytest.raises(StoreError, match=r"0\.02 GB|2e-05 GB are free: expected room for the whole run") as refused:
        run.train()
    assert run.state.global_step == 0
    fitting = int(re.search(r"set logits_top_k=(\d+), which fits", str(refused.value))[1])
    assert 1 <= fitting < 30
    with pytest.raises(StoreError, match=f"set logits_top_k={fitting}, which fits"):
        trainer(tmp_path, "vocabulary", settings=settings | {"logits_top_k": fitting + 1}).train()
    trainer(tmp_path, "vocabulary", settings=settings | {"logits_top_k": fitting}).train()
    taken = sum(path.stat().st_size for path in (tmp_path / "_logits").rglob("*") if path.is_file())
    assert taken < 20_000 + 8_000  # the manifest and the headers of the files are not in the forecast


def test_the_rows_of_a_sample_are_in_the_forecast(tmp_path, monkeypatch):
    """The disk has room for ten epochs with one row for each sample, but each sample has several."""
    monkeypatch.setattr("lstsd_hf.training.forecast.shutil.disk_usage", lambda path: Usage(0, 0, 24 * 10 * 4 * 4))
    with pytest.raises(StoreError, match=r"The logits store at .* will take about .*expected room for the whole run"):
        trainer(tmp_path, "tokens", data("tokens", length=30)).train()


def test_corrected_labels_of_tokens(tmp_path):
    """They are refused without accept_new_labels. With it, the store holds the labels that the run continued with."""
    rows = data("tokens")
    trainer(tmp_path, "tokens", rows, callbacks=[StopAt(4)]).train()
    new = rows.map(lambda row: {"labels": [NO if label == NO else 3 - label for label in row["labels"]]})
    with pytest.raises(StoreMismatchError, match=r"The labels of the training set are not those .* accept_new_labels"):
        trainer(tmp_path, "tokens", new).train(resume_from_checkpoint=True)
    trainer(tmp_path, "tokens", new, settings={"accept_new_labels": True}).train(resume_from_checkpoint=True)
    store = LogitsStore.open(tmp_path / "_logits")
    store.verify()
    (change,) = store.label_changes
    assert (change["epoch"], change["step"], change["samples"]) == (1, 4, None)
    assert store.read_row_labels().labels.tolist() == [label for row in new for label in row["labels"] if label != NO]
