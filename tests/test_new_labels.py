"""Labels that are corrected in the middle of a run: refused, or accepted on request and noted in the store."""

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import xxhash

from lstsd_hf import LogitsStore, LSTSDTrainer, StoreMismatchError, add_sample_ids, cli, write_report
from lstsd_hf.method.statistics import MARGIN
from toys import Preempted, StopAfter, config, logged, rows, tiny_bert, weights

STEPS = 3  # per epoch: 20 rows in batches of 8
CUT = 8  # in the middle of epoch 2


def run(folder: Path, data: datasets.Dataset, head: str = "classes", **changes: Any) -> LSTSDTrainer:
    resume = changes.pop("resume", None)
    saving = {"num_train_epochs": 4, "save_strategy": "steps", "save_steps": 4, "learning_rate": 0.02}
    trainer = LSTSDTrainer(tiny_bert(head), config(folder, **saving | changes), train_dataset=data)
    if resume is None:
        trainer.add_callback(StopAfter(CUT))
        with pytest.raises(Preempted):
            trainer.train()
    else:
        trainer.train(resume_from_checkpoint=resume)
    return trainer


def corrected(data: datasets.Dataset, *sample_ids: int) -> datasets.Dataset:
    """The same rows with other labels for some samples."""
    labels = [(label + 1) % 3 if i in sample_ids else label for i, label in zip(data["sample_id"], data["label"])]  # noqa: B905
    return data.remove_columns("label").add_column("label", labels)


@pytest.fixture(scope="module")
def data() -> datasets.Dataset:
    return add_sample_ids(rows(20))


def test_new_labels_are_refused_with_their_number_and_a_way(tmp_path, data):
    run(tmp_path, data)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    message = (
        r"labels .* are not those that the store .* \(2 of 20 differ, first for sample ids \[3, 11\]\): expected "
        r"fingerprint .* accept_new_labels=True .* Or start anew, without resume_from_checkpoint"
    )
    with pytest.raises(StoreMismatchError, match=message):
        run(tmp_path, corrected(data, 3, 11), resume=True)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("retention", ["needed", "all"])
def test_new_labels_are_learnt_from_and_noted(tmp_path, data, retention):
    """Follows the advice of the message: epochs that were recorded before stay, and statistics are computed again."""
    old = run(tmp_path, data, logits_retention=retention)
    new = corrected(data, 3, 11)
    first = LogitsStore.open(tmp_path / "_logits")
    before, kept = first.fingerprint, {e: first.epoch_path(e).read_bytes() for e in first.sealed_epochs}
    assert first.read_statistic("margin") is not None
    trainer = run(tmp_path, new, resume=True, accept_new_labels=True, logits_retention=retention)
    assert not torch.equal(weights(trainer.model), weights(old.model))
    assert logged(trainer, "long_term_loss")[-1] > 0  # the old predictions still teach

    store = LogitsStore.open(tmp_path / "_logits")
    store.verify()
    assert "2 from epoch 2 on" in cli.info(store)
    assert store.label_changes == [{"epoch": 2, "step": CUT, "samples": 2, "before": before}]
    assert store.fingerprint != before
    np.testing.assert_array_equal(store.read_labels(), new["label"][:])
    for epoch in set(store.sealed_epochs) & set(kept):
        assert store.epoch_path(epoch).read_bytes() == kept[epoch]
    assert (set(kept) <= set(store.sealed_epochs)) == (retention == "all")

    # Computed with the new labels, over the epochs that the store still had at the resume, and those after.
    last, margin = store.read_statistic("margin")
    assert last == 3
    assert set(margin[:, 1]) == ({4.0} if retention == "all" else {3.0})
    if retention == "all":
        expected = None
        for epoch in range(4):
            expected = MARGIN.fold(expected, store.epoch_rows(epoch), store.read_labels())
        np.testing.assert_array_equal(margin, expected)


