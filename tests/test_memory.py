"""The memory meter on simulated runs whose honest and memorised parts are known, and the share of wrong labels."""

import json
from typing import Any

import numpy as np
import pytest
import torch

from lstsd_hf.method.heads import Classes, Labels, Scores
from lstsd_hf.method.many_rows import Spans, Tokens, Vocabulary
from lstsd_hf.method.memory import BINS, MODEL_ERROR_OF_LOSSES, Counters, MemoryMeter

EPOCHS = 6


def simulated(samples: int, honest: list[float], visit: float, seed: int) -> tuple[list[Counters], list[float]]:
    """Simulates epochs of a known model; returns their counters, and the memorised share at the end of each.

    Each sample has a difficulty from 0 to 1. Without memory, the model predicts a sample where its honest part, which
    grows from `honest[e]` to `honest[e + 1]` within epoch e, exceeds the difficulty. A visit makes the model remember
    a sample with probability `visit`, and in epoch 0 with a tenth of that.
    """
    rng = np.random.default_rng(seed)
    hard, known = rng.random(samples), np.zeros(samples, bool)
    epochs, memorised = [], []
    before = None
    for epoch in range(EPOCHS):
        counters = Counters()
        position = rng.permutation(samples) / samples
        level = honest[epoch] + (honest[epoch + 1] - honest[epoch]) * position
        hits = ((hard < level) | known).astype(int)  # a visit does not help the prediction made in it
        counters.add(position, hits, before)
        memorised.append(float((known & (hard >= honest[epoch + 1])).mean()))
        known = known | (rng.random(samples) < (visit if epoch else 0.1 * visit))
        before = hits
        epochs.append(counters)
    return epochs, memorised


@pytest.mark.parametrize(
    ("honest", "visit"),
    [
        ([0.5, 0.75, 0.8, 0.81, 0.815, 0.82, 0.82], 0.4),  # learns, and memorises the rest
        ([0.5, 0.55, 0.56, 0.56, 0.56, 0.56, 0.56], 0.5),  # wrong labels: almost only memory grows
        ([0.5, 0.7, 0.72, 0.73, 0.73, 0.73, 0.73], 0.0),  # nothing by heart
    ],
)
def test_a_known_split_is_found(honest: list[float], visit: float) -> None:
    errors = []
    for seed in range(4):
        epochs, memorised = simulated(4000, honest, visit, seed)
        meter = MemoryMeter()
        for epoch, counters in enumerate(epochs):
            found = meter.fold(counters)
            errors.append(found.honest - honest[epoch + 1])
            assert abs(errors[-1]) < 2 * found.honest_error
            assert abs(found.memorised - memorised[epoch]) <= 2 * found.memorised_error
        # Agreement is the sum of both parts.
        assert found.honest + found.memorised == pytest.approx(
            epochs[-1].hits[-6:].sum() / epochs[-1].items[-6:].sum(), abs=0.05
        )
    assert np.abs(errors).mean() < 0.035


def test_what_is_by_heart_is_not_taken_for_honest() -> None:
    """At the end, agreement is far above what the model can do; the estimate is not."""
    epochs, _ = simulated(4000, [0.5, 0.55, 0.56, 0.56, 0.56, 0.56, 0.56], 0.5, seed=9)
    meter = MemoryMeter()
    for counters in epochs:
        found = meter.fold(counters)
    assert epochs[-1].hits.sum() / epochs[-1].items.sum() > 0.7
    assert found.honest < 0.63
    assert found.memorised > 0.1


def test_a_model_that_has_all_by_heart_is_not_said_to_learn_it() -> None:
    """Where agreement stays at its ceiling for many epochs, its parts stay as well."""
    epochs, _ = simulated(4000, [0.5, 0.55, 0.56, 0.56, 0.56, 0.56, 0.56], 1.0, seed=3)
    meter = MemoryMeter()
    for counters in [*epochs, *epochs[-1:] * 10]:
        found = meter.fold(counters)
    assert epochs[-1].hits.sum() == epochs[-1].items.sum()
    assert found.honest < 0.64


def test_losses_are_split_in_their_own_unit() -> None:
    """The loss is 8 for a miss and 0 for a hit, so its parts follow from those of the hits."""
    epochs, _ = simulated(4000, [0.5, 0.75, 0.8, 0.81, 0.815, 0.82, 0.82], 0.4, seed=0)
    for_hits, for_losses = MemoryMeter(), MemoryMeter(of_losses=True)
    errors = []
    for counters in epochs:
        hits = for_hits.fold(counters)
        losses = for_losses.fold(as_losses(counters, 8.0))
        own = MODEL_ERROR_OF_LOSSES * for_losses.state()["numbers"][-1]
        errors.append((losses.honest_error > own, losses.memorised_error > own))
    assert losses.honest == pytest.approx(8 * (1 - hits.honest), abs=0.3)
    assert losses.memorised == pytest.approx(8 * hits.memorised, abs=0.3)
    assert errors == [(True, False), *[(True, True)] * (len(errors) - 1)]  # nothing can be by heart in epoch 0
    memory, error = for_losses.now(8 * 100, 1000)  # a mean loss of 0.8 in the epoch so far
    assert memory == pytest.approx(losses.honest - 0.8)
    assert error > losses.honest_error


