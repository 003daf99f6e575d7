"""A run that only records: it equals the plain Trainer's bit for bit, and leaves a store that the report reads."""

import pickle
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer, TrainingArguments

from lstsd_hf import LogitsStore, LSTSDMixin, LSTSDTrainer, PredictionRecorder, add_sample_ids, write_report
from toys import HEADS, config, logged, rows, tiny_bert, weights

RecordedTrainer = PredictionRecorder(Trainer)
Trained = PredictionRecorder(Seq2SeqTrainer)
EPOCHS = 3


def arguments(folder: Path, kind: type[TrainingArguments] = TrainingArguments, **changes: Any) -> Any:
    """Arguments without the method's settings, for a run that takes a fraction of a second."""
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "num_train_epochs": EPOCHS,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return kind(**settings | changes)


def train(trainer_class: Any, folder: Path, head: str = "classes", **options: Any) -> Any:
    """Trains on 30 rows, so that the last micro-batch, and the last group of micro-batches, is short."""
    args = options.pop("args", None) or arguments(folder, **options.pop("settings", {}))
    trainer = trainer_class(tiny_bert(head), args, train_dataset=rows(30, head), **options)
    trainer.train()
    return trainer


def entries(trainer: Any) -> list[dict[str, float]]:
    """The log without timings, and without the entries about memory, which only a recorder adds."""
    clocked = ("train_runtime", "train_samples_per_second", "train_steps_per_second")
    plain = [entry for entry in trainer.state.log_history if "memorised" not in entry]
    return [{k: v for k, v in entry.items() if k not in clocked} for entry in plain]


