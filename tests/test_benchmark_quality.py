"""The quality benchmark: its rows, its statistics, and a small grid."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml
from datasets import Dataset
from scipy.stats import ttest_rel

import benchmark_quality as benchmark
from lstsd_hf import LogitsStore, write_report
from quality import grid
from quality.rows import without_overlap

SCRIPT = Path(benchmark.__file__)
RANKINGS = ("auc", "precision", "recall")
ROOT = SCRIPT.parents[1]
PLAN: dict[str, Any] = {
    "num_hidden_layers": 1,
    "max_seq_length": 16,
    "seeds": [0, 1],
    "cells": [
        {"task": "sst2", "train_samples": 24, "reserved_samples": 8, "test_samples": 8},
        {"task": "sst2", "noise": 0.4, "train_samples": 24, "reserved_samples": 8, "test_samples": 8},
        {"task": "stsb", "train_samples": 24, "test_samples": 8},
    ],
    "training": {
        "num_train_epochs": 3,
        "per_device_train_batch_size": 6,
        "use_cpu": True,
        "long_term_weight": 0,
        "short_term_weight": 0,
        "logits_retention": "all",
    },
    "methods": {
        "plain": {},
        "plain_short": {"num_train_epochs": 1},
        "label_smoothing": {"label_smoothing_factor": 0.1},
        "lstsd": {"long_term_weight": 0.4, "short_term_weight": 0.4},
    },
}


@pytest.fixture(scope="module")
def plan(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plan") / "plan.yaml"
    path.write_text(yaml.safe_dump({**PLAN, "model_name_or_path": model}))
    return path


@pytest.fixture(scope="module")
def in_this_process() -> Iterator[None]:
    """Does runs in a thread, so that no process has to start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grid, "ProcessPoolExecutor", lambda *_: ThreadPoolExecutor(1))
        yield


@pytest.fixture(scope="module")
def finished(plan: Path, text_layout: str, in_this_process: None) -> Path:
    """The results of a grid that was cut off after its first seed, and then resumed."""
    results = plan.with_name("results.jsonl")
    whole = benchmark.read_plan(str(plan))
    first = [run for run in whole.runs() if run.seed == 0]
    benchmark.train_all(first, partial(benchmark.train, data_dir=text_layout), results, 1, benchmark.told)
    before = results.read_text()
    command = [sys.executable, str(SCRIPT), str(plan), "--data_dir", text_layout, "--results", str(results)]
    command += ["--workers", "1"]
    outcome = subprocess.run(command, check=True, capture_output=True, text=True)
    assert f"{2 * len(first)} runs, {len(first)} of them done before" in outcome.stdout
    assert results.read_text().startswith(before)
    return results


def texts(rows: Any, columns: tuple[str, ...]) -> list[str]:
    return [row[name].lower().strip() for row in rows for name in columns]


def test_rows_are_drawn_by_seed_and_none_is_in_two_places(text_layout: str) -> None:
    cell = benchmark.Cell("sst2", noise=0.25, train_samples=16, reserved_samples=12, test_samples=6)
    one, again, other = (benchmark.split(cell, seed, False, text_layout) for seed in (0, 0, 1))
    tuning = benchmark.split(cell, 0, True, text_layout)
    assert one.train.to_dict() == again.train.to_dict()
    assert one.train["sample_id"][:] != other.train["sample_id"][:]
    assert tuning.train.to_dict() == one.train.to_dict()
    assert not set(tuning.test["sample_id"]) & set(one.train["sample_id"])
    assert not set(tuning.test["sample_id"]) & set(other.train["sample_id"])
    drawn = texts(one.train, one.text_columns)
    assert (one.dev_samples, tuning.dev_samples) == (16, 0)
    for text in texts(one.test, one.text_columns)[one.dev_samples :]:
        assert not any(f" {text} " in f" {known} " or f" {known} " in f" {text} " for known in drawn)


