"""Losses, loaders, samplers, heads and callbacks that users of Trainer write, and what they get with LSTSDTrainer."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.utils.data import DataLoader, Sampler, SequentialSampler, WeightedRandomSampler
from transformers import (
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    Seq2SeqTrainer,
    Trainer,
    TrainerCallback,
    default_data_collator,
    set_seed,
)

from lstsd_hf import (
    LogitsStore,
    LSTSDMixin,
    LSTSDTrainer,
    PredictionRecorder,
    StoreError,
    StoreMismatchError,
    add_sample_ids,
)
from lstsd_hf.report import write_report
from lstsd_hf.training.callback import RecorderCallback
from toys import config, logged, rows, tiny_bert, weights

OFF = {"long_term_weight": 0.0, "short_term_weight": 0.0}
# Both teachers teach from epoch 1 on, with equal weight.
SHORT = {"num_train_epochs": 3, "mini_generation_epochs": 1, "teacher_trust": "constant", "learning_rate": 0.02}


def run(
    trainer_class: type[Trainer],
    folder: Path,
    data: Any = None,
    model: Any = None,
    settings: dict[str, Any] | None = None,
    resume: Any = None,
    **options: Any,
) -> Any:
    """Trains a fresh model for three epochs; `settings` are changes of the config, `options` the trainer's own."""
    trainer = trainer_class(
        tiny_bert() if model is None else model,
        config(folder, **SHORT | (settings or {})),
        train_dataset=rows(24) if data is None else data,
        **options,
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def assert_taught(trainer: Any) -> None:
    """Asserts that all samples are recorded, have both teachers at the end, and that the loss weighs these in."""
    store = LogitsStore.open(Path(trainer.args.output_dir, "_logits"))
    assert store.sealed_epochs == [0, 1, 2]
    assert np.isfinite(store.read(2, range(store.num_samples))).all()
    last = trainer.state.log_history[-2]  # the last entry is the summary of the run
    assert last["long_term_coverage"] == last["short_term_coverage"] == 1.0
    assert last["long_term_loss"] > 0
    weight = trainer.settings.long_term_weight
    parts = weight * (last["long_term_loss"] + last["short_term_loss"])
    assert last["loss"] == pytest.approx((1 - 2 * weight) * last["base_loss"] + parts, rel=1e-4)


# ---- 1, 19: a compute_loss of the user's own


def class_weights(base: type) -> type:
    """The example in the documentation of Trainer."""

    class WeightedTrainer(base):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            labels = inputs.get("labels")
            outputs = model(**inputs)
            logits = outputs.get("logits")
            loss_fct = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0], device=model.device))
            loss = loss_fct(logits.view(-1, self.model.config.num_labels), labels.view(-1))
            return (loss, outputs) if return_outputs else loss

    return WeightedTrainer


def focal(base: type) -> type:
    class FocalTrainer(base):
        def __init__(self, *args, gamma=2.0, **kwargs):
            super().__init__(*args, **kwargs)
            self.gamma = gamma

        def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
            labels = inputs.pop("labels")
            outputs = model(**inputs)
            entropy = F.cross_entropy(outputs.logits, labels, reduction="none")
            loss = ((1 - torch.exp(-entropy)) ** self.gamma * entropy).mean()
            return (loss, outputs) if return_outputs else loss

    return FocalTrainer


def penalty(base: type) -> type:
    class PenaltyTrainer(base):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
            loss = loss + 0.01 * outputs.logits.pow(2).mean()
            return (loss, outputs) if return_outputs else loss

    return PenaltyTrainer


def sum_by_count(base: type) -> type:
    class SumTrainer(base):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            labels = inputs.pop("labels")
            outputs = model(**inputs)
            loss = F.cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch
            return (loss, outputs) if return_outputs else loss

    return SumTrainer


def loss_alone(base: type) -> type:
    """Ignores return_outputs, as a trainer that never evaluates may."""

    class LossTrainer(base):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            labels = inputs.pop("labels")
            return F.cross_entropy(model(**inputs).logits, labels)

    return LossTrainer


def own_model(base: type) -> type:
    """Runs the model without its wrappers."""

    class OwnTrainer(base):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            loss = self.model(**inputs).loss
            return (loss, None) if return_outputs else loss

    return OwnTrainer


def any_arguments(base: type) -> type:
    class AnyTrainer(base):
        def compute_loss(self, model, inputs, *args, **kwargs):
            outputs = model(**inputs)
            return (outputs.loss, {"logits": outputs.logits}) if kwargs.get("return_outputs") else outputs.loss

    return AnyTrainer


def mixed_in(base: type) -> type:
    """The loss comes from a class that is no trainer, by way of another class."""

    class HingeLoss:
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
            loss = F.multi_margin_loss(outputs.logits, inputs["labels"])
            return (loss, outputs) if return_outputs else loss

    class Between(HingeLoss, base):
        pass

    class HingeTrainer(Between):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    return HingeTrainer


LOSSES = [class_weights, focal, penalty, sum_by_count, loss_alone, own_model, any_arguments, mixed_in]


def above(base: type) -> type:
    """The mixin in front of a trainer that has its own loss already."""
    return type("Mixed", (LSTSDMixin, class_weights(base)), {})


