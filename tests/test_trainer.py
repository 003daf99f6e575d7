"""`LSTSDTrainer` in place of `Trainer`: the invariants of the method, drop-in behaviour, and what is refused."""

import math
import shutil
import types
import warnings
from typing import Any

import datasets
import numpy as np
import peft
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from transformers import (
    BertForMultipleChoice,
    DataCollatorWithPadding,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    Wav2Vec2Config,
    Wav2Vec2ForCTC,
)

from lstsd_hf import LogitsStore, LSTSDTrainer, StoreError, add_sample_ids
from lstsd_hf.training.sample_ids import SampleIdError
from toys import HEADS, TOKENS, config, logged, rows, tiny_bert, weights

OFF = {"long_term_weight": 0.0, "short_term_weight": 0.0}


def train(trainer_class: type[Trainer], folder: Any, data: Any, head: str = "classes", **options: Any) -> Any:
    """Trains a fresh tiny BERT; `settings` changes the config, `model` the BERT, and `options` the trainer."""
    model = tiny_bert(head, **options.pop("model", {}))
    settings = config(folder, **options.pop("settings", {}))
    trainer = trainer_class(model, settings, train_dataset=data, **options)
    trainer.train()
    return trainer


# ---- 1. off is off


@pytest.mark.parametrize("head", HEADS)
def test_off_is_off(tmp_path, head):
    """With both teacher weights 0, the model's weights are the plain Trainer's bit for bit, dropout included."""
    settings = {**OFF, "optim": "adamw_torch", "learning_rate": 1e-3, "max_grad_norm": 1.0, "num_train_epochs": 3}
    plain = train(Trainer, tmp_path / "plain", rows(30, head), head, settings=settings)
    ours = train(LSTSDTrainer, tmp_path / "ours", rows(30, head), head, settings=settings)
    assert torch.equal(weights(plain.model), weights(ours.model))
    assert logged(plain, "loss") == logged(ours, "loss") == pytest.approx(logged(ours, "base_loss"))
    assert not logged(ours, "long_term_loss")
    store = LogitsStore.open(tmp_path / "ours" / "_logits")
    assert store.sealed_epochs == [0, 1, 2]  # the report works without distillation
    assert np.isfinite(store.read(2, range(30))).all()


@pytest.mark.parametrize("label_smoothing_factor", [0.0, 0.1])
def test_off_is_off_with_a_loss_of_the_users(tmp_path, label_smoothing_factor):
    def weighted(outputs, labels, num_items_in_batch=None):
        class_weights = torch.tensor([1.0, 2.0, 0.5])
        return F.cross_entropy(outputs["logits"], labels, class_weights, reduction="sum") / num_items_in_batch

    options = {"compute_loss_func": None if label_smoothing_factor else weighted}
    settings = {**OFF, "label_smoothing_factor": label_smoothing_factor}
    plain = train(Trainer, tmp_path / "plain", rows(30), settings=settings, **options)
    ours = train(LSTSDTrainer, tmp_path / "ours", rows(30), settings=settings, **options)
    assert torch.equal(weights(plain.model), weights(ours.model))


def test_rows_that_are_not_read_ahead_learn_the_same(tmp_path):
    """The labels of a list are not known before, so those that are not -100 are counted; no rounding comes of that."""
    settings = {"per_device_train_batch_size": 5, "gradient_accumulation_steps": 4}
    of_table, of_list = (
        train(LSTSDTrainer, tmp_path / name, data, settings=settings)
        for name, data in (("table", rows(17)), ("list", list(rows(17))))
    )
    assert torch.equal(weights(of_table.model), weights(of_list.model))


def test_the_first_epoch_is_plain_fine_tuning(tmp_path):
    settings = {"num_train_epochs": 1, "mini_generation_epochs": 1, "long_term_weight": 0.5, "short_term_weight": 0.5}
    with pytest.warns(UserWarning, match="will never teach"):
        ours = train(LSTSDTrainer, tmp_path / "ours", rows(30), settings=settings)
    plain = train(Trainer, tmp_path / "plain", rows(30), settings=settings)
    assert torch.equal(weights(plain.model), weights(ours.model))


# ---- 2. one big batch

# With K = 1, every sample has both teachers in epochs 1 and 2, and all samples count alike.
ALIKE = {
    "num_train_epochs": 3,
    "mini_generation_epochs": 1,
    "teacher_trust": "constant",
    "temperature": 2.0,
    "learning_rate": 0.2,
    "train_sampling_strategy": "sequential",
}


def mean_over_rows(outputs, labels, num_items_in_batch=None):
    return F.cross_entropy(outputs["logits"], labels)


