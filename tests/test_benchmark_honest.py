"""The benchmark of what trust by honesty teaches, on histories made by hand."""

from pathlib import Path

import numpy as np
import pytest

import benchmark_honest as benchmark
from benchmark_labels import History, measured_by_epoch

SAMPLES, CLASSES = 600, 3


def history(seed: int = 0) -> History:
    """A fifth of the labels is wrong. Most predictions are right; each epoch, the model knows more labels by heart."""
    rng = np.random.default_rng(seed)
    true = rng.integers(0, CLASSES, SAMPLES)
    given = np.where(rng.random(SAMPLES) < 0.2, (true + 1) % CLASSES, true)
    knows, first_known = rng.random(SAMPLES) < 0.9, rng.integers(2, 9, SAMPLES)
    said = np.where(knows, true, (true + 2) % CLASSES)
    by_heart = first_known <= np.arange(6)[:, None]
    predicted = np.where(by_heart, given, said)
    sureness = rng.uniform(1, 2, (6, SAMPLES, 1)) * np.where(predicted == said, 1, 0.5)[..., None]
    return History((np.eye(CLASSES)[predicted] * sureness).astype(np.float32), given, true)


def test_label_and_honest_past_together_are_righter_than_each_alone() -> None:
    made = history()
    said = measured_by_epoch(made, 0)
    loss = {
        name: benchmark.loss(benchmark.target(made, said, 5, change), made.true)
        for name, change in benchmark.CHANGES.items()
    }
    assert loss["the rule"] < benchmark.loss(np.eye(CLASSES)[made.given], made.true)
    assert loss["the rule"] < loss["without the label"]
    assert len({round(value, 9) for value in loss.values()}) == len(loss)  # each change has an effect


def test_the_report_has_a_row_for_each_change(tmp_path: Path) -> None:
    for seed in (0, 1):
        history(seed).save(tmp_path / f"sst2-0.2-{seed}-dirty-plain.npz")
        history(seed).save(
            tmp_path / f"sst2-0.0-{seed}-dirty-plain.npz"
        )  # no label is wrong, so the report leaves it out
    text = benchmark.report(tmp_path)
    assert text.startswith("sst2; 2 seeds or more each")
    assert [line.split(" | ")[0] for line in text.splitlines()[4:]] == [
        f"| {name}" for name in ["the label", *benchmark.CHANGES]
    ]
    assert "epoch 4, 20% wrong" in text


def test_a_folder_without_histories_is_told_of(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="has no history of a plain run with wrong labels: make some"):
        benchmark.report(tmp_path)
