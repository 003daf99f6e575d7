"""The rival training methods of the quality benchmark, and labels that are changed where annotators would err."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from quality.rivals import RIVALS, wrong_by_loss
from quality.rows import Cell, flipped

LABELS = [0, 1, 1, 0]


def rival(name: str, noise: float = 0.0) -> Any:
    """A rival with a stub of a trainer: four samples of two classes, in a run of six epochs."""
    trainer = SimpleNamespace(
        train_dataset={"sample_id": [0, 1, 2, 3], "label": LABELS},
        args=SimpleNamespace(device="cpu", num_train_epochs=6),
        model=SimpleNamespace(config=SimpleNamespace(num_labels=2)),
        state=SimpleNamespace(epoch=0.0),
        batch_sample_ids=torch.arange(4),
    )
    return RIVALS[name](trainer, noise)


@pytest.mark.parametrize("name", [name for name in RIVALS if name != "honest_scores"])
def test_evaluation_is_by_cross_entropy_and_leaves_no_trace(name: str) -> None:
    made, logits, labels = rival(name, noise=0.2), torch.randn(4, 2), torch.tensor(LABELS)
    for _ in range(2):
        found = made(SimpleNamespace(logits=logits), labels)
        assert found == F.cross_entropy(logits, labels)


def test_forward_correction_by_hand() -> None:
    logits = torch.zeros(4, 2, requires_grad=True)
    with torch.no_grad():
        logits[:, 0] = np.log(3.0)  # 0.75 and 0.25
    loss = rival("forward", noise=0.2)(SimpleNamespace(logits=logits), torch.tensor(LABELS))
    expected = -(2 * np.log(0.8 * 0.75 + 0.2 * 0.25) + 2 * np.log(0.8 * 0.25 + 0.2 * 0.75)) / 4
    assert loss.item() == pytest.approx(expected)


def test_self_adaptive_training_begins_after_a_third_of_the_run_and_moves_labels_by_a_tenth() -> None:
    made, logits, labels = rival("sat"), torch.randn(4, 2, requires_grad=True), torch.tensor(LABELS)
    assert made(SimpleNamespace(logits=logits), labels) == F.cross_entropy(logits, labels)
    made.trainer.state.epoch = 2.0
    probs = logits.detach().softmax(dim=-1)
    target = 0.9 * F.one_hot(labels, 2) + 0.1 * probs
    weights = target.amax(dim=-1)
    expected = (weights * -(target * probs.log()).sum(dim=-1)).sum() / weights.sum()
    assert made(SimpleNamespace(logits=logits), labels).item() == pytest.approx(expected.item(), rel=1e-5)


def test_scores_that_are_memorised_are_stretched_from_their_labels() -> None:
    labels = torch.tensor([0.0, 1.0, 4.0, 5.0])
    made = rival("sat")
    made.trainer.train_dataset["label"] = labels.tolist()
    made.trainer.model.config.num_labels = 1
    made = RIVALS["honest_scores"](made.trainer, 0.0)
    said = torch.tensor([[0.5], [1.5], [3.5], [4.5]], requires_grad=True)
    assert made(SimpleNamespace(logits=said), labels).item() == pytest.approx(0.25)
    assert made(SimpleNamespace(logits=said.detach()), labels).item() == pytest.approx(0.25)
    made.trainer.state.epoch = 1.0
    log = {"honest_loss": 1.0, "memorised": 0.75, "memorised_error": 0.1}
    made.trainer.state.log_history = [log]
    found = made(SimpleNamespace(logits=said), labels).item()
    assert made.gate == pytest.approx(0.75 / (0.75 + 4.25 - 1))  # the labels' variance is 4.25
    # Predictions are half a point from the labels. The target is stretched to one point, whose square is the honest
    # loss, so predictions are half a point from it too.
    assert found == pytest.approx(0.25)
    nearer = torch.tensor([[1.0], [2.0], [3.0], [4.0]], requires_grad=True)
    assert made(SimpleNamespace(logits=nearer), labels).item() == pytest.approx(1 - made.gate)


def test_scores_are_exchanged_among_those_that_are_changed() -> None:
    given = np.arange(10, dtype=np.float32)
    wrong = flipped(Cell("stsb", noise=0.4), given, [], np.random.default_rng(0), ())
    assert (wrong != given).sum() == 4
    assert sorted(wrong) == given.tolist()


def test_large_losses_are_told_from_small_ones() -> None:
    rng = np.random.default_rng(0)
    losses = np.concatenate([rng.exponential(0.1, 800), 2 + rng.exponential(0.5, 200)])
    wrong = wrong_by_loss(losses)
    assert wrong[:800].mean() < 0.05
    assert wrong[800:].mean() > 0.9


def test_annotators_err_where_a_bag_of_words_does() -> None:
    rng = np.random.default_rng(0)
    given = rng.integers(0, 2, 200)
    texts = [f"the film was {('bad', 'good')[label]} {i % 7}" for i, label in enumerate(given)]
    misleading = rng.permutation(200)[:40]
    for i in misleading:
        texts[i] = f"the film was {('good', 'bad')[given[i]]} {i % 7}"
    wrong = flipped(Cell("sst2", noise=0.2, flips="as_annotators"), given, texts, rng, ("a", "b"))
    assert set(np.flatnonzero(wrong != given)) == set(misleading)
    with pytest.raises(ValueError, match=r"expected flips to be one of .* not 'oddly'"):
        flipped(Cell("sst2", noise=0.2, flips="oddly"), given, texts, rng, ("a", "b"))
