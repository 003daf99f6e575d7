"""A resumed run against one that was never interrupted: the same weights, the same sealed files."""

import json
import os
import shutil
import subprocess
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Trainer, TrainerCallback

from lstsd_hf import LogitsStore, LSTSDTrainer, StoreCorruptionError, StoreError, StoreMismatchError, add_sample_ids
from lstsd_hf.training.checkpoint import last_complete_checkpoint
from toys import as_first_written, config, logged, rows, tiny_bert, weights

STEPS = 3  # per epoch: 20 rows in batches of 8
SAVING = {"num_train_epochs": 6, "save_strategy": "steps", "save_steps": 1, "learning_rate": 0.02}

DAMAGED = ["store.json", "epoch-0001.npy", "labels.npy", "margin-0001.npy", "open/epoch-0002.rank-00000.journal"]


class Preempted(Exception):  # noqa: N818
    pass


class StopAfter(TrainerCallback):
    """Interrupts a run after the checkpoint of a step was saved."""

    def __init__(self, step: int | None):
        self.step = step

    def on_save(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise Preempted


def run(
    folder: Path,
    *,
    stop: int | None = None,
    resume: Any = None,
    data: Any = None,
    head: str = "classes",
    trainer_class: type[Trainer] = LSTSDTrainer,
    model: Any = None,
    callbacks: Sequence[TrainerCallback] = (),
    **changes: Any,
) -> Trainer:
    trainer = trainer_class(
        model or tiny_bert(head),
        config(folder, **SAVING | changes),
        train_dataset=data or add_sample_ids(rows(20, head)),
        eval_dataset=rows(8, head, seed=1),
        callbacks=[StopAfter(stop), *callbacks],
    )
    try:
        trainer.train(resume_from_checkpoint=resume)
        assert stop is None
    except Preempted:
        pass
    return trainer


def sealed(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.glob("_logits/*.npy")}


@pytest.fixture(scope="module", params=["classes", "regression"])
def reference(request, tmp_path_factory) -> tuple[str, Trainer, Path]:
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, run(folder, head=request.param), folder


# 1: the first step; 3, 6, 9: an epoch's last step; 17: the last step but one of the run
@pytest.mark.parametrize("stop", [1, 2, 3, 4, 6, 8, 9, 10, 14, 17])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, reference, stop):
    head, expected, folder = reference
    run(tmp_path, stop=stop, head=head)
    resumed = run(tmp_path, resume=True, head=head)
    assert torch.equal(weights(resumed.model), weights(expected.model))
    assert sealed(tmp_path) == sealed(folder)
    assert logged(resumed, "loss") == logged(expected, "loss")


@pytest.mark.parametrize("retention", ["needed", "all"])
def test_a_checkpoint_folder_alone_is_enough(tmp_path, reference, retention):
    head, expected, folder = reference
    run(tmp_path / "here", stop=8, head=head, logits_retention=retention)
    shutil.copytree(tmp_path / "here" / "checkpoint-8", tmp_path / "there" / "saved")
    shutil.rmtree(tmp_path / "here")
    saved = str(tmp_path / "there" / "saved")
    resumed = run(tmp_path / "there", resume=saved, head=head, logits_retention=retention)
    assert torch.equal(weights(resumed.model), weights(expected.model))
    if retention == "all":
        assert sealed(tmp_path / "there") == sealed(folder)


def test_an_older_checkpoint_sets_later_epochs_aside(tmp_path, reference):
    head, expected, folder = reference
    run(tmp_path, head=head)
    later = sealed(tmp_path)
    resumed = run(tmp_path, resume=str(tmp_path / "checkpoint-7"), head=head)
    assert torch.equal(weights(resumed.model), weights(expected.model))
    assert sealed(tmp_path) == sealed(folder)
    aside = LogitsStore.open(tmp_path / "_logits-1")
    aside.verify()
    assert aside.sealed_epochs == [2, 3, 4, 5]  # 0 and 1 are in the checkpoint
    for epoch in aside.sealed_epochs:
        name = f"epoch-{epoch:04d}.npy"
        assert (aside.path / name).read_bytes() == later[name]