@pytest.mark.parametrize("loss", LOSSES)
def test_with_a_loss_of_the_users_off_is_off(tmp_path, loss):
    """With both teacher weights 0, the model's weights are those of the same subclass of Trainer, bit for bit."""
    settings = {**OFF, "max_grad_norm": 1.0}
    plain = run(loss(Trainer), tmp_path / "plain", rows(20), settings=settings)
    ours = run(loss(LSTSDTrainer), tmp_path / "ours", rows(20), settings=settings)
    assert torch.equal(weights(plain.model), weights(ours.model))
    assert logged(plain, "loss") == logged(ours, "loss")


def scaled(base: type) -> type:
    """Takes an argument of its own from its training step, and all others as keywords."""

    class ScaledTrainer(base):
        def training_step(self, model, inputs, num_items_in_batch=None):
            model.train()
            inputs = self._prepare_inputs(inputs)
            loss = self.compute_loss(model, inputs, num_items_in_batch=num_items_in_batch, scale=2.0)
            self.accelerator.backward(loss)
            return loss.detach()

        def compute_loss(self, model, inputs, *, return_outputs=False, **kwargs):
            outputs = model(**inputs)
            loss = kwargs.get("scale", 1.0) * outputs.loss
            return (loss, outputs) if return_outputs else loss

    return ScaledTrainer


@pytest.mark.parametrize("make", [lambda loss: type("Mixed", (LSTSDMixin, loss), {}), PredictionRecorder])
@pytest.mark.parametrize("loss", [*LOSSES, scaled])
def test_with_a_loss_of_the_parents_off_is_off(tmp_path, loss, make):
    settings = {**OFF, "max_grad_norm": 1.0}
    options = {"settings": settings, "eval_dataset": rows(8)}
    plain = run(loss(Trainer), tmp_path / "plain", rows(20), **options)
    ours = run(make(loss(Trainer)), tmp_path / "ours", rows(20), **options)
    assert torch.equal(weights(plain.model), weights(ours.model))
    if loss not in (loss_alone, own_model):  # which return no outputs to evaluate
        assert plain.evaluate()["eval_loss"] == ours.evaluate()["eval_loss"]


