"""Subclasses of Trainer and their columns, arguments, callbacks, errors and logs, with LSTSDMixin."""

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch.nn.functional as F  # noqa: N812
from torch import nn
from transformers import Seq2SeqTrainer, Trainer, TrainerCallback, default_data_collator

from lstsd_hf import LogitsStore, LSTSDMixin, LSTSDTrainer, StoreError, add_sample_ids
from lstsd_hf.report import write_report
from lstsd_hf.training.callback import RecorderCallback
from own_trainers import SHORT, OneLogit, assert_taught, class_weights, run
from toys import config, logged, rows, tiny_bert

# ---- the order of the classes


class Home(Trainer):
    pass


@pytest.mark.parametrize("behind", [LSTSDTrainer, LSTSDMixin])
@pytest.mark.parametrize("wrong", [Home, Seq2SeqTrainer, class_weights(Trainer)])
def test_a_trainer_before_the_mixin_is_refused_when_the_class_is_made(behind, wrong):
    with pytest.raises(TypeError, match=rf"class Wrong\(LSTSDMixin, {wrong.__name__}\): \.\.\."):
        type("Wrong", (wrong, behind), {})


def test_the_right_order_and_classes_that_are_no_trainers_are_fine(tmp_path):
    class Loud:
        def log(self, logs, *args, **kwargs):
            super().log(logs | {"loud": 1.0}, *args, **kwargs)

    class Mine(Loud, LSTSDMixin, Home):
        pass

    trainer = run(Mine, tmp_path)
    assert_taught(trainer)
    assert logged(trainer, "loud")


# ---- columns and labels


