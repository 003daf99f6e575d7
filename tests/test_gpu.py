"""What only a GPU can show: these tests fail at a step that waits for the device."""

import pytest
import torch
from transformers import Trainer

from lstsd_hf import LogitsStore, LSTSDTrainer
from lstsd_hf.method.heads import HEADS
from lstsd_hf.method.loss import distillation_loss
from lstsd_hf.training.collator import teacher_key
from toys import config, rows, tiny_bert

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture
def _no_synchronisation():
    """Makes torch raise an error when the host waits for the device."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.usefixtures("_no_synchronisation")
@pytest.mark.parametrize(
    ("problem_type", "classes"),
    [("single_label_classification", 3), ("multi_label_classification", 4), ("regression", 1)],
)
@pytest.mark.parametrize("teacher_trust", ["constant", "confidence"])
def test_the_loss_and_its_gradient_wait_for_nothing(problem_type, classes, teacher_trust):
    student = torch.randn(8, classes, device="cuda", requires_grad=True)
    teachers = torch.randn(2, 8, classes, device="cuda").half()
    terms = HEADS[problem_type].terms(student, teachers, 2.0, teacher_trust)
    loss = distillation_loss(student.square().mean(), torch.full((2,), 0.4, device="cuda"), terms)
    loss.backward()


@pytest.mark.parametrize("changes", [{}, {"bf16": True}, {"dataloader_num_workers": 2}, {"teacher_trust": "honest"}])
def test_the_teachers_and_the_record_wait_for_nothing(tmp_path, monkeypatch, changes):
    """All that LSTSDTrainer does around the plain Trainer's forward pass. That pass itself may wait for its masks."""
    plain, distilled = Trainer.compute_loss, LSTSDTrainer.compute_loss
    guarded = 0

    def unguarded(self, *args, **kwargs):
        mode = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("default")
        try:
            return plain(self, *args, **kwargs)
        finally:
            torch.cuda.set_sync_debug_mode(mode)

    def compute_loss(self, model, inputs, *args, **kwargs):
        nonlocal guarded
        if teacher_key("long_term") not in inputs:  # the very first step makes the store
            return distilled(self, model, inputs, *args, **kwargs)
        guarded += 1
        torch.cuda.set_sync_debug_mode("error")
        try:
            return distilled(self, model, inputs, *args, **kwargs)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(Trainer, "compute_loss", unguarded)
    monkeypatch.setattr(LSTSDTrainer, "compute_loss", compute_loss)
    LSTSDTrainer(tiny_bert(), config(tmp_path, use_cpu=False, **changes), train_dataset=rows(64)).train()
    assert guarded == 3 * 8
    store = LogitsStore.open(tmp_path / "_logits")
    assert store.sealed_epochs == [0, 1, 2, 3, 4]
    assert torch.from_numpy(store.read(4, range(64))).isfinite().all()