class EarlyUser(Trainer):
    """Asks for its loader, evaluates and logs while it is being made."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.steps = len(self.get_train_dataloader())
        self.before = self.evaluate()["eval_loss"]
        self.log({"loss": 1.0})


class UncountedUser(Trainer):
    def get_batch_samples(self, *args):
        return super().get_batch_samples(*args)[0], None


class ColumnsUser(Trainer):
    def _set_signature_columns_if_needed(self):
        self._signature_columns = ["input_ids", "attention_mask", "label"]


class SelectingUser(Trainer):
    def _remove_unused_columns(self, dataset, description=None):
        return dataset.select_columns(["input_ids", "attention_mask", "label"])


@pytest.mark.parametrize("make", [lambda user: type("Mixed", (LSTSDMixin, user), {}), PredictionRecorder])
@pytest.mark.parametrize("user", [EarlyUser, UncountedUser, ColumnsUser, SelectingUser])
def test_a_trainer_of_the_users_behind_the_mixin(tmp_path, user, make):
    accumulated = 2 if user is UncountedUser else 1  # given a count, the plain Trainer is wrong for BERT
    options = {"settings": {**OFF, "gradient_accumulation_steps": accumulated}, "eval_dataset": rows(8)}
    data = add_sample_ids(rows(24))
    plain = run(user, tmp_path / "plain", data, **options)
    ours = run(make(user), tmp_path / "ours", data, **options)
    assert torch.equal(weights(plain.model), weights(ours.model))
    assert LogitsStore.open(tmp_path / "ours" / "_logits").sealed_epochs[-1] == 2


@pytest.mark.parametrize("picks", ["training_step", "_prepare_inputs"])
def test_a_batch_whose_keys_are_picked_is_an_error_that_says_so(tmp_path, picks):
    def pick(self, *args):
        batch = next(arg for arg in args if isinstance(arg, dict))
        kept = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
        return getattr(super(user, self), picks)(*(kept if arg is batch else arg for arg in args))

    user = type("Picking", (LSTSDTrainer,), {picks: pick})
    with pytest.raises(ValueError, match="in training_step or _prepare_inputs, must keep those that begin with"):
        run(user, tmp_path)


@pytest.mark.parametrize("make", [lambda loss: type("Mixed", (LSTSDMixin, loss), {}), PredictionRecorder])
def test_a_parents_loss_of_a_language_model_is_not_left_out(tmp_path, make):
    class Doubled(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            outputs = model(**inputs)
            loss = 2 * outputs.loss
            return (loss, outputs) if return_outputs else loss

    tokens = np.random.default_rng(0).integers(1, 30, (20, 6)).tolist()
    data = datasets.Dataset.from_dict({"input_ids": tokens, "labels": tokens})
    shape = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = []
    for name, trainer_class in (("plain", Doubled), ("ours", make(Doubled))):
        set_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**shape, intermediate_size=32, max_position_embeddings=16))
        ends.append(
            weights(run(trainer_class, tmp_path / name, data, model, settings={**OFF, "logits_top_k": 3}).model)
        )
    assert torch.equal(*ends)


@pytest.mark.parametrize("trainer_class", [*(loss(LSTSDTrainer) for loss in LOSSES), above(Trainer)])
def test_a_loss_of_the_users_is_taught(tmp_path, trainer_class):
    trainer = run(trainer_class, tmp_path / "on")
    assert_taught(trainer)
    off = run(trainer_class, tmp_path / "off", settings=OFF)
    assert not torch.allclose(weights(trainer.model), weights(off.model), atol=1e-4)


@pytest.mark.parametrize(
    ("loss", "smoothing"),
    [(focal, 0.0), (penalty, 0.0), (penalty, 0.1), (sum_by_count, 0.0), (loss_alone, 0.0), (mixed_in, 0.0)],
)
def test_with_a_loss_of_the_users_micro_batches_equal_one_big_batch(tmp_path, loss, smoothing):
    """44 rows in steps of 16, 16 and 12, the last of which is 8 + 4 micro-batches."""
    runs = [
        run(
            loss(LSTSDTrainer),
            tmp_path / str(size),
            rows(44),
            tiny_bert(dropout=0.0),
            {
                "per_device_train_batch_size": size,
                "gradient_accumulation_steps": 16 // size,
                "train_sampling_strategy": "sequential",
                "label_smoothing_factor": smoothing,
                "learning_rate": 0.2,
            },
        )
        for size in (16, 8)
    ]
    torch.testing.assert_close(*(weights(trainer.model) for trainer in runs), atol=1e-5, rtol=0)
    for name in ("loss", "base_loss", "long_term_loss", "short_term_loss"):
        assert logged(runs[0], name) == pytest.approx(logged(runs[1], name), abs=1e-5), name


def test_a_loss_of_the_users_gets_its_own_count_in_training_and_the_trainers_in_evaluation(tmp_path):
    counts = []

    class Counting(sum_by_count(LSTSDTrainer)):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            counts.append((model.training, int(num_items_in_batch), len(inputs["labels"])))
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    settings = {**OFF, "gradient_accumulation_steps": 2, "num_train_epochs": 1}
    held_out = rows(20, seed=1)
    ours = run(Counting, tmp_path / "ours", settings=settings)
    assert counts == [(True, 8, 8)] * 3
    plain = sum_by_count(Trainer)(ours.model, config(tmp_path / "plain"), eval_dataset=held_out)
    assert ours.evaluate(held_out)["eval_loss"] == plain.evaluate()["eval_loss"]
    assert counts[3:] == [(False, 8, 8), (False, 8, 8), (False, 4, 4)]


def test_a_loss_function_may_be_assigned_to_the_trainer(tmp_path):
    def by_count(outputs, labels, num_items_in_batch=None):
        return F.cross_entropy(outputs["logits"], labels, reduction="sum") / num_items_in_batch

    ends = []
    for assigned in (False, True):
        options = {} if assigned else {"compute_loss_func": by_count}
        arguments = config(tmp_path / str(assigned), **SHORT)
        trainer = LSTSDTrainer(tiny_bert(), arguments, train_dataset=rows(24), eval_dataset=rows(8), **options)
        if assigned:
            trainer.compute_loss_func = by_count
        before = trainer.evaluate()["eval_loss"]
        trainer.train()
        ends.append((before, trainer.evaluate()["eval_loss"], weights(trainer.model)))
    assert ends[0][:2] == ends[1][:2]
    assert torch.equal(ends[0][2], ends[1][2])


def test_a_loss_may_take_more_arguments_from_a_training_step(tmp_path):
    class Annealed(LSTSDTrainer):
        def training_step(self, model, inputs, num_items_in_batch=None):
            model.train()
            inputs = self._prepare_inputs(inputs)
            loss = self.compute_loss(model, inputs, num_items_in_batch=num_items_in_batch, beta=0.5)
            self.accelerator.backward(loss)
            return loss.detach()

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None, beta=1.0):
            outputs = model(**inputs)
            loss = beta * outputs.loss
            return (loss, outputs) if return_outputs else loss

    trainer = run(Annealed, tmp_path / "half")
    assert_taught(trainer)
    first = [logged(run, "base_loss")[0] for run in (trainer, run(LSTSDTrainer, tmp_path / "whole"))]
    assert first[0] == pytest.approx(first[1] / 2)


@pytest.mark.parametrize("how", ["training_step", "instance"])
def test_a_loss_that_is_never_reached_is_an_error_before_the_first_update(tmp_path, how):
    def own_step(self, model, inputs, num_items_in_batch=None):
        model.train()
        loss = model(**self._prepare_inputs(inputs)).loss
        self.accelerator.backward(loss)
        return loss.detach()

    trainer_class = type("Own", (LSTSDTrainer,), {"training_step": own_step} if how == "training_step" else {})
    model = tiny_bert()
    before = weights(model)
    trainer = trainer_class(model, config(tmp_path), train_dataset=rows(8))
    if how == "instance":
        trainer.compute_loss = lambda model, inputs, num_items_in_batch=None: model(**inputs).loss
    with pytest.raises(ValueError, match=r"loss = self\.compute_loss\(model, inputs, num_items_in_batch"):
        trainer.train()
    assert torch.equal(before, weights(model))


# ---- 2: the wrong order


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


# ---- 3: outputs without gradient


def test_outputs_of_a_second_pass_without_gradient_give_way_to_those_of_the_first(tmp_path):
    class Twice(LSTSDTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            loss = model(**inputs).loss
            with torch.no_grad():
                outputs = model(**inputs)
            return (loss, outputs) if return_outputs else loss

    trainer = run(Twice, tmp_path / "on")
    assert_taught(trainer)
    off = run(Twice, tmp_path / "off", settings=OFF)
    assert not torch.allclose(weights(trainer.model), weights(off.model), atol=1e-4)


def test_outputs_without_gradient_are_an_error(tmp_path):
    class Detached(LSTSDTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            labels = inputs.pop("labels")
            hidden = model.bert(**inputs).pooler_output  # not through the model's own forward
            logits = model.classifier(hidden)
            loss = F.cross_entropy(logits, labels)
            return (loss, {"logits": logits.detach()}) if return_outputs else loss

    with pytest.raises(ValueError, match=r"Detached\.compute_loss returns have no gradient"):
        run(Detached, tmp_path)


# ---- 4, 5, 16: loaders, data sets and samplers


def test_a_loader_that_does_not_come_from_super_is_an_error(tmp_path):
    class Own(LSTSDTrainer):
        def get_train_dataloader(self):
            return DataLoader(self.train_dataset.with_format("torch"), batch_size=8)

    with pytest.raises(ValueError, match=r"Own\.get_train_dataloader never reached LSTSDMixin's.*Call it there"):
        run(Own, tmp_path)


def test_a_loader_that_comes_from_super_works(tmp_path):
    class Limited(LSTSDTrainer):
        def get_train_dataloader(self):
            loader = super().get_train_dataloader()
            assert len(loader) == 3
            self.seen = loader
            return loader

    trainer = run(Limited, tmp_path)
    assert_taught(trainer)


def test_the_loader_of_a_trainer_behind_the_mixin_works(tmp_path):
    """It insists on a datasets.Dataset and reads the collator's attributes, as sentence-transformers does."""

    class Collator:
        valid_label_columns = ("score",)

        def __call__(self, features):
            features = [{"labels" if key == "score" else key: feature[key] for key in feature} for feature in features]
            return default_data_collator(features)

    class Own(Trainer):
        def get_train_dataloader(self):
            assert isinstance(self.train_dataset, datasets.Dataset)
            assert self.data_collator.valid_label_columns == ("score",)
            sampler = SequentialSampler(self.train_dataset)
            loader = DataLoader(self.train_dataset, batch_size=8, sampler=sampler, collate_fn=self.data_collator)
            return self.accelerator.prepare(loader)

    data = rows(24).rename_column("label", "score")
    for name, numbered in (("none", data), ("ids", add_sample_ids(data))):
        trainer = run(type("Mixed", (LSTSDMixin, Own), {}), tmp_path / name, numbered, data_collator=Collator())
        assert_taught(trainer)
        np.testing.assert_array_equal(np.load(tmp_path / name / "_logits" / "labels.npy"), data["score"][:])


