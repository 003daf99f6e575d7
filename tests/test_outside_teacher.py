"""A store of predictions of another model, or of an earlier run, as a teacher."""

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from transformers import BertConfig, BertForTokenClassification, Trainer, TrainerCallback

from lstsd_hf import (
    LogitsStore,
    LSTSDConfig,
    LSTSDTrainer,
    PredictionRecorder,
    StoreError,
    StoreMismatchError,
    add_sample_ids,
    record_predictions,
)
from lstsd_hf.method.outside import LAST
from lstsd_hf.method.statistics import fold_ensemble
from lstsd_hf.method.teachers import MEAN, Teacher
from lstsd_hf.training.collator import teacher_key, teacher_parts
from lstsd_hf.training.fingerprint import input_hashes
from lstsd_hf.training.outside import OutsideTeacher
from lstsd_hf.training.teacher_reader import TeacherReader, holds
from toys import config, logged, rows, tiny_bert, weights

ALONE: dict[str, Any] = {"long_term_weight": 0.0, "short_term_weight": 0.0, "teacher_trust": "constant"}


@torch.no_grad()
def record(path: Path, model: Any, data: Any, names: list[str] | None = None, count: int | None = None) -> str:
    """A store as `record_predictions` leaves it, made by hand."""
    inputs = ["attention_mask", "input_ids"]
    source = {"model": "toy", "inputs": inputs, "tokenizer": None, "max_length": 8, "classes": names}
    source["batch_size"] = 40
    ids = np.array(data["sample_id"])
    logits = model.eval()(torch.tensor(data["input_ids"])).logits.numpy()
    store = LogitsStore.create(path, int(ids.max()) + 1, logits.shape[1:], "float32", "toy", ids, source=source)
    store.record(0, ids[:count], logits[:count])
    hashes = np.zeros((store.index.num_rows, 2), np.uint64)
    hashes[store.index.rows_of(ids, path)] = input_hashes(data, inputs)
    store.write_statistic("inputs", 0, hashes)
    store.seal(0)
    return str(path)


@pytest.fixture(scope="module")
def data() -> Any:
    return add_sample_ids(rows(40))


@pytest.fixture(scope="module")
def teacher() -> Any:
    return tiny_bert(seed=5)


@pytest.fixture
def store(tmp_path: Path, teacher: Any, data: Any) -> str:
    return record(tmp_path / "teacher", teacher, data)


