"""What real runs log about memory: with and without teachers, accumulated, resumed, in an order that is not random."""

import logging
from contextlib import suppress
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments

from lstsd_hf import LSTSDTrainer, MemoryStoppingCallback, PredictionRecorder, add_sample_ids, write_report
from toys import HEADS, Preempted, StopAfter, config, rows, tiny_bert, weights

NAMES = ("honest_accuracy", "honest_accuracy_error", "memorised", "memorised_error")
OF_LOSS = ("honest_loss", "honest_loss_error", "memorised", "memorised_error")
EPOCHS = 4


def run(folder: Path, head: str = "classes", dataset: Any = None, kind: Any = LSTSDTrainer, **changes: Any) -> Any:
    changes = {"num_train_epochs": EPOCHS, "learning_rate": 0.1, "logging_strategy": "no"} | changes
    resumes = changes.pop("resumes", None)
    dropout = changes.pop("dropout", 0.0)
    data = rows(96, head) if dataset is None else dataset
    trainer = kind(tiny_bert(head, dropout=dropout), config(folder, **changes), train_dataset=data)
    trainer.train(resume_from_checkpoint=resumes)
    return trainer


def measured(trainer: Any) -> list[dict[str, float]]:
    return [entry for entry in trainer.state.log_history if "memorised" in entry]


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("weight", [0.0, 0.4])
def test_every_epoch_logs_what_is_memorised(tmp_path: Path, head: str, weight: float) -> None:
    found = measured(run(tmp_path, head, long_term_weight=weight, short_term_weight=weight))
    assert [entry["epoch"] for entry in found] == [1, 2, 3, 4]
    for entry in found:
        names = OF_LOSS if head == "regression" else NAMES
        assert set(names) == set(entry) - {"epoch", "step"}
        assert all(np.isfinite(entry[name]) for name in names)
        assert entry[names[1]] > 0
        if head != "regression":
            assert 0 <= entry["honest_accuracy"] <= 1
    assert found[0]["memorised"] == 0  # nothing was visited twice yet


def test_the_counts_are_those_of_the_recorded_predictions(tmp_path: Path) -> None:
    """Counts again, from the sealed files and the order of the samples."""
    seen: list[list[int]] = []

    class Watched(LSTSDTrainer):
        def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
            seen.append(inputs["lstsd_sample_ids"].tolist())
            return super().training_step(model, inputs, *args, **kwargs)

    counted: list[Any] = []
    from lstsd_hf.method.memory import MemoryMeter

    class Meter(MemoryMeter):
        def fold(self, counters: Any) -> Any:
            counted.append(counters.sums.copy())
            return super().fold(counters)

    from lstsd_hf.training import memory_log

    original, memory_log.MemoryMeter = memory_log.MemoryMeter, Meter
    try:
        trainer = run(tmp_path, kind=Watched)
    finally:
        memory_log.MemoryMeter = original
    store, labels = trainer._lstsd_callback.recorder._store, np.array(trainer.train_dataset["label"])
    steps = 12
    for epoch in range(EPOCHS):
        sums = np.zeros((24, 6))
        for step, ids in enumerate(seen[epoch * steps : (epoch + 1) * steps]):
            now = store.read(epoch, ids).argmax(-1) == labels[ids]
            before = store.read(epoch - 1, ids).argmax(-1) == labels[ids] if epoch else np.zeros(len(ids), bool)
            window = int((step + 0.5) / steps * 24)
            sums[window] += [len(ids), now.sum(), now.sum(), before.sum(), before.sum(), (now & before).sum()]
        assert (counted[epoch] == sums).all()


def test_accumulated_micro_batches_count_as_one_batch(tmp_path: Path) -> None:
    # Without teachers: their trust is a mean over a micro-batch, so with them the weights would differ slightly.
    changes = {"learning_rate": 0.01, "long_term_weight": 0.0, "short_term_weight": 0.0}
    whole = run(tmp_path / "a", **changes)
    parted = run(tmp_path / "b", per_device_train_batch_size=2, gradient_accumulation_steps=4, **changes)
    assert torch.allclose(weights(whole.model), weights(parted.model), atol=1e-5)
    for one, other in zip(measured(whole), measured(parted), strict=True):
        assert one == pytest.approx(other, abs=1e-9)


