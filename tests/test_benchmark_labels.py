"""The benchmark of wrong labels: what it measures on a history made by hand, its tables, and a small loop."""

import json
from dataclasses import asdict

import numpy as np
import pytest

import benchmark_honest
import benchmark_labels as benchmark
from benchmark_labels import History, Run
from quality.grid import read_results
from quality.rows import load

SAMPLES = 1000


def history(wrong: int, epochs: int = 6) -> History:
    """A model predicts the true class, but in the last epoch it knows every second wrong label by heart."""
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


def test_a_run_that_learnt_too_little_has_no_estimate(tmp_path):
    told = history(100)
    nothing = History(np.zeros_like(told.logits), told.given, told.true)
    run = Run("trec50", 0.1, 0)
    line = {"key": run.key, **asdict(run), "train_samples": SAMPLES, "seconds": 1, "device": "any"}
    line |= benchmark.measures(nothing, 0)
    assert line["estimate"] is None
    assert line["scores"]["history"]["flagged"] == 0
    assert "The estimate is off" not in benchmark.tables([line])
    nothing.save(tmp_path / f"{run.key}.npz")
    with pytest.raises(SystemExit, match="no history"):  # the gate stays shut, so there is no target to measure
        benchmark_honest.report(tmp_path)


def test_a_history_is_kept_and_measured_anew(tmp_path):
    history(100).save(tmp_path / "a" / "sst2-0.1-0-dirty-plain.npz")
    results = tmp_path / "results.jsonl"
    line = {"key": "sst2-0.1-0-dirty-plain", "rows": "dirty", "seed": 0, "estimate": -1}
    results.write_text(json.dumps(line) + "\n")
    benchmark.main(["--rescore", "--results", str(results), "--histories", str(tmp_path / "a")])
    (line,) = read_results([results])
    assert line["estimate"] == benchmark.detection(history(100))["estimate"]
    assert line["honest_accuracy"] == pytest.approx(0.9, abs=0.03)  # all but the tenth that is wrong


def test_honest_accuracy_is_compared_with_labels_as_noisy_as_the_runs_own():
    line = {"task": "sst2", "wrong": 200, "train_samples": 1000, "accuracy": 0.9, "honest_accuracy": 0.80}
    assert benchmark.honest_errors([line]) == pytest.approx([0.80 - (0.8 * 0.9 + 0.2 * 0.1)])


def test_all_that_cleaned_rows_need_is_planned():
    runs = list(benchmark.planned())
    assert len(set(runs)) == len({run.key for run in runs})
    cleaned = [run for run in runs if run.rows in ("relabelled", "dropped")]
    assert {(run.task, run.noise) for run in cleaned} == set(benchmark.LOOP)
    assert {Run(run.task, run.noise, run.seed) for run in cleaned} <= set(runs)
    assert runs[0] == Run("sst2", 0.2, 0)


def test_trec_lies_beside_glue_and_has_six_coarse_classes(tmp_path):
    (tmp_path / "glue").mkdir()
    (tmp_path / "trec").mkdir()
    (tmp_path / "trec" / "trec-train.txt").write_text(
        "DESC:manner How is it ?\nENTY:cremat What is it ?\nDESC:def Why ?\n"
    )
    rows, dev, columns, names = load(benchmark.TREC, str(tmp_path / "glue"))
    assert (rows["label"][:], rows["text"][2], rows["sample_id"][:]) == ([0, 1, 0], "Why ?", [0, 1, 2])
    assert (dev, columns, names) == (None, ("text",), ("DESC", "ENTY"))


def test_how_far_the_estimates_are_off():
    lines = [
        {"key": "a", "estimate": 110, "wrong": 100, "train_samples": 1000},
        {"key": "b", "estimate": 250, "wrong": 300, "train_samples": 1000},
    ]
    mean, largest = benchmark.estimate_errors(lines)
    assert (mean, largest["key"], largest["error"]) == (pytest.approx(0.03), "b", pytest.approx(0.05))


def test_a_small_loop(model, text_layout, tmp_path, monkeypatch, capsys):
    runs = [Run("sst2", 0.2, 0, "relabelled"), Run("sst2", 0.2, 0, "dropped", "confidence"), Run("sst2", 0.2, 0)]
    runs += [Run("sst2", 0.2, 0, "folds")]
    lines = []

    def here(runs, work, results, workers, told):  # in this process, which has the small settings
        lines.extend(work(run) for run in runs)
        assert (results, workers, told(lines[0])[:23]) == (tmp_path / "results.jsonl", 2, "sst2-0.2-0-dirty-plain:")

    monkeypatch.setattr(benchmark, "train_all", here)
    monkeypatch.setattr(benchmark, "planned", lambda: iter(runs))
    monkeypatch.setattr(benchmark, "SETTINGS", benchmark.SETTINGS | {"num_train_epochs": 3, "bf16": False})
    monkeypatch.setattr(benchmark, "TEST_ROWS", 8)
    results = tmp_path / "results.jsonl"
    command = ["--model_name_or_path", model, "--data_dir", text_layout, "--rows", "30", "--results", str(results)]
    benchmark.main([*command, "--histories", str(tmp_path)])
    dirty, relabelled, dropped, folds = lines
    assert [line["key"] for line in lines] == [run.key for run in (runs[2], *runs[:2], runs[3])]
    assert dirty["wrong"] == 6
    assert "accuracy" not in folds
    kept = History.load(tmp_path / "sst2-0.2-0-dirty-plain.npz")
    assert kept.logits.shape == (3, 30, 2)
    assert dropped["train_samples"] == 30 - kept.wrong().sum()
    assert all(0 <= line["accuracy"] <= 1 for line in (dirty, relabelled, dropped))
    results.write_text("".join(json.dumps(line) + "\n" for line in lines))
    benchmark.main(["--report", str(results)])
    out = capsys.readouterr().out
    assert "### F1 of the flags, x 100\n\n|  | SST-2 20% |" in out
    assert "points on average over 1 runs" in out