def class_weighted(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> torch.Tensor:
    total = F.cross_entropy(outputs["logits"], labels, torch.tensor([1.0, 2.0, 0.5]), reduction="sum")
    return total / num_items_in_batch


class MeanTrainer(Trainer):
    """Its own loss is a mean over a micro-batch, which the Trainer divides by the number of micro-batches."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        loss = F.cross_entropy(outputs.logits, inputs["labels"], label_smoothing=0.1)
        return (loss, outputs) if return_outputs else loss


class SumTrainer(Trainer):
    """Its own loss is divided by the samples of the whole step, which it tells the Trainer."""

    loss_is_scaled_for_ga = True

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        loss = F.cross_entropy(outputs.logits, inputs["labels"], reduction="sum") / 24
        return (loss, outputs) if return_outputs else loss


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize(
    ("trainer_class", "head", "options"),
    [(Trainer, head, {}) for head in HEADS]
    + [(Trainer, "classes", {"compute_loss_func": class_weighted})]
    + [(Trainer, "classes", {"settings": {"label_smoothing_factor": 0.1}})]
    + [
        (MeanTrainer, "classes", {}),
        (SumTrainer, "classes", {}),
        (Seq2SeqTrainer, "classes", {"kind": Seq2SeqTrainingArguments}),
    ],
)
def test_training_is_the_plain_trainers_bit_for_bit(tmp_path, trainer_class, head, options, accumulation):
    def run(cls: Any, folder: Path) -> Any:
        given = dict(options)
        settings = {"gradient_accumulation_steps": accumulation, **given.pop("settings", {})}
        args = arguments(folder, given.pop("kind", TrainingArguments), **settings)
        return train(cls, folder, head, args=args, **given)

    plain, recorded = run(trainer_class, tmp_path / "plain"), run(PredictionRecorder(trainer_class), tmp_path / "ours")
    assert torch.equal(weights(plain.model), weights(recorded.model))
    assert entries(plain) == entries(recorded)
    store = LogitsStore.open(tmp_path / "ours" / "_logits")
    assert store.sealed_epochs == list(range(EPOCHS))
    assert all(np.isfinite(store.read(epoch, range(30))).all() for epoch in store.sealed_epochs)
    assert not (tmp_path / "plain" / "_logits").exists()


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path):
    """It resumes in the middle of an epoch. Its store is that of the uninterrupted run too."""
    settings = {"save_strategy": "steps", "save_steps": 6}
    whole = train(RecordedTrainer, tmp_path / "whole", settings=settings)
    again = RecordedTrainer(tiny_bert(seed=1), arguments(tmp_path / "again", **settings), train_dataset=rows(30))
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-6"))
    assert torch.equal(weights(whole.model), weights(again.model))
    stores = [LogitsStore.open(tmp_path / name / "_logits") for name in ("whole", "again")]
    assert stores[0].sealed_epochs == stores[1].sealed_epochs == [0, 1, 2]
    assert all(np.array_equal(*(store.read(epoch, range(30)) for store in stores)) for epoch in (0, 1, 2))


def test_settings_of_the_method_do_not_make_it_teach(tmp_path):
    """Whatever the arguments say. The run leaves them unchanged."""
    args = config(tmp_path / "ours", long_term_weight=0.4, short_term_weight=0.4, logits_retention="needed")
    args.logging_nan_inf_filter = True
    before = args.to_dict()
    recorded = train(RecordedTrainer, tmp_path, args=args)
    assert recorded.args is args
    assert args.to_dict() == before
    plain = train(Trainer, tmp_path, args=config(tmp_path / "plain", logging_nan_inf_filter=True))
    assert torch.equal(weights(plain.model), weights(recorded.model))
    store = LogitsStore.open(tmp_path / "ours" / "_logits")
    assert store.sealed_epochs == [0, 1, 2, 3, 4]
    assert store.dtype == "float32"  # the store's settings are those of the arguments
    assert not logged(recorded, "base_loss")


def test_the_report_and_the_model_card_know_the_run(tmp_path):
    data = add_sample_ids(rows(30)).shuffle(seed=1)
    trainer = RecordedTrainer(tiny_bert(), arguments(tmp_path), train_dataset=data)
    trainer.train()
    with_texts = data.add_column("text", [f"row {i}" for i in range(30)])
    page = write_report(tmp_path, with_texts)
    samples = datasets.Dataset.from_parquet(str(page.parent / "samples.parquet"), cache_dir=str(tmp_path / "cache"))
    assert dict(zip(samples["sample_id"], samples["label"], strict=True)) == dict(
        zip(data["sample_id"], data["label"], strict=True)
    )
    trainer.create_model_card()
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "istill" not in card
    assert "lstsd" not in card
    trainer.distillation.push_logits = True
    trainer.create_model_card()
    assert "The training labels, and what the model predicted" in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_the_class_is_the_users_by_name_and_can_be_pickled(tmp_path):
    class Mine(Trainer):
        """My trainer."""

    recorder = PredictionRecorder(Mine)
    assert issubclass(recorder, Mine)
    assert (recorder.__name__, recorder.__qualname__, recorder.__module__) == ("Mine", Mine.__qualname__, __name__)
    assert recorder.__doc__ == "My trainer."
    globals()["Seq2SeqTrainer"], before = Trained, Seq2SeqTrainer  # as `Trainer = PredictionRecorder(Trainer)` does
    try:
        assert pickle.loads(pickle.dumps(Trained)) is Trained
    finally:
        globals()["Seq2SeqTrainer"] = before


def test_a_subclass_of_a_recorder_may_have_a_loss_of_its_own(tmp_path):
    class Own(RecordedTrainer):
        compute_loss = MeanTrainer.compute_loss

    plain, recorded = train(MeanTrainer, tmp_path / "plain"), train(Own, tmp_path / "ours")
    assert torch.equal(weights(plain.model), weights(recorded.model))
    assert LogitsStore.open(tmp_path / "ours" / "_logits").sealed_epochs == [0, 1, 2]


class Averages(Trainer):
    """Logs the mean of a metric since the last log, and starts anew, as many trainers do."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._margins: list[float] = []

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        self._margins.append(float(loss) + 1)
        return loss

    def log(self, logs, start_time=None):
        if self._margins:
            logs["margin"] = sum(self._margins) / len(self._margins)
        super().log(logs, start_time)
        self._margins.clear()


@pytest.mark.parametrize("settings", [{"logging_strategy": "epoch"}, {"logging_steps": 3}])
def test_metrics_of_a_log_of_the_users_own_stay_in_its_entries(tmp_path, settings):
    plain = train(Averages, tmp_path / "plain", settings=settings)
    recorded = train(PredictionRecorder(Averages), tmp_path / "ours", settings=settings)
    assert len(logged(plain, "margin")) > 1
    assert entries(plain) == entries(recorded)
    assert len(logged(recorded, "memorised")) == EPOCHS
    off = train(type("Off", (LSTSDMixin, Averages), {}), tmp_path / "taught", settings=settings)
    assert len(logged(off, "memorised")) == EPOCHS
    mine = [set(entry) - {"step", "epoch"} for entry in off.state.log_history if "memorised" in entry]
    assert not any("margin" in entry for entry in mine)
    assert len(logged(off, "margin")) == len(logged(plain, "margin"))


def test_evaluation_is_the_plain_trainers(tmp_path):
    plain, recorded = train(Trainer, tmp_path / "plain"), train(RecordedTrainer, tmp_path / "ours")
    found = [trainer.evaluate(rows(17, seed=1))["eval_loss"] for trainer in (plain, recorded)]
    assert found[0] == found[1]


@pytest.mark.parametrize("wrong", [LSTSDTrainer, RecordedTrainer])
def test_what_records_already_is_refused(wrong):
    with pytest.raises(TypeError, match="records its predictions already: use it as it is"):
        PredictionRecorder(wrong)


@pytest.mark.parametrize("wrong", [dict, "Trainer", None])
def test_what_is_no_trainer_is_refused(wrong):
    with pytest.raises(TypeError, match=r"expected a subclass of transformers\.Trainer, found .* Give the class"):
        PredictionRecorder(wrong)
