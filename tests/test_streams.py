"""Streams of samples: resumed, cut short, with accumulation."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from lstsd_hf import LogitsStore, LSTSDTrainer, add_sample_ids
from own_trainers import SHORT
from toys import config, rows, tiny_bert, weights

STEPS = 3  # in a pass over 24 rows in batches of 8
STREAM = {
    "num_samples": 24,
    "max_steps": 4 * STEPS,
    "save_strategy": "steps",
    "save_steps": 1,
    "logits_retention": "all",
    "learning_rate": 0.02,
}


class Trace(TrainerCallback):
    """Notes at each step the epoch that is recorded and the number of teachers."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, int, int]] = []

    def on_step_end(self, args, state, control, **kwargs):
        recorder = self.trainer._lstsd_callback.recorder
        self.steps.append((state.global_step, recorder.epoch, len(self.trainer.teacher_weights)))


def stream(folder: Path, resume: Any = None, **changes: Any) -> tuple[Any, list[tuple[int, int, int]]]:
    trace = Trace()
    data = add_sample_ids(rows(24)).to_iterable_dataset()
    arguments = config(folder, **SHORT | STREAM | changes)
    trainer = LSTSDTrainer(tiny_bert(dropout=0.0), arguments, train_dataset=data, callbacks=[trace])
    trace.trainer = trainer
    trainer.train(resume_from_checkpoint=resume)
    return trainer, trace.steps


def sealed(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in Path(folder, "_logits").glob("epoch-*.npy")}


@pytest.fixture(scope="module")
def whole_stream(tmp_path_factory) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp("stream")
    trainer, steps = stream(folder)
    assert [epoch for _, epoch, _ in steps] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    return trainer, folder


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_stream_resumed_in_its_first_epoch_is_the_uninterrupted_one(tmp_path, whole_stream, step):
    whole, folder = whole_stream
    trainer, steps = stream(tmp_path, str(folder / f"checkpoint-{step}"))
    assert torch.equal(weights(trainer.model), weights(whole.model))
    assert sealed(tmp_path) == sealed(folder)
    assert [epoch for _, epoch, _ in steps] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3][step:]


