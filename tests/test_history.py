"""The history of a run as a data set: the measures of the report's file, and every epoch beside them."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from datasets import ClassLabel
from transformers import Trainer

from lstsd_hf import LogitsStore, PredictionRecorder, StoreError, add_sample_ids, read_history, write_report
from lstsd_hf.report import run as run_module
from toys import config, rows, tiny_bert

EPOCHS = 4


def recorded(folder: Path, head: str = "classes", **changes: Any) -> Path:
    """A run on 24 of 30 rows, so that ids have gaps."""
    data = add_sample_ids(rows(30, head)).shuffle(seed=3).select(range(24))
    args = config(folder, num_train_epochs=EPOCHS, **changes)
    trainer = PredictionRecorder(Trainer)(tiny_bert(head), args, train_dataset=data)
    trainer.train()
    trainer.save_model()
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recorded(tmp_path_factory.mktemp("run"))


def test_the_history_is_that_of_the_stored_logits(run):
    history = read_history(run)
    ids, labels = np.array(history["sample_id"]), torch.tensor(history["label"][:])
    assert len(history) == 24
    assert (np.diff(ids) > 0).all()
    store = LogitsStore.open(run / "_logits")
    assert history["epochs"][0] == history["epochs"][23] == list(range(EPOCHS))
    for epoch in range(EPOCHS):
        logits = torch.from_numpy(store.read(epoch, ids)).float()
        losses = F.cross_entropy(logits, labels, reduction="none")
        assert torch.tensor(history["loss_by_epoch"][:])[:, epoch] == pytest.approx(losses, abs=1e-5)
        assert torch.equal(torch.tensor(history["prediction_by_epoch"][:])[:, epoch], logits.argmax(dim=1))
        given = logits.softmax(dim=1).gather(1, labels[:, None])[:, 0]
        assert torch.tensor(history["label_probability_by_epoch"][:])[:, epoch] == pytest.approx(given, abs=1e-5)
    means = np.array(history["label_probability_by_epoch"]).mean(axis=1)
    assert np.array(history["confidence"]) == pytest.approx(means, abs=1e-5)
    assert history["prediction"][:] == [predicted[-1] for predicted in history["prediction_by_epoch"]]


def test_the_measures_are_those_of_the_report(run):
    table = pq.read_table(write_report(run).parent / "samples.parquet")
    history = read_history(run)
    assert history.column_names[: table.num_columns] == table.column_names
    assert history.select_columns(table.column_names).to_dict() == table.to_pydict()


def test_classes_have_names(tmp_path):
    run = recorded(tmp_path)
    assert read_history(run).features["suggested_label"] == ClassLabel(names=["LABEL_0", "LABEL_1", "LABEL_2"])
    assert read_history(tmp_path, logits_dir=run / "_logits").features["label"].int2str(2) == "LABEL_2"


def test_large_logits_and_few_samples_at_a_time(tmp_path, monkeypatch):
    """Two chunks; a sample without a prediction in one epoch, one without any, and logits that overflow exp."""
    store = LogitsStore.create(tmp_path / "_logits", 4, (2,), "float32", "test")
    store.write_labels(np.array([0, 1, 1, 0]))
    for epoch, ids in enumerate(([0, 1, 2], [0, 1])):
        store.record(epoch, np.array(ids), np.array([[1e5, 0.0], [1e5, 0.0], [0.0, 0.0]])[: len(ids)])
        store.seal(epoch)
    monkeypatch.setattr(run_module, "_ROWS_AT_ONCE", 2)
    history = read_history(tmp_path)
    assert history["loss_by_epoch"][:2] == [[0.0, 0.0], [1e5, 1e5]]
    assert history["loss_by_epoch"][2] == [pytest.approx(np.log(2)), None]
    assert history["prediction_by_epoch"][:] == [[0, 0], [0, 0], [0, None], [None, None]]
    assert history["label_probability_by_epoch"][:] == [[1.0, 1.0], [0.0, 0.0], [0.5, None], [None, None]]
    assert history["suggested_label"][:] == [0, 0, 1, None]
    assert history["noise_score"][3] is None


def test_a_regression_has_errors(tmp_path):
    history = read_history(recorded(tmp_path, "regression", learning_rate=1e-3))
    store = LogitsStore.open(tmp_path / "_logits")
    predicted = np.stack([store.read(epoch, history["sample_id"])[:, 0] for epoch in range(EPOCHS)], axis=1)
    errors = np.array(history["error_by_epoch"])
    assert errors == pytest.approx(predicted - np.array(history["label"])[:, None], abs=1e-6)
    assert np.array(history["mean_absolute_error"]) == pytest.approx(np.abs(errors).mean(axis=1), abs=1e-6)
    assert "loss_by_epoch" not in history.column_names


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no such folder: expected a run's output_dir"):
        read_history(tmp_path / "nowhere")
    with pytest.raises(StoreError, match="holds no logits store: expected"):
        read_history(tmp_path)


def test_it_loads_no_torch_and_needs_no_page(run):
    code = f"""
import sys, lstsd_hf
assert len(lstsd_hf.read_history({str(run)!r})) == 24
assert not {{"torch", "transformers", "plotly", "jinja2", "itables"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
