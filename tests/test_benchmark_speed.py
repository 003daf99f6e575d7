"""The parts of the speed benchmark: its statistics, what it measures, and the files that it writes."""

import json
import threading
import time

import numpy as np
import pytest
from transformers import TrainerCallback

import benchmark_speed
from lstsd_hf import LogitsStore, LSTSDTrainer
from lstsd_hf.training.collator import SAMPLE_IDS, teacher_key
from speed.many_rows import Kind, seal_and_read
from speed.measure import Turns, compare, forget, process_memory, take_turns
from speed.sections import SECTIONS, Scale
from speed.workload import EPOCH, TEACHERS, Setting, make_checkpoint, train


@pytest.fixture
def scale(tmp_path):
    """A scale so small that a section takes seconds."""
    turns = {"two-layer": 2, "MiniLM-L6": 1, "BERT-base": 1}
    return Scale(
        tmp_path, turns, tokens=4, repeats=10, memory_repeats=1, small=4096, large=4096, epoch=512, samples=(320,)
    )


def test_a_line_is_the_median_of_pairs_and_knows_whether_its_goal_holds():
    line = compare("s", "w", "ms", "r", [1.0, 2.0, 10.0], [2.0, 2.0, 11.0], at_most=1.1)
    assert (line.reference_median, line.lstsd_median, line.ratio) == (2.0, 2.0, pytest.approx(1.1))
    assert line.holds
    assert line.low == pytest.approx(1.0)
    assert line.high == pytest.approx(2.0)
    assert not compare("s", "w", "ms", "r", [1.0], [1.2], at_most=1.1).holds
    with pytest.raises(ValueError, match="s: w: nothing was timed"):
        compare("s", "w", "ms", "r", [], [])
    faster = compare("s", "w", "ms", "r", [3.0], [2.0], at_least=1.5)
    assert faster.ratio == 1.5
    assert faster.holds
    assert not compare("s", "w", "ms", "r", [3.0], [2.1], at_least=1.5).holds
    assert compare("s", "w", "ms", "r", [3.0], [2.1]).holds is None


def test_threads_take_turns_in_rounds_whose_order_turns():
    turns, order = Turns("ABC"), []

    def run(name, count):
        for _ in range(count):
            turns.take(name)
            order.append(name)
            turns.pass_on()
        turns.take(name)
        turns.leave(name)

    threads = [threading.Thread(target=run, args=(name, count)) for name, count in (("A", 3), ("B", 1), ("C", 3))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=10)
    assert not any(thread.is_alive() for thread in threads)
    assert "".join(order).startswith("ABC" + "C")
    assert sorted(order) == list("AAABCCC")


def test_an_error_in_one_training_ends_the_others_waiting():
    def fails(callback):
        raise RuntimeError("no such model")

    def ends(callback):
        callback.on_step_end(None, None, None)

    with pytest.raises(RuntimeError, match="no such model"):
        take_turns({"plain": ends, "lstsd": fails})


def test_a_turn_times_its_own_steps_alone():
    """The steps of the other training, which take ten times as long, do not count. Neither do skipped steps."""

    def training(seconds):
        def run(callback):
            for _ in range(20):
                time.sleep(seconds)
                callback.on_step_end(None, None, None)

        return run

    seconds = take_turns({"short": training(0.002), "long": training(0.02)}, timed=2, skip=2, warm_up=1)
    assert [len(values) for values in seconds.values()] == [3, 3]
    assert 0.002 <= np.median(seconds["short"]) < 0.02 <= np.median(seconds["long"]) < 0.04