class InMemory(Trainer):
    """Offline distillation as one writes it by hand, with the teacher beside the student."""

    teacher: Any
    weight = 0.4
    temperature = 2.0

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs)
        with torch.no_grad():
            logits = self.teacher.eval()(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
        tau = self.temperature
        log_p, log_q = (F.log_softmax(z / tau, dim=-1) for z in (outputs.logits, logits))
        loss = (1 - self.weight) * outputs.loss
        loss = loss + self.weight * tau**2 * F.kl_div(log_p, log_q, log_target=True, reduction="batchmean")
        return (loss, outputs) if return_outputs else loss


def test_training_from_the_store_equals_training_with_the_teacher_in_memory(tmp_path, data, teacher, store):
    by_hand = InMemory(tiny_bert(), config(tmp_path / "hand"), train_dataset=data)
    by_hand.teacher = teacher
    by_hand.train()
    settings = config(tmp_path / "run", outside_teacher=store, outside_weight=0.4, temperature=2.0, **ALONE)
    trainer = LSTSDTrainer(tiny_bert(), settings, train_dataset=data)
    trainer.train()
    torch.testing.assert_close(weights(trainer.model), weights(by_hand.model), atol=1e-5, rtol=0)
    assert logged(trainer, "outside_coverage") == [1.0] * trainer.state.global_step
    assert "short_term_loss" not in trainer.state.log_history[0]


def test_it_teaches_beside_the_long_and_the_short_one_by_the_formula(tmp_path, data, store):
    fetched = []

    class Watching(LSTSDTrainer):
        def training_step(self, model, inputs, *args, **kwargs):
            fetched.append({key: value for key, value in inputs.items() if key.endswith("_logits")})
            return super().training_step(model, inputs, *args, **kwargs)

    settings = config(tmp_path / "run", outside_teacher=store, num_train_epochs=3, teacher_trust="constant")
    trainer = Watching(tiny_bert(dropout=0.0), settings, train_dataset=data)
    trainer.train()
    assert [len(found) for found in fetched] == [1] * 5 + [2] * 5 + [3] * 5
    # Long and short share what the outside teacher leaves: 0.4 of 0.5 each.
    assert trainer.settings.long_term_weight == trainer.settings.short_term_weight == 0.2
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    for entry in log[:5]:
        assert entry["loss"] == pytest.approx(0.5 * entry["base_loss"] + 0.5 * entry["outside_loss"], abs=1e-5)
    for entry in log[10:15]:
        own = 0.2 * (entry["long_term_loss"] + entry["short_term_loss"])
        expected = 0.1 * entry["base_loss"] + own + 0.5 * entry["outside_loss"]
        assert entry["loss"] == pytest.approx(expected, abs=1e-5)


def run(folder: Path, data: Any, store: str, **changes: Any) -> LSTSDTrainer:
    settings = config(folder, **{**ALONE, "outside_teacher": store, "num_train_epochs": 2, **changes})
    trainer = LSTSDTrainer(tiny_bert(dropout=0.0), settings, train_dataset=data)
    trainer.train()
    return trainer


def test_samples_that_it_lacks_give_their_weight_to_the_label(tmp_path, data, teacher, caplog):
    small = record(tmp_path / "teacher", teacher, data.select(range(30)), count=28)
    trainer = run(tmp_path / "run", data, small, num_train_epochs=1, outside_weight=1.0)
    assert "no prediction for 12 of 40 training samples, first for sample ids [28, 29, 30, 31, 32]" in caplog.text
    coverage = logged(trainer, "outside_coverage")
    assert np.mean(coverage) == pytest.approx(28 / 40)
    for entry in trainer.state.log_history[:5]:
        share = entry["outside_coverage"]
        expected = (1 - share) * entry["base_loss"] + share * entry["outside_loss"]
        assert entry["loss"] == pytest.approx(expected, abs=1e-5)


def test_classes_in_another_order_are_mapped_by_their_names(tmp_path, data, teacher, store):
    names = ["red", "green", "blue"]
    by_name = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    turned = LogitsStore.open(store)
    logits = turned.read(0, data["sample_id"])[:, [2, 0, 1]]  # blue, red, green
    path = tmp_path / "turned"
    source = {**turned.source, "classes": ["Blue", "red", "green"]}
    other = LogitsStore.create(path, 40, (3,), "float32", "toy", source=source)
    other.record(0, data["sample_id"], logits)
    other.write_statistic("inputs", 0, turned.read_statistic("inputs")[1])
    other.seal(0)

    expected = run(tmp_path / "run", data, store)
    settings = config(tmp_path / "mapped", **ALONE, outside_teacher=str(path), num_train_epochs=2)
    mapped = LSTSDTrainer(tiny_bert(dropout=0.0, **by_name), settings, train_dataset=data)
    mapped.train()
    assert torch.equal(weights(mapped.model), weights(expected.model))

    by_name["id2label"][1] = "grey"
    refused = LSTSDTrainer(tiny_bert(**by_name), settings, train_dataset=data)
    with pytest.raises(StoreMismatchError, match=r"classes are \['Blue', 'red', 'green'\].* the model's are .*'grey'"):
        refused.train()


def test_classes_whose_names_differ_in_case_alone_are_mapped(tmp_path, data):
    def named(*names: str) -> Any:
        by_name = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
        return tiny_bert(**by_name)

    def columns(model: Any) -> tuple[int, ...] | None:
        return OutsideTeacher.open(store, LAST).for_model(model, None, 3).source.columns

    store = record(tmp_path / "teacher", named("a", "A", "b"), data, ["a", "A", "b"])
    assert columns(named("a", "A", "b")) is None
    assert columns(named("A", "a", "b")) == (1, 0, 2)
    with pytest.raises(StoreMismatchError, match=r"classes are \['a', 'A', 'b'\].* the model's are \['A', 'a', 'B'\]"):
        columns(named("A", "a", "B"))  # which of the first two is which is no more certain


def test_an_earlier_run_teaches_by_an_epoch_or_by_the_mean_of_all(tmp_path, data):
    first = LSTSDTrainer(tiny_bert(), config(tmp_path / "first", num_train_epochs=3), train_dataset=data)
    first.train()
    born = str(tmp_path / "first" / "_logits")
    store, ids = LogitsStore.open(born), np.array([7, 3])
    mean = TeacherReader(born, MEAN, 2, is_outside=True).read(ids, None)["values"]
    np.testing.assert_allclose(mean, np.mean([store.read(epoch, ids) for epoch in range(3)], axis=0), rtol=1e-6)

    last = run(tmp_path / "last", data, born)
    named = run(tmp_path / "named", data, born, outside_epoch=2)
    of_all = run(tmp_path / "mean", data, born, outside_epoch="mean")
    assert torch.equal(weights(last.model), weights(named.model))
    assert not torch.equal(weights(last.model), weights(of_all.model))
    with pytest.raises(StoreError, match=r"outside_epoch=3: the store at .* holds epochs \[0, 1, 2\]"):
        run(tmp_path / "none", data, born, outside_epoch=3)


class Stop(TrainerCallback):
    def on_save(self, args, state, control, **kwargs):
        raise KeyboardInterrupt


def test_a_resumed_run_is_the_same_and_needs_the_same_teacher(tmp_path, data, teacher, store):
    changes = {"save_strategy": "steps", "save_steps": 7, "outside_teacher": store, "num_train_epochs": 3}
    whole = LSTSDTrainer(tiny_bert(), config(tmp_path / "whole", **changes), train_dataset=data)
    whole.train()
    settings = config(tmp_path / "cut", **changes)
    cut = LSTSDTrainer(tiny_bert(), settings, train_dataset=data, callbacks=[Stop()])
    with pytest.raises(KeyboardInterrupt):
        cut.train()

    def resumed(**others: Any) -> LSTSDTrainer:
        trainer = LSTSDTrainer(tiny_bert(), config(tmp_path / "cut", **changes | others), train_dataset=data)
        trainer.train(resume_from_checkpoint=True)
        return trainer

    other = record(tmp_path / "other", tiny_bert(seed=6), data)
    for others, found in (({"outside_teacher": None}, "no outside_teacher"), ({"outside_teacher": other}, other)):
        with pytest.raises(StoreMismatchError, match=f"had an outside teacher, {store} .* found {found}"):
            resumed(**others)
    moved = str(shutil.move(store, tmp_path / "moved"))
    assert torch.equal(weights(resumed(outside_teacher=moved).model), weights(whole.model))


def test_the_store_is_only_read(tmp_path, data, store):
    before = {path: (path.read_bytes(), path.stat().st_nlink) for path in Path(store).rglob("*") if path.is_file()}
    for _ in range(2):  # the second run moves the first one's store aside
        run(tmp_path / "run", data, store, save_strategy="epoch")
    after = {path: (path.read_bytes(), path.stat().st_nlink) for path in Path(store).rglob("*") if path.is_file()}
    assert before == after


def test_the_model_card_tells_of_it_and_not_where_it_lay(tmp_path, data, store):
    trainer = run(tmp_path / "run", data, store)
    trainer.create_model_card()
    card = (tmp_path / "run" / "README.md").read_text(encoding="utf-8")
    assert "Beside the labels taught kept predictions of another model, or of an earlier run, with weight 0.5." in card
    assert 'outside_teacher="STORE"' in card
    assert str(tmp_path) not in card
    settings = re.search(r"args = LSTSDConfig\(\n(.*?)\n\)", card, re.DOTALL)
    assert eval(f"LSTSDConfig({settings[1]})", {"LSTSDConfig": LSTSDConfig}).outside_weight == 0.5


def test_a_store_that_was_moved_aside_may_teach_and_stays(tmp_path, data):
    for _ in range(2):
        LSTSDTrainer(tiny_bert(), config(tmp_path / "run", num_train_epochs=1), train_dataset=data).train()
    aside = tmp_path / "run" / "_logits-1"
    for _ in range(3):
        run(tmp_path / "run", data, str(aside), num_train_epochs=1)
        LogitsStore.open(aside).verify()


@pytest.mark.parametrize(
    ("place", "what"),
    [
        ("run/_logits", "is where this run keeps its own predictions"),
        ("run/_logits/teacher", "is where this run keeps its own predictions"),
        ("run/checkpoint-5/_logits", "lies in a checkpoint of this run's output_dir"),
        ("run/teacher", "lies in output_dir under 'teacher', which a push to the Hub would upload"),
    ],
)
def test_a_place_that_the_run_would_change_is_refused(tmp_path, data, store, place, what):
    shutil.copytree(store, tmp_path / place)
    with pytest.raises(ValueError, match=re.escape(what)):
        run(tmp_path / "run", data, str(tmp_path / place))
    LogitsStore.open(tmp_path / place).verify()


def test_other_inputs_are_refused_and_the_difference_is_named(tmp_path, data, store):
    def cut(row: Any) -> Any:
        return {name: row[name][:6] for name in ("input_ids", "attention_mask")}

    expected = "attention_mask, input_ids differ for 40 of 40 samples.*at most 8 tokens; .* at most 6 tokens"
    with pytest.raises(StoreMismatchError, match=expected):
        run(tmp_path / "a", data.map(cut), store)
    other = data.map(lambda row, i: {"input_ids": [5] * 8} if i == 17 else {}, with_indices=True)
    with pytest.raises(
        StoreMismatchError, match=r"input_ids differs for 1 of 40 samples, first for sample ids \[17\]"
    ):
        run(tmp_path / "b", other, store)
    elsewhere = data.remove_columns("sample_id").add_column("sample_id", list(range(100, 140)))
    with pytest.raises(StoreMismatchError, match="none of the 40 training samples"):
        run(tmp_path / "c", elsewhere, store)
    run(
        tmp_path / "d", data.map(lambda row: {"label": 2 - row["label"]}).shuffle(1), store
    )  # labels and order may differ


def test_of_a_stream_nothing_can_be_compared_and_that_is_said(tmp_path, data, store, caplog):
    stream = data.to_iterable_dataset()
    settings = config(tmp_path / "run", **ALONE, outside_teacher=store, num_samples=40, max_steps=5)
    trainer = LSTSDTrainer(tiny_bert(), settings, train_dataset=stream)
    trainer.train()
    assert "its inputs are not compared with what the outside teacher saw" in caplog.text
    assert logged(trainer, "outside_coverage") == [1.0] * 5


def test_a_linear_schedule_in_the_first_epoch_of_a_stream_is_refused(tmp_path, data, store):
    settings = config(
        tmp_path / "run", **ALONE, outside_teacher=store, num_samples=40, max_steps=5, weight_schedule="linear"
    )
    trainer = LSTSDTrainer(tiny_bert(), settings, train_dataset=data.to_iterable_dataset())
    with pytest.raises(ValueError, match=r"weight_schedule='linear' needs the number of epochs.*'constant', or a"):
        trainer.train()
    assert trainer.state.global_step == 0
    assert run(tmp_path / "sized", data, store, weight_schedule="linear").state.global_step > 0


class Tokens(torch.utils.data.Dataset):
    def __init__(self, count):
        self.rows = rows(count)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


def test_a_torch_data_set_is_recorded_and_taught_by_position(tmp_path):
    made = record_predictions(tiny_bert(seed=5), Tokens(16), tmp_path / "s", batch_size=4, disable_tqdm=True)
    trainer = run(tmp_path / "run", Tokens(16), str(made.path))
    assert logged(trainer, "outside_coverage") == [1.0] * 4
    with pytest.raises(StoreMismatchError, match="was made on 'torch data set of 16', and the training set is 'torch"):
        run(tmp_path / "other", Tokens(12), str(made.path))


def test_labels_of_an_earlier_run_in_another_order_are_refused(tmp_path, data):
    LSTSDTrainer(tiny_bert(), config(tmp_path / "first", num_train_epochs=1), train_dataset=data).train()
    born = str(tmp_path / "first" / "_logits")
    turned = data.map(lambda row: {"label": (row["label"] + 1) % 3})
    with pytest.raises(StoreMismatchError, match="its class 0 is class 1 here"):
        run(tmp_path / "turned", turned, born)
    run(tmp_path / "mended", data.map(lambda row, i: {"label": 0} if i < 5 else {}, with_indices=True), born)


def test_logits_of_another_kind_in_rows_of_the_same_shape_are_refused(tmp_path, data):
    flags = tiny_bert("multi_label", num_labels=3)
    assert record_predictions(flags, data, tmp_path / "s", batch_size=8).head == "multi_label_classification"
    args = config(tmp_path / "run", outside_teacher=str(tmp_path / "s"))
    message = "are of the kind 'multi_label_classification', and the model's of the kind 'single_label_"
    with pytest.raises(StoreMismatchError, match=message):
        LSTSDTrainer(tiny_bert(), args, train_dataset=data).train()


def test_what_is_no_store_for_this_run_is_refused(tmp_path, data, teacher, store):
    with pytest.raises(StoreError, match=r"holds no logits store.*Expected a store that `lstsd record`"):
        run(tmp_path / "run", data, str(tmp_path / "nowhere"))
    empty = LogitsStore.create(tmp_path / "open", 40, (3,), "float32", "toy")
    empty.record(0, [1], np.zeros((1, 3)))
    with pytest.raises(StoreError, match="holds no complete epoch"):
        run(tmp_path / "run", data, str(empty.path))
    other = record(tmp_path / "four", tiny_bert("multi_label", seed=1), data)
    with pytest.raises(StoreMismatchError, match=r"one row for each sample, each of 4 numbers.*rows of 3 numbers"):
        run(tmp_path / "run", data, other)
    damaged = Path(store, "epoch-0000.npy")
    damaged.chmod(0o644)
    damaged.write_bytes(damaged.read_bytes()[:-4] + b"abcd")
    with pytest.raises(StoreError, match=r"epoch-0000\.npy is damaged: expected checksum"):
        run(tmp_path / "run", data, store)
    assert not (tmp_path / "run" / "_logits").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"outside_weight": 0.3}, "outside_weight=0.3 is not allowed: expected None without an outside_teacher"),
        ({"outside_epoch": "mean"}, "outside_epoch='mean' is not allowed: expected 'last' without"),
        ({"outside_teacher": "s", "outside_weight": 1.5}, "outside_weight=1.5 is not allowed: expected a number"),
        ({"outside_teacher": "s", "outside_epoch": "best"}, "outside_epoch='best' is not allowed"),
        ({"outside_teacher": "s", "outside_epoch": -1}, "outside_epoch=-1 is not allowed"),
        ({"outside_teacher": ""}, "outside_teacher='' is not allowed"),
        (
            {"outside_teacher": "s", "outside_weight": 0.7, "short_term_weight": 0.4},
            r"add up to 1.22: expected at most 1",
        ),
        (
            {"long_term_teacher": "mean"},
            "long_term_teacher='mean' is not allowed: expected one of 'epoch', 'ensemble'",
        ),
    ],
)
def test_settings_that_are_wrong(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **changes)


