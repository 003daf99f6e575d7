"""The benchmark of the memory meter: its rows, its truth, its report."""

from typing import Any

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Value

import benchmark_memory as benchmark


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
    epoch = {"honest_accuracy": honest, "honest_accuracy_error": 0.02, "accuracy": 0.8, "truth": 0.8}
    epoch |= {"agreement": 0.9, "noise_share": 0.05}
    return {
        "task": "sst2",
        "noise": 0.0,
        "rows": 2000,
        "classes": 2,
        "held_out": 1000,
        "epochs": [epoch] * 2,
    } | changes


def test_the_report_tells_errors_and_how_often_the_truth_is_in_the_interval() -> None:
    text = benchmark.report([line(0.82), line(0.74), line(0.79, rows=10_000)])
    # 2 and 6 points off. As told: 2.0, and 1.3 for 1,000 held-out rows; 6 is outside of 1.96 times both together.
    assert "| 2,000 rows | 2 | 4.0 | -2.0 | 4.0 | 2.4 | 50 % | 10.0 |" in text
    assert "| 10,000 rows | 1 | 1.0 | -1.0 | 1.0 | 2.4 | 100 % | 10.0 |" in text
    assert "| sst2, 0%, 2,000 rows | 5%, 5% |" in text


def test_runs_are_told_apart_and_the_most_valuable_come_first() -> None:
    runs = list(benchmark.runs())
    assert len({run.key for run in runs}) == len(runs)
    assert {run.task for run in runs[:7]} == set(benchmark.TASKS)
    assert runs[0].rows == 2000
    assert runs[-1].rows == 10_000