def test_exactly_the_share_of_labels_is_changed_and_always_to_another_class(text_layout: str) -> None:
    clean, noisy = (
        benchmark.split(benchmark.Cell("sst2", noise, 30, 0, 4), 3, False, text_layout) for noise in (0.0, 0.4)
    )
    assert clean.train["sample_id"][:] == noisy.train["sample_id"][:]
    changed = [
        i for i, pair in enumerate(zip(clean.train["label"], noisy.train["label"], strict=True)) if len({*pair}) == 2
    ]
    assert len(changed) == 12
    assert sorted(noisy.mislabelled["sample_id"]) == sorted(clean.train["sample_id"][i] for i in changed)
    truth = dict(zip(clean.train["sample_id"], clean.train["label"], strict=True))
    assert noisy.mislabelled["label"][:] == [truth[i] for i in noisy.mislabelled["sample_id"]]


def test_phrases_that_overlap_are_found_in_both_directions() -> None:
    drawn = Dataset.from_dict({"sentence": ["a very fine film", "dull"]})
    candidates = ["fine film", "a fine film", "so dull a film", "FINE", "fin", "dulled", "a very fine film indeed"]
    rows = Dataset.from_dict({"sentence": candidates})
    kept = without_overlap(rows, drawn, ("sentence",), None)
    assert [candidates[i] for i in kept] == ["a fine film", "fin", "dulled"]
    assert without_overlap(rows, drawn, ("sentence",), 1) == kept[:1]


def test_more_rows_than_there_are_is_refused(text_layout: str) -> None:
    with pytest.raises(ValueError, match=r"sst2 has 40 rows that are not reserved: expected 41 to draw from\."):
        benchmark.split(benchmark.Cell("sst2", 0.0, 41, 8), 0, False, text_layout)


def test_calibration_error_by_hand() -> None:
    probs = np.array([[0.9, 0.1], [0.9, 0.1], [0.3, 0.7], [0.0, 1.0]])
    # The bins of 0.9, 0.7 and 1.0 have accuracy 0.5, 1 and 0.
    expected = (2 * abs(0.5 - 0.9) + abs(1 - 0.7) + abs(0 - 1.0)) / 4
    assert benchmark.calibration_error(probs, np.array([0, 1, 1, 0])) == pytest.approx(expected)


def test_wrong_labels_that_no_epoch_believed_are_all_found(tmp_path: Path) -> None:
    labels, wrong = np.arange(40) % 2, np.arange(10)
    store = LogitsStore.create(tmp_path / "_logits", 40, (2,), "float32", "test")
    for epoch in (0, 1):
        truth = np.where(np.isin(np.arange(40), wrong), 1 - labels, labels)
        store.record(epoch, np.arange(40), np.eye(2, dtype=np.float32)[truth] * (1 + np.arange(40)[:, None] / 40))
        store.seal(epoch)
    store.write_labels(labels)
    write_report(tmp_path)
    found = benchmark.found_errors(tmp_path / "_report", wrong.tolist())
    assert found == {f"{score}_{name}": 1.0 for score in ("noise_score", "margin", "last_loss") for name in RANKINGS}
    others = benchmark.found_errors(tmp_path / "_report", list(range(30, 40)))  # right labels, the surest ones
    assert (others["noise_score_auc"], others["noise_score_precision"], others["noise_score_recall"]) == (
        0.0,
        0.0,
        0.0,
    )


def test_the_interval_is_that_of_the_paired_t_test() -> None:
    method, baseline = np.array([71.0, 73.5, 70.0, 75.0]), np.array([70.0, 71.0, 70.5, 72.0])
    found = benchmark.paired(method, baseline)
    interval = ttest_rel(method, baseline).confidence_interval(0.95)
    assert (found.mean - found.half_width, found.mean + found.half_width) == pytest.approx(
        (interval.low, interval.high)
    )
    assert (found.wins, found.losses) == (3, 1)
    assert benchmark.paired(method, baseline, lower_is_better=True).wins == 1


