"""The loss and its parts against arithmetic done by hand."""

import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from lstsd_hf.method.heads import HEADS
from lstsd_hf.method.loss import (
    TeacherTerms,
    bernoulli_log_probabilities,
    confidence,
    distillation_loss,
    divergence,
)


def of_classes(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """The divergence between logits of classes."""
    return divergence(F.log_softmax(student, dim=-1), F.log_softmax(teacher, dim=-1), temperature)


def of_labels(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """The divergence between logits of labels, averaged over the labels."""
    pair = bernoulli_log_probabilities(student), bernoulli_log_probabilities(teacher)
    return divergence(*pair, temperature).mean(dim=-1)


def test_divergence_of_classes_is_the_full_kl_times_the_squared_temperature():
    # softmax(log([1, 3])) = [1/4, 3/4]; at temperature 2 the odds are the square roots: 1 : sqrt(3).
    student, teacher = torch.zeros(1, 2), torch.tensor([[0.0, math.log(3)]])
    at_one = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    assert of_classes(student, teacher, 1.0).tolist() == pytest.approx([at_one])
    q = 1 / (1 + math.sqrt(3))
    at_two = 4 * (q * math.log(q / 0.5) + (1 - q) * math.log((1 - q) / 0.5))
    assert of_classes(student, teacher, 2.0).tolist() == pytest.approx([at_two])
    assert of_classes(teacher, teacher, 3.0).tolist() == pytest.approx([0.0], abs=1e-7)


def test_divergence_of_labels_is_the_mean_of_bernoulli_kls():
    student, teacher = torch.zeros(1, 2), torch.tensor([[math.log(3), 0.0]])
    kl = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert of_labels(student, teacher, 1.0).tolist() == pytest.approx([kl / 2])
    q = math.sqrt(3) / (1 + math.sqrt(3))
    at_two = 4 * (q * math.log(q / 0.5) + (1 - q) * math.log((1 - q) / 0.5))
    assert of_labels(student, teacher, 2.0).tolist() == pytest.approx([at_two / 2])


def test_confidence_is_zero_for_a_teacher_that_knows_nothing_and_one_for_a_sure_one():
    teacher = torch.tensor([[0.0, 0.0, 0.0], [40.0, 0.0, 0.0]])
    assert confidence(F.log_softmax(teacher, dim=-1)).tolist() == pytest.approx([0.0, 1.0], abs=1e-6)
    entropy = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    half = F.log_softmax(torch.tensor([[0.0, math.log(3)]]), dim=-1)
    assert confidence(half).tolist() == pytest.approx([1 - entropy / math.log(2)])
    labels = bernoulli_log_probabilities(torch.tensor([[math.log(3), 0.0]]))
    assert confidence(labels).mean(dim=-1).tolist() == pytest.approx([(1 - entropy / math.log(2)) / 2])


def test_a_sample_without_a_teacher_gives_its_weight_back():
    """One of two samples has the teacher: its weight is 0.4, the other's 0. Base loss 2, divergence 0.5."""
    ones, half = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5, 9.0]])
    terms = TeacherTerms(present=ones, trust=ones, divergence=half, agreement=None)
    found = distillation_loss(torch.tensor(2.0), torch.tensor([0.4]), terms)
    assert found.item() == pytest.approx(0.8 * 2.0 + 0.2 * 0.5)


def test_the_loss_is_the_convex_combination_of_the_contract():
    torch.manual_seed(0)
    student, teachers = torch.randn(5, 3), torch.randn(2, 5, 3)
    base = torch.tensor(1.25)
    expected = base.clone()
    for weight, teacher in zip((0.3, 0.5), teachers, strict=True):
        c, d = confidence(F.log_softmax(teacher, dim=-1)), of_classes(student, teacher, 2.0)
        share = weight * c.mean()
        expected = expected - share * base + share * (c * d).sum() / c.sum()
    terms = HEADS["single_label_classification"].terms(student, teachers, 2.0, "confidence")
    found = distillation_loss(base, torch.tensor([0.3, 0.5]), terms)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