def test_being_interrupted_again_and_again_piles_nothing_up(tmp_path, reference):
    head, expected, _ = reference
    for stop in range(2, 18, 3):
        run(tmp_path, stop=stop, resume=stop > 2, head=head, logits_retention="needed")
    resumed = run(tmp_path, resume=True, head=head, logits_retention="needed")
    assert torch.equal(weights(resumed.model), weights(expected.model))
    assert not list(tmp_path.glob("_logits-*"))


def test_the_best_model_loaded_at_the_end_does_not_disturb_a_resume(tmp_path, reference):
    head, _, _ = reference
    best = {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True}
    expected = run(tmp_path / "whole", head=head, **best)
    run(tmp_path / "cut", head=head, max_steps=8, **best)
    resumed = run(tmp_path / "cut", resume=str(tmp_path / "cut" / "checkpoint-8"), head=head, **best)
    assert torch.equal(weights(resumed.model), weights(expected.model))
    assert sealed(tmp_path / "cut") == sealed(tmp_path / "whole")


def test_an_epoch_cut_short_by_max_steps_is_completed(tmp_path, reference):
    head, expected, folder = reference
    run(tmp_path, head=head, max_steps=8)
    cut = np.load(tmp_path / "_logits" / "epoch-0002.npy")
    assert np.isnan(cut).any(axis=1).sum() == 4  # 8 steps are two epochs and two batches of 8 of 20
    resumed = run(tmp_path, resume=True, head=head)
    assert torch.equal(weights(resumed.model), weights(expected.model))
    assert sealed(tmp_path) == sealed(folder)


def test_an_epoch_cut_short_is_completed_from_a_checkpoint_saved_at_its_end(tmp_path, reference):
    head, expected, folder = reference
    run(tmp_path, head=head, max_steps=8, save_strategy="epoch")
    assert LogitsStore.open(tmp_path / "checkpoint-8" / "_logits").sealed_epochs == [0, 1]
    resumed = run(tmp_path, resume=True, head=head)
    assert torch.equal(weights(resumed.model), weights(expected.model))
    assert sealed(tmp_path) == sealed(folder)


def test_data_that_is_not_skipped_is_seen_again(tmp_path):
    run(tmp_path, stop=7)
    resumed = run(tmp_path, resume=True, ignore_data_skip=True)
    assert logged(resumed, "long_term_loss")[-1] > 0
    store = LogitsStore.open(tmp_path / "_logits")
    store.verify()
    assert np.isfinite(store.read(3, range(20))).all()


