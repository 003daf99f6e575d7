"""The benchmark of the memory meter: its rows, its ground truth, its report."""

from typing import Any

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from transformers import EvalPrediction

import benchmark_memory as benchmark
from lstsd_hf.method import memory
from lstsd_hf.method.memory import Counters


def test_agreement_with_noisy_labels_follows_from_the_accuracy() -> None:
    rng = np.random.default_rng(0)
    true = rng.integers(0, 6, 200_000)
    predicted = np.where(rng.random(len(true)) < 0.7, true, (true + rng.integers(1, 6, len(true))) % 6)
    given = np.where(rng.random(len(true)) < 0.4, (true + rng.integers(1, 6, len(true))) % 6, true)
    found = benchmark.agreement(float((predicted == true).mean()), 0.4, 6)
    assert found == pytest.approx((predicted == given).mean(), abs=0.005)
    assert benchmark.agreement(0.8, 0.0, 2) == 0.8


def test_held_out_rows_are_others_from_the_same_hat() -> None:
    features = Features(
        {"text": Value("string"), "label": ClassLabel(names=["a", "b", "c"]), "sample_id": Value("int64")}
    )
    table = {"text": ["x"] * 2500, "label": [i % 3 for i in range(2500)], "sample_id": list(range(2500))}
    rows = Dataset.from_dict(table, features=features)
    train, held_out = benchmark.draw(benchmark.Run("trec6", 0.2, 1000, seed=3), rows, classes=3)
    assert (len(train), len(held_out)) == (1000, benchmark.HELD_OUT)
    assert not set(train["sample_id"]) & set(held_out["sample_id"])
    wrong = sum(label != sample % 3 for label, sample in zip(train["label"], train["sample_id"], strict=True))
    assert wrong == 200
    assert all(label == sample % 3 for label, sample in zip(held_out["label"], held_out["sample_id"], strict=True))


def line(honest: float, **changes: Any) -> dict[str, Any]:
    epoch = {"honest": honest, "honest_error": 0.02, "score": 0.8, "truth": 0.8, "truth_error": 0.0126}
    epoch |= {"agreement": 0.9, "wrong": 0.05}
    rows = changes.get("rows", 2000)
    return {
        "task": "sst2",
        "noise": 0.0,
        "rows": 2000,
        "seed": 0,
        "kind": "meter",
        "classes": 2,
        "epochs": [epoch] * 2,
        "counters": [counted(rows, 0.8), counted(rows, 0.9)],
    } | changes


def counted(rows: int, agreement: float) -> dict[str, Any]:
    """What a run keeps of an epoch in which that share of the predictions agrees with the labels throughout."""
    counters = Counters()
    position = (np.arange(rows) + 0.5) / rows
    counters.add(position, np.arange(rows) % 10 < 10 * agreement)
    return {"of_losses": False, "sums": counters.state()}


def test_the_report_tells_errors_and_how_often_the_truth_is_in_the_interval() -> None:
    text = benchmark.report([line(0.82), line(0.74), line(0.79, rows=10_000), line(0.8, rows=500, kind="by_length")])
    # Errors of 2 and 6 points. Standard errors: 2.0 as stated, 1.3 for 1,000 held-out rows; 6 exceeds 1.96 times both
    # together.
    assert "| 2,000 rows | 2 | 4.0 | -2.0 | 4.0 | 2.4 | 50 % | 10.0 |" in text
    assert "| 10,000 rows | 1 | 1.0 | -1.0 | 1.0 | 2.4 | 100 % | 10.0 |" in text
    assert "| sst2, 0%, 2,000 rows | 5%, 5% |" in text
    assert "| sst2, 0% wrong, 500 rows, grouped by length | 1 | 0.0 |" in text
    assert "MemoryStoppingCallback" not in text


def test_chance_alone_is_the_error_of_the_first_epochs_end_and_of_the_later_rises() -> None:
    run = line(0.8, rows=2400, counters=[counted(2400, 0.8), counted(2400, 0.9), counted(2400, 0.9)])
    # A line's slope has the variance 12 s^2 / N, where s^2 is an item's variance: 0.9 * 0.1 here. The line through the
    # last quarter of epoch 0 ends at the mean of 600 items, and its slope is limited to about a quarter.
    rises = 2 * 12 * 0.09 / 2400
    quarter = 0.8 * 0.2 / 600
    slope = 1 / (1 / 0.25**2 + 1 / (16 * 12 * 0.8 * 0.2 / 600))
    expected = np.sqrt(rises + quarter + 0.125**2 * slope)
    assert benchmark.chance(run) == pytest.approx(expected, rel=0.03)
    assert "| 2,400 rows | 4.0 | 3.2 |" in benchmark.report([run])
    assert memory.KEPT_SD > 0  # the filter has its assumptions back