# Within an epoch; at the end of one, before it is measured; at the end of the run.
@pytest.mark.parametrize("step", [18, 24, 12 * EPOCHS])
@pytest.mark.parametrize("head", ["classes", "regression"])
def test_a_resumed_run_logs_the_same(tmp_path: Path, head: str, step: int) -> None:
    changes = {"save_strategy": "steps", "save_steps": 6, "dropout": 0.1, "lr_scheduler_type": "linear"}
    whole = run(tmp_path, head, **changes)
    resumed = run(tmp_path, head, resumes=str(tmp_path / f"checkpoint-{step}"), **changes)
    assert measured(resumed) == measured(whole)
    assert len(measured(whole)) == EPOCHS


def test_a_resumed_run_goes_on_after_a_save_at_the_end_of_an_epoch(tmp_path: Path) -> None:
    whole = run(tmp_path, save_strategy="epoch")
    resumed = run(tmp_path, resumes=str(tmp_path / "checkpoint-24"), save_strategy="epoch")
    assert measured(resumed) == measured(whole)


def test_any_trainers_run_is_measured(tmp_path: Path) -> None:
    kind = PredictionRecorder(Trainer)
    args = TrainingArguments(str(tmp_path), num_train_epochs=2, use_cpu=True, report_to=[], disable_tqdm=True)
    trainer = kind(tiny_bert(), args, train_dataset=rows(96))
    trainer.train()
    assert [set(NAMES) <= set(entry) for entry in measured(trainer)] == [True, True]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    logger = logging.getLogger("lstsd_hf.training.memory_log")
    monkeypatch.setattr(logger, "warning", lambda line, *args, **kwargs: lines.append(line))
    return lines


class InOrder(LSTSDTrainer):
    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)


def test_an_order_that_is_not_random_is_left_out_and_says_so_once(tmp_path: Path, told: list[str]) -> None:
    trainer = run(tmp_path / "a", kind=InOrder)
    assert not measured(trainer)
    assert len(told) == 1
    assert "SequentialSampler, which is not known to be random" in told[0]
    # This strategy sorts by length within parts of an epoch; which rows are in a part is random.
    assert len(measured(run(tmp_path / "b", train_sampling_strategy="group_by_length"))) == EPOCHS
    assert len(told) == 1


def test_an_epoch_of_a_few_steps_is_left_out(tmp_path: Path, told: list[str]) -> None:
    assert not measured(run(tmp_path, dataset=rows(24)))
    assert "3 steps" in told[0]


def stream(shuffled: bool) -> Any:
    data = add_sample_ids(rows(96)).to_iterable_dataset()
    return data.shuffle(seed=0, buffer_size=96) if shuffled else data


def test_a_shuffled_stream_is_measured(tmp_path: Path, told: list[str]) -> None:
    changes = {"max_steps": 36, "num_samples": 96}
    found = measured(run(tmp_path / "a", dataset=stream(shuffled=True), **changes))
    assert [entry["step"] for entry in found] == [12, 24, 36]
    assert not told
    assert not measured(run(tmp_path / "b", dataset=stream(shuffled=False), **changes))
    assert "a stream that is not shuffled" in told[0]
    # num_samples is the largest id plus 1, and the stream has fewer rows.
    assert not measured(run(tmp_path / "c", dataset=stream(shuffled=True), max_steps=36, num_samples=200))
    assert "12 steps, but 25 were expected from num_samples" in told[1]


