"""Losses that users of Trainer write, and what they get with LSTSDTrainer."""

import shutil

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, set_seed

from lstsd_hf import LogitsStore, LSTSDMixin, LSTSDTrainer, PredictionRecorder, add_sample_ids
from own_trainers import OFF, SHORT, assert_taught, class_weights, run
from toys import config, logged, rows, tiny_bert, weights


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


# ---- outputs without gradient


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


# ---- more than one pass over a batch


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


def looks_first(base: type) -> type:
    """Looks at the loss of a batch before it trains on it, as one who passes over easy batches does."""

    class LookingTrainer(base):
        def training_step(self, model, inputs, num_items_in_batch=None):
            model.train()
            with torch.no_grad():
                self.looked = self.compute_loss(model, inputs)
            return super().training_step(model, inputs, num_items_in_batch)

    return LookingTrainer


def other_names(base: type) -> type:
    """Calls the model and the batch something else, and passes them so."""

    class NamedTrainer(base):
        def training_step(self, model, inputs, num_items_in_batch=None):
            model.train()
            loss = self.compute_loss(net=model, batch=self._prepare_inputs(inputs))
            self.accelerator.backward(loss)
            return loss.detach()

        def compute_loss(self, net, batch, return_outputs=False, num_items_in_batch=None):
            outputs = net(**batch)
            return (outputs.loss, outputs) if return_outputs else outputs.loss

    return NamedTrainer


def three_things(base: type) -> type:
    class MoreTrainer(base):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            outputs = model(**inputs)
            return (outputs.loss, outputs, "more") if return_outputs else outputs.loss

    return MoreTrainer


def numbered_batch(base: type) -> type:
    """The keys of its batches are no strings."""

    class NumberedTrainer(base):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, data_collator=self.numbered, **kwargs)
            self.args.remove_unused_columns = False

        def numbered(self, rows):
            return {i: torch.tensor([row[name] for row in rows]) for i, name in enumerate(("input_ids", "label"))}

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            outputs = model(input_ids=inputs[0], labels=inputs[1])
            return (outputs.loss, outputs) if return_outputs else outputs.loss

    return NumberedTrainer


@pytest.mark.parametrize("loss", [looks_first, other_names, three_things, numbered_batch])
def test_what_the_plain_trainer_takes_is_taken(tmp_path, loss):
    plain = run(loss(Trainer), tmp_path / "plain", settings=OFF)
    for name, user in (("ours", loss(LSTSDTrainer)), ("recorded", PredictionRecorder(loss(Trainer)))):
        ours = run(user, tmp_path / name, settings=OFF)
        assert torch.equal(weights(plain.model), weights(ours.model))
        assert LogitsStore.open(tmp_path / name / "_logits").sealed_epochs == [0, 1, 2]
    assert_taught(run(loss(LSTSDTrainer), tmp_path / "taught"))


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
