"""What a user's own loss can know about the batch: its sample ids, and what the teachers predicted for them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from transformers import Trainer

from lstsd_hf import LogitsStore, LSTSDTrainer, PredictionRecorder, add_sample_ids, read_history
from toys import config, rows, tiny_bert, weights

SAMPLES, EPOCHS = 20, 3
RecordedTrainer = PredictionRecorder(Trainer)


def train(folder: Path, loss: Any, trainer_class: Any = LSTSDTrainer, **changes: Any) -> Any:
    """Trains with `loss(trainer, logits, labels)`, which returns one number for each sample of a batch."""
    holder: list[Any] = []

    def compute_loss_func(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
        return loss(holder[0], outputs.logits, labels).mean()

    args = config(folder, num_train_epochs=EPOCHS, **changes)
    data = add_sample_ids(rows(SAMPLES)).shuffle(seed=1)
    holder.append(trainer_class(tiny_bert(), args, train_dataset=data, compute_loss_func=compute_loss_func))
    holder[0].train()
    return holder[0]


def cross_entropy(trainer: Any, logits: Any, labels: Any) -> Any:
    return F.cross_entropy(logits, labels, reduction="none")


@pytest.mark.parametrize("trainer_class", [LSTSDTrainer, RecordedTrainer])
def test_a_loss_knows_whose_the_rows_are_and_what_they_were_taught(tmp_path, trainer_class):
    true = dict(enumerate(rows(SAMPLES)["label"]))
    seen, taught = [], []

    def loss(trainer: Any, logits: Any, labels: Any) -> Any:
        ids = trainer.batch_sample_ids
        assert [true[i] for i in ids.tolist()] == labels.tolist()
        seen.extend(ids.tolist())
        taught.append((int(trainer.state.epoch), ids, dict(trainer.batch_teachers)))
        return cross_entropy(trainer, logits, labels)

    trainer = train(tmp_path, loss, trainer_class)
    assert [sorted(seen[i : i + SAMPLES]) for i in range(0, len(seen), SAMPLES)] == [list(range(SAMPLES))] * EPOCHS
    assert trainer.batch_sample_ids is None
    assert not trainer.batch_teachers
    store = LogitsStore.open(tmp_path / "_logits")
    for epoch, ids, teachers in taught:
        if trainer_class is RecordedTrainer or epoch == 0:
            assert not teachers
            continue
        np.testing.assert_array_equal(teachers["short_term"], store.read(epoch - 1, ids.numpy()))


def test_the_weights_of_samples_count(tmp_path):
    left_out = torch.ones(SAMPLES)
    left_out[:10] = 0

    def weighed(trainer: Any, logits: Any, labels: Any) -> Any:
        return left_out[trainer.batch_sample_ids] * cross_entropy(trainer, logits, labels)

    settings = {"long_term_weight": 0.0, "short_term_weight": 0.0}
    weighted = train(tmp_path / "weighed", weighed, **settings)
    plain = train(tmp_path / "plain", cross_entropy, **settings)
    ids = torch.tensor(read_history(tmp_path / "weighed")["sample_id"])
    losses = torch.tensor([row[-1] for row in read_history(tmp_path / "weighed")["loss_by_epoch"]])
    assert losses[ids < 10].mean() > losses[ids >= 10].mean()
    assert not torch.equal(weights(weighted.model), weights(plain.model))


def test_an_error_in_the_loss_leaves_nothing_behind(tmp_path):
    trainers = []

    def loss(trainer: Any, logits: Any, labels: Any) -> Any:
        trainers.append(trainer)
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        train(tmp_path, loss)
    assert trainers[0].batch_sample_ids is None
    assert not trainers[0].is_computing_base_loss


def test_the_losses_of_samples_by_epoch_are_those_of_training(tmp_path):
    losses = np.full((EPOCHS, SAMPLES), np.nan)

    def loss(trainer: Any, logits: Any, labels: Any) -> Any:
        found = cross_entropy(trainer, logits, labels)
        losses[int(trainer.state.epoch), trainer.batch_sample_ids.numpy()] = found.detach().numpy()
        return found

    train(tmp_path, loss)
    history = read_history(tmp_path).sort("sample_id")
    np.testing.assert_allclose(np.array(history["loss_by_epoch"]).T, losses, rtol=1e-5)