def sum_over_count(outputs, labels, num_items_in_batch=None):
    return F.cross_entropy(outputs["logits"], labels, reduction="sum") / num_items_in_batch


@pytest.mark.parametrize(
    ("count", "variant"),
    [(64, head) for head in HEADS]
    # 30: a short last micro-batch; 76: a group of two at the end, the second of them short
    + [(30, "classes"), (76, "classes"), (76, "multi_label"), (76, "regression")]
    + [(76, "label smoothing"), (76, "mean"), (76, "sum")],
)
def test_accumulated_micro_batches_equal_one_big_batch(tmp_path, count, variant):
    head = variant if variant in HEADS else "classes"
    options: dict[str, Any] = {"model": {"dropout": 0.0}}
    options["compute_loss_func"] = {"mean": mean_over_rows, "sum": sum_over_count}.get(variant)
    changes = {"label_smoothing_factor": 0.1 if variant == "label smoothing" else 0.0}
    if head == "regression":  # squares of a large step explode
        changes["learning_rate"] = 0.02
    data = rows(count, head)
    runs = [
        train(
            LSTSDTrainer,
            tmp_path / str(size),
            data,
            head,
            settings=ALIKE
            | changes
            | {"per_device_train_batch_size": size, "gradient_accumulation_steps": 32 // size},
            **options,
        )
        for size in (32, 8)
    ]
    big, accumulated = (weights(run.model) for run in runs)
    assert (big - weights(tiny_bert(head, dropout=0.0))).abs().max() > 0.01  # it has learned
    torch.testing.assert_close(accumulated, big, atol=1e-5, rtol=0)
    for name in ("loss", "base_loss", "long_term_loss", "short_term_loss"):
        assert logged(runs[1], name) == pytest.approx(logged(runs[0], name), abs=1e-5), name


def test_a_last_group_that_is_short_counts_by_its_own_samples(tmp_path):
    """76 samples in groups of 4 x 8: 32, 32, and 8 + 4; the logged loss of the last is the mean over its 12."""
    trainer = train(
        LSTSDTrainer,
        tmp_path,
        rows(76),
        model={"dropout": 0.0},
        settings=ALIKE | {"num_train_epochs": 1, "gradient_accumulation_steps": 4, "learning_rate": 0.0, **OFF},
    )
    data = rows(76)[64:]
    trainer.model.eval()
    with torch.no_grad():
        logits = trainer.model(torch.tensor(data["input_ids"]), torch.tensor(data["attention_mask"])).logits
    expected = F.cross_entropy(logits, torch.tensor(data["label"])).item()
    assert logged(trainer, "loss")[2] == pytest.approx(expected, abs=1e-6)


# ---- the log


def test_the_log_holds_the_parts_of_the_loss_and_the_agreement(tmp_path):
    settings = {"logging_steps": 3, "teacher_trust": "constant", "num_train_epochs": 4}
    trainer = train(LSTSDTrainer, tmp_path, rows(24), settings=settings)
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(entries) == 4
    first, second, third, _ = entries
    assert first["loss"] == pytest.approx(first["base_loss"])
    assert first["long_term_loss"] == first["short_term_loss"] == 0.0
    assert not {"long_term_agreement", "short_term_agreement"} & set(first)
    assert second["short_term_loss"] > 0
    assert "long_term_agreement" not in second
    assert second["loss"] == pytest.approx(0.6 * second["base_loss"] + 0.4 * second["short_term_loss"], rel=1e-5)
    parts = 0.2 * third["base_loss"] + 0.4 * third["long_term_loss"] + 0.4 * third["short_term_loss"]
    assert third["loss"] == pytest.approx(parts, rel=1e-5)

    store = LogitsStore.open(tmp_path / "_logits")
    student, teacher = (store.read(epoch, range(24)).argmax(axis=1) for epoch in (2, 1))
    assert third["long_term_agreement"] == pytest.approx((student == teacher).mean())
    assert third["short_term_agreement"] == third["long_term_agreement"]  # with K = 2, both teachers are epoch 1 here


def test_a_regression_has_no_agreement(tmp_path):
    trainer = train(LSTSDTrainer, tmp_path, rows(16, "regression"), "regression")
    assert logged(trainer, "long_term_loss")[-1] > 0
    assert not logged(trainer, "long_term_agreement")


class WithoutConfig(torch.nn.Module):
    """A regression that only its labels reveal."""

    def __init__(self) -> None:
        super().__init__()
        self.bert = tiny_bert("regression")

    def forward(self, input_ids, attention_mask, labels=None):
        logits = self.bert(input_ids=input_ids, attention_mask=attention_mask).logits
        return {"loss": (logits[:, 0] - labels).square().mean(), "logits": logits}


@pytest.mark.parametrize(
    ("head", "make", "expected"),
    [
        ("classes", tiny_bert, 0.4),
        ("multi_label", lambda: tiny_bert("multi_label"), 0.4),
        ("regression", lambda: tiny_bert("regression"), 0.1),
        ("regression", WithoutConfig, 0.1),
    ],
)
def test_the_teachers_of_a_regression_weigh_less(tmp_path, head, make, expected):
    trainer = LSTSDTrainer(make(), config(tmp_path, learning_rate=1e-3), train_dataset=rows(8, head))
    trainer.train()
    last = {name: logged(trainer, name)[4] for name in ("loss", "base_loss", "long_term_loss", "short_term_loss")}
    if head == "regression":  # every teacher counts in full
        taught = expected * (last["long_term_loss"] + last["short_term_loss"])
        assert last["loss"] == pytest.approx((1 - 2 * expected) * last["base_loss"] + taught, rel=1e-5)
    assert (trainer.settings.long_term_weight, trainer.settings.short_term_weight) == (expected, expected)
    assert (trainer.args.long_term_weight, trainer.args.short_term_weight) == (
        None,
        None,
    )  # the user's arguments do not change


def test_one_config_serves_a_regression_and_then_classes(tmp_path):
    settings = config(tmp_path, learning_rate=1e-3, num_train_epochs=3)
    for head, weight in (("regression", 0.1), ("classes", 0.4)):
        trainer = LSTSDTrainer(tiny_bert(head), settings, train_dataset=rows(8, head))
        trainer.train()
        assert trainer.settings.short_term_weight == weight
        assert trainer.teacher_weights.tolist() == pytest.approx([weight, weight])


def test_a_loader_that_is_made_meanwhile_does_not_take_the_teachers_away(tmp_path):
    class Looks(TrainerCallback):
        def on_epoch_begin(self, args, state, control, **kwargs):
            trainer.get_train_dataloader()

    undisturbed = train(LSTSDTrainer, tmp_path / "undisturbed", rows(24))
    trainer = LSTSDTrainer(tiny_bert(), config(tmp_path / "disturbed"), train_dataset=rows(24), callbacks=[Looks()])
    trainer.train()
    assert torch.equal(weights(trainer.model), weights(undisturbed.model))
    assert logged(trainer, "long_term_loss") == logged(undisturbed, "long_term_loss")


def test_a_step_reads_nothing_back_from_the_device(tmp_path, monkeypatch):
    """`Tensor.item` and its like wait for the device: a step calls them no more often than the plain Trainer's."""
    calls: dict[type, int] = {}
    for trainer_class in (Trainer, LSTSDTrainer):
        trainer = trainer_class(
            tiny_bert(), config(tmp_path / trainer_class.__name__, logging_strategy="no"), train_dataset=rows(32)
        )
        count = 0
        for name in ("item", "tolist", "__bool__", "__float__", "__int__"):
            original = getattr(torch.Tensor, name)

            def counted(self, *args, original=original):
                nonlocal count
                count += self.requires_grad or self.grad_fn is not None or self.dtype == torch.float32
                return original(self, *args)

            monkeypatch.setattr(torch.Tensor, name, counted)
        trainer.train()
        monkeypatch.undo()
        calls[trainer_class] = count
    assert calls[LSTSDTrainer] == calls[Trainer] + 1  # the means of all steps, for the log of the run's end


# ---- drop-in


def test_replacing_the_word_trainer_is_enough(tmp_path):
    """Plain TrainingArguments, no ids, and an evaluation set; the defaults of the method apply."""
    arguments = TrainingArguments(
        output_dir=str(tmp_path), num_train_epochs=4, report_to=[], disable_tqdm=True, use_cpu=True, logging_steps=1
    )
    data = rows(40)
    trainer = LSTSDTrainer(model=tiny_bert(), args=arguments, train_dataset=data, eval_dataset=rows(12, seed=1))
    trainer.train()
    assert trainer.args is arguments
    assert trainer.train_dataset is data
    assert logged(trainer, "long_term_loss")[-1] > 0
    store = LogitsStore.open(tmp_path / "_logits")
    assert (store.num_samples, store.row_shape, store.dtype) == (40, (3,), "float16")
    np.testing.assert_array_equal(np.load(tmp_path / "_logits" / "labels.npy"), data["label"][:])


def test_evaluation_and_prediction_are_the_plain_trainers(tmp_path):
    test = rows(21, seed=1)
    found = []
    for trainer_class in (Trainer, LSTSDTrainer):
        trainer = train(
            trainer_class,
            tmp_path / trainer_class.__name__,
            rows(16),
            eval_dataset=test,
            settings={**OFF, "num_train_epochs": 1, "label_smoothing_factor": 0.1, "eval_strategy": "epoch"},
        )
        predicted = trainer.predict(test)
        found.append((logged(trainer, "eval_loss"), predicted.metrics["test_loss"], predicted.predictions.tolist()))
    assert found[0] == found[1]


def test_an_evaluation_set_with_ids_does_not_leak_them_into_the_model(tmp_path):
    both = add_sample_ids(datasets.DatasetDict(train=rows(16), test=rows(8, seed=1)))
    both = both.rename_column("label", "labels")

    class Strict(torch.nn.Module):
        """A model that takes the arguments that it knows and no others, and returns a tuple."""

        def __init__(self):
            super().__init__()
            self.bert = tiny_bert()

        def forward(self, input_ids, attention_mask, labels=None):
            output = self.bert(input_ids, attention_mask, labels=labels)
            return (output.logits,) if labels is None else (output.loss, output.logits)

    trainer = LSTSDTrainer(
        Strict(),
        config(tmp_path, remove_unused_columns=False),
        train_dataset=both["train"],
        eval_dataset=both["test"],
    )
    trainer.train()
    assert math.isfinite(trainer.evaluate()["eval_loss"])
    assert LogitsStore.open(tmp_path / "_logits").row_shape == (3,)
    assert logged(trainer, "long_term_loss")[-1] > 0


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_models_that_return_tuples_learn_the_same(tmp_path, smoothing):
    settings = {"label_smoothing_factor": smoothing}
    runs = [
        train(LSTSDTrainer, tmp_path / str(form), rows(24), settings=settings, model={"return_dict": form})
        for form in (True, False)
    ]
    assert torch.equal(*(weights(run.model) for run in runs))
    assert logged(runs[0], "loss") == logged(runs[1], "loss")


class TorchRows(torch.utils.data.Dataset):
    """A torch data set that hands out the same dictionaries again and again, as tutorials do."""

    def __init__(self, data: datasets.Dataset):
        self.items = [
            {"input_ids": row["input_ids"], "attention_mask": row["attention_mask"], "labels": row["label"]}
            for row in data
        ]

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


@pytest.mark.parametrize("form", ["ids", "no ids", "torch", "transform", "transform with ids", "list", "few columns"])
def test_every_form_of_the_training_set_trains_the_same(tmp_path, form):
    settings = {"remove_unused_columns": "transform" not in form}
    plain = rows(24)
    numbered = add_sample_ids(plain)

    def tokens_and_labels(batch):
        return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "labels": batch["label"]}

    data: Any = {
        "ids": numbered,
        "no ids": plain,
        "torch": TorchRows(plain),
        "transform": plain.with_transform(tokens_and_labels),
        "transform with ids": numbered.with_transform(tokens_and_labels),
        "list": TorchRows(plain).items,
        "few columns": numbered.with_format("torch", columns=["input_ids", "attention_mask", "label"]),
    }[form]
    trainer = train(LSTSDTrainer, tmp_path / "form", data, settings=settings)
    reference = train(LSTSDTrainer, tmp_path / "reference", numbered)
    assert torch.equal(weights(trainer.model), weights(reference.model))
    ours, theirs = (LogitsStore.open(tmp_path / name / "_logits") for name in ("form", "reference"))
    np.testing.assert_array_equal(ours.read(4, range(24)), theirs.read(4, range(24)))