def test_every_run_has_one_line_with_its_metrics(plan: Path, finished: Path) -> None:
    lines = [json.loads(line) for line in finished.read_text().splitlines()]
    runs = list(benchmark.read_plan(str(plan)).runs())
    assert sorted(line["key"] for line in lines) == sorted(run.key for run in runs)
    assert not any(line["task"] == "stsb" and line["method"] == "label_smoothing" for line in lines)
    for line in lines:
        assert 0 <= line.get("nll", 0) < 10
        assert ("believed" in line) == ("noise_score_auc" in line) == bool(line["noise"])
        assert ("ece" in line) == (line["task"] != "stsb")
        assert line["test_samples"] >= 16
        assert ("honest_loss" if line["task"] == "stsb" else "drawn_accuracy") in line


def test_a_method_s_name_is_not_part_of_its_result_and_its_settings_are(plan: Path) -> None:
    whole = benchmark.read_plan(str(plan))
    renamed = benchmark.Plan(**{**vars(whole), "methods": {"other": whole.methods["lstsd"]}})
    changed = benchmark.Plan(**{**vars(whole), "methods": {"lstsd": {**whole.methods["lstsd"], "temperature": 2.0}}})
    keys = {run.key for run in whole.runs()}
    assert {run.key for run in renamed.runs()} < keys
    assert not {run.key for run in changed.runs()} & keys


def test_two_methods_that_are_one_in_a_cell_are_trained_once(
    plan: Path, text_layout: str, tmp_path: Path, in_this_process: None
) -> None:
    run = next(benchmark.read_plan(str(plan)).runs())
    results = tmp_path / "results.jsonl"
    both = [run, replace(run, method="again")]
    benchmark.train_all(both, partial(benchmark.train, data_dir=text_layout), results, 1, benchmark.told)
    assert len(results.read_text().splitlines()) == 1


