"""Names of the mixin beside those of the user's trainer."""

from typing import Any

import pytest
import torch
from transformers import Trainer

from lstsd_hf import LSTSDMixin, LSTSDTrainer, PredictionRecorder
from lstsd_hf.training.prediction_recorder import RecordingMixin
from toys import config, rows, tiny_bert, weights

PUBLIC = {"settings", "distillation", "teacher_weights", "logits_path"}
PUBLIC |= {"is_computing_base_loss", "batch_sample_ids", "batch_teachers"}
OURS = [base for base in RecordingMixin.__mro__ if base.__module__.startswith("lstsd_hf.")]


def trained(trainer_class: Any, folder: Any) -> Any:
    trainer = trainer_class(tiny_bert(), config(folder, num_train_epochs=2), train_dataset=rows(16))
    trainer.train()
    return trainer


def test_the_mixin_has_no_private_name_without_its_prefix(tmp_path):
    """But for methods of the Trainer, which it overrides on purpose, and a value that the Trainer looks for."""
    names = {name for base in OURS for name in vars(base) if not name.startswith("__")} - set(dir(Trainer))
    names |= vars(trained(LSTSDTrainer, tmp_path / "ours")).keys() - vars(trained(Trainer, tmp_path / "plain")).keys()
    assert {name for name in names if not name.startswith("_lstsd_")} == {*PUBLIC, "loss_is_scaled_for_ga"}
    assert len(names) > 50


class Own(Trainer):
    """A trainer with attributes and methods that mean something to its author."""

    _labels = _parts = _head = "mine"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._teachers = self._plan = self._trial = self._saved = self._callback = {"rate": 1}

    def _reset(self) -> str:
        return self._labels

    _begin = _student = _settle = teach = _reset

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        assert self._reset() == self._begin() == self.teach() == self._head == "mine"
        assert self._plan == self._callback == {"rate": 1}
        return super().training_step(*args, **kwargs)


def test_a_trainer_may_have_any_private_names(tmp_path):
    class InFront(LSTSDTrainer):
        _labels = _parts = _head = "mine"
        _reset = _begin = _student = _settle = teach = Own._reset

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._teachers = self._plan = self._trial = self._saved = self._callback = {"rate": 1}

    class Behind(LSTSDMixin, Own):
        pass

    plain = weights(trained(LSTSDTrainer, tmp_path / "plain").model)
    for name, trainer_class in {"in front": InFront, "behind": Behind}.items():
        assert torch.equal(plain, weights(trained(trainer_class, tmp_path / name).model))
    recorded = trained(PredictionRecorder(Own), tmp_path / "recorded")
    assert torch.equal(weights(trained(Own, tmp_path / "own").model), weights(recorded.model))


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_a_public_name_that_means_something_else_is_refused(tmp_path, name):
    """As a method or an attribute of the class, and as one that the trainer sets, before the mixin does or after."""
    message = f"has '{name}' of its own.*Rename '{name}' in your trainer, for instance to 'my_{name}'"

    class Shared(Trainer):
        pass

    setattr(Shared, name, {"mine": 1})
    with pytest.raises(TypeError, match=message):
        PredictionRecorder(Shared)
    with pytest.raises(TypeError, match=message):
        type("InFront", (LSTSDTrainer,), {name: lambda self: "mine"})

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        super(owner, self).__init__(*args, **kwargs)
        setattr(self, name, {"mine": 1})

    for base in (Trainer, LSTSDTrainer):
        owner = type("Own", (base,), {"__init__": __init__})
        with pytest.raises(AttributeError, match=message):
            trained(PredictionRecorder(owner) if base is Trainer else owner, tmp_path)
    assert not (tmp_path / "_logits").exists()