def test_both_teachers_are_there_from_the_first_step_on(tmp_path, monkeypatch):
    setting = Setting(tmp_path / "run", batch=4, classes=3, samples=16, steps=2, tokens=4)
    make_checkpoint(setting)
    store = LogitsStore.open(setting.checkpoint / "_logits")
    assert store.sealed_epochs == sorted(TEACHERS.values())
    seen = []
    original = LSTSDTrainer.compute_loss

    def compute_loss(self, model, inputs, *args, **kwargs):
        ids = inputs[SAMPLE_IDS].numpy()
        for name, epoch in TEACHERS.items():
            np.testing.assert_array_equal(inputs[teacher_key(name)].numpy(), store.read(epoch, ids))
        seen.append(self._lstsd_callback.recorder.epoch)
        return original(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(LSTSDTrainer, "compute_loss", compute_loss)
    train(setting, "lstsd", TrainerCallback())
    assert seen == [EPOCH, EPOCH]


@pytest.mark.parametrize("kind", [Kind("tokens", 5), Kind("spans", 2), Kind("vocabulary", 30_000, 4)], ids=str)
def test_both_teachers_are_there_for_each_row(tmp_path, monkeypatch, kind):
    setting = Setting(tmp_path / "run", batch=4, classes=kind.classes, samples=16, steps=2, tokens=6, kind=kind)
    make_checkpoint(setting)
    store, seen = LogitsStore.open(setting.checkpoint / "_logits"), []
    original = LSTSDTrainer.compute_loss

    def compute_loss(self, model, inputs, *args, **kwargs):
        for name, epoch in TEACHERS.items():
            past = store.read_rows(epoch, inputs[SAMPLE_IDS].numpy())
            np.testing.assert_array_equal(inputs[teacher_key(name)].numpy(), past.parts["values"])
            assert len(past.parts["values"]) == 4 * (6 if kind.name == "spans" else 5)
        seen.append(self._lstsd_callback.recorder.epoch)
        return original(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(LSTSDTrainer, "compute_loss", compute_loss)
    train(setting, "lstsd", TrainerCallback())
    assert seen == [EPOCH, EPOCH]


def test_stores_of_many_rows_are_sealed_and_read(tmp_path):
    lines = list(seal_and_read(tmp_path, (300, 600), 2))
    assert len(lines) == 8
    assert all(line.lstsd_median > 0 for line in lines)
    assert {line.goal for line in lines} == {None, 1.5}


def test_what_is_forgotten_comes_from_the_disk_again(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(1 << 22))
    path.read_bytes()
    assert forget(path) < 1  # 1 on a file system in memory, which keeps it all; the table says so
    assert process_memory("VmHWM") >= process_memory("RssAnon") > 1 << 20


def test_sections_write_a_table_a_file_and_a_plot(scale, tmp_path, capsys):
    lines = benchmark_speed.run(["store"], scale, tmp_path / "out" / "speed.json")
    printed = capsys.readouterr().out
    assert all(line.what in printed for line in lines)
    written = json.loads((tmp_path / "out" / "speed.json").read_text())
    assert len(written["lines"]) == len(lines)
    assert written["machine"]["versions"]["torch"]
    assert (tmp_path / "out" / "speed.png").read_bytes().startswith(b"\x89PNG")
    goals = {(line.what, line.goal) for line in lines if line.goal}
    assert {("read 256 x 1000", 2.0), ("record 32 x 3", 1.0)} <= goals
    assert all(0 < line.low <= line.ratio <= line.high for line in lines)


def test_growth_measures_every_size_and_the_end_of_an_epoch(scale):
    lines = list(SECTIONS["growth"](scale))
    assert [line.what for line in lines[:-1]] == ["step, 3e+02 samples"] * 2 + ["3e+02 samples: anonymous memory"]
    assert "end of an epoch of 512 x 1000" in lines[-1].what
    assert lines[-1].lstsd_median > 0


def test_a_quick_run_has_the_lines_of_a_full_one(tmp_path):
    quick, full = benchmark_speed.quick(tmp_path), Scale(tmp_path)
    assert quick.samples == full.samples
    assert quick.turns.keys() == full.turns.keys()
    assert quick.large >= 4096