@pytest.mark.parametrize(
    ("changes", "accepted"),
    [
        ({"per_device_train_batch_size": 7}, True),  # 3 steps as before
        ({"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}, True),
        ({"per_device_train_batch_size": 4}, False),
        ({"gradient_accumulation_steps": 2}, False),
    ],
)
def test_another_batch_size_is_accepted_where_the_steps_stay(tmp_path, changes, accepted):
    run(tmp_path, stop=7)
    if accepted:
        run(tmp_path, resume=True, **changes)
        assert LogitsStore.open(tmp_path / "_logits").sealed_epochs == list(range(6))
    else:
        with pytest.raises(StoreMismatchError, match=r"saved with 3 steps per epoch, and this run has [25]"):
            run(tmp_path, resume=True, **changes)


def test_a_checkpoint_of_the_first_version_is_resumed_from(tmp_path, reference):
    head, expected, folder = reference
    run(tmp_path, stop=8, head=head)
    as_first_written(tmp_path / "checkpoint-8" / "_logits")
    resumed = run(tmp_path, resume=True, head=head)
    assert torch.equal(weights(resumed.model), weights(expected.model))
    whole = {name: data for name, data in sealed(folder).items() if name.startswith(("epoch", "labels"))}
    assert sealed(tmp_path) == whole  # and no statistic, which would lack the epochs before the checkpoint


# ---- what is in a checkpoint


def test_a_checkpoint_links_what_is_sealed_and_copies_what_is_open(tmp_path):
    run(tmp_path, stop=8)
    live, saved = tmp_path / "_logits", tmp_path / "checkpoint-8" / "_logits"
    for name in ("epoch-0000.npy", "epoch-0001.npy", "labels.npy"):
        assert (live / name).samefile(saved / name)
    (journal,) = (saved / "open").iterdir()
    assert not journal.samefile(live / "open" / journal.name)
    LogitsStore.open(saved).verify()


def test_without_hard_links_a_checkpoint_holds_copies(tmp_path, monkeypatch):
    def no_links(source, target):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("os.link", no_links)
    run(tmp_path, stop=8)
    live, saved = tmp_path / "_logits", tmp_path / "checkpoint-8" / "_logits"
    assert not (live / "epoch-0001.npy").samefile(saved / "epoch-0001.npy")
    assert (live / "epoch-0001.npy").read_bytes() == (saved / "epoch-0001.npy").read_bytes()


def test_model_only_checkpoints_have_no_store(tmp_path):
    run(tmp_path, stop=4, save_only_model=True)
    assert not (tmp_path / "checkpoint-4" / "_logits").exists()


def test_rotation_removes_stores_with_their_checkpoints(tmp_path):
    run(tmp_path, save_total_limit=2)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-17", "checkpoint-18"]
    LogitsStore.open(tmp_path / "_logits").verify()


def test_a_half_saved_checkpoint_is_passed_over(tmp_path, reference):
    head, expected, _ = reference
    run(tmp_path, stop=8, head=head)
    (tmp_path / "checkpoint-8" / "trainer_state.json").unlink()
    (tmp_path / "checkpoint-7" / "trainer_state.json").write_text('{"epoch": 2.')
    resumed = run(tmp_path, resume=True, head=head)
    assert torch.equal(weights(resumed.model), weights(expected.model))
    with pytest.raises(
        ValueError, match=r"No valid checkpoint found in output directory \(.*expected a folder checkpoint-N"
    ):
        run(tmp_path / "nothing", resume=True, head=head)


def test_a_checkpoint_that_dies_while_it_is_written_over_is_not_complete(tmp_path, reference, monkeypatch):
    head, expected, _ = reference
    run(tmp_path, stop=8, head=head)

    def die(self, output_dir):
        raise Preempted

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_save_optimizer_and_scheduler", die)
        run(tmp_path, stop=8, resume=str(tmp_path / "checkpoint-7"), head=head)
    assert (tmp_path / "checkpoint-8" / "optimizer.pt").exists()  # the first run's
    assert last_complete_checkpoint(str(tmp_path)) == str(tmp_path / "checkpoint-7")
    resumed = run(tmp_path, resume=True, head=head)
    assert torch.equal(weights(resumed.model), weights(expected.model))


# ---- what is refused


def refused(error: type[Exception], message: str, folder: Path, **options: Any) -> None:
    """Asserts that a resume raises, and that no file of a store has changed by then."""
    before = {path: path.read_bytes() for path in (folder / "_logits").rglob("*") if path.is_file()}
    with pytest.raises(error, match=message):
        run(folder, resume=options.pop("resume", True), **options)
    after = {path: path.read_bytes() for path in folder.glob("_logits*/**/*") if path.is_file()}
    assert after == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": add_sample_ids(rows(20, seed=9))}, "belongs to another training set.*expected fingerprint"),
        ({"data": add_sample_ids(rows(21))}, "expected num_samples 21, found 20"),
        ({"data": add_sample_ids(rows(20)).map(lambda row: {"label": 2 - row["label"]})}, "expected fingerprint"),
        ({"logits_dtype": "float16"}, "expected dtype 'float16', found 'float32'"),
        ({"model": tiny_bert(num_labels=5)}, r"predictions of shape \(3,\): expected \(5,\)"),
    ],
    ids=["rows", "number", "labels", "dtype", "head"],
)
def test_another_data_set_head_or_dtype_is_refused(tmp_path, options, message):
    run(tmp_path, stop=7)
    refused(StoreMismatchError, message, tmp_path, **options)


