"""Heads that users of Trainer write: their kind, their rows, their checkpoints."""

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
from transformers import BertModel

from lstsd_hf import (
    LogitsStore,
    LSTSDTrainer,
    StoreMismatchError,
    add_sample_ids,
    clean,
    read_history,
    write_report,
)
from own_trainers import OneLogit, Scores, assert_taught, run
from toys import config, logged, rows, tiny_bert, weights


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


class Weighted(nn.Module):
    """Weighs samples by an input with "label" in its name; its config has a word of its own for the problem."""

    def __init__(self) -> None:
        super().__init__()
        self.bert = tiny_bert()
        self.config = tiny_bert().config
        self.config.problem_type = "ordinal"

    def forward(self, input_ids, attention_mask, label_weight, labels=None):
        logits = self.bert(input_ids=input_ids, attention_mask=attention_mask).logits
        entropy = F.cross_entropy(logits, labels, reduction="none")
        return {"loss": (entropy * label_weight).mean(), "logits": logits}


@pytest.mark.parametrize("name", ["label", "labels"])
def test_an_input_with_label_in_its_name_is_not_the_label(tmp_path, name):
    data = rows(24).add_column("label_weight", np.linspace(0.5, 1.0, 24, dtype=np.float32).tolist())
    trainer = run(LSTSDTrainer, tmp_path, data.rename_columns({"label": name} if name != "label" else {}), Weighted())
    assert trainer.label_names == ["label_weight", "labels"]
    assert_taught(trainer)
    assert trainer.settings.long_term_weight == 0.4  # of classes; scores have 0.1
    assert LogitsStore.open(tmp_path / "_logits").read_labels().tolist() == data["label"][:]


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


@pytest.mark.parametrize("retention", ["all", "needed"])
@pytest.mark.parametrize("kind", [int, float])
def test_the_report_knows_one_logit_of_a_yes_or_no_from_a_score(tmp_path: Path, kind: type, retention: str) -> None:
    data = zero_or_one(kind=kind).rename_column("labels", "target")
    settings = {"label_names": ["target"], "logits_retention": retention}
    run(LSTSDTrainer, tmp_path / "out", data, OneLogit(True), settings)
    history = read_history(tmp_path / "out")
    store, labels = LogitsStore.open(tmp_path / "out" / "_logits"), np.array(data["target"])
    yes = np.stack([1 / (1 + np.exp(-store.read(e, range(24))[:, 0].astype(float))) for e in store.sealed_epochs])
    given = np.where(labels == 1, yes, 1 - yes)
    assert np.allclose(np.transpose(history["label_probability_by_epoch"]), given, atol=1e-6)
    assert history["prediction"] == (yes[-1] > 0.5).astype(int).tolist()
    assert np.array(history["looks_wrong"]).tolist() == (np.array(history["noise_score"]) > 0.5).tolist()
    if retention == "all":
        assert np.allclose(history["noise_score"], 1 - given.mean(axis=0), atol=1e-6)
    assert "of 24 labels look" in write_report(tmp_path / "out").read_text(encoding="utf-8")

    data.rename_column("target", "label").to_csv(tmp_path / "train.csv")
    cleaned = clean(tmp_path / "out", tmp_path / "train.csv", tmp_path / "clean.csv", relabel=True, min_score=0.5)
    changed = datasets.Dataset.from_csv(str(tmp_path / "clean.csv"))["label"]
    wrong = np.array(history["suggested_label"]) != labels
    assert wrong.any()
    assert sum(cleaned.relabelled.values()) == (np.array(changed) != labels).sum() == wrong.sum()


@pytest.mark.parametrize("kind", [int, float])
def test_scores_of_0_and_1_stay_scores_in_the_report(tmp_path: Path, kind: type) -> None:
    data = zero_or_one(kind=kind).rename_column("labels", "target")
    settings = {"label_names": ["target"], "problem_type": "regression"}
    run(LSTSDTrainer, tmp_path, data.cast_column("target", datasets.Value("float32")), OneLogit(False), settings)
    assert "mean_absolute_error" in read_history(tmp_path).column_names


def fractions() -> datasets.Dataset:
    """Soft labels for one logit, from 0 to 1."""
    data = zero_or_one(kind=float).rename_column("labels", "target")
    return data.map(lambda row, i: {"target": abs(row["target"] - (i % 5) / 10)}, with_indices=True)