def as_losses(counters: Counters, unit: float) -> Counters:
    n, y, yy, x, xx, xy = counters.sums.T
    miss, miss_before = unit * (n - y), unit * (n - x) if x.any() else x
    squares = unit**2 * (n - 2 * y + yy)
    before = unit**2 * (n - 2 * x + xx) if x.any() else x
    both = unit**2 * (n - x - y + xy) if x.any() else x
    return Counters(np.stack([n, miss, squares, miss_before, before, both], axis=1))


@pytest.mark.parametrize("of_losses", [False, True])
def test_the_honest_part_stays_in_its_range(of_losses: bool) -> None:
    """Of a model that gets nothing right, or whose loss is 0 in all epochs but the first."""
    meter = MemoryMeter(of_losses)
    values = [np.linspace(1, 0, 240), *np.zeros((4, 240))] if of_losses else np.zeros((5, 240))
    for value in values:
        counters = Counters()
        counters.add(np.arange(240) / 240, value)
        assert meter.fold(counters).honest >= 0
    if not of_losses:
        rises = [np.repeat([0.0, 1.0], [120 - 40 * epoch, 120 + 40 * epoch]) for epoch in range(3)]
        meter = MemoryMeter()
        for value in rises:
            counters = Counters()
            counters.add(np.arange(240) / 240, value)
            assert meter.fold(counters).honest <= 1


def test_the_state_is_plain_and_goes_on_where_it_was() -> None:
    epochs, _ = simulated(1000, [0.5, 0.75, 0.8, 0.81, 0.815, 0.82, 0.82], 0.4, seed=0)
    whole, parted = MemoryMeter(), MemoryMeter()
    for counters in epochs:
        parted = MemoryMeter.of_state(json.loads(json.dumps(parted.state())))
        again = Counters.of_state(json.loads(json.dumps(counters.state())))
        assert whole.fold(counters) == parted.fold(again)
        assert whole.now(70, 100) == parted.now(70, 100)


@pytest.mark.parametrize(
    "wrong", [None, [], {"epochs": 1}, [[0.0] * 6] * (BINS - 1), [[float("nan")] * 6] * BINS, "x"]
)
def test_a_damaged_state_is_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match="expected"):
        Counters.of_state(wrong)
    with pytest.raises(ValueError, match="expected"):
        MemoryMeter.of_state(wrong)
    with pytest.raises(ValueError, match="expected"):
        MemoryMeter.of_state(MemoryMeter().state() | {"numbers": wrong})
    with pytest.raises(ValueError, match="expected"):
        MemoryMeter.of_state(MemoryMeter().state() | {"epochs": -1})


def test_counters_do_not_depend_on_how_items_are_grouped() -> None:
    rng = np.random.default_rng(0)
    position, value, before = rng.random(500), rng.random(500), rng.random(500)
    whole, parted = Counters(), Counters()
    whole.add(position, value, before)
    for part in (slice(0, 7), slice(7, 300), slice(300, 500)):
        parted.add(position[part], value[part], before[part])
    assert (whole.sums == parted.sums).all()
    assert whole.items.sum() == 500


def test_an_epoch_of_few_steps_or_of_one_kind_of_predictions_gives_numbers() -> None:
    for hits in ([1] * 8, [0] * 8, [1, 0] * 4):
        meter = MemoryMeter()
        for _ in range(3):
            counters = Counters()
            counters.add(np.repeat([0.1, 0.3], 4), hits, hits)
            assert np.isfinite(meter.fold(counters)).all()


# ---- what a hit is


def test_hits_of_each_head() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0], [0.0, 1.0, 5.0], [torch.nan, 0.0, 0.0]])
    hits = Classes().scores({"values": logits}, torch.tensor([0, 2, -100, 1]), None)
    assert hits[:2].tolist() == [1, 0]
    assert hits[2:].isnan().all()
    assert Tokens().scores({"values": logits}, torch.tensor([1, 1, 2, 0]), None)[:3].tolist() == [0, 1, 1]
    right = Labels().scores({"values": logits}, torch.tensor([[1.0, 1, 1], [0, 1, 1], [0, 0, 0], [0, 0, 0]]), None)
    assert right[:3].tolist() == pytest.approx([2 / 3, 1, 1 / 3])
    assert right[3].isnan()
    assert Scores().scores({"values": torch.tensor([[1.0], [3.0]])}, torch.tensor([2.0, 3.0]), None).tolist() == [1, 0]
    classes = torch.tensor([[5, 1], [7, 2], [3, 0]])
    found = Vocabulary(2, shifts=True).scores({"classes": classes}, torch.tensor([5, 2, -100]), None)
    assert found[:2].tolist() == [1, 0]
    assert found[2].isnan()


def test_hits_of_spans_are_the_most_probable_start_and_end_of_a_feature() -> None:
    rows = torch.tensor([[0.0, 1], [2, 0], [1, 3], [9, 0], [0, 9]])  # features of 3 and of 2 positions
    labels = torch.tensor([0, 1, 2, 0, 3])  # starts at 1, ends at 2; both at 1
    found = Spans().scores({"values": rows}, labels, torch.tensor([3, 2]))
    assert found[1, 0] == 1
    assert found[2, 1] == 1
    assert found[4].tolist() == [0, 1]
    assert found.isnan().sum() == 6