# ---- the mean of all past epochs as the long-term teacher


def test_the_mean_of_past_epochs_is_that_of_laine_and_aila():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4, 5, 3)).astype(np.float16)
    logits[1, 2] = np.nan
    logits[0, 3] = np.nan
    folded = None
    for epoch in logits:
        folded = fold_ensemble(folded, epoch, None)
    for sample in range(5):
        total, count = np.zeros(3), 0
        for z in logits[:, sample].astype(np.float64):
            if not np.isnan(z).any():
                total, count = 0.6 * total + 0.4 * z, count + 1
        np.testing.assert_allclose(folded[sample], [*(total / (1 - 0.6**count)), count], rtol=1e-5)


def test_the_ensemble_teaches_from_epoch_1_and_a_resumed_run_is_the_same(tmp_path, data):
    changes = {
        "long_term_teacher": "ensemble",
        "logits_retention": "needed",
        "save_strategy": "steps",
        "save_steps": 12,
    }

    def trainer(folder: str, **options: Any) -> LSTSDTrainer:
        return LSTSDTrainer(tiny_bert(), config(tmp_path / folder, **changes), train_dataset=data, **options)

    whole = trainer("whole")
    whole.train()
    store = LogitsStore.open(tmp_path / "whole" / "_logits")
    assert store.read_statistic("ensemble")[0] == 4
    assert store.sealed_epochs == [4]
    assert logged(whole, "long_term_coverage") == [0.0] * 5 + [1.0] * 20
    short, long = logged(whole, "short_term_loss"), logged(whole, "long_term_loss")
    assert long[5:10] == pytest.approx(short[5:10], rel=1e-3)  # the mean of one epoch is that epoch
    assert long[15:] != pytest.approx(short[15:], rel=1e-2)
    cut = trainer("cut", callbacks=[Stop()])
    with pytest.raises(KeyboardInterrupt):
        cut.train()
    again = trainer("cut")
    again.train(resume_from_checkpoint=True)
    assert torch.equal(weights(again.model), weights(whole.model))