def test_a_run_with_new_labels_is_resumed_like_any_other(tmp_path, data):
    run(tmp_path, data)
    new = corrected(data, 0)
    whole = run(tmp_path, new, resume=True, accept_new_labels=True)
    assert LogitsStore.open(tmp_path / "checkpoint-12" / "_logits").label_changes  # checkpoints note it as well
    again = run(tmp_path, new, resume=str(tmp_path / "checkpoint-12"))  # without accept_new_labels
    assert torch.equal(weights(again.model), weights(whole.model))
    assert len(LogitsStore.open(tmp_path / "_logits").label_changes) == 1
    with pytest.raises(StoreMismatchError, match="1 of 20 differ"):
        run(tmp_path, data, resume=True)  # the old labels are refused now


def test_starting_anew_with_new_labels(tmp_path, data):
    """Follows the other advice of the message."""
    run(tmp_path, data)
    new = corrected(data, 3)
    LSTSDTrainer(tiny_bert(), config(tmp_path), train_dataset=new).train()
    store = LogitsStore.open(tmp_path / "_logits")
    assert store.label_changes == []
    np.testing.assert_array_equal(store.read_labels(), new["label"][:])
    assert LogitsStore.open(tmp_path / "_logits-1").sealed_epochs == [0, 1]


def test_the_report_is_about_the_new_labels(tmp_path, data):
    run(tmp_path, data)
    run(tmp_path, corrected(data, 3), resume=True, accept_new_labels=True)
    page = write_report(tmp_path)
    assert np.load(page.parent / "labels.npy").tolist() == corrected(data, 3)["label"][:]


@pytest.mark.parametrize("change", ["input", "input and label", "fewer rows"])
def test_the_word_is_for_labels_only(tmp_path, data, change):
    run(tmp_path, data)
    other = data.select(range(1, 20)) if change == "fewer rows" else data
    if change.startswith("input"):
        other = data.map(lambda row: {"input_ids": row["input_ids"][::-1]})
    if change.endswith("label"):
        other = corrected(other, 4)
    with pytest.raises(StoreMismatchError, match=r"belongs to another training set.*expected fingerprint"):
        run(tmp_path, other, resume=True, accept_new_labels=True)


def test_scores_are_corrected_as_well(tmp_path):
    data = add_sample_ids(rows(20, "regression"))
    run(tmp_path, data, "regression")
    new = data.map(lambda row: {"label": row["label"] + (row["sample_id"] == 7)})
    with pytest.raises(StoreMismatchError, match=r"1 of 20 differ, first for sample ids \[7\]"):
        run(tmp_path, new, "regression", resume=True)
    run(tmp_path, new, "regression", resume=True, accept_new_labels=True)
    (change,) = LogitsStore.open(tmp_path / "_logits").label_changes
    assert change["samples"] == 1


def as_before(store: Path) -> None:
    """Gives a store the older kind of fingerprint: one hash, of labels and inputs together."""
    file = store / "store.json"
    manifest = json.loads(file.read_text())
    del manifest["checksum"]
    manifest["fingerprint"], _, rest = manifest["fingerprint"].partition(", inputs")
    assert rest
    checksum = xxhash.xxh3_128_hexdigest(json.dumps(manifest, sort_keys=True).encode())
    file.write_text(json.dumps(manifest | {"checksum": checksum}))


def test_a_store_with_one_hash_goes_on_with_equal_rows(tmp_path, data):
    whole = run(tmp_path / "whole", data)
    whole = run(tmp_path / "whole", data, resume=True)
    run(tmp_path / "old", data)
    as_before(tmp_path / "old" / "checkpoint-8" / "_logits")
    resumed = run(tmp_path / "old", data, resume=True)
    assert torch.equal(weights(resumed.model), weights(whole.model))
    with pytest.raises(StoreMismatchError, match="expected fingerprint"):
        run(
            tmp_path / "old", corrected(data, 1), resume=str(tmp_path / "old" / "checkpoint-8"), accept_new_labels=True
        )
