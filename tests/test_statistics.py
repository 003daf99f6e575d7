"""Statistics of a run's epochs: against plain arithmetic, with retention, through a resume, and when damaged."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lstsd_hf import LogitsStore, LSTSDTrainer, StoreCorruptionError
from lstsd_hf.method import dynamics
from lstsd_hf.method.statistics import ABSOLUTE_ERROR, MARGIN, Statistic
from toys import Preempted, StopAfter, config, rows, tiny_bert

NAN = np.nan
EPOCHS, STEPS = 5, 3  # 20 rows in batches of 8
NAME = {"classes": "margin", "regression": "absolute_error"}


def folded(statistic: Statistic, epochs: Any, labels: Any) -> Any:
    values = None
    for predictions in epochs:
        values = statistic.fold(values, predictions, labels)
    return values


def some_logits(dtype: str) -> Any:
    """Logits of four epochs, five samples and three classes; the third sample misses one epoch, the last one all."""
    logits = np.random.default_rng(0).normal(0, 2, (4, 5, 3)).astype(dtype)
    logits[1, 2] = logits[:, 4] = NAN
    return logits


# ---- what is computed


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_the_margin_is_the_mean_over_the_epochs_that_have_a_prediction(dtype):
    logits, labels = some_logits(dtype), np.array([0, 2, 1, 1, 0])
    found = folded(MARGIN, logits, labels)
    assert found.dtype == np.float32
    for sample, label in enumerate(labels):
        margins = []
        for row in logits[:, sample].astype(float):
            if not np.isnan(row).any():
                shares = np.exp(row) / np.exp(row).sum()
                margins.append(shares[label] - max(np.delete(shares, label)))
        assert found[sample] == pytest.approx([np.mean(margins) if margins else 0, len(margins)], abs=1e-6)
    assert found[:, 1].tolist() == [4, 4, 3, 4, 0]
    score = dynamics.noise_score(dynamics.softmax(logits.astype(np.float32)), labels)
    np.testing.assert_allclose((1 - found[:4, 0]) / 2, score[:4], atol=1e-6)


def test_a_label_that_is_no_class_has_no_margin():
    found = folded(MARGIN, some_logits("float32"), np.array([-100, 2, 3, 1, 0]))
    assert found[:, 1].tolist() == [0, 4, 0, 4, 0]
    assert found[[0, 2], 0].tolist() == [0, 0]


def test_the_absolute_error_is_the_mean_over_the_epochs_that_have_a_prediction():
    predictions = np.array([[1.0, 2.0, NAN, 4.0], [2.0, 2.0, 3.0, 4.0], [6.0, NAN, NAN, 4.0]], np.float16)[..., None]
    labels = np.array([1.0, 2.5, 3.5, NAN], np.float32)  # the last sample has no score
    found = folded(ABSOLUTE_ERROR, predictions, labels)
    expected = [[(0 + 1 + 5) / 3, 3], [0.5, 2], [0.5, 1], [0, 0]]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert found.dtype == np.float32


@pytest.mark.parametrize("statistic", [MARGIN, ABSOLUTE_ERROR], ids=["margin", "absolute_error"])
def test_a_sample_does_not_depend_on_the_others(statistic):
    """So a large store can be folded in chunks."""
    logits, labels = some_logits("float16"), np.array([0, 2, 1, 1, 0])
    logits = logits if statistic is MARGIN else logits[..., :1]
    parts = [folded(statistic, logits[:, part], labels[part]) for part in (slice(0, 2), slice(2, 5))]
    np.testing.assert_array_equal(np.concatenate(parts), folded(statistic, logits, labels))


# ---- in a run


def run(folder: Path, head: str, *, stop: int | None = None, resume: bool = False, **changes: Any) -> Path:
    """Trains on 20 rows, and returns the folder of the store."""
    saving = {"save_strategy": "steps", "save_steps": 1} if stop is not None or resume else {}
    settings = config(folder, num_train_epochs=EPOCHS, learning_rate=0.02, **saving | changes)
    trainer = LSTSDTrainer(tiny_bert(head), settings, train_dataset=rows(20, head), callbacks=[StopAfter(stop)])
    try:
        trainer.train(resume_from_checkpoint=resume)
        assert stop is None
    except Preempted:
        pass
    return folder / "_logits"


@pytest.fixture(scope="module", params=NAME)
def needed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The head, and the store of a run that kept few epochs."""
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, run(folder, request.param, logits_retention="needed")


