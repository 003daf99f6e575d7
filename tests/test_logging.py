"""Loss parts, agreement and coverage, read back from the files that the Trainer's own reporters write.

test_logging.py FOLDER is the run that reports to trackio, which decides where to write when it is imported.
"""

import json
import os
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import TrainerCallback, TrainerState

from lstsd_hf import LSTSDTrainer
from toys import config, logged, rows, tiny_bert

NAMES = [
    "base_loss",
    *(f"{teacher}_{part}" for teacher in ("long_term", "short_term") for part in ("loss", "agreement", "coverage")),
]


def train(folder: Path, report_to: str, **changes: Any) -> LSTSDTrainer:
    """Trains 5 epochs of 5 steps. Every third step is logged, and step 25 at the run's end."""
    settings = config(folder / "out", report_to=[report_to], logging_steps=3, **changes)
    trainer = LSTSDTrainer(tiny_bert(), settings, train_dataset=rows(40))
    trainer.train()
    return trainer


def expected(state: TrainerState, name: str) -> list[tuple[int, Any]]:
    found = [(entry["step"], pytest.approx(entry[name], rel=1e-6)) for entry in state.log_history if name in entry]
    assert found[-1][0] == 25, name
    return found


def test_coverage_is_the_share_of_the_samples_that_had_a_teacher(tmp_path):
    """With K = 2, epochs 1 to 4 have a short-term teacher, and epochs 2 to 4 a long-term one."""
    trainer = LSTSDTrainer(tiny_bert(), config(tmp_path, logging_steps=3), train_dataset=rows(40))
    trainer.train()
    windows = [range(start, min(start + 3, 25)) for start in range(0, 25, 3)]
    for name, first in (("long_term", 10), ("short_term", 5)):
        shares = [sum(step >= first for step in window) / len(window) for window in windows]
        assert logged(trainer, f"{name}_coverage") == pytest.approx(shares)


def test_coverage_counts_samples_not_batches(tmp_path):
    """20 rows make batches of 8, 8 and 4; the second batch of epoch 0 is not recorded."""

    class Forgets(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            recorder = trainer._lstsd_callback.recorder
            if state.global_step == 1:
                recorder.record = lambda *_: None
            else:
                vars(recorder).pop("record", None)

    settings = config(tmp_path, num_train_epochs=2, logging_steps=3, long_term_weight=0.0)
    trainer = LSTSDTrainer(tiny_bert(), settings, train_dataset=rows(20), callbacks=[Forgets()])
    trainer.train()
    assert logged(trainer, "short_term_coverage") == pytest.approx([0.0, 12 / 20])
    assert not logged(trainer, "long_term_coverage")  # a teacher that is off has no coverage


def test_tensorboard(tmp_path):
    trainer = train(tmp_path, "tensorboard")
    (folder,) = (tmp_path / "out" / "runs").iterdir()
    events = EventAccumulator(str(folder)).Reload()
    for name in NAMES:
        written = [(event.step, event.value) for event in events.Scalars(f"train/{name}")]
        assert written == expected(trainer.state, name), name


def test_wandb_offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    trainer = train(tmp_path, "wandb")
    wandb.teardown()  # waits until all is on disk, which `finish` does not
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    history = list(wandb_history(file.read_bytes()))
    for name in NAMES:
        written = [(row["train/global_step"], row[f"train/{name}"]) for row in history if f"train/{name}" in row]
        assert written == expected(trainer.state, name), name


def wandb_history(data: bytes) -> Iterator[dict[str, Any]]:
    """The logged rows of a run file: protobuf records in LevelDB's log format, after a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    block, offset, record = 32768, 7, b""
    while offset + 7 <= len(data):
        if block - offset % block < 7:  # the rest of the block is too short for a header
            offset += block - offset % block
            continue
        size, kind = struct.unpack_from("<4xHB", data, offset)
        record += data[offset + 7 : offset + 7 + size]
        offset += 7 + size
        if kind in (1, 4):  # a whole record, or its last part
            parsed, record = Record.FromString(record), b""
            if parsed.WhichOneof("record_type") == "history":
                items = parsed.history.item
                yield {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def test_trackio(tmp_path):
    pytest.importorskip("trackio", reason="trackio is not installed")
    environment = os.environ | {"TRACKIO_DIR": str(tmp_path / "trackio"), "HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, __file__, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    state = TrainerState.load_from_json(str(tmp_path / "out" / "trainer_state.json"))
    with sqlite3.connect(tmp_path / "trackio" / "lstsd.db") as database:
        history = [json.loads(metrics) for (metrics,) in database.execute("SELECT metrics FROM metrics ORDER BY step")]
    for name in NAMES:
        written = [(row["train/global_step"], row[f"train/{name}"]) for row in history if f"train/{name}" in row]
        assert written == expected(state, name), name


if __name__ == "__main__":
    train(Path(sys.argv[1]), "trackio", project="lstsd").save_state()
