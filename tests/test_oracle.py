"""A slow reference: the contract's formulas in plain Python over a dictionary of past logits, for a whole run."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from transformers import default_data_collator

from lstsd_hf import LSTSDTrainer, add_sample_ids
from toys import config, logged, rows, tiny_bert, weights


def softmax(values: list[float], tau: float) -> list[float]:
    exponentials = [math.exp(value / tau) for value in values]
    return [value / sum(exponentials) for value in exponentials]


def entropy(shares: list[float]) -> float:
    return -sum(share * math.log(share) for share in shares)


def trust(head: str, teacher: list[float], kind: str) -> float:
    if kind == "constant" or head == "regression":
        return 1.0
    if head == "multi_label":
        unsure = [entropy(softmax([value, 0.0], 1.0)) / math.log(2) for value in teacher]
        return 1.0 - sum(unsure) / len(unsure)
    return 1.0 - entropy(softmax(teacher, 1.0)) / math.log(len(teacher))


def divergence(head: str, student: torch.Tensor, teacher: list[float], tau: float) -> torch.Tensor:
    """The divergence of one sample; only the student carries the gradient."""
    if head == "regression":
        return (student[0] - teacher[0]) ** 2
    if head == "multi_label":
        total = torch.zeros(())
        for p, value in zip(student, teacher, strict=True):
            for sign in (1, -1):
                q = 1 / (1 + math.exp(-sign * value / tau))
                total = total + q * (math.log(q) + torch.log1p(torch.exp(-sign * p / tau)))
        return tau**2 * total / len(teacher)
    q = softmax(teacher, tau)
    log_p = student / tau - torch.log(torch.exp(student / tau).sum())
    return tau**2 * sum(share * (math.log(share) - log_p[c]) for c, share in enumerate(q))


def base_loss(head: str, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    if head == "regression":
        return ((logits[:, 0] - labels) ** 2).mean()
    if head == "multi_label":
        return F.binary_cross_entropy(torch.sigmoid(logits), labels)
    return -torch.log(torch.softmax(logits, 1))[torch.arange(len(labels)), labels].mean()


def slow_run(head: str, batches: list[list[dict[str, Any]]], settings: Any, epochs: int) -> tuple[list[float], Any]:
    """Trains by the formulas alone, on the given micro-batches; returns the loss of each step and the model."""
    model = tiny_bert(head, dropout=0.0).train()
    optimizer = torch.optim.SGD(model.parameters(), settings.learning_rate)
    past: dict[int, dict[int, list[float]]] = {}
    losses = []
    group = settings.gradient_accumulation_steps
    per_epoch = len(batches) // epochs
    for epoch in range(epochs):
        past[epoch] = {}
        k = settings.mini_generation_epochs
        ramp = (epoch + 1) / epochs if settings.weight_schedule == "linear" else 1.0
        default = 0.1 if head == "regression" else 0.4
        given = {"long": settings.long_term_weight, "short": settings.short_term_weight}
        share_of = {teacher: default if weight is None else weight for teacher, weight in given.items()}
        if epoch < k and settings.lone_teacher == "teacher":
            share_of = {"long": 0.0, "short": share_of["long"] + share_of["short"]}
        teacher_epoch = {"long": (epoch // k) * k - 1, "short": epoch - 1}
        in_epoch = batches[epoch * per_epoch : (epoch + 1) * per_epoch]
        for start in range(0, per_epoch, group):
            micro_batches = in_epoch[start : start + group]
            total = sum(len(micro_batch) for micro_batch in micro_batches)
            step_loss = torch.zeros(())
            for micro_batch in micro_batches:
                labels = torch.tensor([row["label"] for row in micro_batch])
                logits = model(torch.tensor([row["input_ids"] for row in micro_batch])).logits
                loss = base_loss(head, logits, labels)
                combined, left = torch.zeros(()), 1.0
                for teacher, weight in share_of.items():
                    pairs = []
                    for row, student in zip(micro_batch, logits, strict=True):
                        known = past.get(teacher_epoch[teacher], {}).get(row["sample_id"])
                        c = 0.0 if known is None else trust(head, known, settings.teacher_trust)
                        d = (
                            torch.zeros(())
                            if known is None
                            else divergence(head, student, known, settings.temperature)
                        )
                        pairs.append((c, d))
                    trusted = sum(c for c, _ in pairs)
                    a = weight * ramp * trusted / len(pairs)
                    if trusted:
                        combined = combined + a * sum(c * d for c, d in pairs) / trusted
                    left -= a
                step_loss = step_loss + (left * loss + combined) * len(micro_batch) / total
                for row, values in zip(micro_batch, logits.tolist(), strict=True):
                    past[epoch][row["sample_id"]] = values
            optimizer.zero_grad()
            step_loss.backward()
            optimizer.step()
            losses.append(step_loss.item())
    return losses, model


@pytest.mark.parametrize(
    ("head", "changes"),
    [
        ("classes", {}),
        ("classes", {"teacher_trust": "constant", "temperature": 3.0, "mini_generation_epochs": 3}),
        ("classes", {"weight_schedule": "linear", "lone_teacher": "teacher", "mini_generation_epochs": 3}),
        ("classes", {"gradient_accumulation_steps": 3, "long_term_weight": 0.2, "short_term_weight": 0.7}),
        ("classes", {"long_term_weight": 0.0, "short_term_weight": 0.8, "weight_schedule": "linear"}),
        ("classes", {"long_term_weight": 1.0, "short_term_weight": 0.0, "mini_generation_epochs": 1}),
        ("regression", {"learning_rate": 1e-2}),
        ("regression", {"learning_rate": 1e-2, "gradient_accumulation_steps": 3, "lone_teacher": "teacher"}),
        ("multi_label", {"temperature": 2.0}),
        ("multi_label", {"teacher_trust": "constant", "gradient_accumulation_steps": 3, "weight_schedule": "linear"}),
    ],
)
def test_a_run_is_what_the_formulas_say(tmp_path, head, changes):
    epochs = 6
    shape = {"num_train_epochs": epochs, "per_device_train_batch_size": 5, "remove_unused_columns": False}
    settings = config(tmp_path, teacher_trust="confidence", **shape)
    for name, value in changes.items():
        setattr(settings, name, value)
    data = add_sample_ids(rows(23, head))  # a short last micro-batch, and a short last group
    fetched: list[list[dict[str, Any]]] = []

    def remember(features):
        fetched.append([data[index_of[tuple(feature["input_ids"])]] for feature in features])
        return default_data_collator(features)

    index_of = {tuple(row["input_ids"]): row["sample_id"] for row in data}
    model = tiny_bert(head, dropout=0.0)
    trainer = LSTSDTrainer(model, settings, train_dataset=data, data_collator=remember)
    trainer.train()

    expected, slow_model = slow_run(head, fetched, settings, epochs)
    found = logged(trainer, "loss")
    assert len(found) == len(expected) == epochs * math.ceil(5 / settings.gradient_accumulation_steps)
    assert found == pytest.approx(expected, abs=1e-5)
    torch.testing.assert_close(weights(trainer.model), weights(slow_model), atol=2e-5, rtol=0)
    assert max(abs(a - b) for a, b in zip(found, logged(trainer, "base_loss"), strict=True)) > 1e-3  # an effect