@pytest.mark.parametrize("ids", [False, True])
def test_a_model_that_takes_no_column_gets_the_trainers_own_message(tmp_path, ids):
    class Anything(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(1, 1)

        def forward(self, *args, **kwargs):
            raise AssertionError("never reached")

    data = rows(8).rename_column("label", "target")
    data = add_sample_ids(data) if ids else data
    with pytest.raises(ValueError, match="No columns in the dataset match the model's forward method signature"):
        run(LSTSDTrainer, tmp_path, data, Anything())


def test_labels_by_another_name_are_the_stores_labels(tmp_path):
    data = rows(24, "regression").rename_column("label", "target").add_column("label", list(range(24)))
    run(LSTSDTrainer, tmp_path, data, OneLogit(False), {"label_names": ["target"]})
    np.testing.assert_array_equal(np.load(tmp_path / "_logits" / "labels.npy"), data["target"][:])
    write_report(tmp_path)
    found = datasets.Dataset.from_parquet(str(tmp_path / "_report" / "samples.parquet"), cache_dir=str(tmp_path))
    assert found["label"][:] == pytest.approx(data["target"][:])


def one_less(features: list[dict[str, Any]]) -> Any:
    """Labels 1 to 3 become 0 to 2."""
    batch = default_data_collator(features)
    batch["labels"] = batch["labels"] - 1
    return batch


def one_less_by_transform(batch: dict[str, Any]) -> dict[str, Any]:
    return {"input_ids": batch["input_ids"], "labels": [label - 1 for label in batch["label"]]}


def test_labels_that_are_mapped_on_their_way_are_those_that_count(tmp_path):
    data = rows(24).map(lambda row: {"label": row["label"] + 1})
    with pytest.raises(ValueError, match="8 training labels are outside of the model's 3 classes"):
        run(LSTSDTrainer, tmp_path / "raw", data.sort("label"))
    assert_taught(run(LSTSDTrainer, tmp_path / "collator", data, data_collator=one_less))
    transformed = data.with_transform(one_less_by_transform)
    assert_taught(run(LSTSDTrainer, tmp_path / "transform", transformed, settings={"remove_unused_columns": False}))


def test_a_collator_that_wants_a_whole_batch_gets_one(tmp_path):
    """Also where it is called only to see whether it maps two labels that are no classes."""

    def whole_batches(features):
        assert len(features) == 8
        return one_less(features)

    data = rows(24).map(lambda row: {"label": 1 + (row["label"] + 1) % 3})
    data = data.map(lambda row, i: {"label": 3 if i in (3, 20) else min(row["label"], 2)}, with_indices=True)
    assert_taught(run(LSTSDTrainer, tmp_path, data, data_collator=whole_batches))


def test_another_column_called_label_is_not_the_labels(tmp_path):
    data = rows(24).rename_column("label", "labels").add_column("label", list(range(100, 124)))
    trainer = run(LSTSDTrainer, tmp_path, data)
    assert_taught(trainer)
    np.testing.assert_array_equal(np.load(tmp_path / "_logits" / "labels.npy"), data["labels"][:])


# ---- the same arguments twice, a smaller batch


def test_one_config_serves_a_regression_and_then_classes(tmp_path):
    arguments = config(tmp_path, **SHORT)
    as_given = arguments.to_dict()
    for head, weight in (("regression", 0.1), ("classes", 0.4)):
        trainer = LSTSDTrainer(tiny_bert(head), arguments, train_dataset=rows(24, head))
        trainer.train()
        assert trainer.settings.long_term_weight == weight
        assert arguments.to_dict() == as_given


def test_a_try_with_a_batch_that_is_too_large_is_not_counted(tmp_path):
    model = tiny_bert(dropout=0.0)

    def too_large(module, args, kwargs):
        calls.append(len(kwargs["input_ids"]))
        if module.training and len(kwargs["input_ids"]) > 4 and len(calls) > 1:  # all but the very first batch
            raise RuntimeError("CUDA out of memory.")

    calls: list[int] = []
    model.register_forward_pre_hook(too_large, with_kwargs=True)
    settings = {"auto_find_batch_size": True, "logging_steps": 6, "learning_rate": 0.0}
    trainer = run(LSTSDTrainer, tmp_path, model=model, settings=settings)
    assert trainer.state.train_batch_size < 8
    assert logged(trainer, "short_term_coverage")[0] == 0.0
    assert set(logged(trainer, "short_term_coverage")[1:]) <= {0.0, 1.0}
    base = logged(trainer, "base_loss")
    assert base == pytest.approx([base[0]] * len(base))  # the weights do not change, so all epochs have one mean
    assert LogitsStore.open(tmp_path / "_logits").read_statistic("margin")[0] == 2


# ---- results, locks, errors, logs


def test_the_results_of_a_run_have_its_epoch(tmp_path):
    found = []
    for trainer_class in (Trainer, LSTSDTrainer):
        trainer = run(trainer_class, tmp_path / trainer_class.__name__)
        trainer.save_metrics("train", trainer.train().metrics)
        results = json.loads((tmp_path / trainer_class.__name__ / "train_results.json").read_text())
        found.append(results)
    assert found[0]["epoch"] == found[1]["epoch"] == 3.0
    assert set(found[0]) <= set(found[1])


class Fails(TrainerCallback):
    def __init__(self, error: type[BaseException]) -> None:
        self.error = error

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 4:
            raise self.error


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_no_lock_stays_behind(tmp_path, error):
    if error is None:
        run(LSTSDTrainer, tmp_path)
    else:
        with pytest.raises(error):
            run(LSTSDTrainer, tmp_path, callbacks=[Fails(error)])
    assert not list(tmp_path.glob("*.lock"))
    assert_taught(run(LSTSDTrainer, tmp_path))


def test_no_lock_stays_behind_where_a_run_could_not_begin(tmp_path):
    class Damages(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            raise RuntimeError("after the store's folder was taken")

    trainer = LSTSDTrainer(tiny_bert(), config(tmp_path), train_dataset=rows(8))
    trainer.add_callback(Damages())
    with pytest.raises(RuntimeError, match="after the store"):
        trainer.train()
    assert not list(tmp_path.glob("*.lock"))

    settings = {"save_strategy": "steps", "save_steps": 3, "logits_retention": "all"}
    run(LSTSDTrainer, tmp_path, settings=settings)
    (tmp_path / "_logits" / "thesis.txt").write_text("mine")
    (tmp_path / "_logits" / "store.json").unlink()
    (tmp_path / "_logits" / "open").rmdir()
    with pytest.raises(StoreError, match="holds something that is not a logits store"):
        run(LSTSDTrainer, tmp_path, settings=settings, resume=True)
    assert not list(tmp_path.glob("*.lock"))


def dropping_collator(tmp_path: Path) -> None:
    run(LSTSDTrainer, tmp_path, data_collator=lambda features: default_data_collator(features[:-2]))


class Bare(nn.Module):
    """Returns only logits: of three classes, or one number for each sample."""

    def __init__(self, classes: bool) -> None:
        super().__init__()
        self.bert = tiny_bert()
        self.classes = classes

    def forward(self, input_ids, attention_mask, labels=None):
        logits = self.bert(input_ids, attention_mask).logits
        return logits if self.classes else logits[:, 0]


def bare_logits(tmp_path: Path) -> None:
    run(LSTSDTrainer, tmp_path, model=Bare(True))


def bare_scores(tmp_path: Path) -> None:
    run(LSTSDTrainer, tmp_path, model=Bare(False))


def no_such_checkpoint(tmp_path: Path) -> None:
    run(LSTSDTrainer, tmp_path, resume=str(tmp_path / "checkpoint-7"))


def no_checkpoint(tmp_path: Path) -> None:
    run(LSTSDTrainer, tmp_path, resume=True)


def unreduced(tmp_path: Path) -> None:
    def loss(outputs, labels, num_items_in_batch=None):
        return F.cross_entropy(outputs["logits"], labels, reduction="none")

    run(LSTSDTrainer, tmp_path, compute_loss_func=loss)


def no_logits(tmp_path: Path) -> None:
    class Embeds(LSTSDTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            hidden = model.bert(inputs["input_ids"]).pooler_output
            return hidden.square().mean()

    run(Embeds, tmp_path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (dropping_collator, r"shape \(6, 3\) for 8 samples.*If the data collator drops or adds rows"),
        (bare_logits, "The model returned a tensor, whose first entry the plain Trainer takes for the loss"),
        (bare_scores, "The model returned a tensor, whose first entry the plain Trainer takes for the loss"),
        (no_such_checkpoint, "checkpoint-7.*no such folder"),
        (no_checkpoint, "No valid checkpoint found in output directory"),
        (unreduced, r"The loss of a micro-batch is of shape \(8,\): expected a scalar"),
        (no_logits, r"returned no logits, but nothing beside its loss.*return \(loss, outputs\)"),
    ],
)
def test_errors_name_their_own_cause(tmp_path, make, message):
    with pytest.raises(ValueError, match=message):
        make(tmp_path)


def test_a_callback_that_is_removed_is_there_in_the_next_run(tmp_path):
    trainer = LSTSDTrainer(tiny_bert(), config(tmp_path, **SHORT), train_dataset=rows(24))
    trainer.remove_callback(RecorderCallback)
    trainer.train()
    assert_taught(trainer)


def test_a_model_that_returns_a_tensor_learns_by_a_loss_function(tmp_path):
    def own(outputs, labels, num_items_in_batch=None):
        return F.cross_entropy(outputs, labels)

    assert_taught(run(LSTSDTrainer, tmp_path, model=Bare(True), compute_loss_func=own))


@pytest.mark.parametrize("step", [2, 5, 7])
def test_the_first_log_after_a_resume_is_the_uninterrupted_runs(tmp_path, step):
    settings = {"logging_steps": 4, "save_strategy": "steps", "save_steps": 1, "gradient_accumulation_steps": 2}
    settings |= {"per_device_train_batch_size": 4}
    whole = run(LSTSDTrainer, tmp_path / "whole", settings=settings)
    resumed = run(LSTSDTrainer, tmp_path / "on", settings=settings, resume=str(tmp_path / f"whole/checkpoint-{step}"))
    parts = [
        "base_loss",
        *(f"{t}_{p}" for t in ("long_term", "short_term") for p in ("loss", "coverage", "agreement")),
    ]
    for name in parts:
        assert logged(resumed, name) == logged(whole, name), name
    for one, other in zip(resumed.state.log_history[:-1], whole.state.log_history[:-1], strict=True):
        assert set(one) == set(other)