def test_several_training_sets_by_name_are_refused(tmp_path):
    data = datasets.DatasetDict(a=rows(8), b=rows(8))
    with pytest.raises(ValueError, match=r"a dictionary of \['a', 'b'\].*concatenate_datasets"):
        run(LSTSDTrainer, tmp_path, data)


class Scores(nn.Module):
    """One score for each sample, of shape (B,), and no config that says so."""

    def __init__(self) -> None:
        super().__init__()
        self.bert = tiny_bert("regression", dropout=0.0)

    def forward(self, input_ids, attention_mask, labels=None):
        scores = self.bert(input_ids=input_ids, attention_mask=attention_mask).logits.squeeze(-1)
        return {"loss": (scores - labels).square().mean(), "logits": scores}


@pytest.mark.parametrize("head", ["classes", "regression"])
def test_a_second_loader_in_mid_training_changes_nothing(tmp_path, head):
    class Looks(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            batch = next(iter(trainer.get_train_dataloader()))
            found.append({key for key in batch if key.endswith("_logits")})

    settings = {"train_sampling_strategy": "sequential"}
    found: list[set[str]] = []
    ends = []
    for callbacks in ([], [Looks()]):
        model = tiny_bert(dropout=0.0) if head == "classes" else Scores()
        arguments = config(tmp_path / str(len(callbacks)), **SHORT | settings)
        trainer = LSTSDTrainer(model, arguments, train_dataset=rows(16, head), callbacks=callbacks)
        trainer.train()
        assert_taught(trainer)
        ends.append(trainer)
    assert torch.equal(*(weights(trainer.model) for trainer in ends))
    assert logged(ends[0], "loss") == logged(ends[1], "loss")
    assert [len(keys) for keys in found] == [0] * 2 + [2] * 4


def test_a_training_batch_may_be_evaluated_by_the_users_code(tmp_path):
    class Strict(nn.Module):
        """Takes the arguments that it knows and no others."""

        def __init__(self):
            super().__init__()
            self.bert = tiny_bert()

        def forward(self, input_ids, attention_mask, labels):
            return self.bert(input_ids=input_ids, attention_mask=attention_mask, labels=labels)

    trainer = run(LSTSDTrainer, tmp_path, model=Strict())
    batch = next(iter(trainer.get_train_dataloader()))
    keys = set(batch)
    trainer.model.eval()
    assert torch.isfinite(trainer.compute_loss(trainer.model, batch))
    assert set(batch) == keys


class Growing(torch.utils.data.Dataset):
    """A data set with attributes that the loader, samplers and callbacks use."""

    def __init__(self, count: int = 24) -> None:
        self.items = [{key: row[key] for key in ("input_ids", "attention_mask")} for row in rows(count)]
        self.labels = rows(count)["label"][:]
        self.ids = [f"row-{i}" for i in range(count)]
        self.epochs: list[int] = []
        self.difficulty = 0

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.items[index], "labels": self.labels[index]}