def test_a_run_that_keeps_few_epochs_leaves_the_statistic_of_all(needed, tmp_path):
    head, path = needed
    name = NAME[head]
    store = LogitsStore.open(path)
    assert store.sealed_epochs == [3, 4]
    assert [file.name for file in path.glob(f"{name}-*")] == [f"{name}-{EPOCHS - 1:04d}.npy"]
    store.verify()
    last, found = store.read_statistic(name)
    assert last == EPOCHS - 1

    everything = LogitsStore.open(run(tmp_path, head, logits_retention="all"))
    predictions = np.stack([everything.read(epoch, range(20)) for epoch in range(EPOCHS)])
    labels = everything.read_labels()
    if head == "classes":
        expected = 1 - 2 * dynamics.noise_score(dynamics.softmax(predictions), labels)
    else:
        expected = dynamics.mean_over_epochs(np.abs(predictions[:, :, 0] - labels))
    np.testing.assert_allclose(found[:, 0], expected, atol=1e-6)
    assert found[:, 1].tolist() == [EPOCHS] * 20
    np.testing.assert_array_equal(found, everything.read_statistic(name)[1])


@pytest.mark.parametrize("stop", [STEPS + 1, 2 * STEPS])  # in the middle of an epoch, and at the end of one
def test_a_resumed_run_ends_with_the_same_statistic_byte_for_byte(needed, tmp_path, stop):
    head, path = needed
    run(tmp_path, head, stop=stop, logits_retention="needed")
    resumed = run(tmp_path, head, resume=True, logits_retention="needed")
    for file in path.glob("*.npy"):
        assert (resumed / file.name).read_bytes() == file.read_bytes(), file.name
    assert {file.name for file in resumed.glob("*.npy")} == {file.name for file in path.glob("*.npy")}


def test_labels_that_no_margin_is_defined_for_leave_none(tmp_path):
    path = run(tmp_path, "multi_label")
    assert not list(path.glob("margin-*"))
    LogitsStore.open(path).verify()


# ---- damage


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_statistic_is_named(tmp_path, damage):
    store = LogitsStore.create(tmp_path / "s", 6, (2,), "float32", "toy")
    store.write_statistic("margin", 3, np.zeros((6, 2), np.float32))
    store.verify()
    file = tmp_path / "s" / "margin-0003.npy"
    data = bytearray(file.read_bytes())
    data[-9] ^= 4
    file.chmod(0o644)
    if damage == "remove":
        file.unlink()
    else:
        file.write_bytes(data if damage == "flip" else data[:-9])
    with pytest.raises(StoreCorruptionError, match=r"margin-0003\.npy"):
        LogitsStore.open(tmp_path / "s").verify()


def test_a_later_statistic_takes_the_place_of_an_earlier_one(tmp_path):
    store = LogitsStore.create(tmp_path / "s", 6, (2,), "float32", "toy")
    assert store.read_statistic("margin") is None
    for epoch in range(3):
        store.write_statistic("margin", epoch, np.full((6, 2), epoch, np.float32))
        store.write_statistic("spread", epoch, np.full(6, 10 * epoch, np.float32))
    assert sorted(file.name for file in store.path.glob("*.npy")) == ["margin-0002.npy", "spread-0002.npy"]
    last, found = LogitsStore.open(store.path).read_statistic("spread")
    assert (last, found.tolist()) == (2, [20.0] * 6)
    np.testing.assert_array_equal(np.load(store.path / "margin-0002.npy"), np.full((6, 2), 2, np.float32))
    copied = store.copy(tmp_path / "copy", {})
    copied.verify()
    assert copied.read_statistic("margin")[0] == 2
    for name in ("epoch", "Margin", "a-b", "../x", ""):
        with pytest.raises(ValueError, match="expected small letters for the name of a statistic"):
            store.write_statistic(name, 0, np.zeros(6))