def test_a_disk_too_small_for_the_rest_is_refused(tmp_path, monkeypatch):
    run(tmp_path, stop=7)
    # A test cannot fill a real disk, so it pretends that a hundred bytes are free.
    monkeypatch.setattr("shutil.disk_usage", lambda path: types.SimpleNamespace(free=100))
    refused(StoreError, r"will take about .* are free: expected room for the whole run", tmp_path)


def test_another_mini_generation_whose_teacher_is_gone_is_refused(tmp_path):
    run(tmp_path, stop=16, logits_retention="needed", mini_generation_epochs=3)
    with pytest.raises(StoreError, match=r"epochs \[3\], which teach in epoch 5, .* mini_generation_epochs"):
        run(tmp_path, resume=True, logits_retention="needed", mini_generation_epochs=4)


def test_a_checkpoint_without_a_store_needs_a_word(tmp_path):
    run(tmp_path, stop=7, trainer_class=Trainer)
    with pytest.raises(StoreError, match=r"checkpoint-7 holds no logits store: .* resume_without_logits=True"):
        run(tmp_path, resume=True)
    resumed = run(tmp_path, resume=True, resume_without_logits=True)
    assert logged(resumed, "long_term_loss")[-1] > 0
    store = LogitsStore.open(tmp_path / "_logits")
    assert store.sealed_epochs == [2, 3, 4, 5]
    assert np.isnan(store.read(2, range(20))).any(axis=1).sum() == 8  # seen before the interruption


@pytest.mark.parametrize("name", DAMAGED)
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_checkpoint_is_refused_by_name(tmp_path, name, damage):
    run(tmp_path, stop=8)
    file = tmp_path / "checkpoint-8" / "_logits" / name
    data = bytearray(file.read_bytes())
    file.unlink()  # a write would go through the hard link and damage the live store
    data[-9] ^= 4
    if damage != "remove":
        file.write_bytes(data if damage == "flip" else data[:-9])
    error = StoreError if damage == "remove" else StoreCorruptionError
    refused(error, file.name, tmp_path)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a small file system needs root and the right to mount one")
    yield folder
    # Lazily: pytest or a logger may keep the traceback of a failed seal, and with it the journals' memory maps.
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("full_at", [8, 9])  # while the run records, within an epoch; and while it seals
def test_a_disk_that_fills_up_loses_nothing(tmp_path, small_disk, reference, full_at):
    head, expected, folder = reference

    class FillUp(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == full_at - 1:
                self.fill()

        def fill(self):
            with (small_disk / "filler").open("wb", buffering=0) as file:
                size = 1 << 20
                while size:  # to the last byte
                    try:
                        while file.write(b"x" * size):
                            pass
                    except OSError:
                        size //= 2

    options = {"head": head, "logits_dir": str(small_disk / "_logits")}
    with pytest.raises(StoreError, match=r"could not be written: No space left on device\. Free some space"):
        run(tmp_path / "run", callbacks=[FillUp()], **options)
    (small_disk / "filler").unlink()
    for saved in (tmp_path / "run").glob("checkpoint-*/_logits"):
        LogitsStore.open(saved).verify()
    resumed = run(tmp_path / "run", resume=True, **options)
    assert torch.equal(weights(resumed.model), weights(expected.model))
    assert {file.name: file.read_bytes() for file in small_disk.glob("_logits/*.npy")} == sealed(folder)


def test_two_runs_in_one_folder_are_refused(tmp_path):
    class SecondRun(TrainerCallback):
        found = None

        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 4:
                with pytest.raises(StoreError, match="Another run uses the logits store at") as self.found:
                    run(tmp_path, save_strategy="no")

    second = SecondRun()
    trainer = LSTSDTrainer(tiny_bert(), config(tmp_path), train_dataset=rows(20), callbacks=[second])
    trainer.train()
    assert second.found is not None
    assert LogitsStore.open(tmp_path / "_logits").sealed_epochs == list(range(5))
    run(tmp_path)  # and afterwards the folder is free
    assert json.loads((tmp_path / "_logits-1" / "store.json").read_text())["num_samples"] == 20
