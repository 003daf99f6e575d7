"""The benchmark of wrong labels: what it measures on a history made by hand, its tables, and a small loop of it."""

import json
from pathlib import Path

import numpy as np
import pytest

import benchmark_labels as benchmark
from benchmark_labels import History, Run

SAMPLES = 1000


def history(wrong: int, epochs: int = 6) -> History:
    """Of a model that predicts the true class, and knows every second wrong label by heart in the last epoch."""
    true = np.arange(SAMPLES) % 3
    given = np.where(np.arange(SAMPLES) < wrong, (true + 1) % 3, true)
    sureness = np.random.default_rng(0).permutation(np.linspace(1, 2, SAMPLES))
    logits = np.repeat(np.eye(3)[true][None], epochs, axis=0) * sureness[:, None]
    by_heart = np.flatnonzero(given != true)[::2]
    logits[-1, by_heart] = 3 * np.eye(3)[given[by_heart]]
    return History(logits.astype(np.float32), given, true)


def test_what_is_measured_of_a_history():
    found = benchmark.detection(history(100))
    assert found["wrong"] == 100
    assert found["scores"]["history"]["ap"] == found["scores"]["above_half"]["ap"] == pytest.approx(1)
    assert found["scores"]["above_half"] | {"ap": 1} == {"ap": 1, "precision": 1, "recall": 1, "f1": 1, "flagged": 100}
    assert found["scores"]["last_loss"]["recall"] == 0.5
    assert found["suggestions"]["mean of all epochs"] == 1
    assert found["suggestions"]["last epoch"] < 1
    flags = found["scores"]["history"]
    assert flags["flagged"] == found["estimate"]
    assert found["labels_right"]["mean of all epochs"] == pytest.approx(1 - 0.1 * (1 - flags["recall"]), abs=1e-9)


def test_a_history_is_kept_and_measured_anew(tmp_path):
    history(100).save(tmp_path / "a" / "sst2-0.1-0-dirty-plain.npz")
    results = tmp_path / "results.jsonl"
    results.write_text(json.dumps({"name": "sst2-0.1-0-dirty-plain", "rows": "dirty", "estimate": -1}) + "\n")
    benchmark.main(["--rescore", "--results", str(results), "--histories", str(tmp_path / "a")])
    (line,) = benchmark.read_lines(results)
    assert line["estimate"] == benchmark.detection(history(100))["estimate"]


def test_runs_are_planned_once_and_after_what_they_need():
    runs = list(benchmark.planned())
    assert len(runs) == len(set(runs)) == len({run.name for run in runs})
    for run in runs:
        if run.rows in ("relabelled", "dropped"):
            assert runs.index(Run(run.task, run.noise, run.seed)) < runs.index(run)


def test_trec_by_its_coarse_classes(tmp_path):
    (tmp_path / "trec.txt").write_text("DESC:manner How is it ?\nENTY:cremat What is it ?\nDESC:def Why ?\n")
    rows, dev, columns, names = benchmark.load_trec(str(tmp_path / "trec.txt"))
    assert (rows["label"][:], rows["text"][2], rows["sample_id"][:]) == ([0, 1, 0], "Why ?", [0, 1, 2])
    assert (dev, columns, names) == (None, ("text",), ("DESC", "ENTY"))


def test_a_small_loop(model, text_layout, tmp_path, monkeypatch, capsys):
    runs = [Run("sst2", 0.2, 0), Run("sst2", 0.2, 0, "relabelled"), Run("sst2", 0.2, 0, "dropped", "lstsd")]
    runs += [Run("sst2", 0.2, 0, "folds")]
    monkeypatch.setattr(benchmark, "planned", lambda: iter(runs))
    monkeypatch.setattr(benchmark, "SETTINGS", benchmark.SETTINGS | {"num_train_epochs": 3, "bf16": False})
    monkeypatch.setattr(benchmark, "TEST_ROWS", 8)
    results = tmp_path / "results.jsonl"
    command = ["--model_name_or_path", model, "--data_dir", text_layout, "--rows", "30", "--results", str(results)]
    benchmark.main([*command, "--histories", str(tmp_path)])
    lines = benchmark.read_lines(results)
    assert [line["name"] for line in lines] == [run.name for run in runs]
    assert lines[0]["wrong"] == 6
    kept = History.load(tmp_path / "sst2-0.2-0-dirty-plain.npz")
    assert kept.logits.shape == (3, 30, 2)
    assert lines[2]["train_samples"] == 30 - kept.wrong().sum()
    assert all(0 <= line["accuracy"] <= 1 for line in lines[:3])
    benchmark.main([*command, "--histories", str(tmp_path)])  # all are done
    assert len(benchmark.read_lines(results)) == len(lines)
    capsys.readouterr()
    benchmark.main(["--report", str(results)])
    out = capsys.readouterr().out
    assert "### F1 of the flags, x 100\n\n|  | SST-2 20% |" in out
    assert Path(results).exists()
