"""What works with `transformers.Trainer` works here: the models, callbacks, loaders and checkpoints of its users."""

import shutil
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.utils.data import Dataset
from transformers import DefaultFlowCallback, Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_jit_checkpoint import JITCheckpointCallback

from lstsd_hf import LogitsStore, LSTSDTrainer, PredictionRecorder, add_sample_ids
from toys import config, logged, rows, tiny_bert, weights

OFF = {"long_term_weight": 0.0, "short_term_weight": 0.0}


class Points(Dataset):
    """Points near a line, a data set of numpy scalars."""

    def __init__(self, count: int = 20) -> None:
        rng = np.random.default_rng(0)
        self.x = rng.normal(size=count).astype(np.float32)
        self.y = (2 * self.x + 3 + rng.normal(scale=0.1, size=count)).astype(np.float32)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"x": self.x[index], "labels": self.y[index]}


class Line(nn.Module):
    """A user's own model without a config. It predicts a number for each sample, (B,), returned as `form` says."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.slope, self.offset = nn.Parameter(torch.ones(())), nn.Parameter(torch.zeros(()))
        self.form = form

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None, **kwargs: Any) -> Any:
        y = self.slope * x + self.offset
        outputs = {
            "logits": {"logits": y},
            "another name": {"prediction": y},
            "tuple": (y,),
            "tuple of two": (y, 2 * y.detach()),
        }[self.form]
        if labels is None:
            return outputs
        loss = F.mse_loss(y, labels)
        return {"loss": loss, **outputs} if isinstance(outputs, dict) else (loss, *outputs)


class Gaussian(Line):
    """A model with two outputs, neither of which is named logits."""

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None, **kwargs: Any) -> Any:
        mean = self.slope * x + self.offset
        return {"loss": F.mse_loss(mean, labels), "mean": mean, "variance": mean.square()}


def made(trainer_class: type[Trainer], folder: Path, model: nn.Module | None = None, **settings: Any) -> Any:
    """A trainer of `model` on points, or without it of a tiny BERT on tokens."""
    data: Any = Points() if model is not None else rows(20)
    options = config(folder, **{"num_train_epochs": 3} | settings)
    return trainer_class(model or tiny_bert(), options, train_dataset=data)


def trained(*args: Any, **settings: Any) -> Any:
    trainer = made(*args, **settings)
    trainer.train()
    return trainer


# ---- models


@pytest.mark.parametrize("form", ["logits", "another name", "tuple", "tuple of two"])
def test_a_number_for_each_sample_is_a_score_in_any_form_of_output(tmp_path, form):
    plain = trained(Trainer, tmp_path / "plain", Line(form), **OFF)
    off = trained(LSTSDTrainer, tmp_path / "off", Line(form), **OFF)
    assert torch.equal(weights(plain.model), weights(off.model))
    taught = trained(LSTSDTrainer, tmp_path / "taught", Line(form))
    assert logged(taught, "short_term_coverage")[-1] == 1.0
    assert taught.settings.short_term_weight == 0.1  # the default of a regression
    assert LogitsStore.open(tmp_path / "taught" / "_logits").row_shape == (1,)


class Squeezed(nn.Module):
    """Squeezes its outputs, as far as that goes: the only sample of a batch has no axis of its own."""

    def __init__(self, columns: int, form: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.form = nn.Linear(1, columns), form

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> Any:
        logits = self.linear(x[:, None]).squeeze()
        if self.linear.out_features == 1:
            loss = F.mse_loss(logits, labels.squeeze())
        else:
            loss = F.cross_entropy(logits.view(len(x), -1), (labels > 3).long())
        return {"loss": loss, "logits": logits} if self.form == "logits" else (loss, logits)


@pytest.mark.parametrize("form", ["logits", "tuple"])
@pytest.mark.parametrize("columns", [1, 2, 3])
def test_the_last_batch_may_have_one_sample(tmp_path, columns, form):
    plain, off, taught = (
        trained(trainer_class, tmp_path / name, Squeezed(columns, form), per_device_train_batch_size=19, **settings)
        for name, trainer_class, settings in (
            ("plain", Trainer, OFF),
            ("off", LSTSDTrainer, OFF),
            ("taught", LSTSDTrainer, {}),
        )
    )
    assert torch.equal(weights(plain.model), weights(off.model))
    assert logged(taught, "short_term_coverage")[-1] == 1.0
    assert LogitsStore.open(tmp_path / "taught" / "_logits").row_shape == (columns,)


def test_several_outputs_without_a_name_for_logits_are_refused(tmp_path):
    with pytest.raises(ValueError, match="The model returned no logits, but outputs loss, mean, variance"):
        trained(LSTSDTrainer, tmp_path, Gaussian("logits"))


class Tagger(nn.Module):
    """A user's own model that predicts a class for each token and has its own loss."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.recurrent, self.head = (
            nn.Embedding(60, 8),
            nn.LSTM(8, 8, batch_first=True),
            nn.Linear(8, 5),
        )

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor | None = None, **kwargs: Any) -> Any:
        logits = self.head(self.recurrent(self.embedding(input_ids))[0])
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten()), logits


