"""What an interruption, a stranger or another program leaves where a store should be."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash

from lstsd_hf import LogitsStore, LSTSDTrainer, StoreCorruptionError, StoreError, add_sample_ids, record_predictions
from lstsd_hf.store import logits_store
from lstsd_hf.store.files import writing
from toys import config, rows, tiny_bert


def make(path: Path, **changes: Any) -> LogitsStore:
    settings = {"num_samples": 6, "row_shape": (2,), "dtype": "float32", "fingerprint": "toy"}
    return LogitsStore.create(path, **settings | changes)


def ragged(path: Path, **changes: Any) -> LogitsStore:
    store = make(path, **{"ragged": True} | changes)
    extra = {"classes": [[1, 2]] * 5, "rest": np.zeros(5)} if store.vocabulary else {}
    store.record(0, [0, 1, 2], np.ones((5, 2)), counts=[2, 2, 1], labels=[1, 0, 1, 0, 1], **extra)
    store.seal(0)
    return store


def edit(store: Path, change: Any) -> None:
    """Changes a manifest, as a stranger does who knows how its checksum is made."""
    content = json.loads((store / "store.json").read_text())
    del content["checksum"]
    change(content)
    content["checksum"] = xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True).encode())
    (store / "store.json").write_text(json.dumps(content))


def put(store: Path, name: str, array: Any, field: str, key: str) -> None:
    """Replaces an array, with a checksum that fits."""
    (store / name).unlink()
    np.save(store / name, array)
    digest = xxhash.xxh3_128_hexdigest((store / name).read_bytes())
    edit(store, lambda content: content[field].update({key: digest}))


def train(folder: Path, resume: Any = None, **changes: Any) -> LSTSDTrainer:
    trainer = LSTSDTrainer(tiny_bert(), config(folder, **changes), train_dataset=add_sample_ids(rows(16)))
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def record(path: Path) -> LogitsStore:
    return record_predictions(tiny_bert(), add_sample_ids(rows(12)), path, disable_tqdm=True)


# ---- what a store writes, it can read


@pytest.mark.parametrize("epoch", [-1, 2**32, True, 1.0, "1", None])
def test_an_epoch_that_no_manifest_may_name_is_refused(tmp_path, epoch):
    store = make(tmp_path / "s")
    writes = (
        lambda: store.seal(epoch),
        lambda: store.record(epoch, [0], np.zeros((1, *store.row_shape))),
        lambda: store.write_statistic("a", epoch, np.ones(6)),
    )
    for write in writes:
        with pytest.raises(ValueError, match=rf"epoch={epoch!r}, rank=0: expected numbers from 0"):
            write()
    LogitsStore.open(store.path).verify()
    assert sorted(path.name for path in store.path.iterdir()) == ["open", "store.json"]


def test_a_manifest_too_large_to_be_read_is_not_written(tmp_path):
    store = make(tmp_path / "s")
    with pytest.raises(ValueError, match="expected at most 4,194,304 bytes"):
        store.copy(tmp_path / "copy", {"a": "x" * (5 << 20)})
    assert not (tmp_path / "copy").exists()
    assert not (tmp_path / "copy.tmp").exists()


# ---- what was cut off goes on


def test_a_store_that_was_cut_off_before_its_manifest_is_made_anew(tmp_path, monkeypatch):
    def full(path: Path, manifest: Any) -> None:
        with writing(path / "store.json"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(logits_store, "write_manifest", full)
        for call in (lambda: record(tmp_path / "s"), lambda: train(tmp_path / "run", num_train_epochs=1)):
            with pytest.raises(StoreError, match="No space left on device"):
                call()
        with pytest.raises(StoreError, match="No space left on device"):
            make(tmp_path / "far", num_samples=1000, ids=[1, 999])
    assert record(tmp_path / "s").sealed_epochs == [0]
    train(tmp_path / "run", num_train_epochs=1)
    assert not list(tmp_path.glob("run/_logits-*"))
    assert make(tmp_path / "far", num_samples=1000, ids=[2, 998]).sample_ids.tolist() == [2, 998]
    (tmp_path / "mine" / "open").mkdir(parents=True)
    (tmp_path / "mine" / "open" / "file").touch()
    with pytest.raises(StoreError, match="is not empty"):
        make(tmp_path / "mine")


def test_a_recording_killed_as_it_was_sealed_leaves_no_journal(tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def kill(path: Path) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(logits_store, "discard", kill)
        with pytest.raises(Killed):
            record(tmp_path / "s")
    assert list((tmp_path / "s" / "open").iterdir())
    record(tmp_path / "s")
    assert not list((tmp_path / "s" / "open").iterdir())


def test_a_recording_that_is_damaged_is_not_taken_for_a_complete_one(tmp_path):
    store = record(tmp_path / "s")
    store.epoch_path(0).unlink()
    with pytest.raises(StoreCorruptionError, match=r"epoch-0000.npy is missing.* Move .* aside to record anew"):
        record(tmp_path / "s")


def test_damaged_hashes_of_inputs_are_told_from_other_inputs(tmp_path):
    path = record(tmp_path / "s").statistic_path("inputs", 0)
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    trainer = LSTSDTrainer(
        tiny_bert(),
        config(tmp_path / "run", outside_teacher=str(tmp_path / "s")),
        train_dataset=add_sample_ids(rows(12)),
    )
    with pytest.raises(StoreCorruptionError, match=r"inputs-0000.npy is damaged: expected checksum"):
        trainer.train()


# ---- what is not ours


def test_files_of_other_programs_with_the_names_of_a_lock_or_a_copy_stay(tmp_path):
    lock, copied = tmp_path / "poetry.lock", tmp_path / "uv.tmp"
    lock.write_text("precious")
    copied.mkdir()
    (copied / "thesis.txt").write_text("precious")
    with pytest.raises(StoreError, match=r"poetry.lock is not empty, so it is no lock"):
        train(tmp_path / "out", logits_dir=str(tmp_path / "poetry"))
    with pytest.raises(StoreError, match=r"uv.tmp is in the way"):
        train(tmp_path / "out", logits_dir=str(tmp_path / "uv"))
    with pytest.raises(StoreError, match=r"uv.tmp is in the way"):
        make(tmp_path / "s").copy(tmp_path / "uv", {})
    assert lock.read_text() == (copied / "thesis.txt").read_text() == "precious"


def test_a_name_that_something_else_has_is_not_taken_for_a_store_moved_aside(tmp_path):
    train(tmp_path, num_train_epochs=1)
    (tmp_path / "_logits-1").write_text("a file")
    (tmp_path / "_logits-2").symlink_to("nowhere")
    (tmp_path / "_logits-1000000000").mkdir()
    train(tmp_path, num_train_epochs=1)
    assert LogitsStore.open(tmp_path / "_logits-1000000001").is_aside


def test_a_tilde_is_the_home_folder_as_it_is_in_output_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    found = config(tmp_path / "run", logits_dir="~/mine", outside_teacher="~/teacher")
    assert (found.logits_dir, found.outside_teacher) == (f"{tmp_path}/mine", f"{tmp_path}/teacher")


# ---- what a stranger made


def test_offsets_that_overflow_are_not_ascending(tmp_path):
    store = ragged(tmp_path / "s")
    offsets = np.array([0, 2**62, 2**63 - 1, -(2**63), -(2**62), -1, 5])
    put(store.path, "epoch-0000.offsets.npy", offsets, "parts", "offsets 0")
    with pytest.raises(StoreCorruptionError, match=r"epoch-0000.offsets.npy: expected 7 ascending offsets"):
        LogitsStore.open(store.path).verify()


@pytest.mark.parametrize("vocabulary", [None, 10])
def test_a_manifest_names_every_part_of_a_sealed_epoch(tmp_path, vocabulary):
    store = ragged(tmp_path / "s", vocabulary=vocabulary)
    for part in sorted(json.loads((store.path / "store.json").read_text())["parts"]):
        with_all = (store.path / "store.json").read_bytes()
        edit(store.path, lambda content, part=part: content["parts"].pop(part))
        with pytest.raises(StoreCorruptionError, match=rf"store.json is damaged: parts=.*: expected '{part}' too"):
            LogitsStore.open(store.path)
        (store.path / "store.json").write_bytes(with_all)


def test_classes_outside_of_the_vocabulary_are_damage(tmp_path):
    store = ragged(tmp_path / "s", vocabulary=10)
    put(store.path, "epoch-0000.classes.npy", np.full((5, 2), 10, np.uint16), "parts", "classes 0")
    for check in (LogitsStore.open(store.path).verify, lambda: LogitsStore.open(store.path).verify_epochs([0])):
        with pytest.raises(StoreCorruptionError, match=r"classes.npy is damaged: expected classes from 0 to 9"):
            check()


@pytest.mark.parametrize("name", ["margin", "ensemble"])
def test_a_statistic_of_another_shape_is_named(tmp_path, name):
    own = {"num_train_epochs": 3, "long_term_teacher": "ensemble"}
    train(tmp_path, **own, save_strategy="steps", save_steps=3)
    checkpoint = tmp_path / "checkpoint-3"
    put(checkpoint / "_logits", f"{name}-0000.npy", np.ones(16, np.float32), "statistics", f"{name} 0")
    with pytest.raises(StoreCorruptionError, match=rf"{name}-0000.npy is damaged: expected float32 of shape \(16, "):
        train(tmp_path / "again", str(checkpoint), **own)


# ---- while a run goes on


def test_what_a_run_drops_while_its_store_is_verified_is_no_damage(tmp_path, monkeypatch):
    store = make(tmp_path / "s")
    for epoch in range(2):
        store.record(epoch, [0], np.ones((1, 2)))
        store.seal(epoch)
    store.write_log([{"loss": 1.0}])
    store.write_statistic("a", 0, np.ones(6))
    other, check = LogitsStore.open(store.path), logits_store.SealedEpochs._verify_files

    def meanwhile(self: LogitsStore) -> None:
        named = self.unchanging_files

        def then_dropped(manifest: Any) -> Any:
            found = named(manifest)
            monkeypatch.undo()
            store.drop(0)
            store.write_log([{"loss": 1.0}] * 2)
            store.write_statistic("a", 1, np.ones(6))
            return found

        monkeypatch.setattr(self, "unchanging_files", then_dropped)
        check(self)

    monkeypatch.setattr(logits_store.SealedEpochs, "_verify_files", meanwhile)
    other.verify()
    store.epoch_path(1).unlink()
    with pytest.raises(StoreCorruptionError, match=r"epoch-0001.npy is missing"):
        other.verify()