def test_errors_of_a_regression_are_told_as_shares_of_the_truth() -> None:
    text = benchmark.report([line(0.82, task="stsb", classes=0), line(0.7, task="stsb", classes=0)])
    assert text.startswith("| stsb, 2 runs: epoch |")
    assert "| 2 | 0.800 | 7.5% | -5.0% | 3.0% | 50% |" in text


def test_the_score_is_the_accuracy_or_the_mean_squared_error() -> None:
    logits, labels = np.array([[0.0, 1.0], [2.0, 1.0], [0.0, 3.0], [1.0, 0.0]]), np.array([1, 0, 0, 0])
    assert benchmark.score(EvalPrediction(logits, labels)) == pytest.approx({"score": 0.75, "error": 0.2165}, abs=1e-4)
    scores = EvalPrediction(np.array([[1.0], [2.0]]), np.array([1.0, 4.0]))
    assert benchmark.score(scores) == pytest.approx({"score": 2.0, "error": np.sqrt(2)})


def test_early_stopping_takes_the_first_best_epoch_before_its_patience_ends() -> None:
    assert benchmark.early_stopped([0.5, 0.7, 0.7, 0.6, 0.9]) == (2, 4)
    assert benchmark.early_stopped([0.5, 0.4, 0.6, 0.5]) == (3, 4)
    assert benchmark.early_stopped([0.5, 0.6]) == (2, 2)


def test_when_to_stop_is_compared_by_cell() -> None:
    def run(seed: int, scores: list[float], kind: str, **changes: Any) -> dict[str, Any]:
        epochs = [{"score": score, "validation": 1 - score} for score in scores]
        return line(0.0, seed=seed, kind=kind, epochs=epochs, noise=0.2, **changes)

    lines = [
        run(0, [0.6, 0.9, 0.8, 0.7], "all_rows", stopped_at=3),
        run(0, [0.5, 0.6, 0.7, 0.8], "four_fifths", stopped_at=None),
        run(1, [0.6, 0.7, 0.8, 0.9], "all_rows", stopped_at=None),
        run(1, [0.8, 0.7, 0.7, 0.7], "four_fifths", stopped_at=2),
        run(2, [0.8, 0.7, 0.7, 0.7], "all_rows", stopped_at=2),  # the run to compare it with is not done yet
    ]
    assert benchmark.stops(*lines[:2]) == [0.7, 0.8, 0.5, 0.9, 3, 3, 2]
    assert benchmark.stops(*lines[2:4]) == [0.9, 0.9, 0.7, 0.9, 4, 4, 4]
    text = benchmark.report(lines)
    row = "| 2 | 80.0 | 85.0 | 60.0 | 90.0 | 3.5 | 3.5 | 3.0 |"
    assert f"| sst2, 20% wrong {row}\n| all {row}" in text


def test_counters_that_were_kept_are_measured_anew() -> None:
    rng = np.random.default_rng(0)
    folded = []
    for agreement in (0.5, 0.6, 0.8, 0.9, 0.95):  # all growth is between epochs: memory
        counters = Counters()
        counters.add(rng.random(2000), rng.random(2000) < agreement)
        folded.append({"of_losses": False, "sums": counters.state()})
    stale = {"honest": 0.9, "honest_error": 0.0, "memorised": 0.0, "memorised_error": 0.0, "truth": 0.5}
    found = benchmark.rescored({"kind": "all_rows", "epochs": [stale] * 5, "counters": folded, "stopped_at": None})
    assert found["epochs"][-1]["honest"] == pytest.approx(0.5, abs=0.1)
    assert found["epochs"][-1]["truth"] == 0.5
    assert found["stopped_at"] == 3


def test_runs_are_told_apart_and_the_most_valuable_come_first() -> None:
    runs = list(benchmark.runs())
    assert len({run.key for run in runs}) == len(runs)
    assert {run.task for run in runs[:7]} == set(benchmark.TASKS)
    assert {run.rows for run in runs[:7]} == {2000, 1490}
    assert sum(run.rows == 20_000 for run in runs) == 6
    by_length = [run for run in runs if run.kind == benchmark.BY_LENGTH]
    assert {(run.noise, run.settings["train_sampling_strategy"]) for run in by_length} == {
        (noise, "group_by_length") for noise in benchmark.FEW_NOISES
    }
    stopping = [run for run in runs if run.kind in (benchmark.ALL_ROWS, benchmark.FOUR_FIFTHS)]
    assert len(stopping) == 72
    assert all(run.settings["lr_scheduler_type"] == "constant_with_warmup" for run in stopping)