def test_a_shuffled_selection_keeps_its_ids(tmp_path):
    data = add_sample_ids(rows(30)).shuffle(seed=5).select(range(20))
    train(LSTSDTrainer, tmp_path, data)
    store = LogitsStore.open(tmp_path / "_logits")
    seen = ~np.isnan(store.read(4, range(store.num_samples))).any(axis=1)
    assert sorted(data["sample_id"][:]) == np.flatnonzero(seen).tolist()


def test_a_stream_trains_like_a_map(tmp_path):
    numbered = add_sample_ids(rows(24))
    sequential = {"train_sampling_strategy": "sequential"}
    runs = [
        train(LSTSDTrainer, tmp_path / "map", numbered, settings=sequential),
        train(
            LSTSDTrainer,
            tmp_path / "stream",
            numbered.to_iterable_dataset(),
            settings={"max_steps": 15, "num_samples": 24},
        ),
    ]
    assert torch.equal(*(weights(run.model) for run in runs))
    assert logged(runs[0], "long_term_loss") == logged(runs[1], "long_term_loss")


@pytest.mark.parametrize("form", ["ids", "torch"])
def test_grouping_by_length_sees_the_rows(tmp_path, form):
    data = (
        rows(24).map(lambda row: {"input_ids": row["input_ids"][: 2 + row["label"]]}).remove_columns("attention_mask")
    )
    settings = {**OFF, "train_sampling_strategy": "group_by_length"}
    tokens = [row["input_ids"] for row in data]
    longest = max(map(len, tokens))

    def pad(features):
        ids = [feature["input_ids"] + [0] * (longest - len(feature["input_ids"])) for feature in features]
        labels = [feature.get("label", feature.get("labels")) for feature in features]
        return {"input_ids": torch.tensor(ids), "labels": torch.tensor(labels)}

    items: Any = (
        add_sample_ids(data) if form == "ids" else [{"input_ids": r["input_ids"], "labels": r["label"]} for r in data]
    )
    plain = train(Trainer, tmp_path / "plain", items, settings=settings, data_collator=pad)
    ours = train(LSTSDTrainer, tmp_path / "ours", items, settings=settings, data_collator=pad)
    assert torch.equal(weights(plain.model), weights(ours.model))