def test_a_model_of_ones_own_with_many_rows_needs_a_word_of_what_they_are(tmp_path):
    tokens = torch.randint(1, 60, (20, 6), generator=torch.Generator().manual_seed(0))
    data = [{"input_ids": row, "labels": row % 5} for row in tokens]
    with pytest.raises(ValueError, match="has many rows for each sample, set problem_type, for instance"):
        LSTSDTrainer(Tagger(), config(tmp_path / "refused"), train_dataset=data).train()
    options = config(tmp_path / "said", problem_type="token_classification", num_train_epochs=3)
    trainer = LSTSDTrainer(Tagger(), options, train_dataset=data)
    trainer.train()
    assert logged(trainer, "short_term_coverage")[-1] == 1.0


class TagsTagger(Tagger):
    def forward(self, input_ids: torch.Tensor, tags: torch.Tensor, **kwargs: Any) -> Any:
        return super().forward(input_ids, tags)


def test_a_taggers_labels_may_have_another_name(tmp_path):
    tokens = torch.randint(1, 60, (20, 6), generator=torch.Generator().manual_seed(0))
    data = [{"input_ids": row, "tags": row % 5} for row in tokens]
    said = {"problem_type": "token_classification", "num_train_epochs": 3}
    with pytest.raises(ValueError, match=r"expected labels of shape .* another name, give it as label_names"):
        LSTSDTrainer(TagsTagger(), config(tmp_path / "refused", **said), train_dataset=data).train()
    trainer = LSTSDTrainer(
        TagsTagger(), config(tmp_path / "said", label_names=["tags"], **said), train_dataset=data, eval_dataset=data
    )
    trainer.train()
    assert logged(trainer, "short_term_coverage")[-1] == 1.0
    assert (
        LogitsStore.open(tmp_path / "said" / "_logits").read_row_labels().labels.tolist()
        == (tokens % 5).flatten().tolist()
    )
    assert "eval_loss" in trainer.evaluate()


# ---- callbacks


class Watcher(TrainerCallback):
    """Notes which epochs are sealed whenever one ends."""

    def __init__(self, folder: Path) -> None:
        self.store = folder / "_logits"
        self.sealed: list[list[int]] = []

    def on_epoch_end(self, args, state, control, **kwargs):
        self.sealed.append(LogitsStore.open(self.store).sealed_epochs)


def names(trainer: Trainer) -> list[str]:
    return [type(callback).__name__ for callback in trainer.callback_handler.callbacks]


def test_callbacks_are_the_plain_trainers_before_and_after_a_run(tmp_path):
    trainer = made(LSTSDTrainer, tmp_path)
    expected = names(made(Trainer, tmp_path))
    assert names(trainer) == expected
    trainer.train()
    assert names(trainer) == expected