def test_the_ensemble_goes_on_after_labels_were_corrected(tmp_path, data):
    changes = {"long_term_teacher": "ensemble", "save_strategy": "steps", "save_steps": 12, "accept_new_labels": True}
    cut = LSTSDTrainer(tiny_bert(), config(tmp_path, **changes), train_dataset=data, callbacks=[Stop()])
    with pytest.raises(KeyboardInterrupt):
        cut.train()
    mended = data.map(lambda row, i: {"label": 0} if i < 5 else {}, with_indices=True)
    again = LSTSDTrainer(tiny_bert(), config(tmp_path, **changes), train_dataset=mended)
    again.train(resume_from_checkpoint=True)
    assert logged(again, "long_term_coverage")[5:] == [1.0] * 20
    store = LogitsStore.open(tmp_path / "_logits")
    epoch, values = store.read_statistic("ensemble")
    assert (epoch, values[:, -1].tolist()) == (4, [5.0] * 40)
    folded = None
    for epoch in range(5):
        folded = fold_ensemble(folded, store.epoch_rows(epoch), None)
    np.testing.assert_array_equal(values, folded)


def test_a_head_with_many_rows_has_no_ensemble(tmp_path):
    tagger = BertForTokenClassification(BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2))
    with pytest.raises(ValueError, match="'ensemble' and BertForTokenClassification, whose samples have many rows"):
        LSTSDTrainer(tagger, config(tmp_path, long_term_teacher="ensemble"))


