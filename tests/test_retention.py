"""Which epochs a run keeps: as the user says, or all while they are small. A resumed run keeps the same ones."""

import logging
import types
from pathlib import Path
from typing import Any

import pytest

from lstsd_hf import LogitsStore, LSTSDConfig, LSTSDTrainer, StoreCorruptionError, add_sample_ids
from lstsd_hf.store.manifest import read_manifest, write_manifest
from lstsd_hf.training.forecast import Forecast
from toys import Preempted, StopAfter, config, rows, tiny_bert

SAMPLES, EPOCHS = 20, 6
HISTORY = SAMPLES * EPOCHS * 3 * 4  # bytes, of three float32 logits


def run(folder: Path, *, resume: bool = False, stop: int = 0, data: Any = None, **changes: Any) -> list[int]:
    """Trains for 6 epochs of 3 steps; returns the epochs that are sealed afterwards."""
    settings = {"num_train_epochs": EPOCHS, "save_strategy": "steps", "save_steps": 4, "logits_retention": None}
    trainer = LSTSDTrainer(
        tiny_bert(),
        config(folder, **settings | changes),
        train_dataset=data or add_sample_ids(rows(SAMPLES)),
        callbacks=[StopAfter(stop)],
    )
    if stop:
        with pytest.raises(Preempted):
            trainer.train()
    else:
        trainer.train(resume_from_checkpoint=resume)
    return LogitsStore.open(folder / "_logits").sealed_epochs


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(logging.getLogger("lstsd_hf.training.forecast"), "propagate", True)
    caplog.set_level(logging.INFO, "lstsd_hf.training.forecast")
    return caplog


def test_every_epoch_is_kept_while_all_of_them_are_small(tmp_path, lines):
    assert LSTSDConfig(output_dir=str(tmp_path)).logits_retention is None
    assert run(tmp_path, history_budget=HISTORY) == [0, 1, 2, 3, 4, 5]
    (said,) = [line for line in lines.messages if "history" in line]
    assert said == "The whole history, 6 epochs, takes about 0.00137 MiB: every epoch is kept (logits_retention)."


def test_a_byte_too_many_and_only_what_teaches_is_kept(tmp_path, lines):
    assert run(tmp_path, history_budget=HISTORY - 1) == [5]
    (said,) = [line for line in lines.messages if "history" in line]
    assert "only the epochs that can still teach are kept. Set logits_retention='all'" in said


@pytest.mark.parametrize(("retention", "kept"), [("all", [0, 1, 2, 3, 4, 5]), ("needed", [5])])
def test_what_the_user_says_counts(tmp_path, lines, retention, kept):
    assert run(tmp_path, logits_retention=retention, history_budget=HISTORY if retention == "needed" else 0) == kept
    assert not [line for line in lines.messages if "history" in line]


@pytest.mark.parametrize(("first", "then", "kept"), [(0, HISTORY, [5]), (HISTORY, 0, [0, 1, 2, 3, 4, 5])])
def test_a_resumed_run_keeps_what_it_kept_before(tmp_path, first, then, kept):
    run(tmp_path, stop=8, history_budget=first)
    assert run(tmp_path, resume=True, history_budget=then) == kept


def test_a_resumed_run_may_be_told_otherwise(tmp_path):
    run(tmp_path, stop=8, history_budget=HISTORY)
    assert run(tmp_path, resume=True, logits_retention="needed") == [5]


def test_a_stream_does_not_say_how_many_epochs_it_has(tmp_path):
    data = add_sample_ids(rows(SAMPLES).to_iterable_dataset())
    assert run(tmp_path, data=data, max_steps=9, num_samples=SAMPLES, history_budget=1 << 40) == [1, 2]


def test_a_disk_with_room_for_what_teaches_is_enough(tmp_path, monkeypatch):
    size = {"rows": 100, "row_shape": (3,), "vocabulary": None, "dtype": "float16"}
    forecast = Forecast(tmp_path / "store", **size, epochs=50)
    for free, keeps_all in ((100 * (50 * 6 + 2 * 14), True), (100 * (50 * 6 + 2 * 14) - 1, False)):
        monkeypatch.setattr("shutil.disk_usage", lambda path, free=free: types.SimpleNamespace(free=free))
        assert forecast.keeps_all(1 << 20) is keeps_all
        forecast.refuse_full_disk(keeps_all)


def test_a_note_that_no_run_wrote_is_refused(tmp_path):
    run(tmp_path, stop=8)
    saved = tmp_path / "checkpoint-8" / "_logits"
    manifest = read_manifest(saved)
    manifest["note"]["keeps_all"] = "yes"
    write_manifest(saved, manifest)
    with pytest.raises(StoreCorruptionError, match="keeps_all='yes': expected true or false"):
        run(tmp_path, resume=True)


@pytest.mark.parametrize("budget", [-1, 1.5, True, None, "1GB"])
def test_a_budget_is_a_number_of_bytes(tmp_path, budget):
    with pytest.raises(ValueError, match=r"history_budget=.* expected a number of bytes, an integer of at least 0"):
        LSTSDConfig(output_dir=str(tmp_path), history_budget=budget)
