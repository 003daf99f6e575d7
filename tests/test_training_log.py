"""The log in the store: whole whatever checkpoints remain, checked, bounded, and drawn by the report."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from test_resume import run

from lstsd_hf import LogitsStore, LSTSDTrainer, StoreCorruptionError, add_sample_ids, write_report
from lstsd_hf.report.history import open_run
from lstsd_hf.store import training_log
from lstsd_hf.store.files import checksum_of
from lstsd_hf.store.manifest import read_manifest, write_manifest
from toys import config, logged, rows, tiny_bert


@pytest.fixture
def store(tmp_path: Path) -> LogitsStore:
    store = LogitsStore.create(tmp_path / "_logits", 4, (3,), "float32", "test")
    store.record(0, np.arange(4), np.eye(4, 3))
    store.seal(0)
    return store


def test_a_log_comes_back_as_it_was(store):
    assert store.read_log() is None
    store.write_log([{"loss": 0.5, "epoch": 1.0, "step": 3}, {"loss": math.nan, "told": "no number", "is": True}])
    first, second = store.read_log()
    assert first == {"loss": 0.5, "epoch": 1.0, "step": 3}
    assert list(second) == ["loss"]
    assert math.isnan(second["loss"])
    store.write_log([{"loss": np.float64(0.5), "step": 3}, {"loss": math.inf}, {"eval_loss": 2}])
    assert store.read_log()[0] == {"loss": 0.5, "step": 3}
    assert [file.name for file in store.path.glob("log-*")] == ["log-000003.json"]
    assert store.read_log()[2] == {"eval_loss": 2}
    assert store.copy(store.path.with_name("copy"), {}).read_log()[2] == {"eval_loss": 2}
    store.verify()


def test_a_long_log_is_thinned_out_and_keeps_every_kind_of_entry(store, monkeypatch):
    entries = [{"loss": 1.0, "step": step} for step in range(50_000)]
    entries[::1000] = [{"eval_loss": 2.0, "step": step} for step in range(0, 50_000, 1000)]
    store.write_log(entries)
    kept = store.read_log()
    assert 4000 < len(kept) <= 10_000
    assert sum("eval_loss" in entry for entry in kept) == 50
    assert [entry["step"] for entry in kept] == sorted(entry["step"] for entry in kept)
    monkeypatch.setattr(training_log, "_LARGEST_LOG", 10_000)
    store.write_log(entries[1:])
    assert store.log_path(len(entries) - 1).stat().st_size <= 10_000
    assert len(store.read_log()) > 100


@pytest.mark.parametrize(
    "content", ["", "{}", "[1]", '[{"loss": "a"}]', '[{"loss": true}]', '[{"\\u0007": 1}]', "[" * 100_000, "\xff"]
)
def test_a_log_that_no_run_wrote_is_refused(store, content):
    store.write_log([{"loss": 1.0}])
    path = store.log_path(1)
    path.chmod(0o644)
    path.write_text(content, encoding="latin-1")
    with pytest.raises(StoreCorruptionError, match=r"log-000001\.json is damaged: expected checksum"):
        store.verify()
    manifest = read_manifest(store.path)
    manifest["log"] = {"1": checksum_of(path)}
    write_manifest(store.path, manifest)
    for look in (store.verify, store.read_log):
        with pytest.raises(StoreCorruptionError, match=r"log-000001\.json is (missing or )?damaged"):
            look()
    path.unlink()
    with pytest.raises(StoreCorruptionError, match=r"log-000001\.json is missing"):
        store.verify()


@pytest.mark.parametrize("log", [{"a": "b"}, {"1": "0" * 32, "2": "0" * 32}, {"../1": "0" * 32}, {"1": 3}])
def test_a_manifest_names_one_log_at_most(store, monkeypatch, log):
    manifest = read_manifest(store.path)
    manifest["log"] = log
    with pytest.raises(ValueError, match=r"store\.json is not written: log=.*: expected at most one checksum"):
        write_manifest(store.path, manifest)
    with monkeypatch.context() as patch:
        patch.setattr("lstsd_hf.store.manifest._first_wrong", lambda _: None)
        write_manifest(store.path, manifest)
    with pytest.raises(StoreCorruptionError, match=r"log=.*: expected at most one checksum"):
        read_manifest(store.path)


def test_a_run_leaves_its_whole_log_and_a_checkpoint_what_was_logged_so_far(tmp_path):
    trainer = run(tmp_path, save_total_limit=1)
    kept = LogitsStore.open(tmp_path / "_logits").read_log()
    assert [entry["loss"] for entry in kept if "loss" in entry] == logged(trainer, "loss")
    assert "train_loss" in kept[-1]
    assert not any(name.endswith(("_runtime", "_per_second")) for entry in kept for name in entry)
    (checkpoint,) = tmp_path.glob("checkpoint-*")
    assert LogitsStore.open(checkpoint / "_logits").read_log() == [
        entry for entry in kept if "train_loss" not in entry
    ]


def test_the_curves_need_no_checkpoint(tmp_path):
    trainer = LSTSDTrainer(tiny_bert(), config(tmp_path), train_dataset=add_sample_ids(rows(20)))
    trainer.train()
    for path in tmp_path.iterdir():
        if path.name != "_logits":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert [entry["loss"] for entry in open_run(tmp_path, None).log if "loss" in entry] == logged(trainer, "loss")
    assert "There is no loss curve" not in write_report(tmp_path).read_text(encoding="utf-8")


def test_a_resumed_run_goes_on_with_the_log(tmp_path):
    expected = run(tmp_path / "whole")
    run(tmp_path / "cut", stop=8)
    assert len(LogitsStore.open(tmp_path / "cut" / "_logits").read_log()) < len(expected.state.log_history)
    run(tmp_path / "cut", resume=True)
    kept = [
        [entry["step"] for entry in LogitsStore.open(tmp_path / name / "_logits").read_log()]
        for name in ("whole", "cut")
    ]
    assert kept[0] == kept[1]


def test_a_log_is_plain_json(store):
    store.write_log([{"loss": math.nan, "step": 1}])
    assert json.loads(store.log_path(1).read_text(), parse_constant=pytest.fail) == [{"loss": None, "step": 1}]