def test_a_run_that_only_records_asks_nobody(tmp_path, data):
    settings = config(tmp_path / "run", outside_teacher=str(tmp_path / "nowhere"), num_train_epochs=1)
    trainer = PredictionRecorder(Trainer)(tiny_bert(), settings, train_dataset=data)
    trainer.train()
    assert "outside_loss" not in trainer.state.log_history[0]


def test_the_mean_of_samples_with_many_rows_and_of_some_that_are_not_there(tmp_path):
    store = LogitsStore.create(tmp_path / "s", 4, (2,), "float32", "toy", ragged=True)
    values = {0: np.arange(10.0).reshape(5, 2), 1: 10 * np.arange(4.0).reshape(2, 2)}
    store.record(0, [0, 1], values[0], counts=[2, 3])
    store.record(1, [0], values[1], counts=[2])
    for epoch in values:
        store.seal(epoch)
    reader = TeacherReader(str(store.path), MEAN, 1, (1, 0), is_outside=True)
    found = reader.read(np.array([9, 1, 0]), np.array([1, 3, 2]))["values"]
    expected = [[np.nan] * 2, *values[0][2:], *((values[0][:2] + values[1]) / 2)]
    np.testing.assert_allclose(found, np.array(expected)[:, ::-1])
    assert np.isnan(reader.read(np.array([1]), np.array([2]))["values"]).all()  # another number of rows