@pytest.mark.parametrize(
    "workers",
    [
        {"dataloader_num_workers": 2},
        {"dataloader_num_workers": 2, "dataloader_persistent_workers": True},
    ],
    ids=["workers", "persistent workers"],
)
def test_workers_see_the_teachers_of_their_epoch(tmp_path, workers):
    base = train(LSTSDTrainer, tmp_path / "base", rows(24))
    other = train(LSTSDTrainer, tmp_path / "workers", rows(24), settings=workers)
    # Loaders with workers draw other seeds, so the order differs; the teachers are there all the same.
    assert len(logged(other, "long_term_agreement")) == len(logged(base, "long_term_agreement")) == 9
    first, second = (LogitsStore.open(tmp_path / name / "_logits") for name in ("base", "workers"))
    assert first.sealed_epochs == second.sealed_epochs == [0, 1, 2, 3, 4]
    assert np.isfinite(second.read(4, range(24))).all()


def test_retention_keeps_what_the_next_epoch_needs(tmp_path):
    seen: list[list[int]] = []

    class Watch(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            path = tmp_path / "_logits"
            seen.append(LogitsStore.open(path).sealed_epochs if path.exists() else [])

    settings = {"mini_generation_epochs": 3, "num_train_epochs": 8, "logits_retention": "needed"}
    train(LSTSDTrainer, tmp_path, rows(8), settings=settings, callbacks=[Watch()])
    assert seen == [[], [0], [1], [2], [2, 3], [2, 4], [5], [5, 6]]


def test_class_weights_are_learned_from(tmp_path):
    def weighted(outputs, labels, num_items_in_batch=None):
        return F.cross_entropy(outputs["logits"], labels, torch.tensor([1.0, 50.0, 1.0]))

    trainer = train(LSTSDTrainer, tmp_path, rows(24), compute_loss_func=weighted)
    assert logged(trainer, "long_term_loss")[-1] > 0
    predicted = [
        LogitsStore.open(run.logits_path()).epoch_rows(run.state.num_train_epochs - 1).argmax(axis=-1)
        for run in (trainer, train(LSTSDTrainer, tmp_path / "even", rows(24)))
    ]
    assert (predicted[0] == 1).sum() > (predicted[1] == 1).sum()


def test_the_best_model_is_loaded_at_the_end(tmp_path):
    trainer = train(
        LSTSDTrainer,
        tmp_path,
        rows(40),
        eval_dataset=rows(16, seed=1),
        settings={
            "save_strategy": "epoch",
            "eval_strategy": "epoch",
            "load_best_model_at_end": True,
            "metric_for_best_model": "eval_loss",
        },
    )
    best = min(logged(trainer, "eval_loss"))
    assert trainer.state.best_metric == best
    assert trainer.evaluate()["eval_loss"] == pytest.approx(best)


def test_bf16(tmp_path):
    settings = {"bf16": True, "learning_rate": 1e-2}
    trainer = train(LSTSDTrainer, tmp_path, rows(24), settings=settings)
    assert logged(trainer, "long_term_loss")[-1] > 0
    assert np.isfinite(LogitsStore.open(tmp_path / "_logits").read(4, range(24))).all()


def test_gradient_checkpointing(tmp_path):
    base = train(LSTSDTrainer, tmp_path / "base", rows(16))
    saved = train(LSTSDTrainer, tmp_path / "saved", rows(16), settings={"gradient_checkpointing": True})
    torch.testing.assert_close(weights(saved.model), weights(base.model))


def test_a_lora_model(tmp_path):
    model = peft.get_peft_model(tiny_bert(), peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"]))
    before = weights(model)
    trainer = LSTSDTrainer(model, config(tmp_path), train_dataset=rows(24))
    trainer.train()
    assert not torch.equal(before, weights(model))
    assert logged(trainer, "long_term_loss")[-1] > 0


@pytest.mark.skipif(not shutil.which("c++"), reason="torch.compile needs a C++ compiler: install g++")
def test_torch_compile(tmp_path):
    settings = {"torch_compile": True, "num_train_epochs": 3}
    compiled = train(LSTSDTrainer, tmp_path / "compiled", rows(16), settings=settings, model={"dropout": 0.0})
    base = train(LSTSDTrainer, tmp_path / "base", rows(16), settings={"num_train_epochs": 3}, model={"dropout": 0.0})
    torch.testing.assert_close(weights(compiled.model), weights(base.model), atol=1e-5, rtol=1e-4)
    assert logged(compiled, "long_term_loss")[-1] > 0


def test_a_smaller_batch_is_found_and_starts_a_new_store(tmp_path):
    model = tiny_bert()

    def too_large(module, args, kwargs):
        if module.training and len(kwargs["input_ids"]) > 4:
            raise RuntimeError("CUDA out of memory.")

    model.register_forward_pre_hook(too_large, with_kwargs=True)
    trainer = LSTSDTrainer(model, config(tmp_path, auto_find_batch_size=True), train_dataset=rows(24))
    trainer.train()
    assert trainer.state.train_batch_size <= 4
    store = LogitsStore.open(tmp_path / "_logits")
    assert store.sealed_epochs == [0, 1, 2, 3, 4]
    assert np.isfinite(store.read(0, range(24))).all()


def test_training_twice_moves_the_first_store_aside(tmp_path, caplog):
    data = rows(24)
    trainer = train(LSTSDTrainer, tmp_path, data, settings={"num_train_epochs": 3})
    first = (tmp_path / "_logits" / "epoch-0002.npy").read_bytes()
    trainer.train()
    assert f"they were moved to {tmp_path / '_logits-1'}" in caplog.text
    assert (tmp_path / "_logits-1" / "epoch-0002.npy").read_bytes() == first
    assert LogitsStore.open(tmp_path / "_logits").sealed_epochs == [0, 1, 2]
    trainer.train()
    assert LogitsStore.open(tmp_path / "_logits-2").sealed_epochs == [0, 1, 2]
    LogitsStore.open(tmp_path / "_logits-1").verify()


def test_a_folder_that_is_no_store_is_left_alone(tmp_path):
    (tmp_path / "_logits").mkdir()
    (tmp_path / "_logits" / "thesis.txt").write_text("mine")
    with pytest.raises(StoreError, match="holds something that is not a logits store"):
        train(LSTSDTrainer, tmp_path, rows(8))
    assert (tmp_path / "_logits" / "thesis.txt").read_text() == "mine"


def test_a_search_has_a_store_for_each_trial(tmp_path):
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    trainer = LSTSDTrainer(
        args=config(tmp_path, num_train_epochs=3),
        model_init=lambda trial: tiny_bert(),
        train_dataset=rows(16),
        eval_dataset=rows(8, seed=1),
    )
    trainer.hyperparameter_search(
        hp_space=lambda trial: {"mini_generation_epochs": trial.suggest_categorical("mini_generation_epochs", [1, 2])},
        n_trials=2,
        backend="optuna",
        direction="minimize",
    )
    for run in ("run-0", "run-1"):
        assert LogitsStore.open(tmp_path / run / "_logits").sealed_epochs == [0, 1, 2]
    assert not (tmp_path / "_logits").exists()


def test_a_search_cannot_set_what_the_config_would_refuse(tmp_path):
    trainer = LSTSDTrainer(tiny_bert(), config(tmp_path), train_dataset=rows(8))
    trainer.args.temperature = 0.0
    with pytest.raises(ValueError, match=r"temperature=0\.0 is not allowed"):
        trainer.train()


def test_a_disk_that_is_too_small_is_refused_before_the_first_step(tmp_path, monkeypatch):
    # Ids that are far apart take no space of their own, so the test pretends that a hundred bytes are free.
    monkeypatch.setattr("shutil.disk_usage", lambda path: types.SimpleNamespace(free=100))
    data = add_sample_ids(rows(8))
    message = r"will take about .* GB, and .* GB are free: expected room for the whole run"
    refused(StoreError, message, tiny_bert(num_labels=3), config(tmp_path, remove_unused_columns=True), data)


def test_multiple_choice_has_more_choices_than_num_labels(tmp_path):
    data = datasets.Dataset.from_dict({"input_ids": rows(20)["input_ids"][:], "label": [3] * 20})
    data = data.map(lambda row: {"input_ids": [row["input_ids"]] * 4})
    base = tiny_bert().config
    trainer = LSTSDTrainer(BertForMultipleChoice(base), config(tmp_path), train_dataset=data)
    trainer.train()
    assert LogitsStore.open(tmp_path / "_logits").row_shape == (4,)


def test_multiple_choice_with_a_number_of_choices_that_varies(tmp_path):
    rows_of_choices = [[tokens] * (2 + (i >= 8)) for i, tokens in enumerate(rows(16)["input_ids"])]
    data = datasets.Dataset.from_dict({"input_ids": rows_of_choices, "label": [1] * 16})
    settings = {"train_sampling_strategy": "sequential", "num_train_epochs": 1}
    trainer = LSTSDTrainer(BertForMultipleChoice(tiny_bert().config), config(tmp_path, **settings), train_dataset=data)
    with pytest.raises(StoreError, match=r"Does the number of choices vary .* Fill it up: every sample needs as many"):
        trainer.train()
    nothing = [1] * TOKENS
    filled = data.map(lambda row: {"input_ids": (row["input_ids"] + [nothing])[:3]})
    model = BertForMultipleChoice(tiny_bert().config)
    LSTSDTrainer(model, config(tmp_path, **settings), train_dataset=filled).train()


def test_a_padding_collator_of_the_users_is_still_there_when_the_trainer_saves(tmp_path):
    collator = DataCollatorWithPadding(tokenizer=object())
    trainer = LSTSDTrainer(tiny_bert(), config(tmp_path), train_dataset=rows(8), data_collator=collator)
    trainer.get_train_dataloader()
    assert trainer.data_collator is collator
    assert "sample_id" not in trainer._signature_columns


# ---- what is refused, before the first step


def refused(error: type[Exception], message: str, model: Any, arguments: Any, data: Any, **options: Any) -> None:
    """Asserts that training raises, and that no weight has changed by then."""
    before = weights(model)
    trainer = LSTSDTrainer(model, arguments, train_dataset=data, **options)
    with pytest.raises(error, match=message):
        trainer.train()
    assert torch.equal(before, weights(model))


def test_bad_ids_are_refused(tmp_path):
    twice = add_sample_ids(rows(8)).map(lambda row: {"sample_id": row["sample_id"] // 2})
    refused(SampleIdError, r"4 repeated sample ids, first \[0, 1, 2, 3\]", tiny_bert(), config(tmp_path), twice)


def test_labels_outside_of_the_classes_are_refused(tmp_path):
    wrong = rows(8).map(lambda row, i: {"label": 7 if i in (2, 5) else -100}, with_indices=True)
    message = r"2 training labels are outside of the model's 3 classes, first \[7, 7\] for sample ids \[2, 5\]"
    refused(ValueError, message, tiny_bert(), config(tmp_path), wrong)


def for_transcription() -> Any:
    settings = {"conv_dim": (4,), "conv_stride": (5,), "conv_kernel": (10,), "num_conv_pos_embeddings": 4}
    layers = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    groups = {"num_conv_pos_embedding_groups": 2, "feat_extract_norm": "layer"}
    return Wav2Vec2ForCTC(Wav2Vec2Config(vocab_size=8, **settings, **layers, **groups))


def for_segmentation() -> Any:
    sizes = {"hidden_sizes": [8, 8, 8, 8], "num_attention_heads": [1, 1, 1, 1], "depths": [1, 1, 1, 1]}
    return SegformerForSemanticSegmentation(SegformerConfig(decoder_hidden_size=8, **sizes))


def adapted_for_transcription() -> Any:
    return peft.get_peft_model(for_transcription(), peft.LoraConfig(r=2, target_modules=["q_proj"]))


class Unread(torch.utils.data.Dataset):
    """Rows that must not be read."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        raise AssertionError("a row was read")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (for_transcription, r"Wav2Vec2ForCTC is a model for ctc: .*sequence, image, audio"),
        (for_segmentation, r"SegformerForSemanticSegmentation is a model for semantic segmentation: .*image, audio"),
        (adapted_for_transcription, r"Wav2Vec2ForCTC is a model for ctc"),  # PEFT's wrapper hides nothing
    ],
)
def test_models_of_another_kind_are_refused_by_their_class_before_a_row_is_read(tmp_path, make, message):
    refused(ValueError, message, make(), config(tmp_path), Unread())
    assert not (tmp_path / "_logits").exists()


class OwnHead(torch.nn.Module):
    """A head of the user's own that makes no row of logits for each sample."""

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__()
        self.bert = tiny_bert().bert
        self.names = names

    def forward(self, input_ids, attention_mask, labels=None):
        tokens = self.bert(input_ids, attention_mask).last_hidden_state
        return {"loss": tokens.square().mean()} | dict.fromkeys(self.names, tokens)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("logits",), rf"logits of shape \(8, {TOKENS}, 16\) for 8 samples: expected \(8, classes\).*image, audio"),
        (("hidden", "state"), r"returned no logits, but outputs loss, hidden, state: .*sequence, image, audio"),
    ],
)
def test_a_head_without_a_row_for_each_sample_is_refused_in_the_first_step(tmp_path, names, message):
    refused(ValueError, message, OwnHead(names), config(tmp_path), rows(8))


def test_streams_are_checked_at_their_batch(tmp_path):
    settings = config(tmp_path, max_steps=4, num_samples=8)

    def repeated():
        for index, row in enumerate(rows(16)):
            yield {**row, "sample_id": index % 8}

    def missing():
        yield from rows(16)

    for rows_of, message in [
        (repeated, r"gave sample ids \[0, 1, 2, 3, 4\] a second time in epoch 0"),
        (missing, "has no 'sample_id'"),
    ]:
        stream = datasets.IterableDataset.from_generator(rows_of)
        trainer = LSTSDTrainer(tiny_bert(), settings, train_dataset=stream)
        with pytest.raises(SampleIdError, match=message):
            trainer.train()


def test_a_stream_has_the_linear_schedule_of_a_sized_set(tmp_path):
    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            weights_of[name].append(trainer.teacher_weights)

    data = add_sample_ids(rows(8))
    settings = {"max_steps": 5, "per_device_train_batch_size": 4, "weight_schedule": "linear"}
    weights_of = {"sized": [], "stream": []}
    for name, training_set in (("sized", data), ("stream", data.to_iterable_dataset())):
        num_samples = 8 if name == "stream" else None
        arguments = config(tmp_path / name, num_samples=num_samples, **settings)
        trainer = LSTSDTrainer(tiny_bert(), arguments, train_dataset=training_set, callbacks=[Watch()])
        trainer.train()
    assert [len(weights) for weights in weights_of["sized"]] == [0, 0, 1, 1, 2]  # no teacher, one, two
    assert weights_of["sized"][-1].tolist() == pytest.approx([0.4, 0.4])
    for sized, stream in zip(weights_of["sized"], weights_of["stream"], strict=True):
        assert torch.equal(sized, stream)


def test_several_gpus_in_one_process_are_refused(tmp_path):
    arguments = config(tmp_path)
    trainer = LSTSDTrainer(tiny_bert(), arguments, train_dataset=rows(8))
    arguments._n_gpu = 2
    with pytest.raises(ValueError, match="torchrun --nproc_per_node 2"):
        trainer.train()


def test_too_few_epochs_for_a_long_term_teacher_are_warned_of(tmp_path):
    data = rows(8)
    settings = {"num_train_epochs": 3, "mini_generation_epochs": 4}
    with pytest.warns(UserWarning, match=r"teach from epoch 4 on .* this run has only 3"):
        train(LSTSDTrainer, tmp_path / "a", data, settings=settings)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        train(LSTSDTrainer, tmp_path / "b", data, settings={**settings, "long_term_weight": 0.0})


def test_what_changes_in_place_after_a_step_is_recorded_as_it_was(tmp_path):
    """The predictions of several batches are written together, some steps later."""
    last = {}

    class Spoil(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            last.pop("logits").zero_()

    stores = []
    for callbacks in ([], [Spoil()]):
        model = tiny_bert()
        model.register_forward_hook(lambda _, inputs, outputs: last.update(logits=outputs.logits.detach()))
        folder = tmp_path / str(len(callbacks))
        arguments = config(folder, num_train_epochs=3, max_steps=60)  # 25 steps in an epoch
        LSTSDTrainer(model, arguments, train_dataset=rows(200), callbacks=callbacks).train()
        stores.append(LogitsStore.open(folder / "_logits"))
    kept, spoiled = stores
    assert kept.sealed_epochs == spoiled.sealed_epochs == [0, 1, 2]
    for epoch in range(3):
        np.testing.assert_array_equal(spoiled.epoch_rows(epoch), kept.epoch_rows(epoch))
    assert np.isfinite(kept.epoch_rows(1)).all()
    assert np.isfinite(kept.epoch_rows(2)).any(axis=1).sum() == 80  # of an epoch of 10 steps