def test_hooks_reach_the_users_data_set(tmp_path):
    class Curriculum(TrainerCallback):
        def on_epoch_begin(self, args, state, control, train_dataloader, **kwargs):
            data = train_dataloader.dataset
            data.difficulty += 1
            assert data.ids[3] == "row-3"
            assert data[5]["labels"] == growing.labels[5]
            assert len(data) == 24

    calls = []
    for trainer_class in (Trainer, LSTSDTrainer):
        growing = Growing()
        trainer = run(trainer_class, tmp_path / trainer_class.__name__, growing, callbacks=[Curriculum()])
        assert growing.difficulty == 3
        calls.append(growing.epochs)
    assert_taught(trainer)
    assert calls[0] == calls[1]
    assert {0, 1, 2} == set(calls[0])


class Balanced(Sampler[int]):
    """Orders positions by the labels that it is given."""

    def __init__(self, labels: Any) -> None:
        self.order = np.argsort(np.asarray(labels), kind="stable").tolist()

    def __iter__(self):
        return iter(self.order)

    def __len__(self):
        return len(self.order)


def by_column(self, train_dataset=None):
    return Balanced(train_dataset["label"])


def by_attribute(self, train_dataset=None):
    return Balanced(train_dataset.labels)


def by_rows_of_self(self, train_dataset=None):
    return Balanced([row.get("label", row.get("labels")) for row in self.train_dataset])


def by_another_column_of_self(self, train_dataset=None):
    generator = torch.Generator().manual_seed(0)
    importance = torch.tensor(self.train_dataset["importance"][:])  # which the model does not take
    return WeightedRandomSampler(importance, len(self.train_dataset), replacement=False, generator=generator)


@pytest.mark.parametrize("ids", [False, True])
@pytest.mark.parametrize("sampler", [by_column, by_attribute, by_rows_of_self, by_another_column_of_self])
def test_samplers_of_the_users_see_the_users_data_set(tmp_path, sampler, ids):
    data: Any = rows(24).add_column("importance", np.linspace(0.1, 1, 24))
    if sampler is by_attribute:
        data = Growing()
    elif ids:
        data = add_sample_ids(data)
    runs = [
        run(type("Own", (base,), {"_get_train_sampler": sampler}), tmp_path / base.__name__, data, settings=OFF)
        for base in (Trainer, LSTSDTrainer)
    ]
    assert torch.equal(*(weights(trainer.model) for trainer in runs))


# ---- 6, 7, 13, 14, 15: heads


class FiveClasses(nn.Module):
    """A head of five classes on an encoder whose config still says 2, and a smaller layer after it."""

    def __init__(self) -> None:
        super().__init__()
        bert_config = tiny_bert().config
        bert_config.num_labels = 2
        self.config = bert_config
        self.bert = BertModel(bert_config)
        self.head = nn.Linear(bert_config.hidden_size, 5)
        self.gate = nn.Linear(bert_config.hidden_size, 2)

    def forward(self, input_ids, attention_mask, labels=None):
        hidden = self.bert(input_ids, attention_mask).pooler_output
        logits = self.head(hidden) * self.gate(hidden).sigmoid().mean()
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


def replaced_classifier() -> Any:
    """A stock model whose last layer was replaced, and whose config still says 3."""
    model = tiny_bert()
    model.classifier = nn.Linear(model.config.hidden_size, 5)
    return model


def mean_entropy(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> torch.Tensor:
    return F.cross_entropy(outputs["logits"], labels)


@pytest.mark.parametrize("make", [FiveClasses, replaced_classifier])
def test_a_head_that_is_not_the_configs_trains_saves_and_resumes(tmp_path, make):
    data = rows(24).map(lambda row: {"label": row["input_ids"][0] % 5})
    own = mean_entropy if make is replaced_classifier else None
    settings = {"save_strategy": "steps", "save_steps": 1}

    def model() -> Any:
        torch.manual_seed(0)
        return make()

    whole = run(LSTSDTrainer, tmp_path / "whole", data, model(), settings, compute_loss_func=own)
    assert_taught(whole)
    assert LogitsStore.open(tmp_path / "whole" / "_logits").row_shape == (5,)
    for step in (1, 5, 6):
        checkpoint = str(tmp_path / "whole" / f"checkpoint-{step}")
        resumed = run(
            LSTSDTrainer, tmp_path / str(step), data, model(), settings, resume=checkpoint, compute_loss_func=own
        )
        assert torch.equal(weights(resumed.model), weights(whole.model))


def test_a_checkpoint_of_another_head_is_refused_by_its_rows(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 4}
    run(LSTSDTrainer, tmp_path, settings=settings)
    with pytest.raises(StoreMismatchError, match=r"\(3,\): expected \(4,\)"):
        run(LSTSDTrainer, tmp_path, model=tiny_bert(num_labels=4), settings=settings, resume=True)


def soft(count: int = 24) -> datasets.Dataset:
    """Rows whose labels are three probabilities."""
    rng = np.random.default_rng(0)
    return rows(count).remove_columns("label").add_column("labels", rng.dirichlet(np.ones(3), count).tolist())


def several_scores(count: int = 24) -> datasets.Dataset:
    rng = np.random.default_rng(0)
    return rows(count).remove_columns("label").add_column("labels", rng.normal(size=(count, 3)).tolist())


def zero_or_one(count: int = 24, kind: type = float) -> datasets.Dataset:
    data = rows(count).map(lambda row: {"labels": kind(row["label"] > 0)}, remove_columns="label")
    return data.cast_column("labels", datasets.Value("float32" if kind is float else "int64"))


def kullback_leibler(log_q: torch.Tensor, log_p: torch.Tensor) -> torch.Tensor:
    return (log_q.exp() * (log_q - log_p)).sum(dim=-1)


def of_bernoulli(logits: torch.Tensor) -> torch.Tensor:
    return torch.stack((F.logsigmoid(logits), F.logsigmoid(-logits)), dim=-1)


# The divergence of each student from its teacher, both (N, C), by the meaning of the columns.
DIVERGENCES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "classes": lambda p, q: kullback_leibler(q.log_softmax(-1), p.log_softmax(-1)),
    "labels": lambda p, q: kullback_leibler(of_bernoulli(q), of_bernoulli(p)).mean(dim=-1),
    "scores": lambda p, q: (p - q).square().mean(dim=-1),
}