def test_a_run_that_fails_leaves_the_callbacks_as_they_were(tmp_path):
    trainer = made(LSTSDTrainer, tmp_path, Gaussian("logits"))
    expected = names(trainer)
    with pytest.raises(ValueError, match="no logits"):
        trainer.train()
    assert names(trainer) == expected


def test_whoever_removes_the_callbacks_that_are_there_is_still_taught(tmp_path):
    trainer = made(LSTSDTrainer, tmp_path)
    for callback in list(trainer.callback_handler.callbacks):
        if not isinstance(callback, DefaultFlowCallback):
            trainer.remove_callback(callback)
    trainer.train()
    assert logged(trainer, "short_term_coverage")[-1] == 1.0


def test_a_callback_finds_an_epoch_sealed_at_its_end(tmp_path):
    trainer = made(LSTSDTrainer, tmp_path)
    watcher = Watcher(tmp_path)
    trainer.add_callback(watcher)
    trainer.train()
    assert watcher.sealed == [[0], [0, 1], [0, 1, 2]]


# ---- a loss outside of train()


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_loss_outside_of_a_run_is_the_plain_one(tmp_path, when):
    """For instance when a user looks at the first batch, or searches for a learning rate."""
    losses = []
    for trainer_class in (Trainer, LSTSDTrainer):
        settings = config(tmp_path / trainer_class.__name__, num_train_epochs=2, **OFF)
        trainer = trainer_class(tiny_bert(dropout=0.0), settings, train_dataset=rows(20))
        if when == "after":
            trainer.train()
        trainer.model.train()
        batch = next(iter(trainer.get_train_dataloader()))
        own = {"input_ids": torch.ones(2, 4, dtype=torch.long), "labels": torch.tensor([0, 2])}
        step = trainer.training_step(trainer.model, own) if when == "after" else torch.zeros(())
        losses.append([step, *(trainer.compute_loss(trainer.model, inputs).detach() for inputs in (batch, own))])
    assert losses[0] == losses[1]


def test_a_loss_outside_of_a_run_is_not_recorded(tmp_path):
    trainer = trained(LSTSDTrainer, tmp_path, logits_retention="needed")
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "_logits").rglob("*")}
    trainer.model.train()
    for batch in trainer.get_train_dataloader():
        trainer.compute_loss(trainer.model, batch)
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "_logits").rglob("*")} == before


class Strict(nn.Module):
    """A model that takes no other argument."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.classifier(x)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_outside_of_a_run_are_the_plain_ones(tmp_path, workers):
    """Before, between and after runs, of loaders made then or earlier, with persistent workers, and after a run that
    began anew with smaller batches."""
    numbers = np.random.default_rng(0)
    data = datasets.Dataset.from_dict({"x": numbers.normal(size=(24, 4)).tolist(), "labels": [0, 1, 2] * 8})
    options = {"num_train_epochs": 3, "auto_find_batch_size": not workers, "dataloader_num_workers": workers}
    options["dataloader_persistent_workers"] = bool(workers)

    def batches(loader: Any) -> list[Any]:
        set_seed(1)
        return [{key: value.tolist() for key, value in batch.items()} for batch in loader]

    def of(trainer: Any) -> list[Any]:
        failed = []

        class Full(TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                if not workers and not failed:
                    failed.append(state.global_step)
                    raise RuntimeError("CUDA out of memory.")

        before = trainer.get_train_dataloader()
        found = [batches(before)]
        for _ in range(2):
            failed.clear()
            trainer.callback_handler.add_callback(Full())
            trainer.train()
            found += [batches(before), batches(trainer.get_train_dataloader())]
            for batch in before:
                trainer.model(**batch)
        return found

    found = {}
    for trainer_class in (Trainer, LSTSDTrainer, PredictionRecorder(Trainer)):
        settings = config(tmp_path / str(len(found)), **options)
        own = trainer_class(Strict(), settings, train_dataset=add_sample_ids(data))
        found[len(found)] = of(own)
    assert found[0] == found[1] == found[2]
    assert not np.isnan(LogitsStore.open(tmp_path / "1" / "_logits").read(2, range(24))).any()


# ---- loaders


class Chain:
    """A user's own loader, which has only a length and an iterator."""

    def __init__(self, loaders: list[Any]) -> None:
        self.loaders = loaders

    def __len__(self) -> int:
        return sum(map(len, self.loaders))

    def __iter__(self) -> Any:
        for loader in self.loaders:
            yield from loader


