"""Labels that are a row for each sample, soft or for a multi-label head: history and cleaning."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cleanlab.multilabel_classification import get_label_quality_scores
from cleanlab.multilabel_classification.rank import get_label_quality_scores_per_class
from datasets import Dataset, load_from_disk
from transformers import Trainer

from lstsd_hf import LogitsStore, PredictionRecorder, add_sample_ids, clean, read_history, write_report
from lstsd_hf.report.compare import write_comparison
from toys import config, rows, tiny_bert

NAMES = ("short", "funny", "rude")
GIVEN = [[1, 0, 0], [0, 1, 1], [0, 0, 0], [1, 1, 0], [0, 1, 0], [1, 0, 0]]
# The model contradicts the second label of sample 0 and the third of sample 1, and agrees with the rest.
PREDICTED = [[1, 1, 0], [0, 1, 0], [0, 0, 0], [1, 1, 0], [0, 1, 0], [1, 0, 0]]
SOFT = [[0.9, 0.1, 0.0], [0.2, 0.7, 0.1], [0.0, 0.3, 0.7], [0.6, 0.4, 0.0], [0.1, 0.1, 0.8], [0.0, 1.0, 0.0]]


def run_of(folder: Path, labels: Any, logits: Any, problem_type: str | None) -> Path:
    """Writes a run of two epochs with these logits, half as large in the first one; returns its folder."""
    folder.mkdir(exist_ok=True)
    store = LogitsStore.create(folder / "_logits", len(labels), (3,), "float32", "test")
    store.write_labels(np.asarray(labels, np.float32))
    for epoch in range(2):
        store.record(epoch, np.arange(len(labels)), np.asarray(logits) * (epoch + 1) / 2)
        store.seal(epoch)
    names = {"id2label": dict(enumerate(NAMES)), "problem_type": problem_type}
    (folder / "config.json").write_text(json.dumps(names))
    return folder


@pytest.fixture
def several(tmp_path: Path) -> Path:
    logits = (np.array(PREDICTED) * 2 - 1) * np.linspace(1, 3, 18).reshape(6, 3)
    return run_of(tmp_path / "several", GIVEN, logits, "multi_label_classification")


@pytest.fixture
def soft(tmp_path: Path) -> Path:
    logits = np.log(np.maximum(SOFT, 1e-3))
    logits[4] = [4, 0, 0]  # the model contradicts the label of sample 4
    return run_of(tmp_path / "soft", SOFT, logits, None)


def probabilities(run: Path, epoch: int) -> Any:
    return 1 / (1 + np.exp(-LogitsStore.open(run / "_logits").read(epoch, np.arange(6)).astype(float)))


# ---- multi-label


def test_scores_are_cleanlabs_label_by_label(several):
    history = read_history(several)
    labels = [np.flatnonzero(row).tolist() for row in GIVEN]
    epochs = [get_label_quality_scores_per_class(labels, probabilities(several, epoch)) for epoch in range(2)]
    np.testing.assert_allclose(history["noise_score_by_label"], 1 - np.mean(epochs, axis=0), atol=1e-6)
    mean = np.mean([probabilities(several, epoch) for epoch in range(2)], axis=0)
    worst = get_label_quality_scores(labels, mean, method="self_confidence", aggregator_kwargs={"method": np.min})
    np.testing.assert_allclose(history["noise_score"], 1 - worst, atol=1e-6)


def test_the_history_of_several_labels(several):
    history = read_history(several)
    assert list(history["label"]) == GIVEN
    assert list(history["suggested_label"]) == PREDICTED
    assert list(history["looks_wrong"]) == [True, True, False, False, False, False]
    assert sorted(history["noise_rank"]) == [1, 2, 3, 4, 5, 6]
    p = np.array([probabilities(several, epoch) for epoch in range(2)])
    losses = -np.log(np.where(GIVEN, p, 1 - p)).mean(axis=2)
    np.testing.assert_allclose(np.array(history["loss_by_epoch"]).T, losses, rtol=1e-5)


def data_set(labels: Any, *, ids: bool = True) -> Dataset:
    data = Dataset.from_dict({"text": [f"text {i}" for i in range(len(labels))], "labels": labels})
    return add_sample_ids(data).shuffle(seed=3) if ids else data


@pytest.mark.parametrize("ids", [True, False])
def test_rows_with_several_labels_are_dropped_or_mended(several, tmp_path, ids):
    data = data_set(GIVEN, ids=ids)
    data.save_to_disk(str(tmp_path / "data"))
    dropped = clean(several, tmp_path / "data", tmp_path / "dropped", drop=True)
    assert sorted(load_from_disk(tmp_path / "dropped")["text"]) == [f"text {i}" for i in range(2, 6)]
    assert (dropped.dropped, dropped.rows) == (2, 6)
    mended = clean(several, tmp_path / "data", tmp_path / "mended", relabel=True)
    found = load_from_disk(tmp_path / "mended")
    by_text = dict(zip(found["text"], found["labels"], strict=True))
    assert [by_text[f"text {i}"] for i in range(6)] == PREDICTED
    assert dict(mended.relabelled) == {("short", "short + funny"): 1, ("funny + rude", "funny"): 1}
    assert found.features == data.features


def test_other_labels_are_refused(several, tmp_path):
    other = data_set([[1, 1, 1], *GIVEN[1:]])
    other.save_to_disk(str(tmp_path / "other"))
    refused = r"1 of 6 labels in 'labels' .* expected \[1\.0, 0\.0, 0\.0\], found"
    with pytest.raises(ValueError, match=refused):
        clean(several, tmp_path / "other", tmp_path / "clean", drop=True)
    with pytest.raises(ValueError, match=refused):
        write_report(several, other)
    with pytest.raises(ValueError, match="multi-label head: expected one label for each sample"):
        write_comparison(several, several)


# ---- soft labels


def test_of_soft_labels_the_most_probable_class_counts(soft, tmp_path):
    history = read_history(soft)
    assert list(history["label"]) == [0, 1, 2, 0, 2, 1]
    assert list(history["looks_wrong"]) == [False, False, False, False, True, False]
    assert history["suggested_label"][4] == 0
    page = write_report(soft, data_set(SOFT), "text").read_text(encoding="utf-8")
    assert "1 of 6 labels looks wrong" in page
    data_set(SOFT).save_to_disk(str(tmp_path / "data"))
    clean(soft, tmp_path / "data", tmp_path / "clean", drop=True)
    assert sorted(load_from_disk(tmp_path / "clean")["text"]) == [f"text {i}" for i in (0, 1, 2, 3, 5)]
    with pytest.raises(ValueError, match="soft labels, which are probabilities: expected classes to relabel"):
        clean(soft, tmp_path / "data", tmp_path / "mended", relabel=True)


def test_several_scores_for_each_sample_are_refused(tmp_path):
    run = run_of(tmp_path / "run", np.array(SOFT) * 3, SOFT, "regression")
    with pytest.raises(ValueError, match="neither 0 or 1 for each class, nor probabilities that add up to 1"):
        read_history(run)


# ---- real runs


def test_real_runs_of_both_kinds(tmp_path):
    trainer_class = PredictionRecorder(Trainer)
    data = add_sample_ids(rows(20, "multi_label"))
    trainer = trainer_class(tiny_bert("multi_label"), config(tmp_path / "a", num_train_epochs=3), train_dataset=data)
    trainer.train()
    trainer.save_model()
    history = read_history(tmp_path / "a")
    assert list(history["label"]) == [list(map(int, row)) for row in data["label"]]
    data = add_sample_ids(rows(20))
    soft = [(np.eye(3)[label] * 0.8 + 0.2 / 3).tolist() for label in data["label"]]
    args = config(tmp_path / "b", num_train_epochs=3, problem_type="single_label_classification")

    def loss(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
        return -(labels * outputs.logits.log_softmax(dim=-1)).sum(dim=-1).mean()

    data = data.remove_columns("label").add_column("label", soft)
    trainer_class(tiny_bert(), args, train_dataset=data, compute_loss_func=loss).train()
    assert list(read_history(tmp_path / "b")["label"]) == rows(20)["label"]
    write_report(tmp_path / "b")