def test_one_logit_with_soft_labels_is_judged_as_the_likelier_class(tmp_path: Path) -> None:
    data = fractions()
    settings = {"label_names": ["target"], "problem_type": "multi_label_classification"}
    run(LSTSDTrainer, tmp_path / "out", data, OneLogit(True), settings)
    history = read_history(tmp_path / "out")
    assert history["label"] == [int(label > 0.5) for label in data["target"]]
    assert history["prediction_probability"][0] >= 0.5
    data.rename_column("target", "label").to_csv(tmp_path / "train.csv")
    assert write_report(tmp_path / "out", tmp_path / "train.csv").exists()
    cleaned = clean(tmp_path / "out", tmp_path / "train.csv", tmp_path / "clean.csv", drop=True)
    assert cleaned.dropped == sum(history["looks_wrong"])
    with pytest.raises(ValueError, match="holds soft labels"):
        clean(tmp_path / "out", tmp_path / "train.csv", tmp_path / "relabelled.csv", relabel=True)
    data.map(lambda row: {"label": 1 - row["target"]}).to_csv(tmp_path / "other.csv")
    with pytest.raises(ValueError, match="are not those that the run was trained on"):
        write_report(tmp_path / "out", tmp_path / "other.csv", label_column="label")


def test_one_logit_stays_a_yes_or_no_after_a_resume_without_logits(tmp_path: Path) -> None:
    data = zero_or_one().rename_column("labels", "target")
    settings = {"label_names": ["target"], "save_strategy": "epoch"}
    run(LSTSDTrainer, tmp_path, data, OneLogit(True), settings | {"num_train_epochs": 1})
    checkpoint = next(tmp_path.glob("checkpoint-*"))
    for store in (tmp_path / "_logits", checkpoint / "_logits"):
        shutil.rmtree(store)
    again = settings | {"num_train_epochs": 3, "resume_without_logits": True}
    run(LSTSDTrainer, tmp_path, data, OneLogit(True), again, resume=str(checkpoint))
    assert "label_probability_by_epoch" in read_history(tmp_path).column_names


@pytest.mark.parametrize("kind", ["scores", "zero_or_one"])
def test_a_score_may_be_a_list_of_one(tmp_path: Path, kind: str) -> None:
    data = rows(24, "regression")
    labels = [[float(label > 0.5) if kind == "zero_or_one" else label] for label in data["label"]]
    data = add_sample_ids(data.remove_columns("label").add_column("label", labels))
    model = tiny_bert("regression", problem_type="regression")
    LSTSDTrainer(model, config(tmp_path, num_train_epochs=2), train_dataset=data).train()
    assert np.allclose(read_history(tmp_path)["label"], np.array(labels)[:, 0])
    assert "error_by_epoch" in read_history(tmp_path).column_names


def test_a_multi_label_head_that_the_models_config_does_not_tell_of(tmp_path: Path) -> None:
    data = rows(24).map(lambda row: {"flags": [float(row["label"] == k) for k in range(3)]}, remove_columns="label")
    data = add_sample_ids(data.rename_column("flags", "label"))
    args = config(tmp_path, num_train_epochs=2, problem_type="multi_label_classification")

    def entropy(outputs, labels, num_items_in_batch=None):
        return F.binary_cross_entropy_with_logits(outputs["logits"], labels)

    trainer = LSTSDTrainer(tiny_bert(), args, train_dataset=data, compute_loss_func=entropy)
    trainer.train()
    trainer.save_model()
    assert read_history(tmp_path)["label"][:] == [[int(flag) for flag in row] for row in data["label"]]


class OneLogitOfTokens(nn.Module):
    """A yes or no for each token: one logit, binary cross-entropy."""

    def __init__(self) -> None:
        super().__init__()
        self.bert = BertModel(tiny_bert().config)
        self.score = nn.Linear(16, 1)

    def forward(self, input_ids, attention_mask, labels):
        logits = self.score(self.bert(input_ids=input_ids, attention_mask=attention_mask)[0])
        known = labels >= 0
        return {
            "loss": F.binary_cross_entropy_with_logits(logits[..., 0][known], labels[known].float()),
            "logits": logits,
        }


def test_one_logit_for_each_token_is_a_yes_or_no(tmp_path: Path) -> None:
    data = rows(24).map(lambda row: {"labels": [-100, *(t % 2 for t in row["input_ids"][1:])]}, remove_columns="label")
    data = add_sample_ids(data)
    torch.manual_seed(0)
    settings = {"num_train_epochs": 4, "problem_type": "token_classification", "teacher_trust": "confidence"}
    trainer = LSTSDTrainer(OneLogitOfTokens(), config(tmp_path, **settings), train_dataset=data)
    trainer.train()
    assert torch.isfinite(weights(trainer.model)).all()
    assert logged(trainer, "short_term_loss")[-1] > 0
    history = read_history(tmp_path)
    rows_of_token = LogitsStore.open(tmp_path / "_logits").epoch_parts(3)["values"][:, 0]
    assert history["prediction"] == (rows_of_token > 0).astype(int).tolist()
    assert np.allclose(np.array(history["prediction_probability"]), 1 / (1 + np.exp(-np.abs(rows_of_token))))
    assert write_report(tmp_path).exists()


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