def chained(base: type[Trainer]) -> type[Trainer]:
    class Chained(base):  # type: ignore[misc, valid-type]
        def get_train_dataloader(self) -> Any:
            return Chain([super().get_train_dataloader(), super().get_train_dataloader()])

    return Chained


def test_two_loaders_one_after_the_other(tmp_path):
    plain = trained(chained(Trainer), tmp_path / "plain", num_train_epochs=2, **OFF)
    off = trained(chained(LSTSDTrainer), tmp_path / "off", num_train_epochs=2, **OFF)
    assert torch.equal(weights(plain.model), weights(off.model))
    taught = trained(chained(LSTSDTrainer), tmp_path / "taught", num_train_epochs=2)
    assert logged(taught, "short_term_coverage")[-6:] == [1.0] * 6  # all steps of the second epoch


class OtherBatches(LSTSDTrainer):
    def get_train_dataloader(self) -> Any:
        super().get_train_dataloader()
        return [{"input_ids": torch.ones(2, 4, dtype=torch.long), "labels": torch.tensor([0, 1])}]


def test_a_batch_of_another_loader_is_refused_in_a_run(tmp_path):
    with pytest.raises(ValueError, match=r"no sample ids: expected a batch of LSTSDTrainer\.get_train_dataloader"):
        trained(OtherBatches, tmp_path)


# ---- checkpoints


def test_a_checkpoint_that_is_not_there_is_reported_in_the_plain_trainers_words(tmp_path):
    for resume, words in (
        (True, "No valid checkpoint found in output directory"),
        (str(tmp_path / "checkpoint-7"), "Can't find a valid checkpoint at"),
    ):
        for trainer_class in (Trainer, LSTSDTrainer):
            with pytest.raises(ValueError, match=words):
                made(trainer_class, tmp_path).train(resume_from_checkpoint=resume)


class Preemption(TrainerCallback):
    """Asks for a checkpoint after step 4, as the handler of SIGTERM does."""

    def __init__(self, trainer: Trainer) -> None:
        callbacks = trainer.callback_handler.callbacks
        self.manager = next(c for c in callbacks if isinstance(c, JITCheckpointCallback)).jit_manager

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 4:
            self.manager.is_checkpoint_requested = True


def test_a_run_that_a_signal_ended_goes_on_where_it_was(tmp_path):
    """The checkpoint is written in the middle of a step: its last batch is recorded already, and is drawn again."""

    def trainer(folder: str) -> Any:
        options = config(tmp_path / folder, num_train_epochs=3, enable_jit_checkpoint=True)
        return LSTSDTrainer(tiny_bert(dropout=0.0), options, train_dataset=rows(20))

    whole, ended = trainer("whole"), trainer("ended")
    whole.train()
    ended.add_callback(Preemption(ended))
    ended.train()
    assert ended.state.global_step < whole.state.global_step
    shutil.rmtree(tmp_path / "ended" / "_logits")  # the checkpoint alone is enough
    resumed = trainer("ended")
    resumed.train(resume_from_checkpoint=True)
    assert torch.equal(weights(resumed.model), weights(whole.model))
    for epoch in range(3):
        files = [tmp_path / folder / "_logits" / f"epoch-{epoch:04}.npy" for folder in ("ended", "whole")]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_the_arguments_are_left_as_they_were(tmp_path):
    arguments = TrainingArguments(tmp_path, num_train_epochs=1, use_cpu=True, report_to=[], disable_tqdm=True)
    before = arguments.to_dict()
    LSTSDTrainer(Line("tuple"), arguments, train_dataset=Points()).train()
    assert arguments.to_dict() == before