@pytest.mark.parametrize("step", [6, 9])
def test_a_stream_resumed_at_the_end_of_an_epoch_is_the_uninterrupted_one(tmp_path, whole_stream, step):
    whole, folder = whole_stream
    trainer, steps = stream(tmp_path, str(folder / f"checkpoint-{step}"))
    assert torch.equal(weights(trainer.model), weights(whole.model))
    assert sealed(tmp_path) == sealed(folder)
    assert steps[0] == (step + 1, step // STEPS, 2)


@pytest.mark.parametrize(("step", "epochs"), [(4, [1] * 3 + [2] * 3 + [3] * 2), (8, [2] * 3 + [3])])
def test_an_epoch_of_a_stream_that_was_cut_begins_anew_with_its_teachers(tmp_path, whole_stream, step, epochs):
    _, folder = whole_stream
    _, steps = stream(tmp_path, str(folder / f"checkpoint-{step}"))
    assert [epoch for _, epoch, _ in steps] == epochs
    assert {teachers for *_, teachers in steps} == {2}
    cut, before, after = step // STEPS, sealed(folder), sealed(tmp_path)
    for epoch in range(cut):  # what was sealed stays
        assert after[f"epoch-{epoch:04d}.npy"] == before[f"epoch-{epoch:04d}.npy"]
    store = LogitsStore.open(tmp_path / "_logits")
    store.verify()
    rows_of = [store.read(epoch, range(24)) for epoch in store.sealed_epochs]
    assert all(np.isfinite(found).all() for found in rows_of[:-1])
    seen = 8 * (step % STEPS)  # what was recorded before the cut stays as well
    np.testing.assert_array_equal(rows_of[cut][:seen], LogitsStore.open(folder / "_logits").read(cut, range(seen)))
    # A second cut, in an epoch that was begun again, is no different.
    _, steps = stream(tmp_path / "again", str(tmp_path / f"checkpoint-{step + 2}"))
    assert steps[0] == (step + 3, cut, 2)


def test_a_stream_that_does_not_pass_over_what_it_has_seen(tmp_path, whole_stream):
    _, folder = whole_stream
    for step, epochs in [(2, [0] * 3 + [1] * 3), (4, [1] * 3 + [2] * 3), (6, [2] * 3 + [3] * 3)]:
        checkpoint = str(folder / f"checkpoint-{step}")
        _, steps = stream(tmp_path / str(step), checkpoint, ignore_data_skip=True, max_steps=step + 6)
        assert [epoch for _, epoch, _ in steps] == epochs


@pytest.mark.parametrize("skip", [True, False])
def test_a_stream_saved_after_each_epoch(tmp_path, skip):
    settings = {"save_strategy": "epoch", "logits_retention": "needed", "ignore_data_skip": not skip}
    whole, _ = stream(tmp_path / "whole", **settings)
    for step in (3, 6, 9):
        trainer, steps = stream(tmp_path / str(step), str(tmp_path / "whole" / f"checkpoint-{step}"), **settings)
        assert steps[0] == (step + 1, step // STEPS, 2)
        assert torch.equal(weights(trainer.model), weights(whole.model))


def test_a_stream_cut_short_by_max_steps_is_completed(tmp_path):
    whole, _ = stream(tmp_path / "whole", max_steps=6)
    stream(tmp_path / "cut", max_steps=2, save_strategy="epoch")
    resumed, steps = stream(tmp_path / "cut", str(tmp_path / "cut" / "checkpoint-2"), max_steps=6)
    assert [epoch for _, epoch, _ in steps] == [0, 1, 1, 1]
    assert torch.equal(weights(resumed.model), weights(whole.model))


def test_a_stream_with_batches_left_over_from_accumulation(tmp_path):
    """5 batches in steps of 2: the Trainer makes no step of the fifth batch, and yields it on resume."""
    settings = {"per_device_train_batch_size": 5, "gradient_accumulation_steps": 2, "max_steps": 8}
    for strategy, step, after in [("epoch", 2, (3, 1, 2)), ("steps", 2, (3, 1, 2)), ("steps", 3, (4, 1, 2))]:
        folder = tmp_path / f"{strategy}-{step}"
        stream(folder, save_strategy=strategy, **settings)
        _, steps = stream(tmp_path / f"resumed-{strategy}-{step}", str(folder / f"checkpoint-{step}"), **settings)
        assert steps[0] == after
        store = LogitsStore.open(tmp_path / f"resumed-{strategy}-{step}" / "_logits")
        store.verify()
        assert np.isfinite(store.read(0, range(24))).all()


def test_the_linear_schedule_of_a_resumed_stream_ends_where_it_should(tmp_path, whole_stream):
    settings = {"weight_schedule": "linear"}
    whole, _ = stream(tmp_path / "whole", **settings)
    assert whole.teacher_weights.tolist() == pytest.approx([0.4, 0.4])
    for step in (2, 6, 9):
        resumed, _ = stream(tmp_path / str(step), str(tmp_path / "whole" / f"checkpoint-{step}"), **settings)
        assert torch.equal(weights(resumed.model), weights(whole.model))


def test_a_step_may_compute_several_losses_of_one_batch(tmp_path):
    """As adversarial training does. The first prediction counts, and the stream has given each sample once."""

    class Twice(LSTSDTrainer):
        def training_step(self, model, inputs, num_items_in_batch=None):
            model.train()
            inputs = self._prepare_inputs(inputs)
            losses = []
            for shift in (0.0, 0.05, -0.05):
                model.get_input_embeddings().weight.data.add_(shift)
                losses.append(self.compute_loss(model, inputs, num_items_in_batch=num_items_in_batch))
                self.accelerator.backward(losses[-1])
            return losses[0].detach()

    data = add_sample_ids(rows(24))
    for name, training_set in (("map", data), ("stream", data.to_iterable_dataset())):
        settings = config(tmp_path / name, **SHORT, num_samples=24, max_steps=2 * STEPS)
        Twice(tiny_bert(dropout=0.0), settings, train_dataset=training_set).train()
        store = LogitsStore.open(tmp_path / name / "_logits")
        assert store.sealed_epochs == [0, 1]
        assert np.isfinite(store.read(1, range(24))).all()