def test_a_statistic_that_is_not_there_teaches_nothing(tmp_path):
    store = LogitsStore.create(tmp_path / "s", 2, (3,), "float32", "toy")
    ensemble = Teacher("long_term", lambda epoch: epoch - 1, lambda *_: 0.5, track="ensemble")
    assert not holds(store, ensemble, 0, [0])
    store.write_statistic("ensemble", 0, np.zeros((2, 4)))
    assert holds(store, ensemble, 0, [])
    assert not holds(store, ensemble, 1, [1])


# ---- vocabularies


def test_a_teacher_with_more_classes_is_cut_to_those_of_the_other_and_the_tail_has_the_rest():
    rng = np.random.default_rng(0)
    log_p = torch.log_softmax(torch.tensor(rng.normal(size=(2, 10)), dtype=torch.float32), dim=1)
    added = {}
    for name, k in (("short_term", 2), ("outside", 4)):
        values, classes = log_p.topk(k)
        rest = log_p.exp().sum(1) - values.exp().sum(1)
        for part, tensor in (("values", values), ("classes", classes), ("rest", rest.log())):
            added[teacher_key(name, part)] = tensor.half() if name == "outside" and part != "classes" else tensor
    parts = teacher_parts(added, ["short_term", "outside"])
    assert parts["values"].shape == (2, 2, 2)
    torch.testing.assert_close(parts["values"][1], parts["values"][0], atol=1e-2, rtol=0)
    torch.testing.assert_close(parts["rest"][1], parts["rest"][0], atol=1e-2, rtol=0)
    assert torch.equal(parts["classes"][1], parts["classes"][0])