def test_a_run_without_labels_that_can_be_compared_is_left_out(tmp_path: Path, told: list[str]) -> None:
    class OwnLabels(LSTSDTrainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
            inputs = dict(inputs)
            target = inputs.pop("soft")
            outputs = model(**inputs)
            loss = -(target * outputs.logits.log_softmax(-1)).sum(-1).mean()
            return (loss, outputs) if return_outputs else loss

    data = rows(96)
    soft = np.eye(3, dtype=np.float32)[data["label"]].tolist()
    data = data.remove_columns("label").add_column("soft", soft)
    trainer = run(tmp_path, kind=OwnLabels, dataset=data, remove_unused_columns=False, label_names=["none"])
    assert not measured(trainer)
    assert "no labels" in told[0]
    assert len(told) == 1


def random_labels(count: int) -> datasets.Dataset:
    labels = np.random.default_rng(0).integers(0, 3, count)
    return rows(count).remove_columns("label").add_column("label", labels, feature=datasets.Value("int64"))


def test_random_labels_are_by_heart(tmp_path: Path) -> None:
    """A model can know random labels only by heart."""
    args = {"optim": "adamw_torch", "learning_rate": 5e-3, "num_train_epochs": 25, "teacher_trust": "confidence"}
    last = measured(run(tmp_path, dataset=random_labels(240), **args))[-1]
    assert last["honest_accuracy"] + last["memorised"] > 0.75
    assert last["memorised"] > 0.2


# ---- stopping


def told_to_stop(callback: MemoryStoppingCallback, *epochs: dict[str, float]) -> int | None:
    """The number of epochs of this log after which training was told to stop, or None."""
    state, control = TrainerState(is_world_process_zero=True), TrainerControl()
    callback.on_train_begin(None, state, control)  # type: ignore[arg-type]
    for number, entry in enumerate(epochs, start=1):
        state.log_history.append(entry)
        callback.on_epoch_end(None, state, control)  # type: ignore[arg-type]
        if control.should_training_stop:
            return number
    return None


def epoch(honest: float, memorised: float, name: str = "honest_accuracy") -> dict[str, float]:
    return {name: honest, f"{name}_error": 0.02, "memorised": memorised, "memorised_error": 0.02}


def test_a_run_is_stopped_when_memory_alone_grows(told_by_stopping: list[str]) -> None:
    learns = [epoch(0.5 + 0.1 * k, 0.05 * k) for k in range(4)]
    assert told_to_stop(MemoryStoppingCallback(), *learns) is None
    memorises = [*learns, epoch(0.81, 0.2), epoch(0.815, 0.25)]
    assert told_to_stop(MemoryStoppingCallback(), *memorises) == 6
    assert told_to_stop(MemoryStoppingCallback(patience=1), *memorises) == 5
    assert told_to_stop(MemoryStoppingCallback(patience=6), *memorises) is None
    # Nothing is learnt, and nothing memorised either: a plateau is not memory.
    assert told_to_stop(MemoryStoppingCallback(), *[epoch(0.5, 0.01)] * 5) is None
    losses = [epoch(1 - 0.1 * k, 0.05 * k, "honest_loss") for k in range(3)]
    assert told_to_stop(MemoryStoppingCallback(), *losses) is None
    worse = [*losses, epoch(0.81, 0.2, "honest_loss"), epoch(0.82, 0.3, "honest_loss")]
    assert told_to_stop(MemoryStoppingCallback(), *worse) == 5
    told_by_stopping.clear()
    only_tells = MemoryStoppingCallback(stop=False)
    assert told_to_stop(only_tells, *memorises, epoch(0.82, 0.3), epoch(0.82, 0.35)) is None
    assert only_tells.stopped_at == 6
    assert len(told_by_stopping) == 1
    assert "buy memory alone" in told_by_stopping[0]
    assert "Training ends" not in told_by_stopping[0]


@pytest.fixture
def told_by_stopping(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    logger = logging.getLogger("lstsd_hf.training.memory_stopping")
    monkeypatch.setattr(logger, "warning", lambda line, *args, **kwargs: lines.append(line))
    return lines


def test_a_patience_may_be_a_whole_number_of_numpy() -> None:
    assert MemoryStoppingCallback(patience=np.int64(2)).patience == 2  # type: ignore[arg-type]


@pytest.mark.parametrize("patience", [0, -1, 1.5, True, "2", np.float64(2), np.int64(0)])
def test_a_patience_that_is_no_number_of_epochs_is_refused(patience: Any) -> None:
    with pytest.raises(ValueError, match="whole number of epochs"):
        MemoryStoppingCallback(patience=patience)


def test_a_run_that_memorises_random_labels_is_stopped_and_one_that_learns_is_not(
    tmp_path: Path, told_by_stopping: list[str]
) -> None:
    def trained(folder: Path, data: Any) -> tuple[Any, MemoryStoppingCallback]:
        stopping = MemoryStoppingCallback()
        changes = {"optim": "adamw_torch", "learning_rate": 5e-3, "num_train_epochs": 15, "logging_strategy": "no"}
        trainer = LSTSDTrainer(
            tiny_bert(dropout=0.0), config(folder, **changes), train_dataset=data, callbacks=[stopping]
        )
        trainer.train()
        return trainer, stopping

    honest, learnt = trained(tmp_path / "a", rows(960).select(range(480)))
    assert learnt.stopped_at is None
    assert honest.state.epoch == 15
    memorised, stopped = trained(tmp_path / "b", random_labels(240))
    assert stopped.stopped_at is not None
    assert memorised.state.epoch == stopped.stopped_at < 15
    assert "Training ends here" in told_by_stopping[0]


def test_a_run_resumed_after_the_epoch_at_which_it_stops_is_stopped(tmp_path: Path) -> None:
    """A checkpoint of an epoch's last step is saved before that epoch is measured."""

    def trained(folder: Path, stop: int | None = None, resumes: bool = False) -> tuple[Any, MemoryStoppingCallback]:
        stopping = MemoryStoppingCallback()
        changes = {"optim": "adamw_torch", "learning_rate": 5e-3, "num_train_epochs": 10, "logging_strategy": "no"}
        changes |= {"save_strategy": "steps", "save_steps": 30}  # an epoch has 30
        trainer = LSTSDTrainer(
            tiny_bert(),
            config(folder, **changes),
            train_dataset=random_labels(240),
            callbacks=[stopping, StopAfter(stop)],
        )
        with suppress(Preempted):
            trainer.train(resume_from_checkpoint=resumes)
        return trainer, stopping

    whole, stopped = trained(tmp_path / "a")
    assert stopped.stopped_at is not None
    assert whole.state.global_step == 30 * stopped.stopped_at < 300
    trained(tmp_path / "b", stop=whole.state.global_step)
    resumed, again = trained(tmp_path / "b", resumes=True)
    assert again.stopped_at == stopped.stopped_at
    assert resumed.state.global_step == whole.state.global_step + 1
    assert measured(resumed) == measured(whole)


def test_stopping_says_that_it_has_nothing_to_go_by(tmp_path: Path, told_by_stopping: list[str]) -> None:
    trainer = Trainer(
        tiny_bert(),
        TrainingArguments(str(tmp_path), num_train_epochs=2, use_cpu=True, report_to=[], disable_tqdm=True),
        train_dataset=rows(32).rename_column("label", "labels"),
        callbacks=[MemoryStoppingCallback()],
    )
    trainer.train()
    assert len(told_by_stopping) == 1
    assert "nothing to go by" in told_by_stopping[0]


# ---- the report


def test_the_report_of_a_run_shows_what_it_has_by_heart(tmp_path: Path) -> None:
    trainer = run(tmp_path, dataset=random_labels(96))
    page = write_report(tmp_path).read_text(encoding="utf-8")
    last = measured(trainer)[-1]
    can, heart = round(100 * last["honest_accuracy"]), round(100 * last["memorised"])
    assert f"Of the {can + heart} % that it gets right" in page
    error = 1.96 * max(last["honest_accuracy_error"], last["memorised_error"])
    assert f"± {100 * error:.0f} points, 95 % interval" in page
    assert 'id="plot-memory"' in page
    # Most of these labels are wrong, and the estimate is of the agreement with labels like these.
    assert "labelled as well or as" in page
    assert "badly as these" in page