def kind_of_head(trainer: Any) -> str:
    """What the columns were taken for, found from the logged divergence of a run with one batch in each epoch."""
    store = LogitsStore.open(Path(trainer.args.output_dir, "_logits"))
    student, teacher = (torch.from_numpy(store.epoch_rows(epoch).copy()) for epoch in (2, 1))
    found = logged(trainer, "short_term_loss")[-1]
    assert found > 1e-6
    fits = [
        name
        for name, divergence in DIVERGENCES.items()
        if divergence(student, teacher).mean().item() == pytest.approx(found, rel=1e-4)
    ]
    assert torch.isfinite(weights(trainer.model)).all()
    assert all(map(math.isfinite, logged(trainer, "loss")))
    (kind,) = fits
    return kind


def binary_entropy(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> torch.Tensor:
    return F.binary_cross_entropy_with_logits(outputs["logits"].squeeze(-1), labels.float())


def squared_error(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> torch.Tensor:
    return F.mse_loss(outputs["logits"], labels)


class BinaryTrainer(LSTSDTrainer):
    """Leaves the labels in the batch, so the model also computes a squared error and calls itself a regression."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs)
        loss = F.binary_cross_entropy_with_logits(outputs.logits.squeeze(-1), inputs["labels"])
        return (loss, outputs) if return_outputs else loss


SINGLE, MULTI = "single_label_classification", "multi_label_classification"


@pytest.mark.parametrize(
    ("data", "model", "setting", "loss", "expected", "guessed"),
    [
        (soft(), {}, SINGLE, mean_entropy, "classes", False),
        (soft(), {"problem_type": SINGLE}, None, mean_entropy, "classes", False),
        (soft(), {}, None, mean_entropy, "labels", True),
        (several_scores(), {}, "regression", squared_error, "scores", False),
        (several_scores(), {"problem_type": "regression"}, None, None, "scores", False),
        (zero_or_one(), {"num_labels": 1}, MULTI, binary_entropy, "labels", False),
        (zero_or_one(), {"num_labels": 1}, SINGLE, binary_entropy, "labels", False),
        (zero_or_one(), {"num_labels": 1, "problem_type": MULTI}, None, binary_entropy, "labels", False),
        (zero_or_one(), {"num_labels": 1}, None, binary_entropy, "labels", True),
        (zero_or_one(kind=int), {"num_labels": 1}, None, binary_entropy, "labels", True),
        (zero_or_one(), {"num_labels": 1}, None, BinaryTrainer, "labels", True),
        (zero_or_one(), {"num_labels": 1}, "regression", BinaryTrainer, "scores", False),
        (rows(24, "regression"), {"num_labels": 1}, None, None, "scores", False),
        (rows(24), {}, None, None, "classes", False),
    ],
)
def test_the_kind_of_head_is_said_or_guessed_once(tmp_path, caplog, data, model, setting, loss, expected, guessed):
    trainer_class = loss if isinstance(loss, type) else LSTSDTrainer
    own = None if isinstance(loss, type) else loss
    settings = {"per_device_train_batch_size": 24, "problem_type": setting}
    trainer = run(trainer_class, tmp_path, data, tiny_bert(**model), settings, compute_loss_func=own)
    assert kind_of_head(trainer) == expected
    assert trainer.settings.long_term_weight == (0.1 if expected == "scores" else 0.4)
    assert caplog.text.count("set problem_type") == guessed


def test_a_guess_from_all_labels_is_not_fooled_by_a_batch_of_zeros_and_ones(tmp_path):
    """Scores from 0 to 5 whose first batch happens to hold only 0 and 1."""
    data = rows(24).remove_columns("label").add_column("labels", [0.0, 1.0] * 4 + [2.0, 5.0] * 8)

    class Stars(nn.Module):
        def __init__(self):
            super().__init__()
            self.bert = tiny_bert("regression")

        def forward(self, input_ids, attention_mask, labels):
            scores = self.bert(input_ids, attention_mask).logits
            return {"loss": F.mse_loss(scores[:, 0], labels), "logits": scores}

    settings = {"train_sampling_strategy": "sequential", "learning_rate": 1e-3}
    assert run(LSTSDTrainer, tmp_path, data, Stars(), settings).settings.long_term_weight == 0.1


def test_a_resumed_run_keeps_the_guess_unless_the_user_says_otherwise(tmp_path, caplog):
    settings = {"save_strategy": "steps", "save_steps": 2, "per_device_train_batch_size": 24}
    whole = run(LSTSDTrainer, tmp_path, soft(), settings=settings, compute_loss_func=mean_entropy)
    caplog.clear()
    checkpoint = str(tmp_path / "checkpoint-2")
    for said, expected in ((None, "labels"), (SINGLE, "classes")):
        trainer = run(
            LSTSDTrainer,
            tmp_path / expected,
            soft(),
            settings=settings | {"problem_type": said},
            resume=checkpoint,
            compute_loss_func=mean_entropy,
        )
        assert kind_of_head(trainer) == expected
        assert torch.equal(weights(trainer.model), weights(whole.model)) == (said is None)
    assert "problem_type" not in caplog.text


class OneLogit(nn.Module):
    """One column, its own loss, no config, and its own name for the target."""

    def __init__(self, binary: bool) -> None:
        super().__init__()
        self.bert = tiny_bert("regression", dropout=0.0)
        self.binary = binary

    def forward(self, input_ids, attention_mask, target, labels=None):
        logits = self.bert(input_ids=input_ids, attention_mask=attention_mask).logits
        loss = F.binary_cross_entropy_with_logits if self.binary else F.mse_loss
        return {"loss": loss(logits[:, 0], target.float()), "logits": logits}


@pytest.mark.parametrize("label_names", [None, ["target"]])
@pytest.mark.parametrize("binary", [True, False])
def test_one_column_is_never_one_class(tmp_path, binary, label_names):
    data = zero_or_one() if binary else rows(24, "regression").rename_column("label", "labels")
    data = data.rename_column("labels", "target")
    settings = {"label_names": label_names, "teacher_trust": "confidence", "per_device_train_batch_size": 24}
    trainer = run(LSTSDTrainer, tmp_path, data, OneLogit(binary), settings)
    assert torch.isfinite(weights(trainer.model)).all()
    assert all(map(math.isfinite, logged(trainer, "loss")))
    bernoulli = binary and label_names is not None  # else its labels are not known
    assert trainer.settings.long_term_weight == (0.4 if bernoulli else 0.1)


class Masked(nn.Module):
    """Masks the last class with a value such as -inf, which leaves the loss finite where no label is of that class."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.bert = tiny_bert()
        self.value = value

    def forward(self, input_ids, attention_mask, labels):
        logits = self.bert(input_ids=input_ids, attention_mask=attention_mask).logits
        logits = logits.masked_fill(torch.tensor([False, False, True]), self.value)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


@pytest.mark.parametrize(
    "when",
    [
        {"logging_steps": 100},
        {"logging_strategy": "no", "save_strategy": "steps", "save_steps": 5},
        {"logging_strategy": "no"},
    ],
)
def test_a_loss_that_only_the_teachers_make_nan_is_an_error(tmp_path, when):
    """Also where the losses of all later steps are NaN because the weights are."""
    data = rows(24).map(lambda row: {"label": row["label"] % 2})
    with pytest.raises(FloatingPointError, match=r"long-term and short-term teacher is not finite .*-1e4"):
        run(LSTSDTrainer, tmp_path / "wrong", data, Masked(-math.inf), when)
    assert not list(tmp_path.glob("wrong/checkpoint-*/trainer_state.json"))
    assert_taught(run(LSTSDTrainer, tmp_path / "right", data, Masked(-1e4)))


def test_a_loss_that_is_nan_by_itself_is_left_to_the_user(tmp_path):
    """As with the plain Trainer; the teachers have no part in it."""

    def broken(outputs, labels, num_items_in_batch=None):
        return outputs["logits"].sum() * math.nan

    trainer = run(LSTSDTrainer, tmp_path, compute_loss_func=broken)
    assert trainer.state.global_step == 9


@pytest.mark.parametrize("head", ["regression", "multi_label"])
@pytest.mark.parametrize("name", ["labels", "target"])
def test_a_list_of_dictionaries_and_a_data_set_have_one_head(tmp_path, head, name):
    class Renamed(nn.Module):
        def __init__(self):
            super().__init__()
            self.bert = tiny_bert(head, problem_type=None)

        def forward(self, input_ids, attention_mask, **kwargs):
            logits = self.bert(input_ids=input_ids, attention_mask=attention_mask).logits
            target = kwargs[name]
            if head == "regression":
                return {"loss": F.mse_loss(logits[:, 0], target), "logits": logits}
            return {"loss": F.binary_cross_entropy_with_logits(logits, target), "logits": logits}

    data = rows(24, head).rename_column("label", name)
    settings = {"label_names": [name], "per_device_train_batch_size": 24, "remove_unused_columns": False}
    runs = [
        run(LSTSDTrainer, tmp_path / str(i), form, Renamed(), settings | {"learning_rate": 1e-2})
        for i, form in enumerate((data, list(data)))
    ]
    assert torch.equal(*(weights(trainer.model) for trainer in runs))
    for trainer in runs:
        assert kind_of_head(trainer) == {"regression": "scores", "multi_label": "labels"}[head]


def test_one_number_for_each_sample_is_a_score(tmp_path):
    trainer = run(LSTSDTrainer, tmp_path, rows(24, "regression"), Scores())
    assert_taught(trainer)
    assert LogitsStore.open(tmp_path / "_logits").row_shape == (1,)
    assert trainer.settings.long_term_weight == 0.1


# ---- 8, 9, 17: columns and labels


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


# ---- 10, 11: the same arguments twice, a smaller batch


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


# ---- 12: streams


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


# ---- 18: more than one pass over a batch


def symmetric(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    logs = first.log_softmax(-1), second.log_softmax(-1)
    return sum(F.kl_div(p, q, reduction="batchmean", log_target=True) for p, q in (logs, logs[::-1])) / 2


class DropTwice(LSTSDTrainer):
    """R-Drop: two passes with different dropout, through super()."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        keys = set(inputs)
        one, first = super().compute_loss(model, inputs, return_outputs=True)
        two, second = super().compute_loss(model, inputs, return_outputs=True)
        assert set(inputs) == keys
        assert not model.training or not torch.equal(first.logits, second.logits)
        loss = (one + two) / 2 + symmetric(first.logits, second.logits)
        return (loss, first) if return_outputs else loss


class DropModel(LSTSDTrainer):
    """The same by two calls of the model, without super()."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        first, second = model(**inputs), model(**inputs)
        loss = (first.loss + second.loss) / 2 + symmetric(first.logits, second.logits)
        return (loss, first) if return_outputs else loss


class DropStep(LSTSDTrainer):
    """The same in a training step of its own."""

    def training_step(self, model, inputs, num_items_in_batch=None):
        model.train()
        inputs = self._prepare_inputs(inputs)
        keys = set(inputs)
        one, first = self.compute_loss(model, inputs, True, num_items_in_batch)
        two, second = self.compute_loss(model, inputs, True, num_items_in_batch)
        assert set(inputs) == keys
        loss = (one + two) / 2 + symmetric(first.logits, second.logits)
        self.accelerator.backward(loss)
        return loss.detach()


class DropBatch(LSTSDTrainer):
    """The same in one pass over the batch and its copy; the outputs are those of the first half."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        logits = model(**{key: torch.cat([value, value]) for key, value in inputs.items()}).logits
        first, second = logits.chunk(2)
        loss = F.cross_entropy(logits, torch.cat([labels, labels])) + symmetric(first, second)
        return (loss, {"logits": first}) if return_outputs else loss


@pytest.mark.parametrize("trainer_class", [DropTwice, DropModel, DropStep, DropBatch])
def test_two_passes_over_a_batch(tmp_path, trainer_class):
    trainer = run(trainer_class, tmp_path)
    store = LogitsStore.open(tmp_path / "_logits")
    assert store.sealed_epochs == [0, 1, 2]
    assert np.isfinite(store.read(2, range(24))).all()
    assert logged(trainer, "long_term_coverage")[-1] == 1.0
    assert logged(trainer, "long_term_loss")[-1] > 0
    if trainer_class is not DropStep:  # whose loss is not compute_loss's alone
        assert_taught(trainer)


def test_two_losses_of_one_batch_by_super_may_both_be_smoothed(tmp_path):
    """The plain Trainer takes the labels out of the batch to smooth them, and finds none the second time."""
    assert_taught(run(DropTwice, tmp_path, settings={"label_smoothing_factor": 0.1}))


@pytest.mark.parametrize("head", ["classes", "regression"])
def test_two_rows_for_a_sample_are_no_pair(tmp_path, head):
    """Scores of a batch and its copy look like those of chosen and rejected texts."""

    class Doubled(LSTSDTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            outputs = model(**{key: torch.cat([value, value]) for key, value in inputs.items()})
            return (outputs.loss, outputs) if return_outputs else outputs.loss

    with pytest.raises(ValueError, match=r"for 8 samples.*return the outputs of one pass"):
        run(Doubled, tmp_path, rows(24, head), tiny_bert(head))


# ---- 20, 21, 22: results, locks, errors, logs


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


@pytest.mark.skipif(not shutil.which("c++"), reason="torch.compile needs a C++ compiler: install g++")
def test_a_loss_alone_with_a_compiled_model(tmp_path):
    """Its logits are read where the compiled model returns them, and nothing is compiled again for that."""
    trainer_class = loss_alone(LSTSDTrainer)
    settings = {"torch_compile": True, "torch_compile_backend": "eager"}
    compiled = run(trainer_class, tmp_path / "compiled", model=tiny_bert(dropout=0.0), settings=settings)
    base = run(trainer_class, tmp_path / "base", model=tiny_bert(dropout=0.0))
    torch.testing.assert_close(weights(compiled.model), weights(base.model), atol=1e-5, rtol=1e-4)
    assert_taught(compiled)


@pytest.mark.parametrize("problem_type", ["multi_label_classification", "regression"])
def test_a_loss_that_makes_other_targets_of_the_labels(tmp_path, problem_type):
    class OneHot(LSTSDTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            labels = inputs.pop("labels")
            outputs = model(**inputs)
            targets = torch.nn.functional.one_hot(labels, 3).float()
            loss = torch.nn.functional.binary_cross_entropy_with_logits(outputs.logits, targets)
            return (loss, outputs) if return_outputs else loss

    trainer = OneHot(tiny_bert(problem_type=problem_type), config(tmp_path), train_dataset=rows(48))
    trainer.train()
    assert LogitsStore.open(tmp_path / "_logits").sealed_epochs == [0, 1, 2, 3, 4]
    assert not logged(trainer, "memorised")