def test_after_an_error_no_run_is_begun_and_what_was_done_is_kept(
    plan: Path, tmp_path: Path, in_this_process: None
) -> None:
    begun = []

    def work(run: benchmark.Run) -> grid.Line:
        begun.append(run.key)
        time.sleep(0.05)
        if len(begun) == 2:
            raise ZeroDivisionError
        return {"key": run.key}

    runs = list(benchmark.read_plan(str(plan)).runs())
    with pytest.raises(ZeroDivisionError):
        benchmark.train_all(runs, work, tmp_path / "results.jsonl", 1, str)
    lines = [json.loads(line)["key"] for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert begun[0] in lines
    assert set(lines) == set(begun) - {begun[1]}
    assert len(begun) < len(runs) // 2


def test_a_line_that_cannot_be_written_ends_the_grid(plan: Path, tmp_path: Path, in_this_process: None) -> None:
    begun = []

    def work(run: benchmark.Run) -> grid.Line:
        begun.append(run.key)
        time.sleep(0.05)
        return {"key": run.key}

    def told(line: grid.Line) -> str:
        raise OSError("no space left")

    runs = list(benchmark.read_plan(str(plan)).runs())
    with pytest.raises(OSError, match="no space left"):
        benchmark.train_all(runs, work, tmp_path / "results.jsonl", 1, told)
    assert len(begun) < len(runs) // 2


def test_a_cell_has_its_own_layers_and_null_is_the_default_of_its_task(plan: Path) -> None:
    whole = benchmark.read_plan(str(plan))
    cells = [{"task": "sst2"}, {"task": "stsb", "num_hidden_layers": 2}]
    defaults = {"long_term_weight": None, "short_term_weight": None}
    numbers = {"long_term_weight": 0.1, "short_term_weight": 0.1}
    methods = {"defaults": defaults, "numbers": numbers, "half": {**defaults, "long_term_weight": 0.0}}
    changed = benchmark.Plan(**{**vars(whole), "seeds": [0], "cells": cells, "methods": methods})
    runs = {(run.cell.task, run.method): run for run in changed.runs()}
    assert {task: runs[task, "defaults"].num_hidden_layers for task in ("sst2", "stsb")} == {"sst2": 1, "stsb": 2}
    weights = {name: [run.settings[weight] for weight in defaults] for name, run in runs.items()}
    assert weights["sst2", "defaults"] == [0.4, 0.4]
    assert weights["stsb", "half"] == [0.0, 0.1]
    assert runs["stsb", "defaults"].key == runs["stsb", "numbers"].key


def test_a_mean_is_over_the_cells_that_a_method_is_planned_for(plan: Path) -> None:
    whole = benchmark.read_plan(str(plan))
    gain = {"label_smoothing": 0.02, "lstsd": 0.04}
    lines = [
        {"key": run.key, "score": 0.5 + gain.get(run.method, 0.0) * (2 if run.cell.task == "stsb" else 1)}
        for run in whole.runs()
    ]
    clean = [run.cell for run in whole.runs() if run.method == "plain" and run.seed == 0 and not run.cell.noise]
    results = benchmark.Results(whole, lines)
    means = {name: benchmark.average(results, clean, name, "plain", "score").mean for name in gain}
    assert means == pytest.approx({"label_smoothing": 2.0, "lstsd": 6.0})  # a regression has no label smoothing
    cut_off = benchmark.Results(whole, lines[:8])  # nothing of STS-B
    assert benchmark.average(cut_off, clean, "lstsd", "plain", "score") is None


def test_honest_accuracy_is_held_against_labels_as_noisy(plan: Path) -> None:
    whole = benchmark.read_plan(str(plan))
    said = {"honest_accuracy": 0.6, "honest_accuracy_error": 0.03, "drawn_accuracy": 0.75, "drawn_samples": 1200}
    lines = [{"key": run.key, "score": 0.8, **said} for run in whole.runs() if run.method == "plain" and run.seed == 0]
    results = benchmark.Results(whole, [line for line in lines if line["key"] != lines[2]["key"]])  # without STS-B
    (clean, noisy) = (gap for _, gap in results.meter_errors())
    assert clean == pytest.approx((0.6 - 0.75, np.hypot(0.03, 0.0125)))
    assert noisy == pytest.approx((0.6 - (0.75 * 0.6 + 0.25 * 0.4), np.hypot(0.03, 0.2 * 0.0125)))
    assert "| all | 2 | 10.0 | -5.0 | 3.1 | 50% |" in benchmark.of_meter(results)
    assert benchmark.of_meter(benchmark.Results(whole, [])) == ""


def test_the_report_is_made_from_the_lines_alone(
    plan: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    lines = finished.read_text().splitlines(keepends=True)
    one.write_text("".join(lines[:9]))
    two.write_text("".join(lines[7:]))  # two of the lines are in both
    command = [
        sys.executable,
        str(SCRIPT),
        str(plan),
        "--report",
        str(one),
        str(two),
        "--plot",
        str(tmp_path / "a.png"),
    ]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    scores = [
        100 * line["score"]
        for line in map(json.loads, lines)
        if (line["task"], line["noise"], line["method"]) == ("sst2", 0.4, "lstsd")
    ]
    assert f"| {np.mean(scores):.2f} ± {np.std(scores, ddof=1):.2f} |" in text
    assert "runs are missing" not in text
    assert "minus plain_short" in text
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    benchmark.main([str(plan), "--report", str(one)])
    assert f"{len(lines) - 9} runs are missing." in capsys.readouterr().out


CONFIGURATIONS = [path for path in sorted((ROOT / "configs" / "quality").glob("*.yaml")) if path.stem != "heads"]


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: path.stem)
def test_the_configurations_are_read(path: Path, tmp_path: Path) -> None:
    whole = benchmark.read_plan(str(path))
    for run in whole.runs():
        benchmark.LSTSDConfig(**{**run.arguments, "bf16": False, "output_dir": str(tmp_path)})


@pytest.mark.slow
def test_a_killed_grid_leaves_no_worker_behind(plan: Path, text_layout: str, tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), str(plan), "--data_dir", text_layout, "--results", str(tmp_path / "r")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as whole:
        deadline = time.monotonic() + 60
        while len(workers := psutil.Process(whole.pid).children()) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        whole.kill()
    assert len(workers) >= 2
    _, alive = psutil.wait_procs(workers, timeout=120)  # they import torch first
    assert not alive
